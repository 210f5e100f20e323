"""Prompts of stage 1 for other servers, in OpenAI's batch format, and the answers that they give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.manifest import Clip
from ..utils import InputError, read_json_lines, reported_writing, write_json_lines
from .config import Stage1Config
from .instructions import PromptSource

Answers = dict[tuple[int, int], str]
"""(clip number, slot) -> the response."""


def write_prompts(path: Path, clips: Sequence[Clip], source: PromptSource, config: Stage1Config) -> int:
    """Write the run's prompts, one request a line, for vLLM, SGLang or any server that takes OpenAI's batch files.

    Args:
        path: the file.
        clips: of the run; each is named by the URL of its file.
        source: of the prompts.
        config: of the run.

    Returns:
        how many there are.

    Raises:
        InputError: a clip is a part of a file or embedded in the manifest, which a URL cannot say.
    """
    sampling = {"temperature": config.teacher_temperature}
    if config.teacher_temperature:
        sampling |= {"top_p": config.teacher_top_p, "seed": config.teacher_seed}
    rows = []
    for clip in clips:
        file = clip.video if clip.video is not None else clip.image
        if not isinstance(file, str) or (clip.video is not None and (clip.start_s, clip.end_s) != (None, None)):
            raise InputError(
                f"clip {clip.id!r} is {'a part of a file' if isinstance(file, str) else 'embedded in the manifest'}, "
                "and a server takes whole files: write it to one of its own, or generate here."
            )
        kind = f"{clip.visual}_url"
        for slot in range(config.responses_per_clip):
            content = [
                {"type": kind, kind: {"url": Path(file).as_uri()}},
                {"type": "text", "text": source.prompt(config.teacher_seed, clip.id, slot).text},
            ]
            body = {
                "model": config.vlm or config.model, "messages": [{"role": "user", "content": content}],
                "max_tokens": config.max_response_tokens, **sampling,
            }  # fmt: skip
            request = {"custom_id": f"{slot}/{clip.id}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            rows.append(request)
    with reported_writing(path):
        write_json_lines(path, rows)
    return len(rows)


def read_answers(
    path: Path, clips: Sequence[Clip], source: PromptSource, config: Stage1Config, placeholders: Sequence[str]
) -> Answers:
    """Read the answers to the run's prompts.

    Args:
        path: JSON lines of {id, prompt, response}, or what OpenAI's batch format gives for `write_prompts`.
        clips, source, config: of the run.
        placeholders: tokens that no response may hold.

    Raises:
        InputError: a line names no clip or prompt of the run, answers a prompt again, or has no usable response.
    """
    numbers, answers, lines = {clip.id: n for n, clip in enumerate(clips)}, Answers(), dict[tuple[int, int], int]()
    try:
        rows = list(read_json_lines(path, "line"))
    except OSError as error:
        raise InputError(f"--answers {path} cannot be read: {error.strerror}.") from None
    for number, row in rows:
        where = f"{path}, line {number}"
        if "custom_id" in row:
            slot_text, _, clip_id = str(row["custom_id"]).partition("/")
            response = _content_of(row, where)
        else:
            slot_text, clip_id, response = None, row.get("id"), row.get("response")
        if clip_id not in numbers:
            raise InputError(f"{where}: {clip_id!r} is no clip of this run.")
        index = numbers[clip_id]
        slots = range(config.responses_per_clip)
        if slot_text is None:
            if not isinstance(prompt := row.get("prompt"), str):
                raise InputError(f"{where}: field `prompt` is missing; give the prompt that was answered.")
            slots = [slot for slot in slots if source.prompt(config.teacher_seed, clip_id, slot).text == prompt]
        else:
            slots = [slot for slot in slots if str(slot) == slot_text]
        if not slots:
            raise InputError(
                f"{where}: no prompt of this run for clip {clip_id!r}; `--prompts-only` writes those that there are."
            )
        free = [slot for slot in slots if (index, slot) not in answers]
        if not free:
            raise InputError(f"{where}: the prompt was already answered in line {lines[index, slots[-1]]}.")
        if not isinstance(response, str) or not response.strip():
            raise InputError(f"{where}: the response is {response!r}; a text that is not empty is needed.")
        if found := next((token for token in placeholders if token in response), None):
            raise InputError(f"{where}: the response to clip {clip_id!r} holds {found}, a placeholder of media.")
        answers[index, free[0]], lines[index, free[0]] = response, number
    return answers


def _content_of(row: dict[str, Any], where: str) -> Any:
    """The response in a line of OpenAI's batch output."""
    try:
        return row["response"]["body"]["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise InputError(f"{where}: no answer ({row.get('error') or row.get('response')}). Leave it out.") from None
