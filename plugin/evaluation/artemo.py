"""The lmms-eval tasks of the group `artemo`: one table of their documents, their prompts and their scores.

Beside the six cells (content and emotion by audio, visual and av) stand tasks that are our choice:

- controls, see `benchmark.controls`: audio that says nothing about the item, or no media at all;
- circular: each item under every rotation of its options. An item is right only where every rotation is, so a model
  that prefers a position, or guesses, falls: with n options a guess is right n times in a row with 1 / n^n. Reference:
  Liu et al., 2023, "MMBench: Is Your Multi-modal Model an All-around Player?" (CircularEval);
- conflict, see `benchmark.controls`: audio and visual of opposite emotion, and which of the two is followed;
- va: valence and arousal as numbers in the answer's text, so that any model can be scored. CCC, Pearson and RMSE are
  pooled over the split. An answer that states no two numbers is left out of them, and its share is `unparsable`, or
  `missing` where there is no answer: no value is made up for it. So a score stands beside these shares and says
  nothing about the clips without an answer; two models compare only where they are small.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..benchmark import metrics, prompts
from ..benchmark.controls import KINDS, conflict_items, control_audio
from ..benchmark.intervals import accuracy_interval, bootstrap, ccc, percentile_interval
from ..benchmark.schema import ASPECTS, ITEMS_FILE, Benchmark, Item
from ..model.inputs import MODALITIES
from ..model.media import SAMPLING_RATE_HZ, load_audio
from ..model.media_images import load_image
from ..nano import select
from ..utils import InputError, sha256_of_file
from .refusals import TASK_PREFIX, stopping

Rows = list[dict]
Values = Sequence[dict]
Ends = tuple[float, float]
NO_ENDS = (float("nan"), float("nan"))


# ---- the benchmark


@functools.lru_cache(maxsize=4)
def _benchmark(choice: select.Choice) -> Benchmark:
    return select.resolve()


def benchmark() -> Benchmark:
    """The selected benchmark; read once a process and choice."""
    return _benchmark(select.current_choice())


@functools.lru_cache(maxsize=16)
def _made(make: Callable, folder: Path, *arguments):
    """`make(benchmark, *arguments)`, once a process and benchmark, whose folder this is."""
    return make(benchmark(), *arguments)


def items_of(aspect: str, modality: str | None = None) -> list[Item]:
    """The benchmark's items of an aspect and a modality.

    Raises:
        InputError: there is none.
    """
    chosen = benchmark().select(aspect=aspect, modality=modality)
    if not chosen:
        wanted = f"aspect {aspect!r}" + (f" and modality {modality!r}" if modality else "")
        raise InputError(f"{benchmark().folder} holds no item with {wanted}.")
    return chosen


# ---- documents. They are made of the items that our loader has checked, not of the rows that lmms-eval read from the
# same file: the two agree, but only ours have resolved file paths.


def document(item: Item, **changes) -> dict:
    """What a task's document holds of an item; `changes` replace or add fields."""
    names = ("id", "clip_id", "question", "options", "answer", "audio", "image", "video", "art_form")
    return {name: getattr(item, name) for name in names} | changes


def cell_rows(aspect: str, modality: str, control: str | None = None) -> Rows:
    """The items of a cell in the file's order, with the audio of a control where one is named."""
    chosen = items_of(aspect, modality)
    audio = _made(control_audio, benchmark().folder, control) if control else {}
    return [document(item, audio=audio.get(item.clip_id, item.audio)) for item in chosen]


def blind_rows(aspect: str) -> Rows:
    """Each question about a clip once and without media, whatever modalities it comes with."""
    first: dict[tuple, Item] = {}
    for item in items_of(aspect):
        first.setdefault((item.clip_id, item.question, item.options), item)
    return [document(item, audio=None, image=None, video=None) for item in first.values()]


def circular_rows(aspect: str, modality: str) -> Rows:
    """For each item of a cell one document a rotation of its options, the item's own order first."""
    rows = []
    for item in items_of(aspect, modality):
        n = len(item.options)
        for shift in range(n):
            options = [*item.options[shift:], *item.options[:shift]]
            rows.append(document(item, id=f"{item.id}+{shift}", item_id=item.id, rotations=n, options=options))
    return rows


def conflict_rows() -> Rows:
    """Image or video of one clip with the audio of another; `answer` is the emotion of the visual."""
    return [
        document(
            pair.visual,
            id=pair.id,
            options=list(pair.options),
            audio=pair.audio.audio,
            sound_clip_id=pair.audio.clip_id,  # words: recorded in lmms-eval's samples
            sound_answer=pair.audio.answer,  # words: recorded in lmms-eval's samples
        )
        for pair in _made(conflict_items, benchmark().folder)
    ]


def va_rows(modality: str) -> Rows:
    """Each clip with valence and arousal once, by its first emotion item."""
    rows: dict[str, dict] = {}
    for item in items_of("emotion", modality):
        if item.valence is not None and item.arousal is not None:
            numbers = {"valence": float(item.valence), "arousal": float(item.arousal)}
            rows.setdefault(item.clip_id, document(item, **numbers))
    if not rows:
        raise InputError(
            f"{benchmark().folder} holds no {modality} emotion item with 'valence' and 'arousal', so "
            f"{TASK_PREFIX}_va_{modality} has nothing to score; give the items both, or leave the task out."
        )
    return list(rows.values())


# A task's name without "artemo_" -> its documents.
TASKS: dict[str, Callable[[], Rows]] = {
    **{f"{a}_{m}": functools.partial(cell_rows, a, m) for a in ASPECTS for m in MODALITIES},
    **{f"{a}_audio_{k}": functools.partial(cell_rows, a, "audio", k) for a in ASPECTS for k in KINDS},
    **{f"{a}_blind": functools.partial(blind_rows, a) for a in ASPECTS},
    **{f"{a}_{m}_circular": functools.partial(circular_rows, a, m) for a in ASPECTS for m in MODALITIES},
    "conflict": conflict_rows,
    **{f"va_{m}": functools.partial(va_rows, m) for m in MODALITIES},
}


# ---- prompts and targets


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    if "valence" in doc:
        return prompts.valence_arousal_prompt()
    return prompts.multiple_choice(doc["question"], doc["options"])


def doc_to_messages(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> list[dict]:
    """One user turn for chat models: image or video, then audio, then the question."""
    content = [{"type": kind, "url": doc[kind]} for kind in ("image", "video", "audio") if doc[kind]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc_to_text(doc)}]}]


def doc_to_visual(doc: dict) -> list:
    """Media for lmms-eval's simple models: a PIL image, a video's file path, a dict with array and sampling_rate."""
    media: list = [load_image(doc["image"])] if doc["image"] else []
    media += [doc["video"]] if doc["video"] else []
    if doc["audio"]:
        media.append({"array": load_audio(doc["audio"]), "sampling_rate": SAMPLING_RATE_HZ})
    return media


def doc_to_target(doc: dict) -> str:
    """The right letter; of a conflict both letters, since neither is right; else the two numbers."""
    if "valence" in doc:
        return f"valence: {doc['valence']}, arousal: {doc['arousal']}"
    letter = prompts.letter_of(doc["options"], doc["answer"])
    if "sound_answer" in doc:  # words: recorded in lmms-eval's samples
        audio = prompts.letter_of(doc["options"], doc["sound_answer"])  # words: recorded in lmms-eval's samples
        return f"sight {letter}, sound {audio}"  # words: recorded in lmms-eval's samples
    return letter


# ---- scores of one answer


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """Scores of one answer. An answer that names no option is wrong in every metric, and counted in `unparsable`; a
    question without an answer (`prompts.MISSING`) is not right either, and counted in `missing` instead.

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
        **_not_answered(results[0], predicted),
        "ci95_low": clustered,
        "ci95_high": clustered,
    }


def circular_process_results(doc: dict, results: Sequence[str]) -> dict:
    """Scores of one answer under one rotation; the item is put together again in the aggregation."""
    predicted = prompts.parse_choice(results[0], doc["options"])
    correct = float(predicted == doc["answer"])
    # "correct" and not "accuracy", lmms-eval's score_key: its standard error would take rotations for items.
    value = {name: doc[name] for name in ("item_id", "clip_id", "rotations")} | {"correct": correct}
    not_answered = _not_answered(results[0], predicted)
    return {"circular_accuracy": value, "accuracy": correct, **not_answered, "ci95_low": value, "ci95_high": value}


def conflict_process_results(doc: dict, results: Sequence[str]) -> dict:
    """Whether one answer follows the visual or the audio. The five shares sum to 1; `neither` is another option,
    `unparsable` none, `missing` a question without an answer.

    `ci95_low` and `ci95_high` are those of the share that follows the visual, whose clip is that of the item.
    """
    predicted = prompts.parse_choice(results[0], doc["options"])
    visual, audio = doc["answer"], doc["sound_answer"]  # words: recorded in lmms-eval's samples
    shares = {
        "follows_sight": float(predicted == visual),  # words: a metric's name
        "follows_sound": float(predicted == audio),  # words: a metric's name
        "neither": float(predicted not in (visual, audio, None)),
        **_not_answered(results[0], predicted),
    }
    name = "follows_sight"  # words: a metric's name
    clustered = {name: shares[name], "clip_id": doc["clip_id"], "item_id": doc["id"]}
    return {**shares, "ci95_low": clustered, "ci95_high": clustered}


def va_process_results(doc: dict, results: Sequence[str]) -> dict:
    """One answer beside the truth: the same value for each metric, since all are pooled."""
    predicted = prompts.parse_valence_arousal(results[0])
    value = {
        "clip_id": doc["clip_id"],
        "item_id": doc["id"],
        "predicted": None if predicted is None else list(predicted),
        "true": [doc["valence"], doc["arousal"]],
    }
    pooled_values = {name: value for name in (*VA_METRICS, "ci95_low", "ci95_high")}
    return {**pooled_values, **_not_answered(results[0], predicted)}


def _not_answered(response: str, predicted: object | None) -> dict[str, float]:
    """`unparsable` and `missing` of one response: why `predicted` is None; at most one of them is 1."""
    missing = prompts.is_missing(response)
    return {"unparsable": float(predicted is None and not missing), "missing": float(missing)}


# ---- scores of a task


def label_score(metric: Callable[[Sequence, Sequence], float], values: Values) -> float:
    """`metrics.macro_f1` or `metrics.uar`."""
    return metric([value["predicted"] for value in values], [value["true"] for value in values])


def interval(values: Values, score: str = "accuracy") -> Ends:
    """95% interval of a share, see `accuracy_interval`."""
    return accuracy_interval([value["clip_id"] for value in values], [value[score] for value in values])[1]


def by_item(values: Values) -> tuple[list[str], list[float]]:
    """Clips and scores (1.0 where every rotation is right, else 0.0) of the items with all of their rotations.

    With `--limit` the last item can lack some; it is left out, since nobody knows whether it is right.
    """
    items: dict[str, list[dict]] = {}
    for value in values:
        items.setdefault(value["item_id"], []).append(value)
    whole = [group for group in items.values() if len(group) == group[0]["rotations"]]
    return [group[0]["clip_id"] for group in whole], [min(value["correct"] for value in group) for group in whole]


def circular_accuracy(values: Values) -> float:
    """Share of the items that are right under every rotation; NaN where `--limit` left no whole item."""
    _, scores = by_item(values)
    return sum(scores) / len(scores) if scores else float("nan")


def circular_interval(values: Values) -> Ends:
    """95% interval of the circular accuracy, see `accuracy_interval`."""
    clips, scores = by_item(values)
    return accuracy_interval(clips, scores)[1] if scores else NO_ENDS


DIMENSIONS = ("valence", "arousal")
_VA_FUNCTIONS: dict[str, Callable] = {"ccc": ccc, "pearson": metrics.pearson, "rmse": metrics.rmse}
VA_METRICS = ("ccc", *(f"{name}_{dimension}" for name in _VA_FUNCTIONS for dimension in DIMENSIONS))


def pooled(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true (valence, arousal) of the answers that state them; both of shape (answered, 2)."""
    answered = [value for value in values if value["predicted"] is not None]
    predicted = np.array([value["predicted"] for value in answered], dtype=np.float64).reshape(-1, 2)
    return predicted, np.array([value["true"] for value in answered], dtype=np.float64).reshape(-1, 2)


def va_score(name: str, values: Values) -> float:
    """One of `VA_METRICS`; `ccc` is the mean of both dimensions' CCC. NaN below two answers."""
    metric, _, dimension = name.partition("_")
    predicted, true = pooled(values)
    if len(predicted) < 2:
        return float("nan")
    if not dimension:
        return float(mean_ccc(predicted, true))
    column = DIMENSIONS.index(dimension)
    return float(_VA_FUNCTIONS[metric](predicted[:, column], true[:, column]))


def mean_ccc(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of valence's and arousal's `intervals.ccc`, from arrays of shape (answered, 2)."""
    return np.mean([ccc(predicted[:, column], true[:, column], weights) for column in (0, 1)], axis=0)


def va_interval(values: Values) -> Ends:
    """95% interval of `ccc` by a bootstrap of the answered clips; each document is one clip."""
    predicted, true = pooled(values)
    if len(predicted) < 2:
        return NO_ENDS
    return percentile_interval(bootstrap(len(predicted), lambda weights: mean_ccc(predicted, true, weights)))


def _ends(prefix: str, ends: Callable[[Values], Ends]) -> dict[str, Callable[[Values], float]]:
    return {f"{prefix}ci95_low": lambda values: ends(values)[0], f"{prefix}ci95_high": lambda values: ends(values)[1]}


# ---- what the YAMLs take from utils.py

_DOCUMENTS = (doc_to_text, doc_to_messages, doc_to_visual, doc_to_target)
_RESULTS = (process_results, circular_process_results, conflict_process_results, va_process_results)
YAML_FUNCTIONS: dict[str, Callable] = {
    **{function.__name__: function for function in (*_DOCUMENTS, *_RESULTS)},
    "macro_f1": functools.partial(label_score, metrics.macro_f1),
    "uar": functools.partial(label_score, metrics.uar),
    "circular_accuracy": circular_accuracy,
    **{f"va_{name}": functools.partial(va_score, name) for name in VA_METRICS},
    **_ends("", interval),
    **_ends("circular_", circular_interval),
    **_ends("conflict_", functools.partial(interval, score="follows_sight")),  # words: a metric's name
    **_ends("va_", va_interval),
}


def yaml_value(name: str):
    """A value that a YAML takes from utils.py: a function, or what depends on the selected benchmark.

    What cannot be used ends lmms-eval's command, see `stopping`.

    Args:
        name: a name in `YAML_FUNCTIONS`, `dataset_kwargs`, `metadata`, `alias_TASK`, or `documents_TASK` with a name
            in `TASKS`.

    Raises:
        AttributeError: for every other name, as a module does.
    """
    if name in YAML_FUNCTIONS:
        return YAML_FUNCTIONS[name]
    kind, _, task = name.partition("_")
    with stopping(name):
        if name == "metadata":
            return metadata()
        if kind == "alias":
            return alias(task)
        if name == "dataset_kwargs":
            # One block: the reader takes a column's type from its first block, and a null there fails in the next.
            return {"data_files": {"test": str(benchmark().folder / ITEMS_FILE)}, "chunksize": 1 << 30}
    if kind != "documents" or task not in TASKS:
        raise AttributeError(f"the task YAMLs know no value {name!r}")

    def process_docs(dataset):
        import datasets  # half a second, and a report has no use for it

        with stopping(name):
            return datasets.Dataset.from_list(TASKS[task]())

    return process_docs


def metadata() -> dict:
    """Kept by lmms-eval in the results file (`configs.TASK.metadata`), the version also in `versions`.

    `benchmark_sha256` and, of a benchmark that was built, `build_key` name the revision of the data.
    """
    chosen = benchmark()
    found: dict = {
        "version": str(chosen.info.get("version", chosen.info.get("format", 1))),
        "benchmark": chosen.name,
        "benchmark_folder": str(chosen.folder),
        "benchmark_items": len(chosen.items),
        "benchmark_sha256": sha256_of_file(chosen.folder / ITEMS_FILE),
    }
    if chosen.info.get("build_key"):
        found["build_key"] = str(chosen.info["build_key"])
    if chosen.is_nano:
        found["version"] = f"{found['version']} ({select.NANO_LABEL})"
        found["notice"] = select.NANO_NOTICE
    return found


def alias(task: str) -> str:
    """Name of a task or group in the printed table, which says that a benchmark is the nano set."""
    return f"{task} ({select.NANO_LABEL})" if benchmark().is_nano else task
