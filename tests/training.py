"""A tiny model, a tiny world and configs for training tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from media_files import write_world
from tiny import make_vaemotionllm

# A command that takes longer hangs: several times what a slow and busy machine needs.
HANG_S = 900


def make_model(folder: Path, **config_fields) -> Path:
    """A tiny VAEmotionLLM that answers by what it sees: with small random weights every KL is almost 0."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration

    path = make_vaemotionllm(folder, **config_fields)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path)
    decoder = model.get_decoder()
    with torch.no_grad():
        for layer in decoder.layers:
            layer.self_attn.v_proj.weight.mul_(8)
            layer.self_attn.o_proj.weight.mul_(8)
        decoder.norm.weight.mul_(15)
    model.save_pretrained(path)
    return path


def stage1_values(model: Path, manifest: Path, output_dir: Path, **changes) -> dict:
    return {
        "stage": 1, "model": str(model), "manifest": str(manifest), "output_dir": str(output_dir),
        "prompts": ["Describe it.", "What is this, and what does it express?"], "responses_per_clip": 2,
        "max_response_tokens": 6, "num_frames": 4, "train_audio_tower": True, "per_device_train_batch_size": 4,
        "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 5e-3, "cache_media": True, "seed": 1,
        "disable_tqdm": True, **changes,
    }  # fmt: skip


def stage2_values(model: Path, manifest: Path, output_dir: Path, **changes) -> dict:
    return {
        "stage": 2, "model": str(model), "manifest": str(manifest), "output_dir": str(output_dir),
        "instructions": [
            {"prompt": "Which emotion?", "answer": "{emotion}"},
            {"prompt": "What is seen or heard in this {art_form}?", "answer": "It is {content}."},
        ],
        "num_frames": 4, "train_audio_tower": True, "lora": {"rank": 2}, "per_device_train_batch_size": 4,
        "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 5e-3, "cache_media": True, "seed": 3,
        "disable_tqdm": True, **changes,
    }  # fmt: skip


def train(values: dict) -> str:
    """Runs a stage in this process."""
    from vaemotionllm.train.config_file import build_config
    from vaemotionllm.train.run import CONFIGS, run

    return run(build_config(CONFIGS[values["stage"]], values))


def free_port() -> str:
    """A port for ranks to meet at, which nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def write_config(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def command(
    *words: str, launcher: tuple[str, ...] = (), timeout_s: float = HANG_S, check: bool = False, **environment: str
):
    """Runs `vaemotionllm train` (or it under a launcher) in a process of its own."""
    program = launcher or (sys.executable, "-m", "vaemotionllm.cli.main", "train")
    return subprocess.run(
        [*program, *map(str, words)], env=process_environment(**environment), capture_output=True, text=True,
        timeout=timeout_s, check=check,
    )  # fmt: skip


def process_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"TOKENIZERS_PARALLELISM": "false", "PATH": path} | changes


MACHINE = ("wall_s", "loader_wait", "padding", "tflops", "mfu")


def losses_of(output_dir: Path) -> list[dict]:
    """Rows of metrics.jsonl without what depends on the machine and on the size of micro-batches."""
    from vaemotionllm.train.metrics import read_metrics

    return [
        {k: v for k, v in row.items() if k not in MACHINE} for row in read_metrics(Path(output_dir) / "metrics.jsonl")
    ]


def make_setup(folder: Path, clips: int = 12, **config_fields) -> tuple[Path, Path]:
    """(model folder, manifest)"""
    return make_model(folder / "models", **config_fields), write_world(folder / "world", clips=clips)
