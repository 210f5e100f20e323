"""`vaemotionllm nano world` and `nano backbone` build the embedded default, `nano recall` asks what it remembers."""

import argparse
from pathlib import Path


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
    recall = parts.add_parser("recall", help="ask a model in words what its nano backbone was taught in words")
    recall.add_argument("--model", required=True, metavar="DIR", help="a VAEmotionLLM on a nano backbone")
    recall.add_argument("--out", required=True, metavar="FILE.json", help="where the answers are written")
    recall.add_argument("--seed", type=int, default=0, help="seed of the options (default 0)")
    recall.add_argument("--batch-size", type=int, default=64, help="questions a batch (default 64)")
    recall.add_argument("--device", help="cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none")


def run(args: argparse.Namespace) -> int:
    if args.part == "world":
        from ..nano.world import DEFAULT_SIZES, build_world

        given = {split: getattr(args, split) for split in DEFAULT_SIZES}
        sizes = {split: DEFAULT_SIZES[split] if size is None else size for split, size in given.items()}
        print(build_world(args.out, seed=args.seed, sizes=sizes, workers=args.workers))
        return 0

    if args.part == "recall":
        from ..nano.recall import recall
        from ..utils import write_json

        found = recall(args.model, args.seed, args.batch_size, args.device, progress=True)
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
        print(f"{found['accuracy']:.1%} of {found['n']} questions in words; chance is 25%")
        return 0

    from ..nano.backbone import build_backbone

    print(build_backbone(seed=args.seed, out_dir=args.out))
    return 0
