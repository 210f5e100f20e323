"""Requests of lmms-eval as conversations with named media, and their order for batching."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

KINDS = ("image", "video", "audio")


@dataclass(frozen=True)
class Medium:
    """kind: "image", "video" or "audio". source: whatever the task gave: a path, bytes, an array with its rate, ..."""

    kind: str
    source: Any
    start_s: float | None = None
    end_s: float | None = None

    @property
    def key(self) -> tuple | None:
        """Equal for equal media on disk; None for media in memory, which are not cached."""
        if not isinstance(self.source, str):
            return None
        return self.kind, self.source, self.start_s, self.end_s

    @property
    def num_bytes(self) -> int:
        """Size as a stand-in for length: known without decoding."""
        if isinstance(self.source, str):
            try:
                return os.path.getsize(self.source)
            except OSError:
                return 0
        if isinstance(self.source, (bytes, bytearray)):
            return len(self.source)
        return int(getattr(self.source, "nbytes", 0))


@dataclass(frozen=True)
class Prompt:
    """One request: position among all requests, the item's name for errors, conversation, media in order."""

    position: int
    name: str
    conversation: list[dict]
    media: tuple[Medium, ...]
    generation: dict

    @property
    def order(self) -> tuple:
        """Requests with the same kinds of media and about the same length stand together, and so do equal media."""
        text = sum(len(part.get("text", "")) for message in self.conversation for part in message["content"])
        kinds = tuple(medium.kind for medium in self.media)
        size = sum(medium.num_bytes for medium in self.media)
        return len(self.media), kinds, size, tuple(str(medium.key) for medium in self.media), text


def read_request(position: int, request, documents: dict) -> Prompt:
    """The prompt of one `generate_until` instance.

    Args:
        position: index of the request.
        request: lmms-eval's Instance, made by a task for chat models.
        documents: lmms-eval's task_dict, task -> split -> documents.

    Raises:
        InputError: the messages hold something that this model cannot be given; the item is named.
    """
    _, doc_to_messages, generation, doc_id, task, split = request.args
    document = documents[task][split][doc_id]
    name = f"{task}, item {document.get('id', doc_id)!r}"
    conversation: list[dict] = []
    media: list[Medium] = []
    for message in doc_to_messages(document):
        content = message["content"]
        parts: list[dict] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        rendered: list[dict] = []
        for part in parts:
            if part["type"] == "text":
                rendered.append({"type": "text", "text": part["text"]})
            elif part["type"] in KINDS:
                medium = Medium(part["type"], _source(part, name), part.get("start_time"), part.get("end_time"))
                media.append(medium)
                # The template only needs to know where a medium stands.
                rendered.append({"type": part["type"]})
            else:
                raise InputError(f"{name}: content of type {part['type']!r}; allowed are text, {', '.join(KINDS)}.")
        conversation.append({"role": message["role"], "content": rendered})
    return Prompt(position, name, conversation, tuple(media), dict(generation))


def _source(part: dict, name: str) -> Any:
    source: Any = part.get("url", part.get(part["type"]))
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, dict):
        # What datasets gives for an undecoded column, and what tasks give for a decoded one.
        if source.get("bytes") is not None:
            return source["bytes"]
        if source.get("array") is not None:
            return np.asarray(source["array"], dtype=np.float32), int(source["sampling_rate"])
        source = source.get("path") or source.get("url")
    if hasattr(source, "get_all_samples"):  # datasets' decoder of an Audio column
        samples = source.get_all_samples()
        return np.asarray(samples.data, dtype=np.float32), int(samples.sample_rate)
    if isinstance(source, str):
        source = source.removeprefix("file://")
        if "://" in source:
            raise InputError(f"{name}: the {part['type']} {source!r} is not on this machine; download it first.")
    if source is None:
        raise InputError(f"{name}: a {part['type']} without a source.")
    return source


def batches(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[Prompt]]:
    """Batches with equal generation arguments, the longest first, so that too little memory shows at once."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(json.dumps(prompt.generation, sort_keys=True, default=str), []).append(prompt)
    for group in groups.values():
        ordered = sorted(group, key=lambda prompt: prompt.order, reverse=True)
        for start in range(0, len(ordered), batch_size):
            yield ordered[start : start + batch_size]


def generation_arguments(given: dict) -> tuple[dict, list[str]]:
    """Arguments for `generate` and the strings at which an answer is cut, from a task's generation_kwargs.

    Without a word to the contrary decoding is greedy with at most 128 new tokens.
    """
    arguments = dict(given)
    until = arguments.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    limit = arguments.pop("max_gen_toks", None)
    arguments.setdefault("max_new_tokens", 128 if limit is None else limit)
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
