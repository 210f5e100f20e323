"""The report: one page of tables, figures and examples about one or many models, as Markdown and HTML.

`score_parts` reads the table of scores (see `scores.py`) alone, so it serves models beside each other, the stages of a
demo, means over seeds and the variants of an ablation; `templates/report.jinja` orders and explains all parts. Models
stand beside each other only where they were given the same items. Where these are of another revision of the data,
with other prompts or other decoding, the report says so above its first table.
"""

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..benchmark.schema import ASPECTS
from ..model.media import load_audio, load_video
from ..model.media_images import load_image
from ..utils import InputError, atomic_file, reported_writing, write_json
from . import plots, results
from .plots import MODALITY_LABELS
from .results import DIMENSIONS, BenchmarkItems, Evaluation
from .scores import (
    CELL_TASKS,
    FOLLOWS,
    GAINS,
    KEYS,
    TASK_KEYS,
    VA_TASKS,
    models_scores,
    pick,
    refuse_other_items,
    rows_of,
    table_of,
)

FORMAT = 2
INTERVALS = (
    "Brackets are 95% intervals: Wilson's for an accuracy with one question a clip, else a bootstrap that draws whole "
    "clips (10,000 draws), the same ones for both sides of a difference. They cover the choice of clips, not the "
    "training seed. A difference stands in bold where its interval leaves 0 out."
)
SEED_INTERVALS = (
    "Means over training seeds. Brackets are 95% intervals of the mean over the seeds (Student's t): each seed has "
    "its own clips, backbone and training. A difference stands in bold where its interval leaves 0 out; intervals are "
    "not widened for the number of cells: of twenty without any effect one is expected in bold."
)
NOT_RUN, NOT_DEFINED = "not run", "not defined"
AUDIO_LABELS = {"": "own audio", "silence": "silence", "noise": "noise", "mismatch": "mismatched audio",
                "blind": "question alone"}  # fmt: skip
FOLLOW_LABELS = dict(zip(FOLLOWS, ("follows visual", "follows audio", "another option", "no option", "missing")))
# Measures that are no share, and differences.
PLAIN = ("ccc", "pearson", "rmse", "auroc", "macro_f1", "uar")
DIFFERENCES = ("_gain", "synergy", "visual_change", "_minus_first", "_full_minus")
# Of examples: rate and length of audio in the page, bytes of a video that is put into it, letters of an answer.
RATE_HZ, MAX_S, MAX_VIDEO_BYTES, MAX_LETTERS = 16_000, 10.0, 1 << 20, 160
PLAYABLE = {".mp4": "video/mp4", ".webm": "video/webm"}
TEMPLATES = Path(__file__).parent / "templates"
# Where these settings differ, scores do not compare.
COMPARED = ("benchmark", "version", "benchmark_sha256", "scoring", "system_instruction",
            "chat_template_sha", "num_fewshot", "num_frames", "sampling_rate_hz", "max_audio_s",
            "use_adapter")  # fmt: skip
# A larger matrix cannot be read; `report.json` holds it.
MOST_LABELS = 20


# ---- the page


@dataclass(frozen=True)
class Figure:
    """A figure, or an example that can be played.

    Args:
        name: of its file.
        caption: what it shows, also for those who cannot see it.
        png: None where there is nothing to look at.
        command: the commands that gave its data, one a line.
        table: below it.
        audio: a WAV file.
        video: its type and the file; `png` is a frame of it.
        files: kind -> file beside the report.
    """

    name: str
    caption: str
    png: bytes | None
    command: str = ""
    table: pd.DataFrame | None = None
    audio: bytes | None = None
    video: tuple[str, bytes] | None = None
    files: dict[str, str] = field(default_factory=dict)


# Name in `templates/report.jinja` -> a table of strings, whose further lines in a cell stand smaller, or figures.
Parts = dict[str, pd.DataFrame | list[Figure]]


def write(out: Path, stem: str, report: Mapping[str, Any], parts: Parts, **words: Any) -> list[Path]:
    """Write `STEM.json`, `STEM.md` with its figures, and `STEM.html`, which needs no other file, into a folder.

    Args:
        out: the folder, made if need be.
        stem: of the files' names.
        report: what `STEM.json` holds.
        parts, words: see `rendered`.

    Raises:
        InputError: the folder cannot be written.
    """
    texts = {out / f"{stem}.{kind}": rendered(kind, parts, **words) for kind in ("md", "html")}
    figures = [figure for part in parts.values() if isinstance(part, list) for figure in part if figure.png]
    with reported_writing(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for figure in figures:
            with atomic_file(out / "figures" / f"{figure.name}.png") as temporary:
                temporary.write_bytes(figure.png)
        write_json(out / f"{stem}.json", report)
    return [*texts, out / f"{stem}.json"]


def rendered(kind: str, parts: Parts, **words: Any) -> str:
    """Text of a report of a kind, "md" or "html".

    Args:
        parts: the tables and figures; empty ones are left out.
        words: "title", and of "notes", "intervals", "checks_note" and "commands" those that there are.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=kind == "html")
    environment.filters["code"] = lambda lines: "\n".join(f"    {line}" for line in lines.splitlines())
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    if kind == "md":
        environment.filters["e"] = escaped
    else:
        environment.finalize = lambda value: printable(value) if type(value) in (str, Bold) else value
    there = {name: part for name, part in parts.items() if len(part)}
    return environment.get_template("report.jinja").render(kind=kind, parts=there, **words)


class Bold(str):
    """The text of a cell that stands out."""

    bold = True


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


def number(value: float, measure: str = "accuracy") -> str:
    """A score as its measure is written: a share in percent, a difference of shares in points."""
    if measure == "ccc_minus_first":  # adding 0.0 makes 0.0 of -0.0
        return f"{round(value, 2) + 0.0:+.2f}"
    if measure.endswith(DIFFERENCES):
        return f"{round(100 * value, 1) + 0.0:+.1f}"
    if measure.endswith(PLAIN):
        return f"{round(value, 2) + 0.0:.2f}"
    return "<0.1%" if 0 < value < 0.0005 else f"{100 * value:.1f}%"  # what is not 0 is never printed as if it were


def interval(low: float, high: float, measure: str = "accuracy") -> str:
    """Such as "[81.2, 90.1]"; "" where there is none, or both ends are one: then nothing varied that could tell."""
    if not (math.isfinite(low) and math.isfinite(high)) or math.isclose(low, high, abs_tol=1e-9):
        return ""
    return f"[{number(low, measure)}, {number(high, measure)}]".replace("%", "")


def shown(row: pd.Series | None) -> str:
    """A cell of a score: its value, below it its interval and what belongs to it; bold where a difference is real."""
    if row is None:
        return NOT_RUN
    if math.isnan(row["value"]):
        return f"{NOT_DEFINED}: {row['note']}" if isinstance(row["note"], str) else NOT_DEFINED
    lines = [number(row["value"], row["measure"]), interval(row["low"], row["high"], row["measure"])]
    lines += [f"{name}: {number(row[name])}" for name in ("single", "unparsable", "missing") if row[name] > 0]
    if row["group"]:
        lines.append(f"of {row['n']:.0f}")
    if row["answered"] >= 0:
        lines.append(f"answered: {row['answered']:.0f} of {row['n']:.0f}")
    text = "\n".join(line for line in lines if line)
    return Bold(text) if row["measure"].endswith(DIFFERENCES) and (row["low"] > 0 or row["high"] < 0) else text


def grid(scores: pd.DataFrame, columns: Mapping[str, Mapping[str, str]], corner: str = "",
         by: Sequence[str] = ("model",), references: Mapping[str, str] | None = None) -> pd.DataFrame:  # fmt: skip
    """A table of scores, without the rows and columns of which nothing was run.

    Args:
        scores: the table of scores.
        columns: head -> what the scores of a column are, see `pick`.
        corner: the head of the rows.
        by: columns of `scores` whose values make the rows.
        references: further rows, such as {"chance": "chance"}: name -> a column of `scores`, the same for all models.
    """
    labels, found = [], []
    for values in dict.fromkeys(zip(*(scores[name] for name in by))):
        row = [pick(scores, **{**keys, **dict(zip(by, values))}) for keys in columns.values()]
        if any(score is not None for score in row):
            rest = [MODALITY_LABELS.get(of, of.partition(": ")[2].replace("_", " ")) for of in values[1:]]
            labels.append(", ".join([values[0], *rest]))
            found.append(row)
    cells = [[shown(score) for score in row] for row in found]
    for label, name in (references or {}).items():
        same = [[row[name] for row in column if row is not None and row[name] >= 0] for column in zip(*found)]
        labels.append(label)
        cells.append([(f"{of[0]:.0f}" if name == "n" else number(of[0])) if of else "" for of in same])
    frame = pd.DataFrame(cells if found else [], labels if found else [], list(columns), dtype=object)
    return frame.loc[:, (frame.iloc[: len(found)] != NOT_RUN).any()].rename_axis(corner)


def columns_of(measure: str) -> dict[str, dict[str, str]]:
    """The six cells as columns of a `grid`."""
    return {
        f"{aspect}, {label}": {"measure": measure, "aspect": aspect, "modality": modality}
        for aspect in ASPECTS
        for modality, label in MODALITY_LABELS.items()
    }


def accuracy_table(scores: pd.DataFrame, references: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Accuracy of the six cells, and of all together where a model ran all."""
    all_six = {"measure": "accuracy", "aspect": "all", "modality": "all"}
    return grid(scores, {"all six": all_six, **columns_of("accuracy")}, "accuracy", references=references)


def terminal_table(scores: pd.DataFrame) -> str:
    """Accuracies with their intervals for a terminal of 80 columns: a row a cell, models beside each other."""
    table = accuracy_table(scores).map(lambda cell: " ".join(cell.split("\n")[:2]))
    table.columns = table.columns.str.replace("audio-visual", "av")
    return table.rename(index=plots.short_name).T.to_string(line_width=80)


# ---- the parts that the table of scores gives


def score_parts(scores: pd.DataFrame, commands: str = "", questions: bool = True) -> Parts:
    """Tables and figures of all that the table of scores holds.

    Args:
        scores: the table.
        commands: that gave it, one a line.
        questions: whether `n` counts questions, and not seeds.
    """
    chance = {"chance": "chance"}
    parts: Parts = {
        "accuracy": accuracy_table(scores, chance | ({"questions": "n"} if questions else {})),
        "macro_f1": grid(scores, columns_of("macro_f1"), "macro-F1"),
        "uar": grid(scores, columns_of("uar"), "mean recall (UAR)"),
        "circular": grid(scores, columns_of("circular_accuracy"), references={"the same option each time": "chance"}),
    }
    differences = columns_of("accuracy_minus_first")
    for modality, label in MODALITY_LABELS.items():
        differences[f"CCC, {label}"] = {"measure": "ccc_minus_first", "modality": modality, "condition": "stated"}
    parts["differences"] = grid(scores, differences, "minus the first")
    gains = {f"{a}: {gain.replace('_', ' ')}": {"measure": gain, "aspect": a} for a in ASPECTS for gain in GAINS}
    parts["gains"] = grid(scores, gains)
    for aspect in ASPECTS:
        ways = {}
        for way, label in AUDIO_LABELS.items():
            key = {"aspect": aspect, "modality": "" if way == "blind" else "audio", "condition": way}
            ways[label] = {"measure": "accuracy", **key}
        parts[f"controls_{aspect}"] = grid(scores, ways, f"{aspect} by", references=chance)
    for kind in ("art_form", "emotion"):
        groups = scores[scores.group.str.startswith(f"{kind}: ")]
        parts[kind] = grid(groups, columns_of("accuracy"), by=("model", "group"))
    parts["conflict"] = conditional(scores, "conflict", FOLLOW_LABELS)
    level, by = scores.level.max(), ("model", "modality")
    coverage = {f"{name}_coverage": f"{100 * level:.0f}% interval of {name}" for name in DIMENSIONS}
    va = {f"{name}_{m}": f"{name} {m.upper()}" for name in DIMENSIONS for m in ("ccc", "pearson", "rmse")}
    parts["supervisor"] = conditional(scores, "supervisor", va, by)
    parts["stated"] = conditional(scores, "stated", {"ccc": "CCC", **va}, by)
    parts["calibration"] = conditional(scores, "supervisor", {"label_accuracy": "label", "ece": "ECE", **coverage}, by)
    parts["auroc"] = conditional(scores, "supervisor", {"auroc": "AUROC of the conflict score"})
    own = (scores.measure == "accuracy") & (scores.condition == "") & (scores.group == "")
    cells = scores[own & scores.aspect.isin(ASPECTS)]
    if len(cells):
        caption = "Accuracy from audio, from image or video, and from both, with 95% intervals. Ticks: chance."
        drawn = plots.draw_rows(cells, "aspect", "model", "modality")
        parts["figure_accuracy"] = [figure("accuracy", drawn, caption, commands)]
    return parts


def conditional(scores: pd.DataFrame, condition: str, heads: Mapping[str, str],
                by: Sequence[str] = ("model",)) -> pd.DataFrame:  # fmt: skip
    """The scores under a condition; `heads` is measure -> head of its column."""
    columns = {head: {"measure": measure, "condition": condition} for measure, head in heads.items()}
    return grid(scores[scores.condition == condition], columns, by=by)


def figure(name: str, drawn: Any, caption: str, command: str = "") -> Figure:
    """A figure of the report of what a `plots.draw_*` returned."""
    return Figure(name, caption, plots.png_of(drawn), command)


def va_figure(name: str, model: str, modality: str, points: pd.DataFrame, scores: pd.DataFrame, condition: str,
              command: str = "") -> Figure:  # fmt: skip
    """Predicted against true valence and arousal of a model, with the CCC of the table of scores."""
    keys = {"model": model, "modality": modality, "condition": condition}
    found = {d: shown(pick(scores, measure=f"{d}_ccc", **keys)).replace("\n", " ") for d in DIMENSIONS}
    caption = (
        f"{model}, {MODALITY_LABELS[modality]}, {len(points)} clips. Left: each line leads from the true point (ring) "
        "to the predicted one (dot). Middle and right: predicted against true; on the diagonal they agree."
    )
    return figure(name, plots.draw_valence_arousal(points, found), caption, command)


# ---- examples


def example(items: BenchmarkItems, item: Mapping[str, Any], name: str, caption: str, table: pd.DataFrame,
            out: Path) -> Figure:  # fmt: skip
    """The media of an item, playable in the page and linked in Markdown, with a small table.

    Args:
        items: the benchmark.
        item: one of its rows.
        name, caption, table: see `Figure`.
        out: the report's folder.

    Where a file is missing or cannot be decoded, the caption says so and nothing is played.
    """
    paths = {kind: items.folder / item[kind] for kind in ("video", "image", "audio") if item.get(kind)}
    png = audio = video = None
    try:
        if "video" in paths or "image" in paths:
            # uint8 (height, width, 3)
            frame = load_video(paths["video"], num_frames=3)[0][1] if "video" in paths else load_image(paths["image"])
            target, image = io.BytesIO(), Image.fromarray(np.asarray(frame))
            image.thumbnail((256, 256))
            image.save(target, format="PNG", optimize=True)
            png = target.getvalue()
        if "audio" in paths:
            waveform = load_audio(paths["audio"], sampling_rate=RATE_HZ)[: int(MAX_S * RATE_HZ)]
            target = io.BytesIO()
            soundfile.write(target, np.clip(waveform, -1, 1), RATE_HZ, format="WAV", subtype="PCM_16")
            audio = target.getvalue()
        kind = PLAYABLE.get(paths["video"].suffix.lower()) if "video" in paths else None
        if kind and paths["video"].stat().st_size <= MAX_VIDEO_BYTES:
            video = kind, paths["video"].read_bytes()
    except InputError as error:
        caption = f"{caption}: {error}"
    files = {kind: Path(os.path.relpath(path, out)).as_posix() for kind, path in paths.items() if path.is_file()}
    return Figure(name, caption, png, table=table, audio=audio, video=video, files=files)


def wrong_answers(label: str, evaluation: Evaluation, items: BenchmarkItems, prefix: str, out: Path) -> list[Figure]:
    """Examples: of each cell the first wrong answer in the benchmark's order, so that a rule chooses and no eye."""
    found = []
    for cell, task in CELL_TASKS.items():
        answers = evaluation.tasks[task].rows if task in evaluation.tasks else table_of([])
        for row in answers[(answers.value == 0) & (answers.missing == 0)][:1].itertuples():
            item = items.rows[row.item_id]
            table = {
                "question": item["question"], "options": ", ".join(row.options), "right": row.answer,
                "chosen": plots.NO_OPTION if row.predicted is None else f"✗ {row.predicted}",
                "response": shorten(row.response, MAX_LETTERS, placeholder="...") or "(nothing)",
            }  # fmt: skip
            frame = pd.DataFrame({row.item_id: table}, dtype=object).rename_axis("item")
            caption = f"{label}: {cell.replace('_', ', ')}"
            found.append(example(items, item, f"{prefix}_{cell}", caption, frame, out))
    return found


# ---- models beside each other


def read_models(paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Evaluation]:
    """The evaluations by the names of their models.

    Args:
        paths: folders that `lmms-eval --output_path` was given, or `*_results.json` files in them.
        names: one a path; else what the results files call the models, as short as tells them apart.

    Raises:
        InputError: see `read_evaluation`; two names are equal, or their number is another; the models were given other
            items.
    """
    if names is not None and len(names) != len(paths):
        raise InputError(f"--names has {len(names)} names for {len(paths)} results; give one for each, in order.")
    evaluations = [results.read_evaluation(path) for path in paths]
    if names is None:
        names = [str(of.runs[of.path].get("model_name") or of.model) for of in evaluations]
        short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
        names = short if len(set(short)) == len(short) else names
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"several results are of a model called {twice[0]!r}; name each by --names.")
    for index, other in enumerate(evaluations):
        for first in evaluations[:index]:
            refuse_other_items(first, other)
    return dict(zip(names, evaluations, strict=True))


def warnings_about(models: Mapping[str, Evaluation], about: Mapping[str, dict]) -> list[str]:
    """What a reader must know before the first score."""
    found = list(dict.fromkeys(n for e in models.values() if (n := results.metadata_of(e).get("notice"))))
    for name in COMPARED:
        stated = {label: of["settings"][name] for label, of in about.items()}
        stated = {label: str(value)[: plots.LONGEST_NAME] for label, value in stated.items() if value is not None}
        if len(set(stated.values())) > 1:
            each = ", ".join(f"{label} {value}" for label, value in stated.items())
            found.append(f"The models differ in {name.replace('_', ' ')}, so their scores do not compare: {each}.")
    for name, words in (("prompt_sha256", "prompts"), ("generation", "decoding")):
        odd = []
        for task in TASK_KEYS:
            values = [of["tasks"][task][name] for of in about.values() if task in of["tasks"]]
            odd += [task] if any(value != values[0] for value in values) else []
        if odd:
            found.append(f"The models were given other {words} in {', '.join(odd)}.")
    for label, evaluation in models.items():
        if unknown := about[label]["unknown_tasks"]:
            found.append(f"Tasks of {label} that this report does not know: {', '.join(unknown)}.")
        if missing := evaluation.missing:
            found.append(f'{missing} questions were not put to {label}, since their media could not be read: they are '
                         '"missing" and count as not right.')  # fmt: skip
        tasks = about[label]["tasks"].items()
        if cut := [f"{of['documents']} in {task}" for task, of in tasks if of["documents"] < of["documents_of_task"]]:
            found.append(f"{label} answered a part of the questions only (--limit): {', '.join(cut)}.")
    return found


def write_models(models: Mapping[str, Evaluation], out: Path, benchmark: str | None = None) -> dict[str, Any]:
    """Write the report about models into a folder; see `write`.

    Args:
        models: label -> evaluation, see `read_models`.
        out: the folder, made if need be.
        benchmark: where the benchmark is, see `results.find_items`.

    Returns:
        What `report.json` holds: "scores" (the table, see `scores.py`), "models" (label -> settings, command and
        tasks), "warnings", "confusion", and "benchmark_missing", why examples and art forms are left out, or None.

    Raises:
        InputError: `benchmark` is another one, matplotlib is not installed, or the folder cannot be written.
    """
    plots.require_matplotlib()
    items, reason = results.find_items(list(models.values()), benchmark)
    scores = models_scores(models, items and {name: item.get("art_form") for name, item in items.rows.items()})
    about = {
        label: {
            "settings": results.settings_of(of), "command": results.command_of(of),
            "tasks": {task: results.task_settings(samples) for task, samples in of.tasks.items()},
            "unknown_tasks": sorted(of.tasks.keys() - TASK_KEYS.keys()),
        }
        for label, of in models.items()
    }  # fmt: skip
    best = scores[(scores.measure == "accuracy") & (scores.aspect == "all")].set_index("model").value
    scores = scores.sort_values("model", key=lambda of: -of.map(best).fillna(-1), kind="stable")
    warnings = warnings_about(models, about)
    notes = list(warnings)
    if items is None:
        notes.append(f"Without the benchmark there are no art forms and examples; name it by --benchmark: {reason}.")
    report: dict[str, Any] = {
        "format": FORMAT, "kind": "models", "intervals": INTERVALS, "warnings": warnings, "models": about,
        "scores": rows_of(scores), "benchmark_missing": None if items else reason, "confusion": {},
    }  # fmt: skip
    commands = "\n".join(of["command"] or f"# {label}: the command is not stated" for label, of in about.items())
    parts = score_parts(scores, commands)
    parts["settings"] = settings_table({label: of["settings"] for label, of in about.items()})
    drawn, matrices, wrong = [], [], []
    for index, (label, evaluation) in enumerate(models.items(), 1):
        report["confusion"][label] = {}
        answers = {cell: evaluation.tasks[t].rows for cell, t in CELL_TASKS.items() if t in evaluation.tasks}
        for cell, rows in answers.items():
            put, (aspect, modality) = rows[rows.missing == 0], cell.split("_")
            counts = plots.confusion(put)
            report["confusion"][label][cell] = counts.to_dict("split")
            if 0 < len(counts) <= MOST_LABELS:
                words = f"{label}: {aspect}, {MODALITY_LABELS[modality]}"
                matrices.append(figure(f"confusion_{index}_{cell}", plots.draw_confusion(counts, modality), words))
        if items is not None:
            wrong += wrong_answers(label, evaluation, items, f"wrong_{index}", out)
        stated = [m for m, t in VA_TASKS.items() if t in evaluation.tasks and len(evaluation.tasks[t].points) > 1]
        for modality in stated[-1:]:  # the richest one
            points, name = evaluation.tasks[VA_TASKS[modality]].points, f"valence_arousal_{index}"
            drawn.append(va_figure(name, label, modality, points, scores, "stated"))
    parts |= {"figure_stated": drawn, "figure_confusion": matrices, "wrong": wrong}
    settings = about[next(iter(models))]["settings"]
    title = f"{settings['benchmark']}, version {settings['version']}"
    write(out, "report", report, parts, title=title, notes=notes, intervals=INTERVALS, commands=commands)
    return report


def settings_table(columns: Mapping[str, Mapping[str, Any]], corner: str = "") -> pd.DataFrame:
    """A table of settings, such as versions: head -> name -> value."""
    frame = pd.DataFrame(columns, dtype=object).rename(index=lambda name: name.replace("_", " "))
    return frame.map(lambda value: "not stated" if pd.isna(value) or value == "" else str(value)).rename_axis(corner)


def comparison_text(result: Mapping[str, Any]) -> str:
    """What `scores.compare` returned as lines for a terminal."""
    sides = {side.upper(): result[side] for side in "ab"}
    lines = [f"{side}: {of['path']} ({of['model']}), {of['missing']} answers missing" for side, of in sides.items()]
    lines.append(
        f"Benchmark: {result['benchmark']['name']}, version {result['benchmark']['version']}. In brackets 95% "
        "intervals; those of the differences draw whole clips. Audio gain: av minus visual. Visual gain: av minus "
        "audio. Synergy: av minus the better of both.\n"
    )
    scores = table_of(result["scores"])
    rows = {}
    for values in dict.fromkeys(zip(*(scores[name] for name in KEYS[1:]))):
        keys = dict(zip(KEYS[1:], values))
        if not keys["group"] and not keys["measure"].endswith("_minus_first"):
            found = [pick(scores, model=side, **keys) for side in "AB"]
            found.append(pick(scores, model="B", **{**keys, "measure": f"{keys['measure']}_minus_first"}))
            name = " ".join(filter(None, values)).replace("_", " ")
            rows[name] = ["" if row is None else shown(row).replace("\n", " ") for row in found]
    lines.append(pd.DataFrame.from_dict(rows, "index", columns=["A", "B", "B - A"]).to_string())
    lines += [f"Only in {side.upper()}: {', '.join(result[f'only_in_{side}']) or 'nothing'}" for side in "ab"]
    return "\n".join(lines)
