"""`vaemotionllm report`: about models from lmms-eval's results, or about finished demos."""

import argparse
from pathlib import Path

from ..utils import InputError


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
