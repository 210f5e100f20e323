"""`vaemotionllm report`: about models from lmms-eval's result files, or about finished demos."""

import argparse
from pathlib import Path

from ..utils import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULTS",
        nargs="+",
        help="of one or many models: what `lmms-eval --log_samples --output_path` was given, or a *_results.json in "
        "it. Or the folder of a finished `vaemotionllm demo`; several demos give a table of means over their seeds",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report about models; needed for them")
    parser.add_argument(
        "--benchmark",
        metavar="DIR_OR_HUB_NAME",
        help="where the benchmark is; default: the folder that the results name, then ARTEMO_DATASET",
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="one a model, in order; default: theirs in the results"
    )


def run(args: argparse.Namespace) -> int:
    paths = [Path(path) for path in args.results]
    for path in paths:
        if not path.exists():
            raise InputError(
                f"there is no {path}; name what `lmms-eval --output_path` was given, or the folder of a finished "
                "`vaemotionllm demo`."
            )
    evaluations = [is_evaluation(path) for path in paths]
    if all(evaluations):
        return _models(paths, args)
    if any(evaluations):
        one, other = paths[evaluations.index(True)], paths[evaluations.index(False)]
        raise InputError(
            f"{one} holds results of lmms-eval and {other} does not; a report is about the one or about finished "
            "demos. Of a demo's stage, name the folder lmms_eval inside."
        )
    given = [name for name in ("out", "benchmark", "names") if getattr(args, name) is not None]
    if given:
        raise InputError(
            f"--{given[0]} is for results of lmms-eval, and {paths[0]} holds none; the report of a demo stands in its "
            "own folder."
        )
    return _demos(paths)


def is_evaluation(path: Path) -> bool:
    """Whether these are results of lmms-eval and not a demo, which holds such results too."""
    from ..evaluation.steps import STATE_FILE
    from ..evaluation.task_samples import RESULTS

    return path.is_file() or (not (path / STATE_FILE).is_file() and any(path.glob(f"**/*{RESULTS}")))


def _models(paths: list[Path], args: argparse.Namespace) -> int:
    from ..evaluation.leaderboard import read_models, write
    from ..evaluation.leaderboard_text import terminal_table

    if args.out is None:
        raise InputError("--out is missing; name the folder into which the report goes, such as --out report.")
    report = write(read_models(paths, args.names), args.out, args.benchmark)
    print(terminal_table(report))
    print("\n" + "".join(f"{notice}\n" for notice in report["notices"]))
    _name_files(args.out)
    return 0


def _demos(folders: list[Path]) -> int:
    if len(folders) > 1:
        from ..evaluation.seeds import read_reports, seeds_table

        print(seeds_table(read_reports(folders)))
        return 0

    from ..evaluation.report import write_report
    from ..evaluation.report_words import terminal_table
    from ..evaluation.results import read_run
    from ..evaluation.steps import STATE_FILE

    out = folders[0]
    if not (out / STATE_FILE).is_file():
        raise InputError(
            f"{out / STATE_FILE} is missing, so {out} is no folder of `vaemotionllm demo`, and no *_results.json of "
            "lmms-eval lies in it either; run lmms-eval with --log_samples --output_path and name that folder."
        )
    report = write_report(read_run(out))
    print(terminal_table(report))
    print(f"\n{report['headline']}\n\n{report['statement']}\n")
    _name_files(out)
    return 0


def _name_files(out: Path) -> None:
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
