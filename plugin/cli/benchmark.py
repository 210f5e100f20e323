"""`vaemotionllm benchmark`: show, check, build, upload and compare what the lmms-eval tasks `artemo` read.

And `vaemotionllm nano`, which builds the embedded default.
"""

import argparse
from collections import Counter
from pathlib import Path

from ..benchmark import schema
from ..nano import select
from ..utils import write_json

NAME = "a benchmark folder, OWNER/NAME on the Hub, or nano for the embedded set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="say which benchmark is selected, and why")
    show.set_defaults(do=_show)

    validate = actions.add_parser("validate", help="check a benchmark: items, media, duplicates, balance, licences")
    validate.set_defaults(do=_validate)
    validate.add_argument("name", metavar="DIR_OR_HUB_NAME", help=NAME)
    validate.add_argument("--json", type=Path, metavar="FILE", help="write all issues there")
    validate.add_argument("--no-media", action="store_true", help="check the items alone; decode nothing")
    validate.add_argument(
        "--against",
        metavar="MANIFEST",
        help="look for the benchmark's media among a manifest's train and validation clips",
    )

    build = actions.add_parser("build", help="make a benchmark from a manifest of annotated clips")
    build.set_defaults(do=_build)
    build.add_argument(
        "--config", required=True, metavar="FILE.yaml", help="a YAML file, or the name of one in configs/benchmark/"
    )
    build.add_argument("overrides", nargs="*", metavar="key=value", help="single fields, such as seed=1")

    push = actions.add_parser("push", help="upload a benchmark folder to the Hub as a data set")
    push.set_defaults(do=_push)
    push.add_argument("folder", metavar="DIR", help="a folder that `benchmark build` has made, or another benchmark")
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the data set on the Hub")
    push.add_argument("--private", action="store_true", help="make it private, where it is made")
    push.add_argument("--dry-run", action="store_true", help="check, and list what would go out; connect to nothing")

    compare = actions.add_parser("compare", help="two evaluations of one benchmark: paired differences and gains")
    compare.set_defaults(do=_compare)
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help="lmms-eval's --output_path, or a *_results.json in it")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")


def run(args: argparse.Namespace) -> int | None:
    if getattr(args, "json", None):
        args.json.parent.mkdir(parents=True, exist_ok=True)
    return args.do(args)


def _show(args: argparse.Namespace) -> None:
    chosen = select.current_choice()
    print(f"Benchmark: {chosen.name or 'the embedded nano set'}, because of {chosen.origin}.")
    if chosen.name in (None, select.NANO_NAME):
        print(select.NANO_NOTICE)  # and not its counts: that would build it
        return
    benchmark = schema.load(select.find(chosen.name))
    cells = Counter((item.aspect, item.modality) for item in benchmark.items)
    counts = ", ".join(f"{aspect} {modality} {n}" for (aspect, modality), n in sorted(cells.items()))
    clips = len({item.clip_id for item in benchmark.items})
    print(f"{benchmark.name} in {benchmark.folder}: {len(benchmark.items)} items about {clips} clips ({counts})")


def _validate(args: argparse.Namespace) -> int:
    """0: no error; 1: errors were found. What cannot be read at all ends with 2, as every bad argument."""
    from ..benchmark.validate import validate

    report = validate(select.find(args.name), not args.no_media, args.against)
    if args.json:
        write_json(args.json, report.as_dict())
    for line in report.lines():
        print(line)
    errors, warnings = report.count("error"), report.count("warning")
    found = (
        f"{errors or 'no'} error{'' if errors == 1 else 's'}, {warnings or 'no'} warning{'' if warnings == 1 else 's'}"
    )
    print(f"{report.name} in {report.folder}: {report.items} items about {report.clips} clips; {found}.")
    return 1 if errors else 0


def _build(args: argparse.Namespace) -> None:
    from ..benchmark.build import build
    from ..benchmark.questions import read_build_config

    config = read_build_config(args.config, args.overrides)
    built = build(config)
    for name, count in built["counts"].items():
        print(f"{name.replace('_', ' ')}: {count}")
    print(f"{config.out}: {built['items']} items about {built['clips']} clips in {len(built['shards'])} shards")


def _push(args: argparse.Namespace) -> None:
    from ..hub.push import push_benchmark as push

    done = push(args.folder, args.repo, args.private, args.dry_run)
    size = f"{len(done.files)} files, {done.size / 1e6:.1f} MB"
    if args.dry_run:
        print("\n".join([*done.files, f"would go to {done.repo}: {size}"]))
    else:
        print(f"{done.url}: {size}")


def _compare(args: argparse.Namespace) -> None:
    from ..evaluation.report import comparison_text
    from ..evaluation.scores import compare

    result = compare(args.a, args.b)
    print(comparison_text(result))
    if args.json:
        write_json(args.json, result)


def add_nano_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    world = parts.add_parser("world", help="write the procedural art world and its benchmark as real media")
    world.add_argument("--out", required=True, help="folder to create")
    world.add_argument("--seed", type=int, default=0, help="seed of the world (default 0)")
    for split in ("train", "validation", "benchmark"):
        world.add_argument(f"--{split}", type=int, metavar="N", help=f"clips in the {split} split")
    world.add_argument("--workers", type=int, help="processes that render (default: one a core)")
    backbone = parts.add_parser("backbone", help="train the nano vision-language backbone, or find it in the cache")
    backbone.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default 0)")
    backbone.add_argument("--out", help="also copy the backbone to this folder")


def run_nano(args: argparse.Namespace) -> None:
    if args.part == "world":
        from ..nano.world import DEFAULT_SIZES, build_world

        given = {split: getattr(args, split) for split in DEFAULT_SIZES}
        sizes = {split: DEFAULT_SIZES[split] if size is None else size for split, size in given.items()}
        print(build_world(args.out, seed=args.seed, sizes=sizes, workers=args.workers))
        return
    from ..nano.backbone import build_backbone

    print(build_backbone(seed=args.seed, out_dir=args.out))
