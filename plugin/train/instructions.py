"""Prompts of both stages: the teacher's in stage 1, prompts and answers in stage 2, and none of the benchmark's."""

import itertools
import json
import logging
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..benchmark import prompts as benchmark_prompts
from ..benchmark import schema
from ..config_file import read_yaml, shipped_file
from ..data.manifest import LABEL_FIELDS, Clip
from ..data.samplers import seeded_random
from ..model.inputs import MODALITIES
from ..nano import language, select
from ..utils import InputError, decoded, sha256_of_file

logger = logging.getLogger(__name__)

# Upper end of each word's range; the words and the ends are our choice.
VALENCE_WORDS = (
    (-0.6, "very negative"),
    (-0.2, "negative"),
    (0.2, "neutral"),
    (0.6, "positive"),
    (1.0, "very positive"),
)
AROUSAL_WORDS = ((-0.6, "very low"), (-0.2, "low"), (0.2, "moderate"), (0.6, "high"), (1.0, "very high"))
DERIVED_FIELDS = (
    "caption_sentence",
    "emotion_shares",
    "valence_word",
    "valence_number",
    "arousal_word",
    "arousal_number",
)
"""What a template may name beside the labels themselves: each is made of the label that it begins with."""

# Stands for a label name in braces, which may become any words. No text holds it.
_ANY = "\ue000"


# ---- prompts of stage 1


class Prompt(NamedTuple):
    """A prompt for the teacher, and of which kind it is."""

    kind: str
    text: str


class PromptSource(NamedTuple):
    """Prompts for stage 1. It is given no clip, so no label can leak in.

    Args:
        draw: (generator, n) -> n prompts.
        identity: text that is the same for equal sources, for hashes.
    """

    draw: Callable[[np.random.Generator, int], list[Prompt]]
    identity: str

    def prompt(self, seed: int, clip_id: str, slot: int) -> Prompt:
        """The prompt of a clip's response number `slot`, which depends on nothing but these."""
        return self.draw(seeded_random(seed, "prompt", clip_id), slot + 1)[slot]


def prompt_source(prompts: str | Sequence[str] | Mapping[str, Sequence[str]]) -> PromptSource:
    """The teacher's prompts.

    Args:
        prompts: kinds of prompts, each with several wordings, `{mood: [...], scene: [...]}`, or a YAML file with them,
            or the name of one that the package has (`art`); a list of prompts, each with a meaning of its own, or a
            text file with one a line; or `nano`.

    Raises:
        InputError: a file or a list that holds no prompts, or a prompt of the benchmark.
    """
    if prompts == "nano":

        def nano(rng: np.random.Generator, n: int) -> list[Prompt]:
            return [Prompt(*language.stage1_prompt(rng)) for _ in range(n)]

        # The whole language file is hashed: its prompts are made by code.
        return PromptSource(nano, f"nano {sha256_of_file(Path(language.__file__))}")
    if isinstance(prompts, str):
        file = _file_of("prompts", prompts)
        is_yaml = file.suffix in (".yaml", ".yml")
        prompts = read_yaml(file) if is_yaml else _read_lines(file)
    if isinstance(prompts, Mapping):
        lines = [Prompt(str(k), text) for k, texts in prompts.items() for text in _clean(texts, f"prompts.{k}")]
    else:
        lines = [Prompt("prompt", text) for text in _clean(prompts, "prompts")]
    refuse_benchmark_texts((f"config field `prompts`, kind {line.kind}", line.text) for line in lines)

    def draw(rng: np.random.Generator, n: int) -> list[Prompt]:
        # Without repeats as long as there are prompts left.
        order = np.concatenate([rng.permutation(len(lines)) for _ in range(-(-n // len(lines)))])
        return [lines[i] for i in order[:n]]

    return PromptSource(draw, json.dumps(lines, ensure_ascii=False))


def _file_of(field: str, name: str) -> Path:
    try:
        return shipped_file(field, name, (".yaml", ".yml"))
    except InputError as error:
        raise InputError(f"config field `{field}` is {name!r}, which is not `nano` and no file: {error}") from None


def _read_lines(file: Path) -> list[str]:
    try:
        return decoded(file.read_bytes()).splitlines()
    except ValueError as error:
        raise InputError(f"{file} is no text file: {error}.") from None


def _clean(prompts: Any, field: str) -> list[str]:
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"config field `{field}` is {prompts!r}; a list of prompts, in quotes, is needed.")
    texts = [text.strip() for text in prompts if text.strip()]
    if not texts:
        raise InputError(f"config field `{field}` holds no prompt.")
    return texts


# ---- instructions of stage 2


class Instruction(NamedTuple):
    """A prompt about a clip, of which kind it is, and its answer."""

    kind: str
    prompt: str
    answer: str


class NanoInstructions:
    """The nano world's language."""

    needed = ("content", "emotion", "valence", "arousal", "art_form")

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        return Instruction(*language.instruction(rng, label_row(clip)))

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        """Raises an InputError for a prompt of the benchmark."""
        refuse_benchmark_texts([("the nano instructions", text) for text in language.INSTRUCTION_PROMPTS])


@dataclass(frozen=True)
class Entry:
    """Prompts of one meaning, the answers that fit them all, what both name of a clip, the modalities it suits."""

    where: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    names: frozenset[str]
    modalities: tuple[str, ...]


class Templates:
    """Kinds of prompts with several wordings.

    A clip's prompt is one that its labels can answer: first a kind is drawn among those that are possible, then one of
    the kind's prompts, then an answer that fits it.

    Args:
        kinds: {kind: [{prompts: [...], answers: [...], modalities: [...]}, ...]}; without `modalities` it suits all.
            Texts may name, in braces, labels, what is made of them (`DERIVED_FIELDS`), and columns of the manifest.
        where: the file, for errors.

    Raises:
        InputError: naming the entry and what is allowed.
    """

    needed: tuple[str, ...] = ()

    def __init__(self, kinds: Any, where: str):
        self.where = where
        if not isinstance(kinds, dict) or not kinds:
            raise InputError(f"{where} holds {type(kinds).__name__}; kinds of prompts are needed, {{emotion: [...]}}.")
        self.kinds: dict[str, list[Entry]] = {}
        self._usable: dict[tuple[frozenset[str], str], dict[str, list[Entry]]] = {}
        for kind, entries in kinds.items():
            if not isinstance(entries, list) or not entries:
                raise InputError(f"{where}: kind `{kind}` is {entries!r}; a list of {{prompts, answers}} is needed.")
            self.kinds[str(kind)] = [
                _parse_entry(entry, f"{where}: kind `{kind}`, entry {number}")
                for number, entry in enumerate(entries, start=1)
            ]
        self.entries = [entry for of_kind in self.kinds.values() for entry in of_kind]
        self.names = {name for entry in self.entries for name in entry.names}

    def usable(self, row: Mapping[str, Any], modality: str) -> dict[str, list[Entry]]:
        """The entries that suit a clip, see `label_row`, on a modality, by kind."""
        known = frozenset(name for name in self.names if row.get(name) is not None)
        if (known, modality) not in self._usable:
            found = {
                kind: [entry for entry in entries if modality in entry.modalities and entry.names <= known]
                for kind, entries in self.kinds.items()
            }
            self._usable[known, modality] = {kind: entries for kind, entries in found.items() if entries}
        return self._usable[known, modality]

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        row = label_row(clip)
        kinds = self.usable(row, modality)
        kind = _pick(rng, list(kinds))
        entry, prompt = _pick(rng, [(entry, prompt) for entry in kinds[kind] for prompt in entry.prompts])
        return Instruction(kind, prompt.format(**row), _pick(rng, entry.answers).format(**row))

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        """Check that templates and clips fit.

        Raises:
            InputError: a name that no clip has, clips that no template fits on one of their modalities (clip id ->
                names), or a prompt of the benchmark.
        """
        allowed = (*LABEL_FIELDS, *DERIVED_FIELDS, *sorted({name for clip in clips for name in clip.extra}))
        for entry in self.entries:
            if unknown := sorted(entry.names.difference(allowed)):
                raise InputError(
                    f"{entry.where} uses {{{unknown[0]}}}; allowed are {', '.join(allowed)}. Write {{{{ and }}}} for "
                    "braces."
                )
        for clip in clips:
            row = label_row(clip)
            for modality in modalities[clip.id]:
                if not self.usable(row, modality):
                    has = [name for name in allowed if name not in DERIVED_FIELDS and row.get(name) is not None]
                    needs = {", ".join(sorted(entry.names)) for entry in self.entries if modality in entry.modalities}
                    raise InputError(
                        f"clip {clip.id!r} has the labels {', '.join(has) or 'none'}, and no template of {self.where} "
                        f"for the modality {modality} does with them; allowed is any of: "
                        f"{'; '.join(sorted(needs)) or 'none'}. Add a label to the manifest, or templates that need "
                        "none."
                    )
        refuse_benchmark_texts(self._prompts(clips))

    def _prompts(self, clips: Sequence[Clip]) -> Iterator[tuple[str, str]]:
        """(where it stands, prompt); as a template where it names labels alone, else as each clip has it."""
        for entry in self.entries:
            for prompt in entry.prompts:
                names = _names_in(prompt, entry.where)
                if names.issubset((*LABEL_FIELDS, *DERIVED_FIELDS)):
                    yield entry.where, prompt
                    continue
                for clip in clips:
                    row = label_row(clip)
                    if all(row.get(name) is not None for name in names):
                        yield f"{entry.where}, clip {clip.id!r}", prompt.format(**row)


InstructionSource = NanoInstructions | Templates


def instruction_source(instructions: str | Sequence[dict[str, str]]) -> InstructionSource:
    """Prompts and answers of stage 2.

    Args:
        instructions: a YAML file of templates, or the name of one that the package has (`art`); a list of {prompt,
            answer}; or `nano`.

    Raises:
        InputError: naming the file, the entry and what is allowed.
    """
    if instructions == "nano":
        return NanoInstructions()
    if isinstance(instructions, str):
        file = _file_of("instructions", instructions)
        return Templates(read_yaml(file), str(file))
    for number, pair in enumerate(instructions, start=1):
        if not isinstance(pair, dict) or set(pair) != {"prompt", "answer"}:
            raise InputError(f"`instructions` entry {number} is {pair!r}; allowed are the keys `prompt` and `answer`.")
    entries = [{"prompts": [pair["prompt"]], "answers": [pair["answer"]]} for pair in instructions]
    return Templates({"listed": entries}, "`instructions`")


def label_row(clip: Clip) -> dict[str, Any]:
    """What templates may name, of a clip: its labels (of a distribution over emotions the strongest), what is made of
    them, and the manifest's other columns; None where the clip has no such label."""
    row: dict[str, Any] = {name: value for name, value in clip.extra.items() if value != ""}
    row |= dict.fromkeys(DERIVED_FIELDS) | {name: getattr(clip, name) for name in LABEL_FIELDS}
    row["emotion"] = emotion_of(clip)
    if isinstance(clip.emotion, dict):
        whole = sum(clip.emotion.values())
        strongest = sorted(clip.emotion.items(), key=lambda pair: -pair[1])[:3]
        row["emotion_shares"] = ", ".join(f"{name} ({share / whole:.0%})" for name, share in strongest if share > 0)
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


def _parse_entry(entry: Any, where: str) -> Entry:
    if not isinstance(entry, dict) or not {"prompts", "answers"} <= set(entry) <= {"prompts", "answers", "modalities"}:
        raise InputError(f"{where} is {entry!r}; `prompts` and `answers` are needed, `modalities` is allowed.")
    modalities = entry.get("modalities", list(MODALITIES))
    if not isinstance(modalities, list) or not modalities or not set(map(str, modalities)) <= set(MODALITIES):
        raise InputError(f"{where}: `modalities` is {modalities!r}; allowed is a list of {', '.join(MODALITIES)}.")
    names: set[str] = set()
    for field in ("prompts", "answers"):
        texts = entry[field]
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError(f"{where}: `{field}` is {texts!r}; a list of texts is needed, in quotes.")
        names = names.union(*(_names_in(text, f"{where}: `{field}`") for text in texts))
    return Entry(where, tuple(entry["prompts"]), tuple(entry["answers"]), frozenset(names), tuple(modalities))


def _names_in(text: str, where: str) -> set[str]:
    """Names in braces of a template."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        text.format(**{name: 0.5 if name in ("valence", "arousal") else "x" for name in names})
    except (ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{where}: {text!r} is not a template ({error}).") from None
    return names


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


# ---- no prompt of the benchmark in training: a score would show how well the model was drilled


def refuse_benchmark_texts(prompts: Iterable[tuple[str, str]], texts: Mapping[str, str] | None = None) -> None:
    """Refuses prompts that are the benchmark's.

    Case, punctuation, white space and lettered options do not count. A prompt is refused where it is a benchmark's
    text, or holds it as whole sentences ("Look closely. QUESTION").

    Args:
        prompts: (where it stands, prompt); label names in braces may become any words.
        texts: what must not be used, and whose it is; `benchmark_texts` if not given.

    Raises:
        InputError: naming the prompt, where it stands, and the benchmark's text.
    """
    texts = benchmark_texts() if texts is None else texts
    known = {_sentences(text): text for text in texts}
    known.pop((), None)
    lengths = {len(sentences) for sentences in known}
    for where, prompt in prompts:
        sentences = _sentences(_with_any(prompt))
        for start, length in itertools.product(range(len(sentences)), lengths):
            part = sentences[start : start + length]
            # A template is compared with every text, what is plain is looked up: it may be millions of clips.
            if any(_ANY in sentence for sentence in part):
                found = [text for other, text in known.items() if _may_be(part, other)]
            else:
                found = [known[part]] if part in known else []
            if found:
                raise InputError(
                    f"{where}: the prompt {prompt!r} has the words of {texts[found[0]]}: {found[0]!r}. Reword it: a "
                    "model that was trained on the benchmark's questions cannot be measured by them."
                )


def benchmark_texts() -> dict[str, str]:
    """What no instruction may hold, and whose it is: the embedded set's questions, those of the selected benchmark,
    and the request for a letter that ends every multiple-choice prompt of both.

    The selected benchmark is read where that needs no network; where it cannot be, a warning is logged.
    """
    texts = {benchmark_prompts.ANSWER_REQUEST: "the benchmark's multiple-choice prompt"}
    texts |= {question: "the embedded nano benchmark" for question, _ in language.CHOICES.values()}
    choice = select.current_choice()
    if choice.name in (None, select.NANO_NAME):
        return texts
    try:
        folder = select.find(choice.name, local_files_only=True)
        questions = [item.question for item in schema.load(folder).items]
    except (InputError, OSError, ValueError) as error:
        logger.warning(
            "Instructions are not compared with the questions of the benchmark %s, chosen by %s: %s",
            choice.name, choice.origin, error,
        )  # fmt: skip
        return texts
    return dict.fromkeys(questions, f"the benchmark {choice.name}") | texts


def _with_any(template: str) -> str:
    """A template with every name in braces as `_ANY`; text that is none as it is."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return template
    return "".join(text + (_ANY if name is not None else "") for text, name, _, _ in parts)


def _sentences(text: str) -> tuple[str, ...]:
    """Sentences and lines as lower-case words, without lettered options."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*[(\[]?[A-Z][.):\]]\s+\S", line)]
    parts = [part for line in lines for part in re.split(r"[.?!:;\u3002\uff1f\uff01]+", line)]
    words = [" ".join(re.findall(rf"[\w{_ANY}]+", part.casefold())) for part in parts]
    return tuple(filter(None, words))


def _may_be(part: Sequence[str], sentences: Sequence[str]) -> bool:
    """Whether sentences of a template may become these; one of labels alone may become anything, and is not."""
    if len(part) != len(sentences) or not all(sentence.replace(_ANY, "").strip() for sentence in part):
        return False
    patterns = [".+".join(map(re.escape, sentence.split(_ANY))) for sentence in part]
    return all(map(re.fullmatch, patterns, sentences))
