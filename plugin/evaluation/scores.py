"""Scores of models as one table: accuracies, gains, controls, valence and arousal, calibration; and two compared.

Every score is a row: `model`, `measure`, `aspect`, `modality`, `condition` and `group` say what it is, `value`, `low`
and `high` what it is worth with its 95% interval (see `benchmark/intervals.py`), `n` over how many items. What was not
run has no row.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark import metrics
from ..benchmark.controls import KINDS
from ..benchmark.intervals import (
    accuracy_interval,
    bootstrap,
    ccc,
    ccc_interval,
    clip_means,
    mean_interval,
    paired,
    percentile_interval,
    wilson,
)
from ..benchmark.schema import ASPECTS
from ..model.inputs import MODALITIES
from ..utils import InputError, read_json
from .results import DIMENSIONS, Cell, Evaluation, Samples, mean_ccc, points_of, read_emotion, read_evaluation

GAINS = ("audio_gain", "visual_gain", "synergy")
FOLLOWS = ("follows_sight", "follows_sound", "neither", "unparsable", "missing")
CELLS = tuple(f"{aspect}_{modality}" for aspect in ASPECTS for modality in MODALITIES)
CELL_TASKS = {cell: f"artemo_{cell}" for cell in CELLS}
CONTROL_TASKS = {
    **{kind: {aspect: f"artemo_{aspect}_audio_{kind}" for aspect in ASPECTS} for kind in KINDS},
    "blind": {aspect: f"artemo_{aspect}_blind" for aspect in ASPECTS},
}
CIRCULAR_TASKS = {cell: f"artemo_{cell}_circular" for cell in CELLS}
VA_TASKS = {modality: f"artemo_va_{modality}" for modality in MODALITIES}
CONFLICT_TASK = "artemo_conflict"
# Of these each question has a right answer and is put once.
CHOICE_TASKS = (*CELL_TASKS.values(), *(task for tasks in CONTROL_TASKS.values() for task in tasks.values()))
KNOWN_TASKS = {*CHOICE_TASKS, *CIRCULAR_TASKS.values(), *VA_TASKS.values(), CONFLICT_TASK}
# The groups of eval_tasks/artemo whose tasks have one metric, so that their items can be pooled.
GROUPS = {
    "artemo": list(CELL_TASKS.values()),
    "artemo_circular": list(CIRCULAR_TASKS.values()),
    "artemo_blind": list(CONTROL_TASKS["blind"].values()),
    **{f"artemo_{kind}": list(CONTROL_TASKS[kind].values()) for kind in KINDS},
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
        low, high = mean_interval(values)
        others = of[["chance", "level"]].mean().to_dict()
        rows.append(
            {**dict(zip(KEYS, keys)), "value": np.mean(values), "low": low, "high": high, "n": len(of), **others}
        )
    return table_of(rows)


# ---- one model


def modality_scores(points: pd.DataFrame) -> dict[str, Any]:
    """CCC of valence and arousal of one modality: `n`, `valence_ccc`, `valence_ccc_ci95` and so on."""
    scores: dict = {"n": len(points)}
    for name in DIMENSIONS:
        pair = points[name].to_numpy(), points[f"true_{name}"].to_numpy()
        scores[f"{name}_ccc"] = float(ccc(*pair))
        scores[f"{name}_ccc_ci95"] = list(ccc_interval(*pair))
    return scores


def accuracy(answers: pd.DataFrame) -> dict[str, Any]:
    """Row of an accuracy: its interval, chance (the mean of one over the number of options), and the shares of answers
    that name no option and of questions that were not put (`missing`); both count as not right."""
    values, missing = answers.value.tolist(), answers.missing > 0
    method, (low, high) = accuracy_interval(answers.clip_id.tolist(), values)
    return {
        "measure": "accuracy", "value": sum(values) / len(values), "low": low, "high": high, "method": method,
        "n": len(values), "chance": float(np.mean([1 / len(options) for options in answers.options])),
        "unparsable": float((answers.predicted.isna() & ~missing).mean()), "missing": float(missing.mean()),
    }  # fmt: skip


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
    cells = {cell: evaluation.answers(task) for cell, task in CELL_TASKS.items() if task in tasks}
    for cell, answers in cells.items():
        key = dict(zip(("aspect", "modality"), cell.split("_")))
        predicted = [None if pd.isna(label) else label for label in answers.predicted]
        rows.append({**key, **accuracy(answers)})
        for measure in (metrics.macro_f1, metrics.uar):
            rows.append({**key, "measure": measure.__name__, "value": measure(predicted, answers.answer.tolist())})
        splits = {"emotion": answers.answer} if key["aspect"] == "emotion" else {}
        if art_forms is not None:
            splits["art_form"] = answers.item_id.map(lambda item: art_forms.get(item) or "not stated")
        for kind, names in splits.items():
            rows += [{**key, "group": f"{kind}: {name}", **accuracy(of)} for name, of in answers.groupby(names)]
    if len(cells) == len(CELLS):
        rows.append({"aspect": "all", "modality": "all", **accuracy(pd.concat(cells.values()))})
    for aspect in ASPECTS:
        try:
            gains = aspect_gains({"model": evaluation}, aspect)
        except ValueError as error:
            rows.append({"aspect": aspect, "measure": "synergy", "note": str(error)})
            continue
        rows += [{"aspect": aspect, **score_row(name, of)} for name, of in gains.get("model", {}).items()]
    for condition, of in CONTROL_TASKS.items():
        modality = "" if condition == "blind" else "audio"
        for aspect, task in of.items():
            if task in tasks:
                key = {"aspect": aspect, "modality": modality, "condition": condition}
                rows.append({**key, **accuracy(evaluation.answers(task))})
    if CONFLICT_TASK in tasks:
        of = tasks[CONFLICT_TASK].rows
        for name in FOLLOWS:
            values = of[name].astype(float).tolist() if name in of else [0.0] * len(of)
            ends = accuracy_interval(of.clip_id.tolist(), values)[1]
            found = {"value": sum(values) / len(values), "ci95": ends}
            rows.append({"condition": "conflict", "n": len(of), **score_row(name, found)})
    for cell, task in CIRCULAR_TASKS.items():
        if task in tasks:
            rows.append({**dict(zip(("aspect", "modality"), cell.split("_"))), **circular_score(tasks[task])})
    for modality, task in VA_TASKS.items():
        if task in tasks:
            rows += [{"modality": modality, "condition": "stated", **row} for row in va_scores(tasks[task])]
    return rows


def score_row(measure: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a value and its `ci95`, which may be None."""
    low, high = found["ci95"] or (math.nan, math.nan)
    return {"measure": measure, "value": found["value"], "low": low, "high": high}


def circular_score(samples: Samples) -> dict[str, Any]:
    """Share of the items that are right under every rotation, and the accuracy of the single rotations.

    `chance` is 1 / n, that of a model without media that says the same one of n options each time. One that draws a
    letter each time is right n times in a row with 1 / n^n only.
    """
    value, ci95 = samples.score()
    rotations = samples.rows.groupby("item_id").size()
    return {
        **score_row("circular_accuracy", {"value": value, "ci95": ci95}), "n": len(samples.items),
        "chance": float((1 / rotations).mean()), "single": float(samples.rows.accuracy.mean()),
        "unparsable": float(samples.rows.unparsable.mean()), "missing": float(samples.rows.missing.mean()),
    }  # fmt: skip


def va_scores(samples: Samples) -> list[dict[str, Any]]:
    """Rows of CCC, Pearson and RMSE over the answers that state both numbers; NaN below two of them."""
    points, (value, ci95) = samples.points, samples.score()
    shares = {"unparsable": float(samples.rows.unparsable.mean()), "missing": float(samples.rows.missing.mean())}
    about = {"n": len(samples.rows), "answered": len(points), **shares}
    rows = [{**score_row("ccc", {"value": value, "ci95": ci95}), **about}]
    for name in DIMENSIONS:
        pair = points[name].to_numpy(), points[f"true_{name}"].to_numpy()
        enough = len(points) > 1
        rows.append(
            score_row(
                f"{name}_ccc",
                {"value": float(ccc(*pair)) if enough else math.nan, "ci95": ccc_interval(*pair) if enough else None},
            )
        )
        for measure in (metrics.pearson, metrics.rmse):
            rows.append({"measure": f"{name}_{measure.__name__}", "value": measure(*pair) if enough else math.nan})
    return rows


def supervisor_scores(file: Path) -> list[dict[str, Any]]:
    """Rows of what `vaemotionllm evaluate-emotion` measured (condition "supervisor"): CCC of each modality, accuracy
    and calibration error of the labels, coverage of the intervals, and the AUROC of the conflict score.

    Raises:
        InputError: the file is missing or does not hold them.
    """
    points, written = read_emotion(file), read_json(file, "what `vaemotionllm evaluate-emotion` writes")
    rows: list[dict[str, Any]] = []
    try:
        level, conflict = written["level"], written["conflict"]
        for modality in MODALITIES:
            of, n = written[modality], len(points[modality])
            key = {"modality": modality, "condition": "supervisor", "n": n}
            scores = modality_scores(points[modality])
            for name in DIMENSIONS:
                found = {"value": scores[f"{name}_ccc"], "ci95": scores[f"{name}_ccc_ci95"]}
                rows.append({**key, **score_row(f"{name}_ccc", found)})
            for name in ("accuracy", "ece"):
                if of[name] is not None:
                    rows.append({**key, "measure": {"accuracy": "label_accuracy"}.get(name, name), "value": of[name]})
            for name in DIMENSIONS:
                if (share := of[f"{name}_coverage"]) is not None:
                    found = {"value": share, "ci95": wilson(round(share * n), n)}
                    rows.append({**key, "level": level, **score_row(f"{name}_coverage", found)})
        key = {"condition": "supervisor", "n": len(conflict["clip_ids"])}
        if conflict["auroc"] is None:
            rows.append({**key, "measure": "auroc", "note": conflict["reason"]})
        else:
            pair = (np.asarray(conflict[name]) for name in ("disagreeing", "agreeing"))
            rows.append({**key, **score_row("auroc", {"value": conflict["auroc"], "ci95": auroc_interval(*pair)})})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} does not hold the calibration ({error!r}); run `vaemotionllm evaluate-emotion` again"
        ) from error
    return rows


def auroc_interval(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Interval of the AUROC by a bootstrap of clips, each of which has one score of both kinds; shapes (clips,)."""
    # (clips, clips): whether the positive one scores above the negative one, ties counting half.
    above = (np.sign(positive[:, None] - negative[None, :]) + 1) / 2
    return percentile_interval(
        bootstrap(len(above), lambda weights: ((weights @ above) * weights).sum(1) / len(above) ** 2)
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
    cells = [(name, modality, clip_means(*cells[modality])) for name, cells in runs.items() for modality in MODALITIES]
    clips = cells[0][2][2]
    for name, modality, (_, _, other) in cells:
        if other != clips:
            odd = sorted(set(clips) ^ set(other))
            raise ValueError(
                f"gains need the same clips in every cell; {name} {modality} differs in {len(odd)}, such as {odd[:3]}"
            )

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Shape (draws, runs, gains); of two runs their difference stands third."""
        means = {
            (name, modality): (weights @ sums) / (weights @ counts) for name, modality, (sums, counts, _) in cells
        }
        found = [gains_of(*(means[name, modality] for modality in MODALITIES)) for name in runs]
        values = np.stack([np.stack([of[gain] for gain in GAINS], axis=-1) for of in found], axis=1)
        return np.concatenate([values, values[:, 1:] - values[:, :1]], axis=1) if len(runs) == 2 else values

    value, drawn = statistic(np.ones((1, len(clips))))[0], bootstrap(len(clips), statistic)
    names = [*runs, "difference"] if len(runs) == 2 else list(runs)
    return {
        name: {
            gain: {"value": float(value[i, j]), "ci95": list(percentile_interval(drawn[:, i, j]))}
            for j, gain in enumerate(GAINS)
        }
        for i, name in enumerate(names)
    }


def aspect_gains(evaluations: Mapping[str, Evaluation], aspect: str) -> dict[str, dict[str, dict]]:
    """`modality_gains` of evaluations; empty where one lacks a cell of the aspect."""
    tasks = {modality: CELL_TASKS[f"{aspect}_{modality}"] for modality in MODALITIES}
    if not all(task in of.tasks for of in evaluations.values() for task in tasks.values()):
        return {}
    return modality_gains(
        {name: {m: of.tasks[task].cell for m, task in tasks.items()} for name, of in evaluations.items()}
    )


# ---- two evaluations


def compare(a: str | Path, b: str | Path) -> dict:
    """Scores of two evaluations and their paired differences, B minus A, with 95% intervals.

    Args:
        a, b: what `lmms-eval --log_samples --output_path` was given, or a `*_results.json` in it.

    Returns:
        "a" and "b" (path, model, model_args, missing), "benchmark" (name, version), "tasks" (task -> metric, n, clips,
        score of each with interval and share of unparsable answers, difference), "groups" (likewise, where both have
        all tasks of a group: its items pooled, with intervals that draw whole clips, which lmms-eval's groups have
        not), "gains" (aspect -> a, b, difference -> audio gain, visual gain, synergy), "only_in_a" and "only_in_b"
        (tasks that the other one lacks).

        A difference's interval is a bootstrap that draws whole clips, the same for both. The score is the accuracy; in
        circular tasks that of all rotations, in `artemo_conflict` the share that follows the visual input, in
        `artemo_va_*` the mean CCC of valence and arousal over the answers that state them.

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
    for task in shared:
        refuse_other_items(first, second, task)
    gains = {}
    for aspect in ASPECTS:
        try:
            gains[aspect] = aspect_gains({"a": first, "b": second}, aspect)
        except ValueError as error:
            raise InputError(
                f"{first.path}, {aspect}: {error}. The benchmark has other clips for each modality."
            ) from error
    return {
        **{
            side: {"path": str(e.path), "model": e.model, "model_args": e.model_args, "missing": e.missing}
            for side, e in (("a", first), ("b", second))
        },
        "benchmark": first.tasks[shared[0]].benchmark,
        "tasks": {task: compare_task(first.tasks[task], second.tasks[task]) for task in shared},
        "groups": {
            group: compare_group([first.tasks[name] for name in names], [second.tasks[name] for name in names])
            for group, names in GROUPS.items()
            if all(name in shared for name in names)
        },
        "gains": {aspect: of for aspect, of in gains.items() if of},
        "only_in_a": [task for task in first.tasks if task not in second.tasks],
        "only_in_b": [task for task in second.tasks if task not in first.tasks],
    }


def refuse_other_items(first: Evaluation, second: Evaluation, task: str) -> None:
    """Raises InputError unless both were given the same items, in the same words, of the same benchmark."""
    a, b = first.tasks[task], second.tasks[task]
    if a.benchmark != b.benchmark:
        named = [f"{one.benchmark['name']!r} version {one.benchmark['version']}" for one in (a, b)]
        raise InputError(
            f"{task} is of two benchmarks: {named[0]} in {first.path}, {named[1]} in {second.path}. {REMEDY}"
        )
    refuse_missing_items(first, second, task)
    for item, prompts in a.prompts.items():
        if prompts != b.prompts[item]:
            raise InputError(
                f"{task}: the item {item!r} has other words: {prompts} in {first.path}, {b.prompts[item]} in "
                f"{second.path} (prompt, target). {REMEDY}"
            )


def refuse_missing_items(first: Evaluation, second: Evaluation, task: str) -> None:
    """Raises InputError unless both hold the same items."""
    a, b = (evaluation.tasks[task].prompts for evaluation in (first, second))
    for one, other, where, missing in ((a, b, first.path, second.path), (b, a, second.path, first.path)):
        if odd := [item for item in one if item not in other]:
            raise InputError(
                f"{task}: {len(odd)} of {len(one)} items of {where} are not in {missing}, the first is {odd[0]!r}. "
                f"{REMEDY}"
            )


def compare_task(a: Samples, b: Samples) -> dict:
    """The entry of one task in what `compare` returns."""
    found: dict[str, Any] = {"metric": a.metric, "n": len(a.items), "clips": a.items.clip_id.nunique()}
    for side, samples in (("a", a), ("b", b)):
        value, ci95 = samples.score()
        found[side] = {"value": value, "ci95": list(ci95), "unparsable": float(samples.rows.unparsable.mean())}
    interval = ccc_difference(a, b) if a.metric == "ccc" else paired(b.cell, a.cell, np.subtract)
    found["difference"] = {"value": found["b"]["value"] - found["a"]["value"], "ci95": list(interval)}
    return found


def compare_group(a: Sequence[Samples], b: Sequence[Samples]) -> dict:
    """The entry of a group in what `compare` returns: the items of its tasks as one."""
    pooled = [Samples(of[0].metric, {}, pd.concat([samples.rows for samples in of])) for of in (a, b)]
    return compare_task(*pooled)


def ccc_difference(a: Samples, b: Samples) -> tuple[float, float]:
    """Interval of the difference of two mean CCCs; a clip that only one model answered counts for that one alone."""
    if min(len(a.points), len(b.points)) < 2:
        return math.nan, math.nan
    answered = [samples.rows.set_index("item_id").predicted.reindex(a.items.index).notna() for samples in (a, b)]
    ordered = [samples.rows.set_index("item_id").loc[a.items.index[has]] for samples, has in zip((a, b), answered)]
    points = [points_of(rows.clip_id, rows.predicted.tolist(), rows.true.tolist()) for rows in ordered]

    def statistic(weights: np.ndarray) -> np.ndarray:
        first, second = (mean_ccc(of, weights[:, has.to_numpy()]) for of, has in zip(points, answered))
        return second - first

    with np.errstate(invalid="ignore", divide="ignore"):
        return percentile_interval(bootstrap(len(a.items), statistic))


def without_nan(value: Any) -> Any:
    """A value as JSON can hold it, which knows no NaN: a score that is not defined is None."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
