"""Requests of lmms-eval as conversations with named media, their order for batching and their generation arguments."""

import functools
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from loguru import logger as eval_logger
from PIL import Image
from transformers import GenerationConfig

from ..benchmark.prompts import ANSWER_REQUEST, letters_of
from ..model.media_sources import local_source, with_video_audio
from ..utils import InputError
from .refusals import TASK_PREFIX

KINDS = ("image", "video", "audio")
# Of a task's generation_kwargs, what `generation_arguments` reads and `generate` does not know.
_OWN_KWARGS = ("until", "stop_sequences", "max_gen_toks")


@dataclass(frozen=True)
class Medium:
    """An image, video or audio of a request.

    Args:
        kind: "image", "video" or "audio".
        source: a path, or what the task gave in memory: bytes, a PIL image, samples, or samples with their rate in Hz.
        start_s, end_s: the part to take, seconds.
        fetch: gives the source again, in place of `source`: all requests' media may be more than memory.
        size: bytes of what `fetch` gives.
    """

    kind: str
    source: Any
    start_s: float | None = None
    end_s: float | None = None
    fetch: Callable[[], Any] | None = None
    size: int = 0

    def open(self) -> Any:
        """The source."""
        return self.source if self.fetch is None else self.fetch()

    @property
    def key(self) -> tuple | None:
        """Equal for equal media on disk; None for media in memory, which are not cached."""
        if not isinstance(self.source, str):
            return None
        return self.kind, self.source, self.start_s, self.end_s

    @property
    def identity(self) -> Hashable:
        """The key; for media in memory this object itself, as long as it is there."""
        return self.key or id(self)

    @property
    def file(self) -> Hashable:
        """Equal for the audio and the video of one file."""
        return self.source if isinstance(self.source, str) else id(self)

    @property
    def num_bytes(self) -> int:
        """Size as a stand-in for length: known without decoding."""
        if self.fetch is not None:
            return self.size
        if isinstance(self.source, str):
            return os.path.getsize(self.source) if os.path.isfile(self.source) else 0
        if isinstance(self.source, bytes):
            return len(self.source)
        if isinstance(self.source, Image.Image):
            return 3 * self.source.width * self.source.height
        samples = self.source[0] if isinstance(self.source, tuple) else self.source
        return int(getattr(samples, "nbytes", 0))


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        position: among all requests.
        name: the item's, for errors.
        conversation: for the chat template.
        media: in order.
        generation: the task's generation_kwargs.
        letters: those of the options where the text requests one of them, else empty.
        counts_missing: whether the task counts a question without an answer apart from a wrong answer.
    """

    position: int
    name: str
    conversation: list[dict]
    media: tuple[Medium, ...]
    generation: dict
    letters: str = ""
    counts_missing: bool = False

    @property
    def text(self) -> str:
        return "".join(part.get("text", "") for message in self.conversation for part in message["content"])


def read_request(position: int, request, documents: dict) -> Request:
    """One `generate_until` instance, read.

    Args:
        position: index of the request.
        request: lmms-eval's Instance, made by a task for chat models.
        documents: lmms-eval's task_dict, task -> split -> documents.

    Raises:
        InputError: the messages hold something that this model cannot be given; the item is named.
    """
    _, doc_to_messages, generation, doc_id, task, split = request.args
    rows = documents[task][split]
    document = rows[doc_id]
    name = f"{task}, item {document.get('id', doc_id)!r}"
    conversation: list[dict] = []
    media: list[Medium] = []
    for message in _messages(doc_to_messages, document):
        content = message["content"]
        parts: list[dict] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        rendered: list[dict] = []
        for part in parts:
            if part["type"] == "text":
                rendered.append({"type": "text", "text": part["text"]})
            elif part["type"] in KINDS:
                medium = Medium(part["type"], _source(part, name), part.get("start_time"), part.get("end_time"))
                if medium.key is None:
                    fetch = functools.partial(_fetch, doc_to_messages, rows, doc_id, len(media), name)
                    medium = replace(medium, source=None, fetch=fetch, size=medium.num_bytes)
                media.append(medium)
                # The template only needs to know where a medium stands.
                rendered.append({"type": part["type"]})
            else:
                raise InputError(f"{name}: content of type {part['type']!r}; allowed are text, {', '.join(KINDS)}.")
        conversation.append({"role": message["role"], "content": rendered})
    known = _known(generation, task)
    found = Request(position, name, conversation, tuple(media), known, counts_missing=task.startswith(TASK_PREFIX))
    options = document.get("options")
    if isinstance(options, (list, tuple)) and found.text.endswith(ANSWER_REQUEST):
        return replace(found, letters=letters_of(options))
    return found


def _known(generation: dict, task: str) -> dict:
    """A task's generation_kwargs without those that only other adapters know, such as `image_aspect_ratio`.

    Raises:
        InputError: more than one answer to a question is wanted.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise InputError(
            f"{task} has num_return_sequences={generation['num_return_sequences']}; one answer a question is "
            "scored, so leave it out of generation_kwargs and --gen_kwargs."
        )
    known = {name: value for name, value in generation.items() if name in _OWN_KWARGS or name in _generation_fields()}
    others = tuple(sorted(generation.keys() - known.keys()))
    if others:
        _warn_of_left_out(task, others)
    return known


@functools.cache
def _generation_fields() -> frozenset[str]:
    return frozenset(GenerationConfig().to_dict())


@functools.cache
def _warn_of_left_out(task: str, names: tuple[str, ...]) -> None:
    """Once a task, not once a question."""
    eval_logger.warning(f"{task}: generation_kwargs {', '.join(names)} are no arguments of generate and are left out.")


def _messages(doc_to_messages: Callable, document: dict) -> list[dict]:
    """A document's messages; a video whose audio is wanted (`use_audio_in_video`) is followed by it."""
    return with_video_audio([doc_to_messages(document)], use_audio=False)[0]


def _fetch(doc_to_messages: Callable, rows, doc_id: int, number: int, name: str) -> Any:
    """The source of a document's medium by its number in the messages."""
    messages = _messages(doc_to_messages, rows[doc_id])
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return _source([part for part in parts if part["type"] in KINDS][number], name)


def _source(part: dict, name: str) -> Any:
    """A media part's source, see `Medium`; samples with their rate as (float32 array, Hz)."""
    source = local_source(part.get("url", part.get(part["type"])), f"{name}: the {part['type']}")
    if source is None:
        raise InputError(f"{name}: a {part['type']} without a source.")
    if isinstance(source, Mapping):
        return np.asarray(source["array"], dtype=np.float32), int(source["sampling_rate"])
    return os.fspath(source) if isinstance(source, os.PathLike) else source


def batches(requests: Sequence[Request], batch_size: int, by_options: bool = False) -> list[list[Request]]:
    """Batches with equal generation arguments, the longest first, so that too little memory shows at once.

    Within a batch stand the same kinds of media and about the same length. Batches about the same clips follow each
    other, so that what is kept of a clip need not be kept long.

    Args:
        requests: all requests.
        batch_size: most requests in a batch.
        by_options: whether requests for a letter go into batches of their own.
    """
    ranks = _clip_ranks(requests)
    groups: dict[tuple, list[Request]] = {}
    for request in requests:
        generation = json.dumps(request.generation, sort_keys=True, default=str)
        groups.setdefault((generation, by_options and bool(request.letters)), []).append(request)
    found = []
    for group in groups.values():
        kinds = {request.position: tuple(medium.kind for medium in request.media) for request in group}
        group.sort(key=lambda r: (-len(r.media), kinds[r.position], ranks[r.position], -len(r.text)))
        found += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return sorted(found, key=lambda batch: min(ranks[request.position] for request in batch))


def _clip_ranks(requests: Sequence[Request]) -> dict[int, int]:
    """For each request's position the rank of its clip by length, 0 for the longest.

    A clip is what a question with audio and visual shows together; requests do not name it, since tasks of others know
    none. Bytes stand for length, those of the audio first: frames are as many for each video. Then comes the text.
    """
    clip_of: dict[Hashable, int] = {}
    members: dict[int, int] = {}
    sizes: dict[int, tuple[int, int, int]] = {}
    # Requests with most media first: they show which audio belongs to which image or video.
    for request in sorted(requests, key=lambda request: -len(request.media)):
        known = [clip_of[medium.file] for medium in request.media if medium.file in clip_of]
        clip = known[0] if known else request.position
        audio, visual, text = sizes.get(clip, (0, 0, 0))
        for medium in request.media:
            if clip_of.setdefault(medium.file, clip) == clip:
                size = medium.num_bytes
                audio, visual = (max(audio, size), visual) if medium.kind == "audio" else (audio, max(visual, size))
        members[request.position], sizes[clip] = clip, (audio, visual, max(text, len(request.text)))
    order = sorted(sizes, key=lambda clip: (*sizes[clip], clip), reverse=True)
    ranks = {clip: rank for rank, clip in enumerate(order)}
    return {position: ranks[clip] for position, clip in members.items()}


def generation_arguments(given: Mapping[str, Any]) -> tuple[dict, list[str]]:
    """Arguments for `generate` and the strings at which an answer is cut, from a task's generation_kwargs.

    Where they do not say otherwise, decoding is greedy with at most 128 new tokens.
    """
    arguments = dict(given)
    until: list[str] = []
    for name in ("until", "stop_sequences"):
        given_stops = arguments.pop(name, None) or []
        until += [given_stops] if isinstance(given_stops, str) else list(given_stops)
    limit = arguments.pop("max_gen_toks", None)
    arguments.setdefault("max_new_tokens", 128 if limit is None else limit)
    arguments["num_return_sequences"] = 1  # a checkpoint's own may say more
    temperature = arguments.pop("temperature", None) or 0.0
    if temperature > 0 or arguments.get("do_sample"):
        arguments.update(do_sample=True, temperature=temperature or 1.0)
    else:
        # Named as None, or transformers warns that a greedy search has no use for the backbone's own values.
        arguments.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    return arguments, until


def cut(answer: str, until: Sequence[str]) -> str:
    """The answer up to the first of the strings in `until`."""
    for stop in until:
        if stop:
            answer = answer.split(stop)[0]
    return answer.strip()
