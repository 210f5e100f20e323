"""`vaemotionllm calibrate`: how sure predictions are, fitted on labelled clips that were not trained on."""

import argparse
from pathlib import Path

from ..utils import InputError

DESCRIPTION = """fit a temperature for the labels' probabilities and intervals for valence and arousal

Written into config.json of the model's folder; `predict_emotion` and `vaemotionllm predict` use it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a VAEmotionLLM, as stage 2 saved it")
    parser.add_argument("--manifest", required=True, help="clip manifest with labels, .jsonl or .parquet")
    parser.add_argument("--split", default="validation", help="split that was not trained on (default: validation)")
    parser.add_argument(
        "--level", type=float, default=0.9, help="share of values that an interval holds (default 0.9)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="clips a batch (default 16)")
    parser.add_argument("--device", default=None, help="default: the accelerator, where there is one")


def run(args: argparse.Namespace) -> None:
    if not 0 < args.level < 1:
        raise InputError(f"--level is {args.level}; it must lie between 0 and 1, such as 0.9.")
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; at least 1 is needed.")
    from ..data.manifest import read_manifest
    from ..evaluation.calibration import calibrate
    from ..model.loading import check_model_folder, load_model, load_processor

    clips = read_manifest(args.manifest, args.split)
    if not Path(args.model).is_dir():
        raise InputError(f"--model is {args.model!r}, which is no folder; its config.json is to be written.")
    check_model_folder(args.model)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    found = calibrate(Path(args.model), model, processor, clips, args.level, batch_size=args.batch_size, progress=True)
    heads = ("clips", "temperature", "ECE before", "ECE after", "valence +-", "arousal +-")
    print(f"{'path':8} " + " ".join(f"{head:>12}" for head in heads))
    for path in ("audio", "visual", "av"):
        before, after = found["ece"].get(path, (None, None))
        cells = [found["temperature"].get(path), before, after, found["valence"].get(path), found["arousal"].get(path)]
        numbers = " ".join(f"{'n/a' if cell is None else f'{cell:.3f}':>12}" for cell in cells)
        print(f"{path:8} {found['clips'].get(path, 0):>12} {numbers}")
    print(f"fitted on split {args.split}; written into {Path(args.model) / 'config.json'}")
