"""Results of evaluations as data frames: the one reader of lmms-eval's results and logged samples, and of the
predictions that `vaemotionllm evaluate-emotion` wrote; and what a reader needs to evaluate the same again."""

import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark import schema
from ..benchmark.intervals import accuracy_interval, bootstrap, ccc, percentile_interval
from ..benchmark.prompts import options_of
from ..model.inputs import MODALITIES
from ..nano import select
from ..utils import InputError, read_json, read_json_lines, sha256_of_file

RESULTS = "_results.json"
TASK_PREFIX = "artemo_"
# The score of a task is the first of them that its samples have.
METRICS = ("circular_accuracy", "follows_sight", "ccc", "accuracy")
DIMENSIONS = ("valence", "arousal")
# Clip ids and scores of one cell, item by item.
Cell = tuple[Sequence[str], Sequence[float]]


def mean_ccc(points: pd.DataFrame, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of valence's and arousal's CCC, see `intervals.ccc`."""
    return np.mean([ccc(points[name], points[f"true_{name}"], weights) for name in DIMENSIONS], axis=0)  # type: ignore


@dataclass(frozen=True)
class Samples:
    """The logged answers to one task.

    Args:
        metric: "accuracy", "circular_accuracy", "follows_sight" or "ccc".
        benchmark: "name" and "version".
        rows: a row a sample, with what lmms-eval logged and `item_id`, `clip_id`, `response`, `missing`, `value`. In
            circular tasks there are several an item, one a rotation; in `artemo_va_*` the `value` is NaN and
            `predicted` and `true` are (valence, arousal), `predicted` None where the answer states no two numbers.
    """

    metric: str
    benchmark: dict[str, str]
    rows: pd.DataFrame

    @cached_property
    def items(self) -> pd.DataFrame:
        """`clip_id` and `value` by item id, in the task's order; an item is as good as its worst rotation."""
        return self.rows.groupby("item_id", sort=False).agg(clip_id=("clip_id", "first"), value=("value", "min"))

    @property
    def cell(self) -> Cell:
        return self.items.clip_id.tolist(), self.items.value.tolist()

    @cached_property
    def prompts(self) -> dict[str, list]:
        """Item id -> (prompt, target) of each of its samples."""
        return {
            item: list(zip(of.input, of.target)) for item, of in self.rows.groupby("item_id", sort=False)
        }  # fmt: skip

    @cached_property
    def points(self) -> pd.DataFrame:
        """The valence and arousal that the answers to an `artemo_va_*` task state, see `read_emotion`."""
        answered = self.rows[self.rows.predicted.notna()]
        return points_of(answered.clip_id, answered.predicted.tolist(), answered.true.tolist())

    @cached_property
    def answers(self) -> pd.DataFrame:
        """`item_id`, `clip_id`, `value`, `missing`, `response`, `answer`, `predicted` (None where the response names
        no option) and `options` of each sample of a multiple-choice task; KeyError or ValueError without them."""
        found = self.rows[["item_id", "clip_id", "value", "missing", "response"]].copy()
        labels = [dict(label) for label in self.rows["macro_f1"]]
        found["answer"] = [label["true"] for label in labels]
        found["predicted"] = pd.Series([label["predicted"] for label in labels], index=found.index, dtype=object)
        found["options"] = [tuple(options_of(prompt)) for prompt in self.rows["input"]]
        return found

    def score(self) -> tuple[float, tuple[float, float]]:
        """The task's score and its 95% interval, as the task itself prints them."""
        if self.metric != "ccc":
            clips, values = self.cell
            return sum(values) / len(values), accuracy_interval(clips, values)[1]
        if len(self.points) < 2:
            return math.nan, (math.nan, math.nan)
        drawn = bootstrap(len(self.points), lambda weights: mean_ccc(self.points, weights))
        return float(mean_ccc(self.points)), percentile_interval(drawn)


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
    def missing(self) -> int:
        """Questions that were not put to the model, since their media could not be read."""
        return round(sum(samples.rows.missing.sum() for samples in self.tasks.values()))

    def answers(self, task: str) -> pd.DataFrame:
        """`Samples.answers` of a multiple-choice task.

        Raises:
            InputError: the samples lack what the tasks of this release write.
        """
        try:
            return self.tasks[task].answers
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path}: a sample of {task} lacks what the tasks write ({error!r}); evaluate again with this "
                "release."
            ) from error


def metadata_of(evaluation: Evaluation) -> dict:
    """The metadata of the evaluation's first task of artemo: the same benchmark and model stand in all of them."""
    return dict(evaluation.results["configs"][next(iter(evaluation.tasks))]["metadata"])


def read_evaluation(path: Path) -> Evaluation:
    """Read a `*_results.json` of lmms-eval, or those of one model in a folder, with the samples beside them.

    Of several files, such as of a run with `--tasks artemo` and a later one with `--tasks artemo_va`, each task is
    that of the newest file that has it.

    Raises:
        InputError: there is none, the folder holds several models or runs of one model in different ways, samples are
            missing or incomplete, or a score in the results file is not that of the samples.
    """
    runs: dict[Path, dict] = {}
    samples: dict[str, Samples] = {}
    for file in _results_files(path):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            tasks = [task for task in results["configs"] if task.startswith(TASK_PREFIX)]
            results["config"]["model"], results["config"]["model_args"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is no results file of lmms-eval ({error!r}); evaluate again.") from error
        added = [task for task in tasks if task not in samples]
        if added:
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
    """Raises InputError unless two results files are of the same model, evaluated in the same way."""

    def way_of(results: dict) -> dict[str, Any]:
        task = next(task for task in results["configs"] if task.startswith(TASK_PREFIX))
        metadata = results["configs"][task].get("metadata") or {}
        return {
            **{name: results["config"][name] for name in ("model", "model_args")},
            **{name: results[name] for name in ("system_instruction", "chat_template_sha") if name in results},
            **{name: metadata[name] for name in ("benchmark", "version", "benchmark_sha256") if name in metadata},
        }

    (one, first), (other, last) = newest, older
    before = way_of(last)
    for name, value in way_of(first).items():
        # What an older release of lmms-eval or of the tasks does not state cannot differ.
        if name in before and before[name] != value:
            raise InputError(
                f"{other} has tasks that {one} has not, but was run in another way: {name} {before[name]!r} and not "
                f"{value!r}. Name one of the two files, or evaluate into a folder for each."
            )


def _read_samples(file: Path, results: dict, task: str) -> Samples:
    path = file.with_name(f"{file.name.removesuffix(RESULTS)}_samples_{task}.jsonl")
    if not path.is_file():
        raise InputError(f"{path} is missing: run lmms-eval with --log_samples.")
    try:
        logged = {row["doc_id"]: row for _, row in read_json_lines(path, "line")}
        metadata = results["configs"][task]["metadata"]
        benchmark = {"name": str(metadata["benchmark"]), "version": str(metadata["version"])}
        expected = results["n-samples"][task]["effective"]
        metric = next(name for name in METRICS if name in logged[0])
        rows = _rows_of([logged[doc_id] for doc_id in sorted(logged)], metric)
        written = next(value for key, value in results["results"][task].items() if key.split(",")[0] == metric)
    except (KeyError, TypeError, StopIteration) as error:
        raise InputError(f"{path} or {file} lacks what the tasks write ({error!r}); evaluate {task} again.") from error
    if len(logged) != expected:
        raise InputError(f"{path} holds {len(logged)} of {expected} answers; evaluate {task} again.")
    if rows.empty:
        raise InputError(f"{path} holds no item under every rotation of its options; evaluate without --limit.")
    samples = Samples(metric, benchmark, rows)
    score = samples.score()[0]
    if not math.isclose(score, written, abs_tol=1e-6) and not (math.isnan(score) and math.isnan(written)):
        raise InputError(f"{file} says {metric} {written} for {task}, but its samples say {score}.")
    return samples


def _rows_of(logged: list[dict], metric: str) -> pd.DataFrame:
    """See `Samples.rows`. KeyError where a row lacks what the tasks write."""
    rows = pd.DataFrame(logged)
    rows[["input", "target", "unparsable"]]  # each row has them
    about = [row["ci95_low"] for row in logged]
    rows["item_id"], rows["clip_id"] = ([of[name] for of in about] for name in ("item_id", "clip_id"))
    responses = [row["filtered_resps"] for row in logged]
    rows["response"] = [str(of[0] if isinstance(of, list) else of) for of in responses]
    rows["missing"] = rows["missing"].astype(float) if "missing" in rows else 0.0  # older ones have none
    if metric == "ccc":
        for name in ("predicted", "true"):
            rows[name] = pd.Series([of[name] for of in about], dtype=object)
        rows["value"] = math.nan
    elif metric == "circular_accuracy":
        rows["value"] = [of["correct"] for of in about]
        # With --limit the last item can lack rotations: nobody knows whether it is right.
        whole = rows.groupby("item_id")["item_id"].transform("size") >= [of["rotations"] for of in about]
        rows = rows[whole]
    else:
        rows["value"] = rows[metric].astype(float)
    return rows


def points_of(clip_ids: Iterable[str], predicted: Sequence, true: Sequence) -> pd.DataFrame:
    """A row a clip: `clip_id`, `valence`, `arousal`, `true_valence`, `true_arousal`, from (valence, arousal) pairs."""
    pairs = [np.array(values, dtype=np.float64).reshape(-1, 2) for values in (predicted, true)]
    columns = dict(zip(("valence", "arousal", "true_valence", "true_arousal"), np.hstack(pairs).T))
    return pd.DataFrame({"clip_id": list(clip_ids), **columns})


def read_emotion(path: Path) -> dict[str, pd.DataFrame]:
    """Predictions that `vaemotionllm evaluate-emotion` wrote: modality -> a row a clip, see `points_of`.

    Raises:
        InputError: the file is missing or lacks a modality, or holds a value that is not finite.
    """
    written = read_json(path, "what `vaemotionllm evaluate-emotion` writes")
    found = {}
    for name in MODALITIES:
        try:
            found[name] = points_of(written[name]["clip_ids"], written[name]["predicted"], written[name]["true"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} has no complete predictions of the modality {name!r} ({error!r}); run "
                "`vaemotionllm evaluate-emotion` again"
            ) from error
        if found[name].empty or not np.isfinite(found[name].drop(columns="clip_id")).all(axis=None):
            raise InputError(f"{path}: the modality {name!r} holds no value, or one that is not finite")
    return found


# ---- the benchmark that was evaluated


@dataclass(frozen=True)
class BenchmarkItems:
    """A benchmark's folder and its items as they stand in its file, by id; media paths are relative to the folder.

    Media need not be there, unlike for an evaluation: a report can be made from result files and a file of items.
    """

    folder: Path
    rows: dict[str, dict]


def find_items(evaluations: Sequence[Evaluation], given: str | None = None) -> tuple[BenchmarkItems | None, str]:
    """The benchmark that was evaluated, or None and why it is not at hand.

    Args:
        evaluations: those of a report, of the same items.
        given: `--benchmark`; else the folder that a results file names counts, then ARTEMO_DATASET.

    Raises:
        InputError: `given` cannot be read, or is another benchmark.
    """
    if given is not None:
        items = read_items(select.find(given))
        if reason := other_than(items, evaluations):
            raise InputError(f"--benchmark {given} is not the benchmark that was evaluated: {reason}.")
        return items, ""
    named = [metadata_of(evaluation).get("benchmark_folder") for evaluation in evaluations]
    reasons = []
    for name in dict.fromkeys(str(name) for name in (*named, os.environ.get(select.VARIABLE)) if name):
        try:
            items = read_items(select.find(name))
        except InputError as error:
            reasons.append(str(error).rstrip("."))
            continue
        if not (reason := other_than(items, evaluations)):
            return items, ""
        reasons.append(f"{name} is not the benchmark that was evaluated: {reason}")
    return None, "; ".join(reasons) or "the result files name no benchmark folder"


def read_items(folder: Path) -> BenchmarkItems:
    """The items of a benchmark folder, without a look at their media.

    Raises:
        InputError: the folder is no benchmark, or a line of it no item.
    """
    folder, _ = schema.open_folder(folder)
    rows: dict[str, dict] = {}
    for number, row in schema.enumerate_rows(folder):
        if isinstance(row, InputError):
            raise row
        if not isinstance(row, dict) or any(row.get(column) is None for column in schema.REQUIRED):
            raise InputError(f"{schema.where_of(folder, number)}: no item; run `vaemotionllm benchmark validate`.")
        rows[row["id"]] = row
    return BenchmarkItems(folder, rows)


def other_than(items: BenchmarkItems, evaluations: Sequence[Evaluation]) -> str:
    """What tells that these are not the items that were evaluated; "" where nothing does.

    Older results do not state the hash of the items, so options and questions are compared too. Where results state
    different revisions, of which the report has a warning, one of them has to be this one.
    """
    for evaluation in evaluations:
        for task, samples in evaluation.tasks.items():
            if samples.metric not in ("accuracy", "circular_accuracy"):
                continue  # no options, or pairs of the benchmark's items
            for row in samples.rows.drop_duplicates("item_id").itertuples():
                if (item := items.rows.get(row.item_id)) is None:
                    return f"it has no item {row.item_id!r} of {task}"
                where = f"the item {row.item_id!r} of {task} has"
                try:
                    if sorted(options_of(row.input)) != sorted(item["options"]):
                        return f"{where} other options there"
                except ValueError as error:
                    return f"{where} no options: {error}"
                label = getattr(row, "macro_f1", None)
                if samples.metric == "accuracy" and label and label["true"] != item["answer"]:
                    return f"{where} another answer there"
                if item["question"] not in row.input:
                    return f"{where} another question there"
    stated = {str(of["benchmark_sha256"]) for e in evaluations if (of := metadata_of(e)).get("benchmark_sha256")}
    if stated and (found := sha256_of_file(items.folder / schema.ITEMS_FILE)) not in stated:
        return f"the hash of its items is {found[:16]} and not {' or '.join(of[:16] for of in sorted(stated))}"
    return ""


# ---- what a reader needs to evaluate the same again


# lmms-eval's defaults that are not None, False or "" (0.7): such arguments need no word in the command.
_DEFAULTS: dict[str, Any] = {
    "batch_size": "1", "offset": 0, "seed": [0, 1234, 1234, 1234], "repeats": 1,
    "reasoning_tags": '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]',
}  # fmt: skip
# Arguments that change no answer: where and what is logged, caches, and statistics that are made afterwards.
_LEFT_OUT = {
    "agentic_trace_mode", "alpha", "baseline", "cache_requests", "check_integrity", "config", "correlation",
    "effect_size", "hf_hub_log_args", "log_samples_suffix", "power", "power_analysis", "process_docs_parallel",
    "show_config", "std_a", "std_b", "swanlab_args", "swanlab_log_samples", "timezone", "tui", "use_cache",
    "verbosity", "wandb_args", "wandb_log_samples", "write_out",
}  # fmt: skip
# These first, in this order; the others in that of the file.
_FIRST = ("model", "model_args", "tasks", "batch_size", "gen_kwargs", "limit")


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """Model, versions, data and decoding of one evaluation, from the results file; None is what it does not state."""
    results, metadata = evaluation.results, metadata_of(evaluation)
    config, run, shots = results["config"], metadata.get("run") or {}, results.get("n-shot") or {}
    seeds = [f"{name} {config[f'{name}_seed']}" for name in ("random", "numpy", "torch", "fewshot")
             if config.get(f"{name}_seed") is not None]  # fmt: skip
    stated = ("attention", "dtype", "num_frames", "sampling_rate_hz", "max_audio_s", "use_adapter", "scoring")
    return {
        "model": evaluation.model_args or evaluation.model,
        "model_revision": run.get("revision"),
        "adapter": run.get("adapter") or config.get("model_backend"),
        **(run.get("versions") or {"versions": None}),
        "benchmark": metadata.get("benchmark"),
        "benchmark_version": metadata.get("version"),
        "benchmark_sha256": metadata.get("benchmark_sha256"),
        "build_key": metadata.get("build_key"),
        **{name: run.get(name) for name in stated},
        "device": run.get("device") or config.get("device"),
        "batch_size": config.get("batch_size"),
        # lmms-eval states both always, as null where there is none.
        "system_instruction": results.get("system_instruction")
        or ("none" if "system_instruction" in results else None),
        "chat_template_sha256": results.get("chat_template_sha")
        or ("none" if "chat_template_sha" in results else None),
        "num_fewshot": ", ".join(str(n) for n in sorted({shots[t] for t in evaluation.tasks if t in shots})) or None,
        "seeds": ", ".join(seeds) or None,
        "date": results.get("date"),
    }


def task_settings(evaluation: Evaluation, task: str) -> dict[str, Any]:
    """Decoding, numbers of documents and the hash of the prompts of one task."""
    counts, prompts = evaluation.results["n-samples"][task], evaluation.tasks[task].prompts
    # Each item's id with its prompts and targets, in the order of the ids.
    text = json.dumps([[item, prompts[item]] for item in sorted(prompts)], ensure_ascii=False)
    return {
        "generation": evaluation.results["configs"][task].get("generation_kwargs"),
        "documents": counts["effective"],
        "documents_of_task": counts.get("original", counts["effective"]),
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def command_of(evaluation: Evaluation) -> str | None:
    """The commands that were run, one a line, the oldest first; None where a results file does not hold them."""
    folder = metadata_of(evaluation).get("benchmark_folder")
    dataset = f"{select.VARIABLE}={shlex.quote(str(folder))} " if folder else ""
    lines = []
    for results in reversed(evaluation.runs.values()):
        given = results["config"].get("resolved_cli_args")
        if not isinstance(given, dict):
            return None
        lines.append(dataset + shlex.join(["lmms-eval", *words_of(given)]))
    return "\n".join(lines)


def words_of(given: dict[str, Any]) -> list[str]:
    """The words of a command that gives these arguments, without those that are defaults or change no answer."""

    def word(value: Any) -> str:
        if isinstance(value, list):
            nested = any(isinstance(part, list) for part in value)
            return json.dumps(value) if nested else ",".join(map(str, value))
        # `--limit` is a float, of which a whole one is a number of questions.
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    words = []
    for name in dict.fromkeys((*_FIRST, *given)):
        value = given.get(name)
        # 0 is a value: `--num_fewshot 0` is not the default.
        if name in _LEFT_OUT or value is None or value is False or value == "":
            continue
        if name not in _DEFAULTS or word(value) != word(_DEFAULTS[name]):
            words += [f"--{name}"] if value is True else [f"--{name}", word(value)]
    return words
