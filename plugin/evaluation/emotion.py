"""What the Supervisor reads from a benchmark's clips, against their labels: valence, arousal, the emotion's name, how
sure it is, and whether its conflict score tells clips whose sound and sight disagree.

Each clip goes through the model three times, once under each modality, with one fixed prompt; the audio path is read
from the pass that has nothing but sound, and so on. Prompt and protocol are our choice: the paper names neither.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..benchmark import metrics, schema
from ..benchmark.controls import mismatched_partners
from ..benchmark.intervals import ccc
from ..model.configuration_vaemotionllm import MODALITIES
from ..model.emotion_prediction import PROMPT, ModalityEmotion, calibrated_emotion, conflict_of, run_supervisor
from ..model.loading import check_model_folder, load_model, load_processor
from ..utils import InputError
from .calibration import expected_calibration_error


def evaluate(
    model_dir: str | Path,
    benchmark_dir: str | Path,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = False,
) -> dict:
    """Reads every clip of a benchmark that has valence and arousal, on each path.

    Args:
        model_dir: a VAEmotionLLM checkpoint.
        benchmark_dir: a benchmark folder; clips without valence and arousal are left out.
        batch_size: clips a batch.
        device: device of the model; the first GPU, or the CPU where there is none.
        progress: whether to show a bar.

    Returns:
        For each path see `_summary`; `conflict`, see `conflict_scores`; `labels`, those of the model or None; `level`,
        the share of values that a calibrated model's intervals are to hold, or None; beside them `prompt`,
        `benchmark` and `benchmark_folder`.

    Raises:
        InputError: no labelled clip, a medium that cannot be decoded (the item is named), a model without its adapter.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give an integer of at least 1.")
    benchmark = schema.load(benchmark_dir)
    clips = {path: _labelled_clips(benchmark, path) for path in MODALITIES}
    if not any(clips.values()):
        raise InputError(f"{benchmark.folder} has no item with valence and arousal; there is nothing to compare with.")
    check_model_folder(model_dir)
    model, processor = load_model(str(model_dir), device), load_processor(str(model_dir))
    labels = model.config.emotion_labels
    result: dict = {
        "prompt": PROMPT,
        "benchmark": benchmark.name,
        "benchmark_folder": str(benchmark.folder),
        "labels": labels,
        "level": (model.config.emotion_calibration or {}).get("level"),
    }
    emotions = {item.clip_id: item.answer for item in benchmark.select(aspect="emotion")}
    votes = {item.clip_id: item.emotion_distribution for item in benchmark.items if item.emotion_distribution}
    readings: dict[str, dict[str, ModalityEmotion]] = {}
    with tqdm(total=sum(map(len, clips.values())), desc="emotion", unit="clip", disable=not progress) as bar:
        for path in MODALITIES:
            readings[path] = {}
            for start in range(0, len(clips[path]), batch_size):
                batch = clips[path][start : start + batch_size]
                readings[path] |= _read(model, processor, batch, path)
                bar.update(len(batch))
            result[path] = _summary(clips[path], readings[path], emotions, votes)
    result["conflict"] = conflict_scores(benchmark, readings["audio"], readings["visual"])
    return result


def conflict_scores(
    benchmark: schema.Benchmark, heard: Mapping[str, ModalityEmotion], seen: Mapping[str, ModalityEmotion]
) -> dict:
    """Whether the conflict score tells clips that disagree from clips that agree.

    A clip with its own sound agrees; one with the sound of the control "mismatch", of a clip with another content and
    another emotion, disagrees. Each path is read from its own media, so no clip is read again for it.

    Args:
        benchmark: where the clips are from.
        heard, seen: clip -> its reading on the audio and on the visual path.

    Returns:
        `{"auroc", "clip_ids", "agreeing", "disagreeing", "reason"}`: the two scores of each clip in the order of
        `clip_ids`; `auroc` is None where there is no pair, and `reason` says why.
    """
    empty: dict = {"auroc": None, "clip_ids": [], "agreeing": [], "disagreeing": []}
    items = [item for item in benchmark.select(modality="audio") if item.clip_id in heard]
    try:
        partners = mismatched_partners(items)
    except InputError as error:
        return {**empty, "reason": str(error)}
    clips = [clip for clip in partners if clip in seen]
    if not clips:
        return {**empty, "reason": "no clip has both sound and sight."}
    agreeing = [_conflict(heard[clip], seen[clip]) for clip in clips]
    disagreeing = [_conflict(heard[partners[clip]], seen[clip]) for clip in clips]
    return {
        "auroc": auroc(disagreeing, agreeing),
        "clip_ids": clips,
        "agreeing": agreeing,
        "disagreeing": disagreeing,
        "reason": None,
    }


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive one scores above a negative one, ties counting half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def _conflict(heard: ModalityEmotion, seen: ModalityEmotion) -> float:
    score = conflict_of(heard, seen)
    assert score is not None  # both are there
    return score


def _labelled_clips(benchmark: schema.Benchmark, path: str) -> list[schema.Item]:
    """One item for each clip under a modality: content and emotion questions show the same media."""
    items: dict[str, schema.Item] = {}
    for item in benchmark.select(modality=path):
        if item.valence is not None and item.arousal is not None:
            items.setdefault(item.clip_id, item)
    return list(items.values())


def _read(model, processor, items: list[schema.Item], path: str) -> dict[str, ModalityEmotion]:
    """The reading of each item's clip on a path."""
    media = []
    for item in items:
        try:
            kinds = [kind for kind in ("image", "video", "audio") if getattr(item, kind)]
            media.append([processor.encode_media(kind, getattr(item, kind)) for kind in kinds])
        except InputError as error:
            raise InputError(f"item {item.id!r}: {error}") from error
    valence, arousal, logits = run_supervisor(model, processor, path, media)
    return {
        item.clip_id: calibrated_emotion(
            model.config, path, valence[row].item(), arousal[row].item(), None if logits is None else logits[row]
        )
        for row, item in enumerate(items)
    }


def _summary(
    items: list[schema.Item],
    readings: Mapping[str, ModalityEmotion],
    emotions: Mapping[str, str],
    votes: Mapping[str, Mapping[str, float]] | None = None,
) -> dict:
    """A path's readings and their scores.

    Returns:
        `clip_ids`, and in their order `predicted` and `true`, lists of [valence, arousal]; `valence_ccc` and
        `arousal_ccc`, None where a CCC is not defined (fewer than two clips, or predictions and labels that are the
        same constant); `valence_pearson`, `arousal_pearson` (None likewise), `valence_rmse` and `arousal_rmse`;
        `valence_coverage` and `arousal_coverage`, the share of clips whose value lies in the
        interval, None for a model that is not calibrated; `emotions`, the clips' labels (None where the model does
        not know them), `probabilities` of the model's labels, and over the clips with a known label `accuracy` and
        `ece`, None without such clips. Over the clips whose annotators' votes are all for labels that the model knows,
        `votes_n` of them, `votes_kl` is the mean of KL(votes || probabilities) and `votes_js` that of the
        Jensen-Shannon divergence, both in bits; None without such clips, or where the divergence is infinite.
    """
    clips = [item.clip_id for item in items]
    found: dict = {
        "n": len(clips),
        "clip_ids": clips,
        "predicted": [[readings[clip].valence, readings[clip].arousal] for clip in clips],
        "true": [[float(item.valence or 0.0), float(item.arousal or 0.0)] for item in items],
    }
    for column, name in enumerate(("valence", "arousal")):
        true = [point[column] for point in found["true"]]
        predicted = [point[column] for point in found["predicted"]]
        found[f"{name}_ccc"] = _ccc(predicted, true)
        for metric in (metrics.pearson, metrics.rmse):
            value = metric(predicted, true)
            found[f"{name}_{metric.__name__}"] = value if math.isfinite(value) else None
        intervals = [getattr(readings[clip], f"{name}_interval") for clip in clips]
        inside = [low <= value <= high for value, (low, high) in zip(true, filter(None, intervals))]
        found[f"{name}_coverage"] = float(np.mean(inside)) if inside else None
    shares = [readings[clip].probabilities or {} for clip in clips]
    known = [emotions.get(clip) if emotions.get(clip) in row else None for clip, row in zip(clips, shares)]
    found |= {"emotions": known, "probabilities": [list(row.values()) for row in shares]}
    pairs = [((votes or {}).get(clip), row) for clip, row in zip(clips, shares)]
    voted = [(given, row) for given, row in pairs if given and given.keys() <= row.keys()]
    found["votes_n"] = len(voted)
    for name, divergence in (("kl", metrics.kl_divergence), ("js", metrics.jensen_shannon)):
        value = float(np.mean([divergence(*pair) for pair in voted])) if voted else math.nan
        found[f"votes_{name}"] = value if math.isfinite(value) else None
    scored = [(row, label) for row, label in zip(shares, known) if label is not None]
    found |= {"accuracy": None, "ece": None}
    if scored:
        p = np.array([list(row.values()) for row, _ in scored])  # (N, K)
        targets = np.array([[name == label for name in row] for row, label in scored], dtype=np.float64)
        found["accuracy"] = float(targets[np.arange(len(p)), p.argmax(1)].mean())
        found["ece"] = expected_calibration_error(p, targets)
    return found


def _ccc(predicted: list[float], true: list[float]) -> float | None:
    if len(predicted) < 2:
        return None
    value = float(ccc(predicted, true))  # type: ignore[arg-type]
    return value if math.isfinite(value) else None
