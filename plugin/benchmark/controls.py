"""Control audio that carries nothing about the item, and items whose modalities contradict each other.

A model that hears falls to chance with silence, noise or another clip's audio. Where image and audio express opposite
emotions, its answer shows which of the two it follows. All of these are our choice; the paper names none.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model.media import load_audio
from ..utils import InputError, atomic_file, cache_dir, sha256_of_file
from .schema import Benchmark, Item

KINDS = ("silence", "noise", "mismatch")
RATE_HZ = 16_000
SEED = 0
# -20 dB below full scale, for every clip: at the clip's own loudness, noise would still tell its arousal.
NOISE_RMS = 0.1
# From the neutral point (0, 0) of the valence-arousal space, opposite points are at least this far apart: within an
# eighth of a turn of the exact opposite.
OPPOSITE_DEGREES = 135.0
# Nearer to the neutral point a direction says little: a tenth of the space's width.
FARTHER_THAN = 0.2


def control_audio(benchmark: Benchmark, kind: str) -> dict[str, str]:
    """For each clip with an audio-only item, the path of the audio that takes the place of its own.

    Args:
        kind: "silence": zeros of the same length; "noise": white noise of the same length, for every
            clip as loud (`NOISE_RMS`), seeded by the clip's id; "mismatch": mismatched audio, of another clip that
            differs in every answer (content and emotion).

    Raises:
        InputError: a clip's audio cannot be decoded (the clip is named), a clip has two audio files, or there is no
            clip to swap with.
    """
    audio: dict[str, str] = {}
    items = benchmark.select(modality="audio")
    for item in items:
        source = str(item.audio)
        if audio.setdefault(item.clip_id, source) != source:
            raise InputError(
                f"{benchmark.folder}: the clip {item.clip_id!r} has two audio files, {audio[item.clip_id]} and "
                f"{source} (item {item.id!r}); give each a clip_id of its own."
            )
    if not audio:
        raise InputError(f"{benchmark.folder} holds no audio-only item, so there are no controls.")
    if kind == "mismatch":
        partners = mismatched_partners(items)
        return {clip: audio[partner] for clip, partner in partners.items()}
    folder = cache_dir() / "controls" / _key(benchmark.folder, audio) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return {clip: _written(folder, clip, source, kind) for clip, source in audio.items()}


def _key(folder: Path, audio: dict[str, str]) -> str:
    """Changes with the content of the files alone: the same benchmark built again finds its controls."""
    lines = [f"3 {RATE_HZ} {SEED} {NOISE_RMS}"]
    for clip, source in sorted(audio.items()):
        name = os.path.relpath(source, folder)
        lines.append(f"{clip}\t{name}\t{os.path.getsize(source)}\t{sha256_of_file(Path(source))}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _written(folder: Path, clip: str, source: str, kind: str) -> str:
    # A clip id may hold characters that no file name may.
    path = folder / f"{hashlib.sha256(clip.encode()).hexdigest()[:24]}.wav"
    if not path.exists():
        import soundfile

        waveform = load_audio(source, sampling_rate=RATE_HZ, name=f"clip {clip!r}: {source}")
        with atomic_file(path) as temporary:
            # 16 bits suffice: at NOISE_RMS full scale is ten standard deviations away.
            soundfile.write(temporary, replaced(waveform, clip, kind), RATE_HZ, subtype="PCM_16", format="WAV")
    return str(path)


def replaced(waveform: np.ndarray, clip: str, kind: str) -> np.ndarray:
    """Silence or noise in place of a waveform (samples,) of a clip; float32 of the same length."""
    if kind == "silence":
        return np.zeros_like(waveform)
    seed = int.from_bytes(hashlib.sha256(f"{SEED}:{clip}".encode()).digest()[:8], "big")
    noise = np.random.default_rng(seed).standard_normal(len(waveform))
    return (noise * NOISE_RMS / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)


def mismatched_partners(items: list[Item]) -> dict[str, str]:
    """For each clip another one that shares no answer in any aspect; every clip is used exactly once.

    Several questions about one aspect of a clip may have several answers; none of them is right for the other clip.

    Raises:
        InputError: no such arrangement was found, because one answer is too frequent.
    """
    answers: dict[str, dict[str, set[str]]] = {}
    for item in items:
        answers.setdefault(item.clip_id, {}).setdefault(item.aspect, set()).add(item.answer)
    clips = sorted(answers)

    def fits(a: str, b: str) -> bool:
        shared = answers[a].keys() & answers[b].keys()
        return a != b and all(answers[a][aspect].isdisjoint(answers[b][aspect]) for aspect in shared)

    rng = np.random.default_rng(SEED)
    for _ in range(20):
        partners = [clips[i] for i in rng.permutation(len(clips))]
        # Repair by swaps: each swap lowers the number of clips that do not fit.
        for _ in range(50):
            wrong = [i for i, clip in enumerate(clips) if not fits(clip, partners[i])]
            if not wrong:
                return dict(zip(clips, partners))
            for i in wrong:
                for j in rng.permutation(len(clips)):
                    if fits(clips[i], partners[j]) and fits(clips[j], partners[i]):
                        partners[i], partners[j] = partners[j], partners[i]
                        break
    raise InputError(
        f"the control 'mismatch' needs for each of {len(clips)} clips another one with other answers, each used once; "
        "one answer is too frequent in this benchmark for that."
    )


# ---- conflict


@dataclass(frozen=True)
class ConflictItem:
    """Image or video and question of `visual` with the audio of `audio`. `options` hold the emotions of both.

    There is no right answer: an answer follows the one, the other, or neither.
    """

    visual: Item
    audio: Item
    options: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.visual.id}+{self.audio.clip_id}"


def conflict_items(benchmark: Benchmark) -> list[ConflictItem]:
    """One item for each clip that has an opposite one, in the file's order; the same benchmark gives the same items.

    Candidates are the first audio-visual emotion item of each clip. Where any of them has valence and arousal, two
    clips are opposite if their labels differ, both points lie at least `FARTHER_THAN` from (0, 0), and the angle
    between them is at least `OPPOSITE_DEGREES`; clips without a point are left out. Where none has, two clips with
    different labels count as opposite: weaker, since neighbouring emotions then count too.

    Each clip's image or video is shown once, with the opposite audio that was used least so far; among those the most
    opposite one counts, then the next in the file. The options are the visual item's; where the audio's emotion is not
    among them, it takes the position of one distractor, drawn by a hash of both ids.

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
    return [ConflictItem(visual, audio, shared_options(visual, audio)) for visual, audio in pairs]


def opposite_pairs(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """(visual, audio) item of opposite emotion, see `conflict_items`; one pair for each item that has an opposite."""
    with_point = [item for item in items if item.valence is not None and item.arousal is not None]
    chosen = with_point or list(items)
    n = len(chosen)
    labels = np.array([item.answer for item in chosen])
    points = np.array([[item.valence, item.arousal] for item in with_point], dtype=np.float64).reshape(-1, 2)  # (n, 2)
    radii = np.linalg.norm(points, axis=1)
    far = radii >= FARTHER_THAN
    directions = points / np.where(radii > 0, radii, 1)[:, None]
    used: np.ndarray = np.zeros(n, dtype=np.int64)
    pairs = []
    for i, item in enumerate(chosen):
        allowed = labels != item.answer
        closeness = np.zeros(n)
        if with_point:
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


def shared_options(visual: Item, audio: Item) -> tuple[str, ...]:
    """The options of the visual item, with the audio's emotion among them."""
    if audio.answer in visual.options:
        return visual.options
    distractors = [i for i, option in enumerate(visual.options) if option != visual.answer]
    digest = hashlib.sha256(f"{SEED}:{visual.id}:{audio.id}".encode()).digest()
    position = distractors[int.from_bytes(digest[:8], "big") % len(distractors)]
    return tuple(audio.answer if i == position else option for i, option in enumerate(visual.options))
