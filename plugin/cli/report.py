"""`vaemotionllm report`: about models from lmms-eval's results, or about finished demos."""

import argparse
from pathlib import Path

from ..utils import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULTS",
        nargs="+",
        help="of one or many models: what `lmms-eval --log_samples --output_path` was given, or a *_results.json in "
        "it. Or the folder of a finished `vaemotionllm demo`; several demos give means over their seeds",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the report; needed for models. A demo's stands in its own, means over seeds are printed",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark",
        metavar="DIR_OR_HUB_NAME",
        help="where the benchmark is; default: the folder that the results name, then ARTEMO_DATASET",
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="one a model, in order; default: theirs in the results"
    )


def run(args: argparse.Namespace) -> int:
    from ..demo.steps import RUN_FILE
    from ..evaluation.results import RESULTS

    paths = [Path(path) for path in args.results]
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no {path}; name what `lmms-eval --output_path` was given, or a demo's folder.")
        if path.is_dir() and not (path / RUN_FILE).is_file() and not any(path.glob(f"**/*{RESULTS}")):
            raise InputError(
                f"{path} is no folder of `vaemotionllm demo` (it has no {RUN_FILE}), and holds no *{RESULTS} of "
                "lmms-eval either; run lmms-eval with --log_samples --output_path and name that folder."
            )
    demos = [path for path in paths if (path / RUN_FILE).is_file()]
    if not demos:
        return _models(paths, args)
    if other := [path for path in paths if path not in demos]:
        raise InputError(
            f"{demos[0]} is the folder of a demo and {other[0]} is not; a report is about demos or about results of "
            "lmms-eval. Of a demo's stage, name eval/STAGE/lmms_eval in it."
        )
    given = [name for name in ("benchmark", "names") if getattr(args, name) is not None]
    if len(demos) == 1 and args.out is not None:
        given.append("out")
    if given:
        raise InputError(f"--{given[-1]} is for results of lmms-eval; the report of a demo stands in its own folder.")
    return _demos(demos, args.out)


def _models(paths: list[Path], args: argparse.Namespace) -> int:
    from ..demo.steps import RUN_FILE
    from ..evaluation.report import read_models, write_models

    if args.out is None:
        raise InputError("--out is missing; name the folder into which the report goes, such as --out report.")
    if (args.out / RUN_FILE).is_file():
        raise InputError(f"{args.out} is the folder of a demo, whose own report stands there; name another by --out.")
    report = write_models(read_models(paths, args.names), args.out, args.benchmark)
    _print(report, report["warnings"], args.out)
    return 0


def _demos(folders: list[Path], out: Path | None) -> int:
    from ..demo import demo_report

    if len(folders) == 1:
        report = demo_report.write_demo(folders[0])
        _print(report, [report["statement"]], folders[0])
    else:
        print(demo_report.seeds_report(folders, out))
    return 0


def _print(report: dict, notes: list[str], out: Path) -> None:
    """Accuracies, what a reader must know, and the report's files."""
    from ..evaluation.report import terminal_table
    from ..evaluation.scores import table_of

    print(terminal_table(table_of(report["scores"])), *notes, sep="\n\n")
    print("", *(out / f"report.{kind}" for kind in ("html", "md", "json")), sep="\n")
