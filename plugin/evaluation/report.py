"""The report of a run as one dictionary, `report.json`: every figure with its interval, chance and what was asked.

How each interval is made is in `intervals.py`. Chance is one over the number of options, averaged over the items of
the cell. The visual ceiling of an aspect is the accuracy of the untouched backbone when it sees: stage 1 distils from
it, so hearing is compared with it.
"""

import json
from collections.abc import Sequence

import numpy as np

from ..benchmark.intervals import accuracy_interval, ccc, ccc_interval, paired
from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from .report_checks import checks
from .report_words import controls_key, headline
from .results import CONTROL_STAGES, STAGES, ModalityPredictions, Outcome, Run
from .sureness import read_sureness

FORMAT = 1
TINY_STATEMENT = "Made with --scale tiny: these figures mean nothing."
NANO_STATEMENT = (
    "These figures come from the nano set: {parts}, to show that the whole way works. They are not a public "
    "leaderboard result and say nothing about how well a full-size model understands art."
)
NANO_PARTS = "procedural clips and a backbone of one to two million parameters, made by this package"
GIVEN_PARTS = "procedural clips made by this package, with a backbone that was given as --backbone {backbone}"
# The answers do not depend on it, and the seed has an entry of its own.
ARGUMENTS_APART = ("seed", "batch_size")
INTERVAL_NOTE = (
    "Brackets are 95% intervals: Wilson's for an accuracy; for a ratio, a difference or a CCC a bootstrap that draws "
    "whole clips (10,000 draws, the same clips in both cells). They cover the choice of clips, not the training seed."
)


def accuracy(outcomes: Sequence[Outcome]) -> dict:
    """Accuracy of one cell with its 95% interval, chance and the share of answers that name no option.

    Where questions were not asked, "missing" is their share; they count as not right.
    """
    n = len(outcomes)
    values = [outcome.correct for outcome in outcomes]
    clips = [outcome.clip_id for outcome in outcomes]
    method, interval = accuracy_interval(clips, values)
    return {
        "accuracy": sum(values) / n,
        "ci95": list(interval),
        "ci_method": method,
        "n": n,
        "chance": float(np.mean([1 / len(outcome.options) for outcome in outcomes])),
        "unparsable": sum(outcome.predicted is None and not outcome.missing for outcome in outcomes) / n,
        **({"missing": missing / n} if (missing := sum(outcome.missing for outcome in outcomes)) else {}),
    }


def modality_scores(predictions: ModalityPredictions) -> dict:
    scores: dict = {"n": len(predictions.clip_ids)}
    for name in ("valence", "arousal"):
        pair = getattr(predictions, name), getattr(predictions, f"true_{name}")
        scores[f"{name}_ccc"] = float(ccc(*pair))
        scores[f"{name}_ccc_ci95"] = list(ccc_interval(*pair))
    return scores


def scores_by_clip(outcomes: Sequence[Outcome]) -> tuple[list[str], list[float]]:
    return [outcome.clip_id for outcome in outcomes], [outcome.correct for outcome in outcomes]


def statement(run: Run) -> str:
    """What the figures must not be taken for."""
    arguments = run.state["arguments"]
    parts = []
    if arguments.get("scale") == "tiny":
        parts.append(TINY_STATEMENT)
    if run.benchmark.get("nano"):
        backbone = arguments.get("backbone")
        parts.append(NANO_STATEMENT.format(parts=GIVEN_PARTS.format(backbone=backbone) if backbone else NANO_PARTS))
    return " ".join(parts)


def build_report(run: Run) -> dict:
    """All numbers of the report; see the module's docstring.

    Returns:
        A dictionary that `json.dumps` takes, with `stages`, `controls` (after stage 2), `controls_stage1`, `ceiling`,
        `hearing`, `av_gain`, `kept`, `sureness`, `checks`, `cost`, `seed`, `arguments`, `versions`, `headline` and
        the `statement` about what the figures must not be taken for.
    """
    stages = {
        stage: {
            "cells": {cell: accuracy(outcomes) for cell, outcomes in run.cells[stage].items()},
            "va": {path: modality_scores(run.va[stage][path]) for path in MODALITIES},
        }
        for stage in STAGES
    }
    report: dict = {
        "format": FORMAT,
        "nano": bool(run.benchmark.get("nano")),
        "statement": statement(run),
        "intervals": INTERVAL_NOTE,
        "seed": run.state["seed"],
        "scale": run.state["arguments"].get("scale"),
        "arguments": {key: value for key, value in run.state["arguments"].items() if key not in ARGUMENTS_APART},
        "benchmark": run.benchmark,
        "versions": run.state["versions"],
        "machine": run.state.get("machine", {}),
        "arithmetic": run.state.get("arithmetic", {}),
        "stages": stages,
        "ceiling": {aspect: stages["backbone"]["cells"][f"{aspect}_visual"]["accuracy"] for aspect in ASPECTS},
        "hearing": {aspect: hearing(run, aspect) for aspect in ASPECTS},
        "av_gain": {aspect: av_gain(run, aspect) for aspect in ASPECTS},
        "kept": {aspect: kept(run, aspect) for aspect in ASPECTS},
        "sureness": read_sureness(run.out / run.state["layout"]["evaluations"]["stage2"] / "emotion.json"),
        **{
            controls_key(stage): {
                control: {cell: accuracy(outcomes) for cell, outcomes in cells.items()}
                for control, cells in run.controls[stage].items()
            }
            for stage in CONTROL_STAGES
        },
        "cost": {
            name: {key: entry[key] for key in ("wall_s", "peak_rss_mb", "from_cache", "attempts")}
            for name, entry in run.state["steps"].items()
            if entry["status"] == "done"
        },
        "commands": {name: entry["command"] for name, entry in run.state["steps"].items()},
    }
    report["checks"] = checks(report, run)
    report["headline"] = headline(report)
    return report


def hearing(run: Run, aspect: str) -> dict:
    """Accuracy by sound alone after stage 1 as a share of the visual ceiling, paired by clip."""
    heard = scores_by_clip(run.cells["stage1"][f"{aspect}_audio"])
    seen = scores_by_clip(run.cells["backbone"][f"{aspect}_visual"])
    mean_seen = float(np.mean(seen[1]))
    return {
        "ratio": float(np.mean(heard[1])) / mean_seen if mean_seen else None,
        "ci95": list(paired(heard, seen, np.divide)) if mean_seen else None,
    }


def kept(run: Run, aspect: str) -> dict:
    """Accuracy by picture alone after stage 2 minus that of the backbone, paired by clip: what training cost it."""
    after = scores_by_clip(run.cells["stage2"][f"{aspect}_visual"])
    before = scores_by_clip(run.cells["backbone"][f"{aspect}_visual"])
    return {
        "difference": float(np.mean(after[1]) - np.mean(before[1])),
        "ci95": list(paired(after, before, np.subtract)),
    }


def av_gain(run: Run, aspect: str) -> dict:
    """Accuracy with sound and picture minus that of the better one alone, after stage 2, paired by clip.

    The better one is chosen once, on all clips; the interval does not cover that choice.
    """
    cells = {path: scores_by_clip(run.cells["stage2"][f"{aspect}_{path}"]) for path in MODALITIES}
    better = max(("audio", "visual"), key=lambda path: np.mean(cells[path][1]))
    return {
        "better_single": better,
        "difference": float(np.mean(cells["av"][1]) - np.mean(cells[better][1])),
        "ci95": list(paired(cells["av"], cells[better], np.subtract)),
    }


def write_report(run: Run) -> dict:
    """Writes `report.json`, `report.md` with its figures, and `report.html` into the run's folder.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: if matplotlib is not installed or a clip to show cannot be read; nothing has been written then.
    """
    from . import report_html, report_markdown
    from .examples import choose
    from .figures import draw_all

    report = build_report(run)
    # Rendered before the first file is written, so that an error leaves no half report.
    figures = draw_all(run, report)
    clips = choose(run)
    html = report_html.render(report, figures, clips)
    markdown = report_markdown.render(report, figures, clips)
    folder = run.out / "figures"
    folder.mkdir(exist_ok=True)
    for figure in figures:
        (folder / f"{figure.name}.png").write_bytes(figure.png)
    (run.out / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (run.out / "report.md").write_text(markdown, encoding="utf-8")
    (run.out / "report.html").write_text(html, encoding="utf-8")
    return report
