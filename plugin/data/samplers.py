"""Which clip, prompt and path each step sees: pure functions of the seed and the step, with no hidden state.

So a run that was killed goes on exactly as if it had not been, and two ranks see what one process would see.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
    """

    def __init__(
        self, groups: Sequence[str], batch_size: int, accumulation: int, world_size: int, rank: int, seed: int
    ):
        self.batch_size, self.accumulation = batch_size, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
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
        orders = [np.resize(rng.permutation(m), self._steps_of(len(m)) * self.step_size) for m in self.members]
        order = np.concatenate(orders)
        # (steps, accumulation, world_size, batch_size)
        grid = order.reshape(self.steps_per_epoch, self.accumulation, self.world_size, self.batch_size)
        first = self.epoch * self.steps_per_epoch
        for offset, row in enumerate(rng.permutation(self.steps_per_epoch)):
            for micro in range(self.accumulation):
                yield [SampleKey(int(index), self.epoch, first + offset) for index in grid[row, micro, self.rank]]

    def _steps_of(self, clips: int) -> int:
        return max(clips // self.step_size, 1)
