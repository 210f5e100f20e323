"""Emotion predictions of the Supervisor: for files, calibrated on labelled clips, and scored on a benchmark.

Each modality is predicted from its own media alone, with one fixed prompt. Prompt and protocol are our choice: the
paper names neither.
"""

import dataclasses
import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score
from tqdm import trange

from ..benchmark import metrics, schema
from ..benchmark.controls import mismatched_partners
from ..benchmark.intervals import LEVEL, ccc, fewest_clips
from ..data.collator import emotion_target
from ..data.dataset import ClipEncoder, carries
from ..data.manifest import MEDIA_FIELDS, Clip
from ..model.emotion_prediction import PROMPT, EmotionPrediction, ModalityEmotion, conflict_of
from ..model.inputs import MODALITIES
from ..model.loading import load_model, load_processor
from ..model.media import end_of_track_s, tracks_of
from ..model.media_files import limits
from ..utils import InputError, read_json, write_json

logger = logging.getLogger(__name__)

PAIR = "+"
DIMENSIONS = ("valence", "arousal")
# Of one file or window. What takes longer is damaged, or too large for a prediction of one clip.
MAX_DECODING_S = 600.0
# 14 hours of windows of 5 s: what has more has a time stamp that is wrong.
MAX_WINDOWS = 10_000


# ---- files


@dataclass(frozen=True)
class FileInput:
    """The file or files of one prediction, as a clip; `duration_s` where they have time."""

    clip: Clip
    duration_s: float | None = None

    @property
    def title(self) -> str:
        """The names of its files, without folders."""
        files = (self.clip.audio, self.clip.image, self.clip.video)
        return PAIR.join(dict.fromkeys(Path(str(file)).name for file in files if file is not None))


@dataclass(frozen=True)
class FilePrediction:
    """An input's emotion, and that of each window of it: (begin, end) in seconds -> prediction."""

    source: FileInput
    whole: EmotionPrediction
    curve: list[tuple[float, float, EmotionPrediction]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it: `file`; `modalities`, those that were predicted; for each of them its values, and as
        `label` the most probable label; `conflict`; and in `curve` the same for each window."""
        windows = [{"start_s": begin, "end_s": end, **_as_dict(found)} for begin, end, found in self.curve]
        return {"file": self.source.clip.id, **_as_dict(self.whole), "curve": windows}


def _as_dict(prediction: EmotionPrediction) -> dict[str, Any]:
    found = {modality: getattr(prediction, modality) for modality in MODALITIES}
    values = {name: {"label": one.label, **dataclasses.asdict(one)} if one else None for name, one in found.items()}
    return {"modalities": [name for name in found if found[name]], **values, "conflict": prediction.conflict}


def input_of(word: str) -> FileInput:
    """What a command's argument names: a file, or two joined by "+" (an audio and an image or video).

    The audio of a video that is joined with an audio is left out.

    Raises:
        InputError: a file that is missing or of no known kind, or a pair of two of a kind.
    """
    if PAIR not in word or Path(word).exists():
        return _single(word)
    audio, visual = sorted(map(_single, word.split(PAIR, 1)), key=lambda part: part.clip.visual is not None)
    if audio.clip.visual or not visual.clip.visual:
        raise InputError(f"{word!r} must be an audio and an image or video; these are two of a kind.")
    durations_s = [part.duration_s for part in (audio, visual) if part.duration_s is not None]
    return FileInput(replace(visual.clip, id=word, audio=audio.clip.audio), min(durations_s, default=None))


@limits(max_s=MAX_DECODING_S)
def _single(name: str) -> FileInput:
    if not Path(name).is_file():
        raise InputError(f"there is no file {name!r}; give an image, an audio, a video, or AUDIO{PAIR}IMAGE.")
    clip = Clip(id=name, split="test", source="user", license="unknown")
    tracks = tracks_of(name)
    if tracks.image and not tracks.animated:
        return FileInput(replace(clip, image=name))
    video = tracks.video or tracks.animated
    if not video and not tracks.audio:
        raise InputError(f"{name} holds neither audio nor video.")
    found = replace(clip, audio=name if tracks.audio else None, video=name if video else None)
    # By the packets: what a header says of the length may be an estimate.
    end_s = end_of_track_s(name, "video") if tracks.video else None
    audio_s = end_of_track_s(name, "audio") if tracks.audio else None
    # The last frame of audio may be filled up beyond the end of the video.
    if audio_s is not None and (end_s is None or audio_s > end_s + 0.1):
        end_s = audio_s
    return FileInput(found, end_s)


def predict_files(
    model, processor, inputs: Sequence[FileInput], window_s: float | None = None
) -> Iterator[FilePrediction]:
    """Predictions for files, one after the other.

    Args:
        model: a VAEmotionLLM.
        processor: its processor.
        inputs: see `input_of`.
        window_s: length of the windows of the curve of what has time and is longer than one; None for no curve.

    Raises:
        InputError: a file that cannot be decoded, or is longer than the processor accepts.
    """
    for one in inputs:
        parts = []
        if window_s is not None and one.duration_s is not None and one.duration_s > window_s:
            parts = windows(one.duration_s, window_s)
        clips = [one.clip, *(replace(one.clip, start_s=begin, end_s=end) for begin, end in parts)]
        [whole], *curve = (
            model.predict_emotion(features, processor)
            for features in _decoded_ahead(processor, clips, [False, *(True for _ in parts)])
        )
        yield FilePrediction(one, whole, [(begin, end, found) for (begin, end), [found] in zip(parts, curve)])


def windows(duration_s: float, window_s: float) -> list[tuple[float, float]]:
    """Windows side by side over a duration; what is left joins the last where it is shorter than half a window.

    Raises:
        InputError: there are more than `MAX_WINDOWS`.
    """
    if duration_s / window_s > MAX_WINDOWS:
        raise InputError(
            f"{duration_s:.0f} s have more than {MAX_WINDOWS} windows of {window_s:g} s; take longer windows, or none."
        )
    count = max(int(duration_s / window_s + 0.5), 1)
    return [(i * window_s, duration_s if i == count - 1 else (i + 1) * window_s) for i in range(count)]


def _decoded_ahead(processor, clips: Sequence[Clip], are_parts: Sequence[bool]) -> Iterator[dict[str, Any]]:
    """Features of clips in their order, decoded in as many threads as there are cores, and as many ahead."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque = deque()
        for clip, is_part in zip(clips, are_parts):
            waiting.append(pool.submit(_features, processor, clip, is_part))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _features(processor, clip: Clip, is_part: bool) -> dict[str, Any]:
    """Features of what a clip has; in a part of a file audio or visual may have ended before the other."""
    with limits(max_s=MAX_DECODING_S):
        return _decode(processor, clip, is_part)


def _decode(processor, clip: Clip, is_part: bool) -> dict[str, Any]:
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    kinds = {"visual": clip.visual} if clip.visual is not None else {}
    kinds |= {"audio": "audio"} if carries(clip, "audio") else {}
    try:
        return {kinds[medium]: features for medium, features in encoder.encode(clip, tuple(kinds)).items()}
    except InputError:
        if not is_part or len(kinds) == 1:
            raise
    found, errors = {}, []
    for medium, kind in kinds.items():
        try:
            found[kind] = encoder.encode(clip, (medium,))[medium]
        except InputError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


# ---- clips


def predict_clips(
    model, processor, clips: Sequence[Clip], batch_size: int = 16, progress: bool = False
) -> list[EmotionPrediction]:
    """The predictions for clips.

    Raises:
        InputError: a clip that cannot be decoded, a Supervisor that was never trained.
    """
    found: list[EmotionPrediction] = []
    features = _decoded_ahead(processor, clips, [False] * len(clips))
    for _ in trange(0, len(clips), batch_size, desc="emotion", unit="batch", disable=not progress):
        batch = list(itertools.islice(features, batch_size))
        found += model.predict_emotion(batch, processor, batch_size)
    return found


# ---- calibration


def calibrate(model_dir: Path, model, processor, clips: Sequence[Clip], level: float, **options) -> dict[str, Any]:
    """Fit on clips that were not trained on, and write the result into `config.json` of the model's folder.

    Args:
        model_dir: the folder.
        model, processor: what it holds.
        clips: with an emotion, or with valence and arousal; others are left out.
        level: share of annotated values that an interval is to hold.
        **options: see `predict_clips`.

    Returns:
        What was written; see `fit`.

    Raises:
        InputError: too few labelled clips; see also `predict_clips`.
    """
    model.config.emotion_calibration = None
    labels = model.config.emotion_labels or ()
    found = fit(predict_clips(model, processor, clips, **options), clips, emotion_targets(clips, labels), level)
    if not any(found[name] for name in ("temperature", *DIMENSIONS)):
        raise InputError(
            f"no modality has {fewest_clips(level)} clips with an emotion that the model knows, or with valence and "
            "arousal; fewer give no interval. Give more labelled clips."
        )
    model.config.emotion_calibration = found
    file = Path(model_dir) / "config.json"
    write_json(file, read_json(file, "the model's config") | {"emotion_calibration": found})
    return found


def emotion_targets(clips: Sequence[Clip], labels: Sequence[str]) -> np.ndarray:
    """(N, K): each clip's emotion as a distribution over the model's labels, NaN where it has none.

    An emotion that the model does not know counts as none, with a warning.
    """
    names = [{clip.emotion} if isinstance(clip.emotion, str) else set(clip.emotion or ()) for clip in clips]
    unknown = {clip.id: rest for clip, of in zip(clips, names) if labels and (rest := of - {*labels})}
    if unknown:
        logger.warning(
            f"{len(unknown)} of {len(clips)} clips have an emotion that the model does not know "
            f"({', '.join(sorted(set.union(*unknown.values())))}), such as {next(iter(unknown))}: they count as clips "
            "without label."
        )
    known = [None if clip.id in unknown else clip.emotion for clip in clips]
    return np.array([emotion_target(emotion, labels).double().numpy() for emotion in known]).reshape(len(clips), -1)


def fit(
    predictions: Sequence[EmotionPrediction], clips: Sequence[Clip], targets: np.ndarray, level: float = LEVEL
) -> dict[str, Any]:
    """The calibration of each modality that has enough labelled clips.

    The temperature is the likeliest one on all clips, and stays where the calibration error rose: a choice between
    two temperatures by the error that is reported would make that error too low, and follow its noise.

    Args:
        predictions: without calibration, for clips that were not trained on.
        clips: the clips, with their labels.
        targets: see `emotion_targets`.
        level: share of annotated values that an interval is to hold.

    Returns:
        {"level", "clips": {modality: number with any label}, "temperature": {modality: T}, "ece": {modality: [before,
        after]}, "valence": {modality: half width}, "arousal": {modality: half width}}. An interval is split conformal
        (Vovk et al., 2005): it holds the value of another clip of the same kind with at least this probability,
        whatever the model. The calibration error is held out: that of each half of the clips with the temperature of
        the other half.
    """
    fewest = fewest_clips(level)
    found: dict[str, Any] = {"level": level, "clips": {}, "ece": {}, "temperature": {}, "valence": {}, "arousal": {}}
    true = np.array([[clip.valence, clip.arousal] for clip in clips], dtype=np.float64)  # (N, 2)
    for modality in MODALITIES:
        rows = [row for row, prediction in enumerate(predictions) if getattr(prediction, modality)]
        emotions = [getattr(predictions[row], modality) for row in rows]
        goals = targets[rows]
        labelled = np.isfinite(goals).all(1) & (goals.shape[1] > 0)
        found["clips"][modality] = int((labelled | np.isfinite(true[rows]).any(1)).sum())
        if labelled.sum() >= fewest:
            # Up to a constant, on which neither the temperature nor the error depends.
            logits = np.log([list(emotion.probabilities.values()) for emotion in emotions])[labelled]
            found["temperature"][modality] = round(fit_temperature(logits, goals[labelled]), 4)
            found["ece"][modality] = [round(error, 4) for error in calibration_errors(logits, goals[labelled])]
        for column, name in enumerate(DIMENSIONS):
            misses = abs(np.array([getattr(emotion, name) for emotion in emotions]) - true[rows, column])
            misses = misses[np.isfinite(misses)]
            if len(misses) >= fewest:
                found[name][modality] = round(conformal_quantile(misses, level), 6)
    return found


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """T > 0 that makes softmax(logits / T) likeliest (Guo et al., arXiv 1706.04599).

    Args:
        logits: (N, K).
        targets: (N, K) distributions.
    """

    def loss(log_t: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_t), axis=-1)).sum(-1).mean())

    # A model that is always right has no best temperature: the bounds keep it in reach.
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x))


def conformal_quantile(misses: np.ndarray, level: float) -> float:
    """The smallest miss that at least `level` of the clips, and one more of their kind, do not exceed."""
    rank = min(math.ceil((len(misses) + 1) * level), len(misses))
    return float(np.sort(misses)[rank - 1])


def calibration_errors(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Expected calibration error of the logits as they are, and that of each half at the other half's temperature.

    Args:
        logits: (N, K).
        targets: (N, K) distributions.
    """
    tempered = logits.copy()
    for here, there in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        tempered[here] /= fit_temperature(logits[there], targets[there])
    before, after = (expected_calibration_error(softmax(values, axis=-1), targets) for values in (logits, tempered))
    return before, after


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Mean distance of the highest probability from how often it is right, over bins of equal width (Guo et al.).

    Args:
        probabilities: (N, K).
        targets: (N, K) distributions: a label is right as far as its share.
        bins: number of bins of [0, 1].
    """
    confidence = probabilities.max(1)
    gaps = confidence - targets[np.arange(len(targets)), probabilities.argmax(1)]
    chosen = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(abs(np.bincount(chosen, weights=gaps)).sum() / len(targets))


# ---- scores on a benchmark


def evaluate(
    model_dir: str | Path, benchmark_dir: str | Path, batch_size: int = 16, device: str | None = None, progress=False
) -> dict:
    """Scores of the predictions for every clip of a benchmark that has valence and arousal, under each modality.

    Args:
        model_dir: a VAEmotionLLM checkpoint.
        benchmark_dir: a benchmark folder; items without valence and arousal are left out.
        batch_size: clips a batch.
        device: device of the model; the first GPU, or the CPU where there is none.
        progress: whether to show a bar.

    Returns:
        For each modality see `_summary`; `conflict`, see `conflict_scores`; `labels`, those of the model or None;
        `level`, the share of values that a calibrated model's intervals are to hold, or None; beside them `prompt`,
        `benchmark` and `benchmark_folder`.

    Raises:
        InputError: no labelled clip, one with two audios or two visuals, a model without its adapter; see also
            `predict_clips`.
    """
    benchmark = schema.load(benchmark_dir)
    items = [item for item in benchmark.items if item.valence is not None and item.arousal is not None]
    if not items:
        raise InputError(f"{benchmark.folder} has no item with valence and arousal; there is nothing to compare with.")
    clips = _clips_of(items)
    model, processor = load_model(model_dir, device), load_processor(model_dir)
    found = dict(zip(clips, predict_clips(model, processor, list(clips.values()), batch_size, progress)))
    predictions: dict[str, dict[str, ModalityEmotion]] = {
        modality: {i.clip_id: getattr(found[i.clip_id], modality) for i in items if i.modality == modality}
        for modality in MODALITIES
    }
    emotions = {item.clip_id: item.answer for item in benchmark.select(aspect="emotion")}
    votes = {item.clip_id: item.emotion_distribution for item in benchmark.items if item.emotion_distribution}
    return {
        "prompt": PROMPT,
        "benchmark": benchmark.name,
        "benchmark_folder": str(benchmark.folder),
        "labels": model.config.emotion_labels,
        "level": (model.config.emotion_calibration or {}).get("level"),
        **{name: _summary([clips[clip] for clip in of], of, emotions, votes) for name, of in predictions.items()},
        "conflict": conflict_scores(benchmark, predictions["audio"], predictions["visual"]),
    }


def _clips_of(items: Sequence[schema.Item]) -> dict[str, Clip]:
    """Clip id -> the clip with the media of all its items: they show the same media, or some of them."""
    clips: dict[str, Clip] = {}
    for item in items:
        clip = clips.get(item.clip_id) or Clip(
            id=item.clip_id, split="benchmark", source="", license="", valence=item.valence, arousal=item.arousal
        )
        media = {kind: file for kind in MEDIA_FIELDS if (file := getattr(item, kind))}
        clips[item.clip_id] = replace(clip, **media)
        other = any(getattr(clip, kind) not in (None, file) for kind, file in media.items())
        if other or (clips[item.clip_id].image and clips[item.clip_id].video):
            raise InputError(f"item {item.id!r}: other items of the clip {clip.id!r} show other media.")
    return clips


def conflict_scores(
    benchmark: schema.Benchmark, audio: Mapping[str, ModalityEmotion], visual: Mapping[str, ModalityEmotion]
) -> dict:
    """How well the conflict score separates clips whose audio and visual disagree from clips whose two agree.

    A clip with its own audio agrees; one with the audio of the control "mismatch", of a clip with another content and
    another emotion, disagrees. Each modality is predicted from its own media, so no clip is run again for it.

    Args:
        benchmark: where the clips are from.
        audio, visual: clip -> its prediction by audio and by visual.

    Returns:
        `{"auroc", "clip_ids", "agreeing", "disagreeing", "reason"}`: the two scores of each clip in the order of
        `clip_ids`; `auroc` is None where there is no pair, and `reason` says why.
    """
    try:
        partners = mismatched_partners([item for item in benchmark.select(modality="audio") if item.clip_id in audio])
    except InputError as error:
        return {"auroc": None, "clip_ids": [], "agreeing": [], "disagreeing": [], "reason": str(error)}
    clips = [clip for clip in partners if clip in visual]
    agreeing = [conflict_of(audio[clip], visual[clip]) for clip in clips]
    disagreeing = [conflict_of(audio[partners[clip]], visual[clip]) for clip in clips]
    labels = [0] * len(clips) + [1] * len(clips)
    return {
        "auroc": float(roc_auc_score(labels, agreeing + disagreeing)) if clips else None,
        "clip_ids": clips,
        "agreeing": agreeing,
        "disagreeing": disagreeing,
        "reason": None if clips else "no clip has both audio and visual.",
    }


def _summary(
    clips: Sequence[Clip],
    predictions: Mapping[str, ModalityEmotion],
    emotions: Mapping[str, str],
    votes: Mapping[str, Mapping[str, float]] | None = None,
) -> dict:
    """A modality's predictions and their scores.

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
    rows = [predictions[clip.id] for clip in clips]
    found: dict = {
        "n": len(clips),
        "clip_ids": [clip.id for clip in clips],
        "predicted": [[row.valence, row.arousal] for row in rows],
        "true": [[clip.valence, clip.arousal] for clip in clips],
    }
    for column, name in enumerate(DIMENSIONS):
        predicted, true = (np.array([point[column] for point in found[key]]) for key in ("predicted", "true"))
        found[f"{name}_ccc"] = _finite(ccc(predicted, true) if len(true) > 1 else math.nan)
        for metric in (metrics.pearson, metrics.rmse):
            found[f"{name}_{metric.__name__}"] = _finite(metric(predicted, true))
        intervals = [getattr(row, f"{name}_interval") for row in rows]
        inside = [low <= value <= high for value, (low, high) in zip(true, filter(None, intervals))]
        found[f"{name}_coverage"] = float(np.mean(inside)) if inside else None
    shares = [row.probabilities or {} for row in rows]
    known = [label if (label := emotions.get(clip.id)) in row else None for clip, row in zip(clips, shares)]
    found |= {"emotions": known, "probabilities": [list(row.values()) for row in shares]}
    pairs = [((votes or {}).get(clip.id), row) for clip, row in zip(clips, shares)]
    voted = [(given, row) for given, row in pairs if given and given.keys() <= row.keys()]
    found["votes_n"] = len(voted)
    for name, divergence in (("kl", metrics.kl_divergence), ("js", metrics.jensen_shannon)):
        found[f"votes_{name}"] = _finite(np.mean([divergence(*pair) for pair in voted]) if voted else math.nan)
    scored = [(row, label) for row, label in zip(shares, known) if label is not None]
    found |= {"accuracy": None, "ece": None}
    if scored:
        p = np.array([list(row.values()) for row, _ in scored])  # (N, K)
        targets = np.array([[name == label for name in row] for row, label in scored], dtype=np.float64)
        found["accuracy"] = float(targets[np.arange(len(p)), p.argmax(1)].mean())
        found["ece"] = expected_calibration_error(p, targets)
    return found


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None
