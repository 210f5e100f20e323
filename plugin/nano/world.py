"""Builds the nano world on disk: media, manifest and benchmark folder, reproducible from one seed."""

import hashlib
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from ..utils import InputError
from .clips import WorldConfig, sample_clip
from .items import LICENSE, SOURCE, benchmark_items
from .language import caption
from .writing import media_names, write_clip

logger = logging.getLogger(__name__)

# Raise it when the same config gives other files than before.
FORMAT = 2
DEFAULT_SIZES = {"train": 2400, "validation": 384, "benchmark": 384}
WORLD_FILE = "world.json"


def _media_folder(split: str) -> str:
    # The benchmark folder stands on its own, so its media lie inside it.
    return "benchmark/media" if split == "benchmark" else f"media/{split}"


def _check_sizes(sizes: Mapping[str, int] | None) -> dict[str, int]:
    sizes = dict(DEFAULT_SIZES if sizes is None else sizes)
    if unknown := set(sizes) - set(DEFAULT_SIZES):
        raise InputError(f"unknown splits {sorted(unknown)}; allowed: {', '.join(DEFAULT_SIZES)}.")
    for split, size in sizes.items():
        if not isinstance(size, int) or size < 0:
            raise InputError(f"the size of split {split!r} is {size!r}; give an integer from 0.")
    sizes = {split: sizes.get(split, 0) for split in DEFAULT_SIZES}
    if not any(sizes.values()):
        raise InputError("every split has size 0; give at least one split a positive size.")
    return sizes


def _describe(config: WorldConfig, sizes: Mapping[str, int]) -> dict:
    return {"format": FORMAT, "config": config.as_dict(), "sizes": dict(sizes)}


def _key(description: dict) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def world_key(seed: int, sizes: Mapping[str, int]) -> str:
    """Twelve hexadecimal digits that stand for a world of the default config: its seed, sizes and every property."""
    return _key(_describe(WorldConfig(seed=seed), _check_sizes(sizes)))


def manifest_row(config: WorldConfig, split: str, index: int) -> dict:
    """The manifest row of one clip; media paths are relative to the world's folder."""
    clip = sample_clip(config, split, index)
    row = {
        "id": clip.id,
        "split": split,
        **{field: f"{_media_folder(split)}/{name}" for field, name in media_names(clip).items()},
        "start_s": 0.0,
        "end_s": config.clip_s,
        "source": SOURCE,
        "license": LICENSE,
        "content": clip.content,
        "emotion": clip.emotion,
        "valence": round(clip.valence, 6),
        "arousal": round(clip.arousal, 6),
        "art_form": clip.art_form,
    }
    row["caption"] = caption(row)
    return row


def _write(task: tuple[WorldConfig, str, list[int], str]) -> int:
    config, split, indices, folder = task
    for index in indices:
        write_clip(config, sample_clip(config, split, index), Path(folder))
    return len(indices)


def _tasks(config, sizes, folder: Path, chunk: int = 16):
    for split, size in sizes.items():
        for start in range(0, size, chunk):
            indices = list(range(start, min(start + chunk, size)))
            yield config, split, indices, str(folder / _media_folder(split))


def _write_media(config, sizes, folder: Path, workers: int, progress: bool) -> None:
    tasks = list(_tasks(config, sizes, folder))
    bar = tqdm(total=sum(sizes.values()), desc="nano world", unit="clip", disable=not progress)
    with bar:
        if workers <= 1:
            for task in tasks:
                bar.update(_write(task))
            return
        # Fork lets scripts without a __main__ guard build a world; the workers use no torch. Elsewhere spawn is safer.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for done in pool.map(_write, tasks):
                bar.update(done)


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _assert_disjoint(config: WorldConfig, sizes: Mapping[str, int]) -> None:
    """No two clips of the world are the same point of the latent space."""
    seen = {}
    for split, size in sizes.items():
        for index in range(size):
            clip = sample_clip(config, split, index)
            key = (clip.content, clip.valence, clip.arousal, clip.seen.valence, clip.heard.valence)
            if key in seen:
                raise RuntimeError(f"clips {seen[key]} and {clip.id} are identical")
            seen[key] = clip.id


def build_world(
    out_dir: str | Path,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: bool = True,
    workers: int | None = None,
    config: WorldConfig | None = None,
) -> Path:
    """Writes the nano world to `out_dir` and returns the path of its manifest.

    The folder appears under its final name only when it is complete. A build that was killed goes on where it was,
    and a finished world of the same config and sizes is reused.

    Args:
        out_dir: folder to create.
        seed: seed of the world (ignored where `config` is given).
        sizes: clips a split, by name: train, validation, benchmark. Default: `DEFAULT_SIZES`.
        progress: show a progress bar.
        workers: processes that render; default: one a core, eight at most.
        config: every other property of the world.

    Raises:
        InputError: for unknown splits or sizes, and where `out_dir` holds something else.
    """
    sizes = _check_sizes(sizes)
    config = config or WorldConfig(seed=seed)
    out_dir = Path(out_dir).expanduser().absolute()
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    description = _describe(config, sizes)
    key = _key(description)
    partial = out_dir.with_name(f".{out_dir.name}.{key}.partial")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if _is_finished(out_dir, description):
            return out_dir / "manifest.jsonl"
        _assert_disjoint(config, sizes)
        for split in sizes:
            (partial / _media_folder(split)).mkdir(parents=True, exist_ok=True)
        _write_media(config, sizes, partial, workers, progress)
        rows = [manifest_row(config, split, index) for split, size in sizes.items() for index in range(size)]
        _write_jsonl(partial / "manifest.jsonl", rows)
        _write_benchmark(partial / "benchmark", rows, config.seed)
        _write_json(partial / WORLD_FILE, description)
        if out_dir.exists():
            out_dir.rmdir()  # empty: checked by _is_finished
        os.replace(partial, out_dir)
    logger.info("wrote %d clips to %s", len(rows), out_dir)
    return out_dir / "manifest.jsonl"


def _is_finished(out_dir: Path, description: dict) -> bool:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    world_file = out_dir / WORLD_FILE
    try:
        found = json.loads(world_file.read_text())
    except (OSError, ValueError) as error:  # no such file, or not JSON
        raise InputError(
            f"{out_dir} holds something else than a nano world; choose an empty or a new folder."
        ) from error
    if found != description:
        raise InputError(
            f"{out_dir} holds a nano world of another format, seed, size or config (see {world_file}); "
            "choose another folder or delete this one."
        )
    return True


def _write_benchmark(folder: Path, rows: list[dict], seed: int) -> None:
    prefix = "benchmark/"
    rows = [
        row | {key: row[key].removeprefix(prefix) for key in ("audio", "video", "image") if row.get(key)}
        for row in rows
        if row["split"] == "benchmark"
    ]
    items = benchmark_items(rows, seed)
    _write_jsonl(folder / "test.jsonl", items)
    _write_json(
        folder / "benchmark.json",
        {
            "format": 1,
            "name": "nano (procedural art world)",
            "nano": True,
            "seed": seed,
            "clips": len(rows),
            "items": len(items),
        },
    )
