"""The parts of the report about models that show single answers: the plane, confusion matrices, wrong answers."""

import math
from collections.abc import Mapping
from typing import Any

from ..model.configuration_vaemotionllm import MODALITIES
from . import plots
from .benchmark_rows import BenchmarkRows
from .failures import failures_of
from .figures import Figure, make_figure, most_frequent_mistake
from .leaderboard_scores import CELL_TASKS, VA_TASKS, outcomes_of, points_of
from .leaderboard_words import CELL_WORDS, NOT_RUN
from .report_blocks import Block, Cell, Failures, Heading, Pictures, Table, Text
from .report_words import MODALITY_WORDS, small_share, two
from .results import CELLS
from .task_samples import Evaluation

# A larger matrix cannot be read; `report.json` holds it.
MOST_LABELS = 20
# A bootstrap over fewer answers says little about other clips; `report.json` holds those intervals.
FEWEST = 10
VA_NOTE = (
    "Two numbers that the answer states. CCC (concordance correlation), Pearson correlation and RMSE (root of the "
    "mean squared error) are pooled over the answers that state both; read them beside the share that does not. "
    f"Intervals are left out below {FEWEST} answers."
)
CONFUSION_NOTE = (
    "Rows are right answers, columns chosen options, numbers questions; the shade is the share of the row. A label "
    "can be chosen only where the question offers it."
)
FAILURES_NOTE = (
    "Of each cell the first wrong answer in the benchmark's order about a clip that is not shown yet; where all are, "
    "the first."
)


def valence_arousal(entries: Mapping[str, dict], models: Mapping[str, Evaluation]) -> list[Block]:
    found: list[Block] = [Heading("Valence and arousal")]
    if not any(entry["va"] for entry in entries.values()):
        return [*found, Text("Not run.")]
    rows: list[list[Cell]] = []
    for label, entry in entries.items():
        for path in MODALITIES:
            of = entry["va"].get(path)
            name = f"{label}, {MODALITY_WORDS[path]}"
            rows.append([name, *va_cells(of)] if of else [name, *[NOT_RUN] * 8])
    head = ["", "CCC", *(f"{m} {d}" for d in ("valence", "arousal") for m in ("CCC", "Pearson", "RMSE")), "unparsable"]
    found += [Table(head, rows), Text(VA_NOTE, "small")]
    for number, (label, evaluation) in enumerate(models.items(), 1):
        # With both senses where that was asked: the plane of each path would say little more.
        answered = [path for path in MODALITIES if entries[label]["va"].get(path, {}).get("answered", 0) > 1]
        if answered:
            found += [
                *([Heading(label, 3)] if len(models) > 1 else []),
                Pictures([plane(number, label, answered[-1], evaluation, entries[label])]),
            ]
        elif entries[label]["va"]:
            found.append(Text(f"{label}: no plane, since fewer than two answers state both numbers."))
    return found


def va_cells(of: dict) -> list[Cell]:
    def number(name: str) -> Cell:
        if math.isnan(of[name]):
            return "not defined"
        interval = of.get(f"{name}_ci95")
        # The CCC of a dimension has its interval under the name of the dimension.
        if name.startswith("ccc_"):
            interval = of.get(f"{name.removeprefix('ccc_')}_ccc_ci95")
        if of["answered"] < FEWEST or interval is None or any(math.isnan(end) for end in interval):
            return two(of[name])
        return two(of[name]), f"[{two(interval[0])}, {two(interval[1])}]"

    missing = f"missing: {small_share(of['missing'])}" if of["missing"] else ""
    answered = f"{of['answered']} of {of['n']} answered"
    names = [f"{metric}_{dimension}" for dimension in ("valence", "arousal") for metric in ("ccc", "pearson", "rmse")]
    return [number("ccc"), *map(number, names), (small_share(of["unparsable"]), answered, missing)]


def plane(number: int, label: str, path: str, evaluation: Evaluation, entry: dict) -> Figure:
    of, task = entry["va"][path], f"artemo_emotion_{path}"
    outcomes = outcomes_of(evaluation, task) if task in evaluation.tasks else []
    scores: dict[str, Any] = {
        **{f"{name}_ccc": of[f"ccc_{name}"] for name in ("valence", "arousal")},
        **{f"{name}_ccc_ci95": of[f"{name}_ccc_ci95"] for name in ("valence", "arousal")},
    }
    return make_figure(
        f"plane_{number}",
        f"Valence and arousal, stated against true, {label}",
        lambda c: plots.draw_plane(points_of(evaluation.tasks[VA_TASKS[path]]), outcomes, scores, c),
        f"{label} by {MODALITY_WORDS[path]}, {of['answered']} of {of['n']} clips. Left: each line leads from the true "
        "point (ring) to the stated one (dot). Middle and right: stated against true; on the diagonal they agree.",
        f"valence CCC {two(scores['valence_ccc'])}, arousal CCC {two(scores['arousal_ccc'])}",
        entry["pins"]["command"] or "",
    )


def mistakes(entries: Mapping[str, dict], models: Mapping[str, Evaluation]) -> list[Block]:
    found: list[Block] = [Heading("What is taken for what"), Text(CONFUSION_NOTE, "small")]
    for number, (label, evaluation) in enumerate(models.items(), 1):
        figures, wide = [], []
        for cell in sorted(entries[label]["cells"], key=lambda cell: (cell.startswith("content"), CELLS.index(cell))):
            labels = entries[label]["confusion"][cell]["labels"]
            if not labels:
                continue
            if len(labels) > MOST_LABELS:
                wide.append(CELL_WORDS[cell])
            else:
                figures.append(confusion(number, label, cell, evaluation, entries[label]))
        if len(models) > 1:
            found.append(Heading(label, 3))
        if figures:
            found.append(Pictures(figures))
        if wide:
            found.append(Text(f"More than {MOST_LABELS} labels, so only in report.json: {'; '.join(wide)}.", "small"))
        if not figures and not wide:
            found.append(Text("Not run."))
    return found


def confusion(number: int, label: str, cell: str, evaluation: Evaluation, entry: dict) -> Figure:
    outcomes = [outcome for outcome in outcomes_of(evaluation, CELL_TASKS[cell]) if not outcome.missing]
    return make_figure(
        f"confusion_{number}_{cell}",
        f"{CELL_WORDS[cell]}, {label}",
        lambda c: plots.draw_confusion(outcomes, cell.split("_")[1], c),
        f"{label}: {CELL_WORDS[cell]}.",
        most_frequent_mistake(outcomes),
        entry["pins"]["command"] or "",
    )


def examples(report: dict, models: Mapping[str, Evaluation], rows: BenchmarkRows | None) -> list[Block]:
    found: list[Block] = [Heading("Examples of wrong answers")]
    if rows is None:
        return [*found, Text(f"Left out, since the media are not at hand: {report['benchmark_missing']}.")]
    found.append(Text(FAILURES_NOTE, "small"))
    for number, (label, evaluation) in enumerate(models.items(), 1):
        if len(models) > 1:
            found.append(Heading(label, 3))
        failures, lacking = failures_of(evaluation, rows, f"wrong_{number}")
        if failures:
            found.append(Failures(failures))
        if lacking:
            found.append(
                Text(
                    f"{len(lacking)} left out, since their media cannot be read; the first is "
                    f"{lacking[0].rstrip('.')}.",
                    "note",
                )
            )
        if not failures and not lacking:
            right = any(task in evaluation.tasks for task in CELL_TASKS.values())
            found.append(Text("No wrong answer in the cells that were run." if right else "No cell was run."))
    return found
