"""`vaemotionllm nano world` and `vaemotionllm nano backbone`: build the embedded default."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    if args.part == "world":
        from ..nano.world import DEFAULT_SIZES, build_world

        given = {split: getattr(args, split) for split in DEFAULT_SIZES}
        sizes = {split: DEFAULT_SIZES[split] if size is None else size for split, size in given.items()}
        print(build_world(args.out, seed=args.seed, sizes=sizes, workers=args.workers))
        return 0

    from ..nano.backbone import build_backbone

    print(build_backbone(seed=args.seed, out_dir=args.out))
    return 0
