"""The latent description of a clip: its labels, what each modality expresses of them, and what hides it.

A clip is a pure function of (config, split, index). `image` and `audio` render it.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from ..utils import InputError

# Raise it when the same config gives other frames or waveforms than before.
FORMAT = 1
CONTENTS = ("rain", "waves", "fire", "bell", "drum", "bird", "clock", "flute")
# Eight sectors of 45 degrees on the valence-arousal circle, counter-clockwise from the valence axis: two a quadrant.
# The words and their order follow Russell's circumplex; the equal sectors are our simplification.
EMOTIONS = ("joyful", "excited", "tense", "angry", "sad", "gloomy", "calm", "tender")
ART_FORMS = ("painting", "animation", "music_video")


def emotion_of(valence: float, arousal: float) -> str:
    """The label of the sector that holds the point (valence, arousal)."""
    angle = math.atan2(arousal, valence) % (2 * math.pi)
    return EMOTIONS[int(angle // (math.pi / 4)) % 8]


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides a clip's frames and waveform.

    Args:
        seed: integer from 0; another seed is another world.
        clip_s, fps, size_px, sampling_rate: length in seconds, frames a second, side of a frame, samples a second.
        expression_noise: standard deviation of what each modality adds, on its own, to (valence, arousal).
        hidden_probability: chance that one modality does not carry the content at all.
        blend_probability: chance that one modality shows the content mixed evenly with another one.
        min_radius: clips keep this distance from the neutral centre of the valence-arousal space.
        margin_deg: and this angle from the border between two emotion labels.
    """

    seed: int = 0
    clip_s: float = 2.25
    fps: int = 8
    size_px: int = 56
    sampling_rate: int = 16000
    expression_noise: float = 0.22
    hidden_probability: float = 0.06
    blend_probability: float = 0.06
    min_radius: float = 0.45
    margin_deg: float = 3.0

    def __post_init__(self):
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}; give an integer from 0.")


@dataclass(frozen=True)
class Expression:
    """What one modality carries of a clip.

    Args:
        valence, arousal: the clip's with noise.
        content: the clip's.
        blend: another content that is rendered with the same strength, or None.
        hidden: whether the content is not recognisable in this modality.
        seed: of the nuisance factors of this modality.
    """

    valence: float
    arousal: float
    content: str
    blend: str | None
    hidden: bool
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Clip:
    """`beat_s` is the length of a beat, shared by both modalities, so that a music video moves with its audio."""

    id: str
    split: str
    index: int
    art_form: str
    content: str
    emotion: str
    valence: float
    arousal: float
    beat_s: float
    visual: Expression
    audio: Expression


def sample_clip(config: WorldConfig, split: str, index: int) -> Clip:
    """The clip number `index` of `split`; every block of 192 clips holds each content, emotion and art form once.

    Args:
        split: train, validation, benchmark, or pretrain, which feeds the backbone only and is never written to disk.
    """
    cells = len(CONTENTS) * len(EMOTIONS) * len(ART_FORMS)
    order = np.random.default_rng(_stream(config, split, 0, index // cells)).permutation(cells)
    cell, emotion_index = divmod(int(order[index % cells]), len(EMOTIONS))
    art_index, content_index = divmod(cell, len(CONTENTS))
    content = CONTENTS[content_index]
    rng = np.random.default_rng(_stream(config, split, 1, index))
    angle = math.radians(45 * emotion_index + rng.uniform(config.margin_deg, 45 - config.margin_deg))
    radius = rng.uniform(config.min_radius, 1.0)
    valence, arousal = radius * math.cos(angle), radius * math.sin(angle)
    visual = _express(config, rng, valence, arousal, content, _stream(config, split, 2, index))
    audio = _express(config, rng, valence, arousal, content, _stream(config, split, 3, index))
    beats_per_s = 2.0 * 2 ** (0.9 * audio.arousal) * rng.uniform(0.94, 1.06)
    return Clip(
        id=f"{split}-{index:05d}",
        split=split,
        index=index,
        art_form=ART_FORMS[art_index],
        content=content,
        emotion=EMOTIONS[emotion_index],
        valence=valence,
        arousal=arousal,
        beat_s=1 / beats_per_s,
        visual=visual,
        audio=audio,
    )


def _stream(config: WorldConfig, split: str, *numbers: int) -> tuple[int, ...]:
    """Key of an independent random stream; splits differ in it, so no two splits can share a clip by design."""
    return (config.seed, zlib.crc32(split.encode()), *numbers)


def _express(config, rng, clip_valence, clip_arousal, content, seed) -> Expression:
    noise = rng.normal(0.0, config.expression_noise, 2)
    chance = rng.random()
    other = CONTENTS[(CONTENTS.index(content) + int(rng.integers(1, len(CONTENTS)))) % len(CONTENTS)]
    blended = config.hidden_probability <= chance < config.hidden_probability + config.blend_probability
    return Expression(
        valence=float(np.clip(clip_valence + noise[0], -1.3, 1.3)),
        arousal=float(np.clip(clip_arousal + noise[1], -1.3, 1.3)),
        content=content,
        blend=other if blended else None,
        hidden=bool(chance < config.hidden_probability),
        seed=seed,
    )
