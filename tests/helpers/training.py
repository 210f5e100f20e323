"""A tiny model, a tiny world and configs for training tests."""

import os
import sys
from pathlib import Path

import fork_server
import torch
import yaml
from media_files import write_world
from tiny import make_vaemotionllm


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
            {"prompt": "What is seen or heard in this {art_form}?", "answer": "It is {content}."},  # words: fixed
        ],
        "num_frames": 4, "train_audio_tower": True, "lora": {"rank": 2}, "per_device_train_batch_size": 4,
        "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 5e-3, "cache_media": True, "seed": 3,
        "disable_tqdm": True, **changes,
    }  # fmt: skip


def train(values: dict) -> str:
    """Runs a stage in this process."""
    from vaemotionllm.config_file import build_config
    from vaemotionllm.train.config import CONFIGS
    from vaemotionllm.train.run import run

    return run(build_config(CONFIGS[values["stage"]], values))


def write_config(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


TRAIN = ("-m", "vaemotionllm.cli.main", "train")


def command(*words: str):
    """Runs `vaemotionllm train` in a process of its own."""
    return fork_server.run([*TRAIN, *words], process_environment())


def process_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"TOKENIZERS_PARALLELISM": "false", "PATH": path} | changes


MACHINE = ("wall_s", "loader_wait")


def losses_of(output_dir: Path) -> list[dict]:
    """Rows of metrics.jsonl without what depends on the machine."""
    from vaemotionllm.train.checkpoint import complete_rows

    return [
        {k: v for k, v in row.items() if k not in MACHINE} for row in complete_rows(Path(output_dir) / "metrics.jsonl")
    ]


def responses_of(folder: Path) -> tuple[dict, list[dict]]:
    """(header, rows) of a teacher cache, or of a run without one."""
    import json

    import pyarrow as pa

    from vaemotionllm.train.teacher_cache import Rows, read_table

    path = Path(folder) / "responses.arrow"
    header = json.loads(pa.ipc.open_file(path).schema.metadata[b"header"])
    return header, list(Rows(read_table(path, header)))


def make_setup(folder: Path, clips: int = 12, **config_fields) -> tuple[Path, Path]:
    """(model folder, manifest)"""
    return make_model(folder / "models", **config_fields), write_world(folder / "world", clips=clips)
