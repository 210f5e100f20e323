"""`vaemotionllm export`: makes a model folder from a checkpoint of a training run."""

import argparse
from pathlib import Path

from ..utils import new_folder

DESCRIPTION = """make a model folder that from_pretrained loads from a checkpoint of a training run

It starts from the model that the run started from: run it where the paths in the run's config are valid. LoRA is
merged into the model, and written alone into DIR/adapter for PEFT. A checkpoint that DeepSpeed wrote is unpickled,
which can execute code: export only runs of your own.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN_DIR", help="output_dir of a training run, finished or not")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="step of the checkpoint (default: the last one)")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for the model and its processor")


def run(args: argparse.Namespace) -> int:
    with new_folder(Path(args.out), "--out") as partial:
        from ..train.export import export

        taken = export(Path(args.run), partial, args.checkpoint)
    print(f"{args.out}: the model of {taken}")
    return 0
