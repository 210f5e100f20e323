"""Several runs that differ in the seed, as one Markdown table of means."""

import json
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .report_words import CONTROL_WORDS, MODALITY_WORDS, controls_key, percent, points, stage_word, two
from .results import CONTROL_STAGES, CONTROLS, STAGES


def read_reports(folders: Sequence[Path]) -> list[dict]:
    """The `report.json` of each run.

    Raises:
        InputError: a run has none, two runs have one seed, or their arguments or benchmarks' sizes differ.
    """
    reports: list[dict] = []
    for folder in folders:
        file = folder / "report.json"
        if not file.is_file():
            raise InputError(f"{folder} holds no report.json; give the folders of finished demos")
        report = json.loads(file.read_text(encoding="utf-8"))
        for other, before in zip(reports, folders):
            if other["seed"] == report["seed"]:
                raise InputError(
                    f"{before} and {folder} have the same seed, {report['seed']}; a mean needs other seeds"
                )
            ours, theirs = _arguments(other), _arguments(report)
            odd = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
            if odd:
                words = "; ".join(f"{name} {ours.get(name)} and {theirs.get(name)}" for name in odd)
                raise InputError(
                    f"{before} and {folder} were made with other arguments ({words}); a mean needs the same ones"
                )
            if _questions(other) != _questions(report):
                raise InputError(f"{before} and {folder} have benchmarks of other sizes; their mean says nothing")
        reports.append(report)
    return reports


def _arguments(report: dict) -> dict:
    """The arguments but the seed; of a given backbone that it was given, since each seed may have its own."""
    arguments = report.get("arguments", {"scale": report.get("scale")})
    return {**arguments, "backbone": "given" if arguments.get("backbone") else "nano"}


def _questions(report: dict) -> list[int]:
    return [cell["n"] for cell in report["stages"]["backbone"]["cells"].values()]


def seeds_table(reports: Sequence[dict]) -> str:
    """Means over the runs, with the lowest and the highest of them in brackets."""

    def mean(*keys: str, words: Callable[[float], str] = percent) -> str:
        values = [reduce(lambda part, key: part[key], keys, report) for report in reports]
        if None in values:  # a share of a ceiling that is zero, a model that was not calibrated
            return "undefined"
        return f"{words(sum(values) / len(values))} ({words(min(values))} to {words(max(values))})"

    seeds = ", ".join(str(report["seed"]) for report in reports)
    lines = [
        f"| mean of seeds {seeds} (lowest to highest) | "
        + " | ".join(MODALITY_WORDS[path] for path in MODALITIES)
        + " |",
        "| --- | ---: | ---: | ---: |",
    ]
    for aspect in ASPECTS:
        for stage in STAGES:
            cells = [mean("stages", stage, "cells", f"{aspect}_{path}", "accuracy") for path in MODALITIES]
            lines.append(f"| {aspect}, {stage_word(stage)} | " + " | ".join(cells) + " |")
    last = STAGES[-1]
    for name in ("valence", "arousal"):
        cells = [mean("stages", last, "va", path, f"{name}_ccc", words=two) for path in MODALITIES]
        lines.append(f"| {name} CCC, {stage_word(last)} | " + " | ".join(cells) + " |")
    for stage in CONTROL_STAGES:
        for control in CONTROLS:
            for aspect in ASPECTS:
                cell = mean(controls_key(stage), control, f"{aspect}_audio", "accuracy")
                lines.append(f"| {aspect} with {CONTROL_WORDS[control]}, {stage_word(stage)} | {cell} | | |")
    sure = {
        "ece": "calibration error of the labels",
        "valence_coverage": "inside the valence interval",
        "arousal_coverage": "inside the arousal interval",
    }
    for name, words in sure.items():
        cells = [mean("sureness", path, name) for path in MODALITIES]
        lines.append(f"| {words}, {stage_word(last)} | " + " | ".join(cells) + " |")
    lines.append("")
    auroc = mean("sureness", "conflict", "auroc", words=two)
    lines.append(f"- conflict score against clips with another clip's sound, AUROC: {auroc}")
    for aspect in ASPECTS:
        share = mean("hearing", aspect, "ratio")
        lines.append(f"- {aspect} by sound after stage 1, share of what the backbone reaches by seeing: {share}")
    for aspect in ASPECTS:
        gain = mean("av_gain", aspect, "difference", words=points)
        lines.append(f"- {aspect} by sound and picture after stage 2, above the better one alone: {gain}")
    return "\n".join(lines)
