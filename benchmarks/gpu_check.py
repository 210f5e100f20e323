"""What only a GPU can settle, in under 8 minutes on one H100: kernels, precision, the loss, throughput, memory.

    make gpu-check                                # on a GPU; the table goes into benchmarks/RESULTS.md as well
    python benchmarks/gpu_check.py --only loss    # one step, or several; RESULTS.md stays as it is
    python benchmarks/gpu_check.py --tiny         # the same steps at tiny size; so it is where there is no GPU

Each step has a time limit and an outcome of its own: measured, not available, failed, or stopped. It runs in a process
that is forked before anything has touched the device, so that a kernel that breaks the device's context, or a lack of
memory, ends that step alone; what it measured until then is kept. Models have the sizes of Qwen2.5-VL-7B and
Whisper-large-v3 and random weights, made on the device: nothing is downloaded. Where there is no GPU, FlashAttention
and the waits of the host are those of tests/helpers' emulators.

Clips have videos of 8 frames of 448 x 448 pixels and audio of 30 and of 10 seconds in turn. MFU counts a clip's own
FLOPs (`vaemotionllm plan`), forward and backward: no padding, no recomputation.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Looking for a GPU must not open one: the steps are forks, and a context does not survive a fork.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import numpy as np
import torch
from common import DEVICE, machine, quiet

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # builders of small models, sizes of large ones, emulators

import emulated_flash
import full_size
import tiny
import training as small
from emulated_cuda import Cuda
from transformers import AutoConfig, WhisperFeatureExtractor
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMProcessor
from vaemotionllm.data.collator import ConversationRenderer, build_inputs
from vaemotionllm.model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration as Model
from vaemotionllm.train.chunked_divergence import chunk_tokens_for
from vaemotionllm.train.distributed import attention_problem, flash_attention, plain_attention
from vaemotionllm.train.host_inputs import with_host_inputs
from vaemotionllm.train.losses import divergence
from vaemotionllm.train.model import freeze_all_but, head_dimensions, keep_trained_in_float32, set_modes
from vaemotionllm.train.plan import count_clip

MIB, GIB = 2**20, 2**30
MARKS = "<!-- gpu-check: begin -->", "<!-- gpu-check: end -->"
# Dense bf16 TFLOP/s by data sheet, by a part of the device's name.
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312}
TRAINED = ("audio_projector",)

Rows = Iterator[tuple[str, str]]  # what was measured, and what came out


class NotAvailable(Exception):
    """What a step needs is not on this machine."""


@dataclass(frozen=True)
class Size:
    """How large the steps are."""

    is_tiny: bool = False
    head_dims: tuple[int, ...] = (128, 80, 72, 64)
    sequences: tuple[int, ...] = (2048, 1024, 1024)
    heads: int = 16
    vocabulary: int = 152_064
    hidden: int = 3584
    positions: int = 2048
    chunks: tuple[int, ...] = (64, 128, 256, 441, 1024, 2048)
    batch: int = 8
    # batch, activation checkpointing, attention ("best" is FlashAttention where there is one), engine
    runs: tuple[tuple[int, bool, str, str], ...] = (
        (8, False, "best", "torch"),
        (4, True, "best", "torch"),
        (8, True, "best", "torch"),
        (16, True, "best", "torch"),
        (8, False, "sdpa", "torch"),
        (8, False, "best", "zero2"),
    )
    seconds: tuple[float, ...] = (30.0, 10.0)
    frames: int = 8
    side_px: int = 448
    prompt_tokens: int = 64
    response_tokens: int = 128
    new_tokens: int = 64
    repeats: int = 3


TINY = Size(
    is_tiny=True,
    head_dims=(16, 8),
    sequences=(9, 7),
    heads=2,
    vocabulary=300,
    hidden=16,
    positions=24,
    chunks=(8, 24),
    batch=2,
    runs=((2, False, "best", "torch"), (2, True, "sdpa", "torch")),
    seconds=(1.5, 0.7),
    frames=2,
    side_px=56,
    prompt_tokens=8,
    response_tokens=4,
    new_tokens=3,
    repeats=1,
)


# ---- time and memory on the device


def timed(run: Callable[[], object], repeats: int) -> float:
    """Median of the seconds of a call; the first, which sets things up, is left out."""
    run()
    times = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def peak(found: list[float]):
    """Appends the most GiB that was allocated within it; nothing on a CPU."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if DEVICE == "cuda":
        found.append(torch.cuda.max_memory_allocated() / GIB)


def gib(found: list[float]) -> str:
    return f"{max(found):.2f} GiB" if found else "no peak on a CPU"


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In the 2-norm."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def flash_attentions() -> list[str]:
    """Names of those that are installed; the emulator's on a CPU."""
    if DEVICE == "cpu":
        return ["flash_attention_2"]
    known = FLASH_ATTENTION_COMPATIBILITY_MATRIX
    return [f"flash_attention_{number}" for number in known if known[number]["general_availability_check"]()]


# ---- models and batches


def prepare(size: Size, folder: Path) -> None:
    """Writes configs and processors of Qwen2.5-VL and Whisper, and a small model with clips to train it on.

    A tokenizer of bytes serves any size.
    """
    (folder / "setup.json").write_text(json.dumps([str(path) for path in small.make_setup(folder / "small")]))
    vlm, audio = tiny.make_vlm("qwen2_5_vl", folder), tiny.make_audio("whisper", folder)
    if not size.is_tiny:
        ids = AutoConfig.from_pretrained(vlm)
        config = full_size.MAKERS["Qwen/Qwen2.5-VL-7B-Instruct"]()
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            setattr(config, name, getattr(ids, name))
        config.save_pretrained(vlm)
        full_size.MAKERS["openai/whisper-large-v3"]().save_pretrained(audio)
        WhisperFeatureExtractor(feature_size=128).save_pretrained(audio)


def load_processor(size: Size, folder: Path) -> VAEmotionLLMProcessor:
    processor = VAEmotionLLMProcessor.from_backbone(
        folder / "qwen2_5_vl", folder / "whisper", projector_stride=10 if size.is_tiny else 4
    )
    pixels = size.frames * size.side_px**2
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": pixels}
    return processor


def full_config(size: Size, folder: Path, processor, layers: int | None = None) -> VAEmotionLLMConfig:
    vlm, audio = (AutoConfig.from_pretrained(folder / name) for name in ("qwen2_5_vl", "whisper"))
    if layers:
        vlm.text_config.num_hidden_layers = layers
        vlm.text_config.layer_types = vlm.text_config.layer_types[:layers]
    fields = {"projector_stride": 10, "enhancer_rank": 4, "supervisor_hidden_size": 8} if size.is_tiny else {}
    return VAEmotionLLMConfig(vlm_config=vlm, audio_config=audio, audio_token_id=processor.audio_token_id, **fields)


def build_model(config: VAEmotionLLMConfig, dtype: torch.dtype = torch.bfloat16) -> Model:
    """A model with random weights, made on the device; only the audio projector is trained, in float32."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Model._from_config(config, dtype=dtype, attn_implementation="sdpa")
    freeze_all_but(model, TRAINED)
    return model.eval()


def build_batch(size: Size, model: Model, processor, modality: str, clips: int) -> dict:
    """Inputs of clips on the device, audio of `size.seconds` in turn, each with a response."""
    rng, render, texts, media = np.random.default_rng(0), ConversationRenderer(processor), [], []
    for _, seconds in zip(range(clips), itertools.cycle(size.seconds)):
        frames = rng.integers(0, 255, (size.frames, size.side_px, size.side_px, 3), dtype=np.uint8)
        wave = 0.1 * rng.normal(size=int(processor.sampling_rate * seconds)).astype(np.float32)
        found = [] if modality == "audio" else [processor.encode_video(frames, 2.0, list(range(size.frames)))]
        found.append(processor.encode_audio(wave))
        texts.append(render.prompt([medium.kind for medium in found], "x" * size.prompt_tokens))
        media += found
    responses = [rng.integers(20, 200, size.response_tokens).tolist() for _ in range(clips)]
    inputs = with_host_inputs(model, build_inputs(processor, texts, media, responses))
    return {name: on_device(value) for name, value in inputs.items()}


def on_device(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(DEVICE, torch.bfloat16 if value.is_floating_point() and value.ndim > 1 else value.dtype)


def stage1_loss(model, batch: dict, packing: bool) -> torch.Tensor:
    """The divergence from a cached teacher, whose states are drawn here."""
    width, count = model.config.get_text_config().hidden_size, int(batch["host"].response_mask.sum())
    teacher = torch.randn(count, width, dtype=torch.bfloat16, device=batch["input_ids"].device)

    def compare(states, head):
        return divergence(teacher, states, head, count)["divergence_loss"]

    with torch.autocast(DEVICE, torch.bfloat16):
        return model(**batch, use_adapter=False, packing=packing, response_fn=compare).response


def build_run(size: Size, folder: Path) -> tuple[Model, VAEmotionLLMProcessor]:
    processor = load_processor(size, folder)
    model = build_model(full_config(size, folder, processor))
    keep_trained_in_float32(model)
    return model, processor


# ---- the steps


def imports(size: Size, folder: Path) -> Rows:
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    for module in ("vaemotionllm",) if size.is_tiny else ("vaemotionllm.train.run", "deepspeed"):
        begin = time.monotonic()
        words = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        result = f"{time.monotonic() - begin:.1f} s" if not done.returncode else done.stderr.strip().splitlines()[-1]
        yield f"import {module} without CUDA_HOME", result


def kernels(size: Size, folder: Path) -> Rows:
    dtype = torch.bfloat16
    for head_dim in size.head_dims:
        causal = head_dim == max(size.head_dims)  # the LLM's; the others are of towers
        shape = (1, size.heads, sum(size.sequences), head_dim)
        inputs = [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(3)]
        outward = torch.randn(shape, dtype=dtype, device=DEVICE)
        for name in ("sdpa", *flash_attentions()):
            title = f"{name}, heads of {head_dim}, {'causal' if causal else 'whole'}"
            if name != "sdpa" and (problem := attention_problem(name, dtype, [head_dim], DEVICE)):
                yield title, problem
                continue
            compute = plain_attention if name == "sdpa" else flash_attention(name)
            held: list[float] = []
            forward = partial(compute, inputs, size.sequences, causal)
            both = partial(gradients, forward, inputs, outward)
            with peak(held):
                times = [timed(run, size.repeats) * 1000 for run in (forward, both)]
            yield title, f"forward {times[0]:.2f} ms, with backward {times[1]:.2f} ms, {gib(held)}"


def gradients(forward: Callable[[], torch.Tensor], inputs, outward) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(forward(), inputs, outward)


def packed(size: Size, folder: Path) -> Rows:
    processor = load_processor(size, folder)
    config = full_config(size, folder, processor, layers=None if size.is_tiny else 4)
    model = build_model(config)
    logits = {}

    def run(name: str, attention: str, packing: bool) -> None:
        model.set_attn_implementation(attention)
        batch = build_batch(size, model, processor, "av", 2 * len(size.seconds))
        batch = {name: value.to(model.dtype) if is_float(value) else value for name, value in batch.items()}
        with torch.no_grad():
            logits[name] = model(**batch, use_adapter=False, packing=packing).logits

    for name in flash_attentions():
        if problem := attention_problem(name, torch.bfloat16, heads(model), DEVICE):
            yield name, problem
            continue
        run(f"{name}, packed", name, packing=True)
        run(f"{name}, padded", name, packing=False)
    run("sdpa, packed", "sdpa", packing=True)
    run("sdpa, padded", "sdpa", packing=False)
    model.float()
    run("float32", "sdpa", packing=False)
    expected = logits.pop("float32")
    for name, found in logits.items():
        agree = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
        yield (
            name,
            f"logits differ from float32's by {relative_error(found, expected):.2e}, best token equal {agree:.3f}",
        )


def is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


def loss(size: Size, folder: Path) -> Rows:
    head = torch.nn.Linear(size.hidden, size.vocabulary, bias=False, dtype=torch.bfloat16, device=DEVICE)
    head.requires_grad_(False).weight.normal_(std=3 / size.hidden**0.5)
    teacher = torch.randn(size.positions, size.hidden, dtype=torch.bfloat16, device=DEVICE)
    student = (teacher + 0.1 * torch.randn_like(teacher)).requires_grad_()
    chosen = chunk_tokens_for(size.vocabulary, DEVICE)
    for chunk in sorted({*size.chunks, min(chosen, size.positions)}):
        held: list[float] = []

        run = partial(divergence, teacher, student, head, chunk_tokens=chunk)
        with peak(held):
            seconds = timed(lambda run=run: run()["divergence_loss"].backward(), size.repeats)
        note = ", the one that is chosen" if chunk == min(chosen, size.positions) else ""
        yield f"{size.positions} positions, {chunk} at a time{note}", f"{seconds * 1000:.1f} ms, {gib(held)}"


def training(size: Size, folder: Path) -> Rows:
    model, processor = build_run(size, folder)
    names = [name for name in flash_attentions() if not attention_problem(name, torch.bfloat16, heads(model), DEVICE)]
    best = min(names, key=lambda name: "324".index(name[-1]), default="sdpa")
    yield "FlashAttention that computes every head", best if names else "none"
    flops = useful_flops(size, folder, processor)
    yield "FLOPs of a clip", f"{flops / 1e12:.3g} TFLOP"
    model.enable_input_require_grads()
    for clips, checkpointing, attention, engine in size.runs:
        attention = best if attention == "best" else attention
        title = f"batch {clips}, {attention}, {'with' if checkpointing else 'no'} checkpointing, {engine}"
        try:
            yield title, train_steps(size, model, processor, clips, checkpointing, attention, engine, flops)
        except torch.OutOfMemoryError:
            yield title, "out of memory"
        model.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def heads(model: Model) -> set[int]:
    return head_dimensions(model.config)


def useful_flops(size: Size, folder: Path, processor) -> float:
    """FLOPs of a clip, the mean of the student's two modalities and of the audio's lengths."""
    with torch.device("meta"):
        model = Model._from_config(full_config(size, folder, processor), dtype=torch.bfloat16)
    freeze_all_but(model, TRAINED)
    found = []
    for seconds in size.seconds:
        lengths = (seconds, size.frames, size.side_px**2, size.prompt_tokens, size.response_tokens)
        _, flops = count_clip(model, *lengths)
        both = flops["audio_tower"] + flops["audio_projector"] + flops["head_and_loss"]
        found.append(both + (flops["llm_audio"] + flops["llm_av"] + flops["vision_tower"]) / 2)
    return statistics.mean(found)


def train_steps(size, model, processor, clips, checkpointing, attention, engine, flops) -> str:
    """A step with audio and one with both, each forward, backward and update: time, peak, clips a second, MFU."""
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    set_modes(model, TRAINED)
    batches = [build_batch(size, model, processor, modality, clips) for modality in ("audio", "av")]
    update, run_model, backward = engine_of(engine, model, clips)
    held: list[float] = []

    def step():
        for batch in batches:
            backward(stage1_loss(run_model, batch, packing="flash" in attention))
            update()

    with peak(held):
        seconds = timed(step, size.repeats)
    rate = len(batches) * clips / seconds
    return f"{seconds:.3f} s for {len(batches) * clips} clips, {gib(held)}, {rate:.1f} clips/s, {mfu(flops * rate)}"


def mfu(flops_per_s: float) -> str:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
    known = next((peak for part, peak in PEAKS.items() if part in name), None)
    return f"MFU {flops_per_s / known / 1e12:.3f}" if known else "MFU not known"


def engine_of(name: str, model: Model, clips: int) -> tuple[Callable, Callable, Callable]:
    """What updates the weights, what runs the model, and what goes backward."""
    if name == "torch":
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=DEVICE == "cuda")

        def update():
            optimizer.step()
            optimizer.zero_grad()

        return update, model, torch.Tensor.backward
    import deepspeed

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29555",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
    settings |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "gradient_clipping": 1.0}
    settings |= {"train_micro_batch_size_per_gpu": clips, "train_batch_size": clips, "gradient_accumulation_steps": 1}
    settings["zero_optimization"]["reduce_bucket_size"] = 50_000_000
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine.step, engine, engine.backward


def syncs(size: Size, folder: Path) -> Rows:
    """torch warns of each wait; on a CPU the emulator counts."""
    model, processor = build_run(size, folder)
    attention = next(iter(flash_attentions()), "sdpa")
    if attention != "sdpa" and attention_problem(attention, torch.bfloat16, heads(model), DEVICE):
        attention = "sdpa"
    model.set_attn_implementation(attention)
    set_modes(model, TRAINED)
    for modality in ("audio", "av"):
        batch = build_batch(size, model, processor, modality, size.batch)
        if DEVICE == "cpu":
            found = emulated_waits(model, batch, "flash" in attention)
        else:
            run = lambda batch=batch: stage1_loss(model, batch, "flash" in attention).backward()
            run()
            found = device_waits(run)
        most = ", ".join(f"{count} at {place}" for place, count in found.most_common(3))
        yield f"{modality}, {attention}", f"{found.total()} waits forward and backward" + (f"; {most}" if most else "")


def device_waits(run: Callable[[], object]) -> collections.Counter:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    return collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)


def emulated_waits(model: Model, batch: dict, packing: bool) -> collections.Counter:
    with Cuda() as cuda:
        cuda.move(model)
        moved = {name: cuda.tensor(v) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        model(**moved, use_adapter=False, packing=packing).logits.float().sum().backward()
    found: collections.Counter = collections.Counter()
    for (_, place), count in cuda.syncs.items():
        found[place] += count
    return found


def generation(size: Size, folder: Path) -> Rows:
    processor = load_processor(size, folder)
    model = build_model(full_config(size, folder, processor))
    rng, render = np.random.default_rng(0), ConversationRenderer(processor)
    prompts = []
    for _, seconds in zip(range(size.batch), itertools.cycle(size.seconds)):
        wave = 0.1 * rng.normal(size=int(processor.sampling_rate * seconds)).astype(np.float32)
        prompts.append((render.prompt(["audio"], "x" * size.prompt_tokens), processor.encode_audio(wave)))
    options = {"max_new_tokens": size.new_tokens, "min_new_tokens": size.new_tokens, "do_sample": False}

    def answer(texts, media):
        inputs = {name: on_device(value) for name, value in build_inputs(processor, texts, media).items()}
        width = inputs["input_ids"].shape[1]
        return model.generate(**inputs, **options)[:, width:].cpu()

    for name in ("sdpa", *flash_attentions()):
        if name != "sdpa" and attention_problem(name, torch.bfloat16, heads(model), DEVICE):
            continue
        model.set_attn_implementation(name)
        found = {}
        times = {}
        for way, calls in (("padded", [prompts]), ("unpadded", [[prompt] for prompt in prompts])):
            answers = lambda calls=calls: torch.cat([answer(*map(list, zip(*call))) for call in calls])
            found[way] = answers()
            times[way] = timed(answers, size.repeats)
        tokens = size.batch * size.new_tokens
        equal = (found["padded"] == found["unpadded"]).float().mean().item()
        yield (
            f"{name}, {size.batch} prompts",
            f"{tokens / times['padded']:.1f} tokens/s padded, {tokens / times['unpadded']:.1f} one by one; "
            f"equal tokens {equal:.3f}",
        )


def nano(size: Size, folder: Path) -> Rows:
    """Both stages on a small model; resumed at step 2, they must equal one that was not stopped."""
    setup = json.loads((folder / "setup.json").read_text())
    for stage, values_of in ((1, small.stage1_values), (2, small.stage2_values)):
        options = {"bf16": True, "use_cpu": DEVICE == "cpu", "save_steps": 2, "lr_scheduler_type": "constant"}
        small.train(values_of(*setup, folder / f"whole{stage}", max_steps=4, **options))
        for steps in (2, 4):
            small.train(values_of(*setup, folder / f"cut{stage}", max_steps=steps, **options))
        whole, cut = (small.losses_of(folder / f"{name}{stage}") for name in ("whole", "cut"))
        error = max(abs(one["loss"] - two["loss"]) / abs(one["loss"]) for one, two in zip(whole, cut, strict=True))
        yield f"stage {stage}, 4 steps in bf16, resumed after 2", f"losses differ by {error:.1e} of their size at most"


def offload(size: Size, folder: Path) -> Rows:
    if not importlib.util.find_spec("deepspeed"):
        raise NotAvailable("deepspeed is not installed")
    setup, begin = json.loads((folder / "setup.json").read_text()), time.monotonic()
    settings = {"deepspeed": str(ROOT / "configs" / "deepspeed" / "zero3_offload.json"), "bf16": True, "max_steps": 2}
    settings["use_cpu"] = DEVICE == "cpu"
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29556",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    small.train(small.stage1_values(*setup, folder / "run", **settings))
    losses = [f"{row['loss']:.4f}" for row in small.losses_of(folder / "run")]
    yield (
        "stage 1 on a small model, ZeRO-3, weights and optimizer in RAM",
        (f"losses {', '.join(losses)}; {time.monotonic() - begin:.1f} s with what is compiled"),
    )


def four_bit(size: Size, folder: Path) -> Rows:
    if not importlib.util.find_spec("bitsandbytes"):
        raise NotAvailable("bitsandbytes is not installed")
    from bitsandbytes.nn import Linear4bit

    wide = size.hidden * 4
    linears = {
        "bfloat16": torch.nn.Linear(size.hidden, wide, bias=False, dtype=torch.bfloat16, device=DEVICE),
        "4-bit": Linear4bit(
            size.hidden, wide, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="cpu"
        ).to(DEVICE),
    }
    states = torch.randn(size.positions, size.hidden, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    for name, linear in linears.items():
        linear.requires_grad_(False)
        seconds = timed(lambda linear=linear: linear(states).sum().backward(), size.repeats)
        weight = linear.weight
        held = weight.numel() * weight.element_size() / MIB
        yield f"{name}, {size.hidden} x {wide}", f"{seconds * 1000:.2f} ms forward and backward, {held:.1f} MiB"


# step -> (its function, the most seconds that it may take)
STEPS: dict[str, tuple[Callable[[Size, Path], Rows], float]] = {
    "imports": (imports, 60),
    "kernels": (kernels, 50),
    "packed": (packed, 50),
    "loss": (loss, 30),
    "training": (training, 150),
    "syncs": (syncs, 40),
    "generation": (generation, 50),
    "nano": (nano, 60),
    "offload": (offload, 60),
    "four_bit": (four_bit, 30),
}


# ---- running them


def run_step(name: str, size: Size, folder: Path, connection) -> None:
    """In the fork: sends each row, then how it ended."""
    os.setsid()  # what it starts itself, such as a compiler, ends with it
    quiet()
    warnings.simplefilter("ignore")
    emulated = emulated_flash.installed(half_only=False) if DEVICE == "cpu" else contextlib.nullcontext()
    # What the trainer prints is not a result.
    with emulated, contextlib.redirect_stdout(io.StringIO()):
        try:
            for row in STEPS[name][0](size, folder):
                connection.send(row)
            connection.send("measured")
        except NotAvailable as reason:
            connection.send(f"not available: {reason}")
        except Exception as error:  # the outcome of this step, whatever it is
            connection.send(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def measure(name: str, size: Size, folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """Outcome of a step, and the rows that it measured."""
    # On a CPU DeepSpeed compiles its operators once in an environment, which takes minutes.
    context, limit_s = multiprocessing.get_context("fork"), STEPS[name][1] * (15 if size.is_tiny else 1)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_step, args=(name, size, folder, sender))
    begin, rows, outcome = time.monotonic(), [], ""
    process.start()
    sender.close()
    try:
        while not outcome:
            if not receiver.poll(max(0, begin + limit_s - time.monotonic())):
                outcome = f"stopped after its {limit_s:g} s"
                break
            found = receiver.recv()
            if isinstance(found, str):
                outcome = found
            else:
                rows.append(found)
                print(f"  {found[0]}: {found[1]}", flush=True)
    except EOFError:
        process.join()
        outcome = f"failed: its process ended with code {process.exitcode}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    return f"{outcome} ({time.monotonic() - begin:.0f} s)", rows


def describe(size: Size, folder: Path, sender) -> None:
    quiet()
    prepare(size, folder)
    sender.send(machine())


def start(size: Size, folder: Path) -> str:
    """Prepares the folder, in a fork; device and versions in one line."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=describe, args=(size, folder, sender))
    process.start()
    sender.close()
    line = receiver.recv()
    process.join()
    packages = [
        name for name in ("flash-attn", "flash-attn-3", "flash-attn-4", "deepspeed", "bitsandbytes", "kernels")
    ]
    found = [f"{name} {version(name)}" for name in packages if is_installed(name)]
    return ", ".join([line, *found])


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def as_markdown(line: str, results: dict[str, tuple[str, list[tuple[str, str]]]], seconds: float) -> str:
    lines = [f"{line}; {seconds:.0f} s in all.", "", "| step | measured | |", "| --- | --- | --- |"]
    for name, (outcome, rows) in results.items():
        lines.append(f"| {name} | {outcome.replace('|', '/')} | |")
        lines += [f"| | {what} | {value.replace('|', '/')} |" for what, value in rows]
    return "\n".join(lines)


def write_results(file: Path, text: str) -> None:
    """Put the text between the marks of a file."""
    begin, end = MARKS
    before, _, rest = file.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; of itself where there is no GPU")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"some of: {', '.join(STEPS)}")
    args = parser.parse_args()
    size = TINY if args.tiny or DEVICE == "cpu" else Size()
    begin, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        line = start(size, Path(folder))
        print(line, flush=True)
        for name in args.only or STEPS:
            print(f"{name}", flush=True)
            results[name] = measure(name, size, Path(folder))
            print(f"  {results[name][0]}", flush=True)
    text = as_markdown(line, results, time.monotonic() - begin)
    print(f"\n{text}\n")
    if not size.is_tiny and not args.only:
        write_results(ROOT / "benchmarks" / "RESULTS.md", text)
    print(json.dumps({name: {"outcome": outcome, "rows": dict(rows)} for name, (outcome, rows) in results.items()}))
    return int(any(outcome.startswith(("failed", "stopped")) for outcome, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
