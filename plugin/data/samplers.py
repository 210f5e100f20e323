"""Samplers of clip, prompt and modality for each step: pure functions of the seed and the step, without hidden state.

So a run that was killed resumes exactly as if it had not been, and two ranks get what one process would get.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What a dataset is indexed by: clip number `index`, in pass `epoch` over the clips, for optimizer step `step`."""

    index: int
    epoch: int
    step: int


def seeded_random(seed: int, *parts: int | str) -> np.random.Generator:
    """A generator that depends on its arguments alone, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def modality_of_step(
    seed: int, step: int, weights: Mapping[str, float], possible: Collection[str] | None = None
) -> str:
    """The modality (audio, visual, av) that all samples of an optimizer step take, on all ranks.

    One modality a step, because under ZeRO-3 every rank must run the same modules.

    Args:
        seed, step: what it depends on.
        weights: how often each modality is taken.
        possible: the modalities that the step's clips can take, where these are not all. It is the same on all ranks
            where it is a function of the clips' group, see `ScheduledBatchSampler`.
    """
    modalities = [
        modality for modality, weight in weights.items() if weight > 0 and (possible is None or modality in possible)
    ]
    shares = np.array([weights[modality] for modality in modalities], dtype=np.float64)
    generator = seeded_random(seed, "path", step)  # words: part of the seed
    return modalities[int(generator.choice(len(modalities), p=shares / shares.sum()))]


def class_weights(labels: Sequence[str | None], exponent: float) -> np.ndarray:
    """Weight of each clip in the draw of clips: its label's frequency to the power of `-exponent`.

    Args:
        labels: label of each clip, None where it has none.
        exponent: 0 draws every clip as often as every other, 1 every label.

    Returns:
        (clips,) float64; the mean over the clips with a label is 1, and a clip without one has 1.
    """
    counts = Counter(label for label in labels if label is not None)
    weights = {label: count**-exponent for label, count in counts.items()}
    mean = sum(weights[label] * count for label, count in counts.items()) / max(counts.total(), 1)
    return np.array([1.0 if label is None else weights[label] / mean for label in labels])


class ScheduledBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one rank.

    An optimizer step takes `batch_size * accumulation * world_size` clips of one group. In every epoch each group is
    shuffled and cut into steps, and the steps of all groups are shuffled; clips that are left over wait for another
    epoch's shuffle. A group with fewer clips than one step gives one step in which clips repeat.

    Args:
        groups: group of each clip, such as "image" or "video". Under ZeRO-3 every rank must run the same modules in
            each step, and a backbone runs its vision tower once for images and once for videos.
        batch_size: clips in a micro-batch of one rank.
        accumulation: micro-batches in an optimizer step.
        world_size, rank: of this process.
        seed: of the shuffle.
        length_of: (clip number, epoch, step) -> tokens that the clip has in that step. Where given, the clips of a
            step are shared out to its micro-batches and ranks by length: little is padded, and ranks seldom wait.
            What a step learns from stays the random choice that it was: batches of equal length across steps would
            hold one kind of prompt or clip each, and count the tokens of short ones for more.
        weights: (clips,) how often each clip is drawn, against the others; None for all alike. An epoch is as long as
            without them. A clip comes as often as its share of the epoch says, rounded down or up by chance.
    """

    def __init__(
        self,
        groups: Sequence[str],
        batch_size: int,
        accumulation: int,
        world_size: int,
        rank: int,
        seed: int,
        length_of: Callable[[int, int, int], int] | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ):
        self.batch_size, self.accumulation = batch_size, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.length_of = length_of
        self.step_size = batch_size * accumulation * world_size
        self.members = [
            np.array([index for index, group in enumerate(groups) if group == name]) for name in sorted(set(groups))
        ]
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.steps = [self._steps_of(members, len(groups)) for members in self.members]
        self.steps_per_epoch = sum(self.steps)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        # Clips of each step, (steps, step_size).
        steps = np.concatenate([self._draw(rng, members, n) for members, n in zip(self.members, self.steps)])
        first = self.epoch * self.steps_per_epoch
        for offset, row in enumerate(rng.permutation(self.steps_per_epoch)):
            clips = self._by_length(steps[row], first + offset)
            for batch in clips.reshape(self.accumulation, self.world_size, self.batch_size)[:, self.rank]:
                yield [SampleKey(int(index), self.epoch, first + offset) for index in batch]

    def _by_length(self, clips: np.ndarray, step: int) -> np.ndarray:
        if self.length_of is None:
            return clips
        lengths = [self.length_of(int(index), self.epoch, step) for index in clips]
        return clips[np.argsort(lengths, kind="stable")]

    def _steps_of(self, members: np.ndarray, clips: int) -> int:
        """Steps of a group in an epoch; with weights a group has as many as its weight gives it."""
        size = len(members)
        if self.weights is not None:
            # Rounded before it is cut: equal weights must give what no weights give.
            size = int(round(clips * self.weights[members].sum() / self.weights.sum(), 6))
        return max(size // self.step_size, 1)

    def _draw(self, rng: np.random.Generator, members: np.ndarray, steps: int) -> np.ndarray:
        """Clips of a group's steps in an epoch, (steps, step_size)."""
        order = rng.permutation(members)
        if self.weights is None:
            return np.resize(order, (steps, self.step_size))
        # Systematic sampling: points at equal distance on a line on which each clip has a length of its weight.
        slots = steps * self.step_size
        ends = np.cumsum(self.weights[order])
        points = (np.arange(slots) + rng.random()) / slots * ends[-1]
        picks = order[np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)]
        return rng.permutation(picks).reshape(steps, self.step_size)
