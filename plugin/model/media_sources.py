"""Media of a call or a conversation, in any form, as waveforms, images and frames; and what errors call them."""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .inputs import InputError
from .media import end_of_track_s, load_audio, load_video
from .media_audio import check_samples, mix, resample, scaled
from .media_images import load_image

# Keys of a media item in a conversation that may hold the medium, in the order in which they are looked at.
SOURCE_KEYS = {kind: (kind, "url", "path", "bytes", "base64") for kind in ("image", "video", "audio")}
# Whether the audio of a video is taken as well: a field of its item, and the same by its newer name in transformers.
AUDIO_IN_VIDEO = ("use_audio_in_video", "load_audio_from_video")

_OPENAI_KEYS = ("image_url", "video_url", "audio_url", "input_audio")
_CONTENT_KEYS = ("text", *dict.fromkeys(key for keys in SOURCE_KEYS.values() for key in keys), *_OPENAI_KEYS)

FRAMES_ALLOWED = "allowed is (frames, height, width, 3), or a list of images."


# ---- files


def is_file(source: Any) -> bool:
    """Whether it is a path or the bytes of a file, as `local_source` gives them."""
    return isinstance(source, (str, os.PathLike, bytes))


def called(name: str, file: Any) -> str:
    """A name in a call with that of its file."""
    return f"{name} ({len(file)} bytes)" if isinstance(file, bytes) else f"{name} ({Path(file)})"


def local_source(source: Any, name: str) -> Any:
    """A medium as a path, as the bytes of a file, or as it is where it was decoded already.

    Args:
        source: a path, a `file://` or `data:` URL, bytes, a mapping as the datasets library keeps
            undecoded media ({"bytes", "path"}), its decoder of an audio, or anything else, which is returned as it is.
        name: what errors call it.

    Raises:
        InputError: a URL of another scheme. Nothing is downloaded here: who serves the conversations of others would
            let them reach every host that the server can reach.
    """
    if isinstance(source, str) and source.startswith("data:"):
        head, _, content = source.partition(",")
        if not head.endswith(";base64"):
            raise InputError(f"{name}: {head[:50]!r} is no data URL with base64; give data:KIND/TYPE;base64,....")
        return _decoded(content, name)
    if isinstance(source, str) and "://" in source:
        parts = urlsplit(source)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return unquote(parts.path)
        # Without user and query, which may hold a secret.
        raise InputError(
            f"{name}: {parts.scheme}://{parts.hostname or ''}{parts.path} is not opened: media are read from this "
            "machine alone. Download the file and give its path, a file:// URL or its bytes."
        )
    if isinstance(source, Mapping) and "array" not in source:
        found = source.get("path") if source.get("bytes") is None else source["bytes"]
        if found is None:
            raise InputError(f"{name}: a mapping with {sorted(source)} holds no `bytes`, `path` or `array`.")
        return local_source(found, name)
    if hasattr(source, "get_all_samples"):  # the decoder that the datasets library gives for an audio
        samples = source.get_all_samples()
        return {"array": samples.data, "sampling_rate": samples.sample_rate}
    return source


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"{name}: this is no base64 ({error}).") from error


# ---- conversations


def as_media_item(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a message, checked: one in the form of the OpenAI API as a media item, another as it is.

    A template would leave out a part whose type it does not know, and read the kind of another from its keys.

    Args:
        item: the part.
        name: what errors call it.

    Raises:
        InputError: no type, one that is none of text, image, video and audio, or a key for the medium of another type.
    """
    form = item.get("type") if isinstance(item, Mapping) else None
    if form is None:
        found = sorted(item) if isinstance(item, Mapping) else repr(item)
        raise InputError(f"{name}: it has {found} and no `type`, such as 'text' or 'audio'.")
    if form in _OPENAI_KEYS and form in item:
        rest, about = {key: value for key, value in item.items() if key not in ("type", form)}, item[form]
        key, source_key = ("data", "base64") if form == "input_audio" else ("url", "url")
        source = about.get(key) if isinstance(about, Mapping) else about
        if source is None:
            raise InputError(f"{name}: `{form}` has {sorted(about or ())} and no `{key}`.")
        item = {**rest, "type": "audio" if form == "input_audio" else form.removesuffix("_url"), source_key: source}
    kind = item["type"]
    if kind != "text" and kind not in tuple(SOURCE_KEYS):
        raise InputError(f"{name}: its `type` is {kind!r}; allowed are text, image, video and audio.")
    allowed = SOURCE_KEYS.get(kind, ("text",))
    for key in _CONTENT_KEYS:
        # An empty text stands for none, as in the columns of a table.
        if key not in allowed and item.get(key) is not None and not (isinstance(item[key], str) and not item[key]):
            raise InputError(
                f"{name}: its `type` is {kind!r}, which does not fit its key {key!r}; allowed are "
                f"{', '.join(map(repr, allowed))}. Give each medium and each text an item of its own."
            )
    return item


def item_source(item: Mapping[str, Any], kind: str, name: str) -> Any:
    """What a media item of a conversation holds, as `local_source` gives it; None where it holds nothing."""
    key = next((key for key in SOURCE_KEYS[kind] if item.get(key) is not None), None)
    if key is None:
        return None
    source: Any = _decoded(item[key], name) if key == "base64" else local_source(item[key], name)
    if kind == "video" and getattr(source, "ndim", 4) != 4:
        raise InputError(f"{name}: frames of shape {tuple(source.shape)} were given; {FRAMES_ALLOWED}")
    if kind == "audio" and not is_file(source):
        # In a mapping even where no rate is stated, so that samples in a list are not taken for several audios.
        inner = source if isinstance(source, Mapping) else {"array": source}
        rate = item.get("sampling_rate")
        return inner if rate is None else {**inner, "sampling_rate": rate}
    return source


def media_of(conversations: Sequence[Sequence[dict]]) -> dict[str, list[list[Any]]]:
    """The media of conversations of `with_video_audio`, for each kind a list a conversation; no source, no medium."""
    found: dict[str, list[list[Any]]] = {kind: [[] for _ in conversations] for kind in SOURCE_KEYS}
    for row, conversation in enumerate(conversations):
        for number, message in enumerate(conversation):
            for position, item in enumerate(_items_of(message)):
                name = f"sample {row}, message {number}, item {position}"
                if item["type"] in found and (source := item_source(item, item["type"], name)) is not None:
                    found[item["type"]][row].append(source)
    return found


def _items_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message.get("content") or []
    return [] if isinstance(content, str) else content


def with_video_audio(conversations: Sequence[Sequence[dict]], use_audio: bool) -> list[list[dict]]:
    """Conversations in which each video whose audio is to be used is followed by an audio item of the same file.

    An audio item without a source that follows the video already is the place of its audio. A video without an audio
    track gets no audio item, and loses such an empty one. One that has no source yet counts as one with audio.

    Args:
        conversations: lists of messages.
        use_audio: whether the audio is used of videos whose item does not state it under one of `AUDIO_IN_VIDEO`.
    """
    found: list[list[dict]] = []
    for row, conversation in enumerate(conversations):
        found.append([])
        for number, message in enumerate(conversation):
            if items := _items_of(message):
                message = {**message, "content": _with_audio(items, use_audio, f"sample {row}, message {number}")}
            found[row].append(message)
    return found


def _with_audio(content: Sequence[Mapping[str, Any]], use_audio: bool, message: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    after_video: Any = False  # whose audio is used, and so is in `found` where it has any
    for number, item in enumerate(content):
        name = f"{message}, item {number}"
        item = as_media_item(item, name)
        if after_video and item.get("type") == "audio" and all(item.get(key) is None for key in SOURCE_KEYS["audio"]):
            after_video = False
            continue
        stated = [item[key] for key in AUDIO_IN_VIDEO if item.get(key) is not None]
        if stated and (item.get("type") != "video" or stated[0] not in (True, False)):
            raise InputError(f"{name}: {AUDIO_IN_VIDEO[0]} is {stated[0]!r}; allowed are True and False, of a video.")
        after_video = item.get("type") == "video" and (stated[0] if stated else use_audio)
        source = item_source(item, "video", name) if after_video else None
        if source is None:
            found += [item, {"type": "audio"}] if after_video else [item]
            continue
        found.append(item)
        # Frames that were decoded already have no audio.
        if is_file(source) and end_of_track_s(source, "audio", called(name, source)) is not None:
            rest = {key: value for key, value in item.items() if key not in SOURCE_KEYS["video"]}  # holds for both
            found.append({**rest, "type": "audio", "audio": source})
    return found


# ---- images and videos


def read_image(image: Any, name: str) -> Any:
    """An image for an image processor: files as PIL images, all else as it is."""
    image = local_source(image, name)
    return load_image(image, name=called(name, image)) if is_file(image) else image


def read_video(
    video: Any,
    name: str,
    default_frames: int,
    num_frames: int | None = None,
    fps: float | None = None,
    do_sample_frames: bool | None = None,
    video_metadata: Any = None,
) -> tuple[np.ndarray, float, list[int]]:
    """Frames of a video, chosen evenly, their rate, and their indices in the video.

    Args:
        video: a file, or frames (F, H, W, 3) or (F, 3, H, W), or a list of images.
        name: what errors call it.
        default_frames: how many frames are taken of a file where the next three do not say.
        num_frames: how many to take; decoded frames are all taken if not given.
        fps: frames to take a second, in place of `num_frames`.
        do_sample_frames: False takes all; True takes `default_frames` of decoded frames as well.
        video_metadata: of decoded frames: `fps` (24 if not given) and `frames_indices`.
    """
    video = local_source(video, name)
    if do_sample_frames is False:
        num_frames = None
    elif num_frames is None and (is_file(video) or do_sample_frames):
        num_frames = default_frames
    if is_file(video):
        frames, found = load_video(video, num_frames, name=called(name, video), fps=fps)
        return frames, found.fps, list(found.indices)
    if isinstance(video, (list, tuple)):
        video = np.stack([np.asarray(read_image(frame, f"{name}, frame {i}")) for i, frame in enumerate(video)])
    video = video.detach().cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if video.ndim != 4 or not len(video):
        raise InputError(f"{name}: frames of shape {video.shape} were given; {FRAMES_ALLOWED}")
    metadata = video_metadata or {}
    metadata = metadata if isinstance(metadata, Mapping) else vars(metadata)
    rate, indices = metadata.get("fps") or 24.0, metadata.get("frames_indices")
    indices = list(range(len(video)) if indices is None else indices)
    if fps is not None:
        num_frames = max(1, round(len(video) / rate * fps))
    if num_frames is not None:
        chosen = [int((i + 0.5) * len(video) / num_frames) for i in range(num_frames)]
        video, indices = video[chosen], [indices[i] for i in chosen]
    return video, rate, indices


def video_arguments(videos: Sequence[tuple[np.ndarray, float, Sequence[int]]]) -> dict:
    """Arguments that state to a processor the videos whose frames are already chosen: frames, fps, indices of each."""
    metadata = [
        {"fps": fps, "total_num_frames": int(max(indices)) + 1, "frames_indices": list(indices)}
        for _, fps, indices in videos
    ]
    return {"video_metadata": metadata, "do_sample_frames": False}


# ---- audio


class RoundedLog10(TorchFunctionMode):
    """In its context `log10` computes in float64 and rounds, so that log-mel features are the same on each processor.

    In float32 MKL's rests on the processor's approximate reciprocal, which vendors fill in differently: one value in
    some 70,000 has another last bit on an emulated Intel processor than on an AMD one.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.log10 and args[0].dtype == torch.float32:
            return args[0].double().log10().float()
        return function(*args, **(kwargs or {}))


def to_waveform(
    audio: Any, sampling_rate: int | None, to_hz: int, max_s: float, truncation: bool = False, name: str = "the audio"
) -> tuple[np.ndarray, float]:
    """Mono float32 at the tower's rate, checked.

    Args:
        audio: a path or the bytes of a file, or samples: an array, tensor or list, (samples,) or, in either order,
            (channels, samples); or {"array": samples, "sampling_rate": Hz}. Integers are scaled to [-1, 1) by their
            type.
        sampling_rate: rate of samples that come without one, Hz; `to_hz` if not given.
        to_hz: rate of the result.
        max_s: longest audio that is accepted.
        truncation: whether to cut what is longer.
        name: what errors call it.

    Returns:
        float32 (samples,), and the seconds that were cut off.

    Raises:
        InputError: a file that cannot be read, samples of another shape or type or that are not finite, audio longer
            than `max_s` that is not to be cut.
    """
    if is_file(audio):
        total_s = end_of_track_s(audio, "audio", name) if truncation else None
        if total_s is None or total_s <= max_s:
            return load_audio(audio, to_hz, max_s=max_s, name=name), 0.0
        return load_audio(audio, to_hz, max_s=None, end_s=max_s, name=name), total_s - max_s
    if isinstance(audio, Mapping):
        own_rate = audio.get("sampling_rate")
        audio, sampling_rate = audio["array"], sampling_rate if own_rate is None else own_rate
    waveform = _mono(audio, name)
    rate = to_hz if sampling_rate is None else sampling_rate
    if not isinstance(rate, (int, np.integer)) or not 1 <= rate <= 10_000_000:
        raise InputError(f"{name}: the sampling rate is {rate!r}; a whole number of Hz, 1 to 10,000,000, is needed.")
    seconds = len(waveform) / rate
    dropped_s = max(0.0, seconds - max_s)
    if dropped_s and truncation:
        waveform = waveform[: int(max_s * rate)]
    elif dropped_s:
        raise InputError(
            f"{name}: the audio is {seconds:.1f} s long, but max_audio_s is {max_s:g}. Cut it, raise "
            '`processor.max_audio_s`, or have it cut by audio_kwargs={"truncation": True}.'
        )
    return (waveform if rate == to_hz else resample(waveform, int(rate), to_hz)), dropped_s


def _mono(audio: np.ndarray | torch.Tensor | Sequence, name: str) -> np.ndarray:
    """The mean of the channels, float32 (samples,)."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        samples = (audio.float() if audio.is_floating_point() else audio).numpy()
    else:
        try:
            samples = np.asarray(audio)
        except ValueError as error:  # channels of different lengths
            raise InputError(f"{name}: the samples are no array ({error}).") from error
    square = samples.ndim == 2 and 1 < samples.shape[0] == samples.shape[1]
    if samples.ndim not in (1, 2) or samples.size == 0 or square:
        raise InputError(
            f"{name}: a waveform of shape {samples.shape} was given; allowed are (samples,), (channels, samples) and "
            "(samples, channels), with at least 1 sample and more samples than channels."
        )
    if samples.dtype.kind != "f" and samples.dtype not in (np.uint8, np.int8, np.int16, np.int32):
        raise InputError(
            f"{name}: samples of type {samples.dtype} were given; allowed are floats in [-1, 1] and integers of 8, 16 "
            "or 32 bits."
        )
    samples = scaled(samples)
    if samples.ndim == 2:
        samples = mix(samples if samples.shape[0] <= samples.shape[1] else samples.T, name)
    return check_samples(samples, name)
