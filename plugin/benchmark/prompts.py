"""Prompts of the benchmark and the parsing of answers: multiple choice, and valence and arousal as numbers.

The wording of every prompt and the rules of parsing are our choice.
"""

import re
import unicodedata
from collections.abc import Sequence

ANSWER_REQUEST = "Answer with the option's letter."
# Stands for the answer to an item that the model was not given, since its media could not be read. It is no empty
# answer, and holds no letter that a task of others might take for an option.
MISSING = "<|missing|>"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# All kinds of brackets become round ones, all kinds of apostrophes a straight one. Full-width forms need no entry:
# Unicode's compatibility normalization maps them, and full-width letters, to ASCII.
_BRACKETS = str.maketrans(
    {
        **dict.fromkeys("「『【〔〖⟨〈《«‹[{<", "("),
        **dict.fromkeys("」』】〕〗⟩〉》»›]}>", ")"),
        **dict.fromkeys("‘’‚‛´", "'"),
    }
)
_MARKUP = re.compile(r"\\boxed|\\text|[*_`#$\"“”„‟]")
# Thoughts that a reasoning model shows are no answer; of other tags only the marks go ("<B>" is a bracket).
_TAGS = re.compile(r"<think>.*?</think>|</?[A-Za-z]\w+>", re.DOTALL)
_ANSWER_WORDS = (
    "answer|option|choice|antwort|réponse|respuesta|resposta|risposta|ответ|"
    "答案|答え|回答|正解|选项|選項|選択肢|选|選|정답|답"
)
_LEAD = (
    r"(?i:(?:(?:the|my|die|la|le)\s+)?(?:(?:correct|best|final|right)\s+)?"
    rf"(?:{_ANSWER_WORDS})\s*(?:is|ist|est|es|è|é|是|は)?\s*[:=]?\s*(?:option\s*)?:?\s*)"
)
# "A painting" and "I hear" begin with a word, not with an option's letter.
_NO_WORD = r"(?![A-Za-z'])(?!(?<=[AI])\s+(?!because|since|as\b|and\b|or\b)[a-z'])"
_ALONE = re.compile(rf"(?:{_LEAD})?\(?([A-Za-z])\)?\s*[.:,;!。]?")
_SET_OFF = re.compile(rf"(?:{_LEAD})?(?:\(([A-Za-z])\)|([A-Z])\s*[.:,;)\n。])[.:,;)\s]*")
_MORE_LETTERS = re.compile(rf"(?:{_LEAD})?\(?[A-Z]\)?(?:[\s,/&+]|or\b|and\b)*\(?[A-Z]{_NO_WORD}")
_LISTED = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[).:](?=\s|$)")
_MARKED = re.compile(rf"\(([A-Za-z])\)|(?<![A-Za-z]){_LEAD}([A-Z]){_NO_WORD}")
_CLAUSE_END = re.compile(r"[.;!?\n。！？；]|,(?= (?:and )?(?:not|nor|rather|instead)\b)|\bbut\b", re.IGNORECASE)
# A clause with one of these states what the answer is not, or that there is none.
_NEGATION = re.compile(
    r"\b(?:not?|never|neither|nor|none|cannot|\w+n't|unable|unsure|unclear|impossible|sorry|wrong|incorrect|"
    r"nicht|kein\w*|pas|не|нет)\b|[不没無]",
    re.IGNORECASE,
)


def multiple_choice(question: str, options: Sequence[str], request: str = ANSWER_REQUEST) -> str:
    """The question, one lettered line an option, and the request for a letter."""
    lines = [question, *(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))]
    return "\n".join([*lines, request])


def letters_of(options: Sequence[str]) -> str:
    """The letters under which `multiple_choice` shows the options."""
    return _LETTERS[: len(options)]


def letter_of(options: Sequence[str], answer: str) -> str:
    """The letter under which `multiple_choice` shows `answer`."""
    return _LETTERS[list(options).index(answer)]


def options_of(prompt: str, request: str = ANSWER_REQUEST) -> list[str]:
    """The options that a prompt of `multiple_choice` shows: its inverse, for prompts that were logged.

    Raises:
        ValueError: the prompt shows no options under the letters A, B, ..., or does not end in the request.
    """
    lines = prompt.rpartition(f"\n{request}")[0].split("\n")
    starts: list[int] = []
    # From the last "A. ": a question may hold one too.
    first = max((number for number, line in enumerate(lines) if line.startswith("A. ")), default=len(lines))
    for number in range(first, len(lines)):
        if len(starts) < len(_LETTERS) and lines[number].startswith(f"{_LETTERS[len(starts)]}. "):
            starts.append(number)
    if len(starts) < 2:
        raise ValueError(f"the prompt {prompt!r} shows no options under the letters A, B, ...")
    return ["\n".join(lines[i:j])[3:] for i, j in zip(starts, [*starts[1:], len(lines)])]


def parse_choice(response: str | None, options: Sequence[str]) -> str | None:
    """The option that a response names, or None where it names none or more than one.

    Rules, the first that fits counts; none needs a judge model:
      1. The response is one letter, with or without brackets, punctuation or a leading "answer:": "B", "(b)", "【B】",
         "「B」", "Ｂ", "**B.**", "The answer is B", "答案：B", "<think>...</think><answer>B</answer>".
      2. It starts with an upper-case letter that is set off by punctuation, or any letter in brackets: "B. joyful",
         "(B) joyful", "B: joyful". Not where the text of another option alone stands behind it, where a second letter
         follows ("A, B"), or where several lettered lines are repeated.
      3. It is the text of one option, in any case and punctuation.
      4. In the clauses without a negation or refusal ("not", "cannot", "sorry", ...) it holds exactly one set-off
         letter such as "(B)" or "option B", or else exactly one option's text as whole words.

    Letters are Latin: full-width and other compatibility forms are mapped to them, Cyrillic "В" and Greek "Β" are not,
    since no option is shown under them; an answer in another script counts where it is an option's own text. A letter
    beyond the options names none.
    """
    if is_missing(response):
        return None  # even where an option has that word for a text
    plain = _TAGS.sub(" ", unicodedata.normalize("NFKC", response or "")).translate(_BRACKETS)
    text = _MARKUP.sub("", plain).strip()
    text = re.sub(r"'([A-Za-z])'", r"(\1)", text)
    if not text:
        return None
    letters = letters_of(options)
    if alone := _ALONE.fullmatch(text):
        return _option_at(alone[1], letters, options)
    if set_off := _SET_OFF.match(text):
        # "I, as a language model, ..." is no answer either.
        several = _MORE_LETTERS.match(text) or text.startswith("I,") or len(set(_LISTED.findall(text))) > 1
        chosen = _option_at(set_off[1] or set_off[2], letters, options)
        behind = _words(text[set_off.end() :])
        if not several and not any(_words(other) == behind for other in options if other != chosen):
            return chosen
        if not several:
            return None
    exact = [option for option in options if _words(option) == _words(plain)]
    if len(exact) == 1:
        return exact[0]
    clauses = " . ".join(clause for clause in _CLAUSE_END.split(text) if not _NEGATION.search(clause))
    marked = {_option_at(a or b, letters, options) for a, b in _MARKED.findall(clauses)} - {None}
    candidates = marked or _named(clauses, options)
    return candidates.pop() if len(candidates) == 1 else None


def is_missing(response: str | None) -> bool:
    """Whether a response stands for an item that the model was not given, see `MISSING`."""
    return response is not None and response.strip() == MISSING


def _named(text: str, options: Sequence[str]) -> set[str | None]:
    """The options whose text stands in `text` as whole words; of "calm" and "calm sea" the longer one is meant."""
    # Padded with blanks, so that only whole words are found.
    words = f" {_words(text)} "
    named = [option for option in options if _words(option) and f" {_words(option)} " in words]
    return {a for a in named if not any(a != b and f" {_words(a)} " in f" {_words(b)} " for b in named)}


def _option_at(letter: str, letters: str, options: Sequence[str]) -> str | None:
    position = letters.find(letter.upper())
    return options[position] if position >= 0 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


# ---- valence and arousal

VALENCE_AROUSAL_QUESTION = (
    "Which emotion does this artwork express, in two numbers from -1 to 1?\n"
    "Valence: -1 is very unpleasant, 0 is neutral, 1 is very pleasant.\n"
    "Arousal: -1 is very calm, 0 is neutral, 1 is very excited."
)
VALENCE_AROUSAL_REQUEST = "Answer in the form: valence: NUMBER, arousal: NUMBER"

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
    return f"{VALENCE_AROUSAL_QUESTION}\n{VALENCE_AROUSAL_REQUEST}"


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
    for line in VALENCE_AROUSAL_QUESTION.splitlines():
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
        positions = [text.find(name) for name in _NAMES]
        if len(numbers) != 2 or len([position for position in positions if position >= 0]) == 1:
            return None
        valence, arousal = (value for _, value in (numbers if positions[0] <= positions[1] else numbers[::-1]))
    if valence is None or arousal is None or max(abs(valence), abs(arousal)) > 1:
        return None
    return valence, arousal


def _behind(name: str, text: str, numbers: list[tuple[int, float | None]]) -> set[float | None]:
    """The values of the numbers that stand behind `name`, None for one that cannot be read."""
    values = set()
    for match in re.finditer(name, text):
        position, value = next((number for number in numbers if number[0] >= match.end()), (len(text), None))
        between = text[match.end() : position]
        if position < len(text) and len(between) <= _FARTHEST and not re.search(rf"[.;]|{'|'.join(_NAMES)}", between):
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
