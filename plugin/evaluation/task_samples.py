"""Result folders of lmms-eval, of any model, as items with scores: what two evaluations are compared by."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.manifest import read_json_lines
from ..errors import InputError
from . import artemo_va
from .artemo import TASK_PREFIX
from .gains import Cell
from .intervals import accuracy_interval

RESULTS = "_results.json"
# The score of a task is the first of them that its samples have.
METRICS = ("circular_accuracy", "follows_sight", "ccc", "accuracy")


@dataclass(frozen=True)
class Samples:
    """The answers to one task.

    Args:
        metric: "accuracy", "circular_accuracy", "follows_sight" or "ccc".
        benchmark: "name" and "version".
        items: item id -> clip id, in the task's order.
        prompts: item id -> what was asked, to tell whether two evaluations asked the same.
        values: item id -> score in {0.0, 1.0}; for "ccc" what `artemo_va` scores: {"predicted", "true", ...}, each
            (valence, arousal), predicted None where the answer states no two numbers.
        rows: item id -> the logged samples: one, or one a rotation in the circular tasks.
        answers: how many answers there are, all rotations of an item counted.
        unparsable: share of the answers that could not be read.
        missing: share of the questions that were not asked, since their media could not be read.
    """

    metric: str
    benchmark: dict[str, str]
    items: dict[str, str]
    prompts: dict[str, Any]
    values: dict[str, Any]
    rows: dict[str, list[dict]]
    answers: int
    unparsable: float
    missing: float = 0.0

    @property
    def cell(self) -> Cell:
        """Clip ids and scores, item by item."""
        return list(self.items.values()), [self.values[item] for item in self.items]

    def score(self) -> tuple[float, tuple[float, float]]:
        """The task's score and its 95% interval, as the task itself prints them."""
        if self.metric != "ccc":
            clips, scores = self.cell
            return sum(scores) / len(scores), accuracy_interval(clips, scores)[1]
        values = list(self.values.values())
        return artemo_va.aggregation("ccc")(values), artemo_va.interval(values)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its results file and what it holds, what was evaluated, and the answers of each artemo task."""

    path: Path
    model: str
    model_args: str
    tasks: dict[str, Samples]
    results: dict

    @property
    def facts(self) -> dict[str, Any]:
        """Where it is and of what model; `missing` is the number of questions whose media could not be read."""
        missing = round(sum(samples.missing * samples.answers for samples in self.tasks.values()))
        return {"path": str(self.path), "model": self.model, "model_args": self.model_args, "missing": missing}


def read_evaluation(path: Path) -> Evaluation:
    """Reads a `*_results.json` of lmms-eval, or the newest one in a folder, with the samples beside it.

    Raises:
        InputError: there is none, the folder holds several models, samples are missing or incomplete, or a score in
            the results file is not that of the samples.
    """
    file = _results_file(path)
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks = [task for task in results["configs"] if task.startswith(f"{TASK_PREFIX}_")]
        config = results["config"]
        model, model_args = str(config["model"]), str(config["model_args"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no results file of lmms-eval ({error!r}); evaluate again.") from error
    if not tasks:
        raise InputError(f"{file} holds no task of artemo; run lmms-eval with --tasks artemo.")
    samples = {task: _read_samples(file, results, task) for task in sorted(tasks)}
    return Evaluation(file, model, model_args, samples, results)


def _results_file(path: Path) -> Path:
    if path.is_file():
        if not path.name.endswith(RESULTS):
            raise InputError(f"{path} is not a file *{RESULTS} of lmms-eval; name that file or its folder.")
        return path
    found = sorted(path.glob(f"**/*{RESULTS}"), key=lambda file: file.name)
    if not found:
        raise InputError(
            f"{path} holds no *{RESULTS}: run lmms-eval with --tasks artemo --log_samples --output_path {path}"
        )
    folders = sorted({str(file.parent) for file in found})
    if len(folders) > 1:
        raise InputError(f"{path} holds the results of several models; name one of {', '.join(folders)}.")
    return found[-1]


def _read_samples(file: Path, results: dict, task: str) -> Samples:
    path = file.with_name(f"{file.name.removesuffix(RESULTS)}_samples_{task}.jsonl")
    if not path.is_file():
        raise InputError(f"{path} is missing: run lmms-eval with --log_samples.")
    try:
        rows = {row["doc_id"]: row for _, row in read_json_lines(path, "line")}
        metadata = results["configs"][task]["metadata"]
        benchmark = {"name": str(metadata["benchmark"]), "version": str(metadata["version"])}
        expected = results["n-samples"][task]["effective"]
        metric = next(name for name in METRICS if name in rows[0])
        items, prompts, values, kept = _as_items([rows[doc_id] for doc_id in sorted(rows)], metric)
        unparsable = sum(row["unparsable"] for row in rows.values()) / len(rows)
        missing = sum(row.get("missing", 0.0) for row in rows.values()) / len(rows)  # older ones have none
        written = next(value for key, value in results["results"][task].items() if key.split(",")[0] == metric)
    except (KeyError, TypeError, StopIteration) as error:
        raise InputError(f"{path} or {file} lacks what the tasks write ({error!r}); evaluate {task} again.") from error
    if len(rows) != expected:
        raise InputError(f"{path} holds {len(rows)} of {expected} answers; evaluate {task} again.")
    samples = Samples(metric, benchmark, items, prompts, values, kept, len(rows), unparsable, missing)
    if not items:
        raise InputError(f"{path} holds no item under every rotation of its options; evaluate without --limit.")
    score = samples.score()[0]
    if not math.isclose(score, written, abs_tol=1e-6) and not (math.isnan(score) and math.isnan(written)):
        raise InputError(f"{file} says {samples.metric} {written} for {task}, but its samples say {score}.")
    return samples


def _as_items(
    rows: list[dict], metric: str
) -> tuple[dict[str, str], dict[str, Any], dict[str, Any], dict[str, list[dict]]]:
    """Clips, prompts, values and rows by item, see `Samples`. KeyError where a row lacks what the tasks write."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["ci95_low"]["item_id"], []).append(row)
    items: dict[str, str] = {}
    prompts: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for item, group in groups.items():
        about = group[0]["ci95_low"]
        if metric == "circular_accuracy" and len(group) < about["rotations"]:
            continue  # cut off by --limit
        items[item] = about["clip_id"]
        prompts[item] = [(row["input"], row["target"]) for row in group]
        if metric == "circular_accuracy":
            values[item] = min(row["ci95_low"]["correct"] for row in group)
        elif metric == "ccc":
            values[item] = {name: about[name] for name in ("clip_id", "predicted", "true")}
        else:
            values[item] = float(group[0][metric])
    return items, prompts, values, {item: groups[item] for item in items}
