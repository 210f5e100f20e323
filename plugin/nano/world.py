"""The nano world on disk: media, manifest and benchmark folder, reproducible from one seed."""

import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from ..model.inputs import MODALITIES
from ..utils import InputError, atomic_file, sha256_of_json, write_json_lines
from .audio import synthesize
from .clips import Clip, WorldConfig, sample_clip
from .image import render
from .language import CHOICES, caption

logger = logging.getLogger(__name__)

# Raise it when the same config gives other files than before.
FORMAT = 2
DEFAULT_SIZES = {"train": 2400, "validation": 384, "benchmark": 384}
WORLD_FILE = "world.json"
NUM_OPTIONS = 4
LICENSE = "CC0-1.0"
SOURCE = "vaemotionllm nano world"


def world_key(seed: int, sizes: Mapping[str, int]) -> str:
    """Twelve hexadecimal digits that stand for a world of the default config: its seed, sizes and every property."""
    return sha256_of_json(_describe(WorldConfig(seed=seed), _check_sizes(sizes)))[:12]


def build_world(
    out_dir: str | Path,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: bool = True,
    workers: int | None = None,
    config: WorldConfig | None = None,
) -> Path:
    """Writes the nano world to `out_dir` and returns the path of its manifest.

    The folder appears under its final name only when it is complete. A build that was killed resumes where it was,
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
    partial = out_dir.with_name(f".{out_dir.name}.{sha256_of_json(description)[:12]}.partial")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if _is_finished(out_dir, description):
            return out_dir / "manifest.jsonl"
        for split in sizes:
            (partial / _media_folder(split)).mkdir(parents=True, exist_ok=True)
        _write_media(config, sizes, partial, workers, progress)
        rows = [manifest_row(config, split, index) for split, size in sizes.items() for index in range(size)]
        write_json_lines(partial / "manifest.jsonl", rows)
        _write_benchmark(partial / "benchmark", rows, config.seed)
        _write_json(partial / WORLD_FILE, description)
        for leftover in partial.rglob("*.tmp"):  # of a build that was killed
            leftover.unlink()
        if out_dir.exists():
            out_dir.rmdir()  # empty: checked by _is_finished
        os.replace(partial, out_dir)
    logger.info("wrote %d clips to %s", len(rows), out_dir)
    return out_dir / "manifest.jsonl"


def _describe(config: WorldConfig, sizes: Mapping[str, int]) -> dict:
    return {"format": FORMAT, "config": config.as_dict(), "sizes": dict(sizes)}


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


def _write_json(path: Path, value) -> None:
    """In an own order of keys, not `utils.write_json`'s: the same seed gives the same bytes as ever."""
    path.write_text(json.dumps(value, indent=2) + "\n")


# ---- media


def write_mp4(
    path: Path, config: WorldConfig, frames: np.ndarray | None = None, wave: np.ndarray | None = None
) -> None:
    """Writes the tracks that are given: MPEG-4 part 2 and AAC, which every FFmpeg build has.

    Args:
        frames: uint8 (F, H, W, 3).
        wave: float32 (samples,) in [-1, 1].
    """
    # One thread each: the same bytes on every machine, and the clips are written in parallel anyway. All tracks are
    # added before the first packet: the header names them.
    with av.open(str(path), "w", format="mp4") as container:
        if frames is not None:
            options = {"threads": "1", "qmin": "2", "qmax": "4"}
            video = container.add_stream("mpeg4", rate=config.fps, options=options)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt, video.bit_rate = "yuv420p", 1_500_000
        if wave is not None:
            options = {"threads": "1", "aac_coder": "fast"}
            audio = container.add_stream("aac", rate=config.sampling_rate, layout="mono", options=options)
            audio.bit_rate = 64_000
        if frames is not None:
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, config.fps)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if wave is not None:
            step = 1024  # samples of an AAC frame
            for start in range(0, len(wave), step):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + step], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = config.sampling_rate, start
                frame.time_base = Fraction(1, config.sampling_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


def media_names(clip: Clip) -> dict[str, str]:
    """File name of each manifest field that this clip fills.

    A benchmark's video and audio are two files with one track each: an adapter that takes the audio of a video would
    otherwise get it in visual-only items.
    """
    if clip.art_form == "painting":
        return {"image": f"{clip.id}.png", "audio": f"{clip.id}.wav"}
    return {"video": f"{clip.id}.mp4", "audio": f"{clip.id}.{'m4a' if clip.split == 'benchmark' else 'mp4'}"}


def write_clip(config: WorldConfig, clip: Clip, folder: Path) -> dict[str, str]:
    """Writes the files of one clip, skipping those that are there; returns their names by manifest field.

    A file appears under its final name only when it is complete, so a build that was killed can resume.
    """
    names = media_names(clip)
    if all((folder / name).exists() for name in names.values()):
        return names
    frames, wave = render(config, clip), synthesize(config, clip)
    if clip.art_form == "painting":
        with atomic_file(folder / names["image"]) as path:
            Image.fromarray(frames[0]).save(path, format="PNG")
        with atomic_file(folder / names["audio"]) as path:
            soundfile.write(path, wave, config.sampling_rate, format="WAV", subtype="PCM_16")
    elif names["audio"] == names["video"]:
        with atomic_file(folder / names["video"]) as path:
            write_mp4(path, config, frames, wave)
    else:
        with atomic_file(folder / names["video"]) as path:
            write_mp4(path, config, frames=frames)
        with atomic_file(folder / names["audio"]) as path:
            write_mp4(path, config, wave=wave)
    return names


def _media_folder(split: str) -> str:
    # The benchmark folder stands on its own, so its media lie inside it.
    return "benchmark/media" if split == "benchmark" else f"media/{split}"


def _write_media(config, sizes, folder: Path, workers: int, progress: bool) -> None:
    tasks = [
        (config, split, range(start, min(start + 16, size)), folder / _media_folder(split))
        for split, size in sizes.items()
        for start in range(0, size, 16)
    ]
    with tqdm(total=sum(sizes.values()), desc="nano world", unit="clip", disable=not progress) as bar:
        if workers <= 1:
            for task in tasks:
                bar.update(_write_clips(task))
            return
        # Fork lets scripts without a __main__ guard build a world; the workers use no torch. Elsewhere spawn is safer.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for done in pool.map(_write_clips, tasks):
                bar.update(done)


def _write_clips(task: tuple[WorldConfig, str, range, Path]) -> int:
    config, split, indices, folder = task
    for index in indices:
        write_clip(config, sample_clip(config, split, index), folder)
    return len(indices)


# ---- manifest and benchmark


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


def benchmark_items(rows: list[dict], seed: int) -> list[dict]:
    """Content and emotion items of the clips in `rows`, about each clip under three modalities.

    Options and answer positions are drawn once a clip and aspect, so the three modalities are compared on the same
    questions; each position holds the answer equally often (to within one item).

    Args:
        rows: manifest rows whose media paths are relative to the benchmark folder.
        seed: of the draws.
    """
    items = []
    for aspect_number, (aspect, (question, labels)) in enumerate(CHOICES.items()):
        rng = np.random.default_rng((seed, 77, aspect_number))
        positions = rng.permutation(np.arange(len(rows)) % NUM_OPTIONS)
        for row, position in zip(rows, positions):
            others = [label for label in labels if label != row[aspect]]
            options = [str(label) for label in rng.choice(others, NUM_OPTIONS - 1, replace=False)]
            options.insert(int(position), row[aspect])
            for modality in MODALITIES:
                items.append(
                    {
                        "id": f"{row['id']}-{aspect}-{modality}",
                        "clip_id": row["id"],
                        "modality": modality,
                        "aspect": aspect,
                        "question": question,
                        "options": options,
                        "answer": row[aspect],
                        "audio": row["audio"] if modality != "visual" else None,
                        "image": row.get("image") if modality != "audio" else None,
                        "video": row.get("video") if modality != "audio" else None,
                        "valence": row["valence"],
                        "arousal": row["arousal"],
                        "emotion_distribution": None,
                        "art_form": row["art_form"],
                        "license": row["license"],
                        "source": row["source"],
                    }
                )
    return items


def _write_benchmark(folder: Path, rows: list[dict], seed: int) -> None:
    rows = [
        row | {key: row[key].removeprefix("benchmark/") for key in ("audio", "video", "image") if row.get(key)}
        for row in rows
        if row["split"] == "benchmark"
    ]
    items = benchmark_items(rows, seed)
    write_json_lines(folder / "test.jsonl", items)
    info = {"format": 1, "name": "nano (procedural art world)", "nano": True, "seed": seed, "clips": len(rows)}
    _write_json(folder / "benchmark.json", info | {"items": len(items)})
