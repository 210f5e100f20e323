"""From a stage-1 config to what its trainer reads: clips, the teacher's rows, the gate, batches."""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.collator import Stage1Collator
from ..data.dataset import MEDIA_OF_MODALITY, ClipDataset, ClipEncoder
from ..data.manifest import Clip, read_manifest
from ..data.samplers import modality_of_step
from ..utils import InputError
from .audio_cache import AUDIO, AudioFeatures, audio_header, cache_audio
from .distributed import barrier
from .prompts import prompt_source
from .quality import columns_of, judge, write_report
from .shard_store import Row, ShardReader
from .stage1_config import Stage1Config
from .teacher import RESPONSES, TeacherSettings, ask_teacher, read_teacher, teacher_header

logger = logging.getLogger(__name__)


def read_clips(config: Stage1Config) -> tuple[list[Clip], dict[str, dict[str, Any]]]:
    """The clips without their labels, and the manifest's columns that the gate reads."""
    clips = read_manifest(config.manifest, config.split, ("audio", "visual"), config.max_clips)
    return [clip.without_labels() for clip in clips], columns_of(clips, config.quality)


def make_dataset(config: Stage1Config, processor, clips: Sequence[Clip], audio_features=None) -> ClipDataset:
    """The clips; a step decodes what its student takes, and the picture where a teacher is to see it."""

    def media(step: int, clip: Clip) -> tuple[str, ...]:
        if step < 0:  # the teacher is asked
            return ("visual",)
        needed = MEDIA_OF_MODALITY[modality_of_step(config.seed, step, config.student_modalities)]
        return needed if config.teacher_cache is not None or "visual" in needed else ("visual", *needed)

    encoder = ClipEncoder(processor, config.num_frames, config.max_audio_s)
    return ClipDataset(clips, encoder, media, config.cache_media, audio_features)


def decoded_media(config: Stage1Config) -> tuple[str, ...]:
    """What a run decodes at all."""
    cached = config.teacher_cache is not None
    seen = not cached or config.student_modalities.get("av", 0) > 0
    return ("visual",) * seen + ("audio",) * (not config.cache_audio_features)


def cached_audio(config: Stage1Config, model, processor, clips: Sequence[Clip]) -> AudioFeatures | None:
    """Where the audio tower's states are read from, if the config keeps them."""
    if not config.cache_audio_features:
        return None
    return AudioFeatures(Path(config.teacher_cache), audio_header(model, processor), clips)


def teacher_rows(config: Stage1Config, model, processor, dataset: ClipDataset) -> list[Row]:
    """The teacher's rows: from the cache, or asked now and kept beside the run."""
    source = prompt_source(config.prompts)
    settings = TeacherSettings.of(config, states=config.teacher_cache is not None)
    if config.teacher_cache is not None:
        header = teacher_header(model, processor, source, settings)
        return read_teacher(header, dataset.clips, settings, Path(config.teacher_cache))
    return ask_teacher(
        model, processor, dataset, source, settings, Path(config.output_dir), batch_size=config.generation_batch_size,
        rank=config.process_index, world_size=config.world_size, progress=not config.disable_tqdm,
    )  # fmt: skip


def gate(config: Stage1Config, rows: list[Row], columns: dict[str, dict[str, Any]]) -> dict[str, list[Row]]:
    """Clip id -> what batches need of its rows, with their `weight`; those of weight 0 are left out.

    The report goes into output_dir.

    Raises:
        InputError: nothing is left.
    """
    verdicts = judge(rows, columns, config.quality)
    if config.process_index == 0:
        found = write_report(Path(config.output_dir), verdicts, config.quality)
        if found["responses_dropped"]:
            logger.warning(
                "The quality gate dropped %s of %s responses and all of %s clips: %s/quality.md says which and why.",
                found["responses_dropped"], found["responses"], len(found["clips_dropped"]), config.output_dir,
            )  # fmt: skip
    kept: dict[str, list[Row]] = {}
    for row, verdict in zip(rows, verdicts):
        if verdict["weight"] > 0:
            kept.setdefault(row["id"], []).append(_lean(row) | {"weight": verdict["weight"]})
    if not kept:
        raise InputError(
            f"the quality gate dropped every response; {config.output_dir}/quality.md says why. Loosen `quality`."
        )
    return kept


def _lean(row: Row) -> Row:
    """What batches need of a row. Every rank and each of its workers holds all rows, which may be millions."""
    lean = {name: row[name] for name in ("id", "slot", "text_tokens", "visual_tokens", "audio_tokens")}
    lean |= {name: sys.intern(row[name]) for name in ("kind", "prompt", "shard") if name in row}  # shared by many
    return lean | {"tokens": np.asarray(row["tokens"], dtype=np.int32)}


def make_batches(config: Stage1Config, processor, dataset: ClipDataset, responses: dict[str, list[Row]]):
    """The clips that have a response, the collator, and the trainer's options."""
    states = ShardReader(Path(config.teacher_cache)) if config.teacher_cache is not None else None
    dataset = dataset.only(responses.keys())
    collator = Stage1Collator(processor, responses, config.student_modalities, config.seed, states)
    options: dict[str, Any] = {"kinds": sorted({row["kind"] for rows in responses.values() for row in rows})}
    if config.train_sampling_strategy == "group_by_length":
        ids = [clip.id for clip in dataset.clips]
        options["sampler_options"] = {
            "length_of": lambda index, epoch, step: collator.length_of(ids[index], epoch, index, step)
        }
    return dataset, collator, options


def fill_teacher_cache(config: Stage1Config, model, processor, clips: Sequence[Clip]) -> None:
    """Make what `config.teacher_cache` lacks. Every rank takes part.

    Raises:
        InputError: see `ask_teacher` and `cache_audio`.
    """
    folder = Path(config.teacher_cache)
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite and config.process_index == 0:
        for path in (*folder.glob(f"{RESPONSES}*"), *folder.glob(f"{AUDIO}*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    barrier()
    dataset = make_dataset(config, processor, clips)
    common = dict(
        batch_size=config.generation_batch_size, rank=config.process_index, world_size=config.world_size,
        progress=not config.disable_tqdm,
    )  # fmt: skip
    settings = TeacherSettings.of(config, states=True)
    ask_teacher(model, processor, dataset, prompt_source(config.prompts), settings, folder, **common)
    if config.cache_audio_features:
        cache_audio(model, processor, dataset, folder, **common)
    barrier()


def estimate_bytes(config: Stage1Config, model, processor, clips: Sequence[Clip], sample: int = 16) -> dict[str, int]:
    """Upper bounds of the cache's size on disk: "states" if every response is as long as it may be, "audio" from the
    length of a sample of the clips, "free" on that disk."""
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    width = model.config.get_text_config().hidden_size
    sizes = {"states": len(clips) * config.responses_per_clip * config.max_response_tokens * width * itemsize}
    if config.cache_audio_features:
        encoder = ClipEncoder(processor, config.num_frames, config.max_audio_s)
        chosen = clips[:: max(len(clips) // sample, 1)][:sample]
        samples = sum(len(encoder.waveform(clip)) for clip in chosen) / len(chosen)
        tokens = samples / processor.samples_per_token + 1
        stacked = model.config.projector_stride * model.config.audio_config.hidden_size
        sizes["audio"] = round(len(clips) * tokens * stacked * itemsize)
    folder = Path(config.teacher_cache).resolve()
    sizes["free"] = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return sizes
