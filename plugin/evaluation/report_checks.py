"""What is asked of a run on the nano set, beside what was measured. The thresholds are ours, not the paper's."""

from collections.abc import Sequence

from ..benchmark.intervals import accuracy_interval
from ..benchmark.schema import ASPECTS
from .report_words import CONTROL_WORDS, MODALITY_WORDS, controls_key, percent, points, scored, span, stage_word, two
from .results import CONTROL_STAGES, CONTROLS, Outcome, Run

CEILING_RATIO, CCC_FLOOR, AUROC_FLOOR, FORGOTTEN = 0.85, 0.80, 0.85, 0.01
# Cells that are compared with chance, by kind: one wrong verdict among a kind's cells has a chance of 5% at most.
BEFORE_FAMILY = len(ASPECTS)
CONTROLS_FAMILY = len(CONTROL_STAGES) * len(CONTROLS) * len(ASPECTS)
CHECKS_NOTE = (
    "A row about chance is met where its interval holds chance, or for replaced sound reaches down to it; the one "
    f"shown there is the interval that was tested, widened by Bonferroni for {BEFORE_FAMILY} cells before stage 1 and "
    f"for {CONTROLS_FAMILY} with replaced sound. Every other row compares the measured value itself and shows its 95% "
    "interval."
)


def checks(report: dict, run: Run) -> list[dict]:
    """What the project asks of a nano run, each with what was measured.

    Shares, differences and CCC are compared by their point estimates. "At chance" means that the interval, widened for
    the number of such cells in the family (Bonferroni), holds chance, for the cells before stage 1; for the controls,
    that it reaches down to chance, since another clip's sound may well mislead below chance. That interval is the one
    that `measured` names.
    """
    stages, found = report["stages"], []

    def add(name: str, passed: bool, measured: str, asked: str) -> None:
        found.append({"name": name, "passed": bool(passed), "measured": measured, "asked": asked})

    for aspect in ASPECTS:
        cell = stages["backbone"]["cells"][f"{aspect}_audio"]
        low, high = _wide(run.cells["backbone"][f"{aspect}_audio"], BEFORE_FAMILY)
        add(
            f"{aspect} by sound before stage 1",
            low <= cell["chance"] <= high,
            f"{percent(cell['accuracy'])} {span((low, high))}",
            f"chance, {percent(cell['chance'])}",
        )
    for aspect in ASPECTS:
        ratio = report["hearing"][aspect]
        measured = (
            "the backbone never sees it"
            if ratio["ratio"] is None
            else f"{percent(ratio['ratio'])} {span(ratio['ci95'])}"
        )
        add(
            f"{aspect} by sound after stage 1, share of the visual ceiling",
            ratio["ratio"] is not None and ratio["ratio"] >= CEILING_RATIO,
            measured,
            f"at least {percent(CEILING_RATIO, 0)}",
        )
    gain = report["av_gain"]["emotion"]
    add(
        f"emotion by sound and picture minus {MODALITY_WORDS[gain['better_single']]} alone, after stage 2",
        gain["difference"] > 0,
        f"{points(gain['difference'])} {span(gain['ci95'], signed=True)}",
        "above 0",
    )
    for name in ("valence", "arousal"):
        av = stages["stage2"]["va"]["av"]
        add(
            f"{name} CCC by sound and picture, after stage 2",
            av[f"{name}_ccc"] >= CCC_FLOOR,
            " ".join(scored(av, name)),
            f"at least {CCC_FLOOR:.2f}",
        )
    conflict = report["sureness"]["conflict"]
    auroc = "n/a"
    if conflict["auroc"] is not None:
        auroc = f"AUROC {two(conflict['auroc'])} [{', '.join(map(two, conflict['ci95']))}]"
    add(
        "conflict score against clips with another clip's sound, after stage 2",
        conflict["auroc"] is not None and conflict["auroc"] >= AUROC_FLOOR,
        auroc,
        f"at least {AUROC_FLOOR:.2f}",
    )
    for aspect in ASPECTS:
        kept = report["kept"][aspect]
        add(
            f"{aspect} by picture, after stage 2 minus backbone",
            kept["difference"] >= -FORGOTTEN,
            f"{points(kept['difference'], signed=True)} {span(kept['ci95'], signed=True)}",
            f"at most {points(FORGOTTEN)} lost",
        )
    for stage in CONTROL_STAGES:
        for control in CONTROLS:
            for aspect in ASPECTS:
                cell = report[controls_key(stage)][control][f"{aspect}_audio"]
                low, high = _wide(run.controls[stage][control][f"{aspect}_audio"], CONTROLS_FAMILY)
                add(
                    f"{aspect} with {CONTROL_WORDS[control]}, after {stage_word(stage)}",
                    low <= cell["chance"],
                    f"{percent(cell['accuracy'])} {span((low, high))}",
                    f"back to chance, {percent(cell['chance'])}",
                )
    return found


def _wide(outcomes: Sequence[Outcome], family: int) -> tuple[float, float]:
    clips = [outcome.clip_id for outcome in outcomes]
    return accuracy_interval(clips, [outcome.correct for outcome in outcomes], 1 - 0.05 / family)[1]
