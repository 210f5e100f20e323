"""Plan of a stage-1 run from its config alone: parameters, memory by engine, FLOPs, clips a second, disk.

The model is made at full size on the meta device, where a tensor has no memory, and torch counts the FLOPs of its
parts on one clip: matrix products and convolutions, 2 for each multiply-add. Activations are not estimated: they
depend on kernels, batch and gradient checkpointing, and the first steps of a run show them.

A clip is taken as a video of `num_frames` frames with audio of `max_audio_s` and a response of `max_response_tokens`;
`num_frames=1` counts an image.
"""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..config_file import build_config, read_config, shipped_file, with_models_found
from ..model.audio_projector import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from ..utils import InputError, read_json
from .config import Stage1Config
from .model import freeze_all_but, meta_model, trained_parts

GIB = 2**30
BF16, FP32 = 2, 4  # bytes
# Feature extractors of both families of audio towers take 16 kHz and make a frame each 10 ms.
FRAMES = SimpleNamespace(sampling_rate=16_000, hop_length=160)
# Qwen3-VL writes "<0.5 seconds>" and two marks around each pair of frames.
TIME_TOKENS = 8
# Tokens of the prompt and the chat template, without media.
PROMPT_TOKENS = 64
# Gathered weights that ZeRO-3 may keep at once: stage3_max_live_parameters in configs/deepspeed/zero3.json.
MAX_LIVE_PARAMETERS = 1_000_000_000
# Of a GPU's memory, what an engine must leave for activations to be recommended. Our choice: the shipped configs take
# half of 80 GB for them, and a quarter with a smaller batch and activation_checkpointing.
LEFT_SHARE = 0.25
TEACHER_LEFT_SHARE = 0.1  # it keeps no activations


def read_plan_config(name: str, overrides: list[str]) -> tuple[Stage1Config, str]:
    """The config, and its engine, one of `memory_by_engine`.

    Raises:
        InputError: a config that is not for stage 1, or that cannot be used.
    """
    values = with_models_found(read_config(name, overrides))
    if values.get("stage") != 1:
        raise InputError(f"config field `stage` is {values.get('stage')!r}; only stage 1 can be planned.")
    engine = "fsdp" if values.pop("fsdp", None) else "ddp"
    if values.get("deepspeed"):
        # Read here and not given to the config, which would start an engine.
        file = shipped_file("deepspeed", values.pop("deepspeed"), (".json",))
        zero = read_json(file, "a DeepSpeed config").get("zero_optimization", {})
        engine = f"zero{zero.get('stage', 0)}" + ("_offload" if "offload_param" in zero else "")
    # A plan needs no clips, no output folder and no device.
    return build_config(Stage1Config, {**values, "manifest": "-", "output_dir": "-", "use_cpu": True}), engine


def make_plan(name: str, overrides: list[str], assumed: Mapping[str, float]) -> dict[str, Any]:
    """The plan of a run as plain values, ready for JSON; bytes are bytes.

    Args:
        name, overrides: the config, see `read_config`.
        assumed: "gpus"; "gpu_memory_gb" of one, in GiB, which is about what makers call GB; its dense bf16
            "peak_tflops"; the share of the peak "mfu" that the model's FLOPs reach; the number of "clips";
            "pixels_per_frame" as the backbone is given it, taken as a square.

    Raises:
        InputError: a config, a model or numbers that cannot be planned.
    """
    for flag, value in assumed.items():
        if not value > 0 or (flag == "mfu" and value > 1):
            raise InputError(f"--{flag.replace('_', '-')} is {value}; it must be above 0, and --mfu at most 1.")
    config, engine = read_plan_config(name, overrides)
    model = meta_model(config)
    freeze_all_but(model, trained_parts(config))
    parameters = count_parameters(model)
    tokens, flops = count_clip(
        model,
        config.max_audio_s,
        config.num_frames,
        assumed["pixels_per_frame"],
        PROMPT_TOKENS,
        config.max_response_tokens,
    )
    clips_per_step = assumed["gpus"] * config.gradient_accumulation_steps * config.per_device_train_batch_size
    shares = {
        modality: w / sum(config.student_modalities.values()) for modality, w in config.student_modalities.items()
    }
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
    trained_clips = (
        config.max_steps * clips_per_step if config.max_steps > 0 else assumed["clips"] * config.num_train_epochs
    )
    throughput = {}
    for teacher, count in per_clip.items():
        rate = assumed["gpus"] * assumed["peak_tflops"] * 1e12 * assumed["mfu"] / count
        throughput[teacher] = {
            "clips_per_s": rate,
            "step_s": clips_per_step / rate,
            "hours": trained_clips / rate / 3600,
        }
    states = assumed["clips"] * config.responses_per_clip * config.max_response_tokens
    return {
        "vlm": config.vlm or config.model,
        "audio": config.audio or config.model,
        "length": f"{config.max_steps} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs",
        "assumptions": dict(assumed),
        "parameters": parameters,
        "tokens": tokens,
        "clips_per_step": clips_per_step,
        "flops_per_clip": parts | online,
        "throughput": throughput,
        "memory": {
            "configured": engine,
            **plan_memory(parameters, assumed["gpus"], GIB * assumed["gpu_memory_gb"]),
        },
        "cache_bytes": states * model.config.get_text_config().hidden_size * BF16,
    }


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


def memory_by_engine(parameters: Mapping[str, Mapping[str, int]], gpus: int) -> list[dict[str, Any]]:
    """Bytes on one GPU under each engine, in bf16 and whatever the batch (ZeRO: arXiv 1910.02054).

    What is frozen takes 2 bytes a weight. What is trained takes 16 under FSDP: weight, gradient and Adam's two moments
    in fp32; 20 under DDP, whose buckets are as large as the gradients; and 18 under ZeRO, which has a bf16 weight
    beside the fp32 one. `gathered` is the sharded weights that are whole for a moment.

    Args:
        parameters: see `count_parameters`.
        gpus: number of GPUs.
    """
    trainable, frozen = (sum(part[kind] for part in parameters.values()) for kind in ("trainable", "frozen"))
    share = lambda count: -(-count // gpus)
    # Sharded are: weights, and what the training of a weight takes. Bytes of a trained weight.
    engines = {
        "ddp": (False, False, FP32),
        "zero2": (False, True, BF16),
        "zero3": (True, True, BF16),
        "fsdp": (True, True, FP32),
        "zero3_offload": (True, True, BF16),
    }
    rows = []
    for name, (shards_weights, shards_optimizer, trained_bytes) in engines.items():
        of = share if shards_weights else int
        weights = BF16 * of(frozen) + trained_bytes * of(trainable)
        updated = share(trainable) if shards_optimizer else trainable
        row = {
            "weights": weights,
            "gathered": min(BF16 * frozen + trained_bytes * trainable - weights, BF16 * MAX_LIVE_PARAMETERS),
            "gradients": FP32 * updated,
            "optimizer": (2 if trained_bytes == FP32 else 3) * FP32 * updated,
        }
        if name == "zero3_offload":
            whole = weights + row["gathered"]  # on a single GPU nothing is sharded
            row = dict.fromkeys(row, 0) | {"gathered": min(whole, BF16 * MAX_LIVE_PARAMETERS)}
        if name == "ddp":
            row["gradients"] *= 2  # and buckets
        rows.append({"engine": name, **row, "total": sum(row.values())})
    return rows


def plan_memory(parameters: Mapping[str, Mapping[str, int]], gpus: int, gpu_memory: float) -> dict[str, Any]:
    """What each engine and the teacher take of one GPU, and the engine to take.

    That is the first that leaves `LEFT_SHARE` of the memory for activations. DDP has the fewest parts; FSDP takes
    what ZeRO-3 takes, and is not recommended beside it.

    Args:
        parameters: see `count_parameters`.
        gpus: number of GPUs.
        gpu_memory: bytes of one GPU.

    Returns:
        "engines" (see `memory_by_engine`), "recommended" (None where none fits), "teacher" (bytes: it generates with
        the whole model on each GPU) and "teacher_fits".
    """
    limit = (1 - LEFT_SHARE) * gpu_memory
    engines = memory_by_engine(parameters, gpus)
    fit = [row["engine"] for row in engines if row["total"] <= limit and row["engine"] != "fsdp"]
    teacher = BF16 * sum(sum(part.values()) for part in parameters.values())
    return {
        "engines": engines,
        "recommended": next(iter(fit), None),
        "teacher": teacher,
        "teacher_fits": teacher <= (1 - TEACHER_LEFT_SHARE) * gpu_memory,
    }


# ---- counts on the meta device


class _OnMeta(TorchDispatchMode):
    """Moves what meets a tensor on the meta device there; grids and positions stay real: code branches on them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def _count(run: Callable[[], torch.Tensor], backward: bool) -> int:
    """FLOPs of what `run` does and, if wanted, of its backward pass."""
    with torch.set_grad_enabled(backward), _OnMeta(), FlopCounterMode(display=False) as counter:
        output = run()
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def count_clip(
    model: nn.Module, audio_s: float, num_frames: int, pixels: int, prompt_tokens: int, response_tokens: int
) -> tuple[dict[str, int], dict[str, float]]:
    """Tokens and FLOPs of one clip.

    Args:
        model: of Qwen2.5-VL or Qwen3-VL, on the meta device, with everything frozen that is not trained.
        audio_s: length of the audio, seconds.
        num_frames: frames of the video.
        pixels: of a frame, which is taken as a square.
        prompt_tokens: of the prompt and the chat template, without media.
        response_tokens: of the response.

    Returns:
        tokens of "audio", "visual", and of the rows "row_audio", "row_av" and "row_teacher"; FLOPs, forward and, where
        there is one, backward, of "audio_tower", "audio_projector", "vision_tower", "llm_audio", "llm_av",
        "llm_teacher" and "head_and_loss". Gradient checkpointing runs the layers forward once more, which MFU leaves
        out.

    Raises:
        InputError: a backbone whose inputs are not known here.
    """
    config, trains_tower = model.config, any(parameter.requires_grad for parameter in model.audio_tower.parameters())
    width, vocabulary = config.get_text_config().hidden_size, config.get_text_config().vocab_size
    empty = lambda *shape: torch.empty(*shape, dtype=model.dtype, device="meta")
    audio = config.audio_config
    per_token = encoder_samples_per_position(audio, FRAMES) * config.projector_stride
    window = window_samples(audio, FRAMES)
    samples = round(audio_s * FRAMES.sampling_rate)
    audio_tokens = num_placeholders(samples, window, per_token)
    windows = [tokens_in_window(part, per_token) for part in split_into_windows(samples, window)]
    if audio.model_type == "whisper":
        frames = (audio.num_mel_bins, 2 * audio.max_source_positions)
    else:
        frames = (audio.max_length, audio.num_mel_bins)
    tower = _count(lambda: model.get_audio_states(empty(1, *frames)), backward=trains_tower)
    stacked = empty(sum(windows), audio.hidden_size * config.projector_stride).requires_grad_(trains_tower)
    projector = _count(lambda: model.audio_projector(stacked, torch.tensor(windows)), backward=True)
    visual_tokens, vision = count_video(model, num_frames, pixels)

    text = prompt_tokens + response_tokens
    rows = {"audio": text + audio_tokens, "av": text + audio_tokens + visual_tokens, "teacher": text + visual_tokens}
    tokens = {"audio": audio_tokens, "visual": visual_tokens}
    tokens |= {f"row_{name}": length for name, length in rows.items()}

    def llm(length: int, backward: bool) -> int:
        embeds = empty(1, length, width).requires_grad_(backward)
        mask = torch.empty(1, 1, length, length, dtype=torch.bool, device="meta")  # given, or the values are read
        decoder = model.get_decoder()
        run = lambda: decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return _count(run, backward)

    flops = {"audio_tower": tower * len(windows), "audio_projector": projector, "vision_tower": vision}
    flops |= {f"llm_{name}": llm(length, backward=name != "teacher") for name, length in rows.items()}
    # The loss runs the head for teacher, student and the student's gradient.
    return tokens, flops | {"head_and_loss": 3 * 2 * width * vocabulary * response_tokens}


def count_video(model: nn.Module, num_frames: int, pixels: int) -> tuple[int, int]:
    """Tokens of a video in the LLM (with its time stamps), and the FLOPs of the vision tower for it.

    Args:
        model, num_frames, pixels: see `count_clip`.

    Raises:
        InputError: a family whose inputs are not known here.
    """
    vlm_config, vision = model.config.vlm_config, model.config.vlm_config.vision_config
    if vlm_config.model_type not in ("qwen2_5_vl", "qwen3_vl"):
        raise InputError(f"the visual of {vlm_config.model_type!r} cannot be planned; known are qwen2_5_vl, qwen3_vl.")
    merge, patch = vision.spatial_merge_size, vision.patch_size
    side = max(1, round(math.isqrt(pixels) / (patch * merge))) * merge
    # Attention joins the patches of one pair of frames, so one pair is counted.
    pairs = math.ceil(num_frames / vision.temporal_patch_size)
    patch_size = vision.in_channels * vision.temporal_patch_size * patch * patch
    values = torch.empty(side * side, patch_size, dtype=model.dtype, device="meta")
    grid = torch.tensor([[1, side, side]])
    flops = _count(lambda: model.vlm.get_video_features(values, grid).pooler_output[0], backward=False)
    time_tokens = TIME_TOKENS if vlm_config.model_type == "qwen3_vl" and num_frames > 1 else 0
    return pairs * ((side // merge) ** 2 + time_tokens), pairs * flops


# ---- text


def _number(value: float) -> str:
    """With two decimals, or below 1 with two significant digits: a tiny model's numbers are no zeros."""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def advice(memory: Mapping[str, Any]) -> str:
    """The engine to take, and what goes with it, for people."""
    engine = memory["recommended"]
    if engine is None:
        return f"none; no engine leaves {LEFT_SHARE:.0%} of a GPU for activations: take more GPUs."
    words = "torchrun (DDP), no engine" if engine == "ddp" else f"deepspeed={engine}"
    if not memory["teacher_fits"]:
        return f"{words}, with a teacher_cache that was made on a larger GPU: the teacher does not fit this one"
    whole = engine in ("ddp", "zero2")
    return words if whole else f"{words}, with a teacher_cache; while it loads each rank holds the model on the host"


def as_text(plan: Mapping[str, Any]) -> str:
    """A plan for people."""
    parameters = pd.DataFrame(plan["parameters"]).T
    parameters.loc["all"] = parameters.sum()
    memory = pd.DataFrame(plan["memory"]["engines"]).set_index("engine").rename_axis(None) / GIB
    memory["left"] = plan["assumptions"]["gpu_memory_gb"] - memory["total"]
    length = f"{plan['length']} of {plan['clips_per_step']} clips a step"
    sections = {
        "Assumed": pd.Series(plan["assumptions"]).map("{:,g}".format),
        "Tokens of a clip": pd.Series(plan["tokens"]),
        "Parameters": parameters.map("{:,}".format),
        f"GiB of one GPU; the config is {plan['memory']['configured']}": memory.map(_number),
        "TFLOP a clip, forward and backward": (pd.Series(plan["flops_per_clip"]) / 1e12).map(_number),
        f"By teacher, for {length} (recomputation not counted)": pd.DataFrame(plan["throughput"]).T.map(_number),
    }
    lines = [f"Stage 1: {plan['vlm']} with {plan['audio']}"]
    for title, table in sections.items():
        lines += ["", title, table.to_string()]
    lines += ["", f"Recommended: {advice(plan['memory'])}"]
    lines += [f"GiB of one GPU while the teacher generates: {_number(plan['memory']['teacher'] / GIB)}"]
    lines += [f"GB of the teacher's cache on disk: {_number(plan['cache_bytes'] / 1e9)}"]
    return "\n".join(lines)
