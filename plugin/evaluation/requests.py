"""Requests of lmms-eval as conversations with named media, their order for batching and their generation arguments."""

import difflib
import functools
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from lmms_eval.utils import simple_parse_args_string
from loguru import logger as eval_logger
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    with_config,
)
from transformers import GenerationConfig
from typing_extensions import TypedDict

from ..model.media_sources import item_source, with_video_audio
from ..utils import InputError
from .refusals import TASK_PREFIX, stopping

KINDS = ("image", "video", "audio")


@dataclass(frozen=True)
class Medium:
    """An image, video or audio of a request. The same part of the same file is the same medium.

    Args:
        kind: "image", "video" or "audio".
        source: the path of a file, or a function that gives what the task has in memory (bytes, a PIL image, samples
            with their rate in Hz): all requests' media may be more than memory.
        start_s, end_s: the part of a file to take, seconds.
    """

    kind: str
    source: str | Callable[[], Any]
    start_s: float | None = None
    end_s: float | None = None

    @property
    def num_bytes(self) -> int:
        """Size of a file as a stand-in for length, known without decoding; else 0."""
        return os.path.getsize(self.source) if isinstance(self.source, str) and os.path.isfile(self.source) else 0


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        position: among all requests.
        name: the item's, for errors.
        clip: equal for questions about the same clip.
        conversation: for the chat template.
        media: in order.
        generation: the task's generation_kwargs.
        counts_missing: whether the task counts a question without an answer apart from a wrong answer.
    """

    position: int
    name: str
    clip: Hashable
    conversation: list[dict]
    media: tuple[Medium, ...]
    generation: dict
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
    for message in _messages(doc_to_messages, document, name):
        content: list[dict] = []
        for part in message["content"]:
            kind = part["type"]
            if kind in KINDS:
                source = _source(part, name)
                if not isinstance(source, str):
                    source = functools.partial(_source_again, doc_to_messages, rows, doc_id, len(media), name)
                media.append(Medium(kind, source, part.get("start_time"), part.get("end_time")))
            # The template only needs to know where a medium stands.
            content.append({"type": kind, "text": part["text"]} if kind == "text" else {"type": kind})
        conversation.append({"role": message["role"], "content": content})
    clip = document.get("clip_id") or (media[0].source if media else name)
    return Request(position, name, clip, conversation, tuple(media), generation, task.startswith(TASK_PREFIX))


def _messages(doc_to_messages: Callable, document: dict, name: str) -> list[dict]:
    """A document's messages; a video whose audio is wanted (`use_audio_in_video`) is followed by it."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in doc_to_messages(document)
    ]
    try:
        return with_video_audio([messages], use_audio=False)[0]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _source_again(doc_to_messages: Callable, rows, doc_id: int, number: int, name: str) -> Any:
    """The source of a document's medium by its number in the messages."""
    parts = [part for message in _messages(doc_to_messages, rows[doc_id], name) for part in message["content"]]
    return _source([part for part in parts if part["type"] in KINDS][number], name)


def _source(part: dict, name: str) -> Any:
    """What a media part holds: a path as text, else what the task has in memory."""
    source = item_source(part, part["type"], f"{name}: the {part['type']}")
    if source is None:
        raise InputError(f"{name}: a {part['type']} without a source.")
    return os.fspath(source) if isinstance(source, os.PathLike) else source


def batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Batches with equal generation arguments, the longest clips first, so that too little memory shows at once.

    Within a batch stand the same kinds of media and about the same length: bytes stand for it, those of the audio
    first, since frames are as many for each video; then comes the text. Batches about the same clips follow each
    other, so that what is kept of a clip need not be kept long.

    Args:
        requests: all requests.
        batch_size: most requests in a batch.
    """
    sizes: dict[Hashable, tuple[int, int, int]] = {}
    for request in requests:
        audio = max((medium.num_bytes for medium in request.media if medium.kind == "audio"), default=0)
        visual = max((medium.num_bytes for medium in request.media if medium.kind != "audio"), default=0)
        before = sizes.get(request.clip, (0, 0, 0))
        sizes[request.clip] = max(before[0], audio), max(before[1], visual), max(before[2], len(request.text))
    ranks = {clip: rank for rank, clip in enumerate(sorted(sizes, key=lambda clip: sizes[clip], reverse=True))}
    groups: dict[str, list[Request]] = {}
    for request in requests:
        groups.setdefault(json.dumps(request.generation, sort_keys=True, default=str), []).append(request)
    found = []
    for group in groups.values():
        group.sort(key=lambda r: (-len(r.media), [m.kind for m in r.media], ranks[r.clip], -len(r.text)))
        found += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return sorted(found, key=lambda batch: min(ranks[request.clip] for request in batch))


_Share = Annotated[float, Field(gt=0, le=1)]


@with_config(ConfigDict(allow_inf_nan=False))
class _Checked(TypedDict, total=False):
    """Arguments of `generate` whose values are checked before a question is answered."""

    max_new_tokens: PositiveInt | None
    min_new_tokens: NonNegativeInt | None
    num_beams: PositiveInt | None
    no_repeat_ngram_size: NonNegativeInt | None
    top_k: int | None
    temperature: NonNegativeFloat | None
    top_p: _Share | None
    typical_p: _Share | None
    min_p: Annotated[float, Field(ge=0, le=1)] | None
    repetition_penalty: PositiveFloat | None
    do_sample: bool | None
    use_cache: bool | None


_CHECK = TypeAdapter(_Checked)
_KNOWN = GenerationConfig().to_dict().keys() - {"num_return_sequences"}
_STOPS = ("until", "stop_sequences")


def generation_arguments(given: Mapping[str, Any]) -> tuple[dict, list[str]]:
    """Arguments for `generate` and the strings at which an answer is cut, from a task's generation_kwargs.

    Where they do not say otherwise, decoding is greedy with at most 128 new tokens. What only other adapters know is
    left out with a warning, such as `image_aspect_ratio`, and `num_return_sequences` too: one answer is scored.

    Raises:
        InputError: a value that cannot be used.
    """
    _warn_of_left_out(tuple(sorted(given.keys() - _KNOWN - {*_STOPS, "max_gen_toks"})))
    arguments = {name: value for name, value in given.items() if name in _KNOWN}
    until: list[str] = []
    for name in _STOPS:
        given_stops = given.get(name) or []
        until += [given_stops] if isinstance(given_stops, str) else list(given_stops)
    limit = given.get("max_gen_toks")
    arguments.setdefault("max_new_tokens", 128 if limit is None else limit)
    checked = {name: value for name, value in arguments.items() if name in _Checked.__annotations__}
    try:
        arguments |= _CHECK.validate_python(checked)
    except ValidationError as error:
        wrong = [f"{one['loc'][0]} is {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise InputError(f"generation_kwargs cannot be used: {'; '.join(wrong)}. See --gen_kwargs.") from None
    arguments["num_return_sequences"] = 1  # a checkpoint's own may say more
    temperature = arguments.pop("temperature", None) or 0.0
    if temperature > 0 or arguments.get("do_sample"):
        arguments.update(do_sample=True, temperature=temperature or 1.0)
    else:
        # Named as None, or transformers warns that a greedy search has no use for the backbone's own values.
        arguments.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    return arguments, until


def check_arguments(model: Any, model_args: Any, tasks: Sequence[Any], gen_kwargs: Any) -> None:
    """Ends lmms-eval's command where --model_args or --gen_kwargs cannot be used, for our model or our tasks.

    Args:
        model, model_args, tasks, gen_kwargs: as lmms-eval's `simple_evaluate` is given them.

    Raises:
        InputError: outside that command, which would print a stack trace and end with code 0.
    """
    ours = model == "vaemotionllm"
    if not ours and not any(str(task).startswith(TASK_PREFIX) for task in tasks or ()):
        return
    with stopping("parsing the arguments"):
        for flag, text in (("--model_args", model_args), ("--gen_kwargs", gen_kwargs)):
            try:
                given = simple_parse_args_string(text) if isinstance(text, str) else {}
            except ValueError:
                raise InputError(f"{flag} is {text!r}; write NAME=VALUE, several joined by commas.") from None
        if not ours:  # others' adapters have names of their own
            return
        known = sorted(_KNOWN | {*_STOPS, "max_gen_toks"})
        for name in given.keys() - known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "give arguments of transformers' generate, or until."
            raise InputError(f"--gen_kwargs has {name}, which {model} does not know: {hint}")
        generation_arguments(given)


@functools.cache
def _warn_of_left_out(names: tuple[str, ...]) -> None:
    """Once, not once a batch."""
    if names:
        eval_logger.warning(f"generation_kwargs {', '.join(names)} are no arguments of this model and are left out.")


def cut(answer: str, until: Sequence[str]) -> str:
    """The answer up to the first of the strings in `until`."""
    for stop in until:
        if stop:
            answer = answer.split(stop)[0]
    return answer.strip()
