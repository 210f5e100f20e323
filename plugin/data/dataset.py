"""Clips and general chat samples as model-ready features: decoded when needed, kept in memory if so configured."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ..model.media import load_audio, load_image, load_video
from ..utils import InputError
from .manifest import Clip, Messages, media_of, parse_medium, read_chat, text_of
from .samplers import SampleKey

MEDIA_OF_MODALITY = {"audio": ("audio",), "visual": ("visual",), "av": ("visual", "audio"), "text": ()}
"""What a sample carries under each modality, in the order of the conversation: visual first, then audio."""

GENERAL = "general"
"""In place of a modality: a step of general samples, which are to keep what the model can do beside emotion."""


def modality_of_media(media: Collection[str]) -> str:
    """The modality of a sample that carries these media, see `MEDIA_OF_MODALITY`."""
    return next(modality for modality, parts in MEDIA_OF_MODALITY.items() if set(parts) == set(media))


def carries(clip: Clip, medium: str) -> bool:
    """Whether a clip has a "visual" or an "audio"."""
    return (clip.visual if medium == "visual" else clip.audio) is not None


def possible_modalities(clip: Clip, modalities: Mapping[str, float]) -> tuple[str, ...]:
    """The modalities of weight above 0 that a clip can take: those whose every medium it carries."""
    return tuple(
        modality
        for modality, weight in modalities.items()
        if weight > 0 and all(carries(clip, m) for m in MEDIA_OF_MODALITY[modality])
    )


@dataclass(frozen=True)
class Sample:
    """A clip for one step. `media` maps "visual" and "audio" to `MediaFeatures`, as far as the step needs them."""

    key: SampleKey
    clip: Clip
    media: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A clip that cannot be used. It travels through the loader as a value: an exception raised in a worker process
    would reach the user as that process's stack trace."""

    message: str


class ClipEncoder:
    """Decodes a clip's media and turns them into features with a `VAEmotionLLMProcessor`.

    Args:
        processor: the processor.
        num_frames: frames taken from a video, evenly over the clip.
        max_audio_s: longest audio that is accepted, seconds.
    """

    def __init__(self, processor, num_frames: int, max_audio_s: float):
        self.processor, self.num_frames, self.max_audio_s = processor, num_frames, max_audio_s

    def waveform(self, clip: Clip) -> np.ndarray:
        """The clip's audio: float32 (samples,) at the audio tower's rate.

        Raises:
            InputError: naming the clip's id and the file.
        """
        try:
            if clip.audio is None:
                raise InputError("the field `audio` is missing, and this step needs it.")
            return load_audio(clip.audio, self.processor.sampling_rate, self.max_audio_s, clip.start_s, clip.end_s)
        except InputError as error:
            raise InputError(f"clip {clip.id!r}: {error}") from error

    def encode(self, clip: Clip, medium: str, num_frames: int | None = None):
        """`MediaFeatures` of the clip's "audio" or "visual".

        Args:
            clip: the clip.
            medium: "audio" or "visual".
            num_frames: frames of a video, where another number than usual is wanted.

        Raises:
            InputError: naming the clip's id and the file.
        """
        if medium == "audio":
            return self.processor.encode_audio(self.waveform(clip))
        try:
            if clip.video is not None:
                frames, metadata = load_video(clip.video, num_frames or self.num_frames, clip.start_s, clip.end_s)
                return self.processor.encode_video(frames, metadata.fps, metadata.indices)
            if clip.image is not None:
                return self.processor.encode_image(load_image(clip.image))
            raise InputError("the fields `video` and `image` are missing, and this step needs one.")
        except InputError as error:
            raise InputError(f"clip {clip.id!r}: {error}") from error


class ClipDataset(Dataset):
    """Maps a `SampleKey` (or a clip's number) to a `Sample`, or to a `Failure`.

    Args:
        clips: the clips.
        encoder: turns media into features.
        media: (step number, clip) -> the media that are needed, see `MEDIA_OF_MODALITY`.
        audio_features: gives a clip's `MediaFeatures` of the audio in place of the encoder, where an audio tower's
            states are cached.
        cache_media: keep every clip's features in memory, because decoding again in each epoch is dear. Each worker
            process of a loader has a cache of its own: use it with `dataloader_num_workers: 0`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        encoder: ClipEncoder,
        media: Callable[[int, Clip], tuple[str, ...]],
        cache_media: bool = False,
        audio_features: Callable[[Clip], Any] | None = None,
    ):
        self.clips, self.encoder, self.media = clips, encoder, media
        self.audio_features = audio_features
        self.cache: dict[tuple[int, str], Any] | None = {} if cache_media else None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def groups(self) -> list[str]:
        """The kind of visual medium, and whether there is audio. Clips of one group can take the same modalities and
        make the model run the same modules."""
        return [(clip.visual or "none") + ("" if clip.audio is not None else "-silent") for clip in self.clips]

    def __getitem__(self, key: SampleKey | int) -> Sample | Failure:
        if not isinstance(key, SampleKey):
            key = SampleKey(int(key), 0, 0)
        clip = self.clips[key.index]
        try:
            media = {medium: self.features(key.index, medium) for medium in self.media(key.step, clip)}
        except InputError as error:
            return Failure(str(error))
        # The bytes of embedded media are not needed any more, and would be sent from the worker to the trainer.
        return Sample(key, replace(clip, audio=None, video=None, image=None), media)

    def features(self, index: int, medium: str):
        """`MediaFeatures` of one clip, from the cache where there is one."""
        if medium == "audio" and self.audio_features is not None:
            return self.audio_features(self.clips[index])
        if self.cache is None:
            return self.encoder.encode(self.clips[index], medium)
        if (index, medium) not in self.cache:
            self.cache[index, medium] = self.encoder.encode(self.clips[index], medium)
        return self.cache[index, medium]

    def only(self, ids: Collection[str]) -> "ClipDataset":
        """The data set of these clips, with what is cached of them."""
        keep = [index for index, clip in enumerate(self.clips) if clip.id in ids]
        found = ClipDataset(
            [self.clips[index] for index in keep], self.encoder, self.media, self.cache is not None,
            self.audio_features,
        )  # fmt: skip
        if self.cache is not None:
            new = {old: number for number, old in enumerate(keep)}
            found.cache = {(new[i], medium): value for (i, medium), value in self.cache.items() if i in new}
        return found

    def fill_cache(self, media: Sequence[str], progress: bool = True) -> None:
        """Decode everything now, so that a bad file is named before training starts.

        Without a cache that would cost as much as an epoch, and nothing is done: the manifest was read with the
        check that every file is there, and one that cannot be decoded ends the run when its turn comes.
        """
        if self.cache is None:
            return
        for index in tqdm(range(len(self)), desc="decode clips", unit="clip", disable=not progress):
            for medium in media:
                if carries(self.clips[index], medium):
                    self.features(index, medium)


# ---- general samples


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
    """Read and check general samples: chat samples whose media are images and videos, by a `path` relative to
    the file's folder. A line may have an `id`; else it is called by its number.

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
                    f"{where}: general samples hold text, image and video, found audio, which belongs in the manifest."
                )
            source = next((part[key] for key in ("path", "url", kind) if part.get(key)), None)
            medium = parse_medium(source, f"{kind}.path", where, root)
            if not isinstance(medium, str):
                raise InputError(f"{where}: the part {part!r} names no file; give it a relative `path`.")
            media.append((kind, medium))
        # Sources are read by us; the template needs the position of each medium.
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
