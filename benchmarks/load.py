"""`from_pretrained` of a model against that of its bare backbone plus its audio tower: time and peak memory, paired.

    python benchmarks/load.py [--rounds 15] [--hidden 512]

Random weights in bfloat16: a Qwen2.5-VL and a Whisper with as many layers as the 7B and the large model, and narrow.
Each is loaded as saved, where weights are mapped from the file and time hangs on their number, and in float32, where
all are read and converted. The files are in the system's cache; a peak has the pages of the file that were mapped, and
that of the halves is the sum of the two. Beside them the same model saved without its backbone (`audio_only`), whose
files are joined and checked. Goal: at most 10% more time and memory than the halves.
"""

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import against_goals, last_line, machine, paired_times, peak_bytes, quiet, ratio, run_alone, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the builder of a small model, for the warm-up

OURS = ("whole", "audio_only")
DTYPES = {"as_saved": torch.bfloat16, "converted": torch.float32}
GOALS = {f"{what}_{kind}": 1.10 for what in ("time", "memory") for kind in DTYPES}


def make_folders(folder: Path, hidden: int) -> None:
    """`vlm`, `tower`, `whole` and `audio_only` under `folder`."""
    import tiny
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, WhisperConfig, WhisperModel

    from vaemotionllm import VAEmotionLLMForConditionalGeneration

    heads = hidden // 64
    text = tiny.TEXT | dict(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=28, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4), head_dim=64, vocab_size=32_000,
        rope_parameters=tiny.MROPE | {"mrope_section": [8, 12, 12]},
    )  # fmt: skip
    vision = dict(
        depth=32, hidden_size=hidden // 2, num_heads=heads, intermediate_size=hidden * 11 // 8, out_hidden_size=hidden
    )
    whisper = WhisperConfig(
        d_model=hidden, encoder_layers=32, encoder_attention_heads=heads, encoder_ffn_dim=2 * hidden,
        decoder_layers=32, decoder_attention_heads=heads, decoder_ffn_dim=hidden, num_mel_bins=128, vocab_size=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    tiny.make_vlm("qwen2_5_vl", folder).rename(folder / "vlm")  # its tokenizer
    Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, dtype="bfloat16")
    ).bfloat16().save_pretrained(folder / "vlm")
    WhisperModel(whisper).bfloat16().save_pretrained(folder / "audio")
    model = VAEmotionLLMForConditionalGeneration.from_backbone(folder / "vlm", folder / "audio")
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "audio_only", audio_only=True)
    model.audio_tower.save_pretrained(folder / "tower")


def loads(folder: Path, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    from transformers import AutoModelForImageTextToText
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from vaemotionllm import VAEmotionLLMForConditionalGeneration

    backbone = partial(AutoModelForImageTextToText.from_pretrained, folder / "vlm", dtype=dtype)
    tower = partial(WhisperEncoder.from_pretrained, folder / "tower", dtype=dtype)
    ours = {name: partial(VAEmotionLLMForConditionalGeneration.from_pretrained, folder / name, dtype=dtype)
            for name in OURS}  # fmt: skip
    return {"backbone": backbone, "tower": tower, "halves": lambda: (backbone(), tower()), **ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=512, help="width of the LLM; a multiple of 64")
    parser.add_argument("--peaks", nargs=2, metavar=("FOLDER", "NAME"), help="only print these peaks, in this process")
    args = parser.parse_args()
    quiet()
    if args.peaks:
        folder, name = Path(args.peaks[0]), args.peaks[1]
        with tempfile.TemporaryDirectory() as temporary:
            small = Path(temporary)
            make_folders(small, 64)
            warm_up = loads(small, torch.float32)[name]
            peaks = {kind: peak_bytes(loads(folder, dtype)[name], warm_up) for kind, dtype in DTYPES.items()}
        last_line(peaks)
        return
    print(machine())
    measured: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folders(folder, args.hidden)
        size = (folder / "whole" / "model.safetensors").stat().st_size
        print(f"{size / 2**20:,.0f} MiB of weights\n")
        parts = {name: run_alone(__file__, ["--peaks", str(folder), name]) for name in ("backbone", "tower", *OURS)}
        halves = {kind: parts["backbone"][kind] + parts["tower"][kind] for kind in DTYPES}
        peaks = {"halves": halves, **{name: parts[name] for name in OURS}}
        for kind, dtype in DTYPES.items():
            variants = {name: run for name, run in loads(folder, dtype).items() if name in peaks}
            for run in variants.values():
                run()
            # A model is freed by the collector alone, which would be timed with the variant after it.
            times = paired_times(variants, args.rounds, before=gc.collect)
            for name in OURS:
                suffix = kind if name == "whole" else f"{name}_{kind}"
                measured[f"time_{suffix}"] = ratio(times, name, "halves")
                measured[f"memory_{suffix}"] = peaks[name][kind] / peaks["halves"][kind]
            rows += [
                [f"{name}, {kind}", f"{statistics.median(times[name]):.3f}", f"{peaks[name][kind] / 2**20:,.0f}"]
                for name in variants
            ]
    table(["from_pretrained", "seconds", "peak MiB"], rows)
    against_goals(measured, GOALS)
    last_line(measured)


if __name__ == "__main__":
    main()
