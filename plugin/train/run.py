"""A training run from config to saved model: check, decode, generate responses (stage 1), train, save, finish."""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from ..config_file import own_fields
from ..utils import InputError, reported_writing, write_json
from . import checkpoint, record, stage1_data, stage2_data
from .attention import attention_candidates, weights_dtype
from .base_config import StageConfig
from .distributed import barrier, unlink_shared_buffers
from .engine import fill_sizes
from .freezing import count, freeze_all_but
from .lora import ADAPTER, add_lora, merge_lora, save_adapter
from .meta_model import check_folder, without_sharding
from .prompts import prompt_source
from .stage1_config import Stage1Config
from .stage1_trainer import Stage1Trainer
from .stage2_config import Stage2Config
from .stage2_trainer import Stage2Trainer
from .stage_trainer import StageTrainer

logger = logging.getLogger(__name__)

CONFIGS = {1: Stage1Config, 2: Stage2Config}

# Fields that change where or how fast a run goes, and not what comes out of it.
_FREE_FIELDS = {
    "output_dir",
    "overwrite",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "cache_media",
    "generation_batch_size",
    "teacher_cache",
    "cache_audio_features",
    "packing",
    "peak_tflops",
    "attn_implementation",
    "zero3_replicate_frozen",
}
_FIXED_LIBRARY_FIELDS = (
    "seed",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "bf16",
    "fp16",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "world_size",
)


def run(config: StageConfig) -> str:
    """Run a stage; a run that was stopped goes on from its last complete checkpoint.

    Returns:
        "trained", or "finished" where output_dir already holds this very run's result.

    Raises:
        InputError: anything in config, manifest, media or output_dir that cannot be used.
    """
    unlink_shared_buffers()
    output_dir = Path(config.output_dir)
    stage1 = isinstance(config, Stage1Config)
    if not stage1:
        clips, instructions, general = stage2_data.read_data(config)
        # In the config, so that run.json names them and an export of the run knows the head.
        config.emotion_labels = stage2_data.emotion_labels(config, clips)
    settings = run_settings(config)
    state = checkpoint.inspect_output(output_dir, settings, config.overwrite)
    if state == "finished":
        return "finished"
    if stage1:
        prompt_source(config.prompts)  # a bad one is told before a large model is loaded
        clips, columns = stage1_data.read_clips(config)
        media = stage1_data.decoded_media(config)
    else:
        media = stage2_data.decoded_media(config)
    model, processor = load_model(config)
    if stage1:
        audio_features = stage1_data.cached_audio(config, model, processor, clips)
        dataset = stage1_data.make_dataset(config, processor, clips, audio_features)
        if config.teacher_cache is not None:
            rows = stage1_data.teacher_rows(config, model, processor, dataset)
    else:
        if config.lora is not None:
            add_lora(model, config.lora)
        dataset = stage2_data.make_dataset(config, processor, clips, general)
    # Before anything is written, so that a bad file leaves no half run behind; see `fill_cache` for what is checked.
    dataset.fill_cache(media, progress=is_main(config) and not config.disable_tqdm)
    barrier()
    if is_main(config):
        checkpoint.open_output(output_dir, settings, state)
        record.write(output_dir, config, clips)
    barrier()
    options: dict[str, Any] = {}
    if stage1:
        if config.teacher_cache is None:
            rows = stage1_data.teacher_rows(config, model, processor, dataset)
        responses = stage1_data.gate(config, rows, columns)
        del rows  # large, and the loader's workers would hold them as well
        dataset, collator, options = stage1_data.make_batches(config, processor, dataset, responses)
    else:
        collator, options = stage2_data.make_batches(config, processor, clips, instructions, general)
    trainer = make_trainer(config, model, processor, dataset, collator, options)
    last = checkpoint.last_complete(output_dir)
    if last is not None:
        logger.info("Going on from %s.", last)
    trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    save(trainer, output_dir, lora=not stage1 and config.lora is not None)
    return "trained"


def is_main(config: StageConfig) -> bool:
    return config.process_index == 0


def run_settings(config: StageConfig) -> dict[str, Any]:
    """What decides a run's result, for `run.json`."""
    names = [field.name for field in own_fields(type(config)) if field.name not in _FREE_FIELDS]
    settings = {name: getattr(config, name) for name in dict.fromkeys((*names, *_FIXED_LIBRARY_FIELDS))}
    settings["manifest_sha256"] = sha256_of(Path(config.manifest))
    for name in ("instructions", "general"):
        if isinstance(file := getattr(config, name, None), str) and (digest := sha256_of(Path(file))):
            settings[f"{name}_sha256"] = digest
    return {name: str(value) if dataclasses.is_dataclass(value) else value for name, value in settings.items()}


def sha256_of(file: Path) -> str | None:
    """Hash of a file's content; None where it is missing, which the reading of it will tell."""
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load_model(config: StageConfig):
    """The model and its processor, whole on every rank: the teacher generates before an engine shards anything.

    Raises:
        InputError: a folder that is not there or lacks its config.
    """
    model, processor = load_untrained(config)
    if is_main(config):
        towers = {"vlm": model.vlm, "audio tower": model.audio_tower}
        used = ", ".join(f"{tower.config._attn_implementation} ({name})" for name, tower in towers.items())
        logger.info("Attention: %s.", used)
    if model.dtype != torch.float32 and not (config.bf16 or config.fp16 or config.deepspeed):
        raise InputError(
            f"the weights are {str(model.dtype).removeprefix('torch.')}, and what is trained is kept in float32: set "
            "`bf16: true` (or `fp16: true`), which lets the two work together."
        )
    if config.deepspeed and (config.stage == 2 or config.teacher_cache is not None):
        return model, processor  # the engine shards it from the CPU; a teacher online must generate first
    return model.to(config.device), processor


def load_untrained(config: StageConfig):
    """The model that a run starts from and its processor, on the CPU: a function of the config alone.

    Raises:
        InputError: a folder that is not there or lacks its config, or an attention that cannot be used.
    """
    from transformers import AutoConfig

    from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration as Model

    for name in ("model", "vlm", "audio"):
        check_folder(name, getattr(config, name))
    try:
        source = Model.config_class if config.model is not None else AutoConfig
        dtype = weights_dtype(source.from_pretrained(config.model or config.vlm))
        *better, last = attention_candidates(config.attn_implementation, dtype)
        with without_sharding():
            for attention in better:
                try:
                    return _load_parts(config, attention)
                except (ImportError, ValueError) as error:  # some audio towers know no FlashAttention
                    logger.info("%s cannot be used: %s", attention, error)
            return _load_parts(config, last)
    except InputError:
        raise
    except (ImportError, OSError, ValueError, TypeError) as error:
        where = config.model or f"{config.vlm} and {config.audio}"
        raise InputError(f"cannot load a model from {where}: {error}") from error


def _load_parts(config: StageConfig, attention: str | None):
    from transformers import set_seed

    from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration as Model
    from ..model.processing_vaemotionllm import VAEmotionLLMProcessor as Processor

    set_seed(config.seed)  # the projector's first weights
    options = {"attn_implementation": attention} if attention else {}
    if config.model is not None:
        model = Model.from_pretrained(config.model, dtype="auto", **options)
        processor = Processor.from_pretrained(config.model)
        if config.model_fields:
            model.reset_emotion_adapter(**config.model_fields)
        if isinstance(config, Stage2Config):
            model.set_emotion_labels(config.emotion_labels)
        model.config.emotion_calibration = None  # it was fitted on what training changes
        # What the model is trained with is what its processor gives to those who load it.
        processor.num_frames, processor.max_audio_s = config.num_frames, config.max_audio_s
    else:
        fields = config.model_fields or {}
        if isinstance(config, Stage2Config):
            fields = {**fields, "emotion_labels": config.emotion_labels}
        model = Model.from_backbone(config.vlm, config.audio, **options, **fields)
        stride = {"projector_stride": fields["projector_stride"]} if "projector_stride" in fields else {}
        processor = Processor.from_backbone(
            config.vlm, config.audio, max_audio_s=config.max_audio_s, num_frames=config.num_frames, **stride
        )
    return model, processor


def trained_parts(config: StageConfig) -> list[str]:
    """Names of the submodules that the config trains."""
    wanted = {
        "audio_projector": config.train_audio_projector,
        "audio_tower": config.train_audio_tower,
        "emotion_adapter": getattr(config, "train_emotion_adapter", False),
    }
    return [part for part, is_trained in wanted.items() if is_trained]


def keep_trained_in_float32(model: torch.nn.Module) -> None:
    """Hold what is trained in float32: in half precision an optimizer's small steps are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def make_trainer(config: StageConfig, model, processor, dataset, collator, options: dict[str, Any]) -> StageTrainer:
    """The trainer of the config's stage, with everything frozen that it does not train."""
    parts = trained_parts(config)
    freeze_all_but(model, parts)
    if not config.deepspeed:  # engines keep a float32 copy of their own
        keep_trained_in_float32(model)
    trained, everything = count(p for p in model.parameters() if p.requires_grad), count(model.parameters())
    logger.info("Training %s of %s parameters (%s).", f"{trained:,}", f"{everything:,}", ", ".join(parts))
    if "emotion_adapter" in parts:
        logger.info(enhancer_size(model))
    learning_rates = {
        "audio_tower": config.audio_tower_lr,
        "emotion_adapter": getattr(config, "emotion_adapter_lr", None),
        "lora_": getattr(config, "lora_lr", None),
    }
    if config.deepspeed:
        fill_sizes(config, model)
    trainer_class = Stage1Trainer if isinstance(config, Stage1Config) else Stage2Trainer
    return trainer_class(model, config, dataset, collator, processor, parts, learning_rates, **options)


def enhancer_size(model) -> str:
    """What the Emotion Enhancer adds to the backbone, in words."""
    ours, llm = count(model.emotion_adapter.enhancers.parameters()), count(model.get_decoder().layers.parameters())
    return (
        f"Emotion Enhancer: {ours:,} parameters, {ours / count(model.vlm.parameters()):.2%} of the backbone's; on a "
        f"media token {ours / llm:.2%} of the work of the LLM's layers, on others none."
    )


def save(trainer: StageTrainer, output_dir: Path, lora: bool) -> None:
    """Write the model, the processor and the trainer's state into `output_dir`, and mark the run as finished.

    LoRA is merged into the model, and written alone into the folder `adapter`.
    """
    staging = output_dir / "final.tmp"
    if trainer.is_deepspeed_enabled and trainer.args.hf_deepspeed_config.is_zero3():
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        state_dict = trainer.model.state_dict()
    if trainer.args.should_save:
        with reported_writing(staging, unfinished=True):
            if lora:
                save_adapter(trainer.model, state_dict, staging / ADAPTER, trainer.args, trainer.trained_parts)
                state_dict = merge_lora(trainer.model, state_dict)
            trainer.model.save_pretrained(staging, state_dict=state_dict)
            trainer.processing_class.save_pretrained(staging)
            trainer.state.save_to_json(str(staging / "trainer_state.json"))
        checkpoint.publish(staging, output_dir)
        write_json(output_dir / checkpoint.FINISHED, {"steps": trainer.state.global_step})
    barrier()
