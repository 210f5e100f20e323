"""Emotion predictions of clips for each modality, with confidence, intervals and the conflict of audio and visual."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import torch

from .inputs import MODALITIES, InputError

PROMPT = "Which emotion does this artwork express?"
VISUAL_KINDS = ("image", "video")


@dataclass(frozen=True)
class ModalityEmotion:
    """The emotion on one modality.

    Args:
        valence, arousal: in [-1, 1].
        probabilities: label -> probability; None for a model without labels.
        valence_interval, arousal_interval: [low, high] that holds the annotated value as often as
            `config.emotion_calibration["level"]` says; None for a model that was not calibrated.
    """

    valence: float
    arousal: float
    probabilities: dict[str, float] | None = None
    valence_interval: tuple[float, float] | None = None
    arousal_interval: tuple[float, float] | None = None

    @property
    def label(self) -> str | None:
        """The most probable label."""
        return max(self.probabilities, key=self.probabilities.__getitem__) if self.probabilities else None


@dataclass(frozen=True)
class EmotionPrediction:
    """The emotion of a clip on each modality that it carries (None elsewhere).

    `conflict` in [0, 1] says how far audio and visual disagree, each taken alone; None where one is missing.
    """

    audio: ModalityEmotion | None = None
    visual: ModalityEmotion | None = None
    av: ModalityEmotion | None = None
    conflict: float | None = None


def check_supervisor(model) -> None:
    """Raises an InputError where the Supervisor was never trained, and would give 0 for everything."""
    weights = model.emotion_adapter.supervisor.state_dict()
    if not any(weights[name].any() for name in weights if name.startswith("planes")):  # words: saved weights
        raise InputError(
            "the Supervisor of this model was never trained, so it predicts no emotion. Train stage 2 on clips with "
            "valence and arousal first: `vaemotionllm train --config stage2_...`."
        )


@torch.inference_mode()
def _run_supervisor(
    model, processor, modality: str, media: Sequence[Sequence[Any]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Valence and arousal (B,), and logits (B, K) or None, on the CPU, of B clips with the media of one modality."""
    conversations = [
        [{"role": "user", "content": [*({"type": part.kind} for part in parts), {"type": "text", "text": PROMPT}]}]
        for parts in media
    ]
    texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    inputs = processor.assemble(texts, [part for parts in media for part in parts], padding_side="left")
    inputs = inputs.to(model.device)
    # The heads work on the hidden states; logits are needed nowhere, so the LM head runs on no position.
    nowhere = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    output = model(**inputs, response_mask=nowhere, use_adapter=True)
    valence, arousal, logits = output.of(modality)
    return valence.cpu(), arousal.cpu(), None if logits is None else logits.cpu()


def predict_emotion(
    model, processor, clips: Mapping[str, Any] | Sequence[Mapping[str, Any]], batch_size: int = 16
) -> list[EmotionPrediction]:
    """The emotion of clips on each modality that they carry, each modality from its own media alone.

    See `VAEmotionLLMForConditionalGeneration.predict_emotion`.
    """
    check_supervisor(model)
    clips = [clips] if isinstance(clips, Mapping) else list(clips)
    found: list[EmotionPrediction] = []
    for begin in range(0, len(clips), batch_size):
        batch = [_encode(processor, clip, begin + n) for n, clip in enumerate(clips[begin : begin + batch_size])]
        found += _predict_batch(model, processor, batch)
    return found


def _encode(processor, clip: Mapping[str, Any], number: int) -> dict[str, Any]:
    """{"visual", "audio"} features of what a clip has."""
    if not isinstance(clip, Mapping):
        raise InputError(f"clip {number} is {clip!r}; give a mapping, such as {{'audio': FILE}} or {{'image': FILE}}.")
    kinds = [kind for kind in (*VISUAL_KINDS, "audio") if clip.get(kind) is not None]
    unknown = sorted(set(clip) - {*VISUAL_KINDS, "audio"})
    if unknown or not kinds or len(kinds) - ("audio" in kinds) > 1:
        raise InputError(
            f"clip {number} has {', '.join(map(repr, clip)) or 'nothing'}; give `audio`, `image` or `video`, or "
            "`audio` with one of the other two."
        )
    encoded = {}
    for kind in kinds:
        medium = clip[kind]
        if getattr(medium, "kind", None) != kind:  # not encoded yet
            medium = processor.encode_media(kind, medium)
        encoded["audio" if kind == "audio" else "visual"] = medium
    return encoded


def _predict_batch(model, processor, encoded: list[dict[str, Any]]) -> list[EmotionPrediction]:
    found: list[dict[str, ModalityEmotion]] = [{} for _ in encoded]
    for modality in MODALITIES:
        needed = ("visual", "audio") if modality == "av" else (modality,)
        rows = [row for row, parts in enumerate(encoded) if all(name in parts for name in needed)]
        if not rows:
            continue
        media = [[encoded[row][name] for name in needed] for row in rows]
        valence, arousal, logits = _run_supervisor(model, processor, modality, media)
        for n, row in enumerate(rows):
            found[row][modality] = _calibrated_emotion(
                model.config, modality, valence[n].item(), arousal[n].item(), None if logits is None else logits[n]
            )
    return [
        EmotionPrediction(**modalities, conflict=conflict_of(modalities.get("audio"), modalities.get("visual")))
        for modalities in found
    ]


def _calibrated_emotion(
    config, modality: str, valence: float, arousal: float, logits: torch.Tensor | None
) -> ModalityEmotion:
    """The Supervisor's output with what `config.emotion_calibration` makes of it: temperature and intervals."""
    calibration = config.emotion_calibration or {}
    probabilities = None
    if logits is not None:
        temperature = calibration.get("temperature", {}).get(modality, 1.0)
        shares = (logits.double() / temperature).softmax(-1).tolist()
        probabilities = dict(zip(config.emotion_labels, shares, strict=True))
    intervals = {}
    for name, value in (("valence", valence), ("arousal", arousal)):
        half = calibration.get(name, {}).get(modality)
        if half is not None:
            intervals[f"{name}_interval"] = (max(value - half, -1.0), min(value + half, 1.0))
    return ModalityEmotion(valence, arousal, probabilities, **intervals)


def conflict_of(audio: ModalityEmotion | None, visual: ModalityEmotion | None) -> float | None:
    """How far audio and visual disagree, in [0, 1]; None where one is missing. The form is ours.

    The mean of their distance in the valence-arousal space (its diagonal is 1) and, where there are labels, the
    Jensen-Shannon divergence of their probabilities in bits.
    """
    if audio is None or visual is None:
        return None
    distance = sqrt((audio.valence - visual.valence) ** 2 + (audio.arousal - visual.arousal) ** 2) / sqrt(8)
    if audio.probabilities is None or visual.probabilities is None:
        return distance
    divergence = 0.0
    for label, p in audio.probabilities.items():
        q = visual.probabilities[label]
        middle = (p + q) / 2
        divergence += sum(share / 2 * log(share / middle, 2) for share in (p, q) if share > 0)
    return (distance + min(max(divergence, 0.0), 1.0)) / 2
