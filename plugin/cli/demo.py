"""`vaemotionllm demo`, `ablation` and `report`: everything on the nano world in one command, the nano model with and
without each of its parts over several seeds, and reports alone: about models from lmms-eval's results, or demos."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..utils import InputError, read_json

# Argument -> (text, what --scale tiny takes: enough for every step to run, for numbers that mean nothing).
SIZES = {
    "train_clips": ("clips to train on", 64),
    "validation_clips": ("clips in the validation split", 32),
    "benchmark_clips": ("clips in the benchmark", 16),
    "stage1_steps": ("optimiser steps of stage 1", 4),
    "stage2_steps": ("optimiser steps of stage 2", 4),
}
TINY_WORDS = {
    "stage1": ("logging_steps=1", "responses_per_clip=1", "max_response_tokens=8"),
    "stage2": ("logging_steps=1",),
}
# Arguments that have no part in what a run is.
NO_PART = ("command", "part", "out", "overwrite")


def add_demo_arguments(parser: argparse.ArgumentParser, out: str = "runs/demo") -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, help="seed of world, backbone and trainings (default 0)")
    add("--out", type=Path, default=out, metavar="DIR", help=f"output folder (default {out})")
    tiny = "tiny: every step in little time, with results that mean nothing"
    add("--scale", choices=("full", "tiny"), default="full", help=tiny)
    for name, (text, _) in SIZES.items():
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    add("--batch-size", type=int, default=64, metavar="N", help="questions a batch in the evaluations (64)")
    add("--backbone", metavar="DIR", help="folder with vlm/, audio/ and metrics.jsonl, not the nano backbone")
    overwrite = "replace a finished run in DIR, or one of other arguments; an interrupted one of the same resumes"
    add("--overwrite", action="store_true", help=overwrite)


def run_demo(args: argparse.Namespace) -> int:
    from ..demo.demo import plan

    if importlib.util.find_spec("matplotlib") is None:  # now, and not after ten minutes
        raise InputError("matplotlib draws the report and is not installed: `pip install vaemotionllm[demo]`")
    # Nothing large is imported before the steps have run: their recorded memory is never below its own.
    if code := run_plan("demo", args, plan):
        return code
    report = read_json(args.out / "report.json", "the report of the demo")
    checks = report["checks"]
    lines = [f"{sum(check['passed'] for check in checks)} of {len(checks)} checks met"]
    for check in checks:
        if not check["passed"]:
            lines.append(f"  not met: {check['name']}: {check['measured']}, wanted {check['wanted']}")
    print_report(report, [report["statement"], "\n".join(lines)], args.out)
    return 0


def add_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    one = parts.add_parser("run", help="train and evaluate every variant of one seed; resumes where it was stopped")
    add_demo_arguments(one, "runs/ablation/seed0")
    report = parts.add_parser("report", help="the tables and figures of several seeds")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="finished runs, each of another seed")
    report.add_argument("--out", type=Path, default="docs", metavar="DIR", help="for ablation.md, .html, .json (docs)")


def run_ablation(args: argparse.Namespace) -> int:
    from ..demo import ablation
    from ..evaluation.plots import require_matplotlib

    require_matplotlib()  # now, and not after an hour
    if args.part == "run":
        return run_plan("ablation run", args, ablation.plan)
    print(*ablation.write_report(args.runs, args.out), sep="\n")
    return 0


def run_plan(command: str, args: argparse.Namespace, plan: Callable) -> int:
    """Run what is not yet done of a plan in `args.out`, with progress. Returns the exit code."""
    from ..demo import demo, steps

    # Before the steps are planned, and for all of them.
    os.environ.update(demo.environment(os.environ))
    given = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if args.scale == "tiny":
        given = {name: tiny for name, (_, tiny) in SIZES.items()} | given | TINY_WORDS
    sizes = demo.Sizes(**given, batch_size=args.batch_size, backbone=args.backbone)
    arguments = {key: value for key, value in vars(args).items() if key not in NO_PART}
    # A terminated run must end its running step too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        steps.run(args.out, plan(args.seed, sizes), demo.metadata(arguments), args.overwrite)
    except steps.StepFailed as failure:
        print(f"\nvaemotionllm {command}: {failure}; last lines of {failure.log}:\n", file=sys.stderr)
        print("\n".join(steps.last_lines(failure.log)), file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print(f"\nvaemotionllm {command}: stopped; the same command resumes from here ({args.out})", file=sys.stderr)
        return 130
    return 0


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """RESULTS of one or many models: what `lmms-eval --log_samples --output_path` was given, or a
    *_results.json in it. Or the folder of a finished `vaemotionllm demo`, whose report stands in it; several demos
    give means over their seeds, which are printed where --out is missing."""
    add = parser.add_argument
    add("results", metavar="RESULTS", nargs="+", type=Path, help="of lmms-eval, or of demos; see below")
    add("--out", type=Path, metavar="DIR", help="folder of the report; needed for models")
    add(
        "--benchmark", metavar="DIR_OR_HUB_NAME", help="default: the folder that the results name, then ARTEMO_DATASET"
    )
    add("--names", nargs="+", metavar="NAME", help="one a model, in order; default: theirs in the results")


def run_report(args: argparse.Namespace) -> None:
    from ..demo.steps import RUN_FILE

    is_demo = [(path / RUN_FILE).is_file() for path in args.results]
    if any(is_demo) and not all(is_demo):
        raise InputError(
            f"{args.results[is_demo.index(True)]} is the folder of a demo and {args.results[is_demo.index(False)]} is "
            "not; of a demo's stage, name eval/STAGE/lmms_eval in it."
        )
    if any(is_demo):
        given = [name for name in ("benchmark", "names") if getattr(args, name)]
        if given or (args.out and len(is_demo) == 1):
            raise InputError(
                f"--{[*given, 'out'][0]} is for results of lmms-eval; a demo's report stands in its folder."
            )
        _demos(args.results, args.out)
        return
    if args.out is None:
        raise InputError("--out is missing; name the folder into which the report goes, such as --out report.")
    if (args.out / RUN_FILE).is_file():
        raise InputError(f"{args.out} is the folder of a demo, whose own report stands there; name another by --out.")
    from ..evaluation.report import read_models, write_models

    report = write_models(read_models(args.results, args.names), args.out, args.benchmark)
    print_report(report, report["warnings"], args.out)


def _demos(folders: list[Path], out: Path | None) -> None:
    from ..demo import demo_report

    if len(folders) == 1:
        report = demo_report.write_demo(folders[0])
        print_report(report, [report["statement"]], folders[0])
    else:
        print(demo_report.seeds_report(folders, out))


def print_report(report: dict, notes: list[str], out: Path) -> None:
    """Accuracies, what a reader must know, and the report's files."""
    from ..evaluation.report import terminal_table
    from ..evaluation.scores import table_of

    print(terminal_table(table_of(report["scores"])), *notes, sep="\n\n")
    print("", *(out / f"report.{kind}" for kind in ("json", "md", "html")), sep="\n")
