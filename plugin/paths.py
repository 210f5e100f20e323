"""Folders that the package reads and writes outside a run's output folder, and folders that are whole or not there."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


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


def check_new(out: Path, option: str) -> None:
    """Raise an InputError where `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{option} {out} exists and is not an empty folder; name a new one or remove it")


@contextlib.contextmanager
def new_folder(out: Path, option: str) -> Iterator[Path]:
    """A folder to write into, beside `out`, that gets its name when the body has ended well and goes otherwise.

    Args:
        out: the final folder; it may exist empty.
        option: what the user calls it, for the error.

    Raises:
        InputError: see `check_new`.
    """
    check_new(out, option)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
