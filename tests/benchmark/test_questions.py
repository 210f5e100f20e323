"""Distractors: rules that are kept whichever option is the answer, and sets from which the answer cannot be told."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from vaemotionllm.benchmark import questions, validate
from vaemotionllm.benchmark.questions import BuildConfig
from vaemotionllm.benchmark.schema import Item
from vaemotionllm.data.manifest import Clip

BANDS = [[0.2, 1.2], [0.6, 1.8], [1.2, 2.83]]


def circle(count: int, radius: float = 0.75) -> dict[str, tuple[float, float]]:
    angles = [2 * math.pi * (i + 0.5) / count for i in range(count)]
    return {f"emotion {i}": (radius * math.cos(a), radius * math.sin(a)) for i, a in enumerate(angles)}


def keeps_naively(answer, labels, plane, bands) -> bool:
    distances = [math.dist(plane[answer], plane[label]) for label in labels]
    return any(
        all(low <= distance <= high for distance, (low, high) in zip(order, bands))
        for order in itertools.permutations(distances)
    )


def asked_of(plane, answers, bands=BANDS, **values):
    clips = [
        Clip(
            f"c{i}",
            "benchmark",
            "s",
            "l",
            audio=b"s",
            emotion=a,
            valence=plane[a][0],
            arousal=plane[a][1],
            content="x",
        )
        for i, a in enumerate(answers)
    ]
    config = BuildConfig("m", "o", "n", aspects=["emotion"], options=len(bands) + 1, emotion_distances=bands, **values)
    return questions.make_questions(clips, config)


@pytest.mark.parametrize("seed", range(5))
def test_sets_are_all_that_keep_the_rule(seed):
    rng = np.random.default_rng(seed)
    plane = {f"label {i}": tuple(rng.uniform(-1, 1, 2)) for i in range(9)}
    bands = [sorted(rng.uniform(0, 2, 2)) for _ in range(3)]
    for answer in plane:
        mutual, one_sided = questions.banded_sets(answer, plane, bands, rng)
        others = [label for label in sorted(plane) if label != answer]
        expected = [s for s in itertools.combinations(others, 3) if keeps_naively(answer, s, plane, bands)]
        assert sorted(mutual + one_sided) == expected
        for labels in expected:
            every = (answer, *labels)
            fits = all(keeps_naively(x, [y for y in every if y != x], plane, bands) for x in every)
            assert (labels in mutual) == fits


def test_many_labels_are_sampled():
    rng = np.random.default_rng(0)
    plane = {f"label {i:02d}": tuple(rng.uniform(-1, 1, 2)) for i in range(60)}
    mutual, one_sided = questions.banded_sets("label 00", plane, BANDS, rng)
    assert len(mutual) > 50 and len(mutual) + len(one_sided) <= questions.MOST_SETS
    for labels in (mutual + one_sided)[::100]:
        assert len(set(labels)) == 3 and keeps_naively("label 00", labels, plane, BANDS)


def test_the_rule_does_not_tell_the_answer():
    """Who knows plane and bands, and picks an option that the others surround by the rule, is right by chance."""
    plane = circle(8)
    asked, counts, _ = asked_of(plane, [label for label in plane for _ in range(24)])
    right = 0.0
    for question in asked:
        fitting = [o for o in question.options
                   if keeps_naively(o, [x for x in question.options if x != o], plane, BANDS)]  # fmt: skip
        assert question.answer in fitting
        right += 1 / len(fitting)
    assert right == len(asked) / 4 and not counts
    # A rule about the answer alone would have told it.
    rng = np.random.default_rng(0)
    told = 0.0
    for question in asked:
        one_sided = questions.banded_sets(question.answer, plane, [[0.2, 0.6], [1.0, 1.2], [1.3, 2.0]], rng)[1]
        for labels in one_sided[:1]:
            every = (question.answer, *labels)
            told += 1 / sum(
                keeps_naively(o, [x for x in every if x != o], plane, [[0.2, 0.6], [1.0, 1.2], [1.3, 2.0]])
                for o in every
            )
    assert told > 0.4 * len(asked)


def test_in_each_pair_each_is_the_answer_equally_often():
    plane = circle(8)
    asked, _, _ = asked_of(plane, [label for label in plane for _ in range(24)])
    pairs = Counter((q.answer, option) for q in asked for option in q.options if option != q.answer)
    assert len(pairs) > 30
    assert max(abs(count - pairs[b, a]) for (a, b), count in pairs.items()) <= 4
    assert not guess([(q.options, q.answer) for q in asked])


def test_rare_answers_are_rare_distractors():
    weights = {"often": 90, "sometimes": 9, "rare": 1, "other": 50}
    found = Counter()
    rng = np.random.default_rng(0)
    for _ in range(200):
        found.update(label for labels in questions.drawn_sets(weights, 2, rng, draws=1) for label in labels)
    assert found["often"] > found["other"] > 3 * found["sometimes"] > 3 * found["rare"]


def guess(pairs) -> list[validate.Issue]:
    items = [Item(f"i{i}", f"c{i}", "av", "emotion", "?", tuple(o), a) for i, (o, a) in enumerate(pairs)]
    return [issue for issue in validate._plausibility("emotion", items) if "guessed from" in issue.message]


def test_answers_that_can_be_guessed_from_the_options_are_found():
    labels = [str(i) for i in range(8)]
    told = [([labels[(i + j) % 8] for j in range(4)], labels[i % 8]) for i in range(80)]  # the first of four in a row
    [issue] = guess(told)
    assert (issue.level, issue.check) == ("warning", "plausibility")
    assert "emotion: 80 of 80 answers can be guessed from the options and the other questions" in issue.message
    rng = np.random.default_rng(0)
    fair = [(list(rng.choice(labels, 4, replace=False)),) for _ in range(200)]
    assert not guess([(options, options[int(rng.integers(4))]) for (options,) in fair])
