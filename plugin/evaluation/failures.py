"""Wrong answers for the reader to see: the question, a thumbnail, the waveform, what was said.

The choice follows a rule, not an eye: of each cell the first wrong answer in the benchmark's order about a clip that
is not shown yet; where all of them are, the first.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..utils import InputError
from . import report_html, report_markdown
from .benchmark_rows import BenchmarkRows
from .examples import png_of
from .figures import Figure, make_figure
from .leaderboard_scores import CELL_TASKS, outcomes_of
from .plots import axes_of
from .report_words import MODALITY_WORDS
from .results import Outcome
from .task_samples import Evaluation

RATE_HZ = 16_000
# Of a long clip the beginning is drawn.
MAX_S = 30.0
# Of a long answer the beginning is printed.
MAX_LETTERS = 160
BINS = 300


@dataclass(frozen=True)
class Failure:
    """One wrong answer. `png` is a thumbnail, `sound` a waveform; each None where the cell does not have it."""

    name: str
    cell: str
    item_id: str
    art_form: str
    question: str
    options: tuple[str, ...]
    answer: str
    predicted: str | None
    response: str
    png: bytes | None
    sound: Figure | None


def choose(evaluation: Evaluation) -> Iterator[tuple[str, Outcome, str]]:
    """(cell, outcome, response) of the wrong answers to show, at most one a cell."""
    shown: set[str] = set()
    for cell, task in CELL_TASKS.items():
        if task not in evaluation.tasks:
            continue
        wrong = [outcome for outcome in outcomes_of(evaluation, task) if not outcome.correct and not outcome.missing]
        chosen = next((outcome for outcome in wrong if outcome.clip_id not in shown), wrong[0] if wrong else None)
        if chosen is not None:
            shown.add(chosen.clip_id)
            response = evaluation.tasks[task].rows[chosen.item_id][0]["filtered_resps"]
            yield cell, chosen, str(response[0] if isinstance(response, list) else response)


def failures_of(evaluation: Evaluation, rows: BenchmarkRows, prefix: str) -> tuple[list[Failure], list[str]]:
    """The wrong answers to show, and why some of them cannot be shown.

    Args:
        evaluation: the model's answers.
        rows: the benchmark that was asked.
        prefix: begins the names of the failures' files.
    """
    found, lacking = [], []
    for cell, outcome, response in choose(evaluation):
        item, name = rows.items[outcome.item_id], f"{prefix}_{cell}"
        try:
            png, sound = thumbnail(rows, item), waveform(rows, item, name)
        except InputError as error:
            lacking.append(f"{outcome.item_id}: {error}")
            continue
        found.append(
            Failure(
                name=name,
                cell=cell,
                item_id=outcome.item_id,
                art_form=str(item.get("art_form") or ""),
                question=item["question"],
                options=outcome.options,
                answer=outcome.answer,
                predicted=outcome.predicted,
                response=response,
                png=png,
                sound=sound,
            )
        )
    return found, lacking


def thumbnail(rows: BenchmarkRows, item: dict) -> bytes | None:
    """The item's picture, or the middle of its film, as a small PNG; None where it is asked by sound alone.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    from ..model.media import load_image, load_video

    if item.get("video"):
        frames, _ = load_video(_path(rows, item["video"]), num_frames=3)
        return png_of(frames[1])
    return png_of(np.asarray(load_image(_path(rows, item["image"])))) if item.get("image") else None


def waveform(rows: BenchmarkRows, item: dict, name: str) -> Figure | None:
    """The item's sound as a drawing; None where it is asked by sight alone.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    from ..model.media import load_audio

    if not item.get("audio"):
        return None
    sound = load_audio(_path(rows, item["audio"]), sampling_rate=RATE_HZ)
    return make_figure(
        f"{name}_sound",
        f"Waveform of {item['clip_id']}",
        lambda c: draw_waveform(sound, c),
        "Waveform, time in seconds, as high as its peak.",
        f"{len(sound) / RATE_HZ:.1f} s of sound, peak {np.abs(sound).max(initial=0):.2f} of full scale",
        "",
    )


def _path(rows: BenchmarkRows, relative: str) -> str:
    path = rows.folder / relative
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return str(path)


def envelope(sound: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample in each of `bins` equal stretches of a sound of shape (samples,); both (bins,)."""
    edges = np.linspace(0, len(sound), min(bins, len(sound)) + 1).astype(int)[:-1]
    return np.minimum.reduceat(sound, edges), np.maximum.reduceat(sound, edges)


def draw_waveform(sound: np.ndarray, c: dict):
    """The envelope of a sound of shape (samples,), -1 to 1, over seconds, as high as its peak; its first `MAX_S`."""
    whole_s, sound = len(sound) / RATE_HZ, sound[: int(MAX_S * RATE_HZ)]
    figure, (axis,) = axes_of(1, 1, 3.4, 0.95, c)
    low, high = envelope(sound)
    times_s = (np.arange(len(low)) + 0.5) * len(sound) / RATE_HZ / len(low)
    axis.fill_between(times_s, low, high, color=c["audio"], lw=0.4)
    # Quiet sounds are drawn as large as loud ones, hence the peak in words.
    peak = float(np.abs(sound).max(initial=0))
    axis.set_ylim(-max(peak, 1e-3), max(peak, 1e-3))
    axis.set_xlim(0, len(sound) / RATE_HZ)
    axis.set_yticks([])
    time = f"first {MAX_S:.0f} of {whole_s:.0f} s" if whole_s > MAX_S else "time, s"
    axis.set_xlabel(f"{time} (peak {peak:.2f} of full scale)")
    return figure


def facts_of(failure: Failure) -> list[tuple[str, str]]:
    """What is said about a failure, as (name, text)."""
    aspect, path = failure.cell.split("_")
    said = failure.response if len(failure.response) <= MAX_LETTERS else f"{failure.response[:MAX_LETTERS]}..."
    return [
        ("asked", f"{aspect} by {MODALITY_WORDS[path]}: {failure.question}"),
        ("options", ", ".join(failure.options)),
        ("right", failure.answer),
        ("read as", failure.predicted or "no option"),
        ("said", said or "(nothing)"),
        ("item", failure.item_id + (f" ({failure.art_form.replace('_', ' ')})" if failure.art_form else "")),
    ]


def html(failures: list[Failure]) -> str:
    """Cards; everything inside the page."""
    return f'<div class="cards">{"".join(_card(failure) for failure in failures)}</div>'


def _card(failure: Failure) -> str:
    picture = '<span class="small">no picture is given</span>'
    if failure.png:
        source = base64.b64encode(failure.png).decode()
        picture = f'<img alt="{report_html.escaped(failure.item_id)}" src="data:image/png;base64,{source}">'
    sound = ""
    if failure.sound:
        sound = failure.sound.svg.replace(
            'role="img"', f'role="img" aria-label="{report_html.escaped(failure.sound.alt)}"', 1
        )
    rows = "".join(
        f'<tr><td class="small">{name}</td>'
        f'<td class="text{" missed" if name == "read as" else ""}">{report_html.escaped(text)}</td></tr>'
        for name, text in facts_of(failure)
    )
    return f'<div class="card"><div>{picture}</div><div>{sound}<table><tbody>{rows}</tbody></table></div></div>'


def markdown(failures: list[Failure]) -> str:
    """A list with links to the files of `files_of`."""
    parts = []
    for failure in failures:
        lines = [f"- **{name}**: {report_markdown.escaped(text)}" for name, text in facts_of(failure)]
        pictures = [f"![{path}](figures/{path})" for path in files_of(failure)]
        parts.append("\n".join(lines) + "\n\n" + " ".join(pictures))
    return "\n\n".join(parts)


def files_of(failure: Failure) -> dict[str, bytes]:
    """The files that `markdown` links, by their names in the folder of figures."""
    found = {f"{failure.name}.png": failure.png} if failure.png else {}
    return found | ({f"{failure.sound.name}.png": failure.sound.png} if failure.sound else {})
