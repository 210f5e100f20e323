"""What stage 2 asks about a clip, and what it is to answer: templates filled with the clip's labels."""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import yaml

from ..config_file import shipped_file
from ..data.manifest import LABEL_FIELDS, Clip
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError

# Upper end of each word's range; the words and the ends are our choice.
VALENCE_WORDS = (
    (-0.6, "very negative"),
    (-0.2, "negative"),
    (0.2, "neutral"),
    (0.6, "positive"),
    (1.0, "very positive"),
)
AROUSAL_WORDS = ((-0.6, "very low"), (-0.2, "low"), (0.2, "moderate"), (0.6, "high"), (1.0, "very high"))
DERIVED_FIELDS = {
    "caption_sentence": "caption",
    "emotion_shares": "emotion",
    "valence_word": "valence",
    "valence_number": "valence",
    "arousal_word": "arousal",
    "arousal_number": "arousal",
}
"""What a template may name beside the labels themselves, and the label that it is made of."""


class Instruction(NamedTuple):
    """A question about a clip, of which kind it is, and its answer."""

    kind: str
    prompt: str
    answer: str


class InstructionSource(Protocol):
    """Where instructions come from.

    `needed` names the labels that every clip must have. `check` raises an InputError for clips that cannot be asked
    about on their modalities. `prompts` yields (where it stands, prompt or template).
    """

    needed: tuple[str, ...]

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction: ...

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None: ...

    def prompts(self) -> Iterator[tuple[str, str]]: ...


@dataclass(frozen=True)
class Entry:
    """Prompts of one meaning, the answers that fit them all, the labels that both name, the modalities it suits."""

    kind: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    names: frozenset[str]
    modalities: tuple[str, ...] = MODALITIES


class ListedInstructions:
    """A config's own list of {prompt, answer}: every clip needs every label that they name."""

    def __init__(self, pairs: Sequence[dict[str, str]]):
        self.pairs = pairs
        needed: dict[str, None] = {}
        for number, pair in enumerate(pairs, start=1):
            if not isinstance(pair, dict) or set(pair) != {"prompt", "answer"}:
                raise InputError(
                    f"`instructions` entry {number} is {pair!r}; allowed are the keys `prompt` and `answer`."
                )
            for key, text in pair.items():
                where = f"`instructions` entry {number}"
                if not isinstance(text, str):
                    raise InputError(f"{where}: `{key}` is {text!r}; put text in quotes.")
                needed |= dict.fromkeys(DERIVED_FIELDS.get(name, name) for name in names_in(text, where))
        self.needed = tuple(needed)

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        row = label_row(clip)
        return Instruction("listed", pair["prompt"].format(**row), pair["answer"].format(**row))

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        pass  # the manifest was read with `needed`

    def prompts(self) -> Iterator[tuple[str, str]]:
        for number, pair in enumerate(self.pairs, start=1):
            yield f"`instructions` entry {number}", pair["prompt"]


class NanoInstructions:
    """The nano world's language."""

    needed = ("content", "emotion", "valence", "arousal", "art_form")

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        from ..nano import language

        return Instruction(*language.instruction(rng, label_row(clip)))

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        pass

    def prompts(self) -> Iterator[tuple[str, str]]:
        from ..nano import language

        for prompt in language.INSTRUCTION_PROMPTS:
            yield "the nano instructions", prompt


class Templates:
    """Kinds of questions with several wordings, from YAML.

    A clip is asked what its labels can answer: first a kind is drawn among those that it can be asked, then one of the
    kind's prompts, then an answer that fits it.

    Args:
        kinds: {kind: [{prompts: [...], answers: [...], modalities: [...]}, ...]}; without `modalities` it suits all.
        where: the file, for errors.
    """

    needed: tuple[str, ...] = ()

    def __init__(self, kinds: Any, where: str):
        self.where = where
        if not isinstance(kinds, dict) or not kinds:
            raise InputError(
                f"{where} holds {type(kinds).__name__}; kinds of questions are needed, {{emotion: [...]}}."
            )
        self.kinds: dict[str, list[Entry]] = {}
        self._usable: dict[tuple[frozenset[str], str], dict[str, list[Entry]]] = {}
        for kind, entries in kinds.items():
            if not isinstance(entries, list) or not entries:
                raise InputError(f"{where}: kind `{kind}` is {entries!r}; a list of {{prompts, answers}} is needed.")
            self.kinds[str(kind)] = [
                _parse_entry(str(kind), entry, f"{where}: kind `{kind}`, entry {number}")
                for number, entry in enumerate(entries, start=1)
            ]

    def usable(self, clip: Clip, modality: str) -> dict[str, list[Entry]]:
        """The entries that a clip can be asked on a modality, by kind."""
        known = frozenset(name for name, value in label_row(clip).items() if value is not None)
        if (known, modality) not in self._usable:
            found = {
                kind: [entry for entry in entries if modality in entry.modalities and entry.names <= known]
                for kind, entries in self.kinds.items()
            }
            self._usable[known, modality] = {kind: entries for kind, entries in found.items() if entries}
        return self._usable[known, modality]

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        kinds = self.usable(clip, modality)
        if not kinds:
            raise InputError(self._nothing(clip, modality))
        kind = _pick(rng, list(kinds))
        entry, prompt = _pick(rng, [(entry, prompt) for entry in kinds[kind] for prompt in entry.prompts])
        row = label_row(clip)
        return Instruction(kind, prompt.format(**row), _pick(rng, entry.answers).format(**row))

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        for clip in clips:
            for modality in modalities[clip.id]:
                if not self.usable(clip, modality):
                    raise InputError(self._nothing(clip, modality))

    def prompts(self) -> Iterator[tuple[str, str]]:
        for kind, entries in self.kinds.items():
            for entry in entries:
                for prompt in entry.prompts:
                    yield f"{self.where}: kind `{kind}`", prompt

    def _nothing(self, clip: Clip, modality: str) -> str:
        has = [name for name in LABEL_FIELDS if getattr(clip, name) is not None]
        needs = {", ".join(sorted({DERIVED_FIELDS.get(name, name) for name in entry.names}))
                 for entries in self.kinds.values() for entry in entries if modality in entry.modalities}  # fmt: skip
        return (
            f"clip {clip.id!r} has the labels {', '.join(has) or 'none'}, and no template of {self.where} for the "
            f"modality {modality} does with them; allowed is any of: {'; '.join(sorted(needs)) or 'none'}. Add a "
            "label to the manifest, or templates that need none."
        )


def instruction_source(instructions: str | Sequence[dict[str, str]]) -> InstructionSource:
    """What stage 2 asks about a clip and the answer.

    Args:
        instructions: a YAML file of templates, or the name of one that the package has (`art`); a `.jsonl` file of
            chat samples; a list of {prompt, answer} with label names in braces; or `nano`.

    Raises:
        InputError: naming the file, the entry and what is allowed.
    """
    if not isinstance(instructions, str):
        return ListedInstructions(instructions)
    if instructions == "nano":
        return NanoInstructions()
    if instructions.endswith(".jsonl"):
        from .samples import SampledInstructions

        return SampledInstructions(instructions)
    try:
        file = shipped_file("instructions", instructions, (".yaml", ".yml"))
    except InputError as error:
        raise InputError(
            f"config field `instructions` is {instructions!r}, which is not `nano`, no list of {{prompt, answer}}, no "
            f".jsonl file of chat samples and no file of templates: {error}"
        ) from None
    try:
        return Templates(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None


def label_row(clip: Clip) -> dict[str, Any]:
    """What templates may name, of a clip: its labels (of a distribution over emotions the strongest) and what is made
    of them; None where the clip has no such label."""
    row: dict[str, Any] = {name: getattr(clip, name) for name in LABEL_FIELDS} | dict.fromkeys(DERIVED_FIELDS)
    row["emotion"] = emotion_of(clip)
    if isinstance(clip.emotion, dict):
        row["emotion_shares"] = _shares(clip.emotion)
    for name, words in (("valence", VALENCE_WORDS), ("arousal", AROUSAL_WORDS)):
        value = row[name]
        if value is not None:
            row[f"{name}_word"] = next(word for end, word in words if value <= end)
            row[f"{name}_number"] = f"{round(value, 1) + 0.0:.1f}"  # + 0.0: no "-0.0"
    if clip.caption is not None:
        text = clip.caption.strip()
        row["caption_sentence"] = text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")
    return row


def emotion_of(clip: Clip) -> str | None:
    """The emotion's label; of a distribution the strongest."""
    return max(clip.emotion, key=clip.emotion.get) if isinstance(clip.emotion, dict) else clip.emotion


def names_in(text: str, where: str) -> list[str]:
    """Names in braces of a template.

    Raises:
        InputError: it is no template, or names what is no label.
    """
    allowed = (*LABEL_FIELDS, *DERIVED_FIELDS)
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise InputError(f"{where}: {text!r} is not a template ({error}).") from None
    for name in names:
        if name not in allowed:
            raise InputError(
                f"{where} uses {{{name}}}; allowed are {', '.join(allowed)}. Write {{{{ and }}}} for braces."
            )
    try:
        text.format(**{name: 0.5 if name in ("valence", "arousal") else "x" for name in names})
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{where}: {text!r} is not a template ({error}).") from None
    return names


def _parse_entry(kind: str, entry: Any, where: str) -> Entry:
    allowed = {"prompts", "answers", "modalities"}
    if not isinstance(entry, dict) or not {"prompts", "answers"} <= set(entry) <= allowed:
        raise InputError(f"{where} is {entry!r}; `prompts` and `answers` are needed, `modalities` is allowed.")
    modalities = entry.get("modalities", list(MODALITIES))
    if (
        not isinstance(modalities, list)
        or not modalities
        or any(modality not in MODALITIES for modality in modalities)
    ):
        raise InputError(f"{where}: `modalities` is {modalities!r}; allowed is a list of {', '.join(MODALITIES)}.")
    names: set[str] = set()
    for field in ("prompts", "answers"):
        texts = entry[field]
        if not isinstance(texts, list) or not texts:
            raise InputError(f"{where}: `{field}` is {texts!r}; a list of texts is needed.")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: `{field}` holds {text!r}; text is needed, in quotes.")
            names |= set(names_in(text, f"{where}: `{field}`"))
    return Entry(kind, tuple(entry["prompts"]), tuple(entry["answers"]), frozenset(names), tuple(modalities))


def _shares(emotion: dict[str, float], most: int = 3) -> str:
    """The strongest of a distribution over emotions in words: "calm (70%), sad (30%)"."""
    whole = sum(emotion.values())
    strongest = sorted(emotion.items(), key=lambda pair: -pair[1])[:most]
    return ", ".join(f"{label} ({share / whole:.0%})" for label, share in strongest if share > 0)


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]
