"""The tasks `artemo_va_*`: valence and arousal as numbers in the answer's text, so that any model can be scored.

CCC, Pearson and RMSE are pooled over the split, not averaged over parts of it. An answer that states no two numbers is
left out of them, and its share is `unparsable`, or `missing` where the question was not asked: no value is made up for
it. So a score stands beside these shares and says nothing about the clips that were not answered; two models compare
only where they are small.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..benchmark import metrics
from ..benchmark.intervals import bootstrap, ccc, percentile_interval
from ..benchmark.prompts import parse_valence_arousal, valence_arousal_prompt
from ..utils import InputError
from . import artemo
from .cli_exit import stop

DIMENSIONS = ("valence", "arousal")
FUNCTIONS: dict[str, Callable] = {"ccc": ccc, "pearson": metrics.pearson, "rmse": metrics.rmse}
METRICS = ("ccc", *(f"{name}_{dimension}" for name in FUNCTIONS for dimension in DIMENSIONS))


def documents(modality: str) -> Callable:
    """The `process_docs` of one task: each clip with valence and arousal once, by its first emotion item."""

    def process_docs(dataset):
        rows: dict[str, dict] = {}
        for item in artemo.items_of("emotion", modality):
            if item.valence is not None and item.arousal is not None:
                rows.setdefault(
                    item.clip_id, artemo.document(item, valence=float(item.valence), arousal=float(item.arousal))
                )
        if not rows:
            stop(
                InputError(
                    f"{artemo.benchmark().folder} holds no {modality} emotion item with 'valence' and 'arousal', so "
                    f"artemo_va_{modality} has nothing to score; give the items both numbers, or leave the task out."
                )
            )
        return artemo.dataset_of(list(rows.values()))

    return process_docs


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    return valence_arousal_prompt()


def doc_to_messages(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> list[dict]:
    """One user turn for chat models: picture, then sound, then the question."""
    return artemo.messages(doc, doc_to_text(doc))


def doc_to_target(doc: dict) -> str:
    return f"valence: {doc['valence']}, arousal: {doc['arousal']}"


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """One answer beside the truth: the same value for each metric, since all are pooled."""
    predicted = parse_valence_arousal(results[0])
    value = {
        "clip_id": doc["clip_id"],
        "item_id": doc["id"],
        "predicted": None if predicted is None else list(predicted),
        "true": [doc["valence"], doc["arousal"]],
    }
    pooled = {name: value for name in (*METRICS, "ci95_low", "ci95_high")}
    return {**pooled, **artemo.not_answered(results[0], predicted)}


def pooled(values: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true (valence, arousal) of the answers that state them; both of shape (answered, 2)."""
    answered = [value for value in values if value["predicted"] is not None]
    predicted = np.array([value["predicted"] for value in answered], dtype=np.float64).reshape(-1, 2)
    return predicted, np.array([value["true"] for value in answered], dtype=np.float64).reshape(-1, 2)


def aggregation(name: str) -> Callable[[Sequence[dict]], float]:
    """The aggregation of one of `METRICS`; `ccc` is the mean of both dimensions' CCC. NaN below two answers."""
    metric, _, dimension = name.partition("_")

    def aggregate(values: Sequence[dict]) -> float:
        predicted, true = pooled(values)
        if len(predicted) < 2:
            return float("nan")
        if not dimension:
            return float(mean_ccc(predicted, true))
        column = DIMENSIONS.index(dimension)
        return float(FUNCTIONS[metric](predicted[:, column], true[:, column]))

    return aggregate


def mean_ccc(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of valence's and arousal's CCC.

    Args:
        predicted, true: (valence, arousal) of the answered clips, shape (answered, 2).
        weights: shape (draws, answered), how often each clip counts; None counts each once.

    Returns:
        Shape (draws,), or () without weights.
    """
    return np.mean([ccc(predicted[:, column], true[:, column], weights) for column in (0, 1)], axis=0)


def interval(values: Sequence[dict]) -> tuple[float, float]:
    """95% interval of `ccc` by a bootstrap of the answered clips; each document is one clip."""
    predicted, true = pooled(values)
    if len(predicted) < 2:
        return float("nan"), float("nan")
    return percentile_interval(bootstrap(len(predicted), lambda weights: mean_ccc(predicted, true, weights)))


def ci95_low(values: Sequence[dict]) -> float:
    return interval(values)[0]


def ci95_high(values: Sequence[dict]) -> float:
    return interval(values)[1]
