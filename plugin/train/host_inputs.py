"""Inputs that a backbone would read back from the device to make more of them: made on the CPU instead."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from ..model.media_injection import HostInputs


def with_host_inputs(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A batch's inputs, on the CPU, with what the host needs of them and the positions that the backbone would infer.

    Args:
        model: a VAEmotionLLM. Of a backbone whose vision tower is not known here only the host's own part is added.
        inputs: of one call, on the CPU.

    Returns:
        the inputs with `host`, and for the families of Qwen-VL with `position_ids` (3, B, T) and, by the prefix of
        their modality (`image_`, `video_`), what the vision tower takes precomputed.
    """
    names = ("input_ids", "attention_mask", "response_mask", "audio_num_tokens")
    found: dict[str, Any] = {**inputs, "host": HostInputs(*(inputs.get(name) for name in names))}
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None}
    if not grids or model.config.vlm_config.model_type not in ("qwen2_5_vl", "qwen3_vl"):
        return found
    backbone = model.vlm.base_model
    given = {
        name: inputs[name]
        for name in ("attention_mask", "mm_token_type_ids", "second_per_grid_ts", *grids)
        if name in inputs
    }
    found["position_ids"], _ = backbone.get_rope_index(inputs["input_ids"], **given)
    for name, grid in grids.items():
        prefix = name.removesuffix("grid_thw")
        found |= {prefix + key: value for key, value in vision_inputs(backbone.visual, grid).items()}
    return found


def vision_inputs(tower, grid: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """What a vision tower of Qwen-VL makes of grids (n, 3): patches of an image or video in time, height, width."""
    config = tower.config
    merge, ends = config.spatial_merge_size, get_vision_cu_seqlens(grid)
    found = {"position_ids": get_vision_position_ids(grid, merge), "cu_seqlens": ends, "max_seqlen": _longest(ends)}
    if config.model_type.startswith("qwen2_5"):
        found["window_index"], ends = get_vision_window_index(grid, merge, config.window_size, config.patch_size)
        found |= {"cu_window_seqlens": ends, "max_window_seqlen": _longest(ends)}
    else:
        found["interp_indices"], found["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grid, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
        )
    return found


def _longest(ends: torch.Tensor) -> int:
    return int(ends.diff().max())


def without_vision_inputs(decoder, args, kwargs):
    """A pre-hook of the decoder: the library passes on to its layers what was for the vision tower alone."""
    return args, {name: value for name, value in kwargs.items() if not name.startswith(("image_", "video_"))}
