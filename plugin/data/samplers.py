"""Which clip, prompt and path each step sees: pure functions of the seed and the step, with no hidden state.

So a run that was killed goes on exactly as if it had not been, and two ranks see what one process would see.
"""

import hashlib
from collections.abc import Iterator, Mapping
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

    In every epoch the clips are shuffled, and cut into optimizer steps of `batch_size * accumulation * world_size`
    clips; the clips that are left over wait for another epoch's shuffle. With fewer clips than one step needs, clips
    repeat within the step.

    Args:
        clips: number of clips.
        batch_size: clips in a micro-batch of one rank.
        accumulation: micro-batches in an optimizer step.
        world_size, rank: of this process.
        seed: of the shuffle.
    """

    def __init__(self, clips: int, batch_size: int, accumulation: int, world_size: int, rank: int, seed: int):
        self.clips, self.batch_size, self.accumulation = clips, batch_size, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.step_size = batch_size * accumulation * world_size
        self.steps_per_epoch = max(clips // self.step_size, 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.clips)
        order = np.resize(order, self.steps_per_epoch * self.step_size)
        # (steps, accumulation, world_size, batch_size)
        grid = order.reshape(self.steps_per_epoch, self.accumulation, self.world_size, self.batch_size)
        first = self.epoch * self.steps_per_epoch
        for step in range(self.steps_per_epoch):
            for micro in range(self.accumulation):
                yield [SampleKey(int(i), self.epoch, first + step) for i in grid[step, micro, self.rank]]
