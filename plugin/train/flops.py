"""Floating-point operations (FLOPs) of a stage-1 micro-batch by part, from the config and the batch's sizes alone.

Counted are the matrix products and convolutions, 2 for each multiply-add, as `torch.utils.flop_counter` counts them;
norms, activations, softmax and rotary embeddings are left out. Attention counts every pair of positions of a row,
padding and what a causal mask hides included: 4 * length^2 * width a layer forward, twice that backward.

Forward and backward:

- the frozen LLM runs backward for the gradient of its activations alone: 1 time its linear layers, not 2;
- what is trained needs the gradient of weights and inputs: 2 times, but for the audio tower's first convolution;
- frozen towers and the teacher run forward only;
- the loss runs the head at response positions: forward for teacher and student, and once for the student's gradient;
- gradient checkpointing runs each layer of the LLM forward once more, without its last linear layer, before which the
  recomputation stops; likewise the layers of an audio tower that is trained. MFU leaves this out ("model FLOPs", PaLM,
  arXiv 2204.02311, appendix B): `StepFlops.model`; what the device really does is `StepFlops.hardware`.

Under ZeRO-3 a parameter's shape is 0. So the weights are counted on a model that is made once on the meta device;
after that a micro-batch costs a few integer operations.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..utils import InputError
from .meta_model import meta_model

PARTS = (
    "audio_tower", "audio_projector", "vision_tower", "llm", "vision_tower_teacher", "llm_teacher", "head_and_loss",
)  # fmt: skip

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


def peak_tflops_of(device_name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device such as "NVIDIA H100 80GB HBM3" or "A100"; None for an unknown one."""
    for name, peak in PEAK_TFLOPS.items():
        # Whole words, so that an A100 is no A10 and an L40S no L4; "A100-SXM4-80GB" still is an A100.
        pattern = r"[\s_-]*".join(re.escape(word) for word in name.split())
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", device_name, flags=re.IGNORECASE):
            return peak
    return None


# ---- sizes of a batch


@dataclass(frozen=True)
class InputSizes:
    """What one forward pass is given.

    Args:
        row_tokens: length of each row that the LLM runs on. Padded rows count at the batch's width, packed rows at
            their own, because attention stays within each.
        grids: (frames, rows, columns) of patches of each picture or film in the vision tower's units: attention joins
            the patches of one frame. A tile of LLaVA-OneVision is a frame.
        tower_windows: audio windows that the tower encodes; 0 where its features come from a cache.
        projector_tokens: audio tokens that the projector makes.
    """

    row_tokens: tuple[int, ...]
    grids: tuple[tuple[int, int, int], ...] = ()
    tower_windows: int = 0
    projector_tokens: int = 0


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a stage-1 micro-batch; `teacher` is None where the teacher's states come from a cache."""

    student: InputSizes
    teacher: InputSizes | None
    response_tokens: int


def batch_sizes(config: VAEmotionLLMConfig, batch: Mapping[str, Any], packing: bool = False) -> BatchSizes:
    """Sizes of a micro-batch of the stage-1 collator.

    Args:
        config: the model's config.
        batch: {"student": inputs} and, where the teacher runs, {"teacher": inputs}. Best before it is on the GPU:
            sizes of pictures are read from their tensors.
        packing: whether the LLM runs without padding.
    """
    student, teacher = batch["student"], batch.get("teacher")
    return BatchSizes(
        input_sizes(config, student, packing),
        None if teacher is None else input_sizes(config, teacher, packing),
        int(student["response_mask"].sum()),
    )


def input_sizes(config: VAEmotionLLMConfig, inputs: Mapping[str, Any], packing: bool = False) -> InputSizes:
    """Sizes of one forward pass from the model's inputs, see `batch_sizes`."""
    rows, width = inputs["input_ids"].shape
    row_tokens = tuple(inputs["attention_mask"].sum(1).tolist()) if packing else (width,) * rows
    grids: list[tuple[int, int, int]] = []
    for kind in ("image", "video"):
        if f"{kind}_grid_thw" in inputs:
            grids += [tuple(grid) for grid in inputs[f"{kind}_grid_thw"].tolist()]
    if not grids:
        grids = _tiles(config.vlm_config, inputs)
    features, windows = inputs.get("input_features"), inputs.get("audio_num_tokens")
    return InputSizes(
        row_tokens=row_tokens,
        grids=tuple(grids),
        tower_windows=0 if features is None else features.shape[0],
        projector_tokens=0 if windows is None else int(windows.sum()),
    )


def _tiles(vlm_config, inputs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """One frame of patches for each tile that the tower runs on, where the inputs hold no grids."""
    count = 0
    if "image_sizes" in inputs and getattr(vlm_config, "image_grid_pinpoints", None):
        count += sum(tiles_of_image(vlm_config, *size) for size in inputs["image_sizes"].tolist())
    elif "pixel_values" in inputs:
        count += inputs["pixel_values"].shape[:-3].numel()  # (images, [tiles,] 3, H, W)
    if "pixel_values_videos" in inputs:
        count += inputs["pixel_values_videos"].shape[:-3].numel()  # (videos, frames, 3, H, W)
    side = vlm_config.vision_config.image_size // vlm_config.vision_config.patch_size if count else 0
    return [(1, side, side)] * count


def tiles_of_image(vlm_config, height_px: int, width_px: int) -> int:
    """Tiles that LLaVA-OneVision cuts a picture into, the small whole picture included."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    tile_px = vlm_config.vision_config.image_size
    return image_size_to_num_patches([height_px, width_px], vlm_config.image_grid_pinpoints, tile_px)


# ---- costs of a model


@dataclass(frozen=True)
class ModelCosts:
    """Multiply-adds of a model's weights and what its attention depends on; made by `model_costs`.

    Args:
        llm_weights, llm_last: weights of the LLM's linear layers, and of them those of each layer's last one.
        llm_attention: heads * head width, summed over the layers.
        head_weights: hidden size * vocabulary.
        patch_weights, merged_weights: weights that the vision tower applies to each patch, and to each merged patch.
        merge: patches that are merged into one.
        vision_width: width of the vision tower's attention.
        full_layers, window_layers: its layers with attention over a frame, and over a window.
        window: side of a window, in patches.
        tower: multiply-adds of an audio window; tower_first: of them those of the first convolution; tower_last: those
            of each layer's last linear layer; tower_layers: those of the layers.
        projector: multiply-adds of an audio token.
        uncounted: parameters of the LLM whose cost is not known here (mixtures of experts).
    """

    llm_weights: int
    llm_last: int
    llm_attention: int
    head_weights: int
    patch_weights: int
    merged_weights: int
    merge: int
    vision_width: int
    full_layers: int
    window_layers: int
    window: int
    tower: int
    tower_first: int
    tower_layers: int
    tower_last: int
    projector: int
    uncounted: tuple[str, ...] = ()


def model_costs(config: VAEmotionLLMConfig, model: nn.Module | None = None) -> ModelCosts:
    """Counts a model's weights once.

    Args:
        config: the model's config.
        model: the model on the meta device (`meta_model`), made here if not given.
    """
    model = meta_model(config) if model is None else model
    text, vision = config.get_text_config(), config.vlm_config.vision_config
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    llm_weights = sum(_weights(module) for module in decoder.modules())
    # Whatever of the backbone is neither decoder nor head serves the pictures.
    language = {id(module) for module in decoder.modules()} | {id(head)}
    visual = [(name, module) for name, module in model.vlm.named_modules() if id(module) not in language]
    merged = sum(_weights(module) for name, module in visual if "merger" in name)
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    window = getattr(vision, "window_size", None) or 0
    full_layers = len(vision.fullatt_block_indexes) if window else layers
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelCosts(
        llm_weights=llm_weights,
        llm_last=_last_weights(decoder.layers),
        llm_attention=text.num_hidden_layers * text.num_attention_heads * head_width,
        head_weights=text.hidden_size * text.vocab_size,
        patch_weights=sum(_weights(module) for _, module in visual) - merged,
        merged_weights=merged,
        merge=getattr(vision, "spatial_merge_size", 1) ** 2,
        vision_width=vision.hidden_size,
        full_layers=full_layers,
        window_layers=layers - full_layers,
        # The window's side is rounded down to whole merged patches.
        window=window // vision.spatial_merge_size // vision.patch_size * vision.spatial_merge_size if window else 0,
        projector=sum(_weights(module) for module in model.audio_projector.modules()),
        uncounted=tuple(name for name, parameter in decoder.layers.named_parameters() if parameter.dim() > 2),
        **_tower_costs(config.audio_config, model.audio_tower),
    )


def audio_positions(audio_config) -> int:
    """Time positions that the audio tower makes of a window, whatever the length of the sound in it."""
    if audio_config.model_type == "whisper":
        return audio_config.max_source_positions
    return (audio_config.max_length - audio_config.patch_size) // audio_config.time_stride + 1


def tower_length(audio_config) -> int:
    """Length of the sequence that the audio tower's layers run on for a window.

    Raises:
        InputError: a tower that is not known here.
    """
    if audio_config.model_type == "whisper":
        return audio_positions(audio_config)
    if audio_config.model_type == "audio-spectrogram-transformer":
        rows = (audio_config.num_mel_bins - audio_config.patch_size) // audio_config.frequency_stride + 1
        return audio_positions(audio_config) * rows + 2  # two special tokens
    raise InputError(
        f"audio towers of type {audio_config.model_type!r} are not counted; known are 'whisper' and "
        "'audio-spectrogram-transformer'."
    )


def _tower_costs(audio_config, tower: nn.Module) -> dict[str, int]:
    """Multiply-adds of one audio window: convolutions by their positions, layers by the length of the sequence."""
    length, positions = tower_length(audio_config), audio_positions(audio_config)
    if audio_config.model_type == "whisper":
        # The first convolution keeps the frame rate, the second halves it.
        convolutions = [_weights(tower.conv1) * 2 * positions, _weights(tower.conv2) * positions]
    else:
        patches = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
        convolutions = [_weights(patches) * (length - 2)]
    linear = sum(_weights(module) for module in tower.layers.modules()) * length
    attention = 2 * length**2 * audio_config.hidden_size * len(tower.layers)
    return {
        "tower": sum(convolutions) + linear + attention,
        "tower_first": convolutions[0],
        "tower_layers": linear + attention,
        "tower_last": _last_weights(tower.layers) * length,
    }


def _weights(module: nn.Module) -> int:
    """Multiply-adds of one row (one position) of a linear layer or a convolution; 0 for any other module."""
    return module.weight.numel() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) else 0


def _last_weights(layers) -> int:
    """Weights of the last linear layer of each transformer layer."""
    return sum(_weights([module for module in layer.modules() if _weights(module)][-1]) for layer in layers)


# ---- FLOPs of a micro-batch


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of a part. `recompute` is what gradient checkpointing runs again."""

    forward: int = 0
    backward: int = 0
    recompute: int = 0

    @property
    def model(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a micro-batch by part; a part that does not run is absent."""

    parts: dict[str, PartFlops] = field(default_factory=dict)

    @property
    def model(self) -> int:
        """Without recomputation: what MFU is the share of."""
        return sum(part.model for part in self.parts.values())

    @property
    def hardware(self) -> int:
        """With recomputation."""
        return self.model + sum(part.recompute for part in self.parts.values())


def microbatch_flops(
    costs: ModelCosts,
    sizes: BatchSizes,
    trained: Collection[str] = ("audio_projector",),
    activation_checkpointing: bool = False,
) -> StepFlops:
    """FLOPs of forward and backward pass over one micro-batch of stage 1.

    Args:
        costs: of the model.
        sizes: of the batch.
        trained: trained parts, "audio_projector" and "audio_tower".
        activation_checkpointing: whether layers are run again in the backward pass.
    """
    student, teacher = sizes.student, sizes.teacher
    parts: dict[str, PartFlops] = {}
    if student.tower_windows:
        windows, trains = student.tower_windows, "audio_tower" in trained
        parts["audio_tower"] = PartFlops(
            forward=2 * costs.tower * windows,
            backward=2 * (2 * costs.tower - costs.tower_first) * windows if trains else 0,
            recompute=2 * (costs.tower_layers - costs.tower_last) * windows
            if trains and activation_checkpointing
            else 0,
        )
    if student.projector_tokens:
        forward = 2 * costs.projector * student.projector_tokens
        # Its norm comes first and is trained, so all of its linear layers need their input's gradient as well.
        parts["audio_projector"] = PartFlops(forward, (2 if "audio_projector" in trained else 1) * forward)
    if student.grids:
        parts["vision_tower"] = PartFlops(_vision(costs, student.grids))
    tokens, pairs = _tokens_and_pairs(student.row_tokens)
    linear, attention = 2 * costs.llm_weights * tokens, 4 * costs.llm_attention * pairs
    again = linear + attention - 2 * costs.llm_last * tokens if activation_checkpointing else 0
    parts["llm"] = PartFlops(linear + attention, linear + 2 * attention, again)
    if teacher is not None:
        if teacher.grids:
            parts["vision_tower_teacher"] = PartFlops(_vision(costs, teacher.grids))
        tokens, pairs = _tokens_and_pairs(teacher.row_tokens)
        parts["llm_teacher"] = PartFlops(2 * costs.llm_weights * tokens + 4 * costs.llm_attention * pairs)
    head = 2 * costs.head_weights * sizes.response_tokens
    parts["head_and_loss"] = PartFlops(2 * head, head)
    return StepFlops({name: parts[name] for name in PARTS if name in parts})


def _tokens_and_pairs(row_tokens: Sequence[int]) -> tuple[int, int]:
    return sum(row_tokens), sum(length * length for length in row_tokens)


def _vision(costs: ModelCosts, grids: Sequence[tuple[int, int, int]]) -> int:
    """Forward FLOPs of the vision tower with its merger or projector."""
    patches = sum(frames * rows * columns for frames, rows, columns in grids)
    full = sum(frames * (rows * columns) ** 2 for frames, rows, columns in grids)
    windowed = 0
    if costs.window_layers:
        # Windows are cut from the top left corner; those at the right and lower edge are smaller. The sum of the
        # squares of their sizes is a product over the two axes.
        windowed = sum(
            frames * _squares(rows, costs.window) * _squares(columns, costs.window) for frames, rows, columns in grids
        )
    linear = costs.patch_weights * patches + costs.merged_weights * (patches // costs.merge)
    attention = 2 * costs.vision_width * (costs.full_layers * full + costs.window_layers * windowed)
    return 2 * (linear + attention)


def _squares(length: int, window: int) -> int:
    """Sum of the squares of the pieces when `length` is cut into windows."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
