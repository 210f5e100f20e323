"""Ranks and devices of a run: reductions, attention, DeepSpeed, FSDP, modules that all ranks run."""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_flash_attention_utils import (
    FLASH_ATTENTION_COMPATIBILITY_MATRIX,
    FLASH_ATTN_KERNEL_FALLBACK,
    lazy_import_flash_attention,
)

from ..utils import InputError

logger = logging.getLogger(__name__)

# ---- ranks; everything is valid in one process as well


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over ranks; every rank must call it."""
    if torch.distributed.is_initialized():
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def max_over_ranks(values: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
    """The largest of each number over ranks; every rank must call it."""
    if not torch.distributed.is_initialized():
        return values
    tensor = torch.tensor(values, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tuple(tensor.tolist())


def from_first_rank(make: Callable[[], Any]) -> Any:
    """What `make` returns on rank 0, or the `InputError` that it raises there, on every rank; each must call it."""
    if not torch.distributed.is_initialized():
        return make()
    found: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            found[0] = make()
        except InputError as error:
            found[1] = str(error)
    torch.distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise InputError(found[1])
    return found[0]


# ---- devices


def attention_candidates(
    requested: str | None, dtype: torch.dtype | None, head_dims: Collection[int]
) -> list[str | None]:
    """Attention implementations to try for a model, the best first; None is the model's own default.

    "auto" is each installed FlashAttention that this process's CUDA device supports and that computes the model's
    heads right, and sdpa in any case, for a model that has no FlashAttention at all. The newest comes first; on Hopper
    it is 3, which was written for it, then 2.

    Args:
        requested: "auto", a name that transformers knows, or None.
        dtype: of the weights, None where it is not known. FlashAttention computes in bfloat16 and float16 only.
        head_dims: of the LLM and the towers.
    """
    if requested != "auto":
        return [requested]
    found: list[str | None] = []
    if torch.cuda.is_available() and dtype in (torch.bfloat16, torch.float16):
        major, _ = torch.cuda.get_device_capability()
        order = (3, 2, 4) if major == 9 else sorted(FLASH_ATTENTION_COMPATIBILITY_MATRIX, reverse=True)
        for version in order:
            known = FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]
            if not known["general_availability_check"]() or major < known.get("cuda_min_major_version", 8):
                continue
            problem = attention_problem(f"flash_attention_{version}", dtype, head_dims)
            if problem is None:
                found.append(f"flash_attention_{version}")
            else:
                logger.warning("FlashAttention %s is passed over: %s", version, problem)
    return [*found, "sdpa"]


def attention_problem(name: str, dtype: torch.dtype, head_dims: Collection[int], device: str = "cuda") -> str | None:
    """What is wrong with a FlashAttention on a device; None where nothing is.

    Each head dimension is run forward and backward as models do, over two sequences in one row, and compared with
    sdpa: a kernel can be missing, or be there for the forward pass alone.

    Args:
        name: as transformers knows it.
        dtype: bfloat16 or float16.
        head_dims: to be computed.
        device: where.
    """
    for head_dim in sorted(head_dims, reverse=True):
        try:
            error = max(attention_error(name, dtype, head_dim, causal, device) for causal in (True, False))
        except Exception as problem:  # of any kind: a package's, a compiler's, the device's
            return f"head dimension {head_dim}: {type(problem).__name__}: {' '.join(str(problem).split())}"
        if not error < 0.05:
            return f"head dimension {head_dim}: output or gradient differs from sdpa by {error:.2g} of its size"
    return None


def attention_error(
    name: str, dtype: torch.dtype, head_dim: int, causal: bool, device: str, lengths: tuple[int, int] = (40, 24)
) -> float:
    """Largest relative difference, in the 2-norm, of a FlashAttention's output and gradients from those of sdpa.

    Args:
        name, dtype, head_dim, device: see `attention_problem`.
        causal: with the LLM's mask and with half as many heads of keys and values; else as in a tower.
        lengths: of the sequences.
    """
    draws = torch.Generator().manual_seed(0)
    heads = (4, 2, 2, 4) if causal else (4, 4, 4, 4)
    drawn = (torch.randn(1, count, sum(lengths), head_dim, generator=draws) for count in heads)
    *inputs, outward = (states.to(device, dtype) for states in drawn)  # (1, heads, L, head_dim)
    for states in inputs:
        states.requires_grad_()
    results = []
    for compute in (flash_attention(name), plain_attention):
        output = compute(inputs, lengths, causal)  # (1, heads, L, head_dim)
        results.append([output, *torch.autograd.grad(output, inputs, outward)])
    errors = [(one.float() - two.float()).norm() / two.float().norm() for one, two in zip(*results)]
    return max(error.item() for error in errors)


def flash_attention(name: str) -> Callable[..., torch.Tensor]:
    """A FlashAttention as models call it for several sequences in one row; arguments as of `plain_attention`."""
    lazy_import_flash_attention(name)

    def compute(inputs, lengths, causal):
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(inputs[0].device)
        module = SimpleNamespace(config=SimpleNamespace(_attn_implementation=name), is_causal=causal)
        output, _ = flash_attention_forward(
            module,
            *inputs,
            None,
            is_causal=causal,
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
            position_ids=None,
        )
        return output.transpose(1, 2)

    return compute


def plain_attention(inputs: Sequence[torch.Tensor], lengths: Sequence[int], causal: bool) -> torch.Tensor:
    """sdpa of several sequences in one row.

    Args:
        inputs: queries, keys and values, (1, heads, L, head_dim) each, keys and values perhaps of fewer heads.
        lengths: of the sequences, L in sum.
        causal: with the LLM's mask.

    Returns:
        (1, heads, L, head_dim)
    """
    parts = zip(*(states.split(list(lengths), 2) for states in inputs))
    return torch.cat([F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=True) for part in parts], 2)


def flash_attention_remedy() -> str:
    """How FlashAttention is had where its package is not installed; transformers fetches a kernel when it is named."""
    name = FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"]
    return (
        f"install flash-attn (on Hopper flash-attn-3), or `pip install kernels` and set `attn_implementation: {name}`,"
        " a compiled kernel that transformers downloads from the Hub"
    )


# ---- DeepSpeed


def unlink_shared_buffers() -> None:
    """Remove the names of the buffers that DeepSpeed's ranks share on a CPU; every rank must call it.

    DeepSpeed leaves them, tens of MB of memory a rank, when it ends or is killed. Once every rank has mapped them,
    which is when the engine's process group is up, nobody opens them again, and without a name they end with their
    processes.
    """
    if torch.distributed.is_initialized():
        barrier()
        names = (os.environ.get(variable, "") for variable in ("MASTER_ADDR", "MASTER_PORT"))
        buffer = "_".join(["deepspeed_allreduce_buffer", str(os.getuid()), *names, str(torch.distributed.get_rank())])
        Path("/dev/shm", buffer).unlink(missing_ok=True)


def fill_sizes(engine_config, hidden_size: int) -> None:
    """Fill the "auto" sizes of a DeepSpeed config (`HfTrainerDeepSpeedConfig`).

    They are the library's own, which it computes only for models whose config has a `hidden_size` at its top level.
    """
    engine_config.fill_only("zero_optimization.reduce_bucket_size", hidden_size * hidden_size)
    engine_config.fill_only("zero_optimization.stage3_prefetch_bucket_size", int(0.9 * hidden_size * hidden_size))
    engine_config.fill_only("zero_optimization.stage3_param_persistence_threshold", 10 * hidden_size)


def zero3_coordinator(engine):
    """What gathers parameters in a DeepSpeed engine at ZeRO-3; None at other stages."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    return None if offload is None else offload.get_param_coordinator()


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


# ---- FSDP 2


def prepare_fsdp(plugin, model) -> None:
    """Have accelerate shard each layer of the LLM and of both towers on its own, and the rest together.

    Parameters are gathered in their own dtype and autocast computes, as without an engine; gradients are reduced in
    float32, which is what is trained.

    Args:
        plugin: accelerate's `FullyShardedDataParallelPlugin`.
        model: a VAEmotionLLM.
    """
    there = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(there.intersection(model._no_split_modules))
    plugin.mixed_precision_policy = None


@contextlib.contextmanager
def head_with_the_rest(model):
    """Keep accelerate from sharding the head apart: a call would gather it, and the loss of stage 1 makes none."""
    nothing = lambda: None
    model.get_input_embeddings = model.get_output_embeddings = nothing
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def whole(tree):
    """A tree of tensors with those that FSDP shards gathered, on the CPU; every rank must call it."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().cpu(), tree)


def whole_state_dict(model, keep: bool) -> dict[str, torch.Tensor]:
    """The state dict of a model that FSDP shards, which is not to be trained after it; every rank must call it.

    Args:
        model: the sharded model.
        keep: whether this rank wants it; others get an empty one.
    """
    parameters, gathered, found = dict(model.named_parameters(remove_duplicate=False)), {}, {}
    for name, tensor in model.state_dict().items():
        key = id(parameters.get(name, tensor))  # tied weights stay one
        if key not in gathered:
            value = whole(tensor)
            gathered[key] = value if keep else None
        if keep:
            found[name] = gathered[key]
    model.__class__ = type(model).__bases__[1]  # FSDP's class, made in torch, has another name and no code to save
    return found


def sharded_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's share of a tensor that all ranks have whole, where FSDP shards the parameter that it is of."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


# ---- the same modules on all ranks


class SameModules:
    """Hooks that put silence or a blank image, with weight 0, through the modules that a batch does not need.

    - Where audio parameters are trained, a batch without audio would leave their gradients unset: one process would
      skip them, and ZeRO-3 would apply those of an earlier step again.
    - Under ZeRO-3 and FSDP every rank must gather the same weights in the same order, or all wait for ever: a rank
      then runs what any other rank's batch needs.

    Silence comes first and blank images before the decoder, where the model itself runs these modules. Images and
    videos pass through a backbone's vision tower alike, so only the number of these passes counts.

    Args:
        model: a VAEmotionLLM.
        processor: its processor, which makes the silence and the blank image.
        trains_audio: whether audio parameters are trained.
    """

    def __init__(self, model, processor, trains_audio: bool):
        self.model, self.trains_audio = model, trains_audio
        self.silence = processor.encode_audio([0.0] * processor.sampling_rate).inputs
        self.blank = processor.encode_image(Image.new("RGB", (64, 64))).inputs
        self.coordinator, self.last = None, None
        self.passes: tuple[int, int] | None = None  # through the audio and the vision tower, over all ranks
        self.blanks, self.nothing = 0, None

    def attach(self, agree: bool, coordinator=None) -> None:
        """Register the hooks.

        Args:
            agree: whether ranks must run the same modules.
            coordinator: see `zero3_coordinator`.
        """
        if agree:
            self.coordinator = coordinator
            # Before DeepSpeed's own hook, which opens the trace of this forward.
            self.model.register_forward_pre_hook(self.before_trace, with_kwargs=True, prepend=True)
        self.model.register_forward_pre_hook(self.before_model, with_kwargs=True)
        # Before DeepSpeed's, for which the decoder begins when vision has ended.
        self.model.get_decoder().register_forward_pre_hook(self.before_decoder, with_kwargs=True, prepend=True)

    def before_trace(self, model, args, kwargs):
        """Agree on the passes through the towers, and begin a new trace where they are not those of last time.

        ZeRO-3 prefetches weights in the order of the last trace. It would notice another order in the middle of it,
        with weights of the wrong one already gathered, and gather them again.
        """
        self.passes = max_over_ranks(self.own_passes(kwargs), kwargs["input_ids"].device)
        if self.coordinator is None:
            return
        trace = (*self.passes, torch.is_grad_enabled())
        if trace != self.last and not self.coordinator.is_invalid_trace():
            self.coordinator._invalidate_trace()
        self.last = trace

    def before_model(self, model, args, kwargs):
        audio, visual = self.passes or self.own_passes(kwargs)
        carried_audio, carried_visual = carried_passes(kwargs)
        self.blanks, self.nothing, self.passes = visual - carried_visual, None, None
        if audio > carried_audio:
            inputs = _to(self.silence, kwargs["input_ids"].device)
            inputs["audio_num_tokens"] = self.silence["audio_num_tokens"]
            self.nothing = 0.0 * model.get_audio_features(**inputs).pooler_output.sum()

    def before_decoder(self, decoder, args, kwargs):
        blanks, self.blanks, nothing, self.nothing = self.blanks, 0, self.nothing, None
        if blanks:
            with torch.no_grad():  # vision is frozen
                for _ in range(blanks):
                    self.model.vlm.get_image_features(**_to(self.blank, kwargs["inputs_embeds"].device))
        if nothing is None:
            return None
        embeds = kwargs["inputs_embeds"]
        return args, {**kwargs, "inputs_embeds": embeds + nothing.to(embeds.dtype)}

    def own_passes(self, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """What this rank needs: what its batch carries, and audio where that is trained."""
        audio, visual = carried_passes(kwargs)
        return int(audio or (self.trains_audio and torch.is_grad_enabled())), visual


def carried_passes(kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """How often a batch runs through the audio and the vision tower: once for audio; for images, for videos."""
    given = [name for name, value in kwargs.items() if value is not None]
    return int("input_features" in given), sum(name.startswith("pixel_values") for name in given)


def _to(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
