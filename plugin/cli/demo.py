"""`vaemotionllm demo`: everything on the nano world in one command, ending with a report."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

# Enough for every step to run; the figures of such a run mean nothing.
TINY = {
    "train_clips": 24,
    "validation_clips": 4,
    "benchmark_clips": 16,
    "stage1_steps": 4,
    "stage2_steps": 4,
}
TINY_WORDS = {
    "stage1": ("logging_steps=1", "responses_per_clip=1", "max_response_tokens=8"),
    "stage2": ("logging_steps=1",),
}


# Arguments that have no part in what a run is.
NO_PART = ("command", "out", "overwrite", "verbose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of world, backbone and both trainings (default 0)")
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="output folder (default runs/demo)")
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


def run(args: argparse.Namespace) -> int:
    from ..evaluation.child import Display
    from ..evaluation.demo import Sizes, environment, facts, plan
    from ..evaluation.figures import require_matplotlib
    from ..evaluation.steps import StepFailed, StepRunner

    require_matplotlib()  # now, and not after ten minutes
    out = Path(args.out)
    given = {name: getattr(args, name) for name in TINY if getattr(args, name) is not None}
    scaled = {**TINY, **given, **TINY_WORDS} if args.scale == "tiny" else given
    sizes = Sizes(**scaled, batch_size=args.batch_size, backbone=args.backbone)
    arguments = {key: value for key, value in vars(args).items() if key not in NO_PART}
    os.environ.update(environment(os.environ))
    steps, display = plan(out, args.seed, sizes), Display(verbose=args.verbose)
    runner = StepRunner(out, steps, arguments, facts(args.seed), display, args.overwrite)
    if runner.finished:
        print(f"{out}: the run with seed {args.seed} is finished; --overwrite makes it anew")
        show(out)
        return 0
    if runner.replaced:
        print(f"replacing {runner.replaced} in {out}")
    if runner.resumed:
        print(f"{out}: going on after the last complete step")
    # A terminated demo must end its running step too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.run()
    except StepFailed as failure:
        print(f"\nvaemotionllm demo: {failure.reason}; last lines of {failure.log}:\n", file=sys.stderr)
        print("\n".join(last_lines(failure.log)), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print(f"\nvaemotionllm demo: stopped; the same command goes on from here ({out})", file=sys.stderr)
        return 130
    show(out)
    return 0


def last_lines(log: Path, count: int = 20) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def show(out: Path) -> None:
    """The cells, the headline and where the report lies."""
    from ..evaluation.report_words import terminal_table

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    met = sum(check["passed"] for check in report["checks"])
    print(f"\n{terminal_table(report)}\n\n{report['headline']}\n\n{report['statement']}\n")
    print(
        f"{met} of {len(report['checks'])} checks met"
        + "".join(
            f"\n  not met: {check['name']}: {check['measured']}, asked {check['asked']}"
            for check in report["checks"]
            if not check["passed"]
        )
    )
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
