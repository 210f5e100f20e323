"""`vaemotionllm benchmark`: choose, show and check the data set that the lmms-eval tasks `artemo` read; compare."""

import argparse
from collections import Counter
from pathlib import Path

from ..benchmark import schema, select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    use = actions.add_parser("use", help="remember a benchmark for all later runs")
    use.add_argument(
        "name", metavar="NAME_OR_DIR", help="a benchmark folder, OWNER/NAME on the Hub, or nano for the embedded set"
    )
    actions.add_parser("show", help="say which benchmark is in force, and why")
    validate = actions.add_parser("validate", help="check a benchmark folder: columns, answers, media files")
    validate.add_argument("folder", metavar="DIR", help="a folder with test.jsonl")
    compare = actions.add_parser("compare", help="two evaluations of one benchmark: paired differences and gains")
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help="lmms-eval's --output_path, or a *_results.json in it")
    compare.add_argument("--json", metavar="FILE", help="write the comparison to a file as well")


def run(args: argparse.Namespace) -> None:
    if args.action == "use":
        benchmark = select.use(args.name)
        if benchmark is None:
            print("The tasks artemo read the embedded nano set from now on; it is built on first use.")
        else:
            print(f"The tasks artemo read {describe(benchmark)} from now on ({select.choice_path()}).")
        chosen = select.current_choice()
        if chosen.name and select.VARIABLE in chosen.origin:
            print(f"But {select.VARIABLE} is set to {chosen.name!r} in this shell, and it wins while it is set.")
    elif args.action == "show":
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
    elif args.action == "compare":
        run_compare(args)
    else:
        print(f"{describe(schema.load(args.folder))}: no error found.")


def run_compare(args: argparse.Namespace) -> None:
    from ..evaluation.compare import as_json, as_text, compare

    result = compare(args.a, args.b)
    print(as_text(result))
    if args.json:
        Path(args.json).write_text(as_json(result) + "\n", encoding="utf-8")


def describe(benchmark: schema.Benchmark) -> str:
    cells = Counter((item.aspect, item.modality) for item in benchmark.items)
    counts = ", ".join(f"{aspect} {modality} {n}" for (aspect, modality), n in sorted(cells.items()))
    clips = len({item.clip_id for item in benchmark.items})
    return f"{benchmark.name} in {benchmark.folder}, {len(benchmark.items)} items about {clips} clips ({counts})"
