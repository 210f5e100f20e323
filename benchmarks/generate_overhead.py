"""Prefill and each further token, against the bare backbone with as many tokens: times, paired.

    python benchmarks/generate_overhead.py [--rounds 15] [--new-tokens 33]

The Qwen2.5-VL and the Whisper encoder of `teacher_cache.py`: small in width, where what we add weighs most, and true
in their sequence lengths. Prompts of text alone, of a video (288 visual tokens), and of a video with its audio (125
audio tokens more, in place of which the backbone is given as many text tokens), 2 in a batch, EmoAdapter on. Goals:
the prefill takes at most 8% longer, with the audio encoded before as the evaluation does it; a token at most 5%. What
the audio tower takes on top, which no bare backbone has, is printed beside them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import DEVICE, against_goals, last_line, machine, quiet, ratio, table
from teacher_cache import make_clips, make_model
from transformers import StoppingCriteria

GOALS = {"prefill": 0.08, "token": 0.05}
BATCH = 2
TURNS = {
    "text": ["text"],
    "video": ["video", "text"],
    "video and audio": ["video", "audio", "text"],
}


def make_inputs(processor, manifest: Path, kinds: list[str]):
    """Inputs of a batch of equal turns, each with a video of its own."""
    media = [
        processor.encode_media(kind, str(manifest.parent / f"{row}.mp4"))
        for row in range(BATCH)
        for kind in kinds
        if kind != "text"
    ]
    words = {"text": "Which emotion is it? " * 12}
    content = [{"type": kind, **(words if kind == "text" else {})} for kind in kinds]
    texts = processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * BATCH, tokenize=False, add_generation_prompt=True
    )
    return processor.assemble(texts, media, padding_side="left")


def without_audio(inputs, processor) -> dict:
    """What the bare backbone is given: a text token in place of each audio token."""
    plain = {name: tensor for name, tensor in inputs.items() if name not in ("input_features", "audio_num_tokens")}
    [word] = processor.tokenizer.encode("a", add_special_tokens=False)
    is_audio = plain["input_ids"] == processor.audio_token_id
    plain["input_ids"] = plain["input_ids"].masked_fill(is_audio, word)
    plain["mm_token_type_ids"] = plain["mm_token_type_ids"].masked_fill(is_audio, 0)
    return plain


def encoded(inputs, model) -> dict:
    """The inputs with the states of the audio tower in place of its features."""
    inputs = dict(inputs)
    if "input_features" in inputs:
        with torch.no_grad():
            states = model.get_audio_states(inputs.pop("input_features"))
            inputs["audio_states"] = model.audio_projector.stack(states, inputs["audio_num_tokens"])
    return inputs


def paired_steps(variants: dict, rounds: int, new_tokens: int) -> dict[str, list[list[float]]]:
    """Seconds of each token, the first with the prefill, of each variant in each round; one more round warms up."""
    found: dict[str, list[list[float]]] = {who: [] for who in variants}
    for _ in range(rounds + 1):
        for who, (generator, inputs) in variants.items():
            clock = Clock()
            generator.generate(
                **inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens,
                stopping_criteria=[clock],
            )  # fmt: skip
            assert len(clock.seconds) == new_tokens
            found[who].append(clock.seconds)
    return {who: times[1:] for who, times in found.items()}


class Clock(StoppingCriteria):
    """Stops nothing; `generate` calls it after each token."""

    def __init__(self):
        self.seconds: list[float] = []
        self.last = time.perf_counter()

    def __call__(self, input_ids, scores, **kwargs):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


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
        model = VAEmotionLLMForConditionalGeneration.from_pretrained(path).eval().to(DEVICE)
        bare = AutoModelForImageTextToText.from_pretrained(folder / "vlm").eval().to(DEVICE)
        with torch.no_grad():  # as after training: a residual of nothing could be skipped
            for enhancer in model.emotion_adapter.enhancers.values():
                enhancer.up.weight.normal_(std=0.02)
        rows, prefill, token = [], {}, {}
        for name, kinds in TURNS.items():
            inputs = make_inputs(processor, manifest, kinds).to(DEVICE)
            variants = {"bare": (bare, without_audio(inputs, processor)), "ours": (model, encoded(inputs, model))}
            if "audio" in kinds:
                variants["ours, tower and all"] = (model, inputs)
            found = paired_steps(variants, args.rounds, args.new_tokens)
            steps = {who: [statistics.median(times[1:]) for times in rounds] for who, rounds in found.items()}
            first = {who: [times[0] for times in rounds] for who, rounds in found.items()}
            prefill[name], token[name] = ratio(first, "ours", "bare") - 1, ratio(steps, "ours", "bare") - 1
            tower = ratio(first, "ours, tower and all", "bare") - 1 - prefill[name] if "audio" in kinds else 0.0
            rows.append(
                [name, str(inputs["input_ids"].shape[1])]
                + [f"{1000 * statistics.median(times):.1f}" for times in (first["bare"], steps["bare"])]
                + [f"{100 * value:+.1f}%" for value in (prefill[name], token[name], tower)]
            )
    table(["turn", "tokens", "bare prefill, ms", "bare token, ms", "prefill", "token", "audio tower"], rows)
    measured = {"prefill": max(prefill.values()), "token": max(token.values())}
    against_goals(measured, GOALS)
    last_line(measured | {f"prefill, {name}": value for name, value in prefill.items()})


if __name__ == "__main__":
    main()
