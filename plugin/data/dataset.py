"""Clips as model-ready features: decoded when needed, kept in memory if so configured."""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ..model.media import load_audio, load_audio_and_video, load_video
from ..model.media_images import load_image
from ..utils import InputError
from .manifest import Clip
from .samplers import SampleKey

MEDIA_OF_MODALITY = {"audio": ("audio",), "visual": ("visual",), "av": ("visual", "audio"), "text": ()}
"""What a sample carries under each modality, in the order of the conversation: visual first, then audio."""


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
        with self._naming(clip):
            return load_audio(clip.audio, self.processor.sampling_rate, self.max_audio_s, clip.start_s, clip.end_s)

    def encode(self, clip: Clip, media: Sequence[str]) -> dict[str, Any]:
        """`MediaFeatures` of those of the clip's "audio" and "visual" that are named. A file of both is read once.

        Raises:
            InputError: naming the clip's id and the file.
        """
        with self._naming(clip):
            return {
                medium: self.processor.encode_audio(found) if medium == "audio" else found
                for medium, found in self._decode(clip, media)
            }

    def visual_and_waveform(self, clip: Clip) -> tuple[Any, np.ndarray]:
        """`MediaFeatures` of the visual and the audio itself, see `waveform`. A file of both is read once.

        Raises:
            InputError: naming the clip's id and the file.
        """
        with self._naming(clip):
            found = dict(self._decode(clip, ("visual", "audio")))
        return found["visual"], found["audio"]

    def _decode(self, clip: Clip, media: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """(medium, the waveform of "audio" or the features of "visual") in the order of `media`."""
        part, waveform, frames = (clip.start_s, clip.end_s), None, None
        if {"audio", "visual"} <= set(media) and clip.video is not None and clip.audio == clip.video:
            rate_hz = self.processor.sampling_rate
            waveform, *frames = load_audio_and_video(clip.video, self.num_frames, rate_hz, self.max_audio_s, *part)
        for medium in media:
            if medium == "audio":
                yield medium, self.waveform(clip) if waveform is None else waveform
            elif clip.video is not None:
                pixels, about = frames or load_video(clip.video, self.num_frames, *part)
                yield medium, self.processor.encode_video(pixels, about.fps, about.indices)
            else:
                yield medium, self.processor.encode_image(load_image(clip.image))

    @contextlib.contextmanager
    def _naming(self, clip: Clip):
        try:
            with self.processor.limits():
                yield
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(f"clip {clip.id!r}") else f"clip {clip.id!r}: {text}") from error


class ClipDataset(Dataset):
    """Maps a `SampleKey` to a `Sample`, or to a `Failure`.

    Args:
        clips: the clips.
        encoder: turns media into features.
        media: (step number, clip) -> the media that are needed, see `MEDIA_OF_MODALITY`.
        cache_media: keep every clip's features in memory, because decoding again in each epoch is dear. Each worker
            process of a loader has a cache of its own: use it with `dataloader_num_workers: 0`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        encoder: ClipEncoder,
        media: Callable[[int, Clip], tuple[str, ...]],
        cache_media: bool = False,
    ):
        self.clips, self.encoder, self.media = clips, encoder, media
        self.cache: dict[tuple[str, str], Any] | None = {} if cache_media else None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def groups(self) -> list[str]:
        """The kind of visual medium, and whether there is audio. Clips of one group can take the same modalities and
        make the model run the same modules."""
        return [(clip.visual or "none") + ("" if clip.audio is not None else "-silent") for clip in self.clips]

    def __getitem__(self, key: SampleKey) -> Sample | Failure:
        clip = self.clips[key.index]
        try:
            media = self._features(clip, self.media(key.step, clip))
        except InputError as error:
            return Failure(str(error))
        # The bytes of embedded media are not needed any more, and would be sent from the worker to the trainer.
        return Sample(key, replace(clip, audio=None, video=None, image=None), media)

    def _features(self, clip: Clip, media: Sequence[str]) -> dict[str, Any]:
        if self.cache is None:
            return self.encoder.encode(clip, media)
        missing = [medium for medium in media if (clip.id, medium) not in self.cache]
        if missing:
            self.cache |= {(clip.id, medium): found for medium, found in self.encoder.encode(clip, missing).items()}
        return {medium: self.cache[clip.id, medium] for medium in media}

    def visual_and_waveform(self, index: int) -> tuple[Any, np.ndarray]:
        """See `ClipEncoder`; the visual comes from the cache where it is there."""
        clip = self.clips[index]
        cached = (self.cache or {}).get((clip.id, "visual"))
        return self.encoder.visual_and_waveform(clip) if cached is None else (cached, self.encoder.waveform(clip))

    def only(self, ids: Collection[str]) -> "ClipDataset":
        """The data set of these clips, with the same cache."""
        found = copy.copy(self)
        found.clips = [clip for clip in self.clips if clip.id in ids]
        return found

    def fill_cache(self, media: Sequence[str], progress: bool = True) -> None:
        """Decode everything now, so that a bad file is named before training starts.

        Without a cache that would cost as much as an epoch, and nothing is done: the manifest was read with the
        check that every file is there, and one that cannot be decoded ends the run when its turn comes.
        """
        if self.cache is None:
            return
        for clip in tqdm(self.clips, desc="decode clips", unit="clip", disable=not progress):
            self._features(clip, [medium for medium in media if carries(clip, medium)])
