"""No question of the benchmark among what a model is trained on: else a score would tell how well it was drilled."""

import logging
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..benchmark import prompts, schema
from ..nano import select
from ..utils import InputError

logger = logging.getLogger(__name__)

# Stands for a label name in braces, which may become any words. It survives `_words`, and no text holds it.
_ANY = "\ue000"


class BenchmarkText(NamedTuple):
    """A text that training must not use, and whose it is, in words."""

    text: str
    origin: str


def refuse_benchmark_texts(asked: Iterable[tuple[str, str]], texts: Iterable[BenchmarkText]) -> None:
    """Refuses prompts that ask what the benchmark asks, in its words.

    Case, punctuation, white space and lettered options do not count. A prompt is refused where it is a benchmark's
    text, or holds it as whole sentences ("Look closely. QUESTION").

    Args:
        asked: (where it stands, prompt); label names in braces may become any words.
        texts: what must not be asked.

    Raises:
        InputError: naming the prompt, where it stands, and the benchmark's text.
    """
    known: dict[str, list[tuple[list[str], BenchmarkText]]] = {}
    every: list[tuple[list[str], BenchmarkText]] = []
    for text in texts:
        if sentences := _sentences(text.text):
            known.setdefault(sentences[0], []).append((sentences, text))
            every.append((sentences, text))
    seen: set[str] = set()
    for where, prompt in asked:
        if prompt in seen:
            continue
        seen.add(prompt)
        found = _sentences(_with_any(prompt))
        for start, sentence in enumerate(found):
            # A template is compared with every text, what is plain is looked up: it may be millions of samples.
            candidates = every if any(_ANY in part for part in found) else known.get(sentence, [])
            for sentences, text in candidates:
                if _match(found[start : start + len(sentences)], sentences):
                    raise InputError(
                        f"{where}: the prompt {prompt!r} asks in the words of {text.origin}: {text.text!r}. Reword "
                        "it: a model that was trained on the benchmark's questions cannot be measured by them."
                    )


def benchmark_texts() -> list[BenchmarkText]:
    """What no instruction may ask: the embedded set's questions, those of the benchmark in force, and the request for
    a letter that ends every multiple-choice prompt of both.

    The benchmark in force is read where that needs no network; where it cannot be, a warning says so.
    """
    return [BenchmarkText(prompts.ANSWER_REQUEST, "the benchmark's multiple-choice prompt"), *benchmark_questions()]


def benchmark_questions() -> list[BenchmarkText]:
    """The questions alone, see `benchmark_texts`."""
    from ..nano.language import CHOICES

    texts = [BenchmarkText(question, "the embedded nano benchmark") for question, _ in CHOICES.values()]
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
    parts = (_words(part) for line in lines for part in re.split(r"[.?!:;\u3002\uff1f\uff01]+", line))
    return [part for part in parts if part]


def _words(text: str) -> str:
    return " ".join(re.findall(rf"[\w{_ANY}]+", text.casefold()))


def _match(found: list[str], sentences: list[str]) -> bool:
    return len(found) == len(sentences) and all(map(_may_be, found, sentences))


def _may_be(pattern: str, sentence: str) -> bool:
    """Whether a sentence of a template may become `sentence`; one that is nothing but labels says nothing."""
    literals = pattern.split(_ANY)
    if not any(map(str.strip, literals)):
        return False
    return re.fullmatch(".+".join(map(re.escape, literals)), sentence) is not None
