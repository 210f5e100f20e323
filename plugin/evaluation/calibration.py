"""How sure a prediction is: a temperature for the labels' probabilities, conformal intervals for valence and arousal.

Both are fitted on labelled clips that were not trained on, for each path by itself, and kept in the model's config.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..benchmark.intervals import LEVEL, fewest_clips
from ..data.collator import emotion_target
from ..data.dataset import MEDIA_OF_MODALITY, ClipEncoder, carries
from ..data.manifest import Clip
from ..model.configuration_vaemotionllm import MODALITIES
from ..model.emotion_prediction import check_supervisor, run_supervisor
from ..utils import InputError, write_json

logger = logging.getLogger(__name__)


@dataclass
class Readings:
    """What a path reads from N clips, and what they are annotated with (NaN where a clip has no label)."""

    plane: list[tuple[float, float]] = field(default_factory=list)  # valence, arousal
    true_plane: list[tuple[float, float]] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)  # (K,) each
    targets: list[torch.Tensor] = field(default_factory=list)  # (K,) each, distributions


def read_clips(
    model, processor, clips: Sequence[Clip], batch_size: int = 16, progress: bool = False
) -> dict[str, Readings]:
    """The Supervisor's readings of clips on each path, every path from its own media alone.

    A clip with an emotion that the model does not know counts as one without label, and is warned of.

    Raises:
        InputError: a clip that cannot be decoded.
    """
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    labels = model.config.emotion_labels or ()
    strange = {clip.id: names for clip in clips if (names := sorted(_names(clip) - {*labels})) and labels}
    if strange:
        logger.warning(
            "%s of %s clips have an emotion that the model does not know (%s), such as %s: they count as clips "
            "without label.",
            len(strange),
            len(clips),
            ", ".join(sorted({name for names in strange.values() for name in names})),
            next(iter(strange)),
        )
    found = {path: Readings() for path in MODALITIES}
    with tqdm(total=len(clips), desc="readings", unit="clip", disable=not progress) as bar:
        for begin in range(0, len(clips), batch_size):
            batch = clips[begin : begin + batch_size]
            encoded = [{m: encoder.encode(clip, m) for m in ("visual", "audio") if carries(clip, m)} for clip in batch]
            for path in MODALITIES:
                wanted = MEDIA_OF_MODALITY[path]
                usable = [(clip, parts) for clip, parts in zip(batch, encoded) if parts.keys() >= set(wanted)]
                if not usable:
                    continue
                media = [[parts[modality] for modality in wanted] for _, parts in usable]
                valence, arousal, logits = run_supervisor(model, processor, path, media)
                for row, (clip, _) in enumerate(usable):
                    found[path].plane.append((valence[row].item(), arousal[row].item()))
                    found[path].true_plane.append((_number(clip.valence), _number(clip.arousal)))
                    if logits is not None:
                        found[path].logits.append(logits[row])
                        known = None if clip.id in strange else clip.emotion
                        found[path].targets.append(emotion_target(known, labels))
            bar.update(len(batch))
    return found


def fit(readings: dict[str, Readings], level: float = LEVEL) -> dict[str, Any]:
    """The calibration of each path that has enough labelled clips.

    Args:
        readings: of clips that were not trained on.
        level: share of annotated values that an interval is to hold.

    Returns:
        {"level", "clips": {path: number with any label}, "temperature": {path: T}, "ece": {path: [before, after]},
        "valence": {path: half width}, "arousal": {path: half width}}. An interval is split conformal (Vovk et al.,
        2005): it holds the value of another clip of the same kind with at least this probability, whatever the model.
        The calibration error is that of each half of the clips with the temperature of the other half.
    """
    fewest = fewest_clips(level)
    found: dict[str, Any] = {"level": level, "clips": {}, "ece": {}, "temperature": {}, "valence": {}, "arousal": {}}
    for path, reading in readings.items():
        labelled = [i for i, target in enumerate(reading.targets) if not torch.isnan(target).any()]
        on_plane = [i for i, pair in enumerate(reading.true_plane) if np.isfinite(pair).any()]
        found["clips"][path] = len({*labelled, *on_plane})
        if len(labelled) >= fewest:
            logits, targets = (torch.stack([rows[i] for i in labelled]) for rows in (reading.logits, reading.targets))
            found["temperature"][path] = round(fit_temperature(logits, targets), 4)
            found["ece"][path] = [round(value, 4) for value in calibration_errors(logits, targets)]
        for column, name in enumerate(("valence", "arousal")):
            misses = np.asarray([abs(p[column] - t[column]) for p, t in zip(reading.plane, reading.true_plane)])
            misses = misses[np.isfinite(misses)]
            if len(misses) >= fewest:
                found[name][path] = round(float(conformal_quantile(misses, level)), 6)
    return found


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """T > 0 that makes softmax(logits / T) likeliest (Guo et al., arXiv 1706.04599).

    Args:
        logits: (N, K).
        targets: (N, K) distributions.
    """
    logits, targets = logits.double(), targets.double()
    log_t = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        # A model that is always right has no best temperature: the bounds keep it in reach.
        loss = -(targets * (logits / log_t.clamp(-3, 3).exp()).log_softmax(-1)).sum(-1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_t.detach().clamp(-3, 3).exp())


def conformal_quantile(misses: np.ndarray, level: float) -> float:
    """The smallest miss that at least `level` of the clips, and one more of their kind, do not exceed."""
    rank = min(ceil((len(misses) + 1) * level), len(misses))
    return float(np.sort(misses)[rank - 1])


def calibration_errors(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Expected calibration error of the logits as they are, and of each half at the other half's temperature.

    Args:
        logits: (N, K).
        targets: (N, K) distributions.
    """
    tempered = logits.double().clone()
    for here, there in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        tempered[here] /= fit_temperature(logits[there], targets[there])
    before, after = (
        expected_calibration_error(values.softmax(-1).numpy(), targets.numpy()) for values in (logits, tempered)
    )
    return before, after


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Mean distance of the highest probability from how often it is right, over bins of equal width (Guo et al.).

    Args:
        probabilities: (N, K).
        targets: (N, K) distributions: a label is right as far as its share.
        bins: number of bins of [0, 1].
    """
    best = probabilities.argmax(1)
    confidence, right = probabilities.max(1), targets[np.arange(len(targets)), best]
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((confidence - right)[bin_of == number].sum()) for number in range(bins)]
    return float(sum(gaps) / len(targets))


def calibrate(model_dir: Path, model, processor, clips: Sequence[Clip], level: float, **options) -> dict[str, Any]:
    """Fit on clips and write the result into `config.json` of the model's folder. Returns it.

    Raises:
        InputError: too few labelled clips, a Supervisor that was never trained; see also `read_clips`.
    """
    check_supervisor(model)
    found = fit(read_clips(model, processor, clips, **options), level)
    if not any(found[name] for name in ("temperature", "valence", "arousal")):
        raise InputError(
            f"no path has {fewest_clips(level)} clips with an emotion that the model knows, or with valence and "
            "arousal; an interval cannot be told from fewer. Give more labelled clips."
        )
    model.config.emotion_calibration = found
    file = Path(model_dir) / "config.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"emotion_calibration": found})
    return found


def _names(clip: Clip) -> set[str]:
    return {clip.emotion} if isinstance(clip.emotion, str) else set(clip.emotion or ())


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
