"""95% intervals: Wilson's of a proportion, a paired bootstrap by clip of ratios, differences and CCC, Student's t of
means over training seeds.

The choice is ours. The benchmark has one question a clip in each cell, so the answers of a cell are independent and
Wilson's score interval holds, also near 0 and 1 where a normal interval leaves [0, 1]. Two cells share their clips:
a ratio or a difference of two cells therefore draws whole clips, and both cells get the same draw. Neither covers the
training seed: what varies with it has an interval over seeds.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 0
# Weights that are held at once, 32 MiB of float64: all draws of a benchmark's clips would be gigabytes.
_HELD_WEIGHTS = 1 << 22
# Draws are cut into multiples of this: products of matrices go by blocks of rows, and rounding depends on the block.
_ROWS = 64
# The share of values that a conformal interval is to hold.
LEVEL = 0.9
_FEWEST_CLIPS = 30  # below, a quantile of 0.9 rests on two or three clips


def wilson(correct: int, n: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        correct: number of successes, 0 <= correct <= n.
        n: number of trials, at least 1.
        level: confidence level.

    Returns:
        Lower and upper end, inside [0, 1].

    Reference: E. B. Wilson, 1927, "Probable inference, the law of succession, and statistical inference".
    """
    interval = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean of independent values, such as one a training seed; NaN below two of them."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def fewest_clips(level: float = LEVEL) -> int:
    """Labelled clips that a conformal interval of a level needs: with fewer no miss is rare enough to bound it."""
    return max(_FEWEST_CLIPS, ceil(level / (1 - level)))


def clip_means(clips: Sequence[str], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sum and count of `values` for each clip, and the clips in sorted order. Both arrays have shape (clips,)."""
    names, index = np.unique(clips, return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64), names.tolist()


def bootstrap(n_clips: int, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`statistic(draw_weights(n_clips))`, a part of the draws at a time where all of them would be large.

    Args:
        n_clips: number of clips.
        statistic: from weights (some draws, n_clips) to values (some draws, ...), draw by draw.

    Returns:
        Shape (draws, ...).
    """
    if n_clips * BOOTSTRAP_DRAWS <= _HELD_WEIGHTS:
        return statistic(draw_weights(n_clips))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    rows = max(_HELD_WEIGHTS // n_clips // _ROWS, 1) * _ROWS
    parts = [min(rows, BOOTSTRAP_DRAWS - start) for start in range(0, BOOTSTRAP_DRAWS, rows)]
    return np.concatenate([statistic(_drawn(rng, n_clips, draws)) for draws in parts])


@lru_cache(maxsize=1)
def draw_weights(n_clips: int) -> np.ndarray:
    """How often each clip is drawn in each resample with replacement, shape (draws, n_clips), row sums n_clips.

    Kept, and not to be written to: the draws are the same for all intervals of a report about the same clips.
    """
    weights = _drawn(np.random.default_rng(BOOTSTRAP_SEED), n_clips, BOOTSTRAP_DRAWS)
    weights.setflags(write=False)
    return weights


def _drawn(rng: np.random.Generator, n_clips: int, draws: int) -> np.ndarray:
    return rng.multinomial(n_clips, np.full(n_clips, 1 / n_clips), size=draws).astype(np.float64)


def percentile_interval(draws: np.ndarray, level: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of bootstrap draws; draws that are not finite (0 / 0) are left out."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_mean(clips: Sequence[str], values: Sequence[float], level: float = CONFIDENCE) -> tuple[float, float]:
    """Bootstrap interval of a mean that draws whole clips: for a cell with more than one item a clip."""
    sums, counts, names = clip_means(clips, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = bootstrap(len(names), lambda weights: (weights @ sums) / (weights @ counts))
    return percentile_interval(drawn, level)


def accuracy_interval(
    clips: Sequence[str], scores: Sequence[float], level: float = CONFIDENCE
) -> tuple[str, tuple[float, float]]:
    """Name and ends of the interval of an accuracy: Wilson's with one item a clip, else a bootstrap by clip.

    Args:
        clips: the clip of each item.
        scores: 1.0 where the item was answered right, else 0.0.
        level: confidence level.
    """
    if len(set(clips)) == len(clips):
        return "wilson", wilson(round(sum(scores)), len(scores), level)
    return "bootstrap by clip", clustered_mean(clips, scores, level)


def paired(
    a: tuple[Sequence[str], Sequence[float]],
    b: tuple[Sequence[str], Sequence[float]],
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """Bootstrap interval of `combine(mean of a, mean of b)` where both cells get the same draw of clips.

    Args:
        a: (clip ids, values) of the first cell.
        b: (clip ids, values) of the second cell, with the same clips in any order.
        combine: for example `np.divide` or `np.subtract`, on arrays of shape (draws,).

    Raises:
        ValueError: if the two cells do not hold the same clips.
    """
    sums_a, counts_a, names_a = clip_means(*a)
    sums_b, counts_b, names_b = clip_means(*b)
    if names_a != names_b:
        odd = sorted(set(names_a) ^ set(names_b))
        raise ValueError(f"a paired interval needs the same clips in both cells; {len(odd)} differ, such as {odd[:3]}")

    def statistic(weights: np.ndarray) -> np.ndarray:
        return combine((weights @ sums_a) / (weights @ counts_a), (weights @ sums_b) / (weights @ counts_b))

    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = bootstrap(len(names_a), statistic)
    return percentile_interval(drawn)


def ccc(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Concordance correlation coefficient, 2 cov / (var_p + var_t + (mean_p - mean_t)^2).

    Args:
        predicted, true: shape (n,).
        weights: shape (draws, n), how often each pair counts; None counts each once.

    Returns:
        Shape (draws,), or () without weights. Moments are divided by n, as in Lin (1989). NaN where both are constant
        and equal.
    """
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    w = np.ones((1, len(p))) if weights is None else weights
    total = w.sum(1)
    mean_p, mean_t = w @ p / total, w @ t / total
    # Centred first: E[x^2] - E[x]^2 would lose digits.
    centred_p, centred_t = p - p.mean(), t - t.mean()
    shift_p, shift_t = mean_p - p.mean(), mean_t - t.mean()
    var_p = w @ centred_p**2 / total - shift_p**2
    var_t = w @ centred_t**2 / total - shift_t**2
    cov = w @ (centred_p * centred_t) / total - shift_p * shift_t
    with np.errstate(invalid="ignore", divide="ignore"):
        result = 2 * cov / (var_p + var_t + (mean_p - mean_t) ** 2)
    return result if weights is not None else result[0]


def ccc_interval(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the CCC; each pair is one clip."""
    return percentile_interval(bootstrap(len(predicted), lambda weights: ccc(predicted, true, weights)))
