"""Words and number formats of the report, its first sentence, and its table for a terminal."""

import re
from collections.abc import Sequence

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from .results import CONTROL_STAGES, STAGES

CONTROL_WORDS = {"silence": "silence", "noise": "noise", "mismatch": "another clip's sound"}
MODALITY_WORDS = {"audio": "sound", "visual": "picture", "av": "sound and picture"}


def stage_word(stage: str) -> str:
    return {"backbone": "backbone", "stage1": "stage 1", "stage2": "stage 2"}[stage]


def controls_key(stage: str) -> str:
    """Where `report.json` holds a stage's controls; those of the last stage are the report's `controls`."""
    return "controls" if stage == CONTROL_STAGES[-1] else f"controls_{stage}"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


# Control characters but tab and newline, lone surrogates, and marks that turn the direction of what follows.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text, of a model or of a file's name too, with U+FFFD for each character that no page can show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def small_share(value: float) -> str:
    """A share in percent; one that is not 0 is never printed as if it were."""
    return "<0.1%" if 0 < value < 0.0005 else percent(value)


def two(value: float) -> str:
    """Two digits, and never "-0.00"."""
    return f"{round(value, 2) + 0.0:.2f}"


def scored(scores: dict, name: str) -> tuple[str, str]:
    """A CCC and its interval as text."""
    low, high = scores[f"{name}_ccc_ci95"]
    return two(scores[f"{name}_ccc"]), f"[{two(low)}, {two(high)}]"


def points(value: float, signed: bool = False) -> str:
    return f"{100 * value:{'+' if signed else ''}.1f} points"


def span(interval: Sequence[float], signed: bool = False) -> str:
    """An interval of shares in percent, such as "[81.2, 90.1]"."""
    sign = "+" if signed else ""
    return f"[{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def interval_words(sureness: dict) -> str:
    """What the intervals are, for the head of a column."""
    return "interval" if sureness["level"] is None else f"{percent(sureness['level'], 0)} interval"


def share_of(scores: dict, name: str) -> tuple[str, str]:
    """A share and its interval as text; "n/a" where it was not measured."""
    if scores[name] is None:
        return "n/a", ""
    return percent(scores[name]), span(scores[f"{name}_ci95"]) if scores.get(f"{name}_ci95") else ""


def conflict_words(sureness: dict) -> str:
    """A sentence about the conflict score."""
    conflict = sureness["conflict"]
    if conflict["auroc"] is None:
        return f"The conflict score was not measured: {conflict['reason']}"
    low, high = conflict["ci95"]
    return (
        f"The conflict score, how far sound and sight disagree, is higher for a clip with another clip's sound than "
        f"for a clip with its own with probability {two(conflict['auroc'])} [{two(low)}, {two(high)}] (AUROC, "
        f"{conflict['n']} clips each)."
    )


def headline(report: dict) -> str:
    """Two or three sentences that say what came out, whatever it is."""
    stages, ratios, gain = report["stages"], report["hearing"], report["av_gain"]["emotion"]

    def cell(stage: str, name: str) -> str:
        return percent(stages[stage]["cells"][name]["accuracy"])

    chance = percent(stages["backbone"]["cells"]["content_audio"]["chance"], 0)
    defined = [ratios[aspect]["ratio"] for aspect in ASPECTS if ratios[aspect]["ratio"] is not None]
    shares = " and ".join(percent(ratio, 0) for ratio in defined) + " of what the backbone reaches by seeing"
    if len(defined) < len(ASPECTS):
        shares = "no share of what the backbone reaches by seeing, since it sees nothing right there"
    low, high = gain["ci95"]
    size, single = points(abs(gain["difference"])), f"{MODALITY_WORDS[gain['better_single']]} alone"
    if low > 0:
        against = f"{size} above {single}"
    elif high < 0:
        against = f"{size} below {single}"
    else:
        against = f"not clearly different from {single} ({points(gain['difference'], signed=True)})"
    va = stages["stage2"]["va"]["av"]
    return (
        f"From sound alone, after stage 1, the model names content at {cell('stage1', 'content_audio')} and emotion "
        f"at {cell('stage1', 'emotion_audio')}: {shares}. Before stage 1 it "
        f"stood at {cell('backbone', 'content_audio')} and {cell('backbone', 'emotion_audio')}, where chance is "
        f"{chance}. After stage 2, sound and picture together name emotion at {cell('stage2', 'emotion_av')}, "
        f"{against}, and valence and arousal agree with the truth at a CCC of {two(va['valence_ccc'])} and "
        f"{two(va['arousal_ccc'])}."
    )


def terminal_table(report: dict) -> str:
    """Accuracy in percent as text of 80 columns: a row a cell, a column a stage."""
    # "100.0 [92.6, 100.0]" takes 19 columns; the head of the last column begins one to the left of its numbers.
    head = f"{'accuracy, %':<15}" + "".join(f"{stage_word(stage):<20}" for stage in STAGES)
    lines = [f"{head[:-1]}chance"]
    for aspect in ASPECTS:
        for path in MODALITIES:
            cells = [report["stages"][stage]["cells"][f"{aspect}_{path}"] for stage in STAGES]
            scores = "".join(f"{100 * cell['accuracy']:.1f} {span(cell['ci95'])}".ljust(20) for cell in cells)
            lines.append(f"{f'{aspect} {path}':<15}{scores}{100 * cells[0]['chance']:>5.1f}")
    return "\n".join(lines)
