"""Metrics against scikit-learn, scipy and values by hand."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import sklearn.metrics

from vaemotionllm.benchmark import metrics

EXACT = {"rel": 0, "abs": 1e-9}
LABELS = ("calm", "joyful", "sad", "tense")


def answers(seed: int, n: int = 60, silent: float = 0.2):
    """Skewed classes, answers that know something, some of them None."""
    rng = np.random.default_rng(seed)
    true = [str(label) for label in rng.choice(LABELS[:3], n, p=[0.7, 0.2, 0.1])]
    predicted = [
        None if rng.random() < silent else wanted if rng.random() < 0.5 else str(rng.choice(LABELS)) for wanted in true
    ]
    return predicted, true


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics_are_scikit_learns(seed):
    predicted, true = answers(seed)
    # scikit-learn has no missing answer: a word that is no class stands for it. "tense" is answered and never right.
    words = [word or "(none)" for word in predicted]
    classes = sorted(set(true))
    assert "tense" in words and "(none)" in words and "tense" not in classes
    assert metrics.accuracy(predicted, true) == pytest.approx(sklearn.metrics.accuracy_score(true, words), **EXACT)
    assert metrics.war(predicted, true) == pytest.approx(
        sklearn.metrics.recall_score(true, words, labels=classes, average="weighted"), **EXACT
    )
    assert metrics.uar(predicted, true) == pytest.approx(
        sklearn.metrics.recall_score(true, words, labels=classes, average="macro"), **EXACT
    )
    assert metrics.macro_f1(predicted, true) == pytest.approx(
        sklearn.metrics.f1_score(true, words, labels=classes, average="macro", zero_division=0), **EXACT
    )


def test_label_metrics_by_hand():
    true = ["a", "a", "a", "b"]
    assert metrics.per_class(["a", "b", None, "b"], true) == {"a": (1, 1, 3), "b": (1, 2, 1)}
    # Recall 1/3 and 1; F1 2/4 and 2/3.
    assert metrics.uar(["a", "b", None, "b"], true) == pytest.approx(2 / 3, **EXACT)
    assert metrics.macro_f1(["a", "b", None, "b"], true) == pytest.approx(7 / 12, **EXACT)
    # The same class always: its recall is 1 and the other's 0, whatever the skew.
    assert metrics.accuracy(["a"] * 4, true) == 0.75
    assert metrics.uar(["a"] * 4, true) == 0.5
    assert metrics.macro_f1(["a"] * 4, true) == pytest.approx(3 / 7, **EXACT)  # (6/7 + 0) / 2
    # Silence is 0 in each of them: never a guess.
    for metric in (metrics.accuracy, metrics.war, metrics.uar, metrics.macro_f1):
        assert metric([None] * 4, true) == 0
        assert metric(true, true) == 1
    with pytest.raises(ValueError, match="got 0 answers and 0 items"):
        metrics.accuracy([], [])
    with pytest.raises(ValueError, match="got 1 answers and 2 items"):
        metrics.uar(["a"], ["a", "b"])


@pytest.mark.parametrize("base", [2.0, math.e])
def test_divergences_are_scipys(base):
    rng = np.random.default_rng(0)
    for _ in range(10):
        p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
        named_p, named_q = dict(zip(LABELS, p)), dict(zip(reversed(LABELS), q[::-1]))
        assert metrics.kl_divergence(named_p, named_q, base) == pytest.approx(
            scipy.stats.entropy(p, q, base=base), **EXACT
        )
        assert metrics.jensen_shannon(named_p, named_q, base) == pytest.approx(
            scipy.spatial.distance.jensenshannon(p, q, base=base) ** 2, **EXACT
        )


def test_divergences_by_hand():
    sure, half = {"calm": 1}, {"calm": 2, "sad": 2}
    assert metrics.kl_divergence(sure, half) == pytest.approx(1, **EXACT)  # one bit
    assert metrics.kl_divergence(half, sure) == math.inf
    assert metrics.kl_divergence(half, {"sad": 0.5, "calm": 0.5}) == 0
    assert metrics.jensen_shannon(sure, {"sad": 1.0}) == pytest.approx(1, **EXACT)
    assert metrics.jensen_shannon(sure, half) == metrics.jensen_shannon(half, sure) > 0
    assert metrics.jensen_shannon(half, half) == 0
    for bad in ({}, {"calm": 0}, {"calm": -1, "sad": 2}, {"calm": math.nan}):
        with pytest.raises(ValueError, match="finite shares"):
            metrics.jensen_shannon(bad, sure)


@pytest.mark.parametrize("seed", range(3))
def test_dimension_metrics_are_scipys(seed):
    rng = np.random.default_rng(seed)
    true = rng.uniform(-1, 1, 50)
    predicted = 0.5 * true + 0.2 + 0.3 * rng.standard_normal(50)
    assert metrics.pearson(predicted, true) == pytest.approx(scipy.stats.pearsonr(predicted, true)[0], **EXACT)
    assert metrics.rmse(predicted, true) == pytest.approx(
        sklearn.metrics.root_mean_squared_error(true, predicted), **EXACT
    )
    r, std_p, std_t = scipy.stats.pearsonr(predicted, true)[0], predicted.std(), true.std()
    shift = (predicted.mean() - true.mean()) ** 2
    assert metrics.ccc(predicted, true) == pytest.approx(
        2 * r * std_p * std_t / (std_p**2 + std_t**2 + shift), **EXACT
    )


def test_dimension_metrics_at_the_edges():
    true = np.array([-0.5, 0.0, 0.5])
    constant = np.zeros(3)
    # A model that always says 0 agrees with nothing; its correlation is not defined.
    assert metrics.ccc(constant, true) == 0 and math.isnan(metrics.pearson(constant, true))
    assert metrics.rmse(constant, true) == pytest.approx(math.sqrt(1 / 6), **EXACT)
    # A shift costs concordance and no correlation: 2 v / (2 v + 0.25) with v = 1/6.
    assert metrics.ccc(true + 0.5, true) == pytest.approx((1 / 3) / (1 / 3 + 0.25), **EXACT)
    assert metrics.pearson(true + 0.5, true) == pytest.approx(1, **EXACT)
    assert math.isnan(metrics.pearson(true[:1], true[:1])) and math.isnan(metrics.rmse(true[:0], true[:0]))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        metrics.rmse(true, true[:2])
