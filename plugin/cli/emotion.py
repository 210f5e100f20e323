"""`vaemotionllm predict`, `calibrate` and `evaluate-emotion`: the emotion of files, its confidence and its scores."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model.inputs import MODALITIES, folder_or_hub_name
from ..utils import InputError, sha256_of_file, write_json
from . import positive

# Ours: a shorter part holds one or two audio tokens and frames. A file of five minutes has 3,000 windows then.
SHORTEST_WINDOW_S = 0.1
DEVICE = "cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none"


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """A video with audio, or an audio and an image joined by +, is predicted from audio alone, from
    visual alone and from both (av); `conflict` (0 to 1) says how far audio and visual disagree. What lasts longer than
    a window also gets a curve over time. Files after one that cannot be used are predicted all the same; the exit code
    is 2 then."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="an image, an audio, a video, or AUDIO+IMAGE")
    add("--model", required=True, metavar="DIR_OR_NAME", help="a VAEmotionLLM, as stage 2 saved it")
    add("--json", action="store_true", help="print one JSON object a file, in lines; of a failure its `error`")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the valence-arousal space, and curves over time: .png, .svg, .pdf",
    )
    add("--window-s", type=float, default=5.0, help="windows of the curve, seconds, from 0.1; 0 for no curve")
    add("--device", help=DEVICE)


def run_predict(args: argparse.Namespace) -> int:
    if args.window_s != 0 and not SHORTEST_WINDOW_S <= args.window_s < math.inf:
        raise InputError(f"--window-s is {args.window_s}; give seconds from {SHORTEST_WINDOW_S}, or 0 for no curve.")
    if args.plot and args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot is {args.plot}; the name of a .png, .svg or .pdf file is needed.")
    folder_or_hub_name(args.model, "--model")  # before torch is imported
    from ..evaluation.emotion import FileInput, input_of, predict_files
    from ..model.emotion_prediction import check_supervisor
    from ..model.loading import load_model, load_processor

    inputs = [(word, _outcome(input_of, word)) for word in args.files]
    model = processor = None
    if any(isinstance(one, FileInput) for _, one in inputs):  # else no model is needed to say what is wrong
        if args.plot:
            from ..evaluation.plots import require_matplotlib

            require_matplotlib()
            args.plot.parent.mkdir(parents=True, exist_ok=True)
        model, processor = load_model(args.model, args.device), load_processor(args.model)
        check_supervisor(model)
    predictions = []
    for word, found in inputs:
        if isinstance(found, FileInput):
            found = _outcome(lambda one: next(predict_files(model, processor, [one], args.window_s or None)), found)
        if isinstance(found, Exception):
            print(f"vaemotionllm predict: error: {word}: {found}", file=sys.stderr, flush=True)
            shown = json.dumps({"file": word, "error": str(found)}) if args.json else None
        else:
            predictions.append(found)
            shown = json.dumps(found.as_dict()) if args.json else _text(found.as_dict())
        if shown is not None:
            print(shown, flush=True)
    if args.plot and predictions:
        from ..evaluation.plots import draw_predictions

        draw_predictions(predictions).savefig(args.plot, bbox_inches="tight", dpi=150)
    if not args.json and predictions and model.config.emotion_calibration is None:
        print("No intervals: this model is not calibrated, see `vaemotionllm calibrate`.")
    return 0 if len(predictions) == len(inputs) else 2


def _outcome(function: Callable, argument: Any) -> Any:
    """What a function returns, or the error of a file that cannot be used."""
    try:
        return function(argument)
    except (InputError, OSError) as error:
        return error


def _text(prediction: dict) -> str:
    """The file's name, and a table of the whole and each window on each modality."""
    rows = []
    for part in (prediction, *prediction["curve"]):
        for modality in part["modalities"]:
            found, row = part[modality], {"part": "whole", "modality": modality}
            if "start_s" in part:
                row["part"] = f"{part['start_s']:.1f}-{part['end_s']:.1f} s"
            if found["label"]:
                row["emotion"] = f"{found['label']} {found['probabilities'][found['label']]:.0%}"
            for name in ("valence", "arousal"):
                interval = found[f"{name}_interval"]
                ends = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
                row[name] = f"{found[name]:+.2f}{ends}"
            if modality == "av":
                row["conflict"] = f"{part['conflict']:.2f}"
            rows.append(row)
    return f"{prediction['file']}\n{_table(rows)}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False, na_rep="-", float_format="{:.3f}".format)


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """A temperature for the labels' probabilities and intervals for valence and arousal are written
    into config.json of the model's folder; predictions use them. ECE is the expected calibration error, held out: each
    half of the clips at the temperature that fits the other half."""
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="folder of a VAEmotionLLM, as stage 2 saved it")
    add("--manifest", required=True, help="clip manifest with labels, .jsonl or .parquet")
    add("--split", default="validation", help="split that was not trained on (default: validation)")
    add("--level", type=float, default=0.9, help="share of values that an interval holds (default 0.9)")
    add("--batch-size", type=positive, default=16, help="clips a batch (default 16)")
    add("--device", help=DEVICE)


def run_calibrate(args: argparse.Namespace) -> None:
    if not 0 < args.level < 1:
        raise InputError(f"--level is {args.level}; it must lie between 0 and 1, such as 0.9.")
    from ..data.manifest import read_manifest
    from ..evaluation.emotion import calibrate
    from ..model.loading import load_model, load_processor
    from ..train.checkpoint import stages_of

    if not args.model.is_dir():
        raise InputError(f"--model is {args.model}, which is no folder; its config.json is to be written.")
    clips = read_manifest(args.manifest, args.split)
    manifest_sha256 = sha256_of_file(Path(args.manifest))
    for settings in (stage["settings"] for stage in stages_of(args.model)):
        if (settings.get("manifest_sha256"), settings.get("split")) == (manifest_sha256, args.split):
            raise InputError(
                f"--split is {args.split}, on which stage {settings['stage']} of {args.model} was trained: there the "
                "model is surer than on new clips. Name a split of labelled clips that it was not trained on."
            )
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    found = calibrate(args.model, model, processor, clips, args.level, batch_size=args.batch_size, progress=True)
    before, after = ({modality: errors[i] for modality, errors in found["ece"].items()} for i in (0, 1))
    columns = {"clips": found["clips"], "temperature": found["temperature"], "ECE before": before, "ECE after": after}
    columns |= {f"{name} +-": found[name] for name in ("valence", "arousal")}
    print(_table([{"modality": m, **{name: of.get(m) for name, of in columns.items()}} for m in MODALITIES]))
    print("Where the ECE rose, the clips are too few or differ in kind: calibrate on more before you rely on it.")
    print(f"fitted on split {args.split}; written into {args.model / 'config.json'}")


COLUMNS = {
    "valence_ccc": "valence CCC", "arousal_ccc": "arousal CCC", "accuracy": "label accuracy", "ece": "label ECE",
    "valence_coverage": "valence inside", "arousal_coverage": "arousal inside", "n": "clips",
}  # fmt: skip


def add_evaluate_emotion_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a VAEmotionLLM checkpoint")
    add(
        "--benchmark",
        metavar="NAME_OR_DIR",
        help="a folder, OWNER/NAME on the Hub, or nano; default: see `benchmark show`",
    )
    add("--out", required=True, type=Path, metavar="FILE.json", help="where the result is written")
    add("--batch-size", type=positive, default=16, help="clips a batch (default 16)")
    add("--device", help=DEVICE)


def run_evaluate_emotion(args: argparse.Namespace) -> None:
    folder_or_hub_name(args.model, "--model")  # before a benchmark is built
    from ..benchmark import schema
    from ..evaluation.emotion import evaluate
    from ..nano import select

    benchmark = schema.load(select.find(args.benchmark)) if args.benchmark else select.resolve()
    result = evaluate(args.model, benchmark.folder, args.batch_size, args.device, progress=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    print(_table([{"modality": m, **{name: result[m][key] for key, name in COLUMNS.items()}} for m in MODALITIES]))
    conflict = result["conflict"]
    auroc = f"n/a ({conflict['reason']})" if conflict["reason"] else f"{conflict['auroc']:.3f}"
    print(f"conflict of audio and visual, AUROC against clips with mismatched audio: {auroc}")
    if benchmark.is_nano:
        print(select.NANO_NOTICE)
