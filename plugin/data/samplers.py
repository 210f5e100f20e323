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
        length_of: (clip number, epoch, step) -> tokens that the clip has in that step. Where given, clips of about
            equal length share a micro-batch: of the clips of `LENGTH_POOL` steps of one kind the shortest go into one
            step, the next into another, and so on. The order of the steps stays random.
        kind_of: step -> kind of step; a clip's length is the same in all steps of one kind.
    """

    LENGTH_POOL = 50

    def __init__(
        self,
        groups: Sequence[str],
        batch_size: int,
        accumulation: int,
        world_size: int,
        rank: int,
        seed: int,
        length_of: Callable[[int, int, int], int] | None = None,
        kind_of: Callable[[int], str] | None = None,
    ):
        self.batch_size, self.accumulation = batch_size, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.length_of, self.kind_of = length_of, kind_of
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
        # Clips of each step, (steps, step_size), one array a group; then the place of each step in the epoch.
        groups = [np.resize(rng.permutation(m), (self._steps_of(len(m)), self.step_size)) for m in self.members]
        first = self.epoch * self.steps_per_epoch
        order = rng.permutation(self.steps_per_epoch)
        if self.length_of is not None:
            places = np.argsort(order) + first  # step number of each row
            for clips, steps in zip(groups, np.split(places, np.cumsum([len(group) for group in groups])[:-1])):
                self._sort_by_length(clips, steps)
        # (steps, accumulation, world_size, batch_size)
        grid = np.concatenate(groups).reshape(-1, self.accumulation, self.world_size, self.batch_size)
        for offset, row in enumerate(order):
            for micro in range(self.accumulation):
                yield [SampleKey(int(index), self.epoch, first + offset) for index in grid[row, micro, self.rank]]

    def _sort_by_length(self, clips: np.ndarray, steps: np.ndarray) -> None:
        """Exchange clips (steps, step_size) between steps of one kind, so that those of equal length come together."""
        kinds: dict[str, list[int]] = {}
        for row, step in enumerate(steps):
            kinds.setdefault(self.kind_of(int(step)) if self.kind_of else "", []).append(row)
        for rows in kinds.values():
            for begin in range(0, len(rows), self.LENGTH_POOL):
                pool = rows[begin : begin + self.LENGTH_POOL]
                found = clips[pool].reshape(-1)  # (pool * step_size,)
                lengths = [self.length_of(int(index), self.epoch, int(steps[pool[0]])) for index in found]
                clips[pool] = found[np.argsort(lengths, kind="stable")].reshape(len(pool), self.step_size)

    def _steps_of(self, clips: int) -> int:
        return max(clips // self.step_size, 1)
