"""Clips for the report's reader to see and hear, with what each stage answered from the sound alone.

The choice follows a rule, not the results: the first clips of each art form in the benchmark's order.
"""

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np

from ..benchmark.schema import ASPECTS
from .report_words import stage_word
from .results import STAGES, Run

PER_ART_FORM, MOST = 2, 6
RATE_HZ = 16_000
# A clip of the benchmark may be long; the page should not be.
MAX_S = 10.0


@dataclass(frozen=True)
class Example:
    """One clip: its files relative to the run's folder, a picture, a sound, the right answers and those given."""

    clip_id: str
    art_form: str
    files: tuple[str, ...]
    png: bytes
    wav: bytes
    truth: dict[str, str]
    heard: dict[str, dict[str, str | None]]


def choose(run: Run) -> list[Example]:
    """The examples of a run.

    Raises:
        InputError: a chosen clip's file is missing or cannot be decoded.
    """
    clips: dict[str, list[dict]] = {}
    for item in run.items.values():
        clips.setdefault(item["clip_id"], []).append(item)
    taken: dict[str, int] = {}
    chosen = []
    for clip_id, items in clips.items():
        art_form = items[0].get("art_form") or "clip"
        if taken.get(art_form, 0) < PER_ART_FORM and len(chosen) < MOST:
            taken[art_form] = taken.get(art_form, 0) + 1
            chosen.append(make(run, clip_id, art_form, items))
    # Two of a form side by side.
    return sorted(chosen, key=lambda example: list(taken).index(example.art_form))


def make(run: Run, clip_id: str, art_form: str, items: list[dict]) -> Example:
    from ..model.media import load_audio, load_image, load_video

    item = next(item for item in items if item["modality"] == "av")
    folder = run.benchmark_dir
    if item.get("video"):
        frames, _ = load_video(folder / item["video"], num_frames=3)
        picture = frames[1]
    else:
        picture = np.asarray(load_image(folder / item["image"]))
    sound = load_audio(folder / item["audio"], sampling_rate=RATE_HZ)[: int(MAX_S * RATE_HZ)]
    heard: dict[str, dict[str, str | None]] = {}
    truth = {}
    for aspect in ASPECTS:
        for stage in STAGES:
            for outcome in run.cells[stage][f"{aspect}_audio"]:
                if outcome.clip_id == clip_id:
                    heard.setdefault(aspect, {})[stage] = outcome.predicted
                    truth[aspect] = outcome.answer
    files = tuple(dict.fromkeys(item[kind] for kind in ("video", "image", "audio") if item.get(kind)))
    inside = folder.relative_to(run.out).as_posix()
    return Example(
        clip_id, art_form, tuple(f"{inside}/{name}" for name in files), png_of(picture), wav_of(sound), truth, heard
    )


def png_of(picture: np.ndarray) -> bytes:
    """uint8 (height, width, 3) as PNG."""
    from PIL import Image

    target = io.BytesIO()
    image = Image.fromarray(picture)
    image.thumbnail((256, 256))
    image.save(target, format="PNG", optimize=True)
    return target.getvalue()


def wav_of(sound: np.ndarray) -> bytes:
    """float32 (samples,) as 16-bit WAV."""
    import soundfile

    target = io.BytesIO()
    soundfile.write(target, np.clip(sound, -1, 1), RATE_HZ, format="WAV", subtype="PCM_16")
    return target.getvalue()


def html(examples: list[Example]) -> str:
    """Cards with picture, player and a small table of answers; everything inside the page."""
    return f'<div class="cards">{"".join(_card(example) for example in examples)}</div>'


def _card(example: Example) -> str:
    picture = base64.b64encode(example.png).decode()
    sound = base64.b64encode(example.wav).decode()
    heading = "".join(f"<th>{aspect}</th>" for aspect in ASPECTS if aspect in example.truth)
    rows = "".join(
        f"<tr><td>{stage_word(stage)}</td>"
        + "".join(_answer(example.heard[aspect][stage], example.truth[aspect]) for aspect in example.truth)
        + "</tr>"
        for stage in STAGES
    )
    right = "".join(f"<td>{escape(answer)}</td>" for answer in example.truth.values())
    label = escape(example.art_form.replace("_", " "))
    return (
        f'<div class="card"><img alt="{label}" src="data:image/png;base64,{picture}">'
        f'<div><audio controls preload="none" src="data:audio/wav;base64,{sound}"></audio>'
        f'<table><thead><tr><th class="small">{label}</th>{heading}</tr></thead><tbody>{rows}'
        f'<tr class="reference"><td>right</td>{right}</tr></tbody></table></div></div>'
    )


def _answer(predicted: str | None, truth: str) -> str:
    if predicted == truth:
        return f'<td class="met">✓ {escape(truth)}</td>'
    return f'<td class="missed">✗ {escape(predicted or "none")}</td>'


def markdown(examples: list[Example]) -> str:
    """A table with links to the clips' files."""
    aspects = [aspect for aspect in ASPECTS if aspect in examples[0].truth]
    header = ["clip", *(f"{aspect}, {stage_word(stage)}" for aspect in aspects for stage in STAGES)]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for example in examples:
        links = " ".join(f"[{name.rsplit('.', 1)[-1]}]({name})" for name in example.files)
        truth = ", ".join(example.truth[aspect] for aspect in aspects)
        cells = [
            f"{'✓' if example.heard[aspect][stage] == example.truth[aspect] else '✗'} "
            f"{example.heard[aspect][stage] or 'none'}"
            for aspect in aspects
            for stage in STAGES
        ]
        lines.append(f"| {example.art_form.replace('_', ' ')}: {truth} ({links}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)
