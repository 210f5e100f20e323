"""What a medium may be given as, in a call or in a conversation, and what it is called in an error."""

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from .input_error import InputError
from .media import load_image, sound_duration_s

# Keys of a media item in a conversation that may hold the medium, in the order in which they are looked at.
SOURCE_KEYS = {kind: (kind, "url", "path", "bytes", "base64") for kind in ("image", "video", "audio")}
HEAR_FILM = ("use_audio_in_video", "load_audio_from_video")

FRAMES_ALLOWED = "allowed is (frames, height, width, 3), or a list of pictures."

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://|(data):")


def is_file(source: Any) -> bool:
    """Whether it is a path or the bytes of a file, as `local_source` gives them."""
    return isinstance(source, (str, os.PathLike, bytes))


def local_source(source: Any, name: str) -> Any:
    """A medium as a path, as the bytes of a file, or as it is where it was decoded already.

    Args:
        source: a path, a `file://` or `data:` URL, bytes, an open binary file, a mapping as the datasets library keeps
            undecoded media ({"bytes", "path"}), its decoder of a sound, or anything else, which is returned as it is.
        name: what errors call it.

    Raises:
        InputError: a URL of another scheme. Nothing is downloaded here: who serves the conversations of others would
            let them reach every host that the server can reach.
    """
    if isinstance(source, str) and (match := _SCHEME.match(source)):
        scheme = (match[1] or match[2]).lower()
        if scheme == "file":
            parts = urlsplit(source)
            if parts.netloc not in ("", "localhost"):
                raise InputError(f"{name}: {source!r} names the host {parts.netloc!r}; give file:///PATH or the path.")
            return url2pathname(unquote(parts.path)) if os.name == "nt" else unquote(parts.path)
        if scheme == "data":
            head, _, content = source.partition(",")
            if not head.endswith(";base64"):
                raise InputError(f"{name}: {head[:50]!r} is no data URL with base64; give data:KIND/TYPE;base64,....")
            return _decoded(content, name)
        # Without user and query, which may hold a secret.
        parts = urlsplit(source)
        raise InputError(
            f"{name}: {scheme}://{parts.hostname or ''}{parts.path} is not opened: media are read from this machine "
            "alone. Download the file and give its path, a file:// URL or its bytes."
        )
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, io.IOBase):
        return source.read()
    if isinstance(source, Mapping) and "array" not in source:
        found = [source[key] for key in ("bytes", "path") if source.get(key) is not None]
        if not found:
            raise InputError(f"{name}: a mapping with {sorted(source)} holds no `bytes`, `path` or `array`.")
        return local_source(found[0], name)
    if hasattr(source, "get_all_samples"):  # the decoder that the datasets library gives for a sound
        samples = source.get_all_samples()
        return {"array": samples.data, "sampling_rate": samples.sample_rate}
    return source


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"{name}: this is no base64 ({error}).") from error


def item_source(item: Mapping[str, Any], kind: str, name: str) -> Any:
    """What a media item of a conversation holds, as `local_source` gives it; None where it holds nothing."""
    key = next((key for key in SOURCE_KEYS[kind] if item.get(key) is not None), None)
    if key is None:
        return None
    source: Any = _decoded(item[key], name) if key == "base64" else local_source(item[key], name)
    if kind == "video" and getattr(source, "ndim", 4) != 4:
        raise InputError(f"{name}: frames of shape {tuple(source.shape)} were given; {FRAMES_ALLOWED}")
    if kind == "audio" and not is_file(source):
        # In a mapping even where no rate is said, so that samples in a list are not taken for several sounds.
        inner = source if isinstance(source, Mapping) else {"array": source}
        rate = item["sampling_rate"] if rate_is_said(item) else inner.get("sampling_rate")
        return {"array": inner["array"], "sampling_rate": rate}
    return source


def as_media_item(item: Any) -> Any:
    """A part of a message in the form of the OpenAI API (`audio_url`, `video_url`, `input_audio`) as a media item.

    A template would leave such a part out without a word. transformers itself turns `image_url` round.
    """
    form = item.get("type") if isinstance(item, Mapping) else None
    if form not in ("audio_url", "video_url", "input_audio") or form not in item:
        return item
    rest, about = {key: value for key, value in item.items() if key not in ("type", form)}, item[form]
    if form == "input_audio":
        return {**rest, "type": "audio", "base64": about["data"]}
    return {**rest, "type": form.removesuffix("_url"), "url": about["url"] if isinstance(about, Mapping) else about}


def rate_is_said(item: Mapping[str, Any]) -> bool:
    """Whether a mapping that holds samples says their rate."""
    return item.get("sampling_rate") is not None


def with_video_audio(conversations: Sequence[Sequence[dict]], hear: bool) -> list[list[dict]]:
    """Conversations in which each film that is to be heard is followed by an audio item of the same file.

    An audio item without a source that follows the film already is the place of its sound. A film without a sound
    track gets no audio item, and loses such an empty one. One that has no source yet counts as one with sound.

    Args:
        conversations: lists of messages.
        hear: whether films are heard whose item does not say so itself under one of `HEAR_FILM`.
    """
    return [
        [
            {**message, "content": _content_with_sound(message["content"], hear, f"sample {row}, message {number}")}
            if isinstance(message.get("content"), (list, tuple))
            else message
            for number, message in enumerate(conversation)
        ]
        for row, conversation in enumerate(conversations)
    ]


def _content_with_sound(content: Sequence[Any], hear: bool, place: str) -> list[Any]:
    found: list[Any] = []
    sound_follows = False
    for number, item in enumerate(content):
        if not isinstance(item, Mapping):
            found.append(item)
            sound_follows = False
            continue
        empty = all(item.get(key) is None for key in SOURCE_KEYS["audio"])
        if sound_follows and item.get("type") == "audio" and empty:
            sound_follows = False
            continue  # its place is taken
        sound_follows = False
        said = [item[key] for key in HEAR_FILM if item.get(key) is not None]
        if said and item.get("type") != "video":
            raise InputError(
                f"{place}, item {number}: {HEAR_FILM[0]} belongs to a video, not to {item.get('type')!r}."
            )
        if said and not isinstance(said[0], bool):
            raise InputError(f"{place}, item {number}: {HEAR_FILM[0]} is {said[0]!r}; allowed are True and False.")
        shown = {key: value for key, value in item.items() if key not in HEAR_FILM}
        found.append(shown)
        if item.get("type") == "video" and (said[0] if said else hear):
            sound_follows = True
            name = f"{place}, item {number}"
            source = item_source(item, "video", name)
            if source is None:
                found.append({"type": "audio"})
                continue
            # What was read of an open file can be read no second time; what else is said holds for both.
            rest = {key: value for key, value in shown.items() if key not in SOURCE_KEYS["video"]}
            found[-1] = {**rest, "video": source}
            if has_sound(source, name):
                found.append({**rest, "type": "audio", "audio": source})
    return found


def has_sound(film: Any, name: str) -> bool:
    """Whether a film has a sound track with something in it. Frames that were decoded already have none."""
    return is_file(film) and sound_duration_s(film, called(name, film)) is not None


def media_of(conversations: Sequence[Sequence[dict]]) -> dict[str, list[list[Any]]]:
    """The media of conversations: for each kind a list a conversation. Items without a source are left out."""
    found: dict[str, list[list[Any]]] = {kind: [[] for _ in conversations] for kind in SOURCE_KEYS}
    for row, conversation in enumerate(conversations):
        for number, message in enumerate(conversation):
            content = message.get("content")
            for place, item in enumerate(content if isinstance(content, (list, tuple)) else []):
                kind = item.get("type") if isinstance(item, Mapping) else "text"
                if kind is None:
                    raise InputError(
                        f"sample {row}, message {number}, item {place}: it has {sorted(item)} and no `type`; give one "
                        "of 'text', 'image', 'video' and 'audio'."
                    )
                if kind in found:
                    source = item_source(item, kind, f"sample {row}, message {number}, item {place}")
                    if source is not None:
                        found[kind][row].append(source)
    return found


def read_image(image: Any, name: str) -> Any:
    """A picture for an image processor: files as PIL images, all else as it is."""
    image = local_source(image, name)
    return load_image(image, name=called(name, image)) if is_file(image) else image


def called(name: str, file: Any) -> str:
    """A name in a call with that of its file."""
    return f"{name} ({len(file)} bytes)" if isinstance(file, bytes) else f"{name} ({Path(file)})"
