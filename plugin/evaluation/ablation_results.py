"""What the runs of an ablation measured: every cell of every variant with its interval, and its distance to the full
model, clip by clip.

A mean is that of the seeds' means. Its 95% interval is a bootstrap on two levels, of our choosing: seeds are drawn,
then clips within each, and a pair of variants sees the same draw. With few seeds the spread between them is known
poorly; the seeds' own values stand beside each mean in the JSON file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..benchmark.intervals import BOOTSTRAP_SEED, ccc, draw_weights, percentile_interval
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .ablation import FULL, RECALLED, VARIANTS, Variant
from .results import CELLS, ModalityPredictions, cell_items, read_emotion, read_items, read_json, read_task
from .steps import STATE_FILE

DRAWS = 4_000
CCC_CELLS = tuple(f"ccc_{path}" for path in MODALITIES)
ALL_CELLS = (*CELLS, *CCC_CELLS)
# Which scores of `emotion.json` say how sure the calibrated model is.
SURENESS = ("ece", "valence_coverage", "arousal_coverage")


@dataclass(frozen=True)
class SeedRun:
    """One seed's results; arrays are in the order of the benchmark's clips."""

    folder: Path
    state: dict
    right: dict[str, dict[str, np.ndarray]]  # variant, cell -> (clips,) 1.0 where the answer was right
    planes: dict[str, dict[str, ModalityPredictions]]  # variant, path
    emotion: dict  # what `evaluate-emotion` wrote of the full model
    recalled: dict[str, dict]  # variant -> what `nano recall` wrote
    clips: int

    @property
    def seed(self) -> int:
        return self.state["seed"]


def read_runs(folders: Sequence[Path]) -> list[SeedRun]:
    """The runs, by seed.

    Raises:
        InputError: a folder without a finished run, two runs of one seed, or of other arguments or versions.
    """
    runs = sorted((_read_run(folder) for folder in folders), key=lambda run: run.seed)
    for one, other in zip(runs, runs[1:]):
        if one.seed == other.seed:
            raise InputError(f"{one.folder} and {other.folder} have the same seed, {one.seed}; give each seed once")
    for run in runs[1:]:
        for name in ("arguments", "versions", "configs"):
            ours, theirs = (_comparable(r.state[name]) for r in (runs[0], run))
            if ours != theirs:
                raise InputError(
                    f"{runs[0].folder} and {run.folder} differ in {name}: {ours} and {theirs}; make them alike with "
                    "`vaemotionllm ablation run --overwrite`"
                )
    return runs


def _comparable(facts: dict) -> dict:
    given = {"backbone": bool(facts["backbone"])} if "backbone" in facts else {}
    return {name: value for name, value in facts.items() if name not in ("seed", "backbone")} | given


def _read_run(folder: Path) -> SeedRun:
    state = read_json(folder / STATE_FILE, "the state file of `vaemotionllm ablation run`")
    layout = state.get("layout", {})
    missing = {variant.name for variant in VARIANTS} - layout.get("evaluations", {}).keys()
    if missing or state.get("status") != "complete":
        raise InputError(f"{folder} holds no finished run of this ablation; run `vaemotionllm ablation run` on it")
    items = read_items(folder / layout["benchmark"])
    right, planes = {}, {}
    for variant in VARIANTS:
        where = folder / layout["evaluations"][variant.name]
        right[variant.name] = {}
        for cell in CELLS:
            outcomes = read_task(where / "lmms_eval", f"artemo_{cell}", cell_items(items, cell))
            by_clip = {outcome.clip_id: outcome.correct for outcome in outcomes}
            if len(by_clip) < len(outcomes):
                raise InputError(
                    f"{where} has two questions about one clip in {cell}; one is needed for the intervals"
                )
            right[variant.name][cell] = np.array([by_clip[clip] for clip in sorted(by_clip)])
        if variant.supervised:
            planes[variant.name] = {
                path: _sorted(found) for path, found in read_emotion(where / "emotion.json").items()
            }
    full = folder / layout["evaluations"][FULL.name] / "emotion.json"
    recalled = {name: read_json(folder / layout["recall"][name], "what `nano recall` writes") for name in RECALLED}
    counts = {len(values) for cells in right.values() for values in cells.values()}
    counts |= {len(plane.clip_ids) for paths in planes.values() for plane in paths.values()}
    if len(counts) > 1:
        raise InputError(f"{folder} has cells of {sorted(counts)} clips; every cell needs the same clips")
    return SeedRun(folder, state, right, planes, read_json(full, "the full model's readings"), recalled, counts.pop())


def _sorted(plane: ModalityPredictions) -> ModalityPredictions:
    order = np.argsort(plane.clip_ids)
    names = tuple(plane.clip_ids[i] for i in order)
    return ModalityPredictions(
        names, plane.valence[order], plane.arousal[order], plane.true_valence[order], plane.true_arousal[order]
    )


class Ablation:
    """Means over seeds, and how sure they are.

    Args:
        runs: one a seed.
        draws: resamples of the bootstrap.
    """

    def __init__(self, runs: Sequence[SeedRun], draws: int = DRAWS):
        self.runs = list(runs)
        rng = np.random.default_rng((BOOTSTRAP_SEED, len(self.runs)))
        count = len(self.runs)
        # A seed that is drawn twice draws its clips anew: a place among the drawn seeds has weights of its own.
        self._chosen = rng.integers(count, size=(draws, count))  # (draws, place)
        self._weights = [
            [draw_weights(run.clips, draws, seed=1 + place * count + number) for number, run in enumerate(self.runs)]
            for place in range(count)
        ]

    def has(self, variant: Variant, cell: str) -> bool:
        """Whether a variant was taught what a cell asks."""
        return cell.split("_")[1] in variant.modalities and (not cell.startswith("ccc") or variant.supervised)

    def score(self, variant: str, cell: str) -> dict:
        """`{"mean", "ci95", "by_seed"}` of a cell: an accuracy, or the mean of valence's and arousal's CCC."""
        return self._summary(lambda run, weights: self._value(run, variant, cell, weights))

    def difference(self, one: tuple[str, str], other: tuple[str, str]) -> dict:
        """The same of one (variant, cell) minus another, paired by clip."""
        return self._summary(lambda run, weights: self._value(run, *one, weights) - self._value(run, *other, weights))

    def recall_difference(self, one: str, other: str) -> dict:
        """Accuracy in words of one variant minus that of another, by seed; the questions are all that there are."""
        by_seed = [run.recalled[one]["accuracy"] - run.recalled[other]["accuracy"] for run in self.runs]
        return {"mean": float(np.mean(by_seed)), "ci95": None, "by_seed": by_seed}

    def of_full(self, *keys: str) -> dict:
        """A figure of the full model's `emotion.json`, by seed; a mean of None where a seed has none."""
        by_seed = []
        for run in self.runs:
            value = run.emotion
            for key in keys:
                value = value[key]
            by_seed.append(value)
        return {"mean": None if None in by_seed else float(np.mean(by_seed)), "ci95": None, "by_seed": by_seed}

    def _summary(self, value: Callable[[SeedRun, np.ndarray | None], np.ndarray]) -> dict:
        by_seed = [float(value(run, None)) for run in self.runs]
        total = np.zeros(len(self._chosen))
        for place, of_seeds in enumerate(self._weights):
            drawn = np.stack([value(run, weights) for run, weights in zip(self.runs, of_seeds)], 1)  # (draws, seeds)
            total += drawn[np.arange(len(drawn)), self._chosen[:, place]]
        interval = percentile_interval(total / len(self._weights))
        return {"mean": float(np.mean(by_seed)), "ci95": list(interval), "by_seed": by_seed}

    @staticmethod
    def _value(run: SeedRun, variant: str, cell: str, weights: np.ndarray | None) -> np.ndarray:
        """() without weights, else (draws,)."""
        if not cell.startswith("ccc_"):
            right = run.right[variant][cell]
            return right.mean() if weights is None else weights @ right / weights.sum(1)
        plane = run.planes[variant][cell.removeprefix("ccc_")]
        pairs = ((plane.valence, plane.true_valence), (plane.arousal, plane.true_arousal))
        return sum(ccc(predicted, true, weights) for predicted, true in pairs) / 2  # type: ignore[return-value]


def measure(runs: Sequence[SeedRun], draws: int = DRAWS) -> dict:
    """Everything that the report says, as one dictionary that `json.dumps` takes."""
    ablation = Ablation(runs, draws)
    variants: dict[str, dict] = {}
    for variant in VARIANTS:
        cells = [cell for cell in ALL_CELLS if ablation.has(variant, cell)]
        variants[variant.name] = {
            "title": variant.title,
            "share": variant.share,
            "cells": {cell: ablation.score(variant.name, cell) for cell in cells},
            "full_minus_it": {
                cell: ablation.difference((FULL.name, cell), (variant.name, cell))
                for cell in cells
                if variant is not FULL
            },
        }
    means = {path: variants[FULL.name]["cells"][f"emotion_{path}"]["mean"] for path in ("audio", "visual")}
    better = max(means, key=means.__getitem__)
    return {
        "seeds": [run.seed for run in runs],
        "train_clips": runs[0].state["train_clips"],
        "benchmark_clips": [run.clips for run in runs],
        "versions": runs[0].state["versions"],
        "arguments": _comparable(runs[0].state["arguments"]),
        "variants": variants,
        "full_model": {
            "better_single": better,
            "av_gain": ablation.difference((FULL.name, "emotion_av"), (FULL.name, f"emotion_{better}")),
            "conflict_auroc": ablation.of_full("conflict", "auroc"),
            **{name: {path: ablation.of_full(path, name) for path in MODALITIES} for name in SURENESS},
        },
        "kept": {
            name: {
                **{
                    cell: ablation.difference((name, cell), ("backbone", cell))
                    for cell in ("content_visual", "emotion_visual")
                },
                "words": ablation.recall_difference(name, "backbone"),
            }
            for name in RECALLED
            if name != "backbone"
        },
    }
