"""`vaemotionllm report RUN_DIR`: makes the report of a finished demo anew from its files."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", help="what `vaemotionllm demo --out` was given")


def run(args: argparse.Namespace) -> int:
    from ..evaluation.report import write_report
    from ..evaluation.report_words import terminal_table
    from ..evaluation.results import read_run

    out = Path(args.run)
    report = write_report(read_run(out))
    print(terminal_table(report))
    print(f"\n{report['headline']}\n\n{report['statement']}\n")
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
    return 0
