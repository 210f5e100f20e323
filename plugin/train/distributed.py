"""Ranks and devices of a run: reductions, attention and peak of the device, DeepSpeed, modules that all ranks run."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import modeling_flash_attention_utils as flash

from ..utils import InputError

logger = logging.getLogger(__name__)


# ---- ranks; everything is valid in one process as well


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        torch.distributed.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over ranks; every rank must call it."""
    if is_distributed():
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def max_over_ranks(values: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
    """The largest of each number over ranks; every rank must call it."""
    if not is_distributed():
        return values
    tensor = torch.tensor(values, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tuple(tensor.tolist())


# ---- devices

# Dense bf16 TFLOP/s of the makers' data sheets (no sparsity, sums in fp32), the more specific name first.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
    "MI250X": 383.0,
}
# Preferred from left to right: FlashAttention's version -> the package that has it.
FLASH_PACKAGES = {4: "flash-attn-4", 3: "flash-attn-3", 2: "flash-attn"}


def peak_tflops_of(device_name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device such as "NVIDIA H100 80GB HBM3" or "A100"; None for an unknown one."""
    for name, peak in PEAK_TFLOPS.items():
        # Whole words, so that an A100 is no A10 and an L40S no L4; "A100-SXM4-80GB" still is an A100.
        pattern = r"[\s_-]*".join(re.escape(word) for word in name.split())
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", device_name, flags=re.IGNORECASE):
            return peak
    return None


def attention_candidates(requested: str | None, dtype: torch.dtype | None) -> list[str | None]:
    """Attention implementations to try for a model, the best first; None is the model's own default.

    "auto" is the newest usable FlashAttention, and sdpa in any case, for a model that has no FlashAttention at all.

    Args:
        requested: "auto", a name that transformers knows, or None.
        dtype: of the weights, None where it is not known. FlashAttention computes in bfloat16 and float16 only.

    Raises:
        InputError: a FlashAttention was named that is not installed or cannot run on this device.
    """
    names = {f"flash_attention_{version}": package for version, package in FLASH_PACKAGES.items()}
    if requested == "auto":
        usable = usable_flash_versions() if dtype in (torch.bfloat16, torch.float16) else ()
        return [*(f"flash_attention_{version}" for version in usable[:1]), "sdpa"]
    if requested in names:
        usable_names = [f"flash_attention_{version}" for version in usable_flash_versions()]
        if requested not in usable_names:
            raise InputError(
                f"config field `attn_implementation` is {requested!r}, which needs the package {names[requested]} "
                f"and a CUDA device that it supports; usable here: {', '.join(usable_names) or 'no FlashAttention'}. "
                "Install it, or use `auto` or `sdpa`."
            )
    return [requested]


def usable_flash_versions() -> tuple[int, ...]:
    """FlashAttention's versions that are installed, import and support this process's CUDA device, the best first."""
    if not torch.cuda.is_available():
        return ()
    known, (major, _) = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX, torch.cuda.get_device_capability()
    return tuple(
        version
        for version in FLASH_PACKAGES
        if version in known
        and known[version]["general_availability_check"]()
        and major >= known[version].get("cuda_min_major_version", 8)
        and _imports(version)
    )


def _imports(version: int) -> bool:
    """Whether the package can be imported: one that was built for another torch is installed and still useless."""
    try:
        flash.lazy_import_flash_attention(f"flash_attention_{version}")
    except Exception as error:  # whatever a broken binary raises
        logger.warning("%s is installed but cannot be imported: %s", FLASH_PACKAGES[version], error)
        return False
    return True


# ---- DeepSpeed


def unlink_shared_buffers() -> None:
    """Remove the names of the buffers that DeepSpeed's ranks share on a CPU; every rank must call it.

    DeepSpeed leaves them, tens of MB of memory a rank, when it ends or is killed. Once every rank has mapped them,
    which is when the engine's process group is up, nobody opens them again, and without a name they end with their
    processes.
    """
    if is_distributed():
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
    """What gathers parameters in a DeepSpeed engine at ZeRO-3; None at other stages, and of an unknown DeepSpeed."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return None
    coordinator = offload.get_param_coordinator()
    if not hasattr(coordinator, "_invalidate_trace"):
        # It costs time, and no correctness as long as all ranks' batches hold the same media.
        logger.warning("This version of DeepSpeed is not known: ZeRO-3 may gather weights more often than it must.")
        return None
    return coordinator


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
    has_audio = "input_features" in given or "audio_states" in given
    return int(has_audio), sum(name.startswith("pixel_values") for name in given)


def _to(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}
