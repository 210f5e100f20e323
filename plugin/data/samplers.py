"""Which clip, prompt and path each step sees: pure functions of the seed and the step, with no hidden state.

So a run that was killed goes on exactly as if it had not been, and two ranks see what one process would see.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What a dataset is asked for: clip number `index`, in pass `epoch` over the clips, for optimizer step `step`."""

    index: int
    epoch: int
    step: int


def seeded_random(seed: int, *parts: int | str) -> np.random.Generator:
    """A generator that depends on its arguments alone, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def path_of_step(seed: int, step: int, weights: Mapping[str, float]) -> str:
    """The path (audio, visual, av) that all samples of an optimizer step take, on all ranks.

    One path a step, because under ZeRO-3 every rank must run the same modules.
    """
    paths = [path for path, weight in weights.items() if weight > 0]
    shares = np.array([weights[path] for path in paths], dtype=np.float64)
    return paths[int(seeded_random(seed, "path", step).choice(len(paths), p=shares / shares.sum()))]


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
    ):
        self.batch_size, self.accumulation = batch_size, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.length_of = length_of
        self.step_size = batch_size * accumulation * world_size
        self.members = [
            np.array([index for index, group in enumerate(groups) if group == name]) for name in sorted(set(groups))
        ]
        self.steps_per_epoch = sum(self._steps_of(len(members)) for members in self.members)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        # Clips of each step, (steps, step_size), one array a group.
        groups = [np.resize(rng.permutation(m), (self._steps_of(len(m)), self.step_size)) for m in self.members]
        steps = np.concatenate(groups)
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

    def _steps_of(self, clips: int) -> int:
        return max(clips // self.step_size, 1)
