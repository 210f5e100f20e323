"""A benchmark folder: `test.jsonl` with one item a line, `benchmark.json` about the whole, media inside the folder.

A folder with parquet shards that embed the media, `data/test-*.parquet`, as the Hub holds them, is unpacked once into
that form: lmms-eval's tasks and most adapters take paths, so the media become files in the user's cache, named by
their hash. Nothing that a shard holds becomes part of a file name but one of a few known suffixes.
"""

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ..data.manifest import parse_medium, warn_of_spellings
from ..model.inputs import MODALITIES
from ..utils import (
    InputError,
    atomic_file,
    cache_dir,
    check_name,
    read_json,
    read_json_lines,
    sha256_of_file,
    sha256_of_json,
    shown,
    write_json_lines,
)

logger = logging.getLogger(__name__)

ITEMS_FILE = "test.jsonl"
INFO_FILE = "benchmark.json"
SHARDS = "data/test-*.parquet"
FORMAT = 1
# Raise it when the same shards give other files than before.
UNPACKING = 1
# Items that are in memory at once while shards are unpacked: each may hold a video.
BATCH_ITEMS = 8
# Threads that hash, decode and copy media. Each holds one clip.
WORKERS = min(8, os.cpu_count() or 1)

ASPECTS = ("content", "emotion")
REQUIRED = ("id", "clip_id", "modality", "aspect", "question", "options", "answer")
MEDIA = ("audio", "image", "video")
_MEDIA_OF = {"audio": (["audio"],), "visual": (["image"], ["video"]), "av": (["audio", "image"], ["audio", "video"])}
OPTIONAL = (*MEDIA, "valence", "arousal", "emotion_distribution", "art_form", "license", "source")
SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .opus .aif .aiff .m4a .aac .mp4 .m4v .mov .webm .mkv .avi .png .jpg .jpeg .webp .gif .bmp "
    ".tif .tiff".split()
)
# First bytes of a file, for media without a name: (offset, bytes, suffix).
_BEGINNINGS = (
    (8, b"WAVE", ".wav"), (0, b"fLaC", ".flac"), (0, b"OggS", ".ogg"), (0, b"ID3", ".mp3"), (0, b"\xff\xfb", ".mp3"),
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (8, b"WEBP", ".webp"), (0, b"GIF8", ".gif"),
    (4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"),
)  # fmt: skip

Text = Annotated[str, Field(min_length=1)]
Modality = Annotated[str, Field(pattern=f"^({'|'.join(MODALITIES)})$")]
Aspect = Annotated[str, Field(pattern=f"^({'|'.join(ASPECTS)})$")]
Share = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Coordinate = Annotated[float, Field(ge=-1, le=1, strict=True)]


@dataclass(frozen=True)
class Item:
    """One question about one clip under one modality.

    Args:
        id: unique in the benchmark.
        clip_id: the clip; questions about one clip are not independent, intervals cluster by it.
        modality: "audio", "visual" or "av": what the model is given.
        aspect: "content" or "emotion".
        question, options, answer: multiple choice; `answer` is one of `options`.
        audio, image, video: absolute paths of the media of the modality; the others are None.
        valence, arousal: in [-1, 1], or None.
        emotion_distribution: label -> share of the annotators, or None.
    """

    id: Text
    clip_id: Text
    modality: Modality
    aspect: Aspect
    question: Text
    options: Annotated[tuple[Text, ...], Field(min_length=2, max_length=26)]
    answer: Text
    audio: str | None = None
    image: str | None = None
    video: str | None = None
    valence: Coordinate | None = None
    arousal: Coordinate | None = None
    emotion_distribution: dict[str, Share] | None = None
    art_form: str | None = None
    license: str | None = None
    source: str | None = None


_ITEM = TypeAdapter(Item)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was read and checked. `info` is the content of benchmark.json."""

    folder: Path
    items: tuple[Item, ...]
    info: dict

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder.name)

    @property
    def is_nano(self) -> bool:
        return bool(self.info.get("nano"))

    def select(self, aspect: str | None = None, modality: str | None = None) -> list[Item]:
        """Items of an aspect and a modality, in the file's order."""
        return [item for item in self.items if aspect in (None, item.aspect) and modality in (None, item.modality)]


def load(folder: str | Path) -> Benchmark:
    """Reads and checks a benchmark folder, of `test.jsonl` and media or of parquet shards with embedded media.

    Returns:
        The benchmark. Where the folder holds shards, `Benchmark.folder` is the one in the user's cache into which
        they were unpacked.

    Raises:
        InputError: naming the file and line, the item, the column, what was found and what is allowed.
    """
    folder, info = open_folder(folder)
    items = []
    declared = info.get("art_forms")
    for _, item in read_items(folder):
        if isinstance(item, InputError):
            raise item
        if declared and item.art_form is not None and item.art_form not in declared:
            raise InputError(
                f"{folder}: item {item.id!r} has the art_form {item.art_form!r}, which {INFO_FILE} does not declare; "
                f"allowed are {', '.join(declared)}."
            )
        items.append(item)
    if not items:
        raise InputError(f"{folder / ITEMS_FILE} holds no item.")
    for aspect in ASPECTS:
        options = (label for item in items if item.aspect == aspect for label in item.options)
        warn_of_spellings(dict.fromkeys(options), f"{folder / ITEMS_FILE}, options about the {aspect}")
    return Benchmark(folder, tuple(items), info)


def open_folder(folder: str | Path) -> tuple[Path, dict]:
    """The folder that holds `test.jsonl`, unpacked if need be, and the content of its benchmark.json.

    Raises:
        InputError: no such folder, nothing in it that is a benchmark, a format that this release does not read.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a benchmark folder that holds {ITEMS_FILE}.")
    check_name(folder)
    info_file = folder / INFO_FILE
    info = read_json(info_file, "about the benchmark") if info_file.is_file() else {}
    if not isinstance(info.get("art_forms"), list | None):
        raise InputError(f"{info_file}: `art_forms` is {shown(info['art_forms'])}; a list of texts is needed.")
    # Before anything is unpacked: of a newer format nothing is known.
    if (found := info.get("format", FORMAT)) != FORMAT:
        raise InputError(
            f"{info_file}: this release of vaemotionllm reads format {FORMAT} and not {found!r}. If that is newer, "
            "upgrade the package, or take an older revision of the benchmark."
        )
    if not (folder / ITEMS_FILE).is_file():
        shards = sorted(path for path in folder.glob(SHARDS) if path.is_file())
        if not shards:
            raise InputError(
                f"{folder} holds no {ITEMS_FILE} and no {SHARDS}, so it is not a benchmark folder: one JSON item a "
                "line, or the parquet shards that `vaemotionllm benchmark build` makes, are expected."
            )
        folder = _unpacked(folder, shards)
    return folder, info


def read_items(folder: Path) -> Iterator[tuple[str, Item | InputError]]:
    """(id, item) of each line of `test.jsonl` that is not empty.

    The item is an InputError where the row holds a value that is not allowed, or repeats an id.

    Raises:
        InputError: a line is no JSON object in UTF-8.
    """
    lines: dict[str, int] = {}
    for number, row in read_json_lines(folder / ITEMS_FILE, "line"):
        found = str(row.get("id"))
        where = f"{folder / ITEMS_FILE}, line {number} (item {found!r})"
        try:
            item = _item(row, folder, where)
            if lines.setdefault(item.id, number) != number:
                raise InputError(f"{where}: the id is that of line {lines[item.id]}; ids must be unique.")
        except InputError as error:
            yield found, error
        else:
            yield found, item


def _item(row: dict[str, Any], folder: Path, where: str) -> Item:
    """One row as an `Item`, with absolute media paths; see `load` for the errors."""
    try:
        item = _ITEM.validate_python(row)
    except ValidationError as error:
        wrong = error.errors()[0]
        column = ".".join(map(str, wrong["loc"]))
        found = f"; found {shown(wrong['input'])}" if wrong["type"] != "missing" else ""
        raise InputError(f"{where}: column {column!r}: {wrong['msg']}{found}.") from None
    shares = item.emotion_distribution
    if shares is not None and not math.isclose(sum(shares.values()), 1, abs_tol=1e-3):
        raise InputError(f"{where}: the shares of column 'emotion_distribution' do not sum to 1: {shares}.")
    if len(set(item.options)) < len(item.options) or item.answer not in item.options:
        raise InputError(
            f"{where}: the options are {list(item.options)} and the answer is {item.answer!r}; different options are "
            "needed, and the answer among them."
        )
    media: dict[str, Any] = {name: parse_medium(getattr(item, name), name, where, folder) for name in MEDIA}
    # Each modality carries exactly its media: an image in an audio-only item would leak the answer.
    given = [column for column in MEDIA if media[column]]
    if given not in _MEDIA_OF[item.modality]:
        needed = " or ".join(" and ".join(columns) for columns in _MEDIA_OF[item.modality])
        raise InputError(
            f"{where}: the modality {item.modality!r} needs {needed} and no other medium; given are "
            f"{', '.join(given) or 'none'}."
        )
    return replace(item, **media)


# ---- parquet shards


def _unpacked(folder: Path, shards: Sequence[Path]) -> Path:
    """The folder in the cache that holds what the shards embed, made where it is not there yet.

    It is found by path, size and time of change of the shards and of benchmark.json; an unpacking that was killed
    resumes. Memory holds `BATCH_ITEMS` items at a time, beside one row group's dictionary of media.

    Raises:
        InputError: a shard that is no readable parquet file, or does not embed its media.
    """
    from filelock import FileLock

    root = cache_dir() / "benchmarks"
    root.mkdir(parents=True, exist_ok=True)
    info = folder / INFO_FILE
    paths = [path.resolve() for path in (*shards, info) if path.is_file()]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    out = root / sha256_of_json([UNPACKING, states])[:24]
    with FileLock(root / f".{out.name}.lock"):
        if out.is_dir():
            return out
        logger.info("Unpacking %d shards of %s into %s, once.", len(shards), folder, out)
        partial = root / f".{out.name}.partial"
        (partial / "media").mkdir(parents=True, exist_ok=True)
        write_json_lines(partial / ITEMS_FILE, (row for shard in shards for row in _plain_rows(shard, partial)))
        if info.is_file():
            shutil.copyfile(info, partial / INFO_FILE)
        for leftover in partial.rglob("*.tmp"):  # of an unpacking that was killed
            leftover.unlink()
        os.replace(partial, out)
    return out


def _plain_rows(shard: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard as in `test.jsonl`; their media are written below `out`."""
    for row in _embedded_rows(shard):
        for column in MEDIA:
            row[column] = _written(row.get(column), f"{shard} (item {row.get('id')!r})", out)
        if isinstance(shares := row.get("emotion_distribution"), dict):
            # A struct has every label in every row, the absent ones as None.
            row["emotion_distribution"] = {k: v for k, v in shares.items() if v is not None} or None
        yield row


def _embedded_rows(shard: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard as they stand, with the columns that the schema knows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(shard) as file:
            known = [column for column in (*REQUIRED, *OPTIONAL) if column in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=BATCH_ITEMS, columns=known):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shard} is not a readable parquet file: {error}") from error


def _written(value: object, where: str, out: Path) -> str | None:
    """Writes one embedded medium and returns its path relative to the benchmark folder."""
    name: object = None
    if isinstance(value, dict):
        name, value = value.get("path"), value.get("bytes")
    if value is None and name is None:
        return None
    if not isinstance(value, bytes):
        raise InputError(f"{where}: {name or value!r} is no embedded medium; shards must embed their media.")
    relative = f"media/{hashlib.sha256(value).hexdigest()}{suffix_of(name, value)}"
    if not (out / relative).is_file():
        with atomic_file(out / relative) as temporary:
            temporary.write_bytes(value)
    return relative


def sha256_of_medium(medium: str | bytes) -> str:
    """Hexadecimal SHA-256 of a medium, which is the path of a file or its bytes."""
    return hashlib.sha256(medium).hexdigest() if isinstance(medium, bytes) else sha256_of_file(Path(medium))


def suffix_of(name: object, content: bytes) -> str:
    """Suffix of a medium's file: that of its name where it is a known one, else by the first bytes of the file."""
    suffix = os.path.splitext(name)[1].lower() if isinstance(name, str) else ""
    if suffix in SUFFIXES:
        return suffix
    for offset, beginning, found in _BEGINNINGS:
        if content[offset : offset + len(beginning)] == beginning:
            return found
    return ".bin"
