"""A training run from config to saved model: check, decode, query the teacher (stage 1), train, save, finish."""

import logging
from pathlib import Path
from typing import Any

from ..config_file import own_fields
from ..utils import InputError, Terminated, owned, reported_writing, sha256_of_file, write_json
from . import checkpoint
from .config import StageConfig
from .data import Stage1Data, Stage2Data
from .distributed import barrier, fill_sizes, max_over_ranks, unlink_shared_buffers, whole_state_dict
from .model import count, freeze_all_but, keep_trained_in_float32, load_model, trained_parts
from .trainer import Stage1Trainer, Stage2Trainer, StageTrainer, StopAtSigterm

logger = logging.getLogger(__name__)


# stage -> its data and its trainer; its config is in `CONFIGS`
STAGES = {1: (Stage1Data, Stage1Trainer), 2: (Stage2Data, Stage2Trainer)}

# Fields that change where or how fast a run is computed, and not what comes out of it.
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
    "packing",
    "attn_implementation",
    "fsdp",
    "ddp_find_unused_parameters",
    "ddp_broadcast_buffers",
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
    """Run a stage; a run that was stopped, or that is to be longer, resumes from its last complete checkpoint.

    Returns:
        "trained", or "finished" where output_dir already holds this very run's result.

    Raises:
        InputError: anything in config, manifest, media or output_dir that cannot be used; another process runs in
            output_dir.
        Terminated: SIGTERM ended the training, with a checkpoint.
    """
    unlink_shared_buffers()
    if config.fp16 and config.device.type == "cpu":
        raise InputError("config field `fp16` is true; a CPU trains in float32 or bfloat16: set it to false.")
    data_class, _ = STAGES[config.stage]
    data = data_class(config)
    if config.process_index > 0:
        return _run(config, data)
    with owned(Path(config.output_dir), "output_dir"):
        return _run(config, data)


def _run(config: StageConfig, data: Stage1Data | Stage2Data) -> str:
    output_dir, step = Path(config.output_dir), 0
    settings = run_settings(config)
    state = checkpoint.inspect_output(output_dir, settings, config.overwrite)
    if state == "finished":
        return "finished"
    model, processor = load_model(config)
    # Before anything is written, so that a bad file leaves no half run behind; see `ClipDataset.fill_cache`.
    data.prepare(model, processor)
    barrier()
    if config.process_index == 0:
        checkpoint.open_output(output_dir, settings, state)
        checkpoint.write_record(output_dir, config, data.clips)
        step = checkpoint.resume_step(output_dir)
    barrier()
    (step,) = max_over_ranks((step,), config.device)
    trainer = make_trainer(config, model, processor, *data.batches(model, processor))
    last = str(output_dir / f"checkpoint-{step}") if step else None
    if last is not None:
        logger.info("Resuming from %s.", last)
    with StopAtSigterm() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=last)
    if stop.stopped:
        raise Terminated(
            f"terminated after step {trainer.state.global_step}, with a checkpoint in {output_dir}; the same command "
            "resumes from it."
        )
    save(trainer, output_dir)
    return "trained"


def run_settings(config: StageConfig) -> dict[str, Any]:
    """What decides a run's result, for `run.json`."""
    names = [field.name for field in own_fields(type(config)) if field.name not in _FREE_FIELDS]
    settings = {name: getattr(config, name) for name in dict.fromkeys((*names, *_FIXED_LIBRARY_FIELDS))}
    settings["deepspeed"] = bool(config.deepspeed)  # an engine reads no checkpoint but its own
    for name in ("manifest", "instructions"):
        file = getattr(config, name, None)
        if isinstance(file, str) and Path(file).is_file():
            settings[f"{name}_sha256"] = sha256_of_file(Path(file))
    return settings


def make_trainer(config: StageConfig, model, processor, dataset, collator, options: dict[str, Any]) -> StageTrainer:
    """The trainer of the config's stage, with everything frozen that it does not train."""
    parts = trained_parts(config)
    freeze_all_but(model, parts)
    if config.deepspeed:  # engines keep a float32 copy of their own
        fill_sizes(config.hf_deepspeed_config, model.config.get_text_config().hidden_size)
    else:
        keep_trained_in_float32(model)
    trained, everything = count(p for p in model.parameters() if p.requires_grad), count(model.parameters())
    logger.info("Training %s of %s parameters (%s).", f"{trained:,}", f"{everything:,}", ", ".join(parts))
    learning_rates = {"audio_tower": config.audio_tower_lr, "lora_": getattr(config, "lora_lr", None)}
    _, trainer_class = STAGES[config.stage]
    return trainer_class(
        model,
        config,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=processor,
        trained_parts=parts,
        learning_rates=learning_rates,
        **options,
    )


def save(trainer: StageTrainer, output_dir: Path) -> None:
    """Write the model, the processor and the trainer's state into `output_dir`, and mark the run as finished."""
    staging = output_dir / "final.tmp"
    if trainer.is_deepspeed_enabled and trainer.args.hf_deepspeed_config.is_zero3():
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    elif trainer.is_fsdp_enabled:
        state_dict = whole_state_dict(trainer.model, trainer.args.should_save)
    else:
        state_dict = trainer.model.state_dict()
    if trainer.args.should_save:
        with reported_writing(staging, unfinished=True):
            checkpoint.save_model(trainer.model, trainer.processing_class, state_dict, staging, trainer.args)
            trainer.state.save_to_json(str(staging / "trainer_state.json"))
        checkpoint.publish(staging, output_dir)
        write_json(output_dir / checkpoint.FINISHED, {"steps": trainer.state.global_step})
    barrier()
