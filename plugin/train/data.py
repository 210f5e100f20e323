"""Data of a run: clips, the filter of the teacher's responses, batches; one class for each stage.

Both are made of a config, which reads and checks all but media, and are then called in this order: `prepare`, before
anything is written, and `batches`, once the run's folder is open.
"""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.collator import Stage1Collator, Stage2Collator
from ..data.dataset import MEDIA_OF_MODALITY, ClipDataset, ClipEncoder, possible_modalities
from ..data.manifest import Clip, read_manifest
from ..data.samplers import class_weights, modality_of_step
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..utils import InputError, write_json, write_json_lines
from .answers import read_answers
from .checkpoint import QUALITY
from .config import Stage1Config, Stage2Config
from .distributed import barrier, from_first_rank
from .instructions import emotion_of, instruction_source, prompt_source
from .teacher import generate_responses, read_responses, teacher_header
from .teacher_cache import FILES, RESPONSES, SCORES, ResponsesOfClips, Row, Rows, ShardReader

logger = logging.getLogger(__name__)

EMPTY = "empty response"
_MAX_LABELS = 256  # beyond, the column holds free text rather than labels

Rules = Mapping[str, Mapping[str, float]]


class Stage1Data:
    """Clips of stage 1, the teacher's responses to them, and batches of both.

    Args:
        config: of the run.

    Raises:
        InputError: prompts or manifest that cannot be used.
    """

    def __init__(self, config: Stage1Config):
        self.config = config
        self.source = prompt_source(config.prompts)
        clips = read_manifest(config.manifest, config.split, ("audio", "visual"), config.max_clips)
        self.clips = [clip.without_labels() for clip in clips]
        # Clip id -> the manifest's own columns that rules name, where it has any.
        self.columns = {
            clip.id: {name: clip.extra[name] for name in named}
            for clip in clips
            if (named := config.quality.keys() & clip.extra.keys())
        }
        self.rows: Rows | None = None

    def prepare(self, model, processor) -> None:
        """Read the cache that the config names, and decode what is kept in memory.

        Raises:
            InputError: a cache that is not finished or of another model, or a clip that cannot be decoded.
        """
        config = self.config
        self.dataset = self._dataset(processor)
        if config.teacher_cache is not None:
            header = teacher_header(model, processor, self.source, config, states=True)
            self.rows = read_responses(header, self.clips, config, Path(config.teacher_cache), model, processor)
        visual = self.rows is None or config.student_modalities.get("av", 0) > 0
        media = ("visual", "audio") if visual else ("audio",)
        self.dataset.fill_cache(media, progress=config.process_index == 0 and not config.disable_tqdm)

    def batches(self, model, processor) -> tuple[ClipDataset, Stage1Collator, dict[str, Any]]:
        """The clips that have a response, the collator, and the trainer's options.

        Raises:
            InputError: see `generate_responses` and `select`.
        """
        config = self.config
        states = None
        if self.rows is None:
            self.rows = generate_responses(
                model, processor, self.dataset, self.source, config, Path(config.output_dir), states=False
            )
        else:
            states = ShardReader(Path(config.teacher_cache))
        responses = self.select(self.rows)
        dataset = self.dataset.only({*responses})
        collator = Stage1Collator(processor, responses, config.student_modalities, config.seed, states)
        options: dict[str, Any] = {}
        if config.train_sampling_strategy == "group_by_length":
            ids = [clip.id for clip in dataset.clips]
            options["sampler_options"] = {
                "length_of": lambda index, epoch, step: collator.length_of(ids[index], epoch, index, step)
            }
        return dataset, collator, options

    def select(self, rows: Rows) -> ResponsesOfClips:
        """Clip id -> the rows that pass the filter `quality`, which rank 0 judges. Its report goes into output_dir.

        Raises:
            InputError: see `judge`; nothing is left.
        """
        folder = Path(self.config.output_dir)

        def kept() -> np.ndarray:
            judged = Rows(rows.table.select(["id", "slot", "empty", *SCORES]), rows.numbers)
            verdicts = judge(judged, self.columns, self.config.quality)
            found = summary(verdicts, self.config.quality)
            write_json(folder / QUALITY, found)
            write_json_lines(folder / f"{QUALITY}l", verdicts)
            if dropped := found["responses_dropped"]:
                logger.warning(
                    "The filter `quality` dropped %s of %s responses: see %s.", dropped, len(rows), folder / QUALITY
                )
            if not (mask := np.array([verdict["kept"] for verdict in verdicts])).any():
                raise InputError(f"the filter `quality` dropped every response; see {folder / QUALITY}. Loosen it.")
            return mask

        return ResponsesOfClips(Rows(rows.table, rows.numbers[from_first_rank(kept)]))

    def fill_teacher_cache(self, model, processor, answers: Path | None = None) -> int:
        """Make what `config.teacher_cache` lacks. Every rank takes part.

        Args:
            model, processor: of the run.
            answers: file of responses from elsewhere; None to generate them.

        Returns:
            how many responses the cache then has of those of the run.

        Raises:
            InputError: see `generate_responses` and `read_answers`.
        """
        config, folder = self.config, Path(self.config.teacher_cache)
        given = None
        if answers is not None:
            tokens = processor.tokenizer.convert_ids_to_tokens(model.config.media_token_ids)
            given = read_answers(answers, self.clips, self.source, config, [token for token in tokens if token])
        folder.mkdir(parents=True, exist_ok=True)
        if config.overwrite and config.process_index == 0:
            for path in {*folder.glob(f"{RESPONSES}*")} - {folder / FILES}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        barrier()
        return len(generate_responses(
            model, processor, self._dataset(processor), self.source, config, folder, states=True, answers=given
        ))  # fmt: skip

    def estimate_bytes(self, model) -> dict[str, int]:
        """The cache's size on disk: "states" if every response is as long as it may be, "free" on that disk."""
        config, width = self.config, model.config.get_text_config().hidden_size
        tokens = len(self.clips) * config.responses_per_clip * config.max_response_tokens
        folder = Path(config.teacher_cache).resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return {"states": tokens * width * model.dtype.itemsize, "free": shutil.disk_usage(existing).free}

    def _dataset(self, processor) -> ClipDataset:
        """The clips; a step decodes what its student takes, and the visual where a teacher needs it."""
        config = self.config

        def media(step: int, clip: Clip) -> tuple[str, ...]:
            needed = MEDIA_OF_MODALITY[modality_of_step(config.seed, step, config.student_modalities)]
            return needed if config.teacher_cache is not None or "visual" in needed else ("visual", *needed)

        encoder = ClipEncoder(processor, config.num_frames, config.max_audio_s)
        return ClipDataset(self.clips, encoder, media, config.cache_media)


# ---- the filter of stage 1: clips whose audio has nothing to do with the visual teach wrong audio. A rule names a
# score (see `teacher`, or a number that the manifest has in a column of that name) and its threshold:
#
#     quality:
#       grounding: {min: 0.02}
#       entropy: {max: 4.0}


def judge(rows: Iterable[Row], columns: Mapping[str, Mapping[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """Verdicts on the teacher's rows: id, slot, kept, reasons (the rules that dropped it), scores.

    Args:
        rows: see `teacher`.
        columns: clip id -> the manifest's own columns that rules name, where it has any.
        rules: score -> {min or max: threshold}.

    A rule whose column a clip does not have does not drop it and is counted in the report. An empty response is
    dropped.

    Raises:
        InputError: a rule names a score that no row and no clip has, or a column that holds no number.
    """
    verdicts: list[dict[str, Any]] = []
    for row in rows:
        scores = {
            name: value for name, value in {**columns.get(row["id"], {}), **row["scores"]}.items() if value is not None
        }
        reasons = [EMPTY] if row["empty"] else []
        for name, rule in rules.items():
            value = scores.get(name, math.nan)
            if name in scores and not (isinstance(value, int | float) and math.isfinite(value)):
                raise InputError(f"clip {row['id']!r}: its column `{name}` is {value!r}; a finite number is needed.")
            if value < rule.get("min", -math.inf) or value > rule.get("max", math.inf):
                reasons.append(name)
        verdicts.append(
            {"id": row["id"], "slot": row["slot"], "kept": not reasons, "reasons": reasons, "scores": scores}
        )
    known = {name for verdict in verdicts for name in verdict["scores"]}
    if unknown := [name for name in rules if name not in known]:
        raise InputError(
            f"config field `quality` has a rule for `{unknown[0]}`, which is no score of the teacher's responses and "
            f"no column of the manifest. Scores are {', '.join(sorted(known)) or 'none'}; more by `teacher_scores`."
        )
    return verdicts


def summary(verdicts: Sequence[Mapping[str, Any]], rules: Rules) -> dict[str, Any]:
    """What the filter did, for the report: counts, reasons, quantiles of each score."""
    dropped = [verdict for verdict in verdicts if not verdict["kept"]]
    scores = pd.DataFrame([verdict["scores"] for verdict in verdicts], dtype=float)
    quantiles = scores.quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).round(5)
    clips = {verdict["id"] for verdict in verdicts}
    return {
        "rules": {name: dict(rule) for name, rule in rules.items()},
        "responses": len(verdicts),
        "responses_dropped": len(dropped),
        "clips": len(clips),
        "clips_dropped": sorted(clips - {verdict["id"] for verdict in verdicts if verdict["kept"]}),
        "dropped_by": dict(Counter(reason for verdict in dropped for reason in verdict["reasons"]).most_common()),
        "without_score": {name: int(scores[name].isna().sum()) for name in rules},
        # Lowest, 5%, 25%, median, 75%, 95%, highest.
        "quantiles": {name: quantiles[name].tolist() for name in sorted(quantiles)},
    }


class Stage2Data:
    """Clips of stage 2 and their modalities, instructions, and batches of both.

    Args:
        config: of the run; its `emotion_labels` become a list or None, so that run.json names them and an export of
            the run knows the head.

    Raises:
        InputError: a clip that no modality can take or no instruction fits, or a prompt of the benchmark.
    """

    def __init__(self, config: Stage2Config):
        self.config = config
        self.source = instruction_source(config.instructions)
        clips = read_manifest(config.manifest, config.split, self.source.needed)
        self.source.check(clips, modalities_of_clips(clips, config.modalities))
        self.clips = clips[: config.max_clips]
        if config.class_balance and not any(clip.emotion for clip in self.clips):
            raise InputError(
                f"config field `class_balance` is {config.class_balance!r}, and no clip has an `emotion`. Set it to 0."
            )
        config.emotion_labels = emotion_labels(config, self.clips)

    def prepare(self, model, processor) -> None:
        """Decode what is kept in memory.

        Raises:
            InputError: a clip that cannot be decoded.
        """
        config = self.config

        def media(step: int, clip: Clip) -> tuple[str, ...]:
            # Among the modalities that the clip can take: those of its whole group, and so of the whole step.
            possible = possible_modalities(clip, config.modalities)
            return MEDIA_OF_MODALITY[modality_of_step(config.seed, step, config.modalities, possible)]

        encoder = ClipEncoder(processor, config.num_frames, config.max_audio_s)
        self.dataset = ClipDataset(self.clips, encoder, media, config.cache_media)
        taken = {
            medium for name, weight in config.modalities.items() if weight > 0 for medium in MEDIA_OF_MODALITY[name]
        }
        self.dataset.fill_cache(sorted(taken), progress=config.process_index == 0 and not config.disable_tqdm)

    def batches(self, model, processor) -> tuple[ClipDataset, Stage2Collator, dict[str, Any]]:
        """The clips, the collator, and the trainer's options."""
        config = self.config
        sampler: dict[str, Any] = {}
        if config.class_balance:
            sampler["weights"] = class_weights([emotion_of(clip) for clip in self.clips], config.class_balance)
        collator = Stage2Collator(
            processor, self.source, config.seed, repeats=bool(config.class_balance),
            emotion_labels=config.emotion_labels or (), media_token_ids=model.config.media_token_ids,
        )  # fmt: skip
        return self.dataset, collator, {"sampler_options": sampler}


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
    current: list[str] = []
    if config.model is not None:
        try:
            current = VAEmotionLLMConfig.from_pretrained(config.model).emotion_labels or []
        except (OSError, ValueError):
            pass  # the loading of the model reports it
    found: dict[str, str] = {}  # label -> a clip that has it
    for clip in clips:
        for name in [clip.emotion] if isinstance(clip.emotion, str) else clip.emotion or ():
            found.setdefault(name, clip.id)
    if wanted == "manifest":
        wanted = [*current, *sorted(found.keys() - set(current))]
        if not current and (len(wanted) < 2 or not config.train_emotion_adapter):
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


def modalities_of_clips(clips: Sequence[Clip], weights: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Clip id -> the modalities of weight above 0 that it can take.

    Raises:
        InputError: a clip that can take none, or a modality that no clip can take.
    """
    found = {clip.id: possible_modalities(clip, weights) for clip in clips}
    wanted = [modality for modality, weight in weights.items() if weight > 0]
    for clip in clips:
        if not found[clip.id]:
            raise InputError(
                f"clip {clip.id!r} holds {clip.visual or 'audio'} alone, and `modalities` takes "
                f"{', '.join(wanted)}: none of them is possible. Give a modality that it can take a weight "
                "above 0, or remove the clip."
            )
    for modality in wanted:
        if not any(modality in possible for possible in found.values()):
            needs = " and ".join(MEDIA_OF_MODALITY[modality])
            raise InputError(
                f"`modalities` takes {modality}, and no clip holds {needs}. Set its weight to 0, or add clips."
            )
    return found
