"""Where stage 1's prompts come from: the config's own lists, a file, or the nano world's language."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..config_file import shipped_file
from ..utils import InputError


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
