"""A benchmark folder: `test.jsonl` with one item a line, `benchmark.json` about the whole, media inside the folder.

A folder with parquet shards that embed the media, `data/test-*.parquet`, is unpacked once into that form.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError

ITEMS_FILE = "test.jsonl"
INFO_FILE = "benchmark.json"
FORMAT = 1

ASPECTS = ("content", "emotion")
REQUIRED = ("id", "clip_id", "modality", "aspect", "question", "options", "answer")
MEDIA = ("audio", "image", "video")
OPTIONAL = (*MEDIA, "valence", "arousal", "emotion_distribution", "art_form", "license", "source")


@dataclass(frozen=True)
class Item:
    """One question about one clip under one modality.

    Args:
        id: unique in the benchmark.
        clip_id: the clip; questions about one clip are not independent, intervals cluster by it.
        modality: "audio", "visual" or "av": what the model is given.
        aspect: "content" or "emotion".
        question, options, answer: multiple choice; `answer` is one of `options`.
        audio, image, video: absolute paths of what the modality may see; the others are None.
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
    """A benchmark that was read and checked. `info` is what benchmark.json says; `nano` marks the embedded set."""

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
    seen: dict[str, int] = {}
    for number, row in enumerate_rows(folder):
        if isinstance(row, InputError):
            raise row
        item = parse_item(row, folder, where_of(folder, number), info.get("art_forms"))
        check_new_id(item, number, seen, folder)
        items.append(item)
    if not items:
        raise InputError(f"{folder / ITEMS_FILE} holds no item.")
    return Benchmark(folder, tuple(items), info)


def open_folder(folder: str | Path) -> tuple[Path, dict]:
    """The folder that holds `test.jsonl`, unpacked if need be, and what its benchmark.json says.

    Raises:
        InputError: no such folder, nothing in it that is a benchmark, a format that this release does not read.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a benchmark folder that holds {ITEMS_FILE}.")
    # Before anything is unpacked: of a newer format nothing is known.
    info = read_info(folder / INFO_FILE)
    if not (folder / ITEMS_FILE).is_file():
        from . import unpack

        shards = unpack.shards_of(folder)
        if not shards:
            raise InputError(
                f"{folder} holds no {ITEMS_FILE} and no {unpack.SHARDS}, so it is not a benchmark folder; one JSON "
                "item a line, or parquet shards with embedded media, are expected."
            )
        folder = unpack.unpacked(folder, shards)
    return folder, info


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


def check_new_id(item: Item, number: int, seen: dict[str, int], folder: Path) -> None:
    """Notes the item's id in `seen` {id: line}.

    Raises:
        InputError: another line has it.
    """
    if item.id in seen:
        raise InputError(
            f"{where_of(folder, number)}: the id {item.id!r} is that of line {seen[item.id]}; ids must be unique."
        )
    seen[item.id] = number


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
    for column in ("id", "clip_id", "question", "answer"):
        _check(
            isinstance(row[column], str) and row[column] != "",
            where,
            column,
            row[column],
            "a string that is not empty",
        )
    _check(row["modality"] in MODALITIES, where, "modality", row["modality"], f"one of {', '.join(MODALITIES)}")
    _check(row["aspect"] in ASPECTS, where, "aspect", row["aspect"], f"one of {', '.join(ASPECTS)}")
    options = row["options"]
    strings = isinstance(options, list) and all(isinstance(option, str) and option for option in options)
    _check(
        strings and 2 <= len(options) <= 26 and len(set(options)) == len(options),
        where,
        "options",
        options,
        "a list of 2 to 26 different strings",
    )
    _check(row["answer"] in options, where, "answer", row["answer"], f"one of the item's options {options}")
    for column in ("valence", "arousal"):
        value = row.get(column)
        fits = value is None or (_is_number(value) and -1 <= value <= 1)
        _check(fits, where, column, value, "a number in [-1, 1], or null")
    _check_distribution(row.get("emotion_distribution"), where)
    for column in ("art_form", "license", "source"):
        value = row.get(column)
        _check(value is None or isinstance(value, str), where, column, value, "a string, or null")
    art_form = row.get("art_form")
    _check(
        art_forms is None or art_form is None or art_form in art_forms,
        where,
        "art_form",
        art_form,
        f"one that {INFO_FILE} declares in `art_forms`: {', '.join(art_forms or ())}",
    )
    media: dict[str, Any] = {column: _resolve(row.get(column), folder, where, column) for column in MEDIA}
    _check_modality(row["modality"], media, where)
    rest: dict[str, Any] = {column: row.get(column) for column in OPTIONAL if column not in MEDIA}
    return Item(
        **{column: row[column] for column in REQUIRED if column != "options"}, options=tuple(options), **media, **rest
    )


def _check(fits: bool, where: str, column: str, value: object, allowed: str) -> None:
    if not fits:
        raise InputError(f"{where}: column {column!r} is {value!r}; allowed is {allowed}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_distribution(value: object, where: str) -> None:
    fits = value is None or (
        isinstance(value, dict)
        and bool(value)
        and all(_is_number(share) and share >= 0 for share in value.values())
        and math.isclose(sum(value.values()), 1, abs_tol=1e-3)
    )
    _check(fits, where, "emotion_distribution", value, "an object label -> share whose shares sum to 1, or null")


def _resolve(value: object, folder: Path, where: str, column: str) -> str | None:
    if value is None:
        return None
    _check(
        isinstance(value, str) and value != "",
        where,
        column,
        value,
        "a path relative to the benchmark folder, or null",
    )
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
    """Each modality carries exactly what it may see: a picture in an audio-only item would leak the answer."""
    pictures = [column for column in ("image", "video") if media[column]]
    if len(pictures) > 1:
        raise InputError(f"{where}: both 'image' and 'video' are set; an item has one of them.")
    for needs, has, columns in (
        (modality != "visual", media["audio"] is not None, "'audio'"),
        (modality != "audio", bool(pictures), "'image' or 'video'"),
    ):
        if needs and not has:
            raise InputError(f"{where}: the modality {modality!r} needs {columns}, which is null.")
        if has and not needs:
            raise InputError(f"{where}: the modality {modality!r} must not see {columns}; set it to null.")


def read_info(path: Path) -> dict:
    """What benchmark.json says, {} where there is none.

    Raises:
        InputError: no JSON object, another format, a field of a wrong type.
    """
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also where it is not UTF-8
        raise InputError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(info, dict):
        raise InputError(f"{path}: a JSON object is expected, found {type(info).__name__}.")
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
