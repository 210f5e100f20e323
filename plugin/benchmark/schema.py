"""A benchmark folder: `test.jsonl` with one item a line, `benchmark.json` about the whole, media inside the folder.

A folder with parquet shards that embed the media, `data/test-*.parquet`, as the Hub holds them, is unpacked once into
that form: lmms-eval's tasks and most adapters take paths, so the media become files in the user's cache, named by
their hash. Nothing that a shard holds becomes part of a file name but one of a few known suffixes.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.inputs import MODALITIES
from ..utils import InputError, atomic_file, cache_dir, read_json, sha256_of_file, write_json_lines

logger = logging.getLogger(__name__)

ITEMS_FILE = "test.jsonl"
INFO_FILE = "benchmark.json"
SHARDS = "data/test-*.parquet"
FORMAT = 1
# Raise it when the same shards give other files than before.
UNPACKING = 1
# Items that are in memory at once while shards are unpacked: each may hold a video.
BATCH_ITEMS = 8

ASPECTS = ("content", "emotion")
REQUIRED = ("id", "clip_id", "modality", "aspect", "question", "options", "answer")
MEDIA = ("audio", "image", "video")
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

    id: str
    clip_id: str
    modality: str
    aspect: str
    question: str
    options: tuple[str, ...]
    answer: str
    audio: str | None = None
    image: str | None = None
    video: str | None = None
    valence: float | None = None
    arousal: float | None = None
    emotion_distribution: dict[str, float] | None = None
    art_form: str | None = None
    license: str | None = None
    source: str | None = None


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
    items: list[Item] = []
    for _, _, item in read_items(folder, info):
        if isinstance(item, InputError):
            raise item
        items.append(item)
    if not items:
        raise InputError(f"{folder / ITEMS_FILE} holds no item.")
    return Benchmark(folder, tuple(items), info)


def open_folder(folder: str | Path) -> tuple[Path, dict]:
    """The folder that holds `test.jsonl`, unpacked if need be, and the content of its benchmark.json.

    Raises:
        InputError: no such folder, nothing in it that is a benchmark, a format that this release does not read.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a benchmark folder that holds {ITEMS_FILE}.")
    # Before anything is unpacked: of a newer format nothing is known.
    info = read_info(folder / INFO_FILE)
    if not (folder / ITEMS_FILE).is_file():
        shards = sorted(path for path in folder.glob(SHARDS) if path.is_file())
        if not shards:
            raise InputError(
                f"{folder} holds no {ITEMS_FILE} and no {SHARDS}, so it is not a benchmark folder; one JSON item a "
                "line, or parquet shards with embedded media, are expected."
            )
        folder = _unpacked(folder, shards)
    return folder, info


def read_items(folder: Path, info: dict) -> Iterator[tuple[int, object, Item | InputError]]:
    """(line number, row, item) of each line of `test.jsonl` that is not empty.

    The item is an InputError where the row is not JSON, holds a value that is not allowed, or repeats an id. The
    benchmark's art forms are those that `info` declares; without any, every art form is allowed.

    Raises:
        InputError: the file is not UTF-8.
    """
    lines: dict[str, int] = {}
    for number, row in enumerate_rows(folder):
        try:
            if isinstance(row, InputError):
                raise row
            item = parse_item(row, folder, where_of(folder, number), info.get("art_forms"))
            if lines.setdefault(item.id, number) != number:
                raise InputError(
                    f"{where_of(folder, number)}: the id {item.id!r} is that of line {lines[item.id]}; ids must be "
                    "unique."
                )
        except InputError as error:
            yield number, row, error
        else:
            yield number, row, item


def enumerate_rows(folder: Path) -> Iterator[tuple[int, "object | InputError"]]:
    """(line number, row) of each line of `test.jsonl` that is not empty; an InputError where it is not JSON.

    Raises:
        InputError: the file is not UTF-8.
    """
    path = folder / ITEMS_FILE
    try:
        # Only a newline ends an item: others, such as U+2028, may stand inside a JSON string.
        with open(path, encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        row = InputError(f"{where_of(folder, number)}: not valid JSON ({error}).")
                    yield number, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); save it in that encoding.") from error


def where_of(folder: Path, number: int) -> str:
    return f"{folder / ITEMS_FILE}, line {number}"


def parse_item(row: object, folder: Path, where: str, art_forms: Sequence[str] | None = None) -> Item:
    """One row as an `Item`, with absolute media paths; see `load` for the errors.

    `art_forms` are those that the benchmark declares; with None every art form is allowed.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: a JSON object is expected, found {type(row).__name__}.")
    missing = [column for column in REQUIRED if row.get(column) is None]
    if missing:
        raise InputError(
            f"{where} (item {row.get('id')!r}): the column {missing[0]!r} is missing. Required are "
            f"{', '.join(REQUIRED)}; found {', '.join(row)}."
        )
    where = f"{where} (item {row['id']!r})"
    for column, (fits, allowed) in _RULES.items():
        _check(fits(row.get(column)), where, column, row.get(column), allowed)
    options, art_form = row["options"], row.get("art_form")
    _check(row["answer"] in options, where, "answer", row["answer"], f"one of the item's options {options}")
    declared = f"one that {INFO_FILE} declares in `art_forms`: {', '.join(art_forms or ())}"
    _check(art_forms is None or art_form is None or art_form in art_forms, where, "art_form", art_form, declared)
    media: dict[str, Any] = {column: _resolve(row.get(column), folder, where, column) for column in MEDIA}
    _check_modality(row["modality"], media, where)
    rest: dict[str, Any] = {column: row.get(column) for column in OPTIONAL if column not in MEDIA}
    return Item(
        **{column: row[column] for column in REQUIRED if column != "options"}, options=tuple(options), **media, **rest
    )


def _check(fits: bool, where: str, column: str, value: object, allowed: str) -> None:
    if not fits:
        raise InputError(f"{where}: column {column!r} is {value!r}; allowed is {allowed}.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_distribution(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_number(share) and share >= 0 for share in value.values())
        and math.isclose(sum(value.values()), 1, abs_tol=1e-3)
    )


def _are_options(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(map(_is_text, value))
        and 2 <= len(value) <= 26
        and len(set(value)) == len(value)
    )


# Column -> (whether a value fits, what is allowed).
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "clip_id", "question", "answer"), (_is_text, "a string that is not empty")),
    "modality": (lambda value: value in MODALITIES, f"one of {', '.join(MODALITIES)}"),
    "aspect": (lambda value: value in ASPECTS, f"one of {', '.join(ASPECTS)}"),
    "options": (_are_options, "a list of 2 to 26 different strings"),
    **dict.fromkeys(
        ("valence", "arousal"),
        (lambda value: value is None or (_is_number(value) and -1 <= value <= 1), "a number in [-1, 1], or null"),
    ),
    "emotion_distribution": (
        lambda value: value is None or _is_distribution(value),
        "an object label -> share whose shares sum to 1, or null",
    ),
    **dict.fromkeys(
        ("art_form", "license", "source"),
        (lambda value: value is None or isinstance(value, str), "a string, or null"),
    ),
}


def _resolve(value: object, folder: Path, where: str, column: str) -> str | None:
    if value is None:
        return None
    _check(_is_text(value), where, column, value, "a path relative to the benchmark folder, or null")
    # As in the manifest, links are not followed: the Hub's cache links every file to a blob outside the snapshot.
    relative = os.path.normpath(str(value))
    path = Path(os.path.abspath(folder)) / relative
    if os.path.isabs(relative) or relative.split(os.sep)[0] == "..":
        raise InputError(
            f"{where}: column {column!r} is {value!r}, which lies outside {folder}; copy the file into it."
        )
    if not path.is_file():
        raise InputError(f"{where}: column {column!r} names {value!r}, but there is no file {path}.")
    return str(path)


def _check_modality(modality: str, media: dict[str, str | None], where: str) -> None:
    """Each modality carries exactly its media: an image in an audio-only item would leak the answer."""
    visual = [column for column in ("image", "video") if media[column]]
    if len(visual) > 1:
        raise InputError(f"{where}: both 'image' and 'video' are set; an item has one of them.")
    for needs, has, columns in (
        (modality != "visual", media["audio"] is not None, "'audio'"),
        (modality != "audio", bool(visual), "'image' or 'video'"),
    ):
        if needs and not has:
            raise InputError(f"{where}: the modality {modality!r} needs {columns}, which is null.")
        if has and not needs:
            raise InputError(f"{where}: the modality {modality!r} must not carry {columns}; set it to null.")


def read_info(path: Path) -> dict:
    """The content of benchmark.json, {} where there is none.

    Raises:
        InputError: no JSON object, another format, a field of a wrong type.
    """
    if not path.is_file():
        return {}
    info = read_json(path, "about the benchmark")
    found = info.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise InputError(
            f"{path}: format {found} is newer than format {FORMAT}, the newest that this release of vaemotionllm "
            "reads. Upgrade the package vaemotionllm, or take an older revision of the benchmark."
        )
    if found != FORMAT:
        raise InputError(f"{path}: format {found!r} is not known; this release reads format {FORMAT}.")
    forms = info.get("art_forms")
    strings = isinstance(forms, list) and bool(forms) and all(isinstance(form, str) and form for form in forms)
    if forms is not None and not strings:
        raise InputError(f"{path}: `art_forms` is {forms!r}; allowed is a list of strings that is not empty, or null.")
    return info


# ---- parquet shards


def _unpacked(folder: Path, shards: Sequence[Path]) -> Path:
    """The folder in the cache that holds what the shards embed, made where it is not there yet.

    It is found by the content of the shards and of benchmark.json; an unpacking that was killed resumes. Memory holds
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
        write_json_lines(partial / ITEMS_FILE, (row for shard in shards for row in _plain_rows(shard, partial)))
        if info.is_file():
            shutil.copyfile(info, partial / INFO_FILE)
        for leftover in partial.rglob("*.tmp"):  # of an unpacking that was killed
            leftover.unlink()
        os.replace(partial, out)
    return out


def _key(files: Sequence[Path], root: Path) -> str:
    """Stands for what the files hold. Their content is hashed once, and again where size or time of change differ."""
    states = [(path.name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    memo = root / f".{hashlib.sha256(json.dumps(states).encode()).hexdigest()[:24]}.key"
    if memo.is_file() and len(key := memo.read_text()) == 24:
        return key
    digest = hashlib.sha256(f"{UNPACKING}".encode())
    for path in files:
        digest.update(f"{path.name} {sha256_of_file(path)}\n".encode())
    with atomic_file(memo) as temporary:
        temporary.write_text(digest.hexdigest()[:24])
    return digest.hexdigest()[:24]


def _plain_rows(shard: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard as in `test.jsonl`; their media are written below `out`."""
    for row in _embedded_rows(shard):
        for column in MEDIA:
            row[column] = _written(row.get(column), column, f"{shard} (item {row['id']!r})", out)
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
