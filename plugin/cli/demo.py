"""`vaemotionllm demo`: everything on the nano world in one command, ending with a report. `vaemotionllm ablation`: the
nano model with and without each of its parts, over several seeds."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..utils import InputError

# Enough for every step to run; the numbers of such a run mean nothing.
TINY = {"train_clips": 64, "validation_clips": 32, "benchmark_clips": 16, "stage1_steps": 4, "stage2_steps": 4}
TINY_WORDS = {
    "stage1": ("logging_steps=1", "responses_per_clip=1", "max_response_tokens=8"),
    "stage2": ("logging_steps=1",),
}
# Arguments that have no part in what a run is.
NO_PART = ("command", "part", "out", "overwrite")


def add_arguments(parser: argparse.ArgumentParser, out: str = "runs/demo") -> None:
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
        help="replace a finished run in DIR, or one of other arguments; an interrupted one of the same resumes",
    )


def run(args: argparse.Namespace) -> int:
    from ..demo.demo import REPORTS, plan

    if importlib.util.find_spec("matplotlib") is None:  # now, and not after ten minutes
        raise InputError("matplotlib draws the report and is not installed: `pip install vaemotionllm[demo]`")
    # Nothing large is imported before the steps have run: their memory is known where they outgrow this process.
    if code := run_plan("demo", args, plan):
        return code
    from ..evaluation.report import terminal_table
    from ..evaluation.scores import table_of
    from ..utils import read_json

    out = Path(args.out)
    report = read_json(out / "report.json", "the report of the demo")
    print(f"\n{terminal_table(table_of(report['scores']))}\n\n{report['statement']}\n")
    print(f"{sum(check['passed'] for check in report['checks'])} of {len(report['checks'])} checks met")
    for check in report["checks"]:
        if not check["passed"]:
            print(f"  not met: {check['name']}: {check['measured']}, wanted {check['wanted']}")
    print(*(out / name for name in REPORTS), sep="\n")
    return 0


def add_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    one = parts.add_parser("run", help="train and evaluate every variant of one seed; resumes where it was stopped")
    add_arguments(one, "runs/ablation/seed0")
    report = parts.add_parser("report", help="the tables and figures of several seeds")
    report.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders of finished runs, each of another seed")
    report.add_argument("--out", default="docs", metavar="DIR", help="where ablation.md, .html, .json go (docs)")


def run_ablation(args: argparse.Namespace) -> int:
    from ..demo import ablation
    from ..evaluation.plots import require_matplotlib

    require_matplotlib()  # now, and not after an hour
    if args.part == "run":
        return run_plan("ablation run", args, ablation.plan)
    print(*ablation.write_report([Path(folder) for folder in args.runs], Path(args.out)), sep="\n")
    return 0


def run_plan(command: str, args: argparse.Namespace, plan: Callable) -> int:
    """Run what is not yet done of a plan in `args.out`, with progress. Returns the exit code."""
    from ..demo import demo, steps

    # Before the steps are planned, and for all of them.
    os.environ.update(demo.environment(os.environ))
    given = {name: getattr(args, name) for name in TINY if getattr(args, name) is not None}
    scaled = {**TINY, **given, **TINY_WORDS} if args.scale == "tiny" else given
    out, sizes = Path(args.out), demo.Sizes(**scaled, batch_size=args.batch_size, backbone=args.backbone)
    arguments = {key: value for key, value in vars(args).items() if key not in NO_PART}
    # A terminated run must end its running step too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        steps.run(out, plan(args.seed, sizes), demo.metadata(arguments), args.overwrite)
    except steps.StepFailed as failure:
        print(f"\nvaemotionllm {command}: {failure}; last lines of {failure.log}:\n", file=sys.stderr)
        print("\n".join(steps.last_lines(failure.log)), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print(f"\nvaemotionllm {command}: stopped; the same command resumes from here ({out})", file=sys.stderr)
        return 130
    return 0
