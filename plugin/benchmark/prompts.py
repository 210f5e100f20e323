"""A multiple-choice item as text: its prompt, and the reading of an answer."""

import re
import unicodedata
from collections.abc import Sequence

ANSWER_REQUEST = "Answer with the option's letter."
# Stands for the answer to a question that was not asked, since its media could not be read. It is no empty answer, and
# holds no letter that a task of others might take for an option.
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
# A clause with one of these says what the answer is not, or that there is none.
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
        ValueError: the prompt shows no options under the letters A, B, ..., or does not ask for a letter.
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

    Rules, the first that fits counts; all are our choice and need no judge model:
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
    """Whether a response stands for a question that was not asked, see `MISSING`."""
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
