"""Prompts of the benchmark and the parsing of answers: multiple choice, and valence and arousal as numbers.

The wording of every prompt and the rules of parsing are our choice.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

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
_THOUGHT_TAG = re.compile(r"[<\[]\|? ?(/?) ?(?:think|thinking|thoughts?|reasoning)\b[^<>\[\]]*[>\]]", re.IGNORECASE)
_STATED_TAG = re.compile(r"<answer>|\\boxed", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z]\w+>")  # of other tags only the marks go; "<B>" is a bracket
_MARKUP = re.compile(r"\\text|[*_`#$\"“”„‟]")

# The rules for letters, by language; see `parse_choice`. A pattern with (?i:...) ignores case.
# Directly before a letter, it says that this is the answer.
_LEAD = (
    r"(?i:(?<![a-z])(?:answer|antwort|réponse|respuesta|resposta|risposta|ответ|choose|pick|select|答案|答え|回答|正解|"
    r"选择|選擇|选|選(?!択)|정답|답|(?:الإجابة|الجواب)(?: الصحيحة| الصحيح)?|(?:option|choice|选项|選項|選択肢)"
    r"(?= ?(?:is\b|[:=是は])))"
    r" ?(?:is|would be|must be|should be|ist|est|es|è|é|это|是|为|は|은|는|이|هي|هو)?(?![a-z]) ?[:=—–-]?\s?)"
)
_OPTION_WORD = r"(?i:(?<![a-z])(?:option|choice|letter|вариант|选项|選項|選択肢|보기|الخيار) ?)"

# Between two letters: a verb, a reason or a contrast. Any other word there joins them: "or", "и", "或者".
_APART = (
    r"because|since|as|for|so|thus|hence|is|are|was|would|must|should|could|might|may|has|fits?|seems?|looks?|sounds?|"
    r"match(?:es)?|describes|choose|pick|select|than|over|beats|not|never|but|rather|instead|in|of|on|"
    r"actually|wait|sorry|correction|"
    r"ist|weil|nicht|sondern|est|car|parce|pas|mais|mas|es|porque|pero|sino|no|non|ma|"
    r"не|а|но|это|потому|так|верно|و?ليس|بل|و?لكن|لأن|هو|هي|لا"
)
_APART_CJK = (
    "[不没沒無无非而因為为选選比错錯对對]|(?<!还)(?<!還)是|より|なく|ない|です|ませ|아니|아닌|않|말고|보다|입니"
)
_CJK = r"\u3040-\u30ff\u4e00-\u9fff"
_IN_WORD = r"(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0dff\u0e00-\u0e7f])"  # vowel signs are marks and no letters
_JOINED = (
    r"(?:[\s,/&|+()、،・~∨–—-]|[.;?] ?(?=(?i:or)\b)|\.(?=[A-Z]\b)|as well as|و|"
    rf"(?<![A-Za-z])(?!(?i:{_APART})\b)(?:(?!{_APART_CJK}){_IN_WORD}){{1,9}}(?!{_IN_WORD})\.?|"
    rf"(?:(?!{_APART_CJK})[{_CJK}\uac00-\ud7af]){{1,4}}){{1,7}}(?<!\()"
)

# "in B minor" and "B大调" are keys. "A painting" and "I hear" begin with a word, but "A veya B" joins two letters.
_KEY = r" ?-?(?i:flat|sharp|minor|major|moll|dur)\b|[♯♭]| ?(?:[大小長短长][调調]|мажор|минор|[장단]조)"
_WORD = (
    r"[A-Za-zß-ɏЀ-ӿ'\d]|-[A-Za-z]{2}|(?<=I),|"
    rf"(?<=[AI]) (?!(?i:{_APART}|or|and)\b|(?<=A )[^\W\d_]+ (?:[^\W\d_]+ )?\(?[A-Z]\b)[a-zà-ɏ']"
)
_LETTER = re.compile(rf"{_OPTION_WORD}?(?:\( ?([A-Za-z]) ?\)|(?<![A-Za-zÀ-ɏЀ-ӿ\d'])([A-Z])(?!{_WORD}|{_KEY})\)?)")
_MENTION = re.compile(rf"{_LETTER.pattern}(?:(?:{_JOINED}|(?<=\))){_LETTER.pattern})*")  # "A or B", "(A)(B)"
_INSTEAD = re.compile(rf"(?i:rather than|instead of|anstatt|statt|au lieu de|вместо) {_LETTER.pattern}(?=,)")
_ALONE = re.compile(rf"(?:{_LEAD})?{_OPTION_WORD}?\(?([A-Za-z])\)? ?[.:,;!。]?")


def _any_of(*patterns: str) -> re.Pattern:
    return re.compile("|".join(patterns), re.IGNORECASE)


# In these a mention of one letter, or of several that are joined, is one mark, "\0".
_STATED = re.compile(rf"{_LEAD}\(?\0")
_NOT = (
    r"(?:(?:and |but )?(?:\w+ly )?(?:not|never|rather than|instead of|over)|(?:und )?nicht|(?:et )?pas|non?|(?:а )?не|"
    r"و?ليس|而不是|而非|不是|不选|不選)"
)
_CLAUSE_END = _any_of(
    r"[.;!?。؟؛…]|(?<!:)\n",
    r"(?<=\0) ?[,:،—–-]|(?<=\0) ?(?=\()",  # "B, the ...", "B (not C)"
    rf"(?<=\0)(?= ?{_NOT} ?\0)|(?<=[错錯对對])(?=\0)",  # "B not C"
    r"(?<=\bno)[,:]",  # "No, B"
    rf"[,、،](?=[{_CJK}])|(?<=[{_CJK}])[,、]|(?:が|けど|けれど)[,、]",
    r",(?= (?:and )?(?:not|nor|rather|instead)\b)|\band (?=\0 ?(?:is|fits)\b)",
    r"(?=\b(?:because|since|weil|parce que|porque|потому)\b|因[为為]|لأن)",
    r"\b(?<!thing )(?:but|sondern|mais|mas|sino|pero|ma|но|بل|و?لكن)\b|(?:,| ) ?а (?!не)|而是|而(?=[选選])|但",
    r"(?<=であり)|(?<=なく)(?!て)|(?<=なくて)|(?<=아니라)|(?<=아니고)",  # these stand behind what they negate
)
# A clause with one of these states what the answer is not, or that there is none.
_NEGATION = _any_of(
    r"\b(?:not?(?! doubt)|never|neither|nor|none|cannot|\w+n't|unable|unsure|unclear|unlikely|less|least|impossible|"
    r"sorry|wrong|incorrect|rather than|instead of|(?:any|every)thing but|except|nicht|kein\w*|pas|non|não|не|нет|"
    r"неверн\w*|неправильн\w*|و?ليس|ليست|لا|غير|لم|لن)\b",
    r"[不没沒無无]|[而并並]非|非(?=\0)|[错錯]|(?<!しれ)(?:ない|ません)|なく|なか[っろ]|아니|않|못|없|모르|모릅",
)
# Behind a letter: the end of its clause, or that it is right.
_RIGHT = (
    r"$|[)=→]",
    r"(?:as|for|here|given|due to|I (?:think|believe|guess)|it is|\w+ly|best|fits?|match(?:es)?|car|da|так как)\b",
    r"(?:is|are|would|must|should|could|might|may|has|seems?|looks?|sounds?|ist|est|es|è|é)\b(?: [^\s\0,]+){0,3}? "
    r"(?:correct\w*|right|true|best|answers?|choices?|likely|closest|most \w+|appropriate|suitable|"
    r"richtig|korrekt|bonne|juste|corrett[ao]|corret[ao])\b",
    r"(?:это |является )?(?:верн|правильн|подходит)|(?:هو |هي )?(?:ال)?(?:صحيح|أصح|إجابة|جواب|أنسب)",
    r"(?:选项|選項|项|項)?(?:[是更才]|应该是|比[较較])*最?(?:正[确確]|[对對]|合[适適]|符合|答案|$|吧|呢|啊|了)",
    r"です|だ|である|であり|でしょう|かな|かも|と(?:思|考)|[がは](?:正|最|適|答)|を選|にし",
    r"입니다|이다|예요|이?에요|라고|같|인 것|일 것|번|[가이은는을를]? ?(?:정답|맞|옳|선택|고르|적절|가장)",
)
_CHOSEN = _any_of(*(rf"\0 ?(?:{pattern})" for pattern in _RIGHT))
_REFUSAL = re.compile(r" ?(?:none|neither)\b", re.IGNORECASE)  # "B?" behind it is no answer either
# Between a letter and the one that takes its place: "A. No wait, B", "A, I mean B".
_CORRECTION = _any_of(
    r"(?<=[\s.,:;!?。…—–-])(?:wait|actually|correction|sorry|scratch that|on second thoughts?)\b(?=[^\0]{0,60}\0)",
    r"(?<=[\s.,:;!?。…—–-])(?:no|nein|non|нет|不[对對]?)[,:.…—–-]+(?=[^\0.;!?\n]{0,30}\0)",
)
# A letter behind one of these is a key, a part, or what another one is compared with.
_OTHER_LETTER = _any_of(r"\b(?:in|on|of|than|over|unlike|from|key|note|chord|vitamin|plan|type|class|part) \0")


def multiple_choice(question: str, options: Sequence[str], request: str = ANSWER_REQUEST) -> str:
    """The question, one lettered line an option, and the request for a letter."""
    lines = [question, *(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))]
    return "\n".join([*lines, request])


def letter_of(options: Sequence[str], answer: str) -> str:
    """The letter under which `multiple_choice` shows `answer`."""
    return _LETTERS[list(options).index(answer)]


def options_of(prompt: str) -> list[str]:
    """The options that a prompt of `multiple_choice` shows: its inverse, for prompts that were logged.

    Raises:
        ValueError: the prompt shows no options under the letters A, B, ..., or does not end in the request.
    """
    lines = prompt.rpartition(f"\n{ANSWER_REQUEST}")[0].split("\n")
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

    Thoughts are left out first: see `without_thoughts`. Then, and none of it needs a judge model:
      1. A response that is one letter names it, in any case, with or without brackets, punctuation or a leading
         "answer:": "B", "(b)", "【B】", "Ｂ", "**B.**", "The answer is B", "答案：B".
      2. A response that is the text of one option, in any case and punctuation, names it.
      3. Of an answer that corrects itself ("A. No wait, B") what is behind the last correction counts, where it names
         a letter.
      4. Letters that are joined ("A or B", "A/B", "A、B") are one statement of several. Letters in a clause with a
         negation or refusal ("not", "cannot", "不是", ...) are passed over: "C (not B)", "Not A but B". Of the others
         those count that are stated as the answer ("the answer is B", "I choose B"); if there are none, those that end
         a clause or are called right ("B. joyful", "I think it is B", "B is correct", "B because"); if there are none,
         those in brackets or named as an option. One letter is the answer, more are none; nor is a letter with the
         text of another option alone behind it ("B. tense").
      5. Where no letter counts, the clauses without a negation name exactly one option's text as whole words.

    Letters are Latin: full-width and other compatibility forms are mapped to them, Cyrillic "В" and Greek "Β" are not,
    since no option is shown under them; an answer in another script counts where it is an option's own text. A letter
    beyond the options names none. One without a sign of these may be an article, a key ("in B minor") or an initial.
    """
    if is_missing(response):
        return None  # even where an option has that word for a text
    plain = without_thoughts(unicodedata.normalize("NFKC", response or ""))
    text = _TAG.sub(" ", _STATED_TAG.sub(" answer: ", plain)).translate(_BRACKETS)
    # Marks of direction, which stand around Latin letters in Arabic, and other characters without a shape.
    text = "".join(character for character in _MARKUP.sub("", text) if unicodedata.category(character) != "Cf")
    text = re.sub(r"'([A-Za-z])'", r"(\1)", text)
    # One blank at a time from here on, so that no pattern has to look far.
    text = re.sub(r" ?\n[\n ]*", "\n", re.sub(r"[^\S\n]+|\0", " ", text)).strip()
    letters = _LETTERS[: len(options)]
    if alone := _ALONE.fullmatch(text):
        return _option_at(alone[1], letters, options)
    exact = [option for option in options if text and _words(option) in (_words(plain), _words(text))]
    if exact:
        return exact[0] if len(exact) == 1 else None
    for option in options:
        if " " in option:  # a letter in it ("Sonata in B") is no option's
            text = text.replace(option, option.lower())
    text = re.sub(r"\bI meant?\b", "wait", _INSTEAD.sub(r"\g<0>;", text))
    marked = _MENTION.sub("\0", text)
    corrections = [match.end() for match in _CORRECTION.finditer(marked) if "\0" in marked[: match.start()]]
    for begin in (*corrections[-1:], 0):  # what takes nothing's place is no correction
        mentions = list(_MENTION.finditer(text))[marked.count("\0", 0, begin) :]
        counted, affirmed = _counted(marked[begin:], mentions, letters)
        if counted["stated"] or counted["chosen"]:
            break
    for kind in counted.values():
        if kind:
            answers = {letter for mention in kind for letter in _letters_in(mention[0])}
            answer = _option_at(answers.pop(), letters, options) if len(answers) == 1 else None
            behind = {_words(text[mention.end() :]) for mention in kind}
            return None if any(_words(other) in behind for other in options if other != answer) else answer
    candidates = _named(" . ".join(affirmed), options)
    return candidates.pop() if len(candidates) == 1 else None


def _counted(marked: str, mentions: Iterable[re.Match], letters: str) -> tuple[dict[str, list[re.Match]], list[str]]:
    """The mentions of letters that state an answer, by how they do; and the clauses without a negation."""
    affirmed: list[str] = []
    counted: dict[str, list[re.Match]] = {"stated": [], "chosen": [], "named": []}
    remaining, is_refused = iter(mentions), False
    for clause in _CLAUSE_END.split(marked):
        inside = [(mark.start(), next(remaining)) for mark in re.finditer("\0", clause)]
        if _NEGATION.search(clause):
            is_refused |= not inside and _REFUSAL.match(clause) is not None
            continue
        affirmed.append(clause)
        for position, mention in inside:
            if mention.start() and all(letter not in letters for letter in _letters_in(mention[0])):
                continue  # an initial, in most answers
            if is_refused and mention.string.startswith("?", mention.end()):
                continue
            before = clause[: position + 1]
            if _STATED.search(before):
                counted["stated"].append(mention)
            elif _CHOSEN.match(clause, position) and not _OTHER_LETTER.search(before):
                counted["chosen"].append(mention)
            elif len(mention[0]) > 1:
                counted["named"].append(mention)
    return counted, affirmed


def without_thoughts(response: str) -> str:
    """A response without the thoughts of a reasoning model, which are no answer.

    They stand in `<think>`, `<thinking>`, `<thought>` or `<reasoning>`, in any case, or in the same with square
    brackets. Where the opening tag was part of the prompt they end at the closing one; where they are not closed, the
    response ended before the answer.
    """
    kept, *rest = _THOUGHT_TAG.split(response)
    thinking = False
    for closing, behind in zip(rest[::2], rest[1::2]):
        if not closing:
            thinking = True
        else:
            kept = f"{kept} {behind}" if thinking else behind
            thinking = False
    return kept


def is_missing(response: str | None) -> bool:
    """Whether a response stands for an item that the model was not given, see `MISSING`."""
    return response is not None and response.strip() == MISSING


def _named(text: str, options: Sequence[str]) -> set[str | None]:
    """The options whose text stands in `text` as whole words; of "calm" and "calm sea" the longer one is meant."""
    # Padded with blanks, so that only whole words are found.
    words = f" {_words(text)} "
    named = [option for option in options if _words(option) and f" {_words(option)} " in words]
    return {a for a in named if not any(a != b and f" {_words(a)} " in f" {_words(b)} " for b in named)}


def _letters_in(mention: str) -> list[str]:
    return [(bracketed or bare).upper() for bracketed, bare in _LETTER.findall(mention)]


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
    text = without_thoughts(unicodedata.normalize("NFKC", response or "")).translate(_MINUS)
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
