"""Metrics of ArtEmoBenchmark as pure functions: of labels, of label distributions, of valence and arousal.

An answer that names no option is None. It is wrong for its own class and counts as an answer of no class, so it is
never a guess. Which form of each metric is meant is our choice and stands with it; the paper gives none.
"""

from collections.abc import Mapping, Sequence
from math import log

import numpy as np

from .intervals import ccc

__all__ = [
    "accuracy", "ccc", "jensen_shannon", "kl_divergence", "macro_f1", "pearson", "per_class", "rmse", "uar", "war",
]  # fmt: skip


def per_class(predicted: Sequence[str | None], true: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """For each class that occurs in `true`, in sorted order: (true positives, answers that name it, items of it).

    Args:
        predicted: the class that each answer names, None where it names none; length n.
        true: the class of each item; length n >= 1.

    Raises:
        ValueError: the two differ in length, or there is no item.
    """
    if len(predicted) != len(true) or not len(true):
        raise ValueError(
            f"one answer an item and at least one item are needed; got {len(predicted)} answers and {len(true)} items"
        )
    counts = {name: [0, 0, 0] for name in sorted(set(true))}
    for given, wanted in zip(predicted, true):
        counts[wanted][2] += 1
        if given in counts:
            counts[given][1] += 1
            counts[given][0] += given == wanted
    return {name: (hits, named, items) for name, (hits, named, items) in counts.items()}


def accuracy(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Share of the items that are answered right, in [0, 1]."""
    return sum(hits for hits, _, _ in per_class(predicted, true).values()) / len(true)


def war(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Weighted average recall: each class's recall weighted by its items. That is the accuracy, under the name that
    papers on emotion recognition print."""
    return accuracy(predicted, true)


def uar(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Unweighted average recall: the mean recall of the classes that occur in `true`, in [0, 1].

    scikit-learn's `balanced_accuracy_score`. A class that never occurs has no recall and takes no part.
    """
    return float(np.mean([hits / items for hits, _, items in per_class(predicted, true).values()]))


def macro_f1(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Unweighted mean F1 of the classes that occur in `true`, in [0, 1]; a class that no answer hits has F1 0.

    scikit-learn's `f1_score(..., labels=sorted(set(true)), average="macro", zero_division=0)`. Its default would also
    take in classes that are answered and never right, so that the mean would depend on the distractors shown.
    """
    return float(np.mean([2 * hits / (named + items) for hits, named, items in per_class(predicted, true).values()]))


def kl_divergence(p: Mapping[str, float], q: Mapping[str, float], base: float = 2.0) -> float:
    """Kullback-Leibler divergence KL(p || q) = sum_x p(x) log(p(x) / q(x)), in bits by default.

    Args:
        p: label -> share; the reference, here the annotators' votes. Shares need not sum to 1: they are normalized.
        q: label -> share; the prediction. A label that is absent has share 0.
        base: base of the logarithm: 2 gives bits, e gives nats.

    Returns:
        A number >= 0; infinite where p has a label to which q gives nothing.

    Raises:
        ValueError: a share is negative or not finite, or all are 0.
    """
    labels = sorted({*p, *q})
    reference, prediction = _shares(p, labels), _shares(q, labels)
    return _relative_entropy(reference, prediction, base)


def jensen_shannon(p: Mapping[str, float], q: Mapping[str, float], base: float = 2.0) -> float:
    """Jensen-Shannon divergence, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: symmetric, in [0, 1] in bits.

    The divergence, not its square root (scipy's `jensenshannon` is the root). Arguments and errors as for
    `kl_divergence`. Reference: J. Lin, 1991, "Divergence measures based on the Shannon entropy".
    """
    labels = sorted({*p, *q})
    a, b = _shares(p, labels), _shares(q, labels)
    middle = (a + b) / 2
    return (_relative_entropy(a, middle, base) + _relative_entropy(b, middle, base)) / 2


def pearson(predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> float:
    """Pearson's correlation of two arrays of shape (n,); NaN with fewer than two values or where one is constant."""
    p, t = _pairs(predicted, true)
    if len(p) < 2 or np.ptp(p) == 0 or np.ptp(t) == 0:
        return float("nan")
    p, t = p - p.mean(), t - t.mean()
    return float(p @ t / np.sqrt((p @ p) * (t @ t)))


def rmse(predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> float:
    """Root of the mean squared error of two arrays of shape (n,), in their unit; NaN with no value."""
    p, t = _pairs(predicted, true)
    return float(np.sqrt(np.mean(np.square(p - t)))) if len(p) else float("nan")


def _pairs(
    predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.ndim != 1 or p.shape != t.shape:
        raise ValueError(f"two arrays of one shape (n,) are needed; got {p.shape} and {t.shape}")
    return p, t


def _shares(distribution: Mapping[str, float], labels: Sequence[str]) -> np.ndarray:
    shares = np.array([float(distribution.get(label, 0.0)) for label in labels])
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"a distribution needs finite shares >= 0 that are not all 0; got {dict(distribution)}")
    return shares / shares.sum()


def _relative_entropy(p: np.ndarray, q: np.ndarray, base: float) -> float:
    there = p > 0  # 0 log 0 = 0
    with np.errstate(divide="ignore"):
        terms = p[there] * np.log(p[there] / q[there])
    # Rounding can leave equal distributions an epsilon below 0.
    return max(0.0, float(terms.sum())) / log(base)
