"""Checks of the questions and answers: what a model could score without sight or sound, and unfair comparisons.

Every threshold is our choice. Counts are over questions, not items, where the three modalities ask the same: counting
them thrice would make chance look like a pattern.
"""

import difflib
import functools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..model.configuration_vaemotionllm import MODALITIES
from .findings import Report
from .schema import MEDIA, Item

# Below this the counts are no chance: a test that asks a benchmark's six cells errs once in 170 fair benchmarks.
P_VALUE = 0.001
# Fewest expected questions in a class for which a chi-square test says something.
MIN_EXPECTED = 5
SIMILAR_OPTIONS = 0.85
THRESHOLDS = {"p_value": P_VALUE, "min_expected": MIN_EXPECTED, "similar_options": SIMILAR_OPTIONS}


def check_items(items: Sequence[Item], report: Report) -> None:
    """Adds the findings about `items` to the report, and the counts behind them to its measures."""
    report.thresholds |= THRESHOLDS
    check_licences(items, report)
    asked = _questions(items)
    check_modalities(asked, report)
    check_similar_options(items, report)
    questions = [next(iter(found.values())) for found in asked.values()]
    check_positions(items, report)
    check_implausible(questions, report)
    check_lengths(questions, report)
    check_guessing(questions, report)
    check_labels(questions, report)


def check_licences(items: Sequence[Item], report: Report) -> None:
    missing = [item for item in items if not item.license]
    for clip, ids in _by_clip(missing).items():
        report.add("error", "licence", f"the clip {clip!r} has no licence", ids)
    report.measures["licences"] = dict(Counter(item.license for item in items if item.license))


def check_modalities(asked: Mapping[tuple[str, str, int], Mapping[str, Item]], report: Report) -> None:
    """The same questions with the same options about the same media under all three modalities."""
    for (clip, aspect, _), found in asked.items():
        ids = [item.id for item in found.values()]
        if missing := [modality for modality in MODALITIES if modality not in found]:
            report.add(
                "warning", "modalities", f"the clip {clip!r} has no {aspect} item for {', '.join(missing)}", ids
            )
        for column in ("options", "answer"):
            if len({getattr(item, column) for item in found.values()}) > 1:
                report.add("error", "modalities", f"{column} of the clip {clip!r} ({aspect}) differ by modality", ids)
        for column in MEDIA:
            if len({path for item in found.values() if (path := getattr(item, column))}) > 1:
                report.add("error", "modalities", f"{column} of the clip {clip!r} ({aspect}) differs by modality", ids)


def normalised(option: str) -> str:
    """An option's text without case, accents' encoding, punctuation, articles and repeated blanks."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", option).casefold())
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def check_similar_options(items: Sequence[Item], report: Report) -> None:
    similarity = functools.lru_cache(maxsize=65_536)(
        lambda a, b: difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    )
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for item in items:
        options = sorted(item.options)
        for i, first in enumerate(options):
            for second in options[i + 1 :]:
                a, b = normalised(first), normalised(second)
                if a == b:
                    found["error", first, second].append(item.id)
                elif similarity(a, b) >= SIMILAR_OPTIONS:
                    found["warning", first, second].append(item.id)
    for (level, first, second), ids in found.items():
        how = "say the same" if level == "error" else "are nearly the same"
        report.add(level, "options", f"{first!r} and {second!r} {how}", ids)


def check_positions(items: Sequence[Item], report: Report) -> None:
    """Each place holds the answer equally often in each cell: else a constant letter scores above chance."""
    cells: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        cells[f"{item.aspect} {item.modality}, {len(item.options)} options"].append(item)
    measured = report.measures["answer_positions"] = {}
    for cell, members in sorted(cells.items()):
        positions = [item.options.index(item.answer) for item in members]
        counts = [positions.count(position) for position in range(len(members[0].options))]
        p_value = _even(counts)
        measured[cell] = {"counts": counts, "p_value": p_value}
        if p_value is not None and p_value < P_VALUE:
            most = counts.index(max(counts))
            report.add(
                "error",
                "positions",
                f"{cell}: the answer stands at {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[most]} in {counts[most]} of "
                f"{len(members)} items (counts {counts}, chi-square p = {p_value:.1g} < {P_VALUE:g}); shuffle options",
                [item.id for item, position in zip(members, positions) if position == most],
            )


def check_implausible(questions: Sequence[Item], report: Report) -> None:
    """An option that is never an answer is known to be wrong by who has seen the benchmark's labels."""
    for aspect, members in _by_aspect(questions).items():
        answers = {normalised(item.answer) for item in members}
        never: dict[str, list[str]] = defaultdict(list)
        for item in members:
            for option in item.options:
                if normalised(option) not in answers:
                    never[option].append(item.id)
        for option, ids in sorted(never.items()):
            report.add(
                "warning", "plausibility", f"{aspect}: {option!r} is an option and never an answer anywhere", ids
            )


def check_lengths(questions: Sequence[Item], report: Report) -> None:
    """The answer is the longest, or the shortest, option no more often than chance has it."""
    from scipy.stats import binomtest

    measured = report.measures["answer_lengths"] = {}
    for aspect, members in _by_aspect(questions).items():
        for extreme, name in ((max, "longest"), (min, "shortest")):
            # Where two options share the extreme, length alone does not tell which one to take.
            alone = [item for item in members if _alone(item, extreme)]
            right = [item for item in alone if extreme(item.options, key=len) == item.answer]
            if not alone:
                continue
            chance = sum(1 / len(item.options) for item in alone) / len(alone)
            p_value = float(binomtest(len(right), len(alone), chance, alternative="greater").pvalue)
            measured[f"{aspect} {name}"] = {
                "answers": len(right),
                "of": len(alone),
                "chance": chance,
                "p_value": p_value,
            }
            if p_value < P_VALUE:
                report.add(
                    "warning",
                    "plausibility",
                    f"{aspect}: the {name} option is the answer in {len(right)} of {len(alone)} questions, and by "
                    f"chance in {chance:.0%} (p = {p_value:.1g} < {P_VALUE:g})",
                    [item.id for item in right],
                )


def check_guessing(questions: Sequence[Item], report: Report) -> None:
    """Who has seen the other questions, but no clip, must not guess this one's answer from its options.

    The guess is naive Bayes with each question left out in turn: how often an option is right where it is offered, and
    beside which others. A rule by which distractors are chosen can give the answer away in this manner.
    """
    from scipy.stats import binomtest

    measured = report.measures["guessed_from_options"] = {}
    for aspect, members in _by_aspect(questions).items():
        right = round(_guessed(members))
        chance = sum(1 / len(item.options) for item in members) / len(members)
        p_value = float(binomtest(right, len(members), chance, alternative="greater").pvalue)
        measured[aspect] = {"answers": right, "of": len(members), "chance": chance, "p_value": p_value}
        if p_value < P_VALUE:
            report.add(
                "warning",
                "plausibility",
                f"{aspect}: {right} of {len(members)} answers can be guessed from the options and the other "
                f"questions, without any clip, and by chance {chance:.0%} (p = {p_value:.1g} < {P_VALUE:g})",
            )


def _guessed(members: Sequence[Item]) -> float:
    """Expected number of right guesses; among equally likely options each is guessed equally often."""
    offered = Counter(option for item in members for option in item.options)
    answers = Counter(item.answer for item in members)
    pairs = Counter((item.answer, option) for item in members for option in item.options)
    right = 0.0
    for item in members:
        scores = {}
        for option in item.options:
            own = option == item.answer  # this question is left out of every count
            times = answers[option] - own
            score = math.log((times + 1) / (offered[option] + 1))
            for other in item.options:
                if other != option:
                    score += math.log((pairs[option, other] - own + 1) / (times + len(offered)))
            scores[option] = score
        likeliest = [option for option, score in scores.items() if score >= max(scores.values()) - 1e-9]
        right += (item.answer in likeliest) / len(likeliest)
    return right


def check_labels(questions: Sequence[Item], report: Report) -> None:
    """Within an art form no answer is much more frequent than the others: else the art form tells the answer."""
    measured = report.measures["answers_by_art_form"] = {}
    forms = sorted({item.art_form or "" for item in questions})
    for aspect, members in _by_aspect(questions).items():
        for form in forms:
            answers = [item.answer for item in members if (item.art_form or "") == form]
            counts = Counter(answers)
            if not counts:
                continue
            where = f"{aspect}, {form or 'no art form'}"
            p_value = _even(list(counts.values()))
            measured[where] = {"counts": dict(counts.most_common()), "p_value": p_value}
            answer, most = counts.most_common(1)[0]
            alone = len(counts) == 1 and len(answers) >= MIN_EXPECTED
            if alone or (p_value is not None and p_value < P_VALUE):
                how = "the only answer" if alone else f"chi-square p = {p_value:.1g} < {P_VALUE:g}"
                report.add(
                    "warning",
                    "labels",
                    f"{where}: {answer!r} is the answer to {most} of {len(answers)} questions ({how})",
                    [item.id for item in members if (item.art_form or "") == form and item.answer == answer],
                )


def _questions(items: Iterable[Item]) -> dict[tuple[str, str, int], dict[str, Item]]:
    """(clip, aspect, number) -> {modality: item}: the first item of a clip and aspect in each modality, then the next.

    By number and not by wording, which may suit the modality ("What do you hear?").
    """
    asked: dict[tuple[str, str, int], dict[str, Item]] = defaultdict(dict)
    numbers: Counter[tuple[str, str, str]] = Counter()
    for item in items:
        number = numbers[item.clip_id, item.aspect, item.modality]
        numbers[item.clip_id, item.aspect, item.modality] += 1
        asked[item.clip_id, item.aspect, number][item.modality] = item
    return asked


def _even(counts: Sequence[int]) -> float | None:
    """p-value of Pearson's chi-square test of equal counts; None where too few are expected for it."""
    if len(counts) < 2 or sum(counts) / len(counts) < MIN_EXPECTED:
        return None
    from scipy.stats import chisquare

    return float(chisquare(list(counts)).pvalue)


def _alone(item: Item, extreme) -> bool:
    lengths = [len(option) for option in item.options]
    return lengths.count(extreme(lengths)) == 1


def _by_aspect(items: Iterable[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.aspect].append(item)
    return dict(sorted(found.items()))


def _by_clip(items: Iterable[Item]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for item in items:
        found[item.clip_id].append(item.id)
    return found
