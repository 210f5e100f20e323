"""Prefill and each further token, against the bare backbone with as many tokens: times, paired.

    python benchmarks/generate_overhead.py [--rounds 15] [--new-tokens 33]

The Qwen2.5-VL and the Whisper encoder of `teacher_cache.py`: small in width, where what we add weighs most, and true in
their sequence lengths. Prompts of text alone, of a film (288 visual tokens), and of a film with its sound (125 audio
tokens more, in place of which the backbone is given as many text tokens), 2 in a batch, the EmoAdapter on. Goals: the
prefill takes at most 8% longer, with the sound encoded before as the evaluation does it; a token at most 5%. What the
audio tower takes on top, which no bare backbone has, is printed beside them.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import against_goals, last_line, machine, paired_times, quiet, table
from teacher_cache import make_clips, make_model

GOALS = {"prefill": 0.08, "token": 0.05}
BATCH = 2
TURNS = {
    "text": ["text"],
    "film": ["video", "text"],
    "film and sound": ["video", "audio", "text"],
}


def make_inputs(processor, manifest: Path, kinds: list[str]):
    """Inputs of a batch of equal turns, each with a film of its own."""
    media = [
        processor.encode_media(kind, str(manifest.parent / f"{row}.mp4"))
        for row in range(BATCH)
        for kind in kinds
        if kind != "text"
    ]
    content = [{"type": kind, "text": "Which emotion is it? " * 12} for kind in kinds]
    texts = processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * BATCH, tokenize=False, add_generation_prompt=True
    )
    return processor.assemble(texts, media, padding_side="left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=33)
    args = parser.parse_args()
    quiet()
    print(machine())
    from transformers import AutoModelForImageTextToText

    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest, path = make_clips(folder / "clips"), make_model(folder)
        processor = VAEmotionLLMProcessor.from_pretrained(path, num_frames=4)
        model = VAEmotionLLMForConditionalGeneration.from_pretrained(path).eval()
        bare = AutoModelForImageTextToText.from_pretrained(folder / "vlm").eval()
        with torch.no_grad():  # as after training: a residual of nothing could be skipped
            for enhancer in model.emotion_adapter.enhancers.values():
                enhancer.up.weight.normal_(std=0.02)
        rows, prefill, token = [], {}, {}
        for name, kinds in TURNS.items():
            heard = make_inputs(processor, manifest, kinds)
            plain = dict(heard)
            ours = dict(heard)
            if "audio" in kinds:
                features, counts = plain.pop("input_features"), plain.pop("audio_num_tokens")
                word = processor.tokenizer.encode("a", add_special_tokens=False)[0]
                sound = plain["input_ids"] == processor.audio_token_id
                plain["input_ids"] = plain["input_ids"].masked_fill(sound, word)
                plain["mm_token_type_ids"] = plain["mm_token_type_ids"].masked_fill(sound, 0)
                with torch.no_grad():
                    states = model.audio_projector.stack(model.get_audio_states(features), counts)
                del ours["input_features"]
                ours["audio_states"] = states

            def generate(generator, inputs, new_tokens: int) -> None:
                found = generator.generate(
                    **inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens
                )
                assert found.shape[1] == inputs["input_ids"].shape[1] + new_tokens

            variants = {
                (who, new_tokens): partial(generate, generator, inputs, new_tokens)
                for new_tokens in (1, args.new_tokens)
                for who, generator, inputs in (("bare", bare, plain), ("ours", model, ours), ("heard", model, heard))
                if who != "heard" or ("audio" in kinds and new_tokens == 1)
            }
            for run in variants.values():
                run()
            times = paired_times(variants, args.rounds)

            def more(whose: list[float], than: list[float]) -> float:
                return statistics.median(a / b for a, b in zip(whose, than)) - 1

            first = {who: times[who, 1] for who in ("bare", "ours")}
            rest = {
                who: [(whole - begin) / (args.new_tokens - 1) for whole, begin in zip(times[who, args.new_tokens], f)]
                for who, f in first.items()
            }
            prefill[name], token[name] = more(first["ours"], first["bare"]), more(rest["ours"], rest["bare"])
            tower = more(times["heard", 1], first["bare"]) - prefill[name] if "audio" in kinds else 0.0
            rows.append(
                [name, str(heard["input_ids"].shape[1])]
                + [f"{1000 * statistics.median(values):.1f}" for values in (first["bare"], rest["bare"])]
                + [f"{100 * value:+.1f}%" for value in (prefill[name], token[name], tower)]
            )
    table(["turn", "tokens", "bare prefill, ms", "bare token, ms", "prefill", "token", "audio tower"], rows)
    measured = {"prefill": max(prefill.values()), "token": max(token.values())}
    against_goals(measured, GOALS)
    last_line(measured | {f"prefill, {name}": value for name, value in prefill.items()})


if __name__ == "__main__":
    main()
