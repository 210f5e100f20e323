"""Which parameters a stage trains; everything else is frozen and stays in eval mode."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import InputError

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """Make only the named submodules trainable. LoRA parameters, where there are any, stay as they are.

    Args:
        model: a VAEmotionLLM.
        parts: names of submodules, such as "audio_projector".
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or any(name.startswith(f"{part}.") for part in parts))


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


def add_lora(model: nn.Module, settings: dict) -> None:
    """Put LoRA (arXiv 2106.09685, by PEFT) on the LLM's linear layers.

    Args:
        model: a VAEmotionLLM.
        settings: {rank (8), alpha (2 * rank), dropout (0), target_modules (all projections of attention and MLP)}.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank = settings.get("rank", 8)
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.get("alpha", 2 * rank),
        lora_dropout=settings.get("dropout", 0.0),
        target_modules=list(settings.get("target_modules", LORA_TARGETS)),
    )
    try:
        inject_adapter_in_model(config, model.get_decoder())
    except ValueError as error:
        raise InputError(f"config field `lora.target_modules` is {config.target_modules}: {error}") from error


def merge_lora(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without LoRA: W + scaling * B A in the place of W, under the names of the plain model.

    It works on a gathered state dict, so the parameters themselves may be sharded.

    Args:
        model: the model with LoRA in it, for the scaling of each layer.
        state_dict: its full state dict.
    """
    from peft.tuners.lora import LoraLayer

    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state_dict.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter, scaling in module.scaling.items():
            a = state_dict[f"{name}.lora_A.{adapter}.weight"].float()  # (rank, in)
            b = state_dict[f"{name}.lora_B.{adapter}.weight"].float()  # (out, rank)
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (weight.float() + scaling * (b @ a)).to(weight.dtype)
    return merged


def parameter_groups(
    model: nn.Module, learning_rates: dict[str, float | None], learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups of the trainable parameters: one for each learning rate, with and without weight decay.

    Args:
        model: the model.
        learning_rates: prefix of parameter names (or "lora_", found anywhere) -> learning rate, None for the default.
        learning_rate: the default.
        weight_decay: for matrices; vectors (biases, norms) get none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = next(
            (r for prefix, r in learning_rates.items() if r is not None and _matches(name, prefix)), learning_rate
        )
        # Under ZeRO-3 the shape of a sharded parameter is 0 and ds_shape is the real one.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        groups.setdefault((rate, weight_decay if dimensions > 1 else 0.0), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of weights, also of parameters that ZeRO-3 has sharded."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def _matches(name: str, prefix: str) -> bool:
    return prefix in name if prefix == "lora_" else name.startswith(f"{prefix}.")
