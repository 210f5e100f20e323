"""The language of the nano world: captions, questions and their answers, and the prompts of both training stages.

A row is a manifest row or any mapping with `content`, `emotion`, `valence`, `arousal` and `art_form`.
"""

from collections.abc import Mapping

import numpy as np

from ..benchmark.prompts import ANSWER_REQUEST, multiple_choice
from .clips import ART_FORMS, CONTENTS, EMOTIONS

LETTERS = ("A", "B", "C", "D")
CONTENT_QUESTION = "Which subject is this?"
EMOTION_QUESTION = "Which emotion does this artwork express?"

VALENCE_WORDS = ("pleasant", "unpleasant")
ENERGY_WORDS = ("high", "low")
CAPTION_PROMPTS = ("Describe this artwork.", "What is this?", "Write a caption.")
_CAPTIONS = (
    "{article} {emotion} {form} of {content}.",
    "{form_article} {form} of {content}, {emotion} and {valence}.",
    "This {form} expresses {article} {emotion} mood with {content}.",
)
_UNCOUNTED = ("rain", "waves", "fire")  # contents without an article


def valence_word(valence: float) -> str:
    return VALENCE_WORDS[0] if valence >= 0 else VALENCE_WORDS[1]


def energy_word(arousal: float) -> str:
    return ENERGY_WORDS[0] if arousal >= 0 else ENERGY_WORDS[1]


# question -> (row -> one-word answer)
OPEN_QUESTIONS = {
    CONTENT_QUESTION: lambda row: row["content"],
    EMOTION_QUESTION: lambda row: row["emotion"],
    "Is it pleasant or unpleasant?": lambda row: valence_word(row["valence"]),
    "Is its energy high or low?": lambda row: energy_word(row["arousal"]),
}
# aspect -> (question, labels)
CHOICES = {"content": (CONTENT_QUESTION, CONTENTS), "emotion": (EMOTION_QUESTION, EMOTIONS)}
# Prompts of stage 2: nothing in the benchmark's words. The backbone was taught all of it but `INSTRUCTION_CHOICE`, the
# question and the request of a multiple choice, which stand in the place of words that it was taught.
INSTRUCTION_CHOICE = ("What is this?", "Describe with the option's letter.")
INSTRUCTION_QUESTIONS = tuple(
    question for question in OPEN_QUESTIONS if question not in (CONTENT_QUESTION, EMOTION_QUESTION)
)
INSTRUCTION_PROMPTS = (*CAPTION_PROMPTS, *INSTRUCTION_QUESTIONS, "\n".join(INSTRUCTION_CHOICE))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(row: Mapping, template: int = 0) -> str:
    """One sentence on a clip; `template` picks the wording."""
    form, content = row["art_form"].replace("_", " "), row["content"]
    text = _CAPTIONS[template].format(
        article=_article(row["emotion"]),
        form_article=_article(form),
        emotion=row["emotion"],
        form=form,
        content=content if content in _UNCOUNTED else f"a {content}",
        valence=valence_word(row["valence"]),
    )
    return text[0].upper() + text[1:]


def _pick(rng: np.random.Generator, sequence):
    return sequence[int(rng.integers(len(sequence)))]


def draw_options(rng, labels, answer: str | None = None) -> list[str]:
    """Four different labels in random order; with `answer`, one of them is it."""
    if answer is None:
        return [labels[i] for i in rng.permutation(len(labels))[: len(LETTERS)]]
    others = [label for label in labels if label != answer]
    options = [others[i] for i in rng.permutation(len(others))[: len(LETTERS) - 1]]
    options.insert(int(rng.integers(len(LETTERS))), answer)
    return options


def choice_instruction(
    rng: np.random.Generator, row: Mapping, aspect: str | None = None, words: tuple[str, str] | None = None
) -> tuple[str, str]:
    """A multiple-choice prompt and the letter of its answer; question and request are the benchmark's, or `words`."""
    aspect = aspect or _pick(rng, tuple(CHOICES))
    question, labels = CHOICES[aspect]
    question, request = words or (question, ANSWER_REQUEST)
    options = draw_options(rng, labels, row[aspect])
    return multiple_choice(question, options, request), LETTERS[options.index(row[aspect])]


def open_instruction(rng: np.random.Generator, row: Mapping) -> tuple[str, str]:
    """A free question and its one-word answer."""
    question = _pick(rng, tuple(OPEN_QUESTIONS))
    return question, OPEN_QUESTIONS[question](row)


def caption_instruction(rng: np.random.Generator, row: Mapping) -> tuple[str, str]:
    """A request for a caption and a caption; the prompt decides the wording, so that the answer is determined."""
    template = int(rng.integers(len(CAPTION_PROMPTS)))
    return CAPTION_PROMPTS[template], caption(row, template)


def instruction(rng: np.random.Generator, row: Mapping) -> tuple[str, str, str]:
    """(kind, prompt, answer) for stage 2, from the labels of `row`: choices, captions and free questions."""
    kind = rng.random()
    if kind < 0.5:
        aspect = _pick(rng, tuple(CHOICES))
        return f"{aspect}_choice", *choice_instruction(rng, row, aspect, INSTRUCTION_CHOICE)
    if kind < 0.8:
        return "caption", *caption_instruction(rng, row)
    question = _pick(rng, INSTRUCTION_QUESTIONS)
    return "valence_arousal", question, OPEN_QUESTIONS[question](row)


def stage1_prompt(rng: np.random.Generator) -> tuple[str, str]:
    """Kind and text of a prompt for stage 1. No clip and no label goes in: options are drawn at random."""
    kind = rng.random()
    if kind < 0.2:
        question, labels = CHOICES[_pick(rng, tuple(CHOICES))]
        return "choice", multiple_choice(question, draw_options(rng, labels))
    # A caption tells content and emotion in one response, so it teaches the most a step.
    if kind < 0.4:
        return "question", _pick(rng, tuple(OPEN_QUESTIONS))
    return "caption", _pick(rng, CAPTION_PROMPTS)


def corpus() -> list[str]:
    """Every prompt and answer wording once: what the tokenizer is trained on."""
    texts = []
    for art_form in ART_FORMS:
        for content in CONTENTS:
            for emotion in EMOTIONS:
                for template in range(len(_CAPTIONS)):
                    for valence in (0.5, -0.5):
                        row = {"art_form": art_form, "content": content, "emotion": emotion, "valence": valence}
                        texts.append(caption(row, template))
    texts += CAPTION_PROMPTS
    texts += OPEN_QUESTIONS
    texts += [*CONTENTS, *EMOTIONS, *VALENCE_WORDS, *ENERGY_WORDS]
    for question, labels in CHOICES.values():
        for shift in range(len(labels)):
            texts.append(multiple_choice(question, [labels[(shift + k) % len(labels)] for k in range(len(LETTERS))]))
    return texts
