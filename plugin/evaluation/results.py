"""Reads what a run left on disk: lmms-eval's results and samples, valence-arousal predictions, training logs, state.

Nothing is invented: a file that should be there and is not, a task without samples, or a score that lmms-eval and the
samples disagree about, is an `InputError` that names the file.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .steps import STATE_FILE

STAGES = ("backbone", "stage1", "stage2")
CONTROLS = ("silence", "noise", "mismatch")
CELLS = tuple(f"{aspect}_{path}" for aspect in ASPECTS for path in MODALITIES)
# The stages whose sound is replaced in the controls: after stage 1 hearing is measured, stage 2 is what a user keeps.
CONTROL_STAGES = ("stage1", "stage2")


@dataclass(frozen=True)
class Outcome:
    """One question. `predicted` is None where the response names no option; `missing` marks one that was not asked,
    since its media could not be read."""

    item_id: str
    clip_id: str
    answer: str
    predicted: str | None
    correct: float
    options: tuple[str, ...]
    missing: bool = False


@dataclass(frozen=True)
class ModalityPredictions:
    """Valence and arousal of one path: arrays of shape (clips,), values in [-1, 1]."""

    clip_ids: tuple[str, ...]
    valence: np.ndarray
    arousal: np.ndarray
    true_valence: np.ndarray
    true_arousal: np.ndarray


@dataclass
class Run:
    """Everything that the report is made from."""

    out: Path
    state: dict
    benchmark_dir: Path
    benchmark: dict
    cells: dict[str, dict[str, list[Outcome]]]
    controls: dict[str, dict[str, dict[str, list[Outcome]]]]  # stage, control, cell
    va: dict[str, dict[str, ModalityPredictions]]
    curves: dict[str, list[dict]]
    items: dict[str, dict] = field(default_factory=dict)

    def command(self, *names: str) -> str:
        """The commands of the named steps, one a line."""
        return "\n".join(self.state["steps"][name]["command"] for name in names)


def read_run(out: Path) -> Run:
    """Reads a demo's output folder.

    Raises:
        InputError: naming the file that is missing or does not hold what it should.
    """
    state = read_json(out / STATE_FILE, "the state file of `vaemotionllm demo`")
    try:
        benchmark_dir = out / state["layout"]["benchmark"]
        evaluations = {stage: out / state["layout"]["evaluations"][stage] for stage in STAGES}
        curves = {stage: Path(out, state["layout"]["curves"][stage]) for stage in STAGES}
        state["seed"], state["versions"], state["steps"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{out / STATE_FILE} has no entry {error}; run `vaemotionllm demo --out {out}` again"
        ) from error
    benchmark = read_json(benchmark_dir / "benchmark.json", "the benchmark's description")
    items = read_items(benchmark_dir)
    cells = {
        stage: {
            cell: read_task(evaluations[stage] / "lmms_eval", f"artemo_{cell}", cell_items(items, cell))
            for cell in CELLS
        }
        for stage in STAGES
    }
    controls = {
        stage: {
            control: {
                f"{aspect}_audio": read_task(
                    evaluations[stage] / "lmms_eval",
                    f"artemo_{aspect}_audio_{control}",
                    cell_items(items, f"{aspect}_audio"),
                )
                for aspect in ASPECTS
            }
            for control in CONTROLS
        }
        for stage in CONTROL_STAGES
    }
    va = {stage: read_emotion(evaluations[stage] / "emotion.json") for stage in STAGES}
    return Run(
        out=out,
        state=state,
        benchmark_dir=benchmark_dir,
        benchmark=benchmark,
        cells=cells,
        controls=controls,
        va=va,
        curves={stage: read_metrics(path) for stage, path in curves.items()},
        items={item["id"]: item for item in items},
    )


def read_items(benchmark_dir: Path) -> list[dict]:
    """The benchmark's items as they stand in its file."""
    return [json.loads(line) for line in _lines(benchmark_dir / "test.jsonl", "the benchmark's items")]


def cell_items(items: list[dict], cell: str) -> list[dict]:
    """The benchmark's items of one cell in the file's order, which is the order of the task's documents."""
    aspect, path = cell.split("_")
    chosen = [item for item in items if item["aspect"] == aspect and item["modality"] == path]
    if not chosen:
        raise InputError(f"the benchmark has no item with aspect {aspect!r} and modality {path!r}")
    return chosen


def read_task(folder: Path, task: str, items: list[dict]) -> list[Outcome]:
    """The outcomes of one task of lmms-eval, from `--log_samples` files, joined with the benchmark's items.

    Args:
        folder: what `lmms-eval --output_path` was given; the newest evaluation in it counts.
        task: task name.
        items: the task's documents in order; `doc_id` of a sample is the index into it.

    Raises:
        InputError: if a file is missing, a question was not answered, or the accuracy in lmms-eval's result file is
            not the mean of the samples.
    """
    from ..benchmark.prompts import letter_of, parse_choice

    pattern = f"*_samples_{task}.jsonl"
    found = sorted(folder.glob(f"**/{pattern}"), key=lambda path: path.name)
    if not found:
        raise InputError(
            f"no file {folder}/*/{pattern}: run lmms-eval with --tasks ...{task}... --log_samples "
            f"--output_path {folder}"
        )
    samples_file = found[-1]
    results_file = samples_file.with_name(samples_file.name.replace(f"_samples_{task}.jsonl", "_results.json"))
    results = read_json(results_file, "lmms-eval's results")
    try:
        metric = results["configs"][task]["metric_list"][0]["metric"]
        score = next(value for key, value in results["results"][task].items() if key.split(",")[0] == metric)
    except (KeyError, IndexError, StopIteration, TypeError) as error:
        raise InputError(f"{results_file} has no metric for the task {task!r}") from error
    outcomes: dict[int, Outcome] = {}
    for line in _lines(samples_file, "lmms-eval's samples"):
        sample = json.loads(line)
        item = items[sample["doc_id"]] if sample["doc_id"] < len(items) else None
        if item is None or str(sample["target"]) not in (item["answer"], letter_of(item["options"], item["answer"])):
            raise InputError(
                f"{samples_file}: document {sample['doc_id']} has the target {sample['target']!r}, which is "
                "not the benchmark's; evaluate again with the same benchmark"
            )
        response = sample["filtered_resps"]
        response = response[0] if isinstance(response, list) else response
        value = sample[metric]
        outcomes[sample["doc_id"]] = Outcome(
            item_id=item["id"],
            clip_id=item["clip_id"],
            answer=item["answer"],
            predicted=parse_choice(response, item["options"]),
            correct=float(value["score"] if isinstance(value, dict) else value),
            options=tuple(item["options"]),
        )
    if len(outcomes) != len(items):
        raise InputError(
            f"{samples_file} answers {len(outcomes)} of {len(items)} questions of {task}; run lmms-eval "
            "without --limit"
        )
    ordered = [outcomes[index] for index in range(len(items))]
    mean = sum(outcome.correct for outcome in ordered) / len(ordered)
    if not math.isclose(mean, score, abs_tol=1e-6):
        raise InputError(
            f"{results_file} says {metric} {score} for {task}, but its samples say {mean}; evaluate again"
        )
    return ordered


def read_emotion(path: Path) -> dict[str, ModalityPredictions]:
    """Predictions that `vaemotionllm evaluate-emotion` wrote, by path; their CCC is computed anew in the report."""
    written = read_json(path, "what `vaemotionllm evaluate-emotion` writes")
    found = {}
    for name in MODALITIES:
        try:
            clip_ids = tuple(written[name]["clip_ids"])
            # (clips, 2): valence, arousal
            predicted, true = (np.array(written[name][key], dtype=np.float64) for key in ("predicted", "true"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} has no complete predictions of the {name!r} path ({error!r}); run "
                "`vaemotionllm evaluate-emotion` again"
            ) from error
        if not clip_ids or not predicted.shape == true.shape == (len(clip_ids), 2):
            raise InputError(
                f"{path}: the {name!r} path has {len(clip_ids)} clips, predictions of shape {predicted.shape} and "
                f"true points of shape {true.shape}; (clips, 2) is needed"
            )
        if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
            raise InputError(f"{path}: the {name!r} path holds a value that is not finite; look at the model's heads")
        found[name] = ModalityPredictions(clip_ids, predicted[:, 0], predicted[:, 1], true[:, 0], true[:, 1])
    return found


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`, in order of `step`."""
    rows = [json.loads(line) for line in _lines(path, "a training log")]
    if not rows:
        raise InputError(f"{path} holds no row; train again")
    # A resumed training writes some steps a second time: the later row is the one that counts.
    by_step: dict[int, dict] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def read_json(path: Path, what: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {what}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): {what}") from error


def _lines(path: Path, what: str) -> list[str]:
    try:
        # Not splitlines: it also splits at U+2028 and others, which JSON allows inside a string.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {what}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): {what}") from error
