"""Which parameters a stage trains; everything else is frozen and stays in eval mode."""

from collections.abc import Iterable, Sequence

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


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
