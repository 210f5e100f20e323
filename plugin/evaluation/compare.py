"""`vaemotionllm benchmark compare A B`: two evaluations of one benchmark, task by task, paired by item and clip."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark.controls import KINDS
from ..benchmark.intervals import accuracy_interval, bootstrap, paired, percentile_interval
from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .artemo import mean_ccc, pooled
from .gains import GAINS, modality_gains
from .results import CELLS
from .task_samples import Evaluation, Samples, read_evaluation

REMEDY = "Evaluate both with the same benchmark and without --limit."
# The groups of eval_tasks/artemo whose tasks have one metric, so that their items can be pooled.
GROUPS = {
    "artemo": [f"artemo_{cell}" for cell in CELLS],
    "artemo_circular": [f"artemo_{cell}_circular" for cell in CELLS],
    "artemo_blind": [f"artemo_{aspect}_blind" for aspect in ASPECTS],
    **{f"artemo_{kind}": [f"artemo_{aspect}_audio_{kind}" for aspect in ASPECTS] for kind in KINDS},
}


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
        circular tasks that of all rotations, in `artemo_conflict` the share that follows sight, in `artemo_va_*` the
        mean CCC of valence and arousal over the answers that state them.

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
    tasks = {task: compare_task(first.tasks[task], second.tasks[task]) for task in shared}
    gains = {}
    for aspect in ASPECTS:
        names = [f"artemo_{aspect}_{path}" for path in MODALITIES]
        if all(name in shared for name in names):
            cells = {
                side: {path: evaluation.tasks[name].cell for path, name in zip(MODALITIES, names)}
                for side, evaluation in (("a", first), ("b", second))
            }
            try:
                gains[aspect] = modality_gains(cells)
            except ValueError as error:
                raise InputError(
                    f"{first.path}, {aspect}: {error}. The benchmark asks each path about other clips."
                ) from error
    return {
        "a": first.facts,
        "b": second.facts,
        "benchmark": first.tasks[shared[0]].benchmark,
        "tasks": tasks,
        "groups": {
            group: compare_group([first.tasks[name] for name in names], [second.tasks[name] for name in names])
            for group, names in GROUPS.items()
            if all(name in shared for name in names)
        },
        "gains": gains,
        "only_in_a": [task for task in first.tasks if task not in second.tasks],
        "only_in_b": [task for task in second.tasks if task not in first.tasks],
    }


def refuse_other_items(first: Evaluation, second: Evaluation, task: str) -> None:
    """Raises InputError unless both were asked the same items, in the same words, of the same benchmark."""
    a, b = first.tasks[task], second.tasks[task]
    if a.benchmark != b.benchmark:
        named = [f"{one.benchmark['name']!r} version {one.benchmark['version']}" for one in (a, b)]
        raise InputError(
            f"{task} was asked from two benchmarks: {named[0]} in {first.path}, {named[1]} in {second.path}. {REMEDY}"
        )
    refuse_missing_items(first, second, task)
    for item in a.items:
        if a.prompts[item] != b.prompts[item]:
            raise InputError(
                f"{task}: the item {item!r} was asked in other words: {a.prompts[item]} in {first.path}, "
                f"{b.prompts[item]} in {second.path} (prompt, target). {REMEDY}"
            )


def refuse_missing_items(first: Evaluation, second: Evaluation, task: str) -> None:
    """Raises InputError unless both hold the same items."""
    a, b = first.tasks[task], second.tasks[task]
    for one, other, where, missing in ((a, b, first.path, second.path), (b, a, second.path, first.path)):
        odd = [item for item in one.items if item not in other.items]
        if odd:
            raise InputError(
                f"{task}: {len(odd)} of {len(one.items)} items of {where} are not in {missing}, the first is "
                f"{odd[0]!r}. {REMEDY}"
            )


def compare_task(a: Samples, b: Samples) -> dict:
    """The entry of one task in what `compare` returns."""
    found: dict[str, Any] = {"metric": a.metric, "n": len(a.items), "clips": len(set(a.items.values()))}
    for side, samples in (("a", a), ("b", b)):
        value, ci95 = samples.score()
        found[side] = {"value": value, "ci95": list(ci95), "unparsable": samples.unparsable}
    interval = ccc_difference(a, b) if a.metric == "ccc" else paired(b.cell, a.cell, np.subtract)
    found["difference"] = {"value": found["b"]["value"] - found["a"]["value"], "ci95": list(interval)}
    return found


def compare_group(a: list[Samples], b: list[Samples]) -> dict:
    """The entry of a group in what `compare` returns: the items of its tasks as one."""
    cells = []
    found: dict[str, Any] = {"metric": a[0].metric}
    for side, tasks in (("a", a), ("b", b)):
        clips = [clip for samples in tasks for clip in samples.cell[0]]
        scores = [score for samples in tasks for score in samples.cell[1]]
        cells.append((clips, scores))
        unparsable = sum(samples.unparsable * samples.answers for samples in tasks)
        found |= {"n": len(clips), "clips": len(set(clips))}
        found[side] = {
            "value": sum(scores) / len(scores),
            "ci95": list(accuracy_interval(clips, scores)[1]),
            "unparsable": unparsable / sum(samples.answers for samples in tasks),
        }
    interval = paired(cells[1], cells[0], np.subtract)
    found["difference"] = {"value": found["b"]["value"] - found["a"]["value"], "ci95": list(interval)}
    return found


def ccc_difference(a: Samples, b: Samples) -> tuple[float, float]:
    """Interval of the difference of two mean CCCs; a clip that only one model answered counts for that one alone."""
    sides = []
    for samples in (a, b):
        values = [samples.values[item] for item in a.items]
        answered = [number for number, value in enumerate(values) if value["predicted"] is not None]
        if len(answered) < 2:
            return float("nan"), float("nan")
        sides.append((answered, *pooled(values)))

    def statistic(weights: np.ndarray) -> np.ndarray:
        first, second = (mean_ccc(predicted, true, weights[:, own]) for own, predicted, true in sides)
        return second - first

    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = bootstrap(len(a.items), statistic)
    return percentile_interval(drawn)


def as_json(result: dict) -> str:
    """The comparison as JSON, which knows no NaN: a score that is not defined is null."""

    def defined(value):
        if isinstance(value, dict):
            return {key: defined(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [defined(entry) for entry in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(defined(result), indent=2, allow_nan=False)


def as_text(result: dict) -> str:
    """The comparison as lines for a terminal."""
    lines = [f"{side.upper()}: {result[side]['path']} ({result[side]['model']})" for side in ("a", "b")]
    for side in ("a", "b"):
        if result[side]["missing"]:
            lines.append(f"{side.upper()} lacks {result[side]['missing']} answers: media could not be read.")
    benchmark = result["benchmark"]
    lines += [
        f"Benchmark: {benchmark['name']}, version {benchmark['version']}. In brackets 95% intervals; those of the "
        "differences, B minus A, draw whole clips.",
        "",
    ]
    rows: list[tuple[str, ...]] = [("task", "metric", "n", "A", "B", "B - A", "unparsable A, B")]
    for task, found in {**result["groups"], **result["tasks"]}.items():
        unparsable = ", ".join(f"{found[side]['unparsable']:.3f}" for side in ("a", "b"))
        scores = [with_interval(found[side]) for side in ("a", "b")]
        rows.append(
            (task, found["metric"], str(found["n"]), *scores, with_interval(found["difference"], "+"), unparsable)
        )
    lines += table(rows)
    if result["gains"]:
        rows = [("aspect", "gain", "A", "B", "B - A")]
        for aspect, of in result["gains"].items():
            for gain in GAINS:
                cells = [with_interval(of[side][gain], "+") for side in ("a", "b", "difference")]
                rows.append((aspect, gain.replace("_", " "), *cells))
        lines += [
            "",
            "Audio gain: av minus visual. Visual gain: av minus audio. Synergy: av minus the better of the two.",
            *table(rows),
        ]
    for side in ("a", "b"):
        if result[f"only_in_{side}"]:
            lines.append(f"Only in {side.upper()}: {', '.join(result[f'only_in_{side}'])}")
    return "\n".join(lines)


def with_interval(found: dict, sign: str = "") -> str:
    low, high = found["ci95"]
    if math.isnan(found["value"]):
        return "not defined"
    return f"{found['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
