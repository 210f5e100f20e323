"""`vaemotionllm ablation run | report`: the nano model with and without each of its parts, over several seeds."""

import argparse
from pathlib import Path

from . import nano_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    run = parts.add_parser("run", help="train and ask every variant of one seed; goes on where it was stopped")
    nano_run.add_arguments(run, "runs/ablation/seed0")
    report = parts.add_parser("report", help="the tables and plots of several seeds")
    report.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders of finished runs, each of another seed")
    report.add_argument("--out", default="docs", metavar="DIR", help="where ablation.md, .json and plots go (docs)")


def run(args: argparse.Namespace) -> int:
    from ..evaluation.figures import require_matplotlib

    require_matplotlib()  # now, and not after an hour
    if args.part == "run":
        from ..evaluation.ablation import plan, run_facts

        nano_run.fix_environment()
        sizes = nano_run.sizes_of(args)
        steps = plan(Path(args.out), args.seed, sizes)
        return nano_run.run_steps("ablation run", args, steps, run_facts(args.seed, sizes))

    from ..evaluation.ablation_report import write_report

    for file in write_report([Path(folder) for folder in args.runs], Path(args.out)):
        print(file)
    return 0
