"""Audio-visual items whose sight and sound express opposite emotions: which of the two does a model follow?

The paper names no such control; every rule here is our choice. An item shows the picture or film of one clip with the
sound of another, and asks the emotion question of the first. There is no right answer: the answer follows the sight,
the sound, or neither.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils import InputError
from .schema import Benchmark, Item

SEED = 0
# Seen from the neutral point (0, 0) of the valence-arousal plane, opposite points are at least this far apart: within
# an eighth of a turn of the exact opposite.
OPPOSITE_DEGREES = 135.0
# Nearer to the neutral point a direction says little: a tenth of the plane's width.
FARTHER_THAN = 0.2


@dataclass(frozen=True)
class ConflictItem:
    """`sight`'s picture and question with `sound`'s audio. `options` hold the emotions of both."""

    sight: Item
    sound: Item
    options: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.sight.id}+{self.sound.clip_id}"


def conflict_items(benchmark: Benchmark) -> list[ConflictItem]:
    """One item for each clip that has an opposite one, in the file's order; the same benchmark gives the same items.

    Candidates are the first audio-visual emotion item of each clip. Where any of them has valence and arousal, two
    clips are opposite if their labels differ, both points lie at least `FARTHER_THAN` from (0, 0), and the angle
    between them is at least `OPPOSITE_DEGREES`; clips without a point are left out. Where none has, two clips with
    different labels count as opposite: weaker, since neighbouring emotions then count too.

    Each clip's sight is shown once, with the opposite sound that was used least so far; among those the most opposite
    one counts, then the next in the file. The options are the sight item's; where the sound's emotion is not among
    them, it takes the place of one distractor, drawn by a hash of both ids.

    Raises:
        InputError: no two clips are opposite.
    """
    first: dict[str, Item] = {}
    for item in benchmark.select("emotion", "av"):
        first.setdefault(item.clip_id, item)
    candidates = list(first.values())
    pairs = opposite_pairs(candidates)
    if not pairs:
        raise InputError(
            f"{benchmark.folder}: artemo_conflict needs two clips of opposite emotion (different labels, valence and "
            f"arousal in opposite directions), and the {len(candidates)} clips with an audio-visual emotion item hold "
            "none; name artemo_silence, artemo_noise, artemo_mismatch and artemo_blind in place of artemo_controls."
        )
    return [ConflictItem(sight, sound, shared_options(sight, sound)) for sight, sound in pairs]


def opposite_pairs(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """(sight, sound) of opposite emotion, see `conflict_items`; one pair for each item that has an opposite."""
    on_plane = [item for item in items if item.valence is not None and item.arousal is not None]
    chosen = on_plane or list(items)
    n = len(chosen)
    labels = np.array([item.answer for item in chosen])
    points = np.array([[item.valence, item.arousal] for item in on_plane], dtype=np.float64).reshape(-1, 2)  # (n, 2)
    radii = np.linalg.norm(points, axis=1)
    far = radii >= FARTHER_THAN
    directions = points / np.where(radii > 0, radii, 1)[:, None]
    used: np.ndarray = np.zeros(n, dtype=np.int64)
    pairs = []
    for i, item in enumerate(chosen):
        allowed = labels != item.answer
        closeness = np.zeros(n)
        if on_plane:
            closeness = directions @ directions[i]  # cosine: -1 is exactly opposite
            # Rounded, so that the bound itself belongs to it and rounding of the last digit cannot decide.
            closeness = closeness.round(9)
            allowed &= far & far[i] & (closeness <= np.cos(np.radians(OPPOSITE_DEGREES)).round(9))
        found = np.flatnonzero(allowed)
        if len(found):
            # The last key counts first.
            best = found[np.lexsort(((found - i) % n, closeness[found], used[found]))[0]]
            used[best] += 1
            pairs.append((item, chosen[best]))
    return pairs


def shared_options(sight: Item, sound: Item) -> tuple[str, ...]:
    """The options of the sight's item, with the sound's emotion among them."""
    if sound.answer in sight.options:
        return sight.options
    distractors = [i for i, option in enumerate(sight.options) if option != sight.answer]
    digest = hashlib.sha256(f"{SEED}:{sight.id}:{sound.id}".encode()).digest()
    place = distractors[int.from_bytes(digest[:8], "big") % len(distractors)]
    return tuple(sound.answer if i == place else option for i, option in enumerate(sight.options))
