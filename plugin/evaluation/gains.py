"""What the second sense adds: audio gain, visual gain and synergy of one aspect, with intervals by clip.

lmms-eval cannot print them: a group's aggregation sees one metric at a time, as numbers of the subtasks without their
names and without the samples, so neither a difference of two subtasks nor a paired interval can be made of it. They
are computed from the samples of a result folder instead.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..benchmark.intervals import bootstrap, clip_means, percentile_interval
from ..model.configuration_vaemotionllm import MODALITIES

GAINS = ("audio_gain", "visual_gain", "synergy")

# Clip ids and scores of one cell, item by item.
Cell = tuple[Sequence[str], Sequence[float]]


def gains_of(audio, visual, av) -> dict:
    """The three gains of accuracies, numbers or arrays of one shape.

    audio_gain = av - visual: what sound adds to sight. visual_gain = av - audio: what sight adds to sound.
    synergy = av - max(audio, visual): what both have above the better one alone, the smaller of the two gains.
    The names are the field's; that the better path is chosen in each resample is ours, so the interval of the
    synergy knows that the better one was not known beforehand.
    """
    return {"audio_gain": av - visual, "visual_gain": av - audio, "synergy": av - np.maximum(audio, visual)}


def modality_gains(runs: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, dict]]:
    """Gains of one aspect for each run, and for two runs their differences, with 95% bootstrap intervals by clip.

    Args:
        runs: name -> modality -> cell. All cells hold the same clips; each resample draws the same ones of them
            in every cell and run.

    Returns:
        name -> gain of `GAINS` -> {"value", "ci95"}; with two runs also "difference": second minus first.

    Raises:
        ValueError: two cells hold different clips.
    """
    cells = [(name, path, clip_means(*cells[path])) for name, cells in runs.items() for path in MODALITIES]
    clips = cells[0][2][2]
    for name, path, (_, _, other) in cells:
        if other != clips:
            odd = sorted(set(clips) ^ set(other))
            raise ValueError(
                f"gains need the same clips in every cell; {name} {path} differs in {len(odd)}, such as {odd[:3]}"
            )

    def statistic(weights: np.ndarray) -> np.ndarray:
        """Shape (draws, runs, gains); of two runs their difference stands third."""
        means = {(name, path): (weights @ sums) / (weights @ counts) for name, path, (sums, counts, _) in cells}
        found = [gains_of(*(means[name, path] for path in MODALITIES)) for name in runs]
        values = np.stack([np.stack([of[gain] for gain in GAINS], axis=-1) for of in found], axis=1)
        return np.concatenate([values, values[:, 1:] - values[:, :1]], axis=1) if len(runs) == 2 else values

    value, drawn = statistic(np.ones((1, len(clips))))[0], bootstrap(len(clips), statistic)
    names = [*runs, "difference"] if len(runs) == 2 else list(runs)
    return {
        name: {
            gain: {"value": float(value[i, j]), "ci95": list(percentile_interval(drawn[:, i, j]))}
            for j, gain in enumerate(GAINS)
        }
        for i, name in enumerate(names)
    }
