"""The scores of one model for the report: cells, breakdowns, controls, gains, valence and arousal, from its answers.

A task that was not run has no entry; nothing stands in for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..benchmark.controls import KINDS
from ..benchmark.intervals import accuracy_interval
from ..benchmark.prompts import options_of
from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from . import artemo
from .gains import modality_gains
from .plots import confusion
from .report import accuracy, modality_scores
from .results import CELLS, ModalityPredictions, Outcome
from .task_samples import Evaluation, Samples

FOLLOWS = ("follows_sight", "follows_sound", "neither", "unparsable", "missing")
# Name in the report -> task.
CELL_TASKS = {cell: f"artemo_{cell}" for cell in CELLS}
CONTROL_TASKS = {
    **{kind: {aspect: f"artemo_{aspect}_audio_{kind}" for aspect in ASPECTS} for kind in KINDS},
    "blind": {aspect: f"artemo_{aspect}_blind" for aspect in ASPECTS},
}
# Of these each question has a right answer and is asked once.
ASKED_ONCE = (*CELL_TASKS.values(), *(task for tasks in CONTROL_TASKS.values() for task in tasks.values()))
CIRCULAR_TASKS = {cell: f"artemo_{cell}_circular" for cell in CELLS}
VA_TASKS = {path: f"artemo_va_{path}" for path in MODALITIES}
CONFLICT_TASK = "artemo_conflict"
KNOWN_TASKS = {
    *ASKED_ONCE,
    *CIRCULAR_TASKS.values(),
    *VA_TASKS.values(),
    CONFLICT_TASK,
}  # fmt: skip
NO_ART_FORM = "not stated"


def outcomes_of(evaluation: Evaluation, task: str) -> list[Outcome]:
    """The answers to a multiple-choice task, item by item.

    Raises:
        InputError: the samples lack what the tasks of this release write.
    """
    found = []
    for item, rows in evaluation.tasks[task].rows.items():
        row = rows[0]
        try:
            labels = row["macro_f1"]
            found.append(
                Outcome(
                    item_id=item,
                    clip_id=row["ci95_low"]["clip_id"],
                    answer=labels["true"],
                    predicted=labels["predicted"],
                    correct=float(row["accuracy"]),
                    options=tuple(options_of(row["input"])),
                    missing=bool(row.get("missing", 0.0)),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{evaluation.path}: the sample of {task}, item {item!r}, lacks what the tasks write ({error!r}); "
                "evaluate again with this release."
            ) from error
    return found


def scores_of(evaluation: Evaluation, art_forms: Mapping[str, str | None] | None) -> dict[str, Any]:
    """All scores of one model; what `report.json` holds of it.

    Args:
        evaluation: the model's answers.
        art_forms: item id -> art form, or None where the benchmark's items are not at hand.

    Returns:
        "cells" (cell -> accuracy, ci95, ci_method, n, chance, unparsable, macro_f1, uar), "all" (the six cells pooled,
        or None), "gains" (aspect -> gain -> value, ci95), "gains_undefined" (aspect -> reason), "controls" (silence,
        noise, mismatch, blind -> aspect), "conflict", "circular", "va" (path), "by_art_form" (form -> cell; None
        without `art_forms`), "by_emotion" (emotion -> path), "confusion" (cell -> labels, columns, counts), "other"
        (the artemo tasks that this report does not know).
    """
    tasks = evaluation.tasks
    cells = {cell: outcomes_of(evaluation, task) for cell, task in CELL_TASKS.items() if task in tasks}
    gains, undefined = gains_of(cells)
    return {
        "cells": {cell: choice_scores(outcomes) for cell, outcomes in cells.items()},
        "all": accuracy([o for outcomes in cells.values() for o in outcomes]) if len(cells) == len(CELLS) else None,
        "gains": gains,
        "gains_undefined": undefined,
        "controls": {
            name: {aspect: accuracy(outcomes_of(evaluation, task)) for aspect, task in of.items() if task in tasks}
            for name, of in CONTROL_TASKS.items()
            if any(task in tasks for task in of.values())
        },
        "conflict": conflict_scores(tasks[CONFLICT_TASK]) if CONFLICT_TASK in tasks else None,
        "circular": {cell: circular_scores(tasks[t]) for cell, t in CIRCULAR_TASKS.items() if t in tasks},
        "va": {path: va_scores(tasks[task]) for path, task in VA_TASKS.items() if task in tasks},
        "by_art_form": None if art_forms is None else by_art_form(cells, art_forms),
        "by_emotion": by_emotion(cells),
        "confusion": {cell: confusion_of(outcomes) for cell, outcomes in cells.items()},
        "other": sorted(set(tasks) - KNOWN_TASKS),
    }


def choice_scores(outcomes: Sequence[Outcome]) -> dict:
    """`accuracy` of a cell with its macro-F1 and UAR."""
    labels = [{"predicted": outcome.predicted, "true": outcome.answer} for outcome in outcomes]
    return {**accuracy(outcomes), "macro_f1": artemo.macro_f1(labels), "uar": artemo.uar(labels)}


def gains_of(cells: Mapping[str, Sequence[Outcome]]) -> tuple[dict, dict]:
    """Audio gain, visual gain and synergy of each aspect whose three cells were run; see `gains.modality_gains`."""
    found, undefined = {}, {}
    for aspect in ASPECTS:
        names = {path: f"{aspect}_{path}" for path in MODALITIES}
        if all(name in cells for name in names.values()):
            pairs = {path: ([o.clip_id for o in cells[n]], [o.correct for o in cells[n]]) for path, n in names.items()}
            try:
                found[aspect] = modality_gains({"model": pairs})["model"]
            except ValueError as error:
                undefined[aspect] = str(error)
    return found, undefined


def conflict_scores(samples: Samples) -> dict:
    """The shares of `artemo_conflict`, each with its 95% interval; they sum to 1."""
    clips = list(samples.items.values())
    found: dict[str, Any] = {"n": len(clips)}
    for name in FOLLOWS:
        values = [float(rows[0].get(name, 0.0)) for rows in samples.rows.values()]
        found[name] = {"value": sum(values) / len(values), "ci95": list(accuracy_interval(clips, values)[1])}
    return found


def circular_scores(samples: Samples) -> dict:
    """Share of the items that are right under every rotation, and the accuracy of the single rotations.

    `chance` is 1 / n, that of a model without sight and hearing that says the same one of n options each time. One
    that draws a letter each time is right n times in a row with 1 / n^n only.
    """
    value, ci95 = samples.score()
    rows = [row for group in samples.rows.values() for row in group]
    return {
        "accuracy": value,
        "ci95": list(ci95),
        "n": len(samples.items),
        "chance": float(np.mean([1 / len(group) for group in samples.rows.values()])),
        "single": sum(row["accuracy"] for row in rows) / len(rows),
        "unparsable": samples.unparsable,
        "missing": missing_of(samples) / len(rows),
    }


def va_scores(samples: Samples) -> dict:
    """CCC with intervals, Pearson, RMSE, and the share of answers that state no two numbers. NaN below two answers."""
    values = list(samples.values.values())
    points = points_of(samples)
    found = {
        "n": len(values),
        "answered": len(points.clip_ids),
        "unparsable": samples.unparsable,
        "missing": missing_of(samples) / len(values),
        "ccc_ci95": list(artemo.va_interval(values)),
        **{name: artemo.va_score(name, values) for name in artemo.VA_METRICS},
    }
    if len(points.clip_ids) > 1:
        by_clip = modality_scores(points)
        found |= {key: value for key, value in by_clip.items() if key.endswith("_ci95")}
    return found


def missing_of(samples: Samples) -> int:
    """Questions that were not asked, since their media could not be read; older results state none."""
    return round(sum(row.get("missing", 0.0) for rows in samples.rows.values() for row in rows))


def points_of(samples: Samples) -> ModalityPredictions:
    """The points that the answers to an `artemo_va` task state, beside the true ones."""
    answered = [value for value in samples.values.values() if value["predicted"] is not None]
    predicted, true = artemo.pooled(answered)
    clips = tuple(value["clip_id"] for value in answered)
    return ModalityPredictions(clips, predicted[:, 0], predicted[:, 1], true[:, 0], true[:, 1])


def by_art_form(cells: Mapping[str, Sequence[Outcome]], art_forms: Mapping[str, str | None]) -> dict:
    """Accuracy of each cell for each art form, in alphabetical order."""
    found: dict[str, dict] = {}
    for cell, outcomes in cells.items():
        for form, group in _grouped(outcomes, [art_forms.get(o.item_id) or NO_ART_FORM for o in outcomes]).items():
            found.setdefault(form, {})[cell] = accuracy(group)
    return dict(sorted(found.items()))


def by_emotion(cells: Mapping[str, Sequence[Outcome]]) -> dict:
    """Accuracy of each path for each emotion that is a right answer (its recall), in alphabetical order."""
    found: dict[str, dict] = {}
    for path in MODALITIES:
        outcomes = cells.get(f"emotion_{path}", ())
        for emotion, group in _grouped(outcomes, [outcome.answer for outcome in outcomes]).items():
            found.setdefault(emotion, {})[path] = accuracy(group)
    return dict(sorted(found.items()))


def _grouped(outcomes: Iterable[Outcome], names: Iterable[str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome, name in zip(outcomes, names, strict=True):
        groups.setdefault(name, []).append(outcome)
    return groups


def confusion_of(outcomes: Sequence[Outcome]) -> dict:
    """Counts of (true label, chosen option), without the questions that were not asked.

    A column "no option" behind those of the labels are the answers that name none.
    """
    labels, columns, counts = confusion(outcome for outcome in outcomes if not outcome.missing)
    return {"labels": labels, "columns": columns, "counts": counts.tolist()}
