"""`vaemotionllm ablation run | report`: the nano model with and without each of its parts, over several seeds."""

import argparse
from pathlib import Path

from . import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    run = parts.add_parser("run", help="train and evaluate every variant of one seed; resumes where it was stopped")
    demo.add_arguments(run, "runs/ablation/seed0")
    report = parts.add_parser("report", help="the tables and figures of several seeds")
    report.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders of finished runs, each of another seed")
    report.add_argument("--out", default="docs", metavar="DIR", help="where ablation.md, .html, .json go (docs)")


def run(args: argparse.Namespace) -> int:
    from ..demo import ablation
    from ..evaluation.plots import require_matplotlib

    require_matplotlib()  # now, and not after an hour
    if args.part == "run":
        return demo.run_plan("ablation run", args, ablation.plan)
    print(*ablation.write_report([Path(folder) for folder in args.runs], Path(args.out)), sep="\n")
    return 0
