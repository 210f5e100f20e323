"""Scores of models as one table: accuracies, gains, controls, valence and arousal, calibration; and two compared.

Every score is a row: `model`, `measure`, `aspect`, `modality`, `condition` and `group` say what it is, `value`, `low`
and `high` what it is worth with its 95% interval (see `benchmark/intervals.py`), `n` over how many items. What was not
run has no row.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark import intervals, metrics
from ..benchmark.controls import KINDS
from ..benchmark.schema import ASPECTS
from ..model.inputs import MODALITIES
from ..utils import InputError, read_json
from .results import DIMENSIONS, Cell, Evaluation, Samples, mean_ccc, points_of, read_emotion, read_evaluation

GAINS = ("audio_gain", "visual_gain", "synergy")
UNANSWERED = ["unparsable", "missing"]
FOLLOWS = ("follows_sight", "follows_sound", "neither", *UNANSWERED)
CELLS = tuple(f"{aspect}_{modality}" for aspect in ASPECTS for modality in MODALITIES)
CELL_TASKS = {cell: f"artemo_{cell}" for cell in CELLS}
CONTROL_TASKS = {
    **{kind: {aspect: f"artemo_{aspect}_audio_{kind}" for aspect in ASPECTS} for kind in KINDS},
    "blind": {aspect: f"artemo_{aspect}_blind" for aspect in ASPECTS},
}
VA_TASKS = {modality: f"artemo_va_{modality}" for modality in MODALITIES}
CONFLICT_TASK = "artemo_conflict"
# Task -> what its scores are about.
TASK_KEYS: dict[str, dict[str, str]] = {
    **{f"artemo_{a}_{m}": {"aspect": a, "modality": m} for a in ASPECTS for m in MODALITIES},
    **{
        CONTROL_TASKS[kind][a]: {"aspect": a, "modality": "" if kind == "blind" else "audio", "condition": kind}
        for kind in CONTROL_TASKS
        for a in ASPECTS
    },
    CONFLICT_TASK: {"condition": "conflict"},
    **{f"artemo_{a}_{m}_circular": {"aspect": a, "modality": m} for a in ASPECTS for m in MODALITIES},
    **{task: {"modality": m, "condition": "stated"} for m, task in VA_TASKS.items()},
}
REMEDY = "Evaluate both with the same benchmark and without --limit."
# What a row of the table of scores is about; "" where it says nothing.
KEYS = ["model", "measure", "aspect", "modality", "condition", "group"]
NUMBERS = ["value", "low", "high", "n", "chance", "unparsable", "missing", "single", "answered", "level"]


# ---- the table


def table_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of scores, see the module's docstring, of rows that may leave columns out."""
    frame = pd.DataFrame(list(rows)).reindex(columns=[*KEYS, *NUMBERS, "method", "note"])
    frame[NUMBERS] = frame[NUMBERS].astype(float)
    return frame.fillna(dict.fromkeys(KEYS, ""))


def rows_of(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each without the columns that say nothing: what `report.json` holds."""
    records = scores.to_dict("records")
    return [{name: value for name, value in row.items() if value != "" and not pd.isna(value)} for row in records]


def pick(scores: pd.DataFrame, **keys: str) -> pd.Series | None:
    """The one row with these keys, and "" for those that are not given; None where there is none."""
    keys = dict.fromkeys(KEYS[2:], "") | keys
    found = scores[np.logical_and.reduce([scores[name] == value for name, value in keys.items()])]
    assert len(found) < 2, keys
    return found.iloc[0] if len(found) else None


def over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The table of means over seeds: `value` with Student's t interval over the tables, `n` how many they are.

    A score that one of them lacks or does not define is not defined. The intervals of the single tables cover the
    choice of clips and are dropped; each seed has its own.
    """
    rows = []
    for keys, of in pd.concat(tables).groupby(KEYS, sort=False):
        values = of.value.tolist() if len(of) == len(tables) else [math.nan]
        low, high = intervals.mean_interval(values)
        others = of[["chance", "level"]].mean().to_dict()
        rows.append(
            {**dict(zip(KEYS, keys)), "value": np.mean(values), "low": low, "high": high, "n": len(of), **others}
        )
    return table_of(rows)


def row_of(measure: str, value: float, ends: tuple[float, float] = (math.nan, math.nan)) -> dict[str, Any]:
    """A score with its interval."""
    return {"measure": measure, "value": value, "low": ends[0], "high": ends[1]}


# ---- one model


def scores_of(evaluation: Evaluation, art_forms: Mapping[str, str | None] | None = None) -> list[dict[str, Any]]:
    """All rows of one model, without `model`; see the module's docstring.

    Args:
        evaluation: the model's answers.
        art_forms: item id -> art form, or None where the benchmark's items are not at hand.

    Returns:
        Accuracy, macro-F1 and UAR of each cell; the accuracy of all six (aspect "all"), of each emotion that is a
        right answer (its recall) and of each art form, under each control (`condition`); gains; shares of the conflict
        task; circular accuracy; CCC, Pearson and RMSE of stated valence and arousal (condition "stated").
    """
    tasks, rows = evaluation.tasks, []
    by_metric = {"circular_accuracy": circular, "follows_sight": conflict, "ccc": stated}
    for task, key in TASK_KEYS.items():
        if task in tasks:
            samples = tasks[task]
            of_task = [share(samples.rows)] if samples.metric == "accuracy" else by_metric[samples.metric](samples)
            rows += [{**key, **row} for row in of_task]
    cells = {task: tasks[task].rows for task in CELL_TASKS.values() if task in tasks}
    for task, answers in cells.items():
        key = TASK_KEYS[task]
        predicted = answers.predicted.where(answers.predicted.notna(), None).tolist()
        for measure in (metrics.macro_f1, metrics.uar):
            rows.append({**key, **row_of(measure.__name__, measure(predicted, answers.answer.tolist()))})
        splits = {"emotion": answers.answer} if key["aspect"] == "emotion" else {}
        if art_forms is not None:
            splits["art_form"] = answers.item_id.map(lambda item: art_forms.get(item) or "not stated")
        for kind, names in splits.items():
            rows += [{**key, "group": f"{kind}: {name}", **share(of)} for name, of in answers.groupby(names)]
    if len(cells) == len(CELLS):
        rows.append({"aspect": "all", "modality": "all", **share(pd.concat(cells.values()))})
    for aspect in ASPECTS:
        try:
            gains = aspect_gains({"model": evaluation}, aspect)
        except ValueError as error:
            rows.append({"aspect": aspect, "measure": "synergy", "note": str(error)})
            continue
        for name, gain in gains.get("model", {}).items():
            rows.append({"aspect": aspect, **row_of(name, gain["value"], gain["ci95"])})
    return rows


def share(answers: pd.DataFrame) -> dict[str, Any]:
    """Row of an accuracy: its interval, chance (the mean of one over the number of options), and the shares of answers
    that name no option and of questions that were not put (`missing`); both count as not right."""
    values = answers.value.tolist()
    method, ends = intervals.accuracy_interval(answers.clip_id.tolist(), values)
    return {
        **row_of("accuracy", sum(values) / len(values), ends),
        "method": method,
        "n": len(values),
        "chance": (1 / answers.options.str.len()).mean(),
        **answers[UNANSWERED].mean().to_dict(),
    }


def conflict(samples: Samples) -> list[dict[str, Any]]:
    """Rows of the shares of answers that follow the visual input, the audio, or neither."""
    clips, n = samples.rows.clip_id.tolist(), len(samples.rows)
    rows = []
    for name in FOLLOWS:
        values = samples.rows[name].astype(float).tolist()
        rows.append({**row_of(name, sum(values) / n, intervals.accuracy_interval(clips, values)[1]), "n": n})
    return rows


def circular(samples: Samples) -> list[dict[str, Any]]:
    """Share of the items that are right under every rotation, and the accuracy of the single rotations.

    `chance` is 1 / n, that of a model without media that says the same one of n options each time. One that draws a
    letter each time is right n times in a row with 1 / n^n only.
    """
    rotations = samples.rows.groupby("item_id").size()
    row = {**row_of("circular_accuracy", *samples.score()), "n": len(samples.items), "chance": (1 / rotations).mean()}
    return [{**row, "single": samples.rows.accuracy.mean(), **samples.rows[UNANSWERED].mean().to_dict()}]


def stated(samples: Samples) -> list[dict[str, Any]]:
    """Rows of CCC, Pearson and RMSE over the answers that state both numbers; NaN below two of them."""
    points, enough = samples.points, len(samples.points) > 1
    shares = samples.rows[UNANSWERED].mean().to_dict()
    rows = [{**row_of("ccc", *samples.score()), "n": len(samples.rows), "answered": len(points), **shares}]
    of_points = modality_scores(points) if enough else {}
    for name in DIMENSIONS:
        pair = points[name].to_numpy(), points[f"true_{name}"].to_numpy()
        ends = of_points.get(f"{name}_ccc_ci95", (math.nan, math.nan))
        rows.append(row_of(f"{name}_ccc", of_points.get(f"{name}_ccc", math.nan), ends))
        for measure in (metrics.pearson, metrics.rmse):
            rows.append(row_of(f"{name}_{measure.__name__}", measure(*pair) if enough else math.nan))
    return rows


def modality_scores(points: pd.DataFrame) -> dict[str, Any]:
    """CCC of valence and arousal of one modality: `n`, `valence_ccc`, `valence_ccc_ci95` and so on."""
    scores: dict = {"n": len(points)}
    for name in DIMENSIONS:
        pair = points[name].to_numpy(), points[f"true_{name}"].to_numpy()
        scores[f"{name}_ccc"] = float(intervals.ccc(*pair))
        scores[f"{name}_ccc_ci95"] = list(intervals.ccc_interval(*pair))
    return scores


def supervisor_scores(file: Path) -> list[dict[str, Any]]:
    """Rows of what `vaemotionllm evaluate-emotion` measured (condition "supervisor"): CCC of each modality, accuracy
    and calibration error of the labels, coverage of the intervals, and the AUROC of the conflict score.

    Raises:
        InputError: the file is missing or does not hold them.
    """
    points, written = read_emotion(file), read_json(file, "what `vaemotionllm evaluate-emotion` writes")
    rows: list[dict[str, Any]] = []
    try:
        conflict, level = written["conflict"], written["level"]
        for modality in MODALITIES:
            of, n, scores = written[modality], len(points[modality]), modality_scores(points[modality])
            key = {"modality": modality, "condition": "supervisor", "n": n}
            for name in DIMENSIONS:
                rows.append({**key, **row_of(f"{name}_ccc", scores[f"{name}_ccc"], scores[f"{name}_ccc_ci95"])})
                if (covered := of[f"{name}_coverage"]) is not None:
                    ends = intervals.wilson(round(covered * n), n)
                    rows.append({**key, "level": level, **row_of(f"{name}_coverage", covered, ends)})
            for name, measure in (("accuracy", "label_accuracy"), ("ece", "ece")):
                if of[name] is not None:
                    rows.append({**key, **row_of(measure, of[name])})
        key = {"condition": "supervisor", "n": len(conflict["clip_ids"])}
        if conflict["auroc"] is None:
            rows.append({**key, "measure": "auroc", "note": conflict["reason"]})
        else:
            ends = auroc_interval(np.asarray(conflict["disagreeing"]), np.asarray(conflict["agreeing"]))
            rows.append({**key, **row_of("auroc", conflict["auroc"], ends)})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} does not hold the calibration ({error!r}); run `vaemotionllm evaluate-emotion` again"
        ) from error
    return rows


def auroc_interval(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Interval of the AUROC by a bootstrap of clips, each of which has one score of both kinds; shapes (clips,)."""
    # (clips, clips): whether the positive one scores above the negative one, ties counting half.
    above = (np.sign(positive[:, None] - negative[None, :]) + 1) / 2
    return intervals.percentile_interval(
        intervals.bootstrap(len(above), lambda weights: ((weights @ above) * weights).sum(1) / len(above) ** 2)
    )


# ---- gains of both modalities together


def gains_of(audio, visual, av) -> dict:
    """The three gains of accuracies, numbers or arrays of one shape.

    audio_gain = av - visual: what audio adds. visual_gain = av - audio: what visual input adds. synergy = av -
    max(audio, visual): what both have above the better one alone, the smaller of the two gains. The names are the
    field's; that the better modality is chosen in each resample is ours, so the interval of the synergy knows that the
    better one was not known beforehand.
    """
    return {"audio_gain": av - visual, "visual_gain": av - audio, "synergy": av - np.maximum(audio, visual)}


def modality_gains(runs: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, dict]]:
    """Gains of one aspect for each run, and for two runs their differences, with 95% bootstrap intervals by clip.

    lmms-eval cannot print them: a group's aggregation gets neither the names nor the samples of its subtasks.

    Args:
        runs: name -> modality -> cell. All cells hold the same clips; each resample draws the same ones of them
            in every cell and run.

    Returns:
        name -> gain of `GAINS` -> {"value", "ci95"}; with two runs also "difference": second minus first.

    Raises:
        ValueError: two cells hold different clips.
    """
    cells = {(name, m): intervals.clip_means(*cells[m]) for name, cells in runs.items() for m in MODALITIES}
    clips = next(iter(cells.values()))[2]
    for (name, modality), (_, _, other) in cells.items():
        if odd := sorted(set(clips) ^ set(other)):
            raise ValueError(
                f"gains need the same clips in every cell; {name} {modality} differs in {len(odd)}, such as {odd[:3]}"
            )

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Shape (draws, runs, gains); of two runs their difference stands third."""
        means = {key: (weights @ sums) / (weights @ counts) for key, (sums, counts, _) in cells.items()}
        found = [gains_of(*(means[name, modality] for modality in MODALITIES)) for name in runs]
        values = np.stack([np.stack(list(of.values()), axis=-1) for of in found], axis=1)
        return np.concatenate([values, values[:, 1:] - values[:, :1]], axis=1) if len(runs) == 2 else values

    value, drawn = statistic(np.ones((1, len(clips))))[0], intervals.bootstrap(len(clips), statistic)
    gains: dict[str, dict[str, dict]] = {}
    for i, name in enumerate([*runs, "difference"][: value.shape[0]]):
        for j, gain in enumerate(GAINS):
            found = {"value": float(value[i, j]), "ci95": list(intervals.percentile_interval(drawn[:, i, j]))}
            gains.setdefault(name, {})[gain] = found
    return gains


def aspect_gains(evaluations: Mapping[str, Evaluation], aspect: str) -> dict[str, dict[str, dict]]:
    """`modality_gains` of evaluations; empty where one lacks a cell of the aspect."""
    tasks = {modality: CELL_TASKS[f"{aspect}_{modality}"] for modality in MODALITIES}
    if not all(task in of.tasks for of in evaluations.values() for task in tasks.values()):
        return {}
    return modality_gains(
        {name: {m: of.tasks[task].cell for m, task in tasks.items()} for name, of in evaluations.items()}
    )


# ---- models beside each other


def models_scores(models: Mapping[str, Evaluation], art_forms: Mapping[str, str | None] | None = None) -> pd.DataFrame:
    """The table of scores of models that were given the same items, and of each but the first what it differs in.

    Args:
        models: label -> evaluation.
        art_forms: see `scores_of`.
    """
    first, rows = next(iter(models.values())), []
    for label, evaluation in models.items():
        rows += [{"model": label, **row} for row in scores_of(evaluation, art_forms)]
        if evaluation is not first:
            rows += [{"model": label, **row} for row in differences(first, evaluation)]
    return table_of(rows)


def differences(first: Evaluation, second: Evaluation) -> list[dict[str, Any]]:
    """Rows of what two models differ in, second minus first, such as "accuracy_minus_first" and "synergy_minus_first".

    An interval is a bootstrap that draws whole clips, the same for both. The difference is that of the task's score:
    of the accuracy; in circular tasks of that of all rotations, in `artemo_conflict` of the share that follows the
    visual input, in `artemo_va_*` of the mean CCC of valence and arousal over the answers that state them.
    """
    rows = []
    pairs = {task: (first.tasks[task], second.tasks[task]) for task in TASK_KEYS
             if task in first.tasks and task in second.tasks}  # fmt: skip
    for task, (a, b) in pairs.items():
        ends = ccc_difference(a, b) if a.metric == "ccc" else intervals.paired(b.cell, a.cell, np.subtract)
        rows.append({**TASK_KEYS[task], **row_of(f"{a.metric}_minus_first", b.value - a.value, ends)})
    if all(task in pairs for task in CELL_TASKS.values()):
        cells = [pd.concat([of.tasks[task].items for task in CELL_TASKS.values()]) for of in (second, first)]
        pooled = [(of.clip_id.tolist(), of.value.tolist()) for of in cells]
        value, ends = cells[0].value.mean() - cells[1].value.mean(), intervals.paired(*pooled, np.subtract)
        rows.append({"aspect": "all", "modality": "all", **row_of("accuracy_minus_first", value, ends)})
    for aspect in ASPECTS:
        with contextlib.suppress(ValueError):  # other clips for each modality
            for gain, of in aspect_gains({"first": first, "second": second}, aspect).get("difference", {}).items():
                rows.append({"aspect": aspect, **row_of(f"{gain}_minus_first", of["value"], of["ci95"])})
    return rows


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Scores of two evaluations of the same benchmark and their paired differences, B minus A.

    Args:
        a, b: what `lmms-eval --log_samples --output_path` was given, or a `*_results.json` in it.

    Returns:
        "a" and "b" (path, model, model_args, missing), "benchmark" (name, version), "scores" (the rows of
        `models_scores` of the models "A" and "B"), "only_in_a" and "only_in_b" (tasks that the other one lacks).

    Raises:
        InputError: a file is missing or incomplete, the evaluations share no task, or their benchmarks differ; the
            first item that differs is named.
    """
    first, second = read_evaluation(Path(a)), read_evaluation(Path(b))
    shared = [task for task in first.tasks if task in second.tasks]
    if not shared:
        raise InputError(
            f"{first.path} and {second.path} share no task: the first has {', '.join(first.tasks)}, the second "
            f"{', '.join(second.tasks)}; run lmms-eval with the same --tasks."
        )
    refuse_other_items(first, second, words=True)
    sides = {
        side: {"path": str(of.path), "model": of.model, "model_args": of.model_args, "missing": of.missing}
        for side, of in (("a", first), ("b", second))
    }
    return {
        **sides,
        "benchmark": first.tasks[shared[0]].benchmark,
        "scores": rows_of(models_scores({"A": first, "B": second})),
        "only_in_a": [task for task in first.tasks if task not in shared],
        "only_in_b": [task for task in second.tasks if task not in shared],
    }


def refuse_other_items(first: Evaluation, second: Evaluation, words: bool = False) -> None:
    """Raises InputError unless both hold the same items in the tasks that they share.

    Args:
        words: whether their benchmark and their prompts and targets have to be equal too.
    """
    for task in first.tasks.keys() & second.tasks.keys():
        a, b = first.tasks[task], second.tasks[task]
        if words and a.benchmark != b.benchmark:
            raise InputError(f"{task} is of two benchmarks: {a.benchmark} in {first.path}, {b.benchmark} in "
                             f"{second.path}. {REMEDY}")  # fmt: skip
        odd = a.prompts.keys() ^ b.prompts.keys()
        if words and not odd:
            odd = {item for item, prompts in a.prompts.items() if prompts != b.prompts[item]}
        for item in sorted(odd)[:1]:
            raise InputError(
                f"{task}: {len(odd)} items differ, the first is {item!r}: {a.prompts.get(item)} in {first.path}, "
                f"{b.prompts.get(item)} in {second.path} (prompt, target). {REMEDY}"
            )


def ccc_difference(a: Samples, b: Samples) -> tuple[float, float]:
    """Interval of the difference of two mean CCCs; a clip that only one model answered counts for that one alone."""
    if min(len(a.points), len(b.points)) < 2:
        return math.nan, math.nan
    ordered = [samples.rows.set_index("item_id").loc[a.items.index] for samples in (a, b)]
    answered = [rows[rows.predicted.notna()] for rows in ordered]
    points = [points_of(rows.clip_id, rows.predicted.tolist(), rows.true.tolist()) for rows in answered]

    def statistic(weights: np.ndarray) -> np.ndarray:
        first, second = (
            mean_ccc(of, weights[:, rows.predicted.notna().to_numpy()]) for of, rows in zip(points, ordered)
        )
        return second - first

    with np.errstate(invalid="ignore", divide="ignore"):
        return intervals.percentile_interval(intervals.bootstrap(len(a.items), statistic))
