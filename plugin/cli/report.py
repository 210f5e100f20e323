"""`vaemotionllm report RUN_DIR`: makes the report of a finished demo anew; of several, prints the mean over seeds."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN_DIR",
        nargs="+",
        help="what `vaemotionllm demo --out` was given; several finished runs give a table of means over their seeds",
    )


def run(args: argparse.Namespace) -> int:
    folders = [Path(folder) for folder in args.runs]
    if len(folders) > 1:
        from ..evaluation.seeds import read_reports, seeds_table

        print(seeds_table(read_reports(folders)))
        return 0

    from ..evaluation.report import write_report
    from ..evaluation.report_words import terminal_table
    from ..evaluation.results import read_run

    out = folders[0]
    report = write_report(read_run(out))
    print(terminal_table(report))
    print(f"\n{report['headline']}\n\n{report['statement']}\n")
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
    return 0
