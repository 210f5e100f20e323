"""A multiple-choice item as text: its prompt, and the reading of an answer."""

import re
from collections.abc import Sequence

ANSWER_REQUEST = "Answer with the option's letter."
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def multiple_choice(question: str, options: Sequence[str], request: str = ANSWER_REQUEST) -> str:
    """The question, one lettered line an option, and the request for a letter."""
    lines = [question, *(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))]
    return "\n".join([*lines, request])


def letter_of(options: Sequence[str], answer: str) -> str:
    """The letter under which `multiple_choice` shows `answer`."""
    return _LETTERS[list(options).index(answer)]


def parse_choice(response: str, options: Sequence[str]) -> str | None:
    """The option that a response names, or None where it names none or more than one.

    Rules, the first that fits counts; all are our choice and need no judge model:
      1. The response is one letter, with or without brackets, punctuation or a leading "answer:": "B", "(b)",
         "**B.**", "The answer is B".
      2. It starts with an upper-case letter that is set off by punctuation: "B. joyful", "(B) joyful", "B: joyful".
      3. It is the text of one option, in any case and punctuation.
      4. It holds exactly one option's text as whole words, or exactly one set-off letter such as "(B)" or "option B".
    A letter beyond the options names none.
    """
    text = re.sub(r"[*_`#\"]", "", response or "").strip()
    if not text:
        return None
    letters = _LETTERS[: len(options)]
    lead = r"(?:the\s+)?(?:correct\s+|best\s+|final\s+)?(?:answer|option|choice)\s*(?:is|:|=)?\s*(?:option\s+)?:?\s*"
    alone = re.fullmatch(rf"(?:{lead})?[\[(<]?([A-Za-z])[\])>]?\s*[.:,;!]?", text, re.IGNORECASE)
    if alone:
        return _option_at(alone[1], letters, options)
    set_off = re.match(rf"(?:{lead})?(?:[\[(<]([A-Za-z])[\])>]|([A-Z])\s*[.:,;)\n])", text, re.IGNORECASE)
    if set_off and (set_off[1] or set_off[2].isupper()):
        return _option_at(set_off[1] or set_off[2], letters, options)
    words = _words(text)
    exact = [option for option in options if _words(option) == words]
    if len(exact) == 1:
        return exact[0]
    # Padded with blanks, so that only whole words are found.
    named = [option for option in options if _words(option) and f" {_words(option)} " in f" {words} "]
    # "calm sea" also names "calm": the longer option is meant.
    named = [a for a in named if not any(a != b and f" {_words(a)} " in f" {_words(b)} " for b in named)]
    marked = re.findall(r"[\[(]([A-Za-z])[\])]|\b(?:option|answer|choice)\s*(?:is|:)?\s*([A-Z])\b", text)
    chosen = {_option_at(a or b, letters, options) for a, b in marked} - {None}
    candidates = chosen or set(named)
    return candidates.pop() if len(candidates) == 1 else None


def _option_at(letter: str, letters: str, options: Sequence[str]) -> str | None:
    position = letters.find(letter.upper())
    return options[position] if position >= 0 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
