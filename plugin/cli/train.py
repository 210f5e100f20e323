"""`vaemotionllm train`: run a training stage from a YAML config, in one process or under a launcher."""

import argparse
import sys

from ..utils import InputError
from .launched import run_as_rank, shown_log

DESCRIPTION = """train stage 1 (VG-Align) or stage 2 (EmoAdapter) from a YAML config

A run that was stopped goes on from its last complete checkpoint when the same command runs again.

  vaemotionllm train --config stage1_nano vlm=DIR/vlm audio=DIR/audio manifest=DIR/manifest.jsonl output_dir=runs/s1
  deepspeed --num_gpus 8 --module vaemotionllm.cli.train --config stage1_qwen2_5_vl_7b deepspeed=zero3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", help="a YAML file, or the name of a config that the package ships")
    parser.add_argument("--fields", action="store_true", help="list the config fields of both stages and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields to set, as YAML values")


def run(args: argparse.Namespace) -> int:
    if args.fields:
        print_fields()
        return 0
    if not args.config:
        raise InputError("--config is missing: give a YAML file, or the name of a shipped config such as stage1_nano.")
    from ..config_file import build_config, read_config, shipped_file

    values = read_config(args.config, args.overrides)
    stage = values.get("stage")
    if stage not in (1, 2):
        raise InputError(f"config field `stage` is {stage!r}; allowed are 1 (VG-Align) and 2 (EmoAdapter).")
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = str(shipped_file("deepspeed", values["deepspeed"], (".json",)))
    from ..train import run as training

    config = build_config(training.CONFIGS[stage], values)
    with shown_log(config.process_index == 0):
        outcome = training.run(config)
    if config.process_index == 0:
        if outcome == "finished":
            print(f"{config.output_dir} already holds the finished run; overwrite=true trains again.")
        else:
            print(f"Stage {stage} is finished: {config.output_dir}")
    return 0


def print_fields() -> None:
    from ..config_file import own_fields
    from ..train.run import CONFIGS

    for stage, cls in CONFIGS.items():
        print(f"Stage {stage} ({cls.__name__}); every field of transformers.TrainingArguments is allowed as well:")
        for field in own_fields(cls):
            print(f"  {field.name:30} {field.metadata.get('help', '')}")


if __name__ == "__main__":
    sys.exit(run_as_rank("train", add_arguments, run))
