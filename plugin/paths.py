"""Folders that the package reads and writes outside a run's output folder."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder of what can be rebuilt: the nano backbone, the nano benchmark. `VAEMOTIONLLM_CACHE` overrides it."""
    if override := os.environ.get("VAEMOTIONLLM_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vaemotionllm"


def config_dir() -> Path:
    """Folder of the user's own choices, such as `benchmark use`. `VAEMOTIONLLM_CONFIG` overrides it."""
    if override := os.environ.get("VAEMOTIONLLM_CONFIG"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "vaemotionllm"
