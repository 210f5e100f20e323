"""`vaemotionllm benchmark`: show, check, build, upload and compare what the lmms-eval tasks `artemo` read.

And `vaemotionllm nano`, which builds the embedded default.
"""

import argparse
from pathlib import Path

from ..benchmark import schema
from ..nano import select
from ..utils import write_json

NAME = "a benchmark folder, OWNER/NAME on the Hub, or nano for the embedded set"


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="say which benchmark is selected, and why")
    show.set_defaults(do=_show)

    validate = actions.add_parser("validate", help="check a benchmark: items, media, duplicates, balance, licences")
    validate.set_defaults(do=_validate)
    add = validate.add_argument
    add("name", metavar="DIR_OR_HUB_NAME", help=NAME)
    add("--json", type=Path, metavar="FILE", help="write all issues there")
    add("--no-media", action="store_true", help="check the items alone; decode nothing")
    add("--against", metavar="MANIFEST", help="look for its media among a manifest's train and validation clips")

    build = actions.add_parser("build", help="make a benchmark from a manifest of annotated clips")
    build.set_defaults(do=_build)
    add = build.add_argument
    add("--config", required=True, metavar="FILE.yaml", help="a YAML file, or the name of one in configs/benchmark/")
    add("overrides", nargs="*", metavar="key=value", help="single fields, such as seed=1")

    push = actions.add_parser("push", help="upload a benchmark folder to the Hub as a data set")
    push.set_defaults(do=_push)
    add = push.add_argument
    add("folder", metavar="DIR", help="a folder that `benchmark build` has made, or another benchmark")
    add("--repo", required=True, metavar="OWNER/NAME", help="the data set on the Hub")
    add("--private", action="store_true", help="make it private, where it is made")
    add("--dry-run", action="store_true", help="check, and list what would go out; connect to nothing")

    compare = actions.add_parser("compare", help="two evaluations of one benchmark: paired differences and gains")
    compare.set_defaults(do=_compare)
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help="lmms-eval's --output_path, or a *_results.json in it")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")


def run_benchmark(args: argparse.Namespace) -> int | None:
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
    clips = len({item.clip_id for item in benchmark.items})
    print(f"{benchmark.name} in {benchmark.folder}: {len(benchmark.items)} items about {clips} clips")


def _validate(args: argparse.Namespace) -> int:
    """0: no error; 1: errors were found. What cannot be read at all ends with 2, as every bad argument."""
    from ..benchmark.validate import validate

    report = validate(select.find(args.name), not args.no_media, args.against)
    if args.json:
        write_json(args.json, report.as_dict())
    for line in report.lines():
        print(line)
    errors, warnings = report.count("error"), report.count("warning")
    found = f"{errors or 'no'} error{'s' * (errors != 1)}, {warnings or 'no'} warning{'s' * (warnings != 1)}"
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
    from .hub import print_pushed

    print_pushed(push(args.folder, args.repo, args.private, args.dry_run), args.dry_run)


def _compare(args: argparse.Namespace) -> None:
    from ..evaluation.report import comparison_text
    from ..evaluation.scores import compare

    result = compare(args.a, args.b)
    print(comparison_text(result))
    if args.json:
        write_json(args.json, result)


def add_nano_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(metavar="PART", required=True)
    world = parts.add_parser("world", help="write the procedural art world and its benchmark as real media")
    world.set_defaults(do=_world)
    world.add_argument("--out", required=True, help="folder to create")
    world.add_argument("--seed", type=int, default=0, help="seed of the world (default 0)")
    for split in ("train", "validation", "benchmark"):
        world.add_argument(f"--{split}", type=int, metavar="N", help=f"clips in the {split} split")
    world.add_argument("--workers", type=int, help="processes that render (default: one a core)")
    backbone = parts.add_parser("backbone", help="train the nano vision-language backbone, or find it in the cache")
    backbone.set_defaults(do=_backbone)
    backbone.epilog = """The cache keeps one for each seed, version of torch and setting of the CPU's arithmetic. A
    demo fixes that arithmetic, so its backbone is another one: nano_backbone/ in the demo's folder."""
    backbone.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default 0)")
    backbone.add_argument("--out", help="also copy the backbone to this folder")


def run_nano(args: argparse.Namespace) -> None:
    print(args.do(args))


def _world(args: argparse.Namespace) -> Path:
    from ..nano.world import DEFAULT_SIZES, build_world

    given = {split: getattr(args, split) for split in DEFAULT_SIZES if getattr(args, split) is not None}
    return build_world(args.out, seed=args.seed, sizes=DEFAULT_SIZES | given, workers=args.workers)


def _backbone(args: argparse.Namespace) -> Path:
    from ..nano.backbone import build_backbone

    return build_backbone(seed=args.seed, out_dir=args.out)
