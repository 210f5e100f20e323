"""Result folders of lmms-eval, of any model, as items with scores: what two evaluations are compared by."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark.intervals import accuracy_interval
from ..utils import InputError, read_json_lines
from . import artemo
from .artemo import TASK_PREFIX
from .gains import Cell

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
        return artemo.va_score("ccc", values), artemo.va_interval(values)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what was evaluated, and the answers of each artemo task.

    Args:
        path: the newest results file.
        results: what it holds; of the tasks that stand in older files alone, their configs, numbers of samples and of
            shots too.
        runs: results file -> what it holds, newest first, of the runs that gave the tasks.
    """

    path: Path
    model: str
    model_args: str
    tasks: dict[str, Samples]
    results: dict
    runs: dict[Path, dict]

    @property
    def facts(self) -> dict[str, Any]:
        """Where it is and of what model; `missing` is the number of questions whose media could not be read."""
        missing = round(sum(samples.missing * samples.answers for samples in self.tasks.values()))
        return {"path": str(self.path), "model": self.model, "model_args": self.model_args, "missing": missing}


def read_evaluation(path: Path) -> Evaluation:
    """Reads a `*_results.json` of lmms-eval, or those of one model in a folder, with the samples beside them.

    Of several files, such as of a run with `--tasks artemo` and a later one with `--tasks artemo_va`, each task is
    that of the newest file that has it.

    Raises:
        InputError: there is none, the folder holds several models or runs of one model in different ways, samples are
            missing or incomplete, or a score in the results file is not that of the samples.
    """
    runs: dict[Path, dict] = {}
    samples: dict[str, Samples] = {}
    for file in _results_files(path):
        results, tasks = _read_results(file)
        added = [task for task in tasks if task not in samples]
        if not added:
            continue
        if runs:
            _refuse_other_run(next(iter(runs.items())), (file, results))
        runs[file] = results
        samples |= {task: _read_samples(file, results, task) for task in added}
    if not runs:
        raise InputError(f"{path} holds no task of artemo; run lmms-eval with --tasks artemo.")
    newest, results = next(iter(runs.items()))
    # The newest last, so that its entries count.
    parts = {
        name: {task: of for older in reversed(runs.values()) for task, of in older.get(name, {}).items()}
        for name in ("configs", "n-samples", "n-shot")
    }
    model, model_args = str(results["config"]["model"]), str(results["config"]["model_args"])
    return Evaluation(newest, model, model_args, dict(sorted(samples.items())), {**results, **parts}, runs)


def _read_results(file: Path) -> tuple[dict, list[str]]:
    """What a results file holds, and its artemo tasks."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks = [task for task in results["configs"] if task.startswith(f"{TASK_PREFIX}_")]
        results["config"]["model"], results["config"]["model_args"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no results file of lmms-eval ({error!r}); evaluate again.") from error
    return results, tasks


def _results_files(path: Path) -> list[Path]:
    """Those of one model, newest first."""
    if path.is_file():
        if not path.name.endswith(RESULTS):
            raise InputError(f"{path} is not a file *{RESULTS} of lmms-eval; name that file or its folder.")
        return [path]
    # Their names begin with the date.
    found = sorted(path.glob(f"**/*{RESULTS}"), key=lambda file: file.name, reverse=True)
    if not found:
        raise InputError(
            f"{path} holds no *{RESULTS}: run lmms-eval with --tasks artemo --log_samples --output_path {path}"
        )
    folders = sorted({str(file.parent) for file in found})
    if len(folders) > 1:
        raise InputError(f"{path} holds the results of several models; name one of {', '.join(folders)}.")
    return found


def _refuse_other_run(newest: tuple[Path, dict], older: tuple[Path, dict]) -> None:
    """Raises InputError unless two results files are of the same model asked in the same way."""
    (one, first), (other, last) = newest, older
    a, b = _way_of(first), _way_of(last)
    for name, value in a.items():
        # What an older release of lmms-eval or of the tasks does not state cannot differ.
        if name in b and b[name] != value:
            raise InputError(
                f"{other} has tasks that {one} has not, but was run in another way: {name} {b[name]!r} and not "
                f"{value!r}. Name one of the two files, or evaluate into a folder for each."
            )


def _way_of(results: dict) -> dict[str, Any]:
    """What all runs have to share whose tasks stand beside each other as one model's."""
    task = next(task for task in results["configs"] if task.startswith(f"{TASK_PREFIX}_"))
    metadata = results["configs"][task].get("metadata") or {}
    return {
        **{name: results["config"][name] for name in ("model", "model_args")},
        **{name: results[name] for name in ("system_instruction", "chat_template_sha") if name in results},
        **{name: metadata[name] for name in ("benchmark", "version", "benchmark_sha256") if name in metadata},
    }


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
