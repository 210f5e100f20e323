"""Bootstraps take their draws in parts: the same numbers as all draws at once, in bounded memory."""

import tracemalloc

import numpy as np
import pytest

from vaemotionllm.benchmark import intervals
from vaemotionllm.evaluation import artemo, compare, gains
from vaemotionllm.evaluation.task_samples import Samples

CLIPS = 150


@pytest.fixture(params=[1, 1000 * CLIPS])
def in_parts(request, monkeypatch):
    """Few weights are held at once, so that the draws are cut into 157 or 11 parts."""
    monkeypatch.setattr(intervals, "_HELD_WEIGHTS", request.param)


def cell(seed: int, each: int = 1) -> tuple[list[str], list[float]]:
    rng = np.random.default_rng(seed)
    return [f"c{i // each:03d}" for i in range(CLIPS * each)], (rng.random(CLIPS * each) < 0.6).astype(float).tolist()


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
    values = [{"predicted": list(p), "true": list(t)} for p, t in zip(predicted, true)]
    assert artemo.va_interval(values) == expected
    one = intervals.percentile_interval(intervals.ccc(predicted[:, 0], true[:, 0], weights))
    assert intervals.ccc_interval(predicted[:, 0], true[:, 0]) == pytest.approx(one, rel=1e-12)


def test_gains_are_those_of_all_draws_at_once(in_parts):
    runs = {name: {path: cell(10 * i + j) for j, path in enumerate(gains.MODALITIES)} for i, name in enumerate("ab")}
    weights = intervals.draw_weights(CLIPS)
    means = {name: [weights @ cells[path][1] / CLIPS for path in gains.MODALITIES] for name, cells in runs.items()}
    drawn = {name: gains.gains_of(*of) for name, of in means.items()}
    found = gains.modality_gains(runs)
    for gain in gains.GAINS:
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
    items = {f"i{i}": f"c{i}" for i in range(CLIPS)}

    def samples(predicted, silent):
        values = {
            f"i{i}": {"predicted": None if i in silent else predicted[i].tolist(), "true": true[i].tolist()}
            for i in range(CLIPS)
        }
        return Samples("ccc", {}, items, {}, values, {}, CLIPS, 0.0)

    silent = [{3, 77}, {5}]
    weights = intervals.draw_weights(CLIPS)
    drawn = []
    for predicted, missing in zip(answers, silent):
        kept = [i for i in range(CLIPS) if i not in missing]
        pairs = [(predicted[kept, i], true[kept, i]) for i in (0, 1)]
        drawn.append(np.mean([intervals.ccc(*pair, weights[:, kept]) for pair in pairs], axis=0))
    expected = intervals.percentile_interval(drawn[1] - drawn[0])
    found = compare.ccc_difference(*(samples(*side) for side in zip(answers, silent)))
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
