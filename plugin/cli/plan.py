"""`vaemotionllm plan`: what a stage-1 run will need, before any GPU is paid for."""

import argparse
import dataclasses
import json
from typing import Any

from ..utils import InputError

DESCRIPTION = """say what a stage-1 run will need: parameters, memory in each ZeRO stage, FLOPs, clips a second, disk

The model is made at full size on the meta device: its config.json is read, its weights are not.

  vaemotionllm plan --config stage1_qwen2_5_vl_7b --gpus 8 --gpu-memory-gb 80
  vaemotionllm plan --config stage1_qwen2_5_vl_3b --gpus 1 --gpu-memory-gb 24 per_device_train_batch_size=1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a config that the package ships")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="number of GPUs (1)")
    parser.add_argument(
        "--gpu-memory-gb", type=float, default=80, metavar="GB", help="memory of one GPU, counted in GiB (80)"
    )
    parser.add_argument("--reserve-gb", type=float, default=4, metavar="GB", help="of it, kept free for the rest (4)")
    parser.add_argument(
        "--gpu", metavar="NAME", help="GPU whose peak is taken, such as A100 (guessed from its memory)"
    )
    parser.add_argument("--peak-tflops", type=float, metavar="N", help="dense bf16 peak of one GPU, in place of --gpu")
    parser.add_argument("--mfu", type=float, default=0.35, metavar="SHARE", help="share of the peak reached (0.35)")
    parser.add_argument("--clips", type=int, metavar="N", help="number of clips (the manifest's, or 100000)")
    parser.add_argument(
        "--audio-s", type=float, metavar="S", help="sound of a clip, seconds (the manifest's longest, or max_audio_s)"
    )
    parser.add_argument("--media", choices=("video", "image"), help="what is seen (the manifest's, or video)")
    parser.add_argument(
        "--pixels-per-frame", type=int, default=448 * 448, metavar="N", help="of a frame or picture (200704)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=64, metavar="N", help="prompt and chat template without media (64)"
    )
    parser.add_argument("--response-tokens", type=int, metavar="N", help="of a response (max_response_tokens)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields to set, as YAML values")


def run(args: argparse.Namespace) -> int:
    config, zero_stage, has_manifest = read_stage1(args.config, args.overrides)

    from ..train.meta_model import model_config
    from ..train.plan import make_plan

    assumed, sources = assume(args, config, has_manifest)
    plan = make_plan(config, model_config(config), assumed, zero_stage)
    plan = {"assumptions": dataclasses.asdict(assumed), **plan}
    print(json.dumps(plan) if args.json else as_text(plan, config, sources))
    return 0


def read_stage1(name: str, overrides: list[str]):
    """The config, the ZeRO stage of its `deepspeed` file, and whether it names a manifest.

    Raises:
        InputError: a config that is not for stage 1, or that cannot be used.
    """
    from ..config_file import build_config, read_config, shipped_file
    from ..train.stage1_config import Stage1Config

    values = read_config(name, overrides)
    if values.get("stage") != 1:
        raise InputError(
            f"config field `stage` is {values.get('stage')!r}; only stage 1 can be planned. Take a config such as "
            "stage1_qwen2_5_vl_7b."
        )
    zero_stage = None
    if values.get("deepspeed"):
        # Read here and not given to the config, which would start an engine.
        file = shipped_file("deepspeed", values.pop("deepspeed"), (".json",))
        try:
            zero_stage = str(json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0))
        except (ValueError, AttributeError) as error:
            raise InputError(f"config field `deepspeed`: {file} holds no DeepSpeed config: {error}") from None
    has_manifest = bool(values.get("manifest"))
    # A plan needs no clips, no output folder and no device.
    values = {"manifest": "-", "output_dir": "-", **{k: v for k, v in values.items() if v is not None}}
    return build_config(Stage1Config, {**values, "use_cpu": True}), zero_stage, has_manifest


def assume(args: argparse.Namespace, config, has_manifest: bool):
    """Assumptions from flags, manifest, config or defaults, and a word on where each that may differ comes from."""
    from ..train.flops import PEAK_TFLOPS, peak_tflops_of
    from ..train.plan_sizes import Assumptions, assumed_gpu, longest_clip_s, read_clips

    sources: dict[str, str] = {}

    def choose(name: str, *options: tuple[Any, str]):
        flag = getattr(args, name)
        value, sources[name] = (flag, "given") if flag is not None else next(o for o in options if o[0] is not None)
        return value

    clips = read_clips(config) if has_manifest else None
    media = None if clips is None else "video" if any(clip.visual == "video" for clip in clips) else "image"
    gpu = args.gpu or assumed_gpu(args.gpu_memory_gb)
    peak = peak_tflops_of(gpu)
    if peak is None and args.peak_tflops is None:
        raise InputError(f"--gpu {gpu} is not known; known are {', '.join(PEAK_TFLOPS)}. Or give --peak-tflops.")
    from_gpu = f"{gpu}, by --gpu" if args.gpu else f"{gpu}, guessed from --gpu-memory-gb"
    assumed = Assumptions(
        gpus=args.gpus,
        gpu_memory_gib=args.gpu_memory_gb,
        reserve_gib=args.reserve_gb,
        peak_tflops=choose("peak_tflops", (peak, from_gpu)),
        mfu=args.mfu,
        clips=choose("clips", (None if clips is None else len(clips), "manifest"), (100_000, "default")),
        audio_s=choose(
            "audio_s",
            (None if clips is None else longest_clip_s(clips), "longest of the manifest"),
            (config.max_audio_s, "max_audio_s"),
        ),
        media=choose("media", (media, "manifest"), ("video", "default")),
        pixels_per_frame=args.pixels_per_frame,
        prompt_tokens=args.prompt_tokens,
        response_tokens=choose("response_tokens", (config.max_response_tokens, "max_response_tokens")),
    )
    return assumed, sources


# ---- text


def as_text(plan: dict[str, Any], config, sources: dict[str, str]) -> str:
    assumed, clip = plan["assumptions"], plan["clip"]
    frames = f"{config.num_frames} frames of" if assumed["media"] == "video" else "a picture of"
    rows = ", ".join(f"{path} {tokens}" for path, tokens in clip["row_tokens"].items())
    lines = [
        f"Stage 1: {plan['vlm']} hears through {plan['audio']}",
        "",
        "Assumed",
        f"  GPUs          {assumed['gpus']} x {assumed['gpu_memory_gib']:g} GiB, "
        f"of each {assumed['reserve_gib']:g} GiB kept free",
        f"  speed         {assumed['peak_tflops']:g} TFLOP/s dense bf16 ({sources['peak_tflops']}), "
        f"MFU {assumed['mfu']:g}",
        f"  clips         {assumed['clips']:,} ({sources['clips']}), {config.responses_per_clip} responses each",
        f"  sound         {assumed['audio_s']:g} s ({sources['audio_s']}): {clip['audio_tokens']} tokens",
        f"  picture       {frames} {assumed['pixels_per_frame']:,} pixels, {assumed['media']} "
        f"({sources['media']}): {clip['visual_tokens']} tokens",
        f"  text          prompt {assumed['prompt_tokens']}, response {assumed['response_tokens']} tokens "
        f"({sources['response_tokens']})",
        f"  rows          {rows} tokens",
        f"  batch         {config.per_device_train_batch_size} clips x {config.gradient_accumulation_steps} "
        f"micro-batches x {assumed['gpus']} GPUs = {plan['clips_per_step']} clips a step",
        "",
        *_parameters(plan["parameters"]),
        "",
        *_memory(plan["memory"]),
        "",
        *_flops(plan["flops_per_step"]),
        "",
        *_throughput(plan, config),
        "",
        "Disk of caches",
        f"  teacher's states {plan['cache_bytes']['teacher'] / 1e9:.1f} GB, "
        f"audio tower's features {plan['cache_bytes']['audio_features'] / 1e9:.1f} GB",
    ]
    remarks = [f"WARNING {text}" for text in plan["warnings"]] + [f"NOTE {text}" for text in plan["notes"]]
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def _parameters(parameters: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"{'Parameters':<18}{'trainable':>16}{'frozen':>16}"]
    total = {kind: sum(part[kind] for part in parameters.values()) for kind in ("trainable", "frozen")}
    for name, part in {**parameters, "all": total}.items():
        lines.append(f"  {name:<16}{part['trainable']:>16,}{part['frozen']:>16,}")
    return lines


def _memory(table: dict[str, Any]) -> list[str]:
    gib = lambda count: f"{count / 2**30:.1f}"
    now = table["checkpointing"]
    other = "with" if now == "without" else "without"
    columns = ("weights", "gathered", "gradients", "optimizer", "activations", "loss", "total", f"{other} checkp.")
    lines = [
        f"Memory of one GPU, GiB of {gib(table['room'])} ({now} gradient checkpointing)",
        f"  {'ZeRO stage':<24}" + "".join(f"{column:>{max(11, len(column) + 2)}}" for column in columns),
    ]
    held = table["activations"][now]
    for row in table["stages"]:
        values = [row[name] for name in columns[:4]] + [held["saved"] + held["working"], held["loss"]]
        values += [row["total"][now], row["total"][other]]
        cells = "".join(f"{gib(v):>{max(11, len(c) + 2)}}" for v, c in zip(values, columns, strict=True))
        marks = " too much" if not row["fits"][now] else ""
        marks += "  <- the config" if row["zero_stage"] == table["configured"] else ""
        lines.append(f"  {row['zero_stage']:<24}{cells}{marks}")
    lines.append(f"  the teacher's generation, whole model: {gib(table['generation']['total'])}")
    return lines


def _flops(steps: dict[str, Any]) -> list[str]:
    """A part's row is of the run whose teacher is online: what both runs share is the same."""
    kinds = ("forward", "backward", "recompute")
    lines = [f"{'PFLOP a step, all GPUs':<24}" + "".join(f"{kind:>11}" for kind in kinds)]
    rows = {f"all, teacher {teacher}": step for teacher, step in steps.items()}
    for name, part in {**steps["online"]["parts"], **rows}.items():
        note = "" if name in steps["cached"]["parts"] or name in rows else "  only with the teacher online"
        lines.append(f"  {name:<22}" + "".join(f"{part[kind] / 1e15:>11.3f}" for kind in kinds) + note)
    return lines


def _throughput(plan: dict[str, Any], config) -> list[str]:
    length = f"{config.max_steps} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
    lines = [f"Expected at MFU {plan['assumptions']['mfu']:g} (recomputation does not count as use)"]
    for teacher, rate in plan["throughput"].items():
        lines.append(
            f"  teacher {teacher:<9}{rate['clips_per_s']:>8.1f} clips/s{rate['step_s']:>8.2f} s a step"
            f"{rate['hours']:>9.1f} h for {length}"
        )
    return lines
