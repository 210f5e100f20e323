"""What a stage-1 run will need, from its config alone: parameters, memory, FLOPs, clips a second, disk."""

from typing import Any

from torch import nn

from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from . import flops, memory
from .freezing import freeze_all_but
from .meta_model import meta_model
from .plan_sizes import Assumptions, batch_of, clip_sizes
from .stage1_config import Stage1Config

# Names of the two ways to keep activations, and whether that is gradient checkpointing.
CHECKPOINTING = {"without": False, "with": True}


def make_plan(
    config: Stage1Config, model_config: VAEmotionLLMConfig, assumed: Assumptions, zero_stage: str | None = None
) -> dict[str, Any]:
    """The plan of a run as plain values, ready for JSON; bytes are bytes.

    Args:
        config: the training config.
        model_config: the model's (`model_config` of meta_model.py).
        assumed: see there.
        zero_stage: ZeRO stage of the config's `deepspeed` file; None without one.

    Raises:
        InputError: a model that cannot be planned.
    """
    clip = clip_sizes(model_config, assumed, config.num_frames)
    model = meta_model(model_config)
    trained = [name for name in ("audio_projector", "audio_tower") if getattr(config, f"train_{name}")]
    freeze_all_but(model, trained)
    parameters = count_parameters(model)
    costs = flops.model_costs(model_config, model)
    weights = {modality: weight for modality, weight in config.student_modalities.items() if weight > 0}
    total = sum(weights.values())
    modalities = {modality: weight / total for modality, weight in weights.items()}

    steps = {}
    micro_batches = assumed.gpus * config.gradient_accumulation_steps
    for teacher in ("cached", "online"):
        sizes = {
            modality: batch_of(modality, clip, assumed, config.per_device_train_batch_size, teacher == "online")
            for modality in modalities
        }
        steps[teacher] = _mean_step(costs, sizes, modalities, trained, config.activation_checkpointing, micro_batches)
    clips_per_step = micro_batches * config.per_device_train_batch_size
    plan = {
        "stage": 1,
        "vlm": config.vlm or config.model,
        "audio": config.audio or config.model,
        "parameters": parameters,
        "clip": {
            "audio_tokens": clip.audio_tokens,
            "visual_tokens": clip.visual_tokens,
            "row_tokens": {
                modality: batch_of(modality, clip, assumed, 1, False).student.row_tokens[0] for modality in modalities
            }
            | {"teacher": batch_of("audio", clip, assumed, 1, True).teacher.row_tokens[0]},
        },
        "clips_per_step": clips_per_step,
        "flops_per_step": steps,
        "throughput": {
            teacher: _throughput(step["model"] / clips_per_step, config, assumed) for teacher, step in steps.items()
        },
        "memory": _memory(config, model_config, assumed, clip, parameters, modalities, trained),
        "cache_bytes": {
            "teacher": assumed.clips * config.responses_per_clip * assumed.response_tokens
            * model_config.get_text_config().hidden_size * memory.BF16,
            "audio_features": assumed.clips * clip.projector_tokens * model_config.projector_stride
            * model_config.audio_config.hidden_size * memory.BF16,
        },
    }  # fmt: skip
    plan["memory"]["configured"] = zero_stage or "0"
    plan["warnings"] = _warnings(plan, config, model_config, assumed, costs)
    plan["notes"] = _notes(plan)
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


def _mean_step(costs, sizes, modalities, trained, checkpointing, micro_batches) -> dict[str, Any]:
    """FLOPs of an optimizer step on all GPUs, a mean over the student's modalities."""
    parts: dict[str, dict[str, float]] = {}
    for modality, share in modalities.items():
        for name, part in flops.microbatch_flops(costs, sizes[modality], trained, checkpointing).parts.items():
            entry = parts.setdefault(name, {"forward": 0, "backward": 0, "recompute": 0})
            for kind in entry:
                entry[kind] += getattr(part, kind) * share * micro_batches
    total = {kind: sum(part[kind] for part in parts.values()) for kind in ("forward", "backward", "recompute")}
    return {
        "parts": {name: parts[name] for name in flops.PARTS if name in parts},
        **total,
        "model": total["forward"] + total["backward"],
        "hardware": sum(total.values()),
    }


def _throughput(flops_per_clip: float, config: Stage1Config, assumed: Assumptions) -> dict[str, float]:
    clips_per_s = assumed.gpus * assumed.peak_tflops * 1e12 * assumed.mfu / flops_per_clip
    clips_per_step = assumed.gpus * config.gradient_accumulation_steps * config.per_device_train_batch_size
    seen = config.max_steps * clips_per_step if config.max_steps > 0 else assumed.clips * config.num_train_epochs
    return {"clips_per_s": clips_per_s, "step_s": clips_per_step / clips_per_s, "hours": seen / clips_per_s / 3600}


def _memory(config, model_config, assumed, clip, parameters, modalities, trained) -> dict[str, Any]:
    """Bytes on one GPU in each ZeRO stage, on the student's longest modality, with the teacher online."""
    trainable, frozen = (sum(part[kind] for part in parameters.values()) for kind in ("trainable", "frozen"))
    longest = "av" if "av" in modalities else "audio"

    def activations(batch: int, checkpointing: bool) -> memory.ActivationBytes:
        sizes = batch_of(longest, clip, assumed, batch, teacher=True)
        return memory.activation_bytes(
            model_config, sizes.student, sizes.teacher, sizes.response_tokens, "audio_tower" in trained, checkpointing,
            config.attn_implementation or "sdpa",
        )  # fmt: skip

    room = (assumed.gpu_memory_gib - assumed.reserve_gib) * memory.GIB
    batch = config.per_device_train_batch_size
    rows = []
    for stage in memory.STAGES:
        state = memory.state_bytes(trainable, frozen, assumed.gpus, stage)
        totals = {name: state.total + activations(batch, on).total for name, on in CHECKPOINTING.items()}
        rows.append(
            {
                "zero_stage": stage,
                "weights": state.weights, "gathered": state.gathered, "gradients": state.gradients,
                "optimizer": state.optimizer, "total": totals, "fits": {n: t <= room for n, t in totals.items()},
                "largest_batch": {
                    name: next((b for b in range(batch, 0, -1) if state.total + activations(b, on).total <= room), 0)
                    for name, on in CHECKPOINTING.items()
                },
            }
        )  # fmt: skip

    def generation(size: int) -> int:
        prompts = batch_of("audio", clip, assumed, size, teacher=True).teacher
        working = memory.activation_bytes(model_config, flops.InputSizes(()), prompts, 0).total
        cache = memory.kv_cache_bytes(model_config.get_text_config(), sum(prompts.row_tokens))
        return memory.BF16 * (trainable + frozen) + cache + working

    generating = generation(config.generation_batch_size)
    return {
        "room": int(room),
        "checkpointing": "with" if config.activation_checkpointing else "without",
        "activations": {
            name: {"saved": it.saved, "working": it.working, "loss": it.loss, "total": it.total}
            for name, it in ((name, activations(batch, on)) for name, on in CHECKPOINTING.items())
        },
        "stages": rows,
        "generation": {
            "total": generating,
            "fits": generating <= room,
            "largest_batch": next(
                (size for size in range(config.generation_batch_size, 0, -1) if generation(size) <= room), 0
            ),
        },
    }


def _warnings(plan, config, model_config, assumed, costs) -> list[str]:
    """One line for each thing that will not work, with the remedy."""
    gib = lambda count: f"{count / memory.GIB:.1f} GiB"
    found, table = [], plan["memory"]
    now, room = table["checkpointing"], table["room"]
    fitting = {row["zero_stage"] for row in table["stages"] if row["fits"][now]}
    lacking: dict[str, list[str]] = {}  # what is said of a stage -> the stages of which it is true
    for row in table["stages"]:
        if row["fits"][now]:
            continue
        remedies = ["activation_checkpointing=true"] if row["fits"]["with"] else []
        if smaller := row["largest_batch"]["with"]:
            # The same clips a step, in more and smaller micro-batches.
            clips = config.gradient_accumulation_steps * config.per_device_train_batch_size
            words = f"per_device_train_batch_size={smaller} gradient_accumulation_steps={-(-clips // smaller)}"
            if now == "with":
                remedies.append(words)
            elif not remedies:
                remedies.append(f"activation_checkpointing=true {words}")
        remedies += [f"deepspeed=zero{stage}" for stage in ("2", "3") if stage in fitting]
        remedies = remedies or ["deepspeed=zero3_offload (weights in host memory)", "more GPUs", "a smaller vlm"]
        text = f"needs {gib(row['total'][now])} on each GPU, which has {gib(room)} for it: {', or '.join(remedies)}."
        lacking.setdefault(text, []).append(row["zero_stage"])
    found += [f"ZeRO stage {' and '.join(stages)} {text}" for text, stages in lacking.items()]
    generation = table["generation"]
    if not generation["fits"]:
        largest = generation["largest_batch"]
        remedy = f"generation_batch_size={largest}" if largest else "a smaller vlm, or larger GPUs"
        found.append(
            f"generating the teacher's responses needs the whole model, {gib(generation['total'])} on each GPU, which "
            f"has {gib(room)} for it: {remedy}."
        )
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    for modality, tokens in plan["clip"]["row_tokens"].items():
        if context is not None and tokens > context:
            found.append(
                f"a row of the modality {modality} has {tokens} tokens and the context of the LLM {context}: fewer "
                "num_frames or pixels, or a smaller max_audio_s."
            )
    if assumed.audio_s > config.max_audio_s:
        found.append(
            f"a sound of {assumed.audio_s:g} s is longer than max_audio_s ({config.max_audio_s:g}), and the run would "
            "refuse it: cut the clips, or raise max_audio_s."
        )
    if costs.uncounted:
        found.append(
            f"the FLOPs of {len(costs.uncounted)} parameters such as {costs.uncounted[0]} are not counted (a mixture "
            "of experts): FLOPs are too low and clips a second too high."
        )
    return found


def _notes(plan) -> list[str]:
    """One line for each thing that works and could go faster."""
    table = plan["memory"]
    row = next(row for row in table["stages"] if row["zero_stage"] == table["configured"])
    if table["checkpointing"] == "without" or not row["fits"]["without"]:
        return []
    step = plan["flops_per_step"]["cached"]
    return [
        "it fits with activation_checkpointing=false as well, which spares "
        f"{step['recompute'] / step['hardware']:.0%} of the GPUs' work with the teacher cached."
    ]
