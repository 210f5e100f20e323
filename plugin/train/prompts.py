"""Where prompts and instructions come from: the config's own lists, a text file, or the nano world's language."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import LABEL_FIELDS, Clip
from ..errors import InputError

PromptSource = Callable[[np.random.Generator, int], list[str]]
"""(generator, n) -> n prompts. It sees no clip, so no label can leak into stage 1."""

Instruction = Callable[[np.random.Generator, Clip], tuple[str, str]]


def prompt_source(prompts: str | Sequence[str]) -> tuple[PromptSource, str]:
    """What stage 1 asks the teacher, and a text that identifies it for hashes.

    Args:
        prompts: a list of prompts, the path of a text file with one a line, or `nano`.
    """
    if prompts == "nano":
        from ..nano import language

        # The whole language file is hashed: its prompts are made by code.
        digest = hashlib.sha256(Path(language.__file__).read_bytes()).hexdigest()
        return (lambda rng, n: [language.stage1_prompts(rng) for _ in range(n)]), f"nano {digest}"
    if isinstance(prompts, str):
        if not Path(prompts).is_file():
            raise InputError(
                f"config field `prompts` is {prompts!r}: no such file, and not `nano`. Give a list or a file."
            )
        prompts = Path(prompts).read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in prompts if isinstance(line, str) and line.strip()]
    if not lines:
        raise InputError("config field `prompts` holds no prompt.")

    def draw(rng: np.random.Generator, n: int) -> list[str]:
        # Without repeats as long as there are prompts left.
        order = np.concatenate([rng.permutation(len(lines)) for _ in range(-(-n // len(lines)))])
        return [lines[i] for i in order[:n]]

    return draw, json.dumps(lines, ensure_ascii=False)


def instruction_source(instructions: str | Sequence[dict[str, str]]) -> tuple[Instruction, tuple[str, ...]]:
    """What stage 2 asks about a clip and the answer, and the label fields that every clip must have for it.

    Args:
        instructions: a list of {prompt, answer} with label names in braces, or `nano`.
    """
    if instructions == "nano":
        from ..nano import language

        needed = ("content", "emotion", "valence", "arousal", "art_form")
        return (lambda rng, clip: language.instruction(rng, label_row(clip))), needed
    if isinstance(instructions, str):
        raise InputError(
            f"config field `instructions` is {instructions!r}: give a list of {{prompt, answer}}, or `nano`."
        )
    needed: dict[str, None] = {}
    for number, pair in enumerate(instructions, start=1):
        if not isinstance(pair, dict) or set(pair) != {"prompt", "answer"}:
            raise InputError(f"`instructions` entry {number} is {pair!r}; allowed are the keys `prompt` and `answer`.")
        for key, text in pair.items():
            if not isinstance(text, str):
                raise InputError(f"`instructions` entry {number}: `{key}` is {text!r}; put text in quotes.")
            needed |= dict.fromkeys(_names_in(text, number))

    def draw(rng: np.random.Generator, clip: Clip) -> tuple[str, str]:
        pair = instructions[int(rng.integers(len(instructions)))]
        row = label_row(clip)
        return pair["prompt"].format(**row), pair["answer"].format(**row)

    return draw, tuple(needed)


def label_row(clip: Clip) -> dict[str, Any]:
    """Labels of a clip by name; of a distribution over emotions the strongest."""
    row = {name: getattr(clip, name) for name in LABEL_FIELDS}
    if isinstance(clip.emotion, dict):
        row["emotion"] = max(clip.emotion, key=clip.emotion.get)
    return row


def _names_in(text: str, number: int) -> list[str]:
    import string

    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise InputError(f"`instructions` entry {number}: {text!r} is not a template ({error}).") from None
    for name in names:
        if name not in LABEL_FIELDS:
            raise InputError(
                f"`instructions` entry {number} uses {{{name}}}; allowed are {', '.join(LABEL_FIELDS)}. "
                "Write {{ and }} for braces."
            )
    return names
