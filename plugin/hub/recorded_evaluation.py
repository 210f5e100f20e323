"""A few answers of an evaluation, kept beside a model, so that whoever has the benchmark can ask the same again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import schema
from ..benchmark.prompts import is_missing, parse_choice
from ..evaluation import artemo
from ..evaluation.results import CELLS
from ..evaluation.task_samples import read_evaluation
from ..nano import select
from ..utils import InputError
from .folder_checks import check_is_model
from .opening import Unusable, read_json_object
from .recording import JSON_FILE, MANIFEST, read_recording, write
from .tolerances import ANSWERS
from .verification import AGREES, DISAGREES, NOT_CHECKED, Check, Verification

ITEMS_A_TASK = 16
TASKS = tuple(f"{artemo.TASK_PREFIX}_{cell}" for cell in CELLS)
ADAPTER = "vaemotionllm.evaluation.lmms_model.VAEmotionLLM"
# What of a run decides its answers, as arguments of our lmms-eval model; dtype and attention are the caller's.
ARGUMENTS = ("num_frames", "max_audio_s", "use_adapter", "scoring")


@dataclass(frozen=True)
class Questions:
    """What was recorded of an evaluation, and the items of the benchmark that were asked, by their ids."""

    about: dict[str, Any]
    items: dict[str, schema.Item]


def record_evaluation(folder: Path, results: Path, items: int = ITEMS_A_TASK) -> dict[str, int]:
    """Adds the first answers of each task `artemo_{content,emotion}_{audio,visual,av}` to a folder's recording.

    Args:
        folder: a model folder with a recording, see `recording.record`.
        results: what `lmms-eval --output_path` was given, with `--log_samples`, for this model.
        items: answers a task.

    Returns:
        Task -> answers.

    Raises:
        InputError: no recording, results that cannot be read or were made in a way that cannot be repeated here.
    """
    if (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds a {MANIFEST}, which lists its files; record first and list them afterwards.")
    recording = read_recording(folder)
    if recording is None:
        raise InputError(f"{folder} holds no {JSON_FILE}; run `vaemotionllm verify {folder} --record` first.")
    evaluation = read_evaluation(results)
    tasks = [task for task in TASKS if task in evaluation.tasks]
    if not tasks:
        raise InputError(f"{results} has none of the tasks {', '.join(TASKS)}; evaluate with artemo.")
    configs = evaluation.results["configs"]
    if lacking := [task for task in tasks if "generation_kwargs" not in configs[task]]:
        raise InputError(f"{results} does not say how answers of {lacking[0]} were generated; evaluate again.")
    metadata = configs[tasks[0]]["metadata"]
    run = metadata.get("run") or {}
    if run.get("adapter") != ADAPTER:
        raise InputError(f"{results} is of the adapter {run.get('adapter')!r}; evaluate with `--model vaemotionllm`.")
    if not metadata.get("benchmark_sha256") or evaluation.results.get("system_instruction"):
        raise InputError(
            f"{results} does not state the hash of its benchmark's items, or has a system instruction; evaluate again "
            "with this release and without --system_instruction."
        )
    recorded = {}
    for task in tasks:
        samples = evaluation.tasks[task]
        answers = {item: _answer(rows[0]) for item, rows in samples.rows.items()}
        chosen = [item for item, answer in answers.items() if not is_missing(answer)][:items]
        recorded[task] = {
            "items": chosen,
            "answers": [answers[item] for item in chosen],
            "accuracy": sum(samples.values[item] for item in chosen) / max(len(chosen), 1),
            "generation": configs[task]["generation_kwargs"],
        }
    about = {
        "benchmark": {
            "name": metadata["benchmark"],
            "version": metadata["version"],
            "sha256": metadata["benchmark_sha256"],
            "build_key": metadata.get("build_key"),
        },
        "run": {name: run[name] for name in (*ARGUMENTS, "dtype", "attention", "versions") if name in run},
        "tasks": recorded,
    }
    write(folder, {**recording.about, "evaluation": about}, recording.tensors)
    return {task: len(entry["items"]) for task, entry in recorded.items()}


def prepare(folder: Path, benchmark: str | None = None) -> Questions | None:
    """The recorded questions of a folder with the benchmark's items; None where its recording cannot be read.

    Args:
        benchmark: folder or Hub name; the one in force if not given.

    Raises:
        InputError: nothing was recorded, or the benchmark is not the one that was asked.
    """
    check_is_model(folder)
    try:
        about = read_json_object(folder / JSON_FILE).get("evaluation") if (folder / JSON_FILE).is_file() else None
    except Unusable:
        return None
    if about is None:
        raise InputError(
            f"{folder} has no recorded evaluation; `vaemotionllm verify DIR --record-evaluation RESULTS` adds one."
        )
    chosen = select.resolve() if benchmark is None else schema.load(select.find(benchmark))
    try:
        wanted, of = str(about["benchmark"]["sha256"]), about["benchmark"]
        asked = [item for entry in about["tasks"].values() for item in entry["items"]]
        for entry in about["tasks"].values():
            float(entry["accuracy"]), dict(entry["generation"]), entry["answers"][len(entry["items"]) - 1]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"the recorded evaluation in {folder / JSON_FILE} is incomplete ({error!r}).") from error
    found = artemo.items_sha256(chosen.folder)
    if found != wanted:
        raise InputError(
            f"the recorded evaluation is of {of.get('name')}, version {of.get('version')}, whose items have the hash "
            f"{wanted[:16]}; those of {chosen.name} in {chosen.folder} have {found[:16]}. Name the right one by "
            "--benchmark NAME_OR_DIR or ARTEMO_DATASET."
        )
    items = {item.id: item for item in chosen.items}
    if unknown := [item for item in asked if item not in items]:
        raise InputError(f"{chosen.folder} has no item {unknown[0]!r}, which the recorded evaluation names.")
    return Questions(about, items)


def rerun(
    folder: Path, questions: Questions | None, verified: Verification, device: str | None = None, batch_size: int = 8
) -> list[Check]:
    """Asks the recorded questions again, in the dtype and with the attention backend of the verification.

    The check counts answers that name the same option as the recorded one, over all tasks; a note for each task has
    the accuracy then and now.
    """
    weights = next((check for check in verified.checks if check.name == "weights"), None)
    if questions is None or weights is None or weights.result != AGREES:
        return [Check("evaluation", NOT_CHECKED, notes=("what it rests on was not read",))]
    tasks: dict[str, dict] = questions.about["tasks"]
    run = questions.about.get("run") or {}
    answers = _ask(folder, questions, verified.facts, run, device, batch_size)
    alike, total, notes = 0, 0, []
    for task, entry in tasks.items():
        items = [questions.items[name] for name in entry["items"]]
        then = [parse_choice(answer, item.options) for answer, item in zip(entry["answers"], items)]
        now = [parse_choice(answer, item.options) for answer, item in zip(answers[task], items)]
        same = sum(a == b for a, b in zip(then, now))
        right = sum(choice == item.answer for choice, item in zip(now, items)) / max(len(items), 1)
        alike, total = alike + same, total + len(items)
        notes.append(
            f"{task}: {same} of {len(items)} answers alike; accuracy {right:.3f}, recorded {entry['accuracy']:.3f}"
        )
    if not total:
        return [Check("evaluation", NOT_CHECKED, notes=("no answers are recorded",))]
    recorded_dtype = str(run.get("dtype", "")).removeprefix("torch.")
    allowed = 1 - min(ANSWERS.get(dtype, 1.0) for dtype in (recorded_dtype, verified.facts["dtype"]))
    share = (total - alike) / total
    result = AGREES if share <= allowed else DISAGREES
    return [Check("evaluation", result, share, allowed, tuple(notes), (alike, total))]


def _ask(
    folder: Path, questions: Questions, facts: dict, run: dict, device: str | None, batch_size: int
) -> dict[str, list[str]]:
    """The answers by task, from the model that lmms-eval runs."""
    from lmms_eval.api.instance import Instance

    from ..evaluation.lmms_model import VAEmotionLLM

    model = VAEmotionLLM(
        str(folder), batch_size=batch_size, device=device or facts["device"], dtype=facts["dtype"],
        attn_implementation=facts["attn_implementation"], **{name: run[name] for name in ARGUMENTS if name in run},
    )  # fmt: skip
    documents: dict[str, dict[str, Sequence[dict]]] = {}
    requests = []
    for task, entry in questions.about["tasks"].items():
        rows = [artemo.document(questions.items[name]) for name in entry["items"]]
        documents[task] = {"test": rows}
        requests += [
            Instance(
                request_type="generate_until",
                arguments=("", artemo.doc_to_messages, dict(entry["generation"]), number, task, "test"),
                idx=0,
                metadata={"task": task, "doc_id": number, "repeats": 1},
            )
            for number in range(len(rows))
        ]
    model.task_dict = documents
    texts = iter([result.text for result in model.generate_until(requests)])
    return {task: [next(texts) for _ in of["test"]] for task, of in documents.items()}


def _answer(row: dict) -> str:
    """The answer of a logged sample."""
    response = row["filtered_resps"]
    return str(response[0] if isinstance(response, list) else response)
