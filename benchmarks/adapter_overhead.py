"""Generation with the EmoAdapter on, its predictions returned, against off: tokens a second, paired.

    python benchmarks/adapter_overhead.py [--rounds 9] [--new-tokens 48]

A Qwen2.5-VL and a Whisper encoder of random weights, small in width and true in their sequence lengths: clips of 10 s
of audio and 4 frames of 336 x 336 pixels, so 125 audio and 288 visual tokens a clip, 4 clips a batch. The Enhancer
enters before the LLM and has its default rank, which beside so narrow an LLM is more than beside a real one. Goal: at
most 5% of the tokens a second.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import against_goals, last_line, machine, paired_times, quiet, ratio, table
from teacher_cache import CLIPS, make_clips, make_model

GOALS = {"overhead": 0.05}
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=48)
    args = parser.parse_args()
    quiet()
    print(machine())
    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = make_clips(folder / "clips")
        path = make_model(folder)
        processor = VAEmotionLLMProcessor.from_pretrained(path, num_frames=4, max_audio_s=60)
        model = VAEmotionLLMForConditionalGeneration.from_pretrained(path).eval()
        with torch.no_grad():  # as after training: a residual of nothing could be skipped
            for enhancer in model.emotion_adapter.enhancers.values():
                enhancer.up.weight.normal_(std=0.02)
        media = [
            processor.encode_media(kind, str(manifest.parent / f"{i % CLIPS}.mp4"))
            for i in range(BATCH)
            for kind in ("video", "audio")
        ]
        content = [{"type": "video"}, {"type": "audio"}, {"type": "text", "text": "Which emotion is it?"}]
        conversations = [[{"role": "user", "content": content}]] * BATCH
        texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        inputs = processor.assemble(texts, media, padding_side="left").to(model.device)

        def generate(use_adapter: bool) -> None:
            tokens = model.generate(
                **inputs, use_adapter=use_adapter, do_sample=False, min_new_tokens=args.new_tokens,
                max_new_tokens=args.new_tokens, return_dict_in_generate=True,
            ).sequences  # fmt: skip
            assert tokens.shape[1] == inputs["input_ids"].shape[1] + args.new_tokens

        runs = {"off": partial(generate, False), "on": partial(generate, True)}
        for run in runs.values():
            run()
        times = paired_times(runs, args.rounds)
    rate = {name: BATCH * args.new_tokens / statistics.median(found) for name, found in times.items()}
    table(["adapter", "tokens a second"], [[name, f"{value:.0f}"] for name, value in rate.items()])
    measured = {"overhead": 1 - ratio(times, "off", "on")}  # of the tokens a second
    against_goals(measured, GOALS)
    last_line(measured)


if __name__ == "__main__":
    main()
