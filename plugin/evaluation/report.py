"""The report: tables, figures and examples about one or many models, as Markdown and HTML from the same blocks.

A block is a dictionary that both templates know, made by `heading`, `text`, `table`, `figures`, `cards` or `code`. The
sections read the table of scores (see `scores.py`) alone, so they serve models beside each other, the stages of a
demo, means over seeds and the variants of an ablation. In a cell of a table lines below the first stand smaller.
"""

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..benchmark.schema import ASPECTS
from ..model.inputs import MODALITIES
from ..model.media import load_audio, load_image, load_video
from ..utils import InputError, atomic_file, read_json, reported_writing, write_json
from . import plots
from .plots import MODALITY_LABELS, Figure
from .results import DIMENSIONS, BenchmarkItems, Evaluation
from .scores import CELL_TASKS, CELLS, CONTROL_TASKS, FOLLOWS, GAINS, pick, without_nan

FORMAT = 2
INTERVALS = (
    "Brackets are 95% intervals: Wilson's for an accuracy with one question a clip, else a bootstrap that draws whole "
    "clips (10,000 draws), the same ones for both sides of a difference. They cover the choice of clips, not the "
    "training seed."
)
SEED_INTERVALS = (
    "Means over training seeds. Brackets are 95% intervals of the mean over the seeds (Student's t): each seed has "
    "its own clips, backbone and training."
)
NOT_RUN, NOT_DEFINED = "not run", "not defined"
CELL_LABELS = {f"{a}_{m}": f"{a}, {MODALITY_LABELS[m]}" for a in ASPECTS for m in MODALITIES}
AUDIO_LABELS = {"": "own audio", "silence": "silence", "noise": "noise", "mismatch": "mismatched audio",
                "blind": "question alone"}  # fmt: skip
FOLLOW_LABELS = dict(zip(FOLLOWS, ("follows visual", "follows audio", "another option", "no option", "missing")))
# Of examples: rate and length of audio in the page, bytes of a video that is put into it, letters of an answer.
RATE_HZ, MAX_S, MAX_VIDEO_BYTES, MAX_LETTERS = 16_000, 10.0, 1 << 20, 160
PLAYABLE = {".mp4": "video/mp4", ".webm": "video/webm"}
TEMPLATES = Path(__file__).parent / "templates"


# ---- blocks


class Bold(str):
    """The text of a cell that stands out."""

    bold = True


def heading(words: str, level: int = 2) -> dict[str, Any]:
    return {"kind": "heading", "text": words, "level": level}


def text(words: str, look: str = "") -> dict[str, Any]:
    """A paragraph; `look` is "small", "note" (what nobody should overlook) or "headline"."""
    return {"kind": "text", "text": words, "look": look}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], references: Sequence[Sequence[str]] = (),
          left: Iterable[int] = ()) -> dict[str, Any]:  # fmt: skip
    """`references` are rows in grey, `left` the columns, beside the first, that hold text and not numbers."""
    rows, references = [list(row) for row in rows], [list(row) for row in references]
    return {"kind": "table", "head": list(head), "rows": rows, "references": references, "left": list(left)}


def figures(*shown: Figure) -> dict[str, Any]:
    """Side by side where there is room."""
    return {"kind": "figures", "figures": shown}


def cards(shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Examples, see `card_of`."""
    return {"kind": "cards", "cards": shown}


def code(words: str) -> dict[str, Any]:
    return {"kind": "code", "text": words}


# ---- text


# Control characters but tab and newline, lone surrogates, and marks that turn the direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
# Not the brackets of an interval: nothing of that form is a link.
_MARKUP = re.compile(r"[\\`*_<>|#~&$]|\[(?![+-]?\d)|\](?=[(\[:])")


def printable(words: str) -> str:
    """Text, of a model or of a file's name too, with U+FFFD for each character that no page can show."""
    return _UNPRINTABLE.sub("\ufffd", words)


def escaped(words: str) -> str:
    """One line in which Markdown finds no table, link, emphasis, formula or tag; models and files wrote it."""
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(words.split())))


def number(value: float, unit: str = "percent") -> str:
    """`unit` is "percent", "points" (a difference of shares), "plain" or "signed" (a difference of such)."""
    if unit == "percent":  # a share that is not 0 is never printed as if it were
        return "<0.1%" if 0 < value < 0.0005 else f"{100 * value:.1f}%"
    # Adding 0.0 makes 0.0 of -0.0.
    return {"points": f"{round(100 * value, 1) + 0.0:+.1f}", "signed": f"{round(value, 2) + 0.0:+.2f}"}.get(
        unit, f"{round(value, 2) + 0.0:.2f}"
    )


def interval(low: float, high: float, unit: str = "percent") -> str:
    """Such as "[81.2, 90.1]"; "" where there is none, or both ends are one: then nothing varied that could tell."""
    if not (math.isfinite(low) and math.isfinite(high)) or math.isclose(low, high, abs_tol=1e-9):
        return ""
    return f"[{number(low, unit)}, {number(high, unit)}]".replace("%", "")


def shown(row: pd.Series | None, unit: str = "percent") -> str:
    """A cell of a score: its value, and below it its interval and the shares of what was not answered."""
    if row is None or math.isnan(row["value"]):
        return NOT_RUN if row is None else NOT_DEFINED
    unclear = [f"{name}: {number(row[name])}" for name in ("unparsable", "missing") if row.get(name, 0) > 0]
    parts = [number(row["value"], unit), interval(row["low"], row["high"], unit), *unclear]
    return "\n".join(part for part in parts if part)


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def terminal_table(scores: pd.DataFrame) -> str:
    """Accuracies with their intervals for a terminal of 80 columns: a row a cell, three models beside each other."""
    models, lines = list(dict.fromkeys(scores["model"])), []
    for begin in range(0, len(models), 3):
        of = models[begin : begin + 3]
        rows = [["accuracy", *plots.short_names(of)]]
        for cell in (*CELLS, "all_all"):
            aspect, modality = cell.split("_")
            found = [pick(scores, model=m, measure="accuracy", aspect=aspect, modality=modality) for m in of]
            if any(row is not None for row in found):
                name = "all six" if aspect == "all" else f"{aspect} {modality}"
                rows.append([name, *(" ".join(shown(row).split("\n")[:2]) for row in found)])
        lines += [*plain_table(rows), ""]
    return "\n".join(lines).rstrip()


# ---- writing


def write(out: Path, stem: str, name: str, blocks: Sequence[dict[str, Any]], report: Mapping[str, Any]) -> list[Path]:
    """Write `STEM.json`, `STEM.md` with its figures, and `STEM.html`, which needs no other file, into a folder.

    Args:
        out: the folder, made if need be.
        stem: of the files' names.
        name: title of the page.
        blocks: what the page shows.
        report: what `STEM.json` holds, beside the names of the figures.

    Raises:
        InputError: the folder cannot be written.
    """
    images = {f"{f.name}.png": f.png for block in blocks if block["kind"] == "figures" for f in block["figures"]}
    images |= {
        f"{c['name']}.png": c["image"] for b in blocks if b["kind"] == "cards" for c in b["cards"] if c["image"]
    }
    texts = {out / f"{stem}.{kind}": rendered(kind, name, blocks) for kind in ("md", "html")}
    file = out / f"{stem}.json"
    with reported_writing(out):
        # Of an earlier report, about more models.
        old = read_json(file, "a report").get("figures", []) if file.is_file() else []
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for path, words in texts.items():
            with atomic_file(path) as temporary:
                temporary.write_text(words, encoding="utf-8")
        for image, content in images.items():
            with atomic_file(out / "figures" / image) as temporary:
                temporary.write_bytes(content)
        write_json(file, without_nan({**report, "figures": sorted(images)}))
        for image in {str(path) for path in old} - images.keys():
            if Path(image).name == image:
                (out / "figures" / image).unlink(missing_ok=True)
    return [*texts, file]


def rendered(kind: str, name: str, blocks: Sequence[dict[str, Any]]) -> str:
    """Text of a report of a kind, "md" or "html"."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=kind == "html", keep_trailing_newline=True
    )
    environment.filters["code"] = lambda words: "\n".join(f"    {line}" for line in words.splitlines())
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    if kind == "md":
        environment.filters["e"] = escaped
    else:
        environment.finalize = lambda value: printable(value) if type(value) in (str, Bold) else value
    return environment.get_template(f"report.{kind}.jinja").render(title=name, blocks=blocks) + "\n"


# ---- sections


def models_of(scores: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(scores["model"]))


def grid(scores: pd.DataFrame, columns: Iterable[Mapping[str, str]], unit: str = "percent") -> list[list[str]]:
    """A row a model: its name, then the score of each of `columns`, which say what it is."""
    return [
        [model, *(shown(pick(scores, model=model, **keys), unit) for keys in columns)] for model in models_of(scores)
    ]


def reference(scores: pd.DataFrame, name: str, columns: Iterable[Mapping[str, str]], words=number) -> list[str]:
    """A row of what is the same for all models that ran a column, such as its chance."""
    found = []
    for keys in columns:
        rows = (pick(scores, model=model, **keys) for model in models_of(scores))
        first = next((row for row in rows if row is not None and not math.isnan(row[name])), None)
        found.append("" if first is None else words(first[name]))
    return found


def cell_keys(measure: str = "accuracy") -> list[dict[str, str]]:
    return [{"measure": measure, **dict(zip(("aspect", "modality"), cell.split("_")))} for cell in CELLS]


def cells_of(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the six cells."""
    own = (scores.measure == "accuracy") & (scores.condition == "") & (scores.group == "")
    return scores[own & scores.aspect.isin(ASPECTS)]


def accuracy_table(scores: pd.DataFrame, references: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Accuracy of the six cells, and of all together where a model ran all; below it chance and `references`."""
    columns, head = cell_keys(), list(CELL_LABELS.values())
    if (scores.aspect == "all").any():
        columns, head = [{"measure": "accuracy", "aspect": "all", "modality": "all"}, *columns], ["all six", *head]
    rows = [["chance", *reference(scores, "chance", columns)], *references]
    return table(["accuracy", *head], grid(scores, columns), rows)


def controls_section(scores: pd.DataFrame, command: str) -> list[dict[str, Any]]:
    """Accuracy with the audio replaced or left out; empty where that was not run."""
    of = scores[(scores.measure == "accuracy") & (scores.group == "") & scores.aspect.isin(ASPECTS)]
    of = of[(of.modality == "audio") & (of.condition == "") | of.condition.isin(CONTROL_TASKS)]
    models = [model for model in models_of(of) if (of[of.model == model].condition != "").any()]
    of = of[of.model.isin(models)]
    if of.empty:
        return []
    ways = [name for name in AUDIO_LABELS if (of.condition == name).any()]
    blocks = []
    for aspect in ASPECTS:
        columns = [
            {"measure": "accuracy", "aspect": aspect, "condition": way, "modality": "" if way == "blind" else "audio"}
            for way in ways
        ]
        rows = [["chance", *reference(of, "chance", columns)]]
        blocks.append(table([f"{aspect} by", *(AUDIO_LABELS[way] for way in ways)], grid(of, columns), rows))
    order = of.condition.map(list(AUDIO_LABELS).index)
    drawn = plots.draw_rows(of.assign(order=order).sort_values("order", kind="stable"), "aspect", "condition", "model",
                            AUDIO_LABELS)  # fmt: skip
    alt = "Accuracy of each model under each control, as in the table"
    caption = (
        "Accuracy from audio alone, with the clip's own audio and with it replaced or left out. Dashed: chance. "
        "Mismatched audio is that of a clip with other answers, so a model that relies on it lands below chance there."
    )
    return [figures(plots.render("controls", drawn, caption, alt, command)), *blocks]


def gains_section(scores: pd.DataFrame) -> list[dict[str, Any]]:
    columns = [{"measure": gain, "aspect": aspect} for aspect in ASPECTS for gain in GAINS]
    if not scores.measure.isin(GAINS).any():
        return []
    notes = [f"{row.model}, {row.aspect}: {row.note}" for row in scores[scores.measure.isin(GAINS)].itertuples()
             if isinstance(row.note, str)]  # fmt: skip
    note = (
        "In points of accuracy. Audio gain is audio-visual minus visual, visual gain minus audio, synergy minus the "
        "better of the two."
    )
    head = [f"{of['aspect']}: {of['measure'].replace('_', ' ')}" for of in columns]
    return [table(["", *head], grid(scores, columns, "points")), text(" ".join([note, *notes]), "small")]


def conflict_section(scores: pd.DataFrame) -> list[dict[str, Any]]:
    of = scores[scores.condition == "conflict"]
    if of.empty:
        return []
    names = [name for name in FOLLOWS if name not in FOLLOWS[3:] or (of[of.measure == name].value > 0).any()]
    rows = grid(of, [{"measure": name, "condition": "conflict"} for name in names])
    note = (
        "The image or video of one clip with the audio of another of opposite emotion: shares of the answers that "
        "follow either. None of them is right."
    )
    head = ["", *(FOLLOW_LABELS[name] for name in names)]
    return [heading("Visual against audio", 3), table(head, rows), text(note, "small")]


def va_section(scores: pd.DataFrame, condition: str) -> list[dict[str, Any]]:
    """CCC of valence and arousal on each modality, of the Supervisor or (`condition` "stated") of answers."""
    of = scores[scores.condition == condition]
    names = [f"{name}_ccc" for name in DIMENSIONS]
    columns = [{"measure": n, "modality": m, "condition": condition} for n in names for m in MODALITIES]
    if not of.measure.isin(names).any():
        return []
    head = [f"{name}, {MODALITY_LABELS[modality]}" for name in DIMENSIONS for modality in MODALITIES]
    return [table(["CCC", *head], grid(of, columns, "plain"))]


def va_figure(name: str, model: str, modality: str, points: pd.DataFrame, answers: pd.DataFrame | None,
              scores: pd.DataFrame, condition: str, command: str = "") -> Figure:  # fmt: skip
    """Predicted against true valence and arousal of a model; for the rest see `plots.draw_valence_arousal`."""
    keys = {"model": model, "modality": modality, "condition": condition}
    found = {d: shown(pick(scores, measure=f"{d}_ccc", **keys), "plain").replace("\n", " ") for d in DIMENSIONS}
    titles = {dimension: f"{dimension}: CCC {words}" for dimension, words in found.items()}
    caption = (
        f"{model}, {MODALITY_LABELS[modality]}, {len(points)} clips. Left: each line leads from the true point (ring) "
        "to the predicted one (dot). Middle and right: predicted against true; on the diagonal they agree."
    )
    drawn = plots.draw_valence_arousal(points, answers, titles)
    return plots.render(name, drawn, caption, "; ".join(titles.values()), command)


def stated_section(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """All scores of the tasks `artemo_va_*`: a row a model and modality."""
    of = scores[scores.condition == "stated"]
    names = [f"{d}_{m}" for d in DIMENSIONS for m in ("ccc", "pearson", "rmse")]
    rows = []
    for model, modality in dict.fromkeys(zip(of.model, of.modality)):
        keys = {"model": model, "modality": modality, "condition": "stated"}
        found = [pick(of, measure=name, **keys) for name in ("ccc", *names)]
        answered = f"{found[0]['answered']:.0f} of {found[0]['n']:.0f}"
        rows.append([f"{model}, {MODALITY_LABELS[modality]}", *(shown(row, "plain") for row in found), answered])
    note = (
        "Two numbers that the answer states. CCC (concordance correlation), Pearson correlation and RMSE are pooled "
        "over the answers that state both; read them beside the share that does not."
    )
    head = ["", "CCC", *(f"{n.split('_')[0]} {n.split('_')[1].upper()}" for n in names), "answered"]
    return [table(head, rows), text(note, "small")] if rows else []


def circular_section(scores: pd.DataFrame) -> list[dict[str, Any]]:
    of = scores[scores.measure == "circular_accuracy"]
    if of.empty:
        return []
    columns, head = cell_keys("circular_accuracy"), list(CELL_LABELS.values())
    rows = grid(of, columns)
    for model, row in zip(models_of(of), rows):
        for i, keys in enumerate(columns, 1):
            found = pick(of, model=model, **keys)
            row[i] += "" if found is None else f"\nsingle: {number(found['single'])}"
    note = (
        "Right under every rotation of the options, and below it the accuracy of the single rotations: a model that "
        "prefers a letter loses here. The same one of n options each time is right in 1/n of the questions; a letter "
        "drawn each time in 1/n^n."
    )
    same = ["the same option each time", *reference(of, "chance", columns)]
    return [heading("Under every rotation of the options"), table(["circular accuracy", *head], rows, [same]),
            text(note, "small")]  # fmt: skip


def breakdown_section(scores: pd.DataFrame, kind: str) -> list[dict[str, Any]]:
    """Accuracy by a kind of group, "emotion" or "art_form": a table a model, a row a group, a column a cell."""
    blocks = []
    for model in models_of(scores):
        of = scores[(scores.model == model) & scores.group.str.startswith(f"{kind}: ")]
        columns = [keys for keys in cell_keys() if kind != "emotion" or keys["aspect"] == "emotion"]
        rows = []
        for group in sorted(set(of.group)):
            found = [pick(of, group=group, **keys) for keys in columns]
            cells = [f"{shown(row)}\nof {row['n']:.0f}" if row is not None else "none" for row in found]
            rows.append([group.removeprefix(f"{kind}: ").replace("_", " "), *cells])
        if rows:
            head = [CELL_LABELS[f"{keys['aspect']}_{keys['modality']}"] for keys in columns]
            blocks += [heading(model, 3), table([kind.replace("_", " "), *head], rows)]
    return blocks


# ---- examples


def card_of(items: BenchmarkItems, item: Mapping[str, Any], name: str, words: str, head: Sequence[str],
            rows: Sequence[Sequence[str]], out: Path) -> dict[str, Any]:  # fmt: skip
    """An example: the media of an item, playable in the page and linked in Markdown, with a small table.

    Args:
        items: the benchmark.
        item: one of its rows.
        name: of the image's file.
        words: title.
        head, rows: the table.
        out: the report's folder.

    Raises:
        InputError: a file is missing or cannot be decoded.
    """
    paths = {kind: items.folder / item[kind] for kind in ("video", "image", "audio") if item.get(kind)}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"there is no file {path}")
    image = audio = video = None
    if "video" in paths:
        image = png_of(load_video(paths["video"], num_frames=3)[0][1])
        if (kind := PLAYABLE.get(paths["video"].suffix.lower())) and paths["video"].stat().st_size <= MAX_VIDEO_BYTES:
            video = kind, paths["video"].read_bytes()
    elif "image" in paths:
        image = png_of(np.asarray(load_image(paths["image"])))
    if "audio" in paths:
        waveform = load_audio(paths["audio"], sampling_rate=RATE_HZ)[: int(MAX_S * RATE_HZ)]
        target = io.BytesIO()
        soundfile.write(target, np.clip(waveform, -1, 1), RATE_HZ, format="WAV", subtype="PCM_16")
        audio = target.getvalue()
    files = {kind: Path(os.path.relpath(path, out)).as_posix() for kind, path in paths.items()}
    return {"name": name, "title": words, "head": head, "rows": rows, "image": image, "audio": audio, "video": video,
            "files": files}  # fmt: skip


def png_of(frame: np.ndarray) -> bytes:
    """uint8 (height, width, 3) as a small PNG."""
    target, image = io.BytesIO(), Image.fromarray(frame)
    image.thumbnail((256, 256))
    image.save(target, format="PNG", optimize=True)
    return target.getvalue()


def wrong_answers(evaluation: Evaluation, items: BenchmarkItems, prefix: str, out: Path):
    """Cards of wrong answers, and why some cannot be shown: of each cell the first in the benchmark's order about a
    clip that is not shown yet, so that a rule chooses and no eye."""
    found, lacking, clips = [], [], set()
    for cell, task in CELL_TASKS.items():
        if task not in evaluation.tasks:
            continue
        answers = evaluation.answers(task)
        wrong = answers[(answers.value == 0) & (answers.missing == 0)]
        fresh = wrong[~wrong.clip_id.isin(clips)]
        for row in (wrong if fresh.empty else fresh)[:1].itertuples():
            clips.add(row.clip_id)
            item, response = items.rows[row.item_id], row.response or "(nothing)"
            lines = [
                ["question", item["question"]], ["options", ", ".join(row.options)], ["right", row.answer],
                ["chosen", "no option" if pd.isna(row.predicted) else f"✗ {row.predicted}"],
                ["response", response if len(response) <= MAX_LETTERS else f"{response[:MAX_LETTERS]}..."],
            ]  # fmt: skip
            try:
                name = f"{prefix}_{cell}"
                found.append(card_of(items, item, name, CELL_LABELS[cell], ["item", row.item_id], lines, out))
            except InputError as error:
                lacking.append(f"{row.item_id}: {error}")
    return found, lacking
