"""What the task YAMLs in eval_tasks/artemo refer to: documents, prompts, scores, and the notice about the nano set."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..benchmark import metrics, prompts
from ..benchmark.controls import KINDS, ConflictItem, conflict_items, control_audio
from ..benchmark.intervals import accuracy_interval
from ..benchmark.schema import ASPECTS, ITEMS_FILE, Benchmark, Item
from ..model.configuration_vaemotionllm import MODALITIES
from ..nano import select
from ..utils import InputError
from .cli_exit import stop

logger = logging.getLogger(__name__)

TASK_PREFIX = "artemo"


@functools.lru_cache(maxsize=4)
def _benchmark(choice: select.Choice) -> Benchmark:
    return select.resolve()


def benchmark() -> Benchmark:
    """The benchmark in force; read once a process and choice. Ends lmms-eval's command where it cannot be used."""
    try:
        return _benchmark(select.current_choice())
    except InputError as error:
        stop(error)


@functools.lru_cache(maxsize=16)
def _controls(folder: str, kind: str) -> dict[str, str]:
    return control_audio(benchmark(), kind)


def controls(kind: str) -> dict[str, str]:
    try:
        return _controls(str(benchmark().folder), kind)
    except InputError as error:
        stop(error)


@functools.lru_cache(maxsize=4)
def _conflicts(folder: str) -> list[ConflictItem]:
    return conflict_items(benchmark())


def conflicts() -> list[ConflictItem]:
    try:
        return _conflicts(str(benchmark().folder))
    except InputError as error:
        stop(error)


def yaml_value(name: str):
    """A value that a YAML takes from utils.py and that depends on the benchmark in force.

    Args:
        name: `dataset_kwargs`, `dataset_kwargs_KIND` (a kind of control sound, or conflict), `metadata`, `alias_TASK`,
            or `documents_TASK` with the task's name without "artemo_".

    Raises:
        AttributeError: for every other name, as a module does.
    """
    if name == "metadata":
        return metadata()
    if name.startswith("alias_"):
        return alias(name.removeprefix("alias_"))
    head, _, tail = name.partition("_kwargs")
    if head == "dataset" and (not tail or tail[1:] in (*KINDS, "conflict")):
        # Made here and not in the documents: lmms-eval tries those five times and then hides the error.
        if tail[1:] == "conflict":
            conflicts()
        elif tail:
            controls(tail[1:])
        # One block: the reader takes a column's type from its first block, and a null there fails in the next.
        return {"data_files": {"test": str(benchmark().folder / ITEMS_FILE)}, "chunksize": 1 << 30}
    found = _documents_of(name.split("_"))
    if found is None:
        raise AttributeError(f"the task YAMLs know no value {name!r}")
    return found


def _documents_of(words: Sequence[str]) -> Callable | None:
    from . import artemo_circular, artemo_conflict, artemo_va

    match words:
        case ["documents", "conflict"]:
            return artemo_conflict.documents
        case ["documents", "va", modality] if modality in MODALITIES:
            return artemo_va.documents(modality)
        case ["documents", aspect, "blind"] if aspect in ASPECTS:
            return blind_documents(aspect)
        case ["documents", aspect, modality] if aspect in ASPECTS and modality in MODALITIES:
            return documents(aspect, modality)
        case ["documents", aspect, modality, "circular"] if aspect in ASPECTS and modality in MODALITIES:
            return artemo_circular.documents(aspect, modality)
        case ["documents", aspect, "audio", kind] if aspect in ASPECTS and kind in KINDS:
            return documents(aspect, "audio", kind)
    return None


@functools.lru_cache(maxsize=4)
def items_sha256(folder: Path) -> str:
    """SHA-256 of the file of items. Unpacked shards name media by their content, so there it pins the media too."""
    with open(folder / ITEMS_FILE, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metadata() -> dict:
    """Kept by lmms-eval in the results file (`configs.TASK.metadata`), the version also in `versions`.

    `benchmark_sha256` and, of a benchmark that was built, `build_key` say which revision of the data was asked.
    """
    chosen = benchmark()
    facts: dict = {
        "version": str(chosen.info.get("version", chosen.info.get("format", 1))),
        "benchmark": chosen.name,
        "benchmark_folder": str(chosen.folder),
        "benchmark_items": len(chosen.items),
        "benchmark_sha256": items_sha256(chosen.folder),
    }
    if chosen.info.get("build_key"):
        facts["build_key"] = str(chosen.info["build_key"])
    if chosen.is_nano:
        facts["version"] = f"{facts['version']} ({select.NANO_LABEL})"
        facts["notice"] = select.NANO_NOTICE
    return facts


def alias(task: str) -> str:
    """Name of a task or group in the printed table: the one place that nobody overlooks."""
    return f"{task} ({select.NANO_LABEL})" if benchmark().is_nano else task


def items_of(aspect: str, modality: str | None = None) -> list[Item]:
    """The benchmark's items of an aspect and a modality; ends lmms-eval's command where there is none."""
    chosen = benchmark().select(aspect=aspect, modality=modality)
    if not chosen:
        wanted = f"aspect {aspect!r}" + (f" and modality {modality!r}" if modality else "")
        stop(InputError(f"{benchmark().folder} holds no item with {wanted}."))
    return chosen


def document(item: Item, **changes) -> dict:
    """What a task's document holds of an item; `changes` replace or add fields."""
    return {
        "id": item.id,
        "clip_id": item.clip_id,
        "question": item.question,
        "options": list(item.options),
        "answer": item.answer,
        "audio": item.audio,
        "image": item.image,
        "video": item.video,
        "art_form": item.art_form,
        **changes,
    }


def dataset_of(rows: Sequence[dict]):
    """The documents of a task. They are made of the items that our loader has checked, not of the rows that lmms-eval
    read from the same file: the two agree, but only ours have resolved paths."""
    import datasets

    return datasets.Dataset.from_list(list(rows))


def documents(aspect: str, modality: str, control: str | None = None) -> Callable:
    """The `process_docs` of one task: its items, in the file's order, with absolute media paths."""

    def process_docs(dataset):
        chosen = items_of(aspect, modality)
        sounds = controls(control) if control else {}
        return dataset_of([document(item, audio=sounds.get(item.clip_id, item.audio)) for item in chosen])

    return process_docs


def blind_documents(aspect: str) -> Callable:
    """The `process_docs` of a task without media: each question about a clip once, whatever modalities ask it."""

    def process_docs(dataset):
        first: dict[tuple, Item] = {}
        for item in items_of(aspect):
            first.setdefault((item.clip_id, item.question, item.options), item)
        return dataset_of([document(item, audio=None, image=None, video=None) for item in first.values()])

    return process_docs


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    return prompts.multiple_choice(doc["question"], doc["options"])


def doc_to_target(doc: dict) -> str:
    return prompts.letter_of(doc["options"], doc["answer"])


def doc_to_messages(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> list[dict]:
    """One user turn for chat models: picture, then sound, then the question."""
    return messages(doc, doc_to_text(doc))


def messages(doc: dict, text: str) -> list[dict]:
    """One user turn with a document's media and a text."""
    content = [{"type": kind, "url": doc[kind]} for kind in ("image", "video", "audio") if doc[kind]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def doc_to_visual(doc: dict) -> list:
    """Media for lmms-eval's simple models: a PIL image, the path of a video, a dict with array and sampling_rate."""
    from ..model.media import SAMPLING_RATE_HZ, load_audio, load_image

    media: list = []
    if doc["image"]:
        media.append(load_image(doc["image"]))
    if doc["video"]:
        media.append(doc["video"])
    if doc["audio"]:
        media.append({"array": load_audio(doc["audio"]), "sampling_rate": SAMPLING_RATE_HZ})
    return media


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """Scores of one answer. An answer that names no option is wrong in every metric, and counted in `unparsable`; a
    question that was not asked (`prompts.MISSING`) is not right either, and counted in `missing` instead.

    `accuracy`, `war`, `unparsable` and `missing` are floats, for which lmms-eval prints standard errors; WAR is the
    accuracy under the name that papers on emotion recognition print. The classes of `macro_f1` and `uar` are the texts
    of the right answers. `ci95_low` and `ci95_high` carry the clip, so that the interval allows for several questions
    about one clip, and the item, by which two result files are compared.
    """
    predicted = prompts.parse_choice(results[0], doc["options"])
    correct = float(predicted == doc["answer"])
    clustered = {"accuracy": correct, "clip_id": doc["clip_id"], "item_id": doc["id"]}
    labels = {"predicted": predicted, "true": doc["answer"]}
    return {
        "accuracy": correct,
        "macro_f1": labels,
        "uar": labels,
        "war": correct,
        **not_answered(results[0], predicted),
        "ci95_low": clustered,
        "ci95_high": clustered,
    }


def not_answered(response: str, predicted: object | None) -> dict[str, float]:
    """`unparsable` and `missing` of one response: why `predicted` is None; at most one of them is 1."""
    missing = prompts.is_missing(response)
    return {"unparsable": float(predicted is None and not missing), "missing": float(missing)}


def macro_f1(values: Sequence[dict]) -> float:
    """See `metrics.macro_f1`."""
    return metrics.macro_f1([value["predicted"] for value in values], [value["true"] for value in values])


def uar(values: Sequence[dict]) -> float:
    """See `metrics.uar`."""
    return metrics.uar([value["predicted"] for value in values], [value["true"] for value in values])


def interval(values: Sequence[dict]) -> tuple[float, float]:
    """95% interval of the accuracy, see `accuracy_interval`."""
    return accuracy_interval([value["clip_id"] for value in values], [value["accuracy"] for value in values])[1]


def ci95_low(values: Sequence[dict]) -> float:
    return interval(values)[0]


def ci95_high(values: Sequence[dict]) -> float:
    return interval(values)[1]
