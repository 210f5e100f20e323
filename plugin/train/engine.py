"""DeepSpeed behind one module: sizes that its JSON leaves open, and frozen weights that stay whole on each rank."""

import logging

import torch
from torch import nn

from ..utils import InputError
from .base_config import StageConfig
from .distributed import is_on_all_ranks

logger = logging.getLogger(__name__)

_THRESHOLD = "zero_optimization.stage3_param_persistence_threshold"
_REPLICATED_SHARE = 0.5
"""Largest share of a device's memory that whole frozen weights may take; activations and the rest need the other."""


def fill_sizes(config: StageConfig, model: nn.Module) -> None:
    """Fill the "auto" sizes of the DeepSpeed config. Call it after the model's parameters are frozen.

    Bucket sizes are the library's own, which it computes only for models whose config has a `hidden_size` at its top
    level. The persistence threshold of ZeRO-3 is above every frozen parameter where these are to be replicated.

    Raises:
        InputError: `zero3_replicate_frozen` contradicts the JSON.
    """
    engine_config = config.hf_deepspeed_config
    hidden_size = model.config.get_text_config().hidden_size
    engine_config.fill_only("zero_optimization.reduce_bucket_size", hidden_size * hidden_size)
    engine_config.fill_only("zero_optimization.stage3_prefetch_bucket_size", int(0.9 * hidden_size * hidden_size))
    threshold = 10 * hidden_size
    if replicates_frozen(config, model):
        threshold = max([threshold, *(p.numel() for p in model.parameters() if not p.requires_grad)])
        logger.info("ZeRO-3 keeps the frozen weights whole on each rank (stage3_param_persistence_threshold).")
    engine_config.fill_only(_THRESHOLD, threshold)


def replicates_frozen(config: StageConfig, model: nn.Module) -> bool:
    """Whether ZeRO-3 shall keep the frozen weights whole on each rank: as the config says, or where they fit.

    Raises:
        InputError: the config asks for it and the JSON shards or offloads them.
    """
    wanted, engine_config = config.zero3_replicate_frozen, config.hf_deepspeed_config
    offloaded = engine_config.get_value("zero_optimization.offload_param.device") not in (None, "none")
    if not engine_config.is_zero3() or wanted is False:
        return False
    if wanted:
        if offloaded:
            raise InputError(
                "config field `zero3_replicate_frozen` is true, but the DeepSpeed config moves parameters off the "
                "device (`offload_param`). Use deepspeed=zero3, or leave the field out."
            )
        if not engine_config.is_auto(_THRESHOLD):
            raise InputError(
                "config field `zero3_replicate_frozen` is true, but the DeepSpeed config sets "
                f'stage3_param_persistence_threshold to {engine_config.get_value(_THRESHOLD)}. Write "auto" there, '
                "or leave the field out."
            )
        return True
    if offloaded or config.device.type != "cuda":
        return False
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    bytes_each = 2 if config.bf16 or config.fp16 else 4
    # Every rank must decide alike, also where their devices differ.
    return is_on_all_ranks(
        fits(frozen * bytes_each, torch.cuda.get_device_properties(config.device).total_memory), config.device
    )


def fits(frozen_bytes: int, device_bytes: int) -> bool:
    """Whether whole frozen weights leave enough of a device's memory free."""
    return frozen_bytes <= _REPLICATED_SHARE * device_bytes


def is_zero3(engine) -> bool:
    """Whether an engine shards its parameters, in the way of DeepSpeed 0.19, whose inside this package knows."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return False
    known = (
        hasattr(engine.optimizer, "persistent_parameters")
        and hasattr(offload, "partition_all_parameters")
        and hasattr(offload.get_param_coordinator(), "_invalidate_trace")
    )
    if not known:
        # It costs time, and no correctness as long as all ranks' batches hold the same media.
        logger.warning("This version of DeepSpeed is not known: ZeRO-3 may gather weights more often than it must.")
    return known


def keep_frozen_whole(engine) -> int:
    """Let an engine gather the frozen parameters that persist once, and then never again.

    ZeRO-3 partitions all parameters before each optimizer step, persistent ones too, and gathers these anew after it;
    it also gives them up in each step in which another path through the model is traced. Frozen ones never change, so
    they are taken out of both.

    Args:
        engine: a DeepSpeed engine for which `is_zero3` holds, whose checkpoint is already loaded.

    Returns:
        Number of parameters that are kept whole.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    offload = engine.optimizer.parameter_offload
    frozen = [p for p in engine.optimizer.persistent_parameters if not p.requires_grad]
    kept = {id(parameter) for parameter in frozen}
    for parameter in frozen:
        parameter.all_gather()  # one by one, so that no second copy of all of them is ever in memory
    # The optimizer and its offload share this list: what is gathered after each step.
    engine.optimizer.persistent_parameters[:] = [p for p in offload.persistent_parameters if id(p) not in kept]

    def partition_others(param_list=None, **options):
        others = [p for p in param_list or () if id(p) not in kept]
        if others:
            others[0].partition(others, **options)

    for parameter in frozen:
        parameter.partition = partition_others
    partition_all = offload.partition_all_parameters

    def partition_all_others():
        available = [p for p in frozen if p.ds_status == ZeroParamStatus.AVAILABLE]
        for parameter in available:
            parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE  # passed over, and not missed afterwards
        try:
            partition_all()
        finally:
            for parameter in available:
                parameter.ds_status = ZeroParamStatus.AVAILABLE

    offload.partition_all_parameters = partition_all_others
    return len(frozen)


def save_engine(engine, folder: str) -> None:
    """Write an engine's checkpoint: what is trained, its optimizer, and no frozen parameter.

    DeepSpeed leaves out a frozen parameter under its first name only; where weights are tied, as those of many heads
    are to the embedding, the others would be written in full.
    """
    frozen = [name for name, p in engine.module.named_parameters(remove_duplicate=False) if not p.requires_grad]

    def drop_frozen(module, state_dict, prefix, metadata):
        for name in frozen:
            state_dict.pop(name, None)

    hook = engine.module.register_state_dict_post_hook(drop_frozen)
    try:
        engine.save_checkpoint(folder, exclude_frozen_parameters=True)
    finally:
        hook.remove()
