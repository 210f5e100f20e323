"""Parquet shards with embedded media, as the Hub holds them, unpacked once into a benchmark folder of plain files.

lmms-eval's tasks and most adapters take paths, so the media become files in the user's cache, named by what they hold.
Nothing that a shard says becomes part of a path but one of a few known suffixes.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..utils import InputError, cache_dir
from .schema import INFO_FILE, ITEMS_FILE, MEDIA, OPTIONAL, REQUIRED

logger = logging.getLogger(__name__)

SHARDS = "data/test-*.parquet"
# Raise it when the same shards give other files than before.
UNPACKING = 1
# Items that are in memory at once: each may hold a film.
BATCH_ITEMS = 8
SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .opus .aif .aiff .m4a .aac .mp4 .m4v .mov .webm .mkv .avi .png .jpg .jpeg .webp .gif .bmp "
    ".tif .tiff".split()
)
# What a file begins with, for media without a name. (offset, bytes, suffix)
_BEGINNINGS = (
    (8, b"WAVE", ".wav"), (0, b"fLaC", ".flac"), (0, b"OggS", ".ogg"), (0, b"ID3", ".mp3"), (0, b"\xff\xfb", ".mp3"),
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (8, b"WEBP", ".webp"), (0, b"GIF8", ".gif"),
    (4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"),
)  # fmt: skip


def shards_of(folder: Path) -> list[Path]:
    """The parquet shards of a benchmark folder, in their order."""
    return sorted(path for path in folder.glob(SHARDS) if path.is_file())


def unpacked(folder: Path, shards: Sequence[Path]) -> Path:
    """The folder in the cache that holds what the shards embed, made where it is not there yet.

    It is found by the content of the shards and of benchmark.json; an unpacking that was killed goes on. Memory holds
    `BATCH_ITEMS` items at a time, beside one row group's dictionary of media.

    Raises:
        InputError: a shard that is no readable parquet file, lacks a column, or does not embed its media.
    """
    from filelock import FileLock

    root = cache_dir() / "benchmarks"
    root.mkdir(parents=True, exist_ok=True)
    info = folder / INFO_FILE
    out = root / _key([*shards, *([info] if info.is_file() else [])], root)
    with FileLock(root / f".{out.name}.lock"):
        if out.is_dir():
            return out
        logger.info("Unpacking %d shards of %s into %s, once.", len(shards), folder, out)
        partial = root / f".{out.name}.partial"
        (partial / "media").mkdir(parents=True, exist_ok=True)
        with open(partial / ITEMS_FILE, "w", encoding="utf-8") as lines:
            for shard in shards:
                for row in _rows(shard, partial):
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        if info.is_file():
            shutil.copyfile(info, partial / INFO_FILE)
        os.replace(partial, out)
    return out


def _key(files: Sequence[Path], root: Path) -> str:
    """Stands for what the files hold. Their content is hashed once, and again where size or time of change differ."""
    facts = [(path.name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    memo = root / f".{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.key"
    if memo.is_file() and len(key := memo.read_text()) == 24:
        return key
    digest = hashlib.sha256(f"{UNPACKING}".encode())
    for path in files:
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    temporary = memo.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(digest.hexdigest()[:24])
    os.replace(temporary, memo)
    return digest.hexdigest()[:24]


def _rows(shard: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard as in `test.jsonl`; their media are written below `out`."""
    for row in _read(shard):
        where = f"{shard} (item {row['id']!r})"
        for column in MEDIA:
            row[column] = _written(row.get(column), column, where, out)
        if isinstance(shares := row.get("emotion_distribution"), dict):
            # A struct has every label in every row, the absent ones as None.
            row["emotion_distribution"] = {k: v for k, v in shares.items() if v is not None} or None
        yield row


def _read(shard: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard as they stand, with the columns that the schema knows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(shard) as file:
            found = file.schema_arrow.names
            if missing := [column for column in REQUIRED if column not in found]:
                raise InputError(
                    f"{shard}: the column {missing[0]!r} is missing. Required are {', '.join(REQUIRED)}; found "
                    f"{', '.join(found)}."
                )
            known = [column for column in (*REQUIRED, *OPTIONAL) if column in found]
            for batch in file.iter_batches(batch_size=BATCH_ITEMS, columns=known):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{shard} is not a readable parquet file: {error}") from error


def _written(value: object, column: str, where: str, out: Path) -> str | None:
    """Writes one embedded medium and returns its path relative to the benchmark folder."""
    name: object = None
    if isinstance(value, dict):
        name, value = value.get("path"), value.get("bytes")
    if value is None and name is None:
        return None
    if not isinstance(value, bytes):
        raise InputError(
            f"{where}: column {column!r} embeds no bytes (path {name!r}). Shards must embed their media; a benchmark "
            f"of separate files is a folder with {ITEMS_FILE}."
        )
    relative = f"media/{hashlib.sha256(value).hexdigest()}{suffix_of(name, value)}"
    if not (out / relative).is_file():
        temporary = out / "media" / "writing.tmp"
        temporary.write_bytes(value)
        os.replace(temporary, out / relative)
    return relative


def suffix_of(name: object, content: bytes) -> str:
    """Suffix of a medium's file: that of its name where it is a known one, else by what the file begins with."""
    suffix = os.path.splitext(name)[1].lower() if isinstance(name, str) else ""
    if suffix in SUFFIXES:
        return suffix
    for offset, beginning, found in _BEGINNINGS:
        if content[offset : offset + len(beginning)] == beginning:
            return found
    return ".bin"
