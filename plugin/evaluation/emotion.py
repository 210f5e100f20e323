"""Emotion predictions of the Supervisor: for files, calibrated on labelled clips, and scored on a benchmark.

Each modality is predicted from its own media alone, with one fixed prompt. Prompt and protocol are our choice: the
paper names neither.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import mannwhitneyu
from tqdm import tqdm

from ..benchmark import metrics, schema
from ..benchmark.controls import mismatched_partners
from ..benchmark.intervals import LEVEL, bootstrap, ccc, fewest_clips, percentile_interval
from ..data.collator import emotion_target
from ..data.dataset import MEDIA_OF_MODALITY, ClipEncoder, carries
from ..data.manifest import Clip
from ..model.configuration_vaemotionllm import MODALITIES
from ..model.emotion_prediction import (
    PROMPT,
    EmotionPrediction,
    ModalityEmotion,
    calibrated_emotion,
    check_supervisor,
    conflict_of,
    run_supervisor,
)
from ..model.loading import check_model_folder, load_model, load_processor
from ..utils import InputError, write_json

logger = logging.getLogger(__name__)

PAIR = "+"
DIMENSIONS = ("valence", "arousal")


# ---- files


@dataclass(frozen=True)
class FileInput:
    """What one prediction is for: an audio, an image or a video, or an audio with one of the other two."""

    name: str
    audio: str | None = None
    image: str | None = None
    video: str | None = None
    duration_s: float | None = None  # of what has time

    @property
    def title(self) -> str:
        """The names of its files, without folders."""
        files = (self.audio, self.image, self.video)
        return PAIR.join(dict.fromkeys(Path(file).name for file in files if file is not None))

    def clip(self, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """It, or a part of it, as a clip."""
        return Clip(
            id=self.name, split="test", source="user", license="unknown", audio=self.audio, image=self.image,
            video=self.video, start_s=start_s, end_s=end_s,
        )  # fmt: skip


@dataclass(frozen=True)
class FilePrediction:
    """An input's emotion, and that of each window of it: (begin, end) in seconds -> prediction."""

    source: FileInput
    whole: EmotionPrediction
    curve: list[tuple[float, float, EmotionPrediction]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it: `file`, `modalities` (those that were predicted), for each of them its values, with the
        most probable label as `label`; `conflict`, and `curve` with the same for each window."""
        windows = [{"start_s": begin, "end_s": end, **_as_dict(found)} for begin, end, found in self.curve]
        return {"file": self.source.name, **_as_dict(self.whole), "curve": windows}


def _as_dict(prediction: EmotionPrediction) -> dict[str, Any]:
    found = {modality: getattr(prediction, modality) for modality in MODALITIES}
    values = {name: {"label": one.label, **dataclasses.asdict(one)} if one else None for name, one in found.items()}
    return {"modalities": [name for name in found if found[name]], **values, "conflict": prediction.conflict}


def input_of(word: str) -> FileInput:
    """What a command's argument names: a file, or two joined by "+" (an audio and an image or video).

    Raises:
        InputError: a file that is missing or of no known kind, or a pair of two of a kind.
    """
    if PAIR in word and not Path(word).exists():
        parts = word.split(PAIR)
        for cut in range(1, len(parts)):  # a name may hold the sign itself
            names = PAIR.join(parts[:cut]), PAIR.join(parts[cut:])
            if all(Path(name).is_file() for name in names):
                return _paired(word, [_single(name) for name in names])
        raise InputError(f"{word!r} is no pair of files joined by {PAIR!r}: one of them is not there.")
    return _single(word)


def _single(name: str) -> FileInput:
    if not Path(name).is_file():
        raise InputError(f"there is no file {name!r}; give an image, an audio, a video, or AUDIO{PAIR}IMAGE.")
    try:
        with Image.open(name) as image:
            if getattr(image, "n_frames", 1) == 1 or image.format == "MPO":  # as phones write: an image and more
                return FileInput(name, image=name)
    except UnidentifiedImageError:
        pass
    try:
        with av.open(name) as container:
            # The cover of an album is an image of one frame, and no video.
            covers = av.stream.Disposition.attached_pic
            video = any(not stream.disposition & covers for stream in container.streams.video)
            audio = bool(container.streams.audio)
            duration_s = container.duration / av.time_base if container.duration else None
    except av.error.FFmpegError as error:
        raise InputError(f"{name} is neither an image nor an audio nor a video that can be read ({error}).") from error
    if not video and not audio:
        raise InputError(f"{name} holds neither audio nor video.")
    return FileInput(name, audio=name if audio else None, video=name if video else None, duration_s=duration_s)


def _paired(word: str, parts: Sequence[FileInput]) -> FileInput:
    """An audio with an image, or with a video, whose own audio is then left out."""
    audios = [part for part in parts if not (part.image or part.video)]
    visuals = [part for part in parts if part.image or part.video]
    if len(audios) != 1:
        raise InputError(f"{word!r} must be an audio and an image or video; these are two of a kind.")
    [audio], [visual] = audios, visuals
    durations_s = [part.duration_s for part in (audio, visual) if part.duration_s is not None]
    return FileInput(word, audio.audio, visual.image, visual.video, min(durations_s, default=None))


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
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    for one in inputs:
        whole, curve = model.predict_emotion(_features(encoder, one.clip()), processor)[0], []
        if window_s is not None and one.duration_s is not None and one.duration_s > window_s:
            for begin, end in windows(one.duration_s, window_s):
                features = _features(encoder, one.clip(begin, end), part=True)
                curve.append((begin, end, model.predict_emotion(features, processor)[0]))
        yield FilePrediction(one, whole, curve)


def windows(duration_s: float, window_s: float) -> list[tuple[float, float]]:
    """Windows side by side over a duration; what is left joins the last where it is shorter than half a window."""
    count = max(int(duration_s / window_s + 0.5), 1)
    return [(i * window_s, duration_s if i == count - 1 else (i + 1) * window_s) for i in range(count)]


def _features(encoder: ClipEncoder, clip: Clip, part: bool = False) -> dict:
    """Features of what a clip has; in a part of it audio or visual may have ended before the other."""
    found, last = {}, None
    for modality in ("visual", "audio"):
        if carries(clip, modality):
            try:
                found[clip.visual if modality == "visual" else "audio"] = encoder.encode(clip, modality)
            except InputError as error:
                if not part:
                    raise
                last = error
    if last is not None and not found:
        raise last
    return found


# ---- clips


@dataclass(frozen=True)
class Outputs:
    """The Supervisor's outputs for N clips under one modality: valence and arousal (N, 2), and logits (N, K) or None
    for a model without labels."""

    clips: Sequence[Clip]
    points: np.ndarray
    logits: torch.Tensor | None


def supervisor_outputs(
    model, processor, clips: Mapping[str, Sequence[Clip]], batch_size: int = 16, progress: bool = False
) -> dict[str, Outputs]:
    """The outputs for the clips of each modality, which carry its media.

    Raises:
        InputError: a clip that cannot be decoded.
    """
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    found: dict[str, list] = {modality: [] for modality in clips}
    with tqdm(total=sum(map(len, clips.values())), desc="emotion", unit="clip", disable=not progress) as bar:
        for begin in range(0, max(map(len, clips.values()), default=0), batch_size):
            encoded: dict[tuple, Any] = {}  # mostly the three modalities show the same clips
            for modality, all_clips in clips.items():
                batch = all_clips[begin : begin + batch_size]
                if not batch:
                    continue
                media: list[list] = []
                for clip in batch:
                    media.append([])
                    for medium in MEDIA_OF_MODALITY[modality]:
                        source = clip.audio if medium == "audio" else (clip.video or clip.image)
                        key = medium, source, clip.start_s, clip.end_s
                        encoded[key] = encoded.get(key) or encoder.encode(clip, medium)
                        media[-1].append(encoded[key])
                found[modality].append(run_supervisor(model, processor, modality, media))
                bar.update(len(batch))
    outputs = {}
    for modality, parts in found.items():
        valence, arousal, logits = zip(*parts) if parts else ((), (), ())
        points = torch.stack([torch.cat(valence), torch.cat(arousal)], 1) if parts else torch.empty(0, 2)
        known = torch.cat(logits) if logits and logits[0] is not None else None
        outputs[modality] = Outputs(clips[modality], points.double().numpy(), known)
    return outputs


# ---- calibration


def calibrate(
    model_dir: Path, model, processor, clips: Sequence[Clip], level: float, **options
) -> tuple[dict[str, Any], list[str]]:
    """Fit on clips that were not trained on, and write the result into `config.json` of the model's folder.

    Args:
        model_dir: the folder.
        model, processor: what it holds.
        clips: with an emotion, or with valence and arousal; others are left out.
        level: share of annotated values that an interval is to hold.
        **options: see `supervisor_outputs`.

    Returns:
        What was written, and notes for the user; see `fit`.

    Raises:
        InputError: too few labelled clips, a Supervisor that was never trained, a clip that cannot be decoded.
    """
    check_supervisor(model)
    targets = emotion_targets(clips, model.config.emotion_labels or ())
    of_modality = {
        modality: [clip for clip in clips if all(carries(clip, medium) for medium in MEDIA_OF_MODALITY[modality])]
        for modality in MODALITIES
    }
    found, notes = fit(supervisor_outputs(model, processor, of_modality, **options), targets, level)
    if not any(found[name] for name in ("temperature", *DIMENSIONS)):
        raise InputError(
            f"no modality has {fewest_clips(level)} clips with an emotion that the model knows, or with valence and "
            "arousal; fewer give no interval. Give more labelled clips."
        )
    model.config.emotion_calibration = found
    file = Path(model_dir) / "config.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"emotion_calibration": found})
    return found, notes


def emotion_targets(clips: Sequence[Clip], labels: Sequence[str]) -> dict[str, torch.Tensor]:
    """Clip id -> its emotion as a distribution (K,) over the model's labels, NaN where it has none.

    An emotion that the model does not know counts as none, with a warning.
    """
    names = {clip.id: {clip.emotion} if isinstance(clip.emotion, str) else set(clip.emotion or ()) for clip in clips}
    unknown = {clip: of - {*labels} for clip, of in names.items() if labels and of - {*labels}}
    if unknown:
        logger.warning(
            "%s of %s clips have an emotion that the model does not know (%s), such as %s: they count as clips "
            "without label.",
            len(unknown),
            len(clips),
            ", ".join(sorted(set.union(*unknown.values()))),
            next(iter(unknown)),
        )
    return {clip.id: emotion_target(None if clip.id in unknown else clip.emotion, labels) for clip in clips}


def fit(
    outputs: Mapping[str, Outputs], targets: Mapping[str, torch.Tensor], level: float = LEVEL
) -> tuple[dict[str, Any], list[str]]:
    """The calibration of each modality that has enough labelled clips.

    The temperature is the likeliest one on all clips, and stays where the calibration error rose: a choice between
    two temperatures by the error that is reported would make that error too low, and follow its noise.

    Args:
        outputs: by modality, for clips that were not trained on.
        targets: see `emotion_targets`.
        level: share of annotated values that an interval is to hold.

    Returns:
        {"level", "clips": {modality: number with any label}, "temperature": {modality: T}, "ece": {modality: [before,
        after]}, "valence": {modality: half width}, "arousal": {modality: half width}}, and a note for each modality
        whose calibration error rose. An interval is split conformal (Vovk et al., 2005): it holds the value of another
        clip of the same kind with at least this probability, whatever the model. The calibration error is held out:
        that of each half of the clips with the temperature of the other half.
    """
    fewest, notes = fewest_clips(level), []
    found: dict[str, Any] = {"level": level, "clips": {}, "ece": {}, "temperature": {}, "valence": {}, "arousal": {}}
    for modality, output in outputs.items():
        of_clips = [targets[clip.id] for clip in output.clips]
        labelled = np.array([len(row) > 0 and not bool(row.isnan().any()) for row in of_clips], dtype=bool)
        true = np.array([[clip.valence, clip.arousal] for clip in output.clips], dtype=np.float64).reshape(-1, 2)
        found["clips"][modality] = int((labelled | np.isfinite(true).any(1)).sum())
        if output.logits is not None and labelled.sum() >= fewest:
            logits, goals = output.logits.double().numpy()[labelled], torch.stack(of_clips).double().numpy()[labelled]
            found["temperature"][modality] = round(fit_temperature(logits, goals), 4)
            before, after, change = calibration_errors(logits, goals)
            found["ece"][modality] = [round(before, 4), round(after, 4)]
            if after > before:
                notes.append(_rise(modality, before, after, change, len(goals)))
        for column, name in enumerate(DIMENSIONS):
            misses = abs(output.points[:, column] - true[:, column])
            misses = misses[np.isfinite(misses)]
            if len(misses) >= fewest:
                found[name][modality] = round(conformal_quantile(misses, level), 6)
    return found, notes


def _rise(modality: str, before: float, after: float, change: tuple[float, float], clips: int) -> str:
    """What it means that a calibration error rose."""
    meaning = (
        "One half's temperature harms the other: there are too few clips, or they differ in kind. Calibrate on more "
        "clips like those that you predict before you rely on these probabilities."
        if change[0] > 0
        else "That is within chance: these clips are too few to show a change, and the probabilities were calibrated "
        "about as well before."
    )
    return (
        f"{modality}: the calibration error rose from {before:.3f} to {after:.3f} (95% interval of the change "
        f"{change[0]:+.3f} to {change[1]:+.3f}). It is held out: each half of the {clips} clips at the temperature "
        f"that fits the other half. {meaning}"
    )


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
    rank = min(ceil((len(misses) + 1) * level), len(misses))
    return float(np.sort(misses)[rank - 1])


def calibration_errors(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Expected calibration error of the logits as they are, that of each half at the other half's temperature, and
    the 95% interval of the change, by a bootstrap of the clips.

    Args:
        logits: (N, K).
        targets: (N, K) distributions.
    """
    tempered = logits.copy()
    for here, there in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        tempered[here] /= fit_temperature(logits[there], targets[there])
    n = len(targets)
    before, after = (_gaps(np.exp(log_softmax(values, axis=-1)), targets) for values in (logits, tempered))
    change = bootstrap(n, lambda weights: (abs(weights @ after).sum(1) - abs(weights @ before).sum(1)) / n)
    return float(abs(before.sum(0)).sum() / n), float(abs(after.sum(0)).sum() / n), percentile_interval(change)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Mean distance of the highest probability from how often it is right, over bins of equal width (Guo et al.).

    Args:
        probabilities: (N, K).
        targets: (N, K) distributions: a label is right as far as its share.
        bins: number of bins of [0, 1].
    """
    return float(abs(_gaps(probabilities, targets, bins).sum(0)).sum() / len(targets))


def _gaps(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> np.ndarray:
    """(N, bins): in the bin of each clip's highest probability that probability less how far it is right, else 0."""
    rows, best = np.arange(len(targets)), probabilities.argmax(1)
    confidence = probabilities.max(1)
    found = np.zeros((len(targets), bins))
    found[rows, np.minimum((confidence * bins).astype(int), bins - 1)] = confidence - targets[rows, best]
    return found


# ---- scores on a benchmark


def evaluate(
    model_dir: str | Path,
    benchmark_dir: str | Path,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = False,
) -> dict:
    """Scores of the predictions for every clip of a benchmark that has valence and arousal, under each modality.

    Args:
        model_dir: a VAEmotionLLM checkpoint.
        benchmark_dir: a benchmark folder; clips without valence and arousal are left out.
        batch_size: clips a batch.
        device: device of the model; the first GPU, or the CPU where there is none.
        progress: whether to show a bar.

    Returns:
        For each modality see `_summary`; `conflict`, see `conflict_scores`; `labels`, those of the model or None;
        `level`, the share of values that a calibrated model's intervals are to hold, or None; beside them `prompt`,
        `benchmark` and `benchmark_folder`.

    Raises:
        InputError: no labelled clip, a medium that cannot be decoded (the clip is named), a model without its adapter.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give an integer of at least 1.")
    benchmark = schema.load(benchmark_dir)
    clips = {modality: _labelled_clips(benchmark, modality) for modality in MODALITIES}
    if not any(clips.values()):
        raise InputError(f"{benchmark.folder} has no item with valence and arousal; there is nothing to compare with.")
    check_model_folder(model_dir)
    model, processor = load_model(str(model_dir), device), load_processor(str(model_dir))
    emotions = {item.clip_id: item.answer for item in benchmark.select(aspect="emotion")}
    votes = {item.clip_id: item.emotion_distribution for item in benchmark.items if item.emotion_distribution}
    predictions: dict[str, dict[str, ModalityEmotion]] = {}
    for modality, output in supervisor_outputs(model, processor, clips, batch_size, progress).items():
        rows = output.logits if output.logits is not None else [None] * len(output.clips)
        predictions[modality] = {
            clip.id: calibrated_emotion(model.config, modality, float(valence), float(arousal), logits)
            for clip, (valence, arousal), logits in zip(output.clips, output.points, rows)
        }
    return {
        "prompt": PROMPT,
        "benchmark": benchmark.name,
        "benchmark_folder": str(benchmark.folder),
        "labels": model.config.emotion_labels,
        "level": (model.config.emotion_calibration or {}).get("level"),
        **{modality: _summary(clips[modality], predictions[modality], emotions, votes) for modality in MODALITIES},
        "conflict": conflict_scores(benchmark, predictions["audio"], predictions["visual"]),
    }


def _labelled_clips(benchmark: schema.Benchmark, modality: str) -> list[Clip]:
    """The clips of a modality with valence and arousal: content and emotion questions show the same media."""
    clips: dict[str, Clip] = {}
    for item in benchmark.select(modality=modality):
        if item.valence is not None and item.arousal is not None and item.clip_id not in clips:
            clips[item.clip_id] = Clip(
                id=item.clip_id, split="benchmark", source=benchmark.name, license="", audio=item.audio,
                image=item.image, video=item.video, valence=item.valence, arousal=item.arousal,
            )  # fmt: skip
    return list(clips.values())


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
    found: dict = {"auroc": None, "clip_ids": [], "agreeing": [], "disagreeing": [], "reason": None}
    try:
        partners = mismatched_partners([i for i in benchmark.select(modality="audio") if i.clip_id in audio])
    except InputError as error:
        return {**found, "reason": str(error)}
    clips = [clip for clip in partners if clip in visual]
    if not clips:
        return {**found, "reason": "no clip has both audio and visual."}
    agreeing = [conflict_of(audio[clip], visual[clip]) for clip in clips]
    disagreeing = [conflict_of(audio[partners[clip]], visual[clip]) for clip in clips]
    scores = {"clip_ids": clips, "agreeing": agreeing, "disagreeing": disagreeing}
    return {**found, **scores, "auroc": auroc(disagreeing, agreeing)}  # type: ignore[arg-type]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive one scores above a negative one, ties counting half."""
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


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
