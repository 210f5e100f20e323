"""Metrics beside values by hand: which form of each is meant."""

import math

import numpy as np
import pytest

from vaemotionllm.benchmark import intervals, metrics

EXACT = {"rel": 0, "abs": 1e-9}


def test_label_metrics_by_hand():
    true = ["a", "a", "a", "b"]
    # Recall 1/3 and 1; F1 2/4 and 2/3. A class that is answered and never right takes no part.
    assert metrics.uar(["a", "b", None, "b"], true) == pytest.approx(2 / 3, **EXACT)
    assert metrics.macro_f1(["a", "b", None, "b"], true) == pytest.approx(7 / 12, **EXACT)
    assert metrics.macro_f1(["a", "c", None, "b"], true) == pytest.approx((1 / 2 + 1) / 2, **EXACT)
    # The same class always: its recall is 1 and the other's 0, whatever the skew.
    assert metrics.uar(["a"] * 4, true) == 0.5
    assert metrics.macro_f1(["a"] * 4, true) == pytest.approx(3 / 7, **EXACT)  # (6/7 + 0) / 2
    # Silence is 0 in each of them: never a guess.
    for metric in (metrics.uar, metrics.macro_f1):
        assert metric([None] * 4, true) == 0
        assert metric(true, true) == 1
    with pytest.raises(ValueError):
        metrics.uar([], [])
    with pytest.raises(ValueError):
        metrics.uar(["a"], ["a", "b"])


def test_divergences_by_hand():
    certain, half = {"calm": 1}, {"calm": 2, "sad": 2}
    assert metrics.kl_divergence(certain, half) == pytest.approx(1, **EXACT)  # one bit
    assert metrics.kl_divergence(half, certain) == math.inf
    assert metrics.kl_divergence(half, {"sad": 0.5, "calm": 0.5}) == 0
    assert metrics.jensen_shannon(certain, {"sad": 1.0}) == pytest.approx(1, **EXACT)
    assert metrics.jensen_shannon(certain, half) == metrics.jensen_shannon(half, certain) > 0
    assert metrics.jensen_shannon(half, half) == 0
    for bad in ({}, {"calm": 0}, {"calm": -1, "sad": 2}, {"calm": math.nan}):
        with pytest.raises(ValueError, match="finite shares"):
            metrics.jensen_shannon(bad, certain)


def test_dimension_metrics_at_the_edges():
    true = np.array([-0.5, 0.0, 0.5])
    constant = np.zeros(3)
    # A model that always says 0 agrees with nothing; its correlation is not defined.
    assert intervals.ccc(constant, true) == 0 and math.isnan(metrics.pearson(constant, true))
    assert metrics.rmse(constant, true) == pytest.approx(math.sqrt(1 / 6), **EXACT)
    # A shift costs concordance and no correlation: 2 v / (2 v + 0.25) with v = 1/6.
    assert intervals.ccc(true + 0.5, true) == pytest.approx((1 / 3) / (1 / 3 + 0.25), **EXACT)
    assert metrics.pearson(true + 0.5, true) == pytest.approx(1, **EXACT)
    assert math.isnan(metrics.pearson(true[:1], true[:1])) and math.isnan(metrics.rmse(true[:0], true[:0]))
