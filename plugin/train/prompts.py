"""Where prompts and instructions come from: the config's own lists, a text file, or the nano world's language."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..data.manifest import LABEL_FIELDS, Clip
from ..errors import InputError
from .config_file import shipped_file

Instruction = Callable[[np.random.Generator, Clip], tuple[str, str]]


class Prompt(NamedTuple):
    """What the teacher is asked, and of which kind the question is."""

    kind: str
    text: str


class PromptSource:
    """Draws prompts for stage 1. It sees no clip, so no label can leak in.

    Args:
        draw: (generator, n) -> n prompts.
        kinds: kind -> prompts that ask the same in other words; empty where none can stand for another.
        identity: text that is the same for equal sources, for hashes.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], list[Prompt]],
        kinds: Mapping[str, Sequence[str]],
        identity: str,
    ):
        self.draw, self.kinds, self.identity = draw, kinds, identity

    def other_words(self, rng: np.random.Generator, prompt: Prompt) -> str | None:
        """Another prompt of the same kind, or None where there is none."""
        others = [text for text in self.kinds.get(prompt.kind, ()) if text != prompt.text]
        return others[int(rng.integers(len(others)))] if others else None


def prompt_source(prompts: str | Sequence[str] | Mapping[str, Sequence[str]]) -> PromptSource:
    """What stage 1 asks the teacher.

    Args:
        prompts: kinds of questions, each with prompts that ask it in different words, `{mood: [...], scene: [...]}`,
            or a YAML file with them, or the name of one that the package has (`art`); a list of prompts, each of which
            asks something of its own, or a text file with one a line; or `nano`.
    """
    if prompts == "nano":
        from ..nano import language

        # The whole language file is hashed: its prompts are made by code.
        digest = hashlib.sha256(Path(language.__file__).read_bytes()).hexdigest()

        def nano(rng: np.random.Generator, n: int) -> list[Prompt]:
            return [Prompt(*language.stage1_prompt(rng)) for _ in range(n)]

        return PromptSource(nano, {}, f"nano {digest}")
    if isinstance(prompts, str):
        prompts = _read_file(prompts)
    if isinstance(prompts, Mapping):
        kinds = {str(kind): _clean(texts, f"prompts.{kind}") for kind, texts in prompts.items()}
        lines = [Prompt(kind, text) for kind, texts in kinds.items() for text in texts]
    else:
        kinds, lines = {}, [Prompt("prompt", text) for text in _clean(prompts, "prompts")]

    def draw(rng: np.random.Generator, n: int) -> list[Prompt]:
        # Without repeats as long as there are prompts left.
        order = np.concatenate([rng.permutation(len(lines)) for _ in range(-(-n // len(lines)))])
        return [lines[i] for i in order[:n]]

    return PromptSource(draw, kinds, json.dumps(lines, ensure_ascii=False))


def _read_file(name: str) -> Any:
    try:
        file = shipped_file("prompts", name, (".yaml", ".yml"))
    except InputError as error:
        raise InputError(f"config field `prompts` is {name!r}, not `nano` and no file of prompts: {error}") from None
    text = file.read_text(encoding="utf-8")
    if file.suffix not in (".yaml", ".yml"):
        return text.splitlines()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None


def _clean(prompts: Any, field: str) -> list[str]:
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        raise InputError(f"config field `{field}` is {prompts!r}; a list of prompts is needed.")
    texts = []
    for text in prompts:
        if not isinstance(text, str):
            raise InputError(f"config field `{field}` holds {text!r}; put prompts in quotes.")
        if text.strip():
            texts.append(text.strip())
    if not texts:
        raise InputError(f"config field `{field}` holds no prompt.")
    return texts


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
