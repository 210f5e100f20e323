"""Bootstraps take their draws in parts: the same numbers as all draws at once, in bounded memory."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from vaemotionllm.benchmark import intervals
from vaemotionllm.evaluation import scores
from vaemotionllm.evaluation.results import Samples

CLIPS = 150


@pytest.fixture(params=[1, 1000 * CLIPS])
def in_parts(request, monkeypatch):
    """Few weights are held at once, so that the draws are cut into 157 or 11 parts."""
    monkeypatch.setattr(intervals, "_HELD_WEIGHTS", request.param)


def cell(seed: int, each: int = 1) -> tuple[list[str], list[float]]:
    rng = np.random.default_rng(seed)
    return [f"c{i // each:03d}" for i in range(CLIPS * each)], (rng.random(CLIPS * each) < 0.6).astype(float).tolist()


def stated(predicted, true, silent=()) -> Samples:
    """Samples of a task `artemo_va_*`; the answers to the items of `silent` state nothing."""
    rows = pd.DataFrame({"item_id": [f"i{i}" for i in range(len(true))]})
    rows["clip_id"] = [f"c{i}" for i in range(len(true))]
    rows["predicted"] = pd.Series([None if i in silent else p.tolist() for i, p in enumerate(predicted)], dtype=object)
    rows["true"] = pd.Series([t.tolist() for t in true], dtype=object)
    rows["value"], rows["unparsable"], rows["missing"] = np.nan, 0.0, 0.0
    return Samples("ccc", {}, rows)


def test_every_draw_is_the_one_of_the_whole(in_parts):
    parts = []

    def statistic(weights):
        parts.append(len(weights))
        return weights

    np.testing.assert_array_equal(intervals.bootstrap(CLIPS, statistic), intervals.draw_weights(CLIPS))
    assert len(parts) > 10 and sum(parts) == intervals.BOOTSTRAP_DRAWS


def test_intervals_are_those_of_all_draws_at_once(in_parts):
    weights = intervals.draw_weights(CLIPS)
    # Two items a clip, so that a clip counts 0, 1 or 2.
    clips, values = cell(1, each=2)
    of_clip = np.reshape(values, (CLIPS, 2)).sum(1)
    expected = intervals.percentile_interval(weights @ of_clip / (2 * CLIPS))
    assert intervals.clustered_mean(clips, values) == expected

    ratio = (weights @ cell(1)[1]) / (weights @ cell(2)[1])
    assert intervals.paired(cell(1), cell(2), np.divide) == intervals.percentile_interval(ratio)

    rng = np.random.default_rng(3)
    true = rng.normal(size=(CLIPS, 2))
    predicted = true + rng.normal(size=(CLIPS, 2))
    both = np.mean([intervals.ccc(predicted[:, i], true[:, i], weights) for i in (0, 1)], axis=0)
    # Sums of real numbers round by the blocks that the library of linear algebra takes.
    expected = pytest.approx(intervals.percentile_interval(both), rel=1e-12)
    assert stated(predicted, true).score()[1] == expected
    one = intervals.percentile_interval(intervals.ccc(predicted[:, 0], true[:, 0], weights))
    assert intervals.ccc_interval(predicted[:, 0], true[:, 0]) == pytest.approx(one, rel=1e-12)


def test_gains_are_those_of_all_draws_at_once(in_parts):
    runs = {name: {path: cell(10 * i + j) for j, path in enumerate(scores.MODALITIES)} for i, name in enumerate("ab")}
    weights = intervals.draw_weights(CLIPS)
    means = {name: [weights @ cells[path][1] / CLIPS for path in scores.MODALITIES] for name, cells in runs.items()}
    drawn = {name: scores.gains_of(*of) for name, of in means.items()}
    found = scores.modality_gains(runs)
    for gain in scores.GAINS:
        for name in runs:
            assert found[name][gain]["ci95"] == list(intervals.percentile_interval(drawn[name][gain]))
        difference = drawn["b"][gain] - drawn["a"][gain]
        assert found["difference"][gain]["ci95"] == list(intervals.percentile_interval(difference))
        value = found["b"][gain]["value"] - found["a"][gain]["value"]
        assert found["difference"][gain]["value"] == pytest.approx(value, abs=1e-15)


def test_differences_of_cccs_are_those_of_all_draws_at_once(in_parts):
    rng = np.random.default_rng(4)
    true = rng.uniform(-1, 1, (CLIPS, 2))
    answers = [true + rng.normal(0, 0.5, true.shape) for _ in range(2)]
    silent = [{3, 77}, {5}]
    weights = intervals.draw_weights(CLIPS)
    drawn = []
    for predicted, missing in zip(answers, silent):
        kept = [i for i in range(CLIPS) if i not in missing]
        pairs = [(predicted[kept, i], true[kept, i]) for i in (0, 1)]
        drawn.append(np.mean([intervals.ccc(*pair, weights[:, kept]) for pair in pairs], axis=0))
    expected = intervals.percentile_interval(drawn[1] - drawn[0])
    found = scores.ccc_difference(*(stated(p, true, without) for p, without in zip(answers, silent)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_memory_does_not_grow_with_the_clips(monkeypatch):
    monkeypatch.setattr(intervals, "BOOTSTRAP_DRAWS", 1000)
    monkeypatch.setattr(intervals, "_HELD_WEIGHTS", 1 << 18)
    clips, values = [f"c{i}" for i in range(4000)], [1.0, 0.0] * 2000
    tracemalloc.start()
    try:
        intervals.paired((clips, values), (clips, values[::-1]), np.subtract)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12e6 < 1000 * len(clips) * 8  # all draws at once


# ---- single intervals


@pytest.mark.parametrize("correct, n", [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(ValueError):
        intervals.wilson(correct, n)


def test_an_interval_over_seeds_is_students():
    # Three values: t(0.975; 2) = 4.302653, standard error 1 / sqrt(3).
    low, high = intervals.mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert intervals.mean_interval([0.5, 0.5]) == (0.5, 0.5)
    assert np.isnan(intervals.mean_interval([0.5])).all()


def test_ccc_equals_its_definition_and_takes_weights():
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=40) + 3, rng.normal(size=40)
    p = p + t
    cov = np.cov(p, t, bias=True)
    expected = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (p.mean() - t.mean()) ** 2)
    assert intervals.ccc(p, t) == pytest.approx(expected, abs=1e-12)
    # A pair that counts twice is a pair that stands there twice.
    weights = np.ones((1, 40))
    weights[0, 7] = 2
    assert intervals.ccc(p, t, weights)[0] == pytest.approx(
        float(intervals.ccc(np.append(p, p[7]), np.append(t, t[7])))
    )
    assert intervals.ccc(t, t) == pytest.approx(1)
    assert intervals.ccc(np.zeros(40), t) == pytest.approx(0)


def test_paired_interval_is_narrower_where_the_cells_agree():
    clips = [f"c{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    seen = (rng.random(200) < 0.8).astype(float)
    heard = seen.copy()
    heard[:10] = 1 - heard[:10]
    shuffled = rng.permutation(200)
    same = intervals.paired((clips, seen), (clips, heard), np.subtract)
    # The order of the rows carries nothing; the clip's name does.
    turned = intervals.paired(([clips[i] for i in shuffled], seen[shuffled]), (clips, heard), np.subtract)
    assert turned == pytest.approx(same)
    other = intervals.paired((clips, seen), (clips, rng.permutation(heard)), np.subtract)
    assert same[1] - same[0] < 0.5 * (other[1] - other[0])
    # Standard error of a mean of 200 paired differences.
    width = 2 * 1.96 * np.std(seen - heard) / 200**0.5
    assert same[1] - same[0] == pytest.approx(width, rel=0.08)


def test_paired_interval_needs_the_same_clips():
    with pytest.raises(ValueError, match="same clips"):
        intervals.paired((["a", "b"], [1, 0]), (["a", "c"], [1, 0]), np.divide)


def test_interval_of_clustered_items_is_wider_than_wilson():
    # Four copies of each answer: the information of 50 clips, not of 200 items.
    values = np.repeat((np.random.default_rng(0).random(50) < 0.6).astype(float), 4)
    clips = [f"c{i // 4}" for i in range(200)]
    low, high = intervals.clustered_mean(clips, values)
    naive = intervals.wilson(int(values.sum()), 200)
    assert high - low == pytest.approx(2 * (naive[1] - naive[0]), rel=0.15)
