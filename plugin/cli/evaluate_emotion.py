"""`vaemotionllm evaluate-emotion`: what the Supervisor reads on each path, against a benchmark's labels."""

import argparse
import json
import os
from pathlib import Path

from ..utils import InputError

COLUMNS = {
    "valence_ccc": "valence CCC",
    "arousal_ccc": "arousal CCC",
    "accuracy": "label accuracy",
    "ece": "label ECE",
    "valence_coverage": "valence inside",
    "arousal_coverage": "arousal inside",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a VAEmotionLLM checkpoint")
    parser.add_argument(
        "--benchmark",
        metavar="NAME_OR_DIR",
        help="a folder, OWNER/NAME on the Hub, or nano; default: the one that `vaemotionllm benchmark show` names",
    )
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the result is written")
    parser.add_argument("--batch-size", type=int, default=16, help="clips a batch (default: 16)")
    parser.add_argument("--device", help="cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none")


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix != ".json":
        raise InputError(f"--out is {args.out!r}; give the name of a .json file.")
    from ..benchmark import schema
    from ..evaluation.emotion import evaluate
    from ..model.configuration_vaemotionllm import MODALITIES
    from ..nano import select

    benchmark = schema.load(select.find(args.benchmark)) if args.benchmark else select.resolve()
    result = evaluate(args.model, benchmark.folder, batch_size=args.batch_size, device=args.device, progress=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, out)
    print(f"{'path':8} " + " ".join(f"{head:>16}" for head in COLUMNS.values()) + f" {'clips':>6}")
    for path in MODALITIES:
        row = result[path]
        cells = " ".join(f"{number(row[key]):>16}" for key in COLUMNS)
        print(f"{path:8} {cells} {row['n']:>6}")
    conflict = result["conflict"]
    print(
        "conflict of sound and sight, AUROC against clips with another clip's sound: "
        + (number(conflict["auroc"]) if conflict["reason"] is None else f"n/a ({conflict['reason']})")
    )
    if benchmark.is_nano:
        print(select.NANO_NOTICE)


def number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
