"""The nano world on disk: media, manifest and benchmark folder, reproducible from one seed."""

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from ..model.inputs import MODALITIES
from ..utils import InputError, new_folder, read_json, sha256_of_json, write_json_lines
from .audio import synthesize
from .clips import Clip, WorldConfig, sample_clip
from .image import render
from .language import CHOICES, caption

# Raise it when the same config gives other files than before.
FORMAT = 2
DEFAULT_SIZES = {"train": 2400, "validation": 384, "benchmark": 384}
WORLD_FILE = "world.json"
NUM_OPTIONS = 4


def world_key(seed: int, sizes: Mapping[str, int]) -> str:
    """Twelve hexadecimal digits that stand for a world of the default config: its seed, sizes and every property."""
    return sha256_of_json(_describe(WorldConfig(seed=seed), sizes))[:12]


def build_world(
    out_dir: str | Path,
    seed: int = 0,
    sizes: Mapping[str, int] = DEFAULT_SIZES,
    workers: int | None = None,
    config: WorldConfig | None = None,
) -> Path:
    """Writes the nano world to `out_dir` and returns the path of its manifest.

    The folder appears under its final name only when it is complete; one of the same config and sizes is reused.

    Args:
        out_dir: folder to create.
        seed: seed of the world (ignored where `config` is given).
        sizes: clips a split, by name: train, validation, benchmark.
        workers: processes that render; default: one a core, eight at most.
        config: every other property of the world.

    Raises:
        InputError: for unknown splits or sizes, and where `out_dir` holds something else.
    """
    config = config or WorldConfig(seed=seed)
    description = _describe(config, sizes)
    sizes = description["sizes"]
    out_dir = Path(out_dir).expanduser().absolute()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if (out_dir / WORLD_FILE).is_file():
            if read_json(out_dir / WORLD_FILE, "what a nano world was made by") != description:
                raise InputError(
                    f"{out_dir} holds a nano world of another format, seed, size or config (see {WORLD_FILE}); "
                    "choose another folder or delete this one."
                )
            return out_dir / "manifest.jsonl"
        with new_folder(out_dir, "--out") as partial:
            for split in sizes:
                (partial / _media_folder(split)).mkdir(parents=True)
            _write_media(config, sizes, partial, workers or min(8, os.cpu_count() or 1))
            rows = [manifest_row(config, split, index) for split, size in sizes.items() for index in range(size)]
            write_json_lines(partial / "manifest.jsonl", rows)
            _write_benchmark(partial / "benchmark", rows, config.seed)
            _write_json(partial / WORLD_FILE, description)
    return out_dir / "manifest.jsonl"


def _describe(config: WorldConfig, sizes: Mapping[str, int]) -> dict:
    if unknown := set(sizes) - set(DEFAULT_SIZES):
        raise InputError(f"unknown splits {sorted(unknown)}; allowed: {', '.join(DEFAULT_SIZES)}.")
    sizes = {split: sizes.get(split, 0) for split in DEFAULT_SIZES}
    if min(sizes.values()) < 0 or not any(sizes.values()):
        raise InputError(f"the sizes of the splits are {sizes}; give integers from 0, and one above it.")
    return {"format": FORMAT, "config": asdict(config), "sizes": sizes}


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
    """Writes the files of one clip; returns their names by manifest field."""
    names = media_names(clip)
    paths = {field: folder / name for field, name in names.items()}
    frames, wave = render(config, clip), synthesize(config, clip)
    if clip.art_form == "painting":
        Image.fromarray(frames[0]).save(paths["image"])
        soundfile.write(paths["audio"], wave, config.sampling_rate, subtype="PCM_16")
    elif paths["audio"] == paths["video"]:
        write_mp4(paths["video"], config, frames, wave)
    else:
        write_mp4(paths["video"], config, frames)
        write_mp4(paths["audio"], config, wave=wave)
    return names


def _media_folder(split: str) -> str:
    # The benchmark folder stands on its own, so its media lie inside it.
    return "benchmark/media" if split == "benchmark" else f"media/{split}"


def _write_media(config: WorldConfig, sizes: Mapping[str, int], folder: Path, workers: int) -> None:
    clips = [
        (config, split, index, folder / _media_folder(split)) for split, size in sizes.items() for index in range(size)
    ]
    # Fork lets scripts without a __main__ guard build a world; the workers use no torch. Elsewhere spawn is safer.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        done = pool.map(_write_numbered, *zip(*clips), chunksize=16)
        for _ in tqdm(done, total=len(clips), desc="nano world", unit="clip"):
            pass


def _write_numbered(config: WorldConfig, split: str, index: int, folder: Path) -> None:
    write_clip(config, sample_clip(config, split, index), folder)


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
        "source": "vaemotionllm nano world",
        "license": "CC0-1.0",
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
                        **{key: row[key] for key in ("valence", "arousal")},
                        "emotion_distribution": None,
                        **{key: row[key] for key in ("art_form", "license", "source")},
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
