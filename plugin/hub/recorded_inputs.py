"""The inputs that a model's verification is recorded on: small media of every kind, and questions about them.

The media are drawn and composed by the nano world from its seed, so that the same release makes the same pictures and
samples everywhere. The recording holds the bytes of the files, so later releases and other encoders change nothing.
"""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..model.emotion_prediction import PROMPT
from ..nano.clips import Clip, WorldConfig, sample_clip
from ..nano.writing import write_clip

# 12 kHz is the rate of no audio tower: the sound is resampled, as most that users have.
WORLD = WorldConfig(seed=0, clip_s=1.0, sampling_rate=12_000)
SPLIT = "validation"
# Name of a medium -> its kind, as a conversation names it.
KINDS = {"picture": "image", "film": "video", "sound": "audio"}
# Of another length than the question that emotion is read with, so that the mixed batch is padded by more than media.
TEXT = "What is seen or heard here, and which emotion does it express?"


@dataclass(frozen=True)
class Row:
    """One conversation: media by name, in order, then a text."""

    media: tuple[str, ...]
    text: str

    def conversation(self) -> list[dict]:
        """What the chat template takes."""
        content = [*({"type": KINDS[name]} for name in self.media), {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class Case:
    """A batch of rows, padded on the left, that goes through the model in one pass, with EmoAdapter or without."""

    name: str
    rows: tuple[Row, ...]
    use_adapter: bool


ROWS = {
    "text": Row((), TEXT),
    "picture": Row(("picture",), PROMPT),
    "film": Row(("film",), PROMPT),
    "sound": Row(("sound",), PROMPT),
    "picture and sound": Row(("picture", "sound"), PROMPT),
}
MIXED = "mixed batch"
CASES = (
    *(Case(name, (row,), True) for name, row in ROWS.items()),
    Case(MIXED, tuple(ROWS.values()), True),
    Case(f"{MIXED}, adapter off", tuple(ROWS.values()), False),
)


def make_media() -> dict[str, bytes]:
    """Bytes of a PNG (56 px), an mp4 of 8 frames without sound and a WAV of 1 s at 12 kHz, by name."""
    picture, film = _first(painting=True), _first(painting=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        painting, moving = write_clip(WORLD, picture, folder), write_clip(WORLD, film, folder)
        return {
            "picture": (folder / painting["image"]).read_bytes(),
            "film": (folder / moving["video"]).read_bytes(),
            "sound": (folder / painting["audio"]).read_bytes(),
        }


def _first(painting: bool) -> Clip:
    """The first clip of the world that is a painting, or that is none."""
    clips = (sample_clip(WORLD, SPLIT, index) for index in itertools.count())
    return next(clip for clip in clips if (clip.art_form == "painting") == painting)
