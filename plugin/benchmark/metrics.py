"""Metrics of ArtEmoBenchmark as pure functions: of labels, of label distributions, of valence and arousal.

An answer that names no option is None. It is wrong for its own class and counts as an answer of no class, so it is
never a guess. Which form of each metric is meant is our choice and stands with it; the paper gives none.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import entropy, pearsonr
from sklearn.metrics import f1_score, recall_score


def uar(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Unweighted average recall: the mean recall of the classes that occur in `true`, in [0, 1].

    A class that never occurs has no recall and takes no part.

    Args:
        predicted: the class that each answer names, None where it names none; length n.
        true: the class of each item; length n >= 1.

    Raises:
        ValueError: the two differ in length, or there is no item.
    """
    named = [name or "" for name in predicted]  # "" is no class
    return float(recall_score(true, named, labels=sorted(set(true)), average="macro", zero_division=0))


def macro_f1(predicted: Sequence[str | None], true: Sequence[str]) -> float:
    """Unweighted mean F1 of the classes that occur in `true`, in [0, 1]; a class that no answer hits has F1 0.

    Classes that are answered and never right take no part: the mean would depend on the distractors that are shown.
    Arguments and errors as for `uar`.
    """
    named = [name or "" for name in predicted]  # "" is no class
    return float(f1_score(true, named, labels=sorted(set(true)), average="macro", zero_division=0))


def kl_divergence(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Kullback-Leibler divergence KL(p || q) = sum_x p(x) log2(p(x) / q(x)), in bits.

    Args:
        p: label -> share; the reference, here the annotators' votes. Shares need not sum to 1: they are normalized.
        q: label -> share; the prediction. A label that is absent has share 0.

    Returns:
        A number >= 0; infinite where p has a label to which q gives nothing.

    Raises:
        ValueError: a share is negative or not finite, or all are 0.
    """
    # Rounding can leave equal distributions an epsilon below 0.
    return max(0.0, float(entropy(*_shares(p, q), base=2)))


def jensen_shannon(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Jensen-Shannon divergence, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: symmetric, in [0, 1] in bits.

    The divergence, and not its square root, which scipy's `jensenshannon` is. Arguments and errors as for
    `kl_divergence`. Reference: J. Lin, 1991, "Divergence measures based on the Shannon entropy".
    """
    shares = _shares(p, q)
    middle = sum(shares) / 2
    # Rounding can leave equal distributions an epsilon below 0, of which scipy's own takes the root.
    return float(sum(max(0.0, entropy(one, middle, base=2)) for one in shares)) / 2


def pearson(predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> float:
    """Pearson's correlation of two arrays of shape (n,); NaN with fewer than two values or where one is constant."""
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(pearsonr(predicted, true).statistic)


def rmse(predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> float:
    """Root of the mean squared error of two arrays of shape (n,), in their unit; NaN with no value."""
    return float(np.sqrt(np.mean(np.square(np.subtract(predicted, true))))) if len(predicted) else float("nan")


def _shares(*distributions: Mapping[str, float]) -> list[np.ndarray]:
    """The distributions over the labels of all of them, each normalized."""
    labels = sorted(set().union(*distributions))
    found = []
    for distribution in distributions:
        shares = np.array([float(distribution.get(label, 0.0)) for label in labels])
        if not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
            raise ValueError(f"a distribution needs finite shares >= 0 that are not all 0; got {dict(distribution)}")
        found.append(shares / shares.sum())
    return found
