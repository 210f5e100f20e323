"""Data of a stage-2 run: clips and their modalities, instructions, general samples, batches."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.collator import Stage2Collator
from ..data.dataset import (
    MEDIA_OF_MODALITY,
    ClipDataset,
    ClipEncoder,
    Conversation,
    WithGeneral,
    possible_modalities,
    read_general,
)
from ..data.manifest import Clip, read_manifest, text_of
from ..data.samplers import class_weights, modality_of_step
from ..utils import InputError
from .benchmark_overlap import benchmark_questions, benchmark_texts, refuse_benchmark_texts
from .instructions import InstructionSource, emotion_of, instruction_source
from .stage2_config import Stage2Config

logger = logging.getLogger(__name__)

_MAX_LABELS = 256  # beyond, the column holds free text rather than labels


def read_data(config: Stage2Config) -> tuple[list[Clip], InstructionSource, list[Conversation]]:
    """Everything that a run reads but media, checked before a large model is loaded.

    Raises:
        InputError: a clip that no modality can take or no instruction fits, or what asks the benchmark's questions.
    """
    source = checked_instructions(config.instructions)
    general = read_general(config.general) if config.general is not None else []
    refuse_benchmark_texts(_questions_of(general, config.general), benchmark_questions() if general else ())
    clips = read_manifest(config.manifest, config.split, source.needed)
    modalities = modalities_of_clips(clips, config.modalities)
    source.check(clips, modalities)
    clips = clips[: config.max_clips]
    if config.class_balance and not any(clip.emotion for clip in clips):
        raise InputError(
            f"config field `class_balance` is {config.class_balance!r}, and no clip has an `emotion`. Set it to 0."
        )
    return clips, source, general


def checked_instructions(instructions: str | Sequence[dict[str, str]]) -> InstructionSource:
    """The source of instructions, after a look that none asks what the benchmark asks.

    Raises:
        InputError: see `instruction_source` and `refuse_benchmark_texts`.
    """
    source = instruction_source(instructions)
    refuse_benchmark_texts(source.prompts(), benchmark_texts())
    return source


def emotion_labels(config: Stage2Config, clips: Sequence[Clip]) -> list[str] | None:
    """The labels of the Supervisor, by the config field of that name.

    With `manifest` a model's labels are kept, and those that it lacks are put behind them.

    Raises:
        InputError: a clip has a label that the field does not list, there are too many to be a set of labels, or new
            ones where the EmoAdapter is not trained.
    """
    wanted = config.emotion_labels
    if wanted is None:
        return None
    current = _labels_of(config.model) or []
    found: dict[str, str] = {}  # label -> a clip that has it
    for clip in clips:
        for name in [clip.emotion] if isinstance(clip.emotion, str) else clip.emotion or ():
            found.setdefault(name, clip.id)
    if wanted == "manifest":
        wanted = [*current, *sorted(found.keys() - set(current))]
        if not current and (len(wanted) < 2 or not config.train_emotion_adapter):
            if wanted:
                logger.info(
                    "The Supervisor is given no labels: they need the EmoAdapter to be trained, and two kinds."
                )
            return None
        if len(wanted) > _MAX_LABELS:
            raise InputError(
                f"the clips have {len(found)} different values of `emotion`; the Supervisor takes at most "
                f"{_MAX_LABELS} labels. Give `emotion_labels` as a list, or null to leave labels out."
            )
    for name, clip_id in found.items():
        if name not in wanted:
            raise InputError(
                f"clip {clip_id!r} has the emotion {name!r}, which is not in `emotion_labels`: {', '.join(wanted)}."
            )
    new = sorted(set(wanted) - set(current))
    if new and not config.train_emotion_adapter:
        raise InputError(
            f"`emotion_labels` has {', '.join(new)}, which the model does not know, and `train_emotion_adapter` is "
            "false: their heads would stay untrained. Set it to true, or leave them out."
        )
    if current and list(wanted) != current:
        logger.warning("The Supervisor's labels were %s and are now %s.", ", ".join(current), ", ".join(wanted))
    return list(wanted)


def _labels_of(model: str | None) -> list[str] | None:
    """Emotion labels of a model's folder or Hub name; None where there is none that can be read."""
    from ..model.configuration_vaemotionllm import VAEmotionLLMConfig

    try:
        return None if model is None else VAEmotionLLMConfig.from_pretrained(model).emotion_labels
    except (OSError, ValueError):
        return None  # what is wrong with it, the loading of the model says


def modalities_of_clips(clips: Sequence[Clip], weights: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Clip id -> the modalities of weight above 0 that it can take.

    Raises:
        InputError: a clip that can take none, or a modality that no clip can take.
    """
    found = {clip.id: possible_modalities(clip, weights) for clip in clips}
    wanted = [modality for modality, weight in weights.items() if weight > 0]
    for clip in clips:
        if not found[clip.id]:
            has = [name for name, medium in (("audio", clip.audio), (clip.visual, clip.visual)) if medium is not None]
            raise InputError(
                f"clip {clip.id!r} holds {' and '.join(map(str, has))} alone, and `modalities` takes "
                f"{', '.join(wanted)}: none of them is possible. Give a modality that it can take a weight "
                "above 0, or remove the clip."
            )
    for modality in wanted:
        count = sum(modality in possible for possible in found.values())
        if not count:
            needs = " and ".join(MEDIA_OF_MODALITY[modality])
            raise InputError(
                f"`modalities` takes {modality}, and no clip holds {needs}. Set its weight to 0, or add clips."
            )
    few = Counter(possible for possible in found.values() if len(possible) < len(wanted))
    for possible, count in sorted(few.items()):
        logger.info("%s of %s clips take part in steps of %s alone.", count, len(clips), ", ".join(possible))
    return found


def make_dataset(config: Stage2Config, processor, clips: list[Clip], general: Sequence[Conversation]):
    """The clips, each with what its step's modality carries, and the general samples behind them."""
    encoder = ClipEncoder(processor, config.num_frames, config.max_audio_s)

    def media(step: int, clip: Clip) -> tuple[str, ...]:
        # Among the modalities that the clip can take: those of its whole group, and so of the whole step.
        return MEDIA_OF_MODALITY[
            modality_of_step(config.seed, step, config.modalities, possible_modalities(clip, config.modalities))
        ]

    dataset = ClipDataset(clips, encoder, media, config.cache_media)
    return WithGeneral(dataset, general) if general else dataset


def decoded_media(config: Stage2Config) -> tuple[str, ...]:
    """What a run decodes at all."""
    taken = {
        medium
        for modality, weight in config.modalities.items()
        if weight > 0
        for medium in MEDIA_OF_MODALITY[modality]
    }
    return tuple(medium for medium in ("visual", "audio") if medium in taken)


def make_batches(
    config: Stage2Config, processor, clips: Sequence[Clip], source: InstructionSource, general: Sequence[Conversation]
) -> tuple[Stage2Collator, dict[str, Any]]:
    """The collator, and the trainer's options."""
    sampler: dict[str, Any] = {"general": len(general), "general_share": config.general_share}
    if config.class_balance:
        sampler["weights"] = class_weights([emotion_of(clip) for clip in clips], config.class_balance)
    collator = Stage2Collator(
        processor, source, config.seed, repeats=bool(config.class_balance), emotion_labels=config.emotion_labels or ()
    )
    return collator, {"sampler_options": sampler}


def _questions_of(general: Sequence[Conversation], file: str | None) -> Iterable[tuple[str, str]]:
    for sample in general:
        for message in sample.messages:
            if message["role"] == "user":
                yield f"{file}, sample {sample.id!r}", text_of(message)
