"""Builds the nano backbone, a small vision-language model that sees, and keeps it in the user's cache folder."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from ..utils import InputError, arithmetic, cache_dir
from .backbone_model import build_audio, build_vlm
from .clips import FORMAT as CLIP_FORMAT
from .clips import WorldConfig
from .seeing_batches import MERGE, PATCH_PX
from .seeing_trainer import CHECKPOINT, BackboneConfig, train_to_see
from .tokenizer import build_processor

logger = logging.getLogger(__name__)

# Raise it when the same config gives other weights than before.
FORMAT = 1
CONFIG_FILE = "nano_backbone.json"


def _describe(config: BackboneConfig) -> dict:
    return {
        "format": FORMAT,
        "backbone": config.as_dict(),
        "world_format": CLIP_FORMAT,
        "world": WorldConfig(seed=config.seed).as_dict(),
        # Rounding decides the weights as the config does; a cache may hold builds of several environments.
        "arithmetic": arithmetic(),
        "torch": torch.__version__.partition("+")[0],
    }


def cached_path(seed: int = 0, config: BackboneConfig | None = None) -> Path:
    """Folder of the cache that holds this backbone once it is built; another config is another folder."""
    description = _describe(config or BackboneConfig(seed=seed))
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "nano" / f"backbone-{key}"


def build_backbone(
    seed: int = 0,
    out_dir: str | Path | None = None,
    progress: bool = True,
    config: BackboneConfig | None = None,
) -> Path:
    """Trains the nano backbone, or finds it in the cache.

    A build that was killed goes on from its last checkpoint; a second process that wants the same backbone waits for
    the first one.

    Args:
        seed: seed of weights and clips (ignored where `config` is given).
        out_dir: also copy the backbone to this folder: a new or empty one, or one that holds it already.
        progress: show a progress bar.
        config: every other property of the backbone.

    Returns:
        `out_dir`, or the folder in the cache. It holds `vlm/` (Qwen2.5-VL classes, with their processor), `audio/`
        (an untrained Whisper, with its feature extractor) and `metrics.jsonl` (the learning curve).

    Raises:
        InputError: `out_dir` holds something else.
    """
    config = config or BackboneConfig(seed=seed)
    if out_dir is not None:
        out_dir = Path(out_dir).expanduser().absolute()
        if _holds(out_dir, config):
            return out_dir
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise InputError(f"{out_dir} exists and is not an empty folder; name a new one or remove it.")
    target = cached_path(config=config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            _build(config, target, progress)
    if out_dir is None:
        return target
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # Copied beside the target and renamed, so that a folder under the final name is always whole.
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        shutil.copytree(target, partial / "copy")
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(partial / "copy", out_dir)
    finally:
        shutil.rmtree(partial)
    return out_dir


def _holds(folder: Path, config: BackboneConfig) -> bool:
    file = folder / CONFIG_FILE
    return file.is_file() and file.read_text() == _as_text(config)


def _as_text(config: BackboneConfig) -> str:
    return json.dumps(_describe(config), indent=2) + "\n"


def _build(config: BackboneConfig, target: Path, progress: bool) -> None:
    """Trains in `.<name>.partial`, which holds the checkpoint, and renames it when everything is written."""
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        world = WorldConfig(seed=config.seed)
        processor = build_processor(world.size_px, PATCH_PX, MERGE)
        vlm = build_vlm(processor.tokenizer, config.hidden, config.layers, config.vision_layers)
        audio, extractor = build_audio(config.hidden)
        train_to_see(vlm, processor.tokenizer, config, world, partial, progress)
    vlm.save_pretrained(partial / "vlm")
    processor.save_pretrained(partial / "vlm")
    audio.save_pretrained(partial / "audio")
    extractor.save_pretrained(partial / "audio")
    (partial / CONFIG_FILE).write_text(_as_text(config))
    for name in (CHECKPOINT, "checkpoint.pt"):  # the second was the name when it was a pickle
        (partial / name).unlink(missing_ok=True)
    os.replace(partial, target)
    logger.info("built the nano backbone in %s", target)
