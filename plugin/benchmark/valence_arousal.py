"""Valence and arousal asked as numbers: the prompt, and the reading of an answer. Both are our choice."""

import re
import unicodedata

QUESTION = (
    "Which emotion does this artwork express, in two numbers from -1 to 1?\n"
    "Valence: -1 is very unpleasant, 0 is neutral, 1 is very pleasant.\n"
    "Arousal: -1 is very calm, 0 is neutral, 1 is very excited."
)
ANSWER_REQUEST = "Answer in the form: valence: NUMBER, arousal: NUMBER"

_MINUS = str.maketrans(dict.fromkeys("−–‒﹣－", "-"))
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d+)?|\.\d+)")
# "-1 and 1" by itself may be an answer; "between -1 and 1" is not.
_SCALE = re.compile(
    r"(?:(?:from|between) ?[\[(]?-1(?:\.0+)? ?and|[\[(]?-1(?:\.0+)? ?(?:to|until|through|\.\.\.?)) ?\+?1(?:\.0+)?"
    r"(?![\d.,]*\d)[\])]?"
)
_NAMES = ("valence", "arousal")
_FARTHEST = 40  # characters between a word and its number


def valence_arousal_prompt() -> str:
    """The question about valence and arousal, its scales, and the request for two numbers."""
    return f"{QUESTION}\n{ANSWER_REQUEST}"


def parse_valence_arousal(response: str | None) -> tuple[float, float] | None:
    """(valence, arousal) that a response states, each in [-1, 1], or None where it does not state exactly one of each.

    Rules, the first that fits counts:
      1. A number stands behind the word "valence" and one behind "arousal": "valence: 0.5, arousal: -0.2",
         '{"valence": 0.5, "arousal": -0.2}', "Arousal is about 0.3 and valence about .5". A word with several
         different numbers states none.
      2. Exactly two numbers, and both words or neither: "0.5, -0.2", "(0.5, -0.2)", "Valence and arousal are 0.5 and
         -0.2". Valence comes first, as it is asked for, unless the word "arousal" does.

    The question's own words and a repeated scale ("from -1 to 1") are no answer. A number beyond [-1, 1] makes the
    answer None and is not clipped: it is of another scale. So do a percentage, a range ("0.3-0.5"), and a dash that is
    set off from its number ("- 0.5") and may be a minus or not. A decimal comma is read ("0,5"), and a minus sign of
    any kind.
    """
    text = unicodedata.normalize("NFKC", response or "").translate(_MINUS)
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)
    for line in QUESTION.splitlines():
        text = text.replace(line, " ")
    # One blank at a time from here on, so that no pattern below has to look far.
    text = " ".join(re.sub(r"[*_`#\"']", "", text).lower().split())
    text = " ".join(_SCALE.sub(" ", text).split())
    numbers = [(match.start(), _value(text, match)) for match in _NUMBER.finditer(text)]
    named = [_behind(name, text, numbers) for name in _NAMES]
    if all(named):
        if any(len(values) > 1 for values in named):
            return None
        valence, arousal = named[0].pop(), named[1].pop()
    else:
        places = [text.find(name) for name in _NAMES]
        if len(numbers) != 2 or len([place for place in places if place >= 0]) == 1:
            return None
        valence, arousal = (value for _, value in (numbers if places[0] <= places[1] else numbers[::-1]))
    if valence is None or arousal is None or max(abs(valence), abs(arousal)) > 1:
        return None
    return valence, arousal


def _behind(name: str, text: str, numbers: list[tuple[int, float | None]]) -> set[float | None]:
    """The values of the numbers that stand behind `name`, None for one that cannot be read."""
    values = set()
    for match in re.finditer(name, text):
        place, value = next((number for number in numbers if number[0] >= match.end()), (len(text), None))
        between = text[match.end() : place]
        if place < len(text) and len(between) <= _FARTHEST and not re.search(rf"[.;]|{'|'.join(_NAMES)}", between):
            values.add(value)
    return values


def _value(text: str, match: re.Match) -> float | None:
    """The number at `match`, or None where its sign or its digits can be read in two ways."""
    number, before = match[0], text[max(0, match.start() - 2) : match.start()]
    behind = text[match.end() : match.end() + 2]
    signed = number[0] in "+-"
    # "- 0.5" may be a dash, "valence-0.5" a hyphen, "0.3-0.5" is a range; "1.2.3", "50%", "1e-3" are no such numbers.
    if before.endswith(".") or (not signed and re.search(r"[+-]\s*$", before)):
        return None
    if signed and re.search(r"[\w)\]]$", before) or re.match(r"[\w%]|\s+%|-[\d.]", behind):
        return None
    if re.match(r"\.\d", behind) or ("," in number and re.match(r",\d", behind)):
        return None
    return float(number.replace(",", "."))
