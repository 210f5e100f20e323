"""Results of evaluations as data frames: the one reader of lmms-eval's results and logged samples, and of the
predictions that `vaemotionllm evaluate-emotion` wrote; and what a reader needs to evaluate the same again."""

import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
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
from .refusals import configs_of, tasks_of

RESULTS = "_results.json"
TASK_PREFIX = "artemo_"
# The score of a task is the first of them that its samples have.
METRICS = ("circular_accuracy", "follows_sight", "ccc", "accuracy")
# What lmms-eval and the tasks log of every answer.
COLUMNS = ["doc_id", "input", "target", "filtered_resps", "ci95_low", "unparsable", "missing"]
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
        rows: a row a sample, with what lmms-eval logged and `item_id`, `clip_id`, `response`, `value`. In circular
            tasks there are several an item, one a rotation; in `artemo_va_*` the `value` is NaN and `predicted` and
            `true` are (valence, arousal), `predicted` None where the answer states no two numbers; where the metric is
            the accuracy, `answer`, `predicted` (None where the response names no option) and `options` are texts.
        config: of the task, from the results file.
        counts: "effective" and "original" number of documents.
    """

    metric: str
    benchmark: dict[str, str]
    rows: pd.DataFrame
    config: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)

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
        groups = self.rows.groupby("item_id", sort=False)
        return {item: list(zip(of.input, of.target)) for item, of in groups}

    @cached_property
    def points(self) -> pd.DataFrame:
        """The valence and arousal that the answers to an `artemo_va_*` task state, see `points_of`."""
        answered = self.rows[self.rows.predicted.notna()]
        return points_of(answered.clip_id, answered.predicted.tolist(), answered.true.tolist())

    @property
    def value(self) -> float:
        """The task's score, as the task itself prints it."""
        if self.metric != "ccc":
            return sum(self.items.value) / len(self.items)
        return float(mean_ccc(self.points)) if len(self.points) > 1 else math.nan

    def score(self) -> tuple[float, tuple[float, float]]:
        """The task's score and its 95% interval."""
        if self.metric != "ccc":
            return self.value, accuracy_interval(*self.cell)[1]
        if len(self.points) < 2:
            return math.nan, (math.nan, math.nan)
        return self.value, percentile_interval(bootstrap(len(self.points), lambda of: mean_ccc(self.points, of)))


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what was evaluated, and the answers of each artemo task.

    Args:
        path: the newest results file.
        tasks: task -> its answers, of the newest run that has it.
        runs: results file -> what it holds, newest first, of the runs that gave the tasks.
    """

    path: Path
    model: str
    model_args: str
    tasks: dict[str, Samples]
    runs: dict[Path, dict]

    @property
    def missing(self) -> int:
        """Questions that were not put to the model, since their media could not be read."""
        return round(sum(samples.rows.missing.sum() for samples in self.tasks.values()))


def metadata_of(evaluation: Evaluation) -> dict:
    """The metadata of the evaluation's first task of artemo: the same benchmark and model stand in all of them."""
    return dict(next(iter(evaluation.tasks.values())).config["metadata"])


def read_evaluation(path: Path) -> Evaluation:
    """Read a `*_results.json` of lmms-eval, or those of one model in a folder, with the samples beside them.

    Of several files, such as of a run with `--tasks artemo` and a later one with `--tasks artemo_va`, each task is
    that of the newest file that has it.

    Raises:
        InputError: there is none, the folder holds several models or runs of one model in different ways, samples are
            missing or incomplete, or a score in the results file is not that of the samples.
    """
    runs: dict[Path, dict] = {}
    tasks: dict[str, Samples] = {}
    ways: dict[Path, dict[str, Any]] = {}
    for file in _results_files(path):
        results = read_json(file, "results of lmms-eval")
        try:
            way = {name: str(results["config"][name]) for name in ("model", "model_args")}
            added = [task for task in results["configs"] if task.startswith(TASK_PREFIX) and task not in tasks]
        except (KeyError, TypeError) as error:
            raise InputError(f"{file} is no results file of lmms-eval ({error!r}); evaluate again.") from error
        if added:
            read = {task: _read_samples(file, results, task) for task in added}
            metadata = read[added[0]].config["metadata"]
            way |= {name: results.get(name) for name in ("system_instruction", "chat_template_sha")}
            way |= {name: metadata.get(name) for name in ("benchmark", "version", "benchmark_sha256")}
            for other, before in ways.items():
                if odd := [name for name in way if way[name] != before[name]]:
                    raise InputError(
                        f"{file} has tasks that {other} has not, but was run in another way: {odd[0]} "
                        f"{way[odd[0]]!r} and not {before[odd[0]]!r}. Name one of the two files, or evaluate into a "
                        "folder for each."
                    )
            runs[file], ways[file] = results, way
            tasks |= read
    if not runs:
        raise InputError(f"{path} holds no task of artemo; run lmms-eval with --tasks artemo.")
    newest = next(iter(runs))
    return Evaluation(newest, ways[newest]["model"], ways[newest]["model_args"], dict(sorted(tasks.items())), runs)


def _results_files(path: Path) -> list[Path]:
    """Those of one model, newest first."""
    if path.is_file():
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


def _read_samples(file: Path, results: dict, task: str) -> Samples:
    path = file.with_name(f"{file.name.removesuffix(RESULTS)}_samples_{task}.jsonl")
    if not path.is_file():
        raise InputError(f"{path} is missing: run lmms-eval with --log_samples.")
    logged = pd.DataFrame([row for _, row in read_json_lines(path, "line")], dtype=object)
    try:
        config, counts = results["configs"][task], results["n-samples"][task]
        benchmark = {"name": str(config["metadata"]["benchmark"]), "version": str(config["metadata"]["version"])}
        metric = next(name for name in METRICS if name in logged)
        logged = logged.drop_duplicates("doc_id", keep="last").sort_values("doc_id", ignore_index=True)
        rows = _rows_of(logged, metric)
        written = next(value for key, value in results["results"][task].items() if key.split(",")[0] == metric)
        expected = counts["effective"]
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(f"{path} or {file} lacks what the tasks write ({error!r}); evaluate {task} again.") from error
    if len(logged) != expected:
        raise InputError(f"{path} holds {len(logged)} of {expected} answers; evaluate {task} again.")
    if rows.empty:
        raise InputError(f"{path} holds no item under every rotation of its options; evaluate without --limit.")
    samples = Samples(metric, benchmark, rows, config, counts)
    if not np.isclose(samples.value, written, rtol=0, atol=1e-6, equal_nan=True):
        raise InputError(f"{file} says {metric} {written} for {task}, but its samples say {samples.value}.")
    return samples


def _rows_of(logged: pd.DataFrame, metric: str) -> pd.DataFrame:
    """See `Samples.rows`. KeyError or ValueError where a row lacks what the tasks write."""
    logged[COLUMNS]  # each row has them
    about = pd.DataFrame(logged["ci95_low"].tolist(), dtype=object)
    rows = logged.assign(item_id=about["item_id"], clip_id=about["clip_id"], value=math.nan)
    responses = [str(of[0] if isinstance(of, list) else of) for of in rows["filtered_resps"]]
    rows["response"] = pd.Series(responses, rows.index, dtype=object)  # lone surrogates fit no other type
    rows[["unparsable", "missing"]] = rows[["unparsable", "missing"]].astype(float)
    if metric == "ccc":
        return rows.assign(predicted=about["predicted"], true=about["true"])
    if metric == "circular_accuracy":
        rows["value"] = about["correct"].astype(float)
        # With --limit the last item can lack rotations: nobody knows whether it is right.
        return rows[rows.groupby("item_id")["item_id"].transform("size") >= about["rotations"]]
    rows["value"] = rows[metric].astype(float)
    if metric == "accuracy":
        labels = pd.DataFrame(rows["macro_f1"].tolist(), dtype=object)
        rows = rows.assign(answer=labels["true"], predicted=labels["predicted"])
        rows["options"] = [tuple(options_of(prompt)) for prompt in rows["input"]]
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
    named = [metadata_of(evaluation).get("benchmark_folder") for evaluation in evaluations]
    named = [given] if given is not None else [*named, os.environ.get(select.VARIABLE)]
    reasons = []
    for name in dict.fromkeys(str(name) for name in named if name):
        try:
            items = read_items(select.find(name))
            refuse_other_benchmark(items, evaluations)
            return items, ""
        except InputError as error:
            if given is not None:
                raise
            reasons.append(str(error).rstrip("."))
    return None, "; ".join(reasons) or "the result files name no benchmark folder"


def read_items(folder: Path) -> BenchmarkItems:
    """The items of a benchmark folder, without a look at their media.

    Raises:
        InputError: the folder is no benchmark, or a line of its items no JSON.
    """
    folder, _ = schema.open_folder(folder)
    return BenchmarkItems(folder, {row["id"]: row for _, row in read_json_lines(folder / schema.ITEMS_FILE, "line")})


def refuse_other_benchmark(items: BenchmarkItems, evaluations: Sequence[Evaluation]) -> None:
    """Raises InputError unless these are the items that were evaluated, by their ids, options and hash.

    Where results state different revisions, of which the report has a warning, one of them has to be this one.
    """
    odd = []
    for samples in (samples for of in evaluations for samples in of.tasks.values() if samples.metric == "accuracy"):
        for item, options in zip(samples.rows.item_id, samples.rows.options):
            if sorted(items.rows.get(item, {}).get("options", [])) != sorted(options):
                odd.append(f"the item {item!r} is not there, or has other options")
    stated = {str(of["benchmark_sha256"]) for e in evaluations if (of := metadata_of(e)).get("benchmark_sha256")}
    if stated and (found := sha256_of_file(items.folder / schema.ITEMS_FILE)) not in stated:
        odd.append(f"the hash of its items is {found[:16]} and not {' or '.join(h[:16] for h in stated)}")
    if odd:
        raise InputError(f"{items.folder} is not the benchmark that was evaluated: {odd[0]}.")


# ---- what a reader needs to evaluate the same again


# Arguments of lmms-eval (0.7) that can change an answer, in the order in which the command names them.
_ARGUMENTS = (
    "model", "model_args", "tasks", "batch_size", "gen_kwargs", "limit", "offset", "num_fewshot", "seed", "repeats",
    "system_instruction", "apply_chat_template", "fewshot_as_multiturn", "reasoning_tags", "include_path", "device",
    "max_batch_size", "force_simple", "predict_only", "trust_remote_code", "launcher_args",
)  # fmt: skip


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """Model, versions, data and decoding of one evaluation, from the results file; None is what it does not state."""
    results, metadata = evaluation.runs[evaluation.path], metadata_of(evaluation)
    config, run = results["config"], metadata.get("run") or {}
    seeds = {name: config.get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")}
    return {
        "model": evaluation.model_args or evaluation.model,
        **{name: metadata.get(name) for name in ("benchmark", "version", "benchmark_sha256", "build_key")},
        **run.get("versions", {}),
        **{name: run.get(name) for name in RUN},
        "scoring": run.get("scoring") or "generate",  # of our adapter; a stock one generates
        **{name: results.get(name) or "none" for name in ("system_instruction", "chat_template_sha")},
        "num_fewshot": ", ".join(sorted(map(str, set(results.get("n-shot", {}).values())))) or None,
        "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items() if seed is not None) or None,
        "batch_size": config.get("batch_size"),
        "date": results.get("date"),
    }


def task_settings(samples: Samples) -> dict[str, Any]:
    """Decoding, numbers of documents and the hash of the prompts of one task."""
    # Each item's id with its prompts and targets, in the order of the ids.
    text = json.dumps(sorted(samples.prompts.items()), ensure_ascii=False)
    return {
        "generation": samples.config.get("generation_kwargs"),
        "documents": samples.counts["effective"],
        "documents_of_task": samples.counts.get("original", samples.counts["effective"]),
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def command_of(evaluation: Evaluation) -> str | None:
    """The commands that were run, one a line, the oldest first; None where a results file does not hold them."""
    folder = metadata_of(evaluation).get("benchmark_folder")
    dataset = f"{select.VARIABLE}={shlex.quote(str(folder))} " if folder else ""
    given = [results["config"].get("resolved_cli_args") for results in reversed(evaluation.runs.values())]
    if not all(given):
        return None
    return "\n".join(dataset + shlex.join(["lmms-eval", *words_of(arguments)]) for arguments in given)


def words_of(given: Mapping[str, Any]) -> list[str]:
    """The words of a command of lmms-eval that gives these arguments, without those that change no answer."""
    words = []
    for name in _ARGUMENTS:
        value = given.get(name)
        if value is None or value is False or value == "":
            continue
        if isinstance(value, list):
            nested = any(isinstance(part, list) for part in value)
            value = json.dumps(value) if nested else ",".join(map(str, value))
        elif isinstance(value, float) and value.is_integer():
            value = int(value)  # `--limit` is a float, of which a whole one is a number of questions
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


# ---- metadata of a run. lmms-eval's results file holds the arguments of the command alone, and defaults are not among
# them. These are read from the loaded model instead, of any adapter, and kept in the tasks' metadata. What a model
# does not hold is left out, never guessed.


PACKAGES = ("vaemotionllm", "lmms_eval", "transformers", "torch")
RUN = ("adapter", "revision", "attention", "dtype", "device", "num_frames", "sampling_rate_hz", "max_audio_s",
       "use_adapter")  # fmt: skip


def note(model: Any, task_dict: Mapping) -> None:
    """Put the metadata of a loaded lmms-eval model into that of artemo's tasks, as "run"."""
    run = run_metadata(model)
    for name, task in tasks_of(task_dict).items():
        if name.startswith(TASK_PREFIX):
            task.set_config("metadata", {**task.get_config("metadata"), "run": run})


def run_metadata(model: Any) -> dict:
    """Metadata of a loaded lmms-eval model, as JSON takes it.

    Returns:
        "versions" (package -> version), and those of `RUN` and "scoring" that the model holds; "revision" is the Hub's
        commit.
    """
    processor = getattr(model, "processor", None) or getattr(model, "_processor", None)
    config, weights = next(iter(configs_of(model)), None), getattr(model, "model", None)
    found = {
        "adapter": f"{type(model).__module__}.{type(model).__name__}",
        "revision": getattr(config, "_commit_hash", None),
        "attention": getattr(config, "_attn_implementation", None),
        "dtype": getattr(weights, "dtype", None),
        "device": getattr(weights, "device", None),
    }
    # The first that the adapter or its processor has.
    holders = (model, processor, getattr(processor, "feature_extractor", None))
    for name, attributes in {
        "num_frames": ("num_frames", "max_num_frames", "_max_num_frames"), "sampling_rate_hz": ("sampling_rate",),
        "max_audio_s": ("max_audio_s",), "use_adapter": ("use_adapter",), "scoring": ("scoring",),
    }.items():  # fmt: skip
        values = [getattr(holder, attribute, None) for holder in holders for attribute in attributes]
        found[name] = next((value for value in values if isinstance(value, bool | int | float | str)), None)
    written = {name: value for name, value in found.items() if value is not None}
    return {
        "versions": {name: version(name) for name in PACKAGES},
        **{name: value if isinstance(value, bool | int | float) else str(value) for name, value in written.items()},
    }
