"""Answers that models give, in six scripts, and the option that each names, if any.

`python tests/benchmark/test_answers.py [prompts.py]` counts how many of them a version of that file parses right.
"""

import importlib.util
import itertools
import json
import re
import sys
import time
from pathlib import Path

import pytest

from vaemotionllm.benchmark import prompts

OPTIONS = ["calm", "joyful", "calm sea", "tense"]
TAGS = ("think", "thinking", "reasoning", "THINK", "Thinking", "Reasoning")

# Answers in blocks, "¦" or a line's end between two. In these one letter stands for {0} and is the answer.
ONE_LETTER = {
    "Latin": r"""
        {0} ¦ ({0}) ¦ {0}. ¦ {0}) joyful things ¦ {0} is correct ¦ {0} is correct. ¦
        {0} is the correct answer. ¦ {0} is right ¦ {0} seems the most likely. ¦
        {0} is clearly the best choice ¦ {0} fits best ¦ I think it is {0} ¦ I think it is {0}. ¦
        I think it's {0}, but I can't be certain. ¦ I believe {0}. ¦ It must be {0}! ¦ It's {0} ¦
        Probably {0} ¦ Most likely {0}. ¦ I'd go with {0}. ¦ I would say {0} ¦ My answer would be {0} ¦
        Without a doubt: {0} ¦ There is no doubt that it is {0}. ¦ So, {0}. ¦ {0} because it is bright ¦
        {0} because it isn't dark. ¦ {0}, because nothing in it is dark ¦ {0} since the flute is high ¦
        {0}, I think ¦ {0} I think ¦ {0}: it is not dark ¦ Option {0} is correct. ¦
        Option {0} describes it well ¦ Letter {0} ¦ I choose {0} ¦ I choose option ({0}). ¦ ANSWER: {0} ¦
        The answer is {0} ¦ The correct option is {0}. ¦ The correct choice: {0} ¦ Answer:\n{0} ¦
        Answer:\n\n**{0}** ¦ Final answer: {0} ¦ The piece is in B minor, so the answer is {0}. ¦
        \boxed{{{0}}} ¦ A bright piece. {0} ¦ \ufeff{0} ¦ I hear a flute.\n\n({0}) ¦ Es ist {0}. ¦
        Ich denke, es ist {0} ¦ {0} ist richtig ¦ {0}, weil es hell ist ¦ La réponse est {0}. ¦
        Je pense que c'est {0} ¦ {0} est la bonne réponse ¦ {0} parce que c'est gai ¦ Creo que es {0}. ¦
        La respuesta correcta es {0} ¦ A resposta é {0} ¦ Penso che sia {0}
    """,
    "Chinese": r"""
        {0} ¦ 【{0}】 ¦ （{0}） ¦ 答案是{0} ¦ 答案是 {0}。 ¦ 正确答案：{0} ¦ 我认为是{0} ¦ 我觉得是{0}。 ¦
        应该是{0}吧 ¦ 我选{0} ¦ 选择{0} ¦ {0}是正确的 ¦ {0}正确 ¦ {0}，因为它很明亮 ¦ {0}项正确 ¦
        选项{0}最合适。 ¦ 因为音乐不暗，所以选{0} ¦ 我不确定，但应该是{0}
    """,
    "Japanese": r"""
        「{0}」 ¦ {0}です ¦ {0}です。 ¦ 答えは{0}です ¦ 正解は{0}。 ¦ {0}だと思います。 ¦ {0}が正しいです ¦
        {0}が最も近いです ¦ 選択肢{0} ¦ {0}を選びます ¦ {0}かもしれません ¦ よくわかりませんが、{0}です
    """,
    "Korean": r"""
        {0}입니다 ¦ 정답은 {0}입니다. ¦ 답: {0} ¦ {0}가 정답입니다 ¦ {0}라고 생각합니다 ¦ {0}가 맞습니다. ¦
        {0}번 ¦ 제 생각에는 {0}
    """,
    "Cyrillic": r"""
        Ответ: {0} ¦ Правильный ответ — {0} ¦ Я думаю, это {0}. ¦ Это {0} ¦ {0} верно ¦
        {0}, потому что светло ¦ {0}, так как музыка не мрачная ¦ Вариант {0}. ¦ Думаю, что {0}
    """,
    "Arabic": r"""
        الإجابة هي {0} ¦ الإجابة الصحيحة هي {0}. ¦ الجواب: {0} ¦ الخيار {0} ¦ أعتقد أنها {0} ¦ {0} هو الصحيح ¦
        \u200f{0}\u200f ¦ {0}، لأن الموسيقى ليست حزينة
    """,
}
# The answer is {0}, and {1} is none.
NOT_THE_OTHER = {
    "Latin": r"""
        {0} (not {1}) ¦ ({0}), not ({1}) ¦ {0}, not {1} ¦ {0} and not {1}. ¦ {0} not {1} ¦
        {0} rather than {1} ¦ {0} instead of {1} ¦ Not {1} but {0} ¦ Not {1}, but {0}. ¦ not {1}; {0} ¦
        It is not {1}, it is {0}. ¦ I don't think it is {1}. I think it is {0}. ¦ {1} is wrong. {0} ¦
        Option {1} is too quiet. Option {0} fits best. ¦ The answer is {0}, not {1} ¦
        {0} is livelier than {1}, so {0} ¦ {1} is too quiet, so {0} ¦ nicht {1}, sondern {0} ¦
        pas {1} mais {0} ¦ no {1} sino {0} ¦ non {1} ma {0} ¦ Neither {1} nor D, so {0} ¦
        Rather than {1}, {0} ¦ Instead of {1}, I choose {0}. ¦ The answer is {1}. No wait, {0}. ¦ {1}. No, {0} ¦
        {1}. Wait, no: {0} ¦ {1}... no, {0} ¦ {1}? No, {0}. ¦ {1}. Actually, {0}. ¦ {1}. Correction: {0} ¦
        It is {1}, I mean {0}. ¦ I think {1}. Sorry, I meant {0}. ¦ {1}. On second thought, {0}. ¦
        Answer: {1}\n\nWait, I should reconsider. Answer: {0} ¦ {1}. Nein, {0}. ¦ No, {0}. ¦
        {0}. Actually, that is right. ¦ {0}. No, {1} is wrong. ¦ {0}. Wait, not {1}. ¦ {0}. No other option fits.
    """,
    "Chinese": r"""
        不是{1}而是{0} ¦ 不是{1}，而是{0}。 ¦ 不是{1}，是{0} ¦ 并非{1}，而是{0} ¦ 是{0}，不是{1} ¦
        是{0}而不是{1} ¦ {0}（不是{1}） ¦ 不选{1}，选{0} ¦ 選{0}不選{1} ¦
        {1}错，{0}对 ¦ {1}错误，{0}正确。 ¦ {1}不对{0}对 ¦ {0}对，{1}错 ¦ 答案是{1}。不，是{0}。 ¦ {1}，不对，{0}
    """,
    "Japanese": r"""
        {1}ではなく{0} ¦ {1}ではなく、{0}です。 ¦ {1}ではなくて{0}です ¦ {0}です。{1}ではありません。
    """,
    "Korean": r"""
        {1}가 아니라 {0} ¦ {1}가 아니라 {0}입니다. ¦ {1}이 아니고 {0}
    """,
    "Cyrillic": r"""
        не {1}, а {0} ¦ Не {1}, а {0}. ¦ {0}, а не {1} ¦ {0}, не {1}
    """,
    "Arabic": r"""
        ليس {1} بل {0} ¦ ليست {1}، بل {0}. ¦ {0} وليس {1}
    """,
}
# Two letters are no answer.
TWO_LETTERS = {
    "Latin": r"""
        {0} or {1} ¦ {0}/{1} ¦ {0} / {1} ¦ {0}, {1} ¦ {0},{1} ¦ {0} and {1} ¦ {0} & {1} ¦ {0} + {1} ¦ {0} {1} ¦
        {0}\n{1} ¦ {0}; {1} ¦ {0}. {1}. ¦ ({0}) ({1}) ¦ ({0}) or ({1}) ¦ ({0} or {1}) ¦ {0} (or {1}) ¦
        {0}|{1} ¦ {0} - {1} ¦ {0} vs. {1} ¦ {0} and/or {1} ¦ {0}. Or {1}. ¦ {0} or maybe {1} ¦
        {0}, possibly {1} ¦ Option {0} or {1} ¦ Option {0} or option {1} ¦ Options {0} and {1} ¦
        Either {0} or {1}. ¦ Both {0} and {1} are correct ¦ Both {0} and {1} ¦ The answer is {0} or {1} ¦
        Answer: {0}, {1} ¦ Answer: {0}. Answer: {1} ¦ It is {0} or {1}, I think. ¦
        I think it is {0}. Or is it {1}? ¦ Between {0} and {1} ¦ It could be {0}, it could be {1} ¦
        {0}. joyful or {1}. tense ¦ ({0}) joyful, ({1}) tense ¦ {0} and {1} because ¦
        \boxed{{{0}}} or \boxed{{{1}}} ¦ <answer>{0} or {1}</answer> ¦ {0} or {1} is correct ¦ A. x B. y C. z ¦
        {0} oder {1} ¦ {0} ou {1} ¦ {0} et {1} ¦ {0} o {1} ¦ {0} y {1} ¦ Antwort: {0} oder {1} ¦ {0} or E ¦
        Ｄ／Ｃ
    """,
    "Chinese": r"""
        {0}或{1} ¦ {0}或者{1} ¦ {0}和{1} ¦ {0}、{1} ¦ {0}，{1} ¦ {0}与{1} ¦ {0}还是{1} ¦ 答案是{0}或{1} ¦
        选项{0}或{1} ¦ 选项{0}或选项{1} ¦ 选{0}和{1} ¦ 可能是{0}，也可能是{1} ¦ {0}和{1}都正确
    """,
    "Japanese": r"""
        {0}または{1} ¦ {0}か{1} ¦ {0}と{1} ¦ {0}、{1} ¦ {0}もしくは{1}です ¦ {0}か{1}です ¦
        答えは{0}または{1}です ¦ 選択肢{0}か{1} ¦ 「{0}」か「{1}」
    """,
    "Korean": r"""
        {0} 또는 {1} ¦ {0}와 {1} ¦ {0}나 {1} ¦ {0} 혹은 {1} ¦ 정답은 {0} 또는 {1}입니다 ¦ {0}, {1} ¦
        보기 {0} 또는 {1}
    """,
    "Cyrillic": r"""
        {0} или {1} ¦ {0} и {1} ¦ Ответ: {0} или {1} ¦ Вариант {0} или {1} ¦ {0} либо {1}
    """,
    "Arabic": r"""
        {0} أو {1} ¦ {0} و {1} ¦ {0}، {1} ¦ الإجابة هي {0} أو {1} ¦ الخيار {0} أو {1}
    """,
}
NONE = {
    "Latin": r"""
        It is in B minor ¦ a piece in C ¦ It is not B ¦ Not B ¦ B is not correct ¦ B is wrong ¦
        (B) is not right. ¦ I do not think it is B. ¦ I can't say B ¦ Neither A nor B ¦ A painting ¦
        I hear a flute ¦ I, too, hear a flute ¦ The answer is A painting ¦ Vitamin C ¦ B-flat ¦ None ¦ E ¦
        F is correct ¦ B. tense ¦ Answer: B. tense ¦
        None of them. B? ¦ Neither. B? ¦ A. No wait, B or C. ¦ ABCD ¦ Bach ¦ none of A, B, C or D
    """,
    "Chinese": r"""
        不是B ¦ 我不能说是B ¦ 我不知道 ¦ B大调 ¦ 都不是 ¦ 无法判断
    """,
    "Japanese": r"""
        Bではない ¦ Bではありません ¦ わかりません ¦ B長調
    """,
    "Korean": r"""
        B가 아닙니다 ¦ 모르겠습니다 ¦ B는 아니다
    """,
    "Cyrillic": r"""
        не B ¦ Это не B ¦ В ¦ не знаю ¦ B неверно
    """,
    "Arabic": r"""
        ليس B ¦ لا أعرف ¦ B غير صحيح
    """,
}


def answers_in(blocks: dict[str, str]) -> list[str]:
    parts = re.split(r"\s*[¦\n]\s*", "\n".join(blocks.values()))
    return [re.sub(r"\\(n|u\w{4})", lambda match: json.loads(f'"{match[0]}"'), part) for part in parts if part]


def thoughts():
    """Answers of reasoning models: a thought names another option than the answer, or there is no answer."""
    for tag in TAGS:
        yield f"<{tag}>Is it (C)? The answer is D.</{tag}>\nB", "joyful"
        yield f"The answer is D, or C.\n</{tag}>\n\nB. joyful", "joyful"  # the opening tag is in the prompt
        yield f"<{tag}>The answer is D.", None
        yield f"The answer is D.\n</{tag}>", None
        yield f"D</{tag}><answer>B</answer>", "joyful"
        yield f"<{tag}>D</{tag}>", None
        yield f"<{tag}>tense <{tag}>D</{tag}> D</{tag}> joyful", "joyful"
        yield f"<{tag}>D</{tag}> Then <{tag}>C</{tag}> B", "joyful"
        yield f"B\n<{tag}>Or is it D?", "joyful"
    yield "[THINK]D[/THINK]B", "joyful"
    yield '<think budget="9">D</think>B', "joyful"


def table() -> list[tuple[str, str | None]]:
    """(response, the option that is right), for options that `prompts` shows under A to D."""
    rows: list[tuple[str, str | None]] = []
    letters = dict(zip("ABCD", OPTIONS))
    turns, pairs = itertools.cycle("BAD"), itertools.cycle(["BA", "AB", "DA", "BD"])
    for template in answers_in(ONE_LETTER):
        letter = "B" if "joyful" in template else next(turns)
        rows.append((template.format(letter), letters[letter]))
    for template in answers_in(NOT_THE_OTHER):
        right, other = next(pairs)
        rows.append((template.format(right, other), letters[right]))
    for template in answers_in(TWO_LETTERS):
        first, second = next(pairs)
        rows.append((template.format(first, second), None))
    rows += [(response, None) for response in answers_in(NONE)]
    return [*rows, *thoughts()]


@pytest.mark.parametrize(("response", "expected"), table())
def test_an_answer_names_one_option_or_none(response, expected):
    assert prompts.parse_choice(response, OPTIONS) == expected


def test_options_of_the_same_script():
    options = ["喜悦", "平静", "悲伤", "紧张"]
    for response, expected in {
        "不是喜悦，而是悲伤": "悲伤",
        "答案是B，平静": "平静",
        "喜悦或悲伤": None,
        "A或B": None,
        "不是A而是B": "平静",
        "<think>喜悦</think>悲伤": "悲伤",
        "悲伤。": "悲伤",
    }.items():
        assert prompts.parse_choice(response, options) == expected, response


def test_a_letter_in_an_options_text_is_no_option():
    options = ["Sonata in B", "Plan A", "Vitamin C", "Both A and B"]
    for number, option in enumerate(options):
        assert prompts.parse_choice(option, options) == option
        assert prompts.parse_choice(f"It is {option}.", options) == option
        assert prompts.parse_choice(f"{'ABCD'[number]}. {option}", options) == option


@pytest.mark.parametrize("tag", TAGS)
def test_thoughts_hold_no_valence_and_arousal(tag):
    stated = "valence: 0.5, arousal: -0.2"
    for response, expected in {
        f"<{tag}>valence: 1, arousal: 1</{tag}>{stated}": (0.5, -0.2),
        f"valence: 1, arousal: 1</{tag}>{stated}": (0.5, -0.2),
        f"<{tag}>{stated}": None,
        f"{stated}</{tag}>": None,
    }.items():
        assert prompts.parse_valence_arousal(response) == expected


@pytest.mark.parametrize(
    "part", [" ", "\n", "A ", "A, ", "(", "<think>", "</think>", "answer: ", "option ", "not ", "선"]
)
def test_time_grows_with_the_length_alone(part):
    start = time.process_time()
    prompts.parse_choice("answer" + part * 20_000, OPTIONS)
    assert time.process_time() - start < 5


if __name__ == "__main__":
    for file in sys.argv[1:] or [prompts.__file__]:
        spec = importlib.util.spec_from_file_location("prompts_under_test", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        wrong = [(text, module.parse_choice(text, OPTIONS), right) for text, right in table()]
        wrong = [row for row in wrong if row[1] != row[2]]
        print(f"{Path(file)}: {len(table()) - len(wrong)} of {len(table())} right")
        for row in wrong:
            print(json.dumps(row, ensure_ascii=False))
