"""What the commands that run a list of steps on the nano world have in common: sizes, progress, ends."""

import argparse
import os
import signal
import sys
from pathlib import Path

# Enough for every step to run; the figures of such a run mean nothing.
TINY = {
    "train_clips": 64,
    "validation_clips": 32,
    "benchmark_clips": 16,
    "stage1_steps": 4,
    "stage2_steps": 4,
}
TINY_WORDS = {
    "stage1": ("logging_steps=1", "responses_per_clip=1", "max_response_tokens=8"),
    "stage2": ("logging_steps=1",),
}
# Arguments that have no part in what a run is.
NO_PART = ("command", "part", "out", "overwrite", "verbose")


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of world, backbone and trainings (default 0)")
    parser.add_argument("--out", default=out, metavar="DIR", help=f"output folder (default {out})")
    parser.add_argument(
        "--scale",
        choices=("full", "tiny"),
        default="full",
        help="tiny: every step in little time, with results that mean nothing",
    )
    for name, text in (
        ("train-clips", "clips to train on"),
        ("validation-clips", "clips in the validation split"),
        ("benchmark-clips", "clips in the benchmark"),
        ("stage1-steps", "optimiser steps of stage 1"),
        ("stage2-steps", "optimiser steps of stage 2"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="questions a batch in the evaluations (64)"
    )
    parser.add_argument(
        "--backbone", metavar="DIR", help="folder with vlm/, audio/ and metrics.jsonl, not the nano backbone"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a finished run in DIR, or one of other arguments; an interrupted one of the same goes on",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show all output of the steps; it is in DIR/logs anyway"
    )


def fix_environment() -> None:
    """Set what every step needs, and fix the arithmetic; before the steps are planned, since caches depend on it."""
    from ..evaluation.demo import environment

    os.environ.update(environment(os.environ))


def sizes_of(args: argparse.Namespace):
    from ..evaluation.demo import Sizes

    given = {name: getattr(args, name) for name in TINY if getattr(args, name) is not None}
    scaled = {**TINY, **given, **TINY_WORDS} if args.scale == "tiny" else given
    return Sizes(**scaled, batch_size=args.batch_size, backbone=args.backbone)


def run_steps(command: str, args: argparse.Namespace, steps, facts: dict) -> int:
    """Runs what is not yet done of `steps` in `args.out`, with progress. Returns the exit code."""
    from ..evaluation.child import Display
    from ..evaluation.steps import StepFailed, StepRunner

    out = Path(args.out)
    arguments = {key: value for key, value in vars(args).items() if key not in NO_PART}
    runner = StepRunner(out, steps, arguments, facts, Display(verbose=args.verbose), args.overwrite)
    if runner.finished:
        print(f"{out}: the run with seed {args.seed} is finished; --overwrite makes it anew")
        return 0
    if runner.replaced:
        print(f"replacing {runner.replaced} in {out}")
    if runner.resumed:
        print(f"{out}: going on after the last complete step")
    # A terminated run must end its running step too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.run()
    except StepFailed as failure:
        print(f"\nvaemotionllm {command}: {failure.reason}; last lines of {failure.log}:\n", file=sys.stderr)
        print("\n".join(last_lines(failure.log)), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print(f"\nvaemotionllm {command}: stopped; the same command goes on from here ({out})", file=sys.stderr)
        return 130
    return 0


def last_lines(log: Path, count: int = 20) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
