"""`vaemotionllm predict`: the emotion of files on each path, as a table, as JSON or drawn on the plane."""

import argparse
import dataclasses
import json
from pathlib import Path

from ..utils import InputError

DESCRIPTION = """say which emotion images, sounds and films express: valence, arousal and labels on each path

  vaemotionllm predict --model runs/stage2 painting.png song.mp3 film.mp4
  vaemotionllm predict --model runs/stage2 song.mp3+painting.png --plot plane.png

A film with sound, or a sound and a picture joined by +, is read by sound alone, by sight alone and by both; `conflict`
(0 to 1) says how far sound and sight disagree. What lasts longer than a window also gets a curve over time.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", metavar="FILE", help="an image, a sound, a film, or SOUND+PICTURE")
    parser.add_argument("--model", required=True, metavar="DIR_OR_NAME", help="a VAEmotionLLM, as stage 2 saved it")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, in lines")
    parser.add_argument("--plot", metavar="FILE", help="draw the plane, and curves over time, as .png, .svg or .pdf")
    parser.add_argument("--window-s", type=float, default=5.0, help="windows of the curve, seconds; 0 for no curve")
    parser.add_argument("--device", default=None, help="default: the accelerator, where there is one")


def run(args: argparse.Namespace) -> None:
    if args.window_s < 0:
        raise InputError(f"--window-s is {args.window_s}; give seconds, or 0 for no curve.")
    if args.plot and Path(args.plot).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot is {args.plot!r}; the name of a .png, .svg or .pdf file is needed.")
    from ..evaluation.prediction import read_sources, source_of

    sources = [source_of(word) for word in args.files]
    if args.plot:
        from ..evaluation.figures import require_matplotlib

        require_matplotlib()
        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    from ..model.loading import check_model_folder, load_model, load_processor

    check_model_folder(args.model)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    readings = []
    if not args.json:
        print(_line("file", "path", "emotion", "valence", "arousal", "conflict"))
    for reading in read_sources(model, processor, sources, args.window_s or None):
        readings.append(reading)
        print(json.dumps(as_json(reading)) if args.json else describe(reading), flush=True)
    if args.plot:
        from ..evaluation.plots import draw_predictions

        draw_predictions(readings).savefig(args.plot, bbox_inches="tight", dpi=150)
    if not args.json and model.config.emotion_calibration is None:
        print("No intervals: this model is not calibrated, see `vaemotionllm calibrate`.")


def as_json(reading) -> dict:
    curve = [
        {"start_s": begin, "end_s": end, **dataclasses.asdict(prediction)} for begin, end, prediction in reading.curve
    ]
    return {"file": reading.source.name, **dataclasses.asdict(reading.whole), "curve": curve}


def describe(reading) -> str:
    """Lines of the table: the file's name, the whole, then each window."""
    rows = [("whole" if reading.curve else "", reading.whole)]
    rows += [(f"{begin:.1f}-{end:.1f} s", prediction) for begin, end, prediction in reading.curve]
    lines = [reading.source.name]
    for name, prediction in rows:
        for path in ("audio", "visual", "av"):
            found = getattr(prediction, path)
            if found is None:
                continue
            label = f"{found.label} {found.probabilities[found.label]:.0%}" if found.label else "-"
            conflict = "" if prediction.conflict is None or path != "av" else f"{prediction.conflict:.2f}"
            plane = (
                _number(getattr(found, axis), getattr(found, f"{axis}_interval")) for axis in ("valence", "arousal")
            )
            lines.append(_line(f"  {name}", path, label, *plane, conflict))
            name = ""
    return "\n".join(lines)


def _number(value: float, interval) -> str:
    return f"{value:+.2f}" if interval is None else f"{value:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _line(name: str, path: str, label: str, valence: str, arousal: str, conflict: str) -> str:
    return f"{name:16} {path:7} {label:20} {valence:22} {arousal:22} {conflict}".rstrip()
