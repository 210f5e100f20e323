"""`vaemotionllm benchmark`: choose, show, check, build and upload what the lmms-eval tasks `artemo` read; compare."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from ..benchmark import schema
from ..nano import select
from ..utils import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    use = actions.add_parser("use", help="remember a benchmark for all later runs")
    use.add_argument(
        "name", metavar="NAME_OR_DIR", help="a benchmark folder, OWNER/NAME on the Hub, or nano for the embedded set"
    )
    actions.add_parser("show", help="say which benchmark is in force, and why")
    _add_validate(
        actions.add_parser("validate", help="check a benchmark: items, media, duplicates, balance, licences")
    )
    _add_build(actions.add_parser("build", help="make a benchmark from a manifest of annotated clips"))
    _add_push(actions.add_parser("push", help="upload a benchmark folder to the Hub as a data set"))
    _add_compare(actions.add_parser("compare", help="two evaluations of one benchmark: paired differences and gains"))


def run(args: argparse.Namespace) -> int | None:
    if args.action == "validate":
        return _validate(args)
    if args.action == "build":
        return _build(args)
    if args.action == "push":
        return _push(args)
    if args.action == "compare":
        return _compare(args)
    if args.action == "use":
        benchmark = select.use(args.name)
        if benchmark is None:
            print("The tasks artemo read the embedded nano set from now on; it is built on first use.")
        else:
            print(f"The tasks artemo read {describe(benchmark)} from now on ({select.choice_path()}).")
        chosen = select.current_choice()
        if chosen.name and select.VARIABLE in chosen.origin:
            print(f"But {select.VARIABLE} is set to {chosen.name!r} in this shell, and it wins while it is set.")
    else:
        chosen = select.current_choice()
        print(
            f"Benchmark: {chosen.name}, because of {chosen.origin}."
            if chosen.name
            else f"Benchmark: the embedded nano set, because {chosen.origin}."
        )
        if chosen.name in (None, select.NANO_NAME):
            print(select.NANO_NOTICE)  # and not its counts: that would build it
        else:
            print(describe(schema.load(select.find(chosen.name))))
    return None


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="DIR_OR_HUB_NAME",
        help="a benchmark folder, OWNER/NAME on the Hub, or nano for the embedded set",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings, measures and thresholds there")
    parser.add_argument("--no-media", action="store_true", help="check the items alone; decode nothing")
    parser.add_argument(
        "--against",
        metavar="MANIFEST_OR_DIR",
        help="look for the benchmark's media among a manifest's train and validation clips, or in another benchmark",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode; default: one a core, 8 at most")


def _validate(args: argparse.Namespace) -> int:
    """0: no error; 1: errors were found. What cannot be read at all ends with 2, as every bad argument."""
    from ..benchmark.validation import validate

    _check_workers(args.workers)
    report = validate(select.find(args.name), not args.no_media, args.against, args.workers, sys.stderr.isatty())
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in report.lines():
        print(line)
    errors, warnings = report.count("error"), report.count("warning")
    found = (
        f"{errors or 'no'} error{'' if errors == 1 else 's'}, {warnings or 'no'} warning{'' if warnings == 1 else 's'}"
    )
    print(f"{report.name} in {report.folder}: {report.items} items about {report.clips} clips; {found}.")
    return 1 if errors else 0


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE.yaml", help="a YAML file, or the name of one in configs/benchmark/"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single fields, such as seed=1")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode; default: one a core, 8 at most")


def _build(args: argparse.Namespace) -> int:
    from ..benchmark.build import build
    from ..benchmark.build_config import read_build_config

    _check_workers(args.workers)
    built = build(read_build_config(args.config, args.overrides), args.workers, sys.stderr.isatty())
    for name, count in sorted(built.counts.items()):
        print(f"{name.replace('_', ' ')}: {count}")
    print(f"{built.folder}: {built.items} items about {built.clips} clips in {built.shards} shards")
    return 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="lmms-eval's --output_path, or a *_results.json in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")


def _compare(args: argparse.Namespace) -> int:
    from ..evaluation.compare import as_json, as_text, compare

    result = compare(args.a, args.b)
    print(as_text(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(as_json(result) + "\n", encoding="utf-8")
    return 0


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a folder that `benchmark build` has made, or another benchmark")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the data set on the Hub")
    parser.add_argument("--private", action="store_true", help="make it private, where it is made")
    parser.add_argument("--dry-run", action="store_true", help="check, and list what would go out; connect to nothing")


def _push(args: argparse.Namespace) -> int:
    from ..hub.push import push_benchmark as push

    done = push(args.folder, args.repo, args.private, args.dry_run)
    size = f"{len(done.files)} files, {done.size / 1e6:.1f} MB"
    if args.dry_run:
        print("\n".join([*done.files, f"would go to {done.repo}: {size}"]))
    else:
        print(f"{done.url}: {size}")
    return 0


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; at least 1 is needed.")


def describe(benchmark: schema.Benchmark) -> str:
    cells = Counter((item.aspect, item.modality) for item in benchmark.items)
    counts = ", ".join(f"{aspect} {modality} {n}" for (aspect, modality), n in sorted(cells.items()))
    clips = len({item.clip_id for item in benchmark.items})
    return f"{benchmark.name} in {benchmark.folder}, {len(benchmark.items)} items about {clips} clips ({counts})"
