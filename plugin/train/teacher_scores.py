"""Scores that say how far a teacher's response can be trusted to teach hearing. The paper names none: all are ours.

entropy      mean entropy of the teacher's next-token distributions at its response, nats: high where it guesses
agreement    share of positions at which it expects the same token when it sees other frames and is asked in other
             words: low where the response hangs on a frame or a wording; None where neither can differ, as of a
             picture whose question has one wording
grounding    mean KL of what it expects with and without the picture, nats: near 0 where the response could have
             been given blind, so that it tells nothing of what is seen
audio_dbfs   level of the sound, root mean square over full scale, dB: low where there is nothing to hear
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .chunked_divergence import entropy
from .losses import divergence

SCORES = ("entropy", "agreement", "grounding", "audio_dbfs")
SILENCE_DBFS = -120.0
"""What digital silence scores: below the noise of 16 bits."""


def level_dbfs(waveform: np.ndarray) -> float:
    """Root mean square of a waveform (samples,) in [-1, 1], in dB of full scale; `SILENCE_DBFS` at least."""
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    return round(max(10 * math.log10(power), SILENCE_DBFS), 3) if power > 0 else SILENCE_DBFS


@torch.no_grad()
def reading_scores(
    states: dict[str, torch.Tensor], head: nn.Module, lengths: Sequence[int], wanted: set[str]
) -> list[dict[str, float]]:
    """Scores of responses from the teacher's readings of them.

    Args:
        states: "own" (N, D), and "again", "blind" (N, D) where agreement, grounding are wanted.
        head: the LLM's head.
        lengths: tokens of each response; they sum to N.
        wanted: names of scores.

    Returns:
        one dictionary a response.
    """
    values: dict[str, torch.Tensor] = {}  # (N,) each
    if "entropy" in wanted:
        values["entropy"] = entropy(states["own"], head)
    if "agreement" in wanted:
        values["agreement"] = divergence(states["own"], states["again"], head)["agrees"].float()
    if "grounding" in wanted:
        values["grounding"] = divergence(states["own"], states["blind"], head)["divergence"]
    means = {name: [part.mean().item() for part in value.split(list(lengths))] for name, value in values.items()}
    return [{name: round(found[i], 5) for name, found in means.items()} for i in range(len(lengths))]
