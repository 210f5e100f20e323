"""`vaemotionllm cache-teacher`: ask the teacher of stage 1 once, and keep what it says and knows."""

import argparse
import sys
from pathlib import Path

from ..utils import InputError
from .launched import run_as_rank, shown_log

DESCRIPTION = """ask the teacher of a stage-1 config once: its responses, its states at them, its scores

Training with the same config then reads `teacher_cache` in place of running the teacher in each step. What was stopped
goes on; more clips or responses are added to what is there. With several GPUs:

  torchrun --nproc_per_node 8 -m vaemotionllm.cli.cache_teacher --config stage1_qwen2_5_vl_7b \\
      manifest=clips/manifest.jsonl teacher_cache=cache/teacher
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="a stage-1 YAML file, or the name of one that the package has")
    parser.add_argument("--estimate", action="store_true", help="print what it will take on disk, and end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields to set, as YAML values")


def run(args: argparse.Namespace) -> int:
    from ..config_file import build_config, read_config

    values = read_config(args.config, args.overrides)
    if values.get("stage") != 1:
        raise InputError(f"config field `stage` is {values.get('stage')!r}; only stage 1 has a teacher.")
    if not values.get("teacher_cache"):
        raise InputError("config field `teacher_cache` is missing: name the folder that is to be filled.")
    # An engine shards what it trains; here nothing is trained, and the teacher is whole on each rank.
    # A rank that is done waits for the slowest, which in a pass of a day may be hours behind.
    values = {"output_dir": values["teacher_cache"], "ddp_timeout": 86_400, **values, "deepspeed": None}
    from ..train import stage1_data
    from ..train.run import load_model
    from ..train.stage1_config import Stage1Config

    config = build_config(Stage1Config, values)
    clips, _ = stage1_data.read_clips(config)
    main = config.process_index == 0
    with shown_log(main):
        model, processor = load_model(config)
    sizes = stage1_data.estimate_bytes(config, model, processor, clips)
    if main:
        print(describe(sizes, len(clips) * config.responses_per_clip, config.max_response_tokens), flush=True)
    if args.estimate:
        return 0
    with shown_log(main):
        stage1_data.fill_teacher_cache(config, model, processor, clips)
    if main:
        used = sum(file.stat().st_size for file in Path(config.teacher_cache).iterdir() if file.is_file())
        print(f"{config.teacher_cache}: {len(clips) * config.responses_per_clip} responses, {_size(used)}")
    return 0


def describe(sizes: dict[str, int], responses: int, tokens: int) -> str:
    """The estimate in words."""
    text = f"At most {_size(sizes['states'])} for {responses} responses of up to {tokens} tokens"
    if "audio" in sizes:
        text += f", about {_size(sizes['audio'])} for the audio tower's states"
    text += f"; {_size(sizes['free'])} are free."
    if sizes["states"] + sizes.get("audio", 0) > sizes["free"]:
        text += " WARNING: it may not fit. Lower responses_per_clip or max_response_tokens, or name a larger disk."
    return text


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    sys.exit(run_as_rank("cache-teacher", add_arguments, run))
