"""Sounds that carry nothing about the item, to show that a model listens: silence, noise, another clip's sound.

A model that hears falls to chance with them. These controls are our choice; the paper names none.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from ..utils import InputError, cache_dir
from .schema import Benchmark, Item

KINDS = ("silence", "noise", "mismatch")
RATE_HZ = 16_000
SEED = 0
# -20 dB below full scale, for every clip: at the clip's own loudness, noise would still tell its arousal.
NOISE_RMS = 0.1


def control_audio(benchmark: Benchmark, kind: str) -> dict[str, str]:
    """For each clip with an audio-only item, the path of the sound that takes the place of its own.

    Args:
        kind: "silence": zeros of the same length; "noise": white noise of the same length, for every
            clip as loud (`NOISE_RMS`), seeded by the clip's id; "mismatch": the sound of another clip that differs in
            every answer (content and emotion).

    Raises:
        InputError: a clip's sound cannot be decoded (the clip is named), a clip has two sounds, or there is no clip
            to swap with.
    """
    sounds = _sounds(benchmark)
    if kind == "mismatch":
        partners = mismatched_partners(benchmark.select(modality="audio"))
        return {clip: sounds[partner] for clip, partner in partners.items()}
    if kind not in KINDS:
        raise InputError(f"there is no control {kind!r}; allowed are {', '.join(KINDS)}.")
    folder = cache_dir() / "controls" / _key(benchmark.folder, sounds) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return {clip: _written(folder, clip, source, kind) for clip, source in sounds.items()}


def _sounds(benchmark: Benchmark) -> dict[str, str]:
    """The sound of each clip with an audio-only item."""
    sounds: dict[str, str] = {}
    for item in benchmark.select(modality="audio"):
        source = str(item.audio)
        if sounds.setdefault(item.clip_id, source) != source:
            raise InputError(
                f"{benchmark.folder}: the clip {item.clip_id!r} has two sounds, {sounds[item.clip_id]} and {source} "
                f"(item {item.id!r}); give each sound a clip_id of its own."
            )
    if not sounds:
        raise InputError(f"{benchmark.folder} holds no audio-only item, so there are no controls.")
    return sounds


def _key(folder: Path, sounds: dict[str, str]) -> str:
    """Changes with what the files hold, and with nothing else: the same benchmark built again finds its controls."""
    lines = [f"3 {RATE_HZ} {SEED} {NOISE_RMS}"]
    for clip, source in sorted(sounds.items()):
        content = Path(source).read_bytes()
        name = os.path.relpath(source, folder)
        lines.append(f"{clip}\t{name}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _written(folder: Path, clip: str, source: str, kind: str) -> str:
    # A clip id may hold characters that no file name may.
    path = folder / f"{hashlib.sha256(clip.encode()).hexdigest()[:24]}.wav"
    if not path.exists():
        import soundfile

        from ..data.media import load_audio

        try:
            waveform = load_audio(source, sampling_rate=RATE_HZ)
        except InputError as error:
            raise InputError(f"clip {clip!r}: {error}") from error
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        # 16 bits suffice: at NOISE_RMS full scale is ten standard deviations away.
        soundfile.write(temporary, replaced(waveform, clip, kind), RATE_HZ, subtype="PCM_16", format="WAV")
        os.replace(temporary, path)
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
