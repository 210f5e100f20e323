"""Prompts of both stages: the teacher's in stage 1, prompts and answers in stage 2, and none of the benchmark's."""

import json
import logging
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ..benchmark import prompts as benchmark_prompts
from ..benchmark import schema
from ..config_file import shipped_file
from ..data.dataset import MEDIA_OF_MODALITY
from ..data.manifest import LABEL_FIELDS, Clip, media_of, read_chat, text_of
from ..data.samplers import seeded_random
from ..model.inputs import MODALITIES
from ..nano import language, select
from ..utils import InputError, sha256_of_file

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
DERIVED_FIELDS = {
    "caption_sentence": "caption",
    "emotion_shares": "emotion",
    "valence_word": "valence",
    "valence_number": "valence",
    "arousal_word": "arousal",
    "arousal_number": "arousal",
}
"""What a template may name beside the labels themselves, and the label that it is made of."""

# How often another draw is tried where a clip already has the very prompt and answer on a modality.
_TRIES = 20
# Stands for a label name in braces, which may become any words. It survives `_normalised`, and no text holds it.
_ANY = "\ue000"


# ---- prompts of stage 1


class Prompt(NamedTuple):
    """A prompt for the teacher, and of which kind it is."""

    kind: str
    text: str


class PromptSource:
    """Draws prompts for stage 1. It is given no clip, so no label can leak in.

    Args:
        draw: (generator, n) -> n prompts.
        kinds: kind -> prompts of one meaning; empty where none can stand for another.
        identity: text that is the same for equal sources, for hashes.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], list[Prompt]],
        kinds: Mapping[str, Sequence[str]],
        identity: str,
    ):
        self.draw, self.kinds, self.identity = draw, kinds, identity

    def other_wording(self, rng: np.random.Generator, prompt: Prompt) -> str | None:
        """Another prompt of the same kind, or None where there is none."""
        others = [text for text in self.kinds.get(prompt.kind, ()) if text != prompt.text]
        return _pick(rng, others) if others else None


def prompt_source(prompts: str | Sequence[str] | Mapping[str, Sequence[str]]) -> PromptSource:
    """The teacher's prompts.

    Args:
        prompts: kinds of prompts, each with several wordings, `{mood: [...], scene: [...]}`, or a YAML file with them,
            or the name of one that the package has (`art`); a list of prompts, each with a meaning of its own, or a
            text file with one a line; or `nano`.
    """
    if prompts == "nano":

        def nano(rng: np.random.Generator, n: int) -> list[Prompt]:
            return [Prompt(*language.stage1_prompt(rng)) for _ in range(n)]

        # The whole language file is hashed: its prompts are made by code.
        return PromptSource(nano, {}, f"nano {sha256_of_file(Path(language.__file__))}")
    if isinstance(prompts, str):
        prompts = _read_prompts(prompts)
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


def _read_prompts(name: str) -> Any:
    try:
        file = shipped_file("prompts", name, (".yaml", ".yml"))
    except InputError as error:
        raise InputError(f"config field `prompts` is {name!r}, not `nano` and no file of prompts: {error}") from None
    return _read_yaml(file) if file.suffix in (".yaml", ".yml") else file.read_text(encoding="utf-8").splitlines()


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None


def _clean(prompts: Any, field: str) -> list[str]:
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        raise InputError(f"config field `{field}` is {prompts!r}; a list of prompts is needed.")
    for text in prompts:
        if not isinstance(text, str):
            raise InputError(f"config field `{field}` holds {text!r}; put prompts in quotes.")
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


class InstructionSource:
    """Draws an instruction about a clip, on a modality.

    Args:
        needed: the labels that every clip must have.
    """

    needed: tuple[str, ...] = ()

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        raise NotImplementedError

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        """Raises an InputError for clips that no instruction fits on one of their modalities (clip id -> names)."""

    def prompts(self) -> Iterator[tuple[str, str]]:
        """Yields (where it stands, prompt or template)."""
        raise NotImplementedError


class NanoInstructions(InstructionSource):
    """The nano world's language."""

    needed = ("content", "emotion", "valence", "arousal", "art_form")

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        return Instruction(*language.instruction(rng, label_row(clip)))

    def prompts(self) -> Iterator[tuple[str, str]]:
        for prompt in language.INSTRUCTION_PROMPTS:
            yield "the nano instructions", prompt


@dataclass(frozen=True)
class Entry:
    """Prompts of one meaning, the answers that fit them all, the labels that both name, the modalities it suits."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    names: frozenset[str]
    modalities: tuple[str, ...] = MODALITIES


class Templates(InstructionSource):
    """Kinds of prompts with several wordings.

    A clip's prompt is one that its labels can answer: first a kind is drawn among those that are possible, then one of
    the kind's prompts, then an answer that fits it.

    Args:
        kinds: {kind: [{prompts: [...], answers: [...], modalities: [...]}, ...]}; without `modalities` it suits all.
        where: the file, for errors.
    """

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

    def usable(self, clip: Clip, modality: str) -> dict[str, list[Entry]]:
        """The entries that suit a clip on a modality, by kind."""
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
            for number, entry in enumerate(entries, start=1):
                for prompt in entry.prompts:
                    yield f"{self.where}: kind `{kind}`, entry {number}", prompt

    def _nothing(self, clip: Clip, modality: str) -> str:
        has = [name for name in LABEL_FIELDS if getattr(clip, name) is not None]
        needs = {", ".join(sorted({DERIVED_FIELDS.get(name, name) for name in entry.names}))
                 for entries in self.kinds.values() for entry in entries if modality in entry.modalities}  # fmt: skip
        return (
            f"clip {clip.id!r} has the labels {', '.join(has) or 'none'}, and no template of {self.where} for the "
            f"modality {modality} does with them; allowed is any of: {'; '.join(sorted(needs)) or 'none'}. Add a "
            "label to the manifest, or templates that need none."
        )


def listed_instructions(pairs: Sequence[Any]) -> Templates:
    """A config's own list of {prompt, answer}: every clip needs every label that they name."""
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict) or set(pair) != {"prompt", "answer"}:
            raise InputError(f"`instructions` entry {number} is {pair!r}; allowed are the keys `prompt` and `answer`.")
    entries = [{"prompts": [pair["prompt"]], "answers": [pair["answer"]]} for pair in pairs]
    source = Templates({"listed": entries}, "`instructions`")
    names = {name for entry in source.kinds["listed"] for name in entry.names}
    source.needed = tuple(sorted({DERIVED_FIELDS.get(name, name) for name in names}))
    return source


def instruction_source(instructions: str | Sequence[dict[str, str]]) -> InstructionSource:
    """Prompts and answers of stage 2.

    Args:
        instructions: a YAML file of templates, or the name of one that the package has (`art`); a `.jsonl` file of
            chat samples; a list of {prompt, answer} with label names in braces; or `nano`.

    Raises:
        InputError: naming the file, the entry and what is allowed.
    """
    if not isinstance(instructions, str):
        return listed_instructions(instructions)
    if instructions == "nano":
        return NanoInstructions()
    if instructions.endswith(".jsonl"):
        return SampledInstructions(instructions)
    try:
        file = shipped_file("instructions", instructions, (".yaml", ".yml"))
    except InputError as error:
        raise InputError(
            f"config field `instructions` is {instructions!r}, which is not `nano`, no list of {{prompt, answer}}, no "
            f".jsonl file of chat samples and no file of templates: {error}"
        ) from None
    return Templates(_read_yaml(file), str(file))


def checked_instructions(instructions: str | Sequence[dict[str, str]]) -> InstructionSource:
    """The source of instructions, once none of its prompts is found to be the benchmark's.

    Raises:
        InputError: see `instruction_source` and `refuse_benchmark_texts`.
    """
    source = instruction_source(instructions)
    refuse_benchmark_texts(source.prompts(), benchmark_texts())
    return source


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


def _shares(emotion: dict[str, float], most: int = 3) -> str:
    """The strongest of a distribution over emotions as text: "calm (70%), sad (30%)"."""
    whole = sum(emotion.values())
    strongest = sorted(emotion.items(), key=lambda pair: -pair[1])[:most]
    return ", ".join(f"{label} ({share / whole:.0%})" for label, share in strongest if share > 0)


def _names_in(text: str, where: str) -> list[str]:
    """Names in braces of a template.

    Raises:
        InputError: it is no template, or names what is no label.
    """
    allowed = (*LABEL_FIELDS, *DERIVED_FIELDS)
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        if unknown := [name for name in names if name not in allowed]:
            raise InputError(
                f"{where} uses {{{unknown[0]}}}; allowed are {', '.join(allowed)}. Write {{{{ and }}}} for braces."
            )
        text.format(**{name: 0.5 if name in ("valence", "arousal") else "x" for name in names})
    except InputError:
        raise
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{where}: {text!r} is not a template ({error}).") from None
    return names


def _parse_entry(entry: Any, where: str) -> Entry:
    allowed = {"prompts", "answers", "modalities"}
    if not isinstance(entry, dict) or not {"prompts", "answers"} <= set(entry) <= allowed:
        raise InputError(f"{where} is {entry!r}; `prompts` and `answers` are needed, `modalities` is allowed.")
    modalities = entry.get("modalities", list(MODALITIES))
    if not isinstance(modalities, list) or not modalities or not set(map(str, modalities)) <= set(MODALITIES):
        raise InputError(f"{where}: `modalities` is {modalities!r}; allowed is a list of {', '.join(MODALITIES)}.")
    names: set[str] = set()
    for field in ("prompts", "answers"):
        texts = entry[field]
        if not isinstance(texts, list) or not texts:
            raise InputError(f"{where}: `{field}` is {texts!r}; a list of texts is needed.")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: `{field}` holds {text!r}; text is needed, in quotes.")
            names |= set(_names_in(text, f"{where}: `{field}`"))
    return Entry(tuple(entry["prompts"]), tuple(entry["answers"]), frozenset(names), tuple(modalities))


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


# ---- instructions as a file of chat samples, to be looked at, edited or translated before they are trained on


def make_samples(
    source: InstructionSource,
    clips: Sequence[Clip],
    modalities: Mapping[str, Sequence[str]],
    per_modality: int,
    seed: int,
    root: str | os.PathLike,
) -> Iterator[dict[str, Any]]:
    """Chat samples of clips: a function of its arguments, and of each clip apart from the others.

    Args:
        source: draws the instructions.
        clips: the clips.
        modalities: clip id -> the modalities of its samples.
        per_modality: samples of each clip on each modality. They differ as long as the source has other words.
        seed: of the draws.
        root: folder that media paths are written relative to.

    Yields:
        {"id", "clip_id", "modality", "kind", "messages"}, the last in the messages format: the user's turn with
        media and text, and the assistant's. Media that the manifest embeds have no path.
    """
    for clip in clips:
        for modality in modalities[clip.id]:
            drawn: set[Instruction] = set()
            for number in range(per_modality):
                for attempt in range(_TRIES):
                    rng = seeded_random(seed, "sample", clip.id, modality, number, attempt)
                    instruction = source(rng, clip, modality)
                    if instruction not in drawn:
                        break
                drawn.add(instruction)
                user = [*_media_parts(clip, modality, root), {"type": "text", "text": instruction.prompt}]
                answer = [{"type": "text", "text": instruction.answer}]
                yield {
                    "id": f"{clip.id}-{modality}-{number}",
                    "clip_id": clip.id,
                    "modality": modality,
                    "kind": instruction.kind,
                    "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
                }


def _media_parts(clip: Clip, modality: str, root: str | os.PathLike) -> list[dict[str, str]]:
    parts = []
    for medium in MEDIA_OF_MODALITY[modality]:
        kind = "audio" if medium == "audio" else str(clip.visual)
        source = getattr(clip, kind)
        parts.append({"type": kind} | ({"path": os.path.relpath(source, root)} if isinstance(source, str) else {}))
    return parts


class SampledInstructions(InstructionSource):
    """A file of chat samples: for a clip, on a step's modality, one of its samples of that modality.

    Media come from the manifest by `clip_id`; the parts of the messages only show which modality is meant.

    Args:
        file: see `make_samples` for its lines.

    Raises:
        InputError: naming the line.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)
        self.samples: dict[tuple[str, str], list[Instruction]] = {}
        self.lines: dict[str, str] = {}  # clip id -> where it is first named
        for where, row in read_chat(self.file):
            clip_id, modality, instruction = _parse_sample(row, where)
            self.samples.setdefault((clip_id, modality), []).append(instruction)
            self.lines.setdefault(clip_id, where)

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        return _pick(rng, self.samples[clip.id, modality])

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        ids = {clip.id for clip in clips}
        for clip_id, where in self.lines.items():
            if clip_id not in ids:
                raise InputError(
                    f"{where}: `clip_id` is {clip_id!r}, which is no clip of the manifest's split. Remove the line, "
                    "or name the manifest and the split that the samples were made of."
                )
        for clip in clips:
            for modality in modalities[clip.id]:
                if (clip.id, modality) not in self.samples:
                    has = ", ".join(name for name in MODALITIES if (clip.id, name) in self.samples)
                    raise InputError(
                        f"{self.file} has no sample of clip {clip.id!r} for the modality {modality} (found: "
                        f"{has or 'none'}), and config field `modalities` takes it. Add one, or set the "
                        "modality's weight to 0."
                    )

    def prompts(self) -> Iterator[tuple[str, str]]:
        for (clip_id, modality), samples in self.samples.items():
            for sample in samples:
                yield f"{self.file}, clip {clip_id!r}, modality {modality}", sample.prompt


def _parse_sample(row: dict[str, Any], where: str) -> tuple[str, str, Instruction]:
    for name in ("clip_id", "modality"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise InputError(f"{where}: `{name}` is {row.get(name)!r}; a text is needed.")
    modality, messages = row["modality"], row["messages"]
    if modality not in MODALITIES:
        raise InputError(f"{where}: `modality` is {modality!r}; allowed are {', '.join(MODALITIES)}.")
    if [message["role"] for message in messages] != ["user", "assistant"]:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"{where}: the roles are {roles}; one turn of the user and one of the assistant are needed.")
    media = media_of(messages)
    if sorted("audio" if part["type"] == "audio" else "visual" for part in media) != sorted(
        MEDIA_OF_MODALITY[modality]
    ):
        raise InputError(
            f"{where}: the user's media are {', '.join(part['type'] for part in media) or 'none'}, and the modality "
            f"{modality} has {' and '.join(MEDIA_OF_MODALITY[modality])}."
        )
    if any(part["type"] == "text" for part in messages[0]["content"][: len(media)]):
        raise InputError(f"{where}: text stands before a medium; the media come first.")
    instruction = Instruction(str(row.get("kind", "sample")), text_of(messages[0]), text_of(messages[1]))
    return row["clip_id"], modality, instruction


# ---- no prompt of the benchmark in training: a score would show how well the model was drilled


class BenchmarkText(NamedTuple):
    """A text that training must not use, and whose it is."""

    text: str
    origin: str


def refuse_benchmark_texts(prompts: Iterable[tuple[str, str]], texts: Iterable[BenchmarkText]) -> None:
    """Refuses prompts that are the benchmark's.

    Case, punctuation, white space and lettered options do not count. A prompt is refused where it is a benchmark's
    text, or holds it as whole sentences ("Look closely. QUESTION").

    Args:
        prompts: (where it stands, prompt); label names in braces may become any words.
        texts: what must not be used.

    Raises:
        InputError: naming the prompt, where it stands, and the benchmark's text.
    """
    known: dict[str, list[tuple[list[str], BenchmarkText]]] = {}
    every: list[tuple[list[str], BenchmarkText]] = []
    for text in texts:
        if sentences := _sentences(text.text):
            known.setdefault(sentences[0], []).append((sentences, text))
            every.append((sentences, text))
    checked: set[str] = set()
    for where, prompt in prompts:
        if prompt in checked:
            continue
        checked.add(prompt)
        found = _sentences(_with_any(prompt))
        for start, sentence in enumerate(found):
            # A template is compared with every text, what is plain is looked up: it may be millions of samples.
            candidates = every if any(_ANY in part for part in found) else known.get(sentence, [])
            for sentences, text in candidates:
                part = found[start : start + len(sentences)]
                if len(part) == len(sentences) and all(map(_may_be, part, sentences)):
                    raise InputError(
                        f"{where}: the prompt {prompt!r} has the words of {text.origin}: {text.text!r}. Reword it: a "
                        "model that was trained on the benchmark's questions cannot be measured by them."
                    )


def benchmark_texts() -> list[BenchmarkText]:
    """What no instruction may hold: the embedded set's questions, those of the selected benchmark, and the request for
    a letter that ends every multiple-choice prompt of both.

    The selected benchmark is read where that needs no network; where it cannot be, a warning is logged.
    """
    request = BenchmarkText(benchmark_prompts.ANSWER_REQUEST, "the benchmark's multiple-choice prompt")
    return [request, *benchmark_questions()]


def benchmark_questions() -> list[BenchmarkText]:
    """The questions alone, see `benchmark_texts`."""
    texts = [BenchmarkText(question, "the embedded nano benchmark") for question, _ in language.CHOICES.values()]
    choice = select.current_choice()
    if choice.name in (None, select.NANO_NAME):
        return texts
    try:
        benchmark = schema.load(_local_folder(str(choice.name)))
    except InputError as error:
        logger.warning(
            "Instructions are not compared with the questions of the benchmark %s, chosen by %s: %s",
            choice.name, choice.origin, error,
        )  # fmt: skip
        return texts
    questions = dict.fromkeys(item.question for item in benchmark.items)
    return texts + [BenchmarkText(question, f"the benchmark {choice.name}") for question in questions]


def _local_folder(name: str) -> Path:
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"it is no folder, and the Hub's cache does not hold it ({type(error).__name__}).") from error


def _with_any(template: str) -> str:
    """A template with every name in braces as `_ANY`; text that is none as it is."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return template
    return "".join(text + (_ANY if name is not None else "") for text, name, _, _ in parts)


def _sentences(text: str) -> list[str]:
    """Sentences and lines as lower-case words, without lettered options."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*[(\[]?[A-Z][.):\]]\s+\S", line)]
    parts = (_normalised(part) for line in lines for part in re.split(r"[.?!:;\u3002\uff1f\uff01]+", line))
    return [part for part in parts if part]


def _normalised(text: str) -> str:
    return " ".join(re.findall(rf"[\w{_ANY}]+", text.casefold()))


def _may_be(pattern: str, sentence: str) -> bool:
    """Whether a sentence of a template may become `sentence`; one of labels alone may become anything, and is not."""
    literals = pattern.split(_ANY)
    if not any(map(str.strip, literals)):
        return False
    return re.fullmatch(".+".join(map(re.escape, literals)), sentence) is not None
