"""Ranks and devices of a run: reductions, attention, DeepSpeed, modules that all ranks run."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

from ..utils import InputError

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


def attention_candidates(requested: str | None, dtype: torch.dtype | None) -> list[str | None]:
    """Attention implementations to try for a model, the best first; None is the model's own default.

    "auto" is each installed FlashAttention that this process's CUDA device supports, the newest first, and sdpa in any
    case, for a model that has no FlashAttention at all.

    Args:
        requested: "auto", a name that transformers knows, or None.
        dtype: of the weights, None where it is not known. FlashAttention computes in bfloat16 and float16 only.
    """
    if requested != "auto":
        return [requested]
    found: list[str | None] = []
    if torch.cuda.is_available() and dtype in (torch.bfloat16, torch.float16):
        major, _ = torch.cuda.get_device_capability()
        for version, known in sorted(FLASH_ATTENTION_COMPATIBILITY_MATRIX.items(), reverse=True):
            if known["general_availability_check"]() and major >= known.get("cuda_min_major_version", 8):
                found.append(f"flash_attention_{version}")
    return [*found, "sdpa"]


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


# ---- the same modules on all ranks


class SameModules:
    """Hooks that put silence or a blank image, with weight 0, through the modules that a batch does not need.

    - Where audio parameters are trained, a batch without audio would leave their gradients unset: one process would
      skip them, and ZeRO-3 would apply those of an earlier step again.
    - Under ZeRO-3 every rank must gather the same weights in the same order, or all wait for ever: a rank then runs
      what any other rank's batch needs.

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

    def attach(self, coordinator=None) -> None:
        """Register the hooks.

        Args:
            coordinator: see `zero3_coordinator`; None where ranks need not agree.
        """
        if coordinator is not None:
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
