"""`vaemotionllm demo`: everything on the nano world in one command, ending with a report."""

import argparse
import json
from pathlib import Path

from . import nano_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nano_run.add_arguments(parser, "runs/demo")


def run(args: argparse.Namespace) -> int:
    from ..evaluation.demo import facts, plan
    from ..evaluation.figures import require_matplotlib

    require_matplotlib()  # now, and not after ten minutes
    nano_run.fix_environment()
    out = Path(args.out)
    code = nano_run.run_steps("demo", args, plan(out, args.seed, nano_run.sizes_of(args)), facts(args.seed))
    if code == 0:
        show(out)
    return code


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
