"""General chat samples, of text alone or with pictures and films: what a model is to keep while it learns emotion."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..utils import InputError
from .chat import Messages, media_of, read_chat, text_of
from .dataset import ClipDataset, Failure, Sample
from .manifest import Clip, parse_medium
from .samplers import SampleKey

GENERAL = "general"
"""The path of a step of general samples."""


@dataclass(frozen=True)
class GeneralSample:
    """A general conversation, for one step.

    Args:
        key: the step's.
        clip: its id, without media and labels, so that it counts as a clip that has none.
        media: `MediaFeatures` in the order of the conversation.
        messages: the turns, the last of which is the answer.
    """

    key: SampleKey
    clip: Clip
    media: tuple[Any, ...]
    messages: Messages

    @property
    def answer(self) -> str:
        return text_of(self.messages[-1])


@dataclass(frozen=True)
class Conversation:
    """A line of a file of general samples; `media` holds (kind, absolute path)."""

    id: str
    messages: Messages
    media: tuple[tuple[str, str], ...]


def read_general(path: str | os.PathLike) -> list[Conversation]:
    """Read and check general samples: chat samples whose media are pictures and films, by a `path` relative to the
    file's folder. A line may have an `id`; else it is called by its number.

    Raises:
        InputError: see `read_chat`; a medium of another kind, outside the folder, or that is not there.
    """
    path = Path(path)
    root = Path(os.path.abspath(path.parent))
    found = []
    for number, (where, row) in enumerate(read_chat(path), start=1):
        media = []
        for part in media_of(row["messages"]):
            kind = part["type"]
            if kind == "audio":
                raise InputError(
                    f"{where}: general samples hold text, image and video, found audio: sound belongs in the manifest."
                )
            source = next((part[key] for key in ("path", "url", kind) if part.get(key)), None)
            medium = parse_medium(source, f"{kind}.path", where, root)
            if not isinstance(medium, str):
                raise InputError(f"{where}: the part {part!r} names no file; give it a relative `path`.")
            media.append((kind, medium))
        # Sources are read by us; the template only asks where a medium stands.
        messages = [
            {
                "role": message["role"],
                "content": [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]],
            }
            for message in row["messages"]
        ]
        found.append(Conversation(str(row.get("id", f"{GENERAL}-{number}")), messages, tuple(media)))
    return found


class WithGeneral(Dataset):
    """Clips, and behind them general samples: what `ScheduledBatchSampler` draws with `general`.

    Args:
        clips: the clips.
        general: the general samples.
    """

    def __init__(self, clips: ClipDataset, general: Sequence[Conversation]):
        self.clips, self.general = clips, general

    def __len__(self) -> int:
        return len(self.clips) + len(self.general)

    @property
    def groups(self) -> list[str]:
        """Those of the clips: general samples are no group, they have steps of their own."""
        return self.clips.groups

    def fill_cache(self, media: Sequence[str], progress: bool = True) -> None:
        """See `ClipDataset.fill_cache`; of general samples nothing is kept in memory."""
        self.clips.fill_cache(media, progress)

    def __getitem__(self, key: SampleKey) -> Sample | GeneralSample | Failure:
        if key.index < len(self.clips):
            return self.clips[key]
        found = self.general[key.index - len(self.clips)]
        clip = Clip(id=found.id, split=GENERAL, source=GENERAL, license="")
        encoder = self.clips.encoder
        try:
            media = tuple(encoder.encode(replace(clip, **{kind: path}), "visual") for kind, path in found.media)
        except InputError as error:
            return Failure(str(error))
        return GeneralSample(key, clip, media, found.messages)
