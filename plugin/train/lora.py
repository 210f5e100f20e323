"""LoRA (arXiv 2106.09685, by PEFT): on the LLM, by choice on the audio projector; merged, and as an adapter folder."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import nn
from typing_extensions import TypedDict  # pydantic reads that of `typing` from Python 3.12

from ..utils import InputError

ADAPTER = "adapter"
"""Folder of a run's output_dir that PEFT loads."""

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEW_PARTS = ("audio_projector", "emotion_adapter")
_PREFIX = "base_model.model."  # where a PeftModel holds the model


class LoraSettings(TypedDict, total=False):
    """The config field `lora`. Defaults, ours: rank 8, alpha 2 * rank, dropout 0, all projections of attention and MLP
    in the LLM, and the audio projector not."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rank: PositiveInt
    alpha: PositiveInt | PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[str], Field(min_length=1)]
    projector: bool


def add_lora(model: nn.Module, settings: dict[str, Any]) -> None:
    """Put LoRA on the LLM's linear layers and, where the settings say so, on the audio projector's.

    Args:
        model: a VAEmotionLLM; its parameters are frozen but for LoRA's.
        settings: what `LoraSettings` says.

    Raises:
        InputError: the LLM has no layer of a name in `target_modules`, or one that cannot take LoRA.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank = settings.get("rank", 8)
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.get("alpha", 2 * rank),
        lora_dropout=settings.get("dropout", 0.0),
        target_modules=_target_pattern(model, settings),
    )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise InputError(f"config field `lora` is {settings}: {error}") from error


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


def save_adapter(
    model: nn.Module, state_dict: dict[str, torch.Tensor], folder: Path, config, parts: Sequence[str]
) -> None:
    """Write what `PeftModel.from_pretrained(the model that the run started from, folder)` loads.

    It holds LoRA and, as `modules_to_save`, the modules that were trained whole. A run that made its model from `vlm`
    and `audio` has no saved start: the modules that it made new are then in the adapter whether trained or not, and
    `adapter_config.json` says in `auto_mapping` with what arguments `from_backbone` makes the start again. Of a saved
    start it says what `from_pretrained` is to be given: the run's labels, and the fields of EmoAdapter that the run
    changed. PEFT leaves out what the start has no place for.

    Args:
        model: the model with LoRA in it.
        state_dict: its full state dict, gathered where the parameters are sharded.
        folder: folder to write into; it is made.
        config: `Stage2Config` of the run, for the start.
        parts: names of the submodules that were trained whole.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    adapter_config = copy.copy(model.peft_config["default"])
    adapter_config.inference_mode = True  # as PEFT writes it: loaded frozen unless is_trainable is given
    if config.model is not None:
        adapter_config.base_model_name_or_path = config.model
        adapter_config.auto_mapping = {"base_model_class": "AutoModel", "parent_library": "transformers"}
        fields = {**(config.model_fields or {}), "emotion_labels": config.emotion_labels}
        adapter_config.auto_mapping["from_pretrained"] = fields
    else:
        parts = {*parts, *_NEW_PARTS}
        adapter_config.auto_mapping = {
            "base_model_class": type(model).__name__,
            "parent_library": __name__.partition(".")[0],
            "from_backbone": {
                "vlm": config.vlm,
                "audio": config.audio,
                **(config.model_fields or {}),
                "emotion_labels": config.emotion_labels,
            },
        }
    adapter_config.modules_to_save = sorted(parts) or None
    tensors = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    for part in parts:
        tensors |= {name: tensor for name, tensor in state_dict.items() if name.startswith(f"{part}.")}
    tensors = {_PREFIX + name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    adapter_config.save_pretrained(folder)


def _target_pattern(model: nn.Module, settings: dict[str, Any]) -> str:
    """Regular expression of the layers' full names: vision and audio towers have layers of the same short names."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    there = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    wanted = settings.get("target_modules") or [name for name in DEFAULT_TARGETS if name in there]
    if not set(wanted) <= there:
        raise InputError(f"config field `lora.target_modules` is {wanted}; layers of this LLM are {sorted(there)}.")
    patterns = [rf"{re.escape(prefix)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, wanted))})"]
    if settings.get("projector", False):
        layers = [name for name, module in model.audio_projector.named_modules() if isinstance(module, nn.Linear)]
        patterns.append(rf"audio_projector\.(?:{'|'.join(map(re.escape, layers))})")
    return "|".join(patterns)
