"""`vaemotionllm predict`, `calibrate` and `evaluate-emotion`: the emotion of files, its confidence and its scores."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from ..utils import InputError, write_json

DEVICE = "cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none"

PREDICT = """predict which emotion images, audio and videos express: valence, arousal and labels for each modality

  vaemotionllm predict --model runs/stage2 painting.png song.mp3 clip.mp4
  vaemotionllm predict --model runs/stage2 song.mp3+painting.png --plot space.png

A video with audio, or an audio and an image joined by +, is predicted from audio alone, from visual alone and from
both (av); `conflict` (0 to 1) says how far audio and visual disagree. What lasts longer than a window also gets a
curve over time.
"""


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = PREDICT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", metavar="FILE", help="an image, an audio, a video, or AUDIO+IMAGE")
    parser.add_argument("--model", required=True, metavar="DIR_OR_NAME", help="a VAEmotionLLM, as stage 2 saved it")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, in lines")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the valence-arousal space, and curves over time, as .png, .svg or .pdf"
    )
    parser.add_argument("--window-s", type=float, default=5.0, help="windows of the curve, seconds; 0 for no curve")
    parser.add_argument("--device", help=DEVICE)


def run_predict(args: argparse.Namespace) -> None:
    if args.window_s < 0:
        raise InputError(f"--window-s is {args.window_s}; give seconds, or 0 for no curve.")
    if args.plot and Path(args.plot).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot is {args.plot!r}; the name of a .png, .svg or .pdf file is needed.")
    from ..evaluation.emotion import input_of, predict_files
    from ..model.loading import check_model_folder, load_model, load_processor

    inputs = [input_of(word) for word in args.files]
    if args.plot:
        from ..evaluation.plots import require_matplotlib

        require_matplotlib()
        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    check_model_folder(args.model)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    predictions = []
    if not args.json:
        print(_line("file", "modality", "emotion", "valence", "arousal", "conflict"))
    for prediction in predict_files(model, processor, inputs, args.window_s or None):
        predictions.append(prediction)
        print(json.dumps(prediction.as_dict()) if args.json else _table(prediction.as_dict()), flush=True)
    if args.plot:
        from ..evaluation.plots import draw_predictions

        draw_predictions(predictions).savefig(args.plot, bbox_inches="tight", dpi=150)
    if not args.json and model.config.emotion_calibration is None:
        print("No intervals: this model is not calibrated, see `vaemotionllm calibrate`.")


def _table(prediction: dict) -> str:
    """Lines of the table: the file's name, the whole, then each window."""
    lines = [prediction["file"]]
    for row in (prediction, *prediction["curve"]):
        name = f"{row['start_s']:.1f}-{row['end_s']:.1f} s" if "start_s" in row else "whole" * bool(row["curve"])
        for modality in row["modalities"]:
            found = row[modality]
            label = f"{found['label']} {found['probabilities'][found['label']]:.0%}" if found["label"] else "-"
            point = (_with_interval(found[axis], found[f"{axis}_interval"]) for axis in ("valence", "arousal"))
            conflict = "" if row["conflict"] is None or modality != "av" else f"{row['conflict']:.2f}"
            lines.append(_line(f"  {name}", modality, label, *point, conflict))
            name = ""
    return "\n".join(lines)


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:+.2f}" if interval is None else f"{value:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _line(name: str, modality: str, label: str, valence: str, arousal: str, conflict: str) -> str:
    return f"{name:16} {modality:8} {label:20} {valence:22} {arousal:22} {conflict}".rstrip()


CALIBRATE = """fit a temperature for the labels' probabilities and intervals for valence and arousal

Written into config.json of the model's folder; `predict_emotion` and `vaemotionllm predict` use it. ECE is the
expected calibration error, held out: each half of the clips at the temperature that fits the other half.
"""


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = CALIBRATE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a VAEmotionLLM, as stage 2 saved it")
    parser.add_argument("--manifest", required=True, help="clip manifest with labels, .jsonl or .parquet")
    parser.add_argument("--split", default="validation", help="split that was not trained on (default: validation)")
    parser.add_argument(
        "--level", type=float, default=0.9, help="share of values that an interval holds (default 0.9)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="clips a batch (default 16)")
    parser.add_argument("--device", help=DEVICE)


def run_calibrate(args: argparse.Namespace) -> None:
    if not 0 < args.level < 1:
        raise InputError(f"--level is {args.level}; it must lie between 0 and 1, such as 0.9.")
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; at least 1 is needed.")
    from ..data.manifest import read_manifest
    from ..evaluation import emotion
    from ..model.loading import check_model_folder, load_model, load_processor

    clips, folder = read_manifest(args.manifest, args.split), Path(args.model)
    if not folder.is_dir():
        raise InputError(f"--model is {args.model!r}, which is no folder; its config.json is to be written.")
    check_model_folder(args.model)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    options = {"batch_size": args.batch_size, "progress": True}
    found, notes = emotion.calibrate(folder, model, processor, clips, args.level, **options)
    heads = ("clips", "temperature", "ECE before", "ECE after", "valence +-", "arousal +-")
    print(f"{'modality':8} " + _cells(heads, 12))
    for modality, number in found["clips"].items():
        cells = [found["temperature"].get(modality), *found["ece"].get(modality, (None, None))]
        cells += [found[name].get(modality) for name in ("valence", "arousal")]
        print(f"{modality:8} {number:>12} " + _cells(map(_number, cells), 12))
    for note in notes:
        print(note)
    print(f"fitted on split {args.split}; written into {folder / 'config.json'}")


COLUMNS = {
    "valence_ccc": "valence CCC", "arousal_ccc": "arousal CCC", "accuracy": "label accuracy", "ece": "label ECE",
    "valence_coverage": "valence inside", "arousal_coverage": "arousal inside",
}  # fmt: skip


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a VAEmotionLLM checkpoint")
    parser.add_argument(
        "--benchmark",
        metavar="NAME_OR_DIR",
        help="a folder, OWNER/NAME on the Hub, or nano; default: the one that `vaemotionllm benchmark show` names",
    )
    parser.add_argument("--out", required=True, metavar="FILE.json", help="where the result is written")
    parser.add_argument("--batch-size", type=int, default=16, help="clips a batch (default 16)")
    parser.add_argument("--device", help=DEVICE)


def run_evaluate(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix != ".json":
        raise InputError(f"--out is {args.out!r}; give the name of a .json file.")
    from ..benchmark import schema
    from ..evaluation import emotion
    from ..nano import select

    benchmark = schema.load(select.find(args.benchmark)) if args.benchmark else select.resolve()
    result = emotion.evaluate(args.model, benchmark.folder, args.batch_size, args.device, progress=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    print(f"{'modality':8} " + _cells(COLUMNS.values(), 16) + f" {'clips':>6}")
    for modality in emotion.MODALITIES:
        row = result[modality]
        print(f"{modality:8} " + _cells((_number(row[key]) for key in COLUMNS), 16) + f" {row['n']:>6}")
    conflict = result["conflict"]
    auroc = _number(conflict["auroc"]) if conflict["reason"] is None else f"n/a ({conflict['reason']})"
    print(f"conflict of audio and visual, AUROC against clips with mismatched audio: {auroc}")
    if benchmark.is_nano:
        print(select.NANO_NOTICE)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _cells(texts: Iterable[str], width: int) -> str:
    return " ".join(f"{text:>{width}}" for text in texts)
