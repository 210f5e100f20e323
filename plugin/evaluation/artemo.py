"""What the task YAMLs in eval_tasks/artemo refer to: documents, prompts, scores, and the notice about the nano set."""

import functools
import logging
from collections.abc import Callable, Sequence

from ..benchmark import prompts, select
from ..benchmark.controls import KINDS, control_sounds
from ..benchmark.schema import ASPECTS, ITEMS_FILE, MODALITIES, Benchmark
from ..errors import InputError
from .cli_exit import stop
from .intervals import accuracy_interval

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
    return control_sounds(benchmark(), kind)


def controls(kind: str) -> dict[str, str]:
    try:
        return _controls(str(benchmark().folder), kind)
    except InputError as error:
        stop(error)


def yaml_value(name: str):
    """A value that a YAML takes from utils.py and that depends on the benchmark in force.

    Args:
        name: `dataset_kwargs`, `dataset_kwargs_KIND`, `metadata`, `alias_TASK` or
            `documents_ASPECT_MODALITY[_KIND]`.

    Raises:
        AttributeError: for every other name, as a module does.
    """
    if name == "metadata":
        return metadata()
    if name.startswith("alias_"):
        return alias(name.removeprefix("alias_"))
    head, _, tail = name.partition("_kwargs")
    if head == "dataset" and (not tail or tail[1:] in KINDS):
        if tail:
            # Made here and not in the documents: lmms-eval tries those five times and then hides the error.
            controls(tail[1:])
        return {"data_files": {"test": str(benchmark().folder / ITEMS_FILE)}}
    words = name.split("_")
    if words[0] == "documents" and len(words) in (3, 4) and words[1] in ASPECTS and words[2] in MODALITIES:
        if len(words) == 3 or words[3] in KINDS:
            return documents(words[1], words[2], words[3] if len(words) == 4 else None)
    raise AttributeError(f"the task YAMLs know no value {name!r}")


def metadata() -> dict:
    """Kept by lmms-eval in the results file (`configs.TASK.metadata`), the version also in `versions`."""
    chosen = benchmark()
    facts = {
        "version": str(chosen.info.get("version", chosen.info.get("format", 1))),
        "benchmark": chosen.name,
        "benchmark_folder": str(chosen.folder),
        "benchmark_items": len(chosen.items),
    }
    if chosen.is_nano:
        facts["version"] = f"{facts['version']} ({select.NANO_LABEL})"
        facts["notice"] = select.NANO_NOTICE
    return facts


def alias(task: str) -> str:
    """Name of a task or group in the printed table: the one place that nobody overlooks."""
    return f"{task} ({select.NANO_LABEL})" if benchmark().is_nano else task


def documents(aspect: str, modality: str, control: str | None = None) -> Callable:
    """The `process_docs` of one task: its items, in the file's order, with absolute media paths.

    The items are those that our loader has checked, not the rows that lmms-eval read from the same file: the two
    agree, but only ours have resolved paths.
    """

    def process_docs(dataset):
        import datasets

        chosen = benchmark().select(aspect=aspect, modality=modality)
        if not chosen:
            stop(InputError(f"{benchmark().folder} holds no item with aspect {aspect!r} and modality {modality!r}."))
        sounds = controls(control) if control else {}
        return datasets.Dataset.from_list(
            [
                {
                    "id": item.id,
                    "clip_id": item.clip_id,
                    "question": item.question,
                    "options": list(item.options),
                    "answer": item.answer,
                    "audio": sounds.get(item.clip_id, item.audio),
                    "image": item.image,
                    "video": item.video,
                    "art_form": item.art_form,
                }
                for item in chosen
            ]
        )

    return process_docs


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    return prompts.multiple_choice(doc["question"], doc["options"])


def doc_to_target(doc: dict) -> str:
    return prompts.letter_of(doc["options"], doc["answer"])


def doc_to_messages(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> list[dict]:
    """One user turn for chat models: picture, then sound, then the question."""
    content = [{"type": kind, "url": doc[kind]} for kind in ("image", "video", "audio") if doc[kind]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc_to_text(doc)}]}]


def doc_to_visual(doc: dict) -> list:
    """Media for lmms-eval's simple models: a PIL image, the path of a video, a dict with array and sampling_rate."""
    from ..data.media import SAMPLING_RATE_HZ, load_audio, load_image

    media: list = []
    if doc["image"]:
        media.append(load_image(doc["image"]))
    if doc["video"]:
        media.append(doc["video"])
    if doc["audio"]:
        media.append({"array": load_audio(doc["audio"]), "sampling_rate": SAMPLING_RATE_HZ})
    return media


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """Scores of one answer. An answer that names no option is wrong, and counted in `unparsable`.

    `accuracy` and `unparsable` are floats, for which lmms-eval prints standard errors; `ci95_low` and `ci95_high`
    carry the clip, so that the interval allows for several questions about one clip.
    """
    predicted = prompts.parse_choice(results[0], doc["options"])
    correct = float(predicted == doc["answer"])
    clustered = {"accuracy": correct, "clip_id": doc["clip_id"]}
    return {
        "accuracy": correct,
        "unparsable": float(predicted is None),
        "ci95_low": clustered,
        "ci95_high": clustered,
    }


def interval(values: Sequence[dict]) -> tuple[float, float]:
    """95% interval of the accuracy, see `accuracy_interval`."""
    return accuracy_interval([value["clip_id"] for value in values], [value["accuracy"] for value in values])[1]


def ci95_low(values: Sequence[dict]) -> float:
    return interval(values)[0]


def ci95_high(values: Sequence[dict]) -> float:
    return interval(values)[1]
