"""Which labels stand beside the answer: sets of options from which the answer cannot be told without the clip.

A rule about the distances of the distractors to the answer alone would give the answer away: it would be the one label
that the others surround as the rule says. So sets are preferred that keep the rule whichever of their labels is the
answer, and they are dealt so that in each pair of labels each is the answer equally often.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .item_checks import normalised

Plane = Mapping[str, tuple[float, float]]
Labels = tuple[str, ...]

# All combinations are looked at up to here, beyond it this many that are drawn.
MOST_SETS = 3000


@dataclass
class Dealer:
    """Deals one of several sets of distractors. pairs: (answer, distractor) -> how often they were dealt."""

    rng: np.random.Generator
    pairs: Counter = field(default_factory=Counter)

    def deal(self, answer: str, sets: Sequence[Labels]) -> list[str]:
        """The set whose labels were distractors of `answer` least often beyond being answers beside it; shuffled.

        This is the greedy step on the sum of squared differences pairs[a, b] - pairs[b, a].
        """
        costs = [sum(self.pairs[answer, other] - self.pairs[other, answer] for other in labels) for labels in sets]
        best = [labels for labels, cost in zip(sets, costs) if cost == min(costs)]
        chosen = best[int(self.rng.integers(len(best)))]
        for other in chosen:
            self.pairs[answer, other] += 1
        return [chosen[i] for i in self.rng.permutation(len(chosen))]


def drawn_sets(weights: Mapping[str, int], count: int, rng: np.random.Generator, draws: int = 64) -> list[Labels]:
    """Random sets of `count` labels, each label drawn as often as its weight says: as often as it is an answer."""
    labels = sorted(weights)
    shares = np.array([weights[label] for label in labels], float)
    shares /= shares.sum()
    found = (rng.choice(len(labels), count, replace=False, p=shares) for _ in range(draws))
    return sorted({tuple(labels[i] for i in sorted(chosen)) for chosen in found})


def banded_sets(
    answer: str, plane: Plane, bands: Sequence[Sequence[float]], rng: np.random.Generator
) -> tuple[list[Labels], list[Labels]]:
    """Sets of distractors with one label in each band of distances to the answer.

    Returns:
        Those that keep the rule whichever of their labels and `answer` is the answer, and the others.
    """
    mutual: list[Labels] = []
    one_sided: list[Labels] = []
    for labels in _candidates(answer, plane, bands, rng):
        if len({normalised(label) for label in (answer, *labels)}) <= len(labels):
            continue
        if _keeps(answer, labels, plane, bands):
            every = (answer, *labels)
            others = ([x for x in every if x != label] for label in labels)
            fits = all(_keeps(label, rest, plane, bands) for label, rest in zip(labels, others))
            (mutual if fits else one_sided).append(labels)
    return mutual, one_sided


def nearest_to_bands(answer: str, free: Sequence[str], plane: Plane, bands: Sequence[Sequence[float]]) -> Labels:
    """For each band the label whose distance to the answer is nearest to it, where no set has one in each."""
    left = {label: math.dist(plane[answer], plane[label]) for label in sorted(free)}
    chosen = []
    for low, high in bands:
        chosen.append(min(left, key=lambda label: max(low - left[label], left[label] - high, 0.0)))
        del left[chosen[-1]]
    return tuple(chosen)


def _candidates(answer: str, plane: Plane, bands, rng: np.random.Generator) -> Iterator[Labels]:
    inside = [
        [label for label in sorted(plane) if label != answer and low <= math.dist(plane[answer], plane[label]) <= high]
        for low, high in bands
    ]
    if not all(inside):
        return
    near = sorted(set(itertools.chain.from_iterable(inside)))
    if math.comb(len(near), len(bands)) <= MOST_SETS:
        yield from itertools.combinations(near, len(bands))
        return
    found = set()
    for _ in range(MOST_SETS):
        labels = {band[int(rng.integers(len(band)))] for band in inside}
        if len(labels) == len(bands):
            found.add(tuple(sorted(labels)))
    yield from sorted(found)


def _keeps(answer: str, labels: Sequence[str], plane: Plane, bands: Sequence[Sequence[float]]) -> bool:
    """Whether each label has a band of its own. Ascending, into the fitting band that ends first: this finds a way."""
    free = sorted(bands, key=lambda band: band[1])
    for distance in sorted(math.dist(plane[answer], plane[label]) for label in labels):
        fitting = next((band for band in free if band[0] <= distance <= band[1]), None)
        if fitting is None:
            return False
        free.remove(fitting)
    return True
