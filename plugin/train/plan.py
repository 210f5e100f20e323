"""Plan of a stage-1 run from its config alone: parameters, memory by ZeRO stage, FLOPs, clips a second, disk.

The model is made at full size on the meta device, where a tensor has no memory, and torch counts the FLOPs of its
parts on one clip: matrix products and convolutions, 2 for each multiply-add. Activations are not estimated: they
depend on kernels, batch and gradient checkpointing, and the first steps of a run show them.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..config_file import build_config, read_config, shipped_file
from ..data.manifest import read_manifest
from ..model.audio_projector import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..utils import InputError
from .config import Stage1Config
from .distributed import PEAK_TFLOPS, peak_tflops_of
from .model import freeze_all_but, meta_model, model_config, trained_parts

GIB = 2**30
BF16, FP32 = 2, 4  # bytes
# Feature extractors of both families of audio towers take 16 kHz and make a frame each 10 ms.
FRAMES = SimpleNamespace(sampling_rate=16_000, hop_length=160)
# Qwen3-VL writes "<0.5 seconds>" and two marks around each pair of frames.
TIME_TOKENS = 8
# Gathered weights that ZeRO-3 may keep at once: stage3_max_live_parameters in configs/deepspeed/zero3.json.
MAX_LIVE_PARAMETERS = 1_000_000_000
STAGES = (0, 1, 2, 3)
NO_FILE = "-"


# ---- what is given


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes as given beside the config.

    Args:
        gpus: number of GPUs.
        gpu_memory_gib: memory of one GPU; what makers call GB is about this.
        peak_tflops: dense bf16 peak of one GPU.
        mfu: share of the peak that the model's FLOPs reach.
        clips: number of clips.
        audio_s: length of a clip's audio, seconds.
        media: "video" or "image".
        pixels_per_frame: height * width of a frame or image as the backbone is given it; taken as a square.
        prompt_tokens: tokens of the prompt and the chat template, without media.
        response_tokens: tokens of a response.
    """

    gpus: int
    gpu_memory_gib: float
    peak_tflops: float
    mfu: float
    clips: int
    audio_s: float
    media: str
    pixels_per_frame: int
    prompt_tokens: int
    response_tokens: int

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name != "media" and not value > 0:
                flag = "--" + name.replace("_gib", "_gb").replace("_", "-")
                raise InputError(f"{flag} is {value}; it must be above 0.")
        if self.mfu > 1:
            raise InputError(f"--mfu is {self.mfu}; it is a share of the peak, at most 1, such as 0.35.")


def read_plan_config(name: str, overrides: list[str]) -> tuple[Stage1Config, int]:
    """The config, and the ZeRO stage of its `deepspeed` file (0 without one).

    Raises:
        InputError: a config that is not for stage 1, or that cannot be used.
    """
    values = read_config(name, overrides)
    if values.get("stage") != 1:
        raise InputError(
            f"config field `stage` is {values.get('stage')!r}; only stage 1 can be planned. Take a config such as "
            "stage1_qwen2_5_vl_7b."
        )
    zero_stage = 0
    if values.get("deepspeed"):
        # Read here and not given to the config, which would start an engine.
        file = shipped_file("deepspeed", values.pop("deepspeed"), (".json",))
        try:
            zero_stage = int(json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0))
        except (ValueError, AttributeError) as error:
            raise InputError(f"config field `deepspeed`: {file} holds no DeepSpeed config: {error}") from None
    # A plan needs no clips, no output folder and no device.
    values = {"manifest": NO_FILE, "output_dir": NO_FILE, **{k: v for k, v in values.items() if v is not None}}
    return build_config(Stage1Config, {**values, "use_cpu": True}), zero_stage


def assume(config: Stage1Config, given: Mapping[str, Any]) -> Assumptions:
    """Assumptions: what is given, else what the manifest, the config or the GPU's data sheet say, else a default.

    Args:
        config: the training config; its manifest is read where it names one.
        given: fields of `Assumptions` and `gpu`, a name; None where the user gave none.
    """
    peak = peak_tflops_of(given["gpu"])
    if peak is None and given["peak_tflops"] is None:
        raise InputError(f"--gpu {given['gpu']} is not known; known are {', '.join(PEAK_TFLOPS)}. Or --peak-tflops.")
    found: dict[str, Any] = {
        "peak_tflops": peak, "clips": 100_000, "audio_s": config.max_audio_s, "media": "video",
        "response_tokens": config.max_response_tokens,
    }  # fmt: skip
    if config.manifest != NO_FILE:
        clips = read_manifest(config.manifest, config.split, ("audio", "visual"), config.max_clips)
        found["clips"] = len(clips)
        found["media"] = "video" if any(clip.visual == "video" for clip in clips) else "image"
        if all(clip.start_s is not None and clip.end_s is not None for clip in clips):
            found["audio_s"] = max(clip.end_s - clip.start_s for clip in clips)
    values = {name: given[name] for name in Assumptions.__dataclass_fields__}
    return Assumptions(**{name: found.get(name) if value is None else value for name, value in values.items()})


# ---- the plan


def make_plan(name: str, overrides: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a run as plain values, ready for JSON; bytes are bytes.

    Args:
        name, overrides: the config, see `read_config`.
        given: see `assume`.

    Raises:
        InputError: a config, a model or assumptions that cannot be planned.
    """
    config, zero_stage = read_plan_config(name, overrides)
    full = model_config(config)
    assumed = assume(config, given)
    audio_sizes(full, assumed.audio_s)  # an unknown tower is reported before the model is made
    model = meta_model(full)
    freeze_all_but(model, trained_parts(config))
    parameters = count_parameters(model)
    tokens, flops = count_clip(model, assumed, config.num_frames)
    clips_per_step = assumed.gpus * config.gradient_accumulation_steps * config.per_device_train_batch_size
    weights = {modality: weight for modality, weight in config.student_modalities.items() if weight > 0}
    shares = {modality: weight / sum(weights.values()) for modality, weight in weights.items()}
    # Mean over the student's modalities; part -> FLOPs of a clip.
    parts = {
        "audio_tower": flops["audio_tower"],
        "audio_projector": flops["audio_projector"],
        "vision_tower": flops["vision_tower"] * shares.get("av", 0.0),
        "llm": sum(share * flops[f"llm_{modality}"] for modality, share in shares.items()),
        "head_and_loss": flops["head_and_loss"],
    }
    online = {"vision_tower_teacher": flops["vision_tower"], "llm_teacher": flops["llm_teacher"]}
    per_clip = {"cached": sum(parts.values()), "online": sum(parts.values()) + sum(online.values())}
    steps = config.max_steps * clips_per_step if config.max_steps > 0 else assumed.clips * config.num_train_epochs
    throughput = {}
    for teacher, count in per_clip.items():
        rate = assumed.gpus * assumed.peak_tflops * 1e12 * assumed.mfu / count
        throughput[teacher] = {"clips_per_s": rate, "step_s": clips_per_step / rate, "hours": steps / rate / 3600}
    responses = assumed.clips * config.responses_per_clip * assumed.response_tokens
    stacked = full.projector_stride * full.audio_config.hidden_size
    plan: dict[str, Any] = {
        "stage": 1,
        "vlm": config.vlm or config.model,
        "audio": config.audio or config.model,
        "length": f"{config.max_steps} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs",
        "assumptions": asdict(assumed),
        "parameters": parameters,
        "tokens": tokens,
        "clips_per_step": clips_per_step,
        "flops_per_clip": parts | online,
        "throughput": throughput,
        "memory": {"configured": zero_stage, "stages": memory_by_stage(parameters, assumed.gpus)},
        "cache_bytes": {
            "teacher": responses * full.get_text_config().hidden_size * BF16,
            "audio_features": assumed.clips * tokens["projector"] * stacked * BF16,
        },
    }
    plan["warnings"] = _warnings(plan, config, full, assumed)
    return plan


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable and frozen parameters by part; a head that is tied to the embeddings counts once, with the LLM."""
    decoder = {id(parameter) for parameter in model.get_decoder().parameters()}
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part == "vlm":
            part = "llm" if id(parameter) in decoder else "head" if id(parameter) in head else "vision_tower"
        kind = "trainable" if parameter.requires_grad else "frozen"
        counts.setdefault(part, {"trainable": 0, "frozen": 0})[kind] += parameter.numel()
    return counts


def memory_by_stage(parameters: Mapping[str, Mapping[str, int]], gpus: int) -> list[dict[str, int]]:
    """Bytes on one GPU in each ZeRO stage (arXiv 1910.02054), whatever the batch.

    In mixed precision 2 bytes a weight, and for what is trained 2 bytes a gradient and 12 for the fp32 copy and Adam's
    two moments. Stage 0 is training without ZeRO; there trained weights and gradients are fp32 and there is no second
    copy: the same 16 bytes. `gathered` is the sharded weights that are whole for a moment.
    """
    trainable, frozen = (sum(part[kind] for part in parameters.values()) for kind in ("trainable", "frozen"))
    share = lambda count: -(-count // gpus)
    rows = []
    for stage in STAGES:
        weights = share(trainable + frozen) if stage == 3 else trainable + frozen
        row = {
            "weights": BF16 * weights,
            "gathered": BF16 * min(trainable + frozen - weights, MAX_LIVE_PARAMETERS),
            "gradients": BF16 * (share(trainable) if stage >= 2 else trainable),
            "optimizer": 3 * FP32 * (share(trainable) if stage >= 1 else trainable),
        }
        rows.append({"zero_stage": stage, **row, "total": sum(row.values())})
    return rows


def _warnings(plan, config: Stage1Config, full: VAEmotionLLMConfig, assumed: Assumptions) -> list[str]:
    """One line for each thing that will not work, with the remedy."""
    room = assumed.gpu_memory_gib * GIB
    text = lambda count: f"{count / GIB:.1f} GiB"
    rows = plan["memory"]["stages"]
    row = rows[plan["memory"]["configured"]]
    found = []
    if row["total"] >= room:
        better = [f"deepspeed=zero{r['zero_stage']}" for r in rows if r["zero_stage"] >= 2 and r["total"] < room]
        remedies = better or ["deepspeed=zero3_offload (weights in host memory)", "more GPUs", "a smaller vlm"]
        found.append(
            f"ZeRO stage {row['zero_stage']} needs {text(row['total'])} on each GPU before any activation, and a GPU "
            f"has {text(room)}: {', or '.join(remedies)}."
        )
    if (whole := BF16 * sum(sum(part.values()) for part in plan["parameters"].values())) >= room:
        found.append(
            f"the teacher generates its responses with the whole model, {text(whole)} on each GPU, which has "
            f"{text(room)}: a smaller vlm, or larger GPUs."
        )
    context = getattr(full.get_text_config(), "max_position_embeddings", math.inf)
    for row_name in (*config.student_modalities, "teacher"):
        if (length := plan["tokens"][f"row_{row_name}"]) > context:
            found.append(
                f"a row of {row_name} has {length} tokens and the context of the LLM {context}: fewer num_frames or "
                "pixels, or a smaller max_audio_s."
            )
    if assumed.audio_s > config.max_audio_s:
        found.append(
            f"audio of {assumed.audio_s:g} s is longer than max_audio_s ({config.max_audio_s:g}), and the run would "
            "refuse it: cut the clips, or raise max_audio_s."
        )
    return found


# ---- counts on the meta device


class _OnMeta(TorchDispatchMode):
    """Moves what meets a tensor on the meta device there; grids and positions stay real: code branches on them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def _count(run: Callable[[], torch.Tensor], backward: bool) -> tuple[torch.Tensor, int]:
    """What `run` returns, and the FLOPs of it and, if wanted, of its backward pass."""
    with torch.set_grad_enabled(backward), _OnMeta(), FlopCounterMode(display=False) as counter:
        output = run()
        if backward:
            output.sum().backward()
    return output, counter.get_total_flops()


def count_clip(model: nn.Module, assumed: Assumptions, num_frames: int) -> tuple[dict[str, int], dict[str, float]]:
    """Tokens and FLOPs of one clip.

    Args:
        model: on the meta device, with everything frozen that is not trained.
        assumed: sizes of the clip.
        num_frames: frames of a video.

    Returns:
        tokens of "audio", "projector" (without the tokens around a window), "visual", and of the rows "row_audio",
        "row_av" and "row_teacher"; FLOPs, forward and, where there is one, backward, of "audio_tower",
        "audio_projector", "vision_tower", "llm_audio", "llm_av", "llm_teacher" and "head_and_loss". Gradient
        checkpointing runs the layers forward once more, which MFU leaves out.

    Raises:
        InputError: an audio tower or a backbone whose inputs are not known here.
    """
    config, trains = model.config, lambda part: any(parameter.requires_grad for parameter in part.parameters())
    width, vocabulary = config.get_text_config().hidden_size, config.get_text_config().vocab_size
    empty = lambda *shape: torch.empty(*shape, dtype=model.dtype, device="meta")
    audio_tokens, windows = audio_sizes(config, assumed.audio_s)
    audio = config.audio_config
    frames = (audio.num_mel_bins, 2 * audio.max_source_positions) if audio.model_type == "whisper" else (
        audio.max_length, audio.num_mel_bins
    )  # fmt: skip
    _, tower = _count(lambda: model.get_audio_states(empty(1, *frames)), trains(model.audio_tower))
    stacked = empty(sum(windows), audio.hidden_size * config.projector_stride).requires_grad_(
        trains(model.audio_tower)
    )
    _, projector = _count(lambda: model.audio_projector(stacked, torch.tensor(windows)), backward=True)
    visual, vision = count_visual(model, assumed.media, num_frames, assumed.pixels_per_frame)

    tokens = {"audio": audio_tokens, "projector": sum(windows), "visual": visual}
    text = assumed.prompt_tokens + assumed.response_tokens
    tokens |= {"row_audio": text + tokens["audio"], "row_teacher": text + visual}
    tokens["row_av"] = tokens["row_audio"] + visual

    def llm(length: int, backward: bool) -> int:
        embeds = empty(1, length, width).requires_grad_(backward)
        mask = torch.empty(1, 1, length, length, dtype=torch.bool, device="meta")  # given, or the values are read
        decoder = model.get_decoder()
        run = lambda: decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return _count(run, backward)[1]

    return tokens, {
        "audio_tower": tower * len(windows),
        "audio_projector": projector,
        "vision_tower": vision,
        "llm_audio": llm(tokens["row_audio"], backward=True),
        "llm_av": llm(tokens["row_av"], backward=True),
        "llm_teacher": llm(tokens["row_teacher"], backward=False),
        # The loss runs the head for teacher, student and the student's gradient.
        "head_and_loss": 3 * 2 * width * vocabulary * assumed.response_tokens,
    }


def audio_sizes(config: VAEmotionLLMConfig, audio_s: float) -> tuple[int, list[int]]:
    """Tokens of a clip's audio in the LLM, and those that the projector makes of each window.

    Raises:
        InputError: an audio tower that is not known.
    """
    try:
        per_position = encoder_samples_per_position(config.audio_config, FRAMES)
    except ValueError as error:
        raise InputError(str(error)) from error
    per_token, window = per_position * config.projector_stride, window_samples(config.audio_config, FRAMES)
    samples = max(1, round(audio_s * FRAMES.sampling_rate))
    windows = [tokens_in_window(part, per_token) for part in split_into_windows(samples, window)]
    return num_placeholders(samples, window, per_token), windows


def count_visual(model: nn.Module, media: str, num_frames: int, pixels: int) -> tuple[int, float]:
    """Tokens of an image or video in the LLM (with its time stamps), and the FLOPs of the vision tower for it.

    Args:
        model: of Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision, on the meta device.
        media: "image" or "video".
        num_frames: frames of a video.
        pixels: of a frame, which is taken as a square. LLaVA-OneVision scales frames to its own size.

    Raises:
        InputError: a family whose inputs are not known here.
    """
    vlm_config, side_px = model.config.vlm_config, math.isqrt(pixels)
    vision, encode = vlm_config.vision_config, getattr(model.vlm, f"get_{media}_features")
    times, time_tokens = 1, 0
    if vlm_config.model_type in ("qwen2_5_vl", "qwen3_vl"):
        merge, patch = vision.spatial_merge_size, vision.patch_size
        side = max(1, round(side_px / (patch * merge))) * merge
        # Attention joins the patches of one pair of frames, so one pair is counted.
        times = math.ceil(num_frames / vision.temporal_patch_size) if media == "video" else 1
        time_tokens = TIME_TOKENS if media == "video" and vlm_config.model_type == "qwen3_vl" else 0
        shape = (side * side, vision.in_channels * vision.temporal_patch_size * patch * patch)
        inputs = [torch.tensor([[1, side, side]])]
    elif vlm_config.model_type == "llava_onevision":
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        side = vision.image_size
        size, frames = [side_px, side_px], num_frames
        if media == "image":
            frames = image_size_to_num_patches(size, vlm_config.image_grid_pinpoints, side)
        shape, inputs = (1, frames, 3, side, side), [torch.tensor([size])] if media == "image" else []
    else:
        raise InputError(
            f"the visual of {vlm_config.model_type!r} cannot be planned; known are qwen2_5_vl, qwen3_vl, "
            "llava_onevision."
        )
    values = torch.empty(*shape, dtype=model.dtype, device="meta")
    found: list[int] = []

    def run() -> torch.Tensor:
        features = encode(values, *inputs).pooler_output
        found.append(sum(part.shape[:-1].numel() for part in features))
        return features[0]

    flops = _count(run, backward=False)[1]
    return times * (found[0] + time_tokens), float(times * flops)


# ---- text


def as_text(plan: Mapping[str, Any]) -> str:
    """A plan for people."""
    assumed, tokens = plan["assumptions"], plan["tokens"]
    rows = ", ".join(f"{name.removeprefix('row_')} {n}" for name, n in tokens.items() if name.startswith("row_"))
    lines = [
        f"Stage 1: {plan['vlm']} with {plan['audio']}", "",
        "Assumed",
        f"  GPUs          {assumed['gpus']} x {assumed['gpu_memory_gib']:g} GiB, {assumed['peak_tflops']:g} TFLOP/s "
        f"dense bf16 each, MFU {assumed['mfu']:g}",
        f"  clips         {assumed['clips']:,}, {plan['clips_per_step']} a step",
        f"  audio         {assumed['audio_s']:g} s: {tokens['audio']} tokens",
        f"  visual        {assumed['media']}, {assumed['pixels_per_frame']:,} pixels each: {tokens['visual']} tokens",
        f"  rows          {rows} tokens", "",
        f"{'Parameters':<24}{'trainable':>16}{'frozen':>16}",
    ]  # fmt: skip
    parts = plan["parameters"]
    total = {kind: sum(part[kind] for part in parts.values()) for kind in ("trainable", "frozen")}
    lines += [f"  {name:<22}{p['trainable']:>16,}{p['frozen']:>16,}" for name, p in {**parts, "all": total}.items()]
    columns = ("weights", "gathered", "gradients", "optimizer", "total")
    lines += ["", f"{'GiB of one GPU':<24}" + "".join(f"{column:>11}" for column in (*columns, "left"))]
    for row in plan["memory"]["stages"]:
        left = assumed["gpu_memory_gib"] - row["total"] / GIB
        mark = "  <- the config" if row["zero_stage"] == plan["memory"]["configured"] else ""
        cells = "".join(f"{row[column] / GIB:>11.1f}" for column in columns)
        lines.append(f"  ZeRO stage {row['zero_stage']:<11}{cells}{left:>11.1f}{mark}")
    lines += ["", "TFLOP a clip, forward and backward"]
    lines += [f"  {name:<22}{count / 1e12:>11.2f}" for name, count in plan["flops_per_clip"].items()]
    lines += ["", f"Expected at MFU {assumed['mfu']:g} (recomputation does not count as use)"]
    lines += [
        f"  teacher {teacher:<9}{rate['clips_per_s']:>8.1f} clips/s{rate['step_s']:>8.2f} s a step"
        f"{rate['hours']:>9.1f} h for {plan['length']}"
        for teacher, rate in plan["throughput"].items()
    ]
    disk = plan["cache_bytes"]
    lines += ["", f"Disk of caches: teacher's states {disk['teacher'] / 1e9:.1f} GB, audio tower's features "
              f"{disk['audio_features'] / 1e9:.1f} GB"]  # fmt: skip
    if plan["warnings"]:
        lines += ["", *(f"WARNING {text}" for text in plan["warnings"])]
    return "\n".join(lines)
