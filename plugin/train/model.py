"""The model of a run: loaded or made as its config says, and frozen but for what the config trains."""

import contextlib
import logging
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import AutoConfig, set_seed
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_window_index

from ..model.configuration_vaemotionllm import VAEmotionLLMConfig, check_config_fields
from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration as Model
from ..model.processing_vaemotionllm import VAEmotionLLMProcessor as Processor
from ..utils import InputError
from .config import Stage2Config, StageConfig
from .distributed import attention_candidates, flash_attention_remedy
from .lora import add_lora

logger = logging.getLogger(__name__)

# Side of the frames that a warning counts with, of the size that video backbones are given them.
FRAME_PX = 448


# ---- the model that a config names


def load_model(config: StageConfig) -> tuple[Model, Processor]:
    """The model and its processor, whole on every rank: the teacher generates before an engine shards anything.

    Raises:
        InputError: see `load_untrained`; half-precision weights without mixed precision.
    """
    model, processor = load_untrained(config)
    if config.process_index == 0:
        towers = {"vlm": model.vlm, "audio tower": model.audio_tower}
        used = ", ".join(f"{tower.config._attn_implementation} ({name})" for name, tower in towers.items())
        logger.info("Attention: %s.", used)
        calls = window_calls(model.vlm.config)
        if calls and config.device.type == "cuda":
            logger.warning(
                "Without FlashAttention the vision tower calls attention once for each window: %d calls for each pair "
                "of frames of %d x %d pixels, where FlashAttention needs %d. To avoid it, %s.",
                calls,
                FRAME_PX,
                FRAME_PX,
                model.vlm.config.vision_config.depth,
                flash_attention_remedy(),
            )
    if model.dtype != torch.float32 and not (config.bf16 or config.fp16 or config.deepspeed):
        raise InputError(
            f"the weights are {str(model.dtype).removeprefix('torch.')}, and what is trained is kept in float32: set "
            "`bf16: true` (or `fp16: true`), which lets the two work together."
        )
    if config.deepspeed and (config.stage == 2 or config.teacher_cache is not None):
        return model, processor  # the engine shards it from the CPU; a teacher online must generate first
    return model.to(config.device), processor


def load_untrained(config: StageConfig) -> tuple[Model, Processor]:
    """The model that a run starts from, with LoRA where the config says so, and its processor, on the CPU.

    It is a function of the config alone.

    Raises:
        InputError: a model that is not there, or an attention that cannot be used.
    """
    try:
        source = VAEmotionLLMConfig if config.model is not None else AutoConfig
        found = source.from_pretrained(config.model or config.vlm)
        dtype = getattr(found, "dtype", None) or getattr(found.get_text_config(), "dtype", None)
        head_dims = head_dimensions(found)
        if config.model is None:
            head_dims |= head_dimensions(AutoConfig.from_pretrained(config.audio))
        *better, last = attention_candidates(config.attn_implementation, dtype, head_dims)
        with without_sharding():
            for attention in better:
                try:
                    return _load_parts(config, attention)
                except (ImportError, ValueError) as error:  # a broken package; some audio towers know none
                    logger.info("%s cannot be used: %s", attention, error)
            return _load_parts(config, last)
    except InputError:
        raise
    except (ImportError, OSError, ValueError, TypeError) as error:
        where = config.model or f"{config.vlm} and {config.audio}"
        remedy = f" To have FlashAttention, {flash_attention_remedy()}." if isinstance(error, ImportError) else ""
        raise InputError(f"cannot load a model from {where}: {error}{remedy}") from error


def head_dimensions(config) -> set[int]:
    """Sizes of the attention heads of a model's parts, from its config.

    Qwen2.5-VL-7B: 128 of its LLM and 80 of its vision tower; Qwen3-VL-8B: 128 and 72; Whisper-large-v3: 64.
    """
    found = set().union(*(head_dimensions(getattr(config, name)) for name in config.sub_configs))
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None)
    if heads and getattr(config, "hidden_size", None):
        found.add(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return found


def window_calls(vlm_config) -> int:
    """How often a vision tower with windows calls attention for a pair of frames, one window after the other.

    Args:
        vlm_config: of the loaded backbone; its frames are taken as squares of `FRAME_PX`.

    Returns:
        the calls of all layers; 0 where the tower has no windows, or FlashAttention for all of them at once.
    """
    vision = getattr(vlm_config, "vision_config", None)
    if not hasattr(vision, "fullatt_block_indexes") or is_flash_attention_requested(vision):
        return 0
    side = FRAME_PX // (vision.patch_size * vision.spatial_merge_size) * vision.spatial_merge_size
    grid = torch.tensor([[1, side, side]])
    _, ends = get_vision_window_index(grid, vision.spatial_merge_size, vision.window_size, vision.patch_size)
    whole = len(vision.fullatt_block_indexes)
    return whole + (vision.depth - whole) * (len(ends) - 1)


def _load_parts(config: StageConfig, attention: str | None) -> tuple[Model, Processor]:
    set_seed(config.seed)  # the projector's first weights
    options = {"attn_implementation": attention} if attention else {}
    fields = config.model_fields or {}
    if config.model is not None:
        model = Model.from_pretrained(config.model, dtype="auto", **options)
        processor = Processor.from_pretrained(config.model)
        if fields:
            model.reset_emotion_adapter(**fields)
        if isinstance(config, Stage2Config):
            model.set_emotion_labels(config.emotion_labels)
        model.config.emotion_calibration = None  # it was fitted on what training changes
    else:
        if isinstance(config, Stage2Config):
            fields = {**fields, "emotion_labels": config.emotion_labels}
        model = Model.from_backbone(config.vlm, config.audio, **options, **fields)
        stride = {"projector_stride": fields["projector_stride"]} if "projector_stride" in fields else {}
        processor = Processor.from_backbone(config.vlm, config.audio, **stride)
    # What the model is trained with is what its processor gives to those who load it.
    for name in ("num_frames", "max_audio_s", "max_pixels", "max_clip_bytes"):
        setattr(processor, name, getattr(config, name))
    if getattr(config, "lora", None) is not None:
        add_lora(model, config.lora)
    return model, processor


# ---- the same at full size without its weights: on the meta device a tensor has no memory


def meta_model(config: StageConfig) -> Model:
    """The model that a training config names, with every parameter and buffer on the meta device.

    Of a model on the Hub or in a folder only config.json is read.

    Raises:
        InputError: a model that cannot be found, or one that is of no use here, such as a backbone without vision.
    """
    try:
        if config.model is not None:
            full = VAEmotionLLMConfig.from_pretrained(config.model)
        else:
            fields = config.model_fields or {}
            check_config_fields(fields)
            vlm, audio = AutoConfig.from_pretrained(config.vlm), AutoConfig.from_pretrained(config.audio)
            full = VAEmotionLLMConfig(vlm_config=vlm, audio_config=audio, dtype=vlm.dtype, **fields)
        with torch.device("meta"):
            return Model(full)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        where = config.model or f"{config.vlm} and {config.audio}"
        raise InputError(f"cannot make a model of the config of {where}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def without_sharding():
    """Where a ZeRO-3 run has begun, the library shards each model that it makes; not those of this block."""
    reference, hf_deepspeed._hf_deepspeed_config_weak_ref = hf_deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference


# ---- what is trained


def trained_parts(config: StageConfig) -> list[str]:
    """Names of the submodules that the config trains."""
    wanted = {
        "audio_projector": config.train_audio_projector,
        "audio_tower": config.train_audio_tower,
        "emotion_adapter": getattr(config, "train_emotion_adapter", False),
    }
    return [part for part, is_trained in wanted.items() if is_trained]


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """Make only the named submodules trainable. LoRA parameters, where there are any, stay as they are.

    Args:
        model: a VAEmotionLLM.
        parts: names of submodules, such as "audio_projector".
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or any(name.startswith(f"{part}.") for part in parts))


def keep_trained_in_float32(model: nn.Module) -> None:
    """Hold what is trained in float32: in half precision an optimizer's small steps are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def set_modes(model: nn.Module, parts: Sequence[str]) -> None:
    """Training mode for the trained parts, eval mode for the rest.

    The teacher must be constant: with dropout on it would be another teacher at each step. The LLM's layers recompute
    their activations in training mode only, so the layer object itself (not what is inside it) is set to it; dropout
    happens in the modules inside and stays off. Frozen towers have no gradient to recompute for.
    """
    model.eval()
    for module in model.get_decoder().modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
    for name, module in model.named_modules():
        if name in parts or "lora_dropout" in name.rpartition(".")[2]:
            module.train()


def parameter_groups(
    model: nn.Module, learning_rates: dict[str, float | None], learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups of the trainable parameters: one for each learning rate, with and without weight decay.

    Args:
        model: the model.
        learning_rates: part of a parameter's name -> learning rate, None for the default; the first that is found.
        learning_rate: the default.
        weight_decay: for matrices; vectors (biases, norms) get none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rates = [rate for part, rate in learning_rates.items() if part in name and rate is not None]
        rate = rates[0] if rates else learning_rate
        # Under ZeRO-3 the shape of a sharded parameter is 0 and ds_shape is the real one.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        groups.setdefault((rate, weight_decay if dimensions > 1 else 0.0), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of weights, also of parameters that ZeRO-3 has sharded."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
