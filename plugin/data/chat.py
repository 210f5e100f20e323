"""Chat samples: JSONL, one conversation a line in the messages format of Hugging Face's libraries."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils import InputError, read_json_lines

ROLES = ("system", "user", "assistant")
MEDIA_KINDS = ("image", "video", "audio")

Messages = list[dict[str, Any]]
"""[{"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "path": ...}, ...]}, ...]"""


def read_chat(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where, row) of each line; `row["messages"]` is checked and has its content as lists of parts.

    A conversation ends with the assistant's turn, which is what is learned, and holds a user's turn before it. Content
    is a string or a list of parts of the types text, image, video and audio; the assistant's is text alone.

    Raises:
        InputError: naming file and line, what was found and what is allowed; a file without a line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"chat samples not found: {path}. Give the path of a .jsonl file.")
    empty = True
    for number, row in read_json_lines(path, "line"):
        where, empty = f"{path}, line {number}", False
        yield where, row | {"messages": _check_messages(row.get("messages"), where)}
    if empty:
        raise InputError(f"{path} holds no sample. Write one JSON object with `messages` a line.")


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, its parts put together."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def media_of(messages: Messages) -> list[dict[str, Any]]:
    """The parts of all messages that are not text, in order."""
    return [part for message in messages for part in message["content"] if part["type"] != "text"]


def _check_messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{where}: `messages` is {messages!r}; a list of {{role, content}} is needed.")
    checked = []
    for number, message in enumerate(messages, start=1):
        at = f"{where}, message {number}"
        if message.get("role") not in ROLES:
            raise InputError(f"{at}: `role` is {message.get('role')!r}; allowed are {', '.join(ROLES)}.")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise InputError(f"{at}: `content` is {content!r}; text or a list of parts is needed.")
        for part in parts:
            _check_part(part, at)
        checked.append({"role": message["role"], "content": parts})
    roles = [message["role"] for message in checked]
    if not roles or roles[-1] != "assistant" or "user" not in roles:
        raise InputError(
            f"{where}: the roles are {', '.join(roles) or 'none'}; a user's turn is needed, and the assistant's as "
            "the last one."
        )
    for message in checked:
        if message["role"] == "assistant" and (media_of([message]) or not text_of(message).strip()):
            raise InputError(f"{where}: the assistant's turn is {message['content']!r}; text alone is allowed there.")
    if not any(text_of(message).strip() for message in checked if message["role"] == "user"):
        raise InputError(f"{where}: no user's turn holds text; the question is missing.")
    return checked


def _check_part(part: Any, where: str) -> None:
    allowed = ("text", *MEDIA_KINDS)
    if not isinstance(part, dict) or part.get("type") not in allowed:
        raise InputError(f"{where}: the part {part!r} of `content` has no type of {', '.join(allowed)}.")
    if part.get("use_audio_in_video") or part.get("load_audio_from_video"):
        raise InputError(
            f"{where}: films of chat samples are seen, not heard; found {part!r}. Give the sound as audio."
        )
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise InputError(f"{where}: a part of type text holds {part.get('text')!r}; put text in quotes.")
