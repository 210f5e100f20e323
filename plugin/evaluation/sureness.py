"""How sure the Supervisor is, and how rightly: labels, calibration error, intervals, and the conflict score.

Read from what `vaemotionllm evaluate-emotion` wrote; the intervals around its figures are made here.
"""

from pathlib import Path

import numpy as np

from ..benchmark.intervals import bootstrap, percentile_interval, wilson
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .results import read_json

PLANE = ("valence", "arousal")


def read_sureness(file: Path) -> dict:
    """A model's figures.

    Returns:
        `level`, the share of values that the intervals are to hold (None without calibration); `conflict`, with
        `auroc`, `ci95`, `n` and `reason`; and for each path `n`, `accuracy` and `ece` of the labels,
        `valence_coverage`, `arousal_coverage` and their `_ci95`. What was not measured is None.

    Raises:
        InputError: the file is missing or does not hold them.
    """
    written = read_json(file, "what `vaemotionllm evaluate-emotion` writes")
    try:
        return {
            "level": written["level"],
            "conflict": _conflict(written["conflict"]),
            **{path: _path(written[path]) for path in MODALITIES},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} does not say how sure the model is ({error!r}); run `vaemotionllm evaluate-emotion` again"
        ) from error


def _path(written: dict) -> dict:
    found = {"n": len(written["clip_ids"]), "accuracy": written["accuracy"], "ece": written["ece"]}
    for name in PLANE:
        share = written[f"{name}_coverage"]
        found[f"{name}_coverage"] = share
        found[f"{name}_coverage_ci95"] = None if share is None else list(wilson(round(share * found["n"]), found["n"]))
    return found


def _conflict(written: dict) -> dict:
    found = {"auroc": written["auroc"], "ci95": None, "n": len(written["clip_ids"]), "reason": written["reason"]}
    if found["auroc"] is not None:
        disagreeing, agreeing = (np.asarray(written[name]) for name in ("disagreeing", "agreeing"))
        # (clips, clips): whether the one that disagrees scores above the one that agrees, ties counting half.
        above = (np.sign(disagreeing[:, None] - agreeing[None, :]) + 1) / 2
        drawn = bootstrap(len(above), lambda weights: ((weights @ above) * weights).sum(1) / len(above) ** 2)
        found["ci95"] = list(percentile_interval(drawn))
    return found
