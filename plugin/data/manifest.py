"""The clip manifest, one clip a row, checked before anything is decoded."""

import logging
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import InputError, check_name, read_json_lines, shown

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "benchmark")
_SAME_SPLIT = {"val": "validation"}
MEDIA_FIELDS = ("audio", "video", "image")
REQUIRED_FIELDS = ("id", "split", "source", "license")
LABEL_FIELDS = ("content", "emotion", "valence", "arousal", "caption", "art_form")
_KNOWN_FIELDS = (*REQUIRED_FIELDS, *MEDIA_FIELDS, "start_s", "end_s", *LABEL_FIELDS)

Media = str | bytes
"""A medium is an absolute path, or the bytes of a file that the manifest embeds."""


@dataclass(frozen=True)
class Clip:
    """One row of a manifest, with absolute paths.

    `emotion` is one label or a distribution {label: share}. `valence` and `arousal` lie in [-1, 1]. Every label may be
    None: stage 1 reads none of them. `extra` holds the columns that the contract does not name.
    """

    id: str
    split: str
    source: str
    license: str
    audio: Media | None = None
    video: Media | None = None
    image: Media | None = None
    start_s: float | None = None
    end_s: float | None = None
    content: str | None = None
    emotion: str | dict[str, float] | None = None
    valence: float | None = None
    arousal: float | None = None
    caption: str | None = None
    art_form: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def visual(self) -> str | None:
        """The field that holds the visual: "video", "image" or None."""
        return "video" if self.video is not None else "image" if self.image is not None else None

    def without_labels(self) -> "Clip":
        """The same clip with nothing but media, identity and origin."""
        return Clip(
            id=self.id, split=self.split, source=self.source, license=self.license, audio=self.audio,
            video=self.video, image=self.image, start_s=self.start_s, end_s=self.end_s,
        )  # fmt: skip


def manifest_file(path: str | os.PathLike) -> Path:
    """The path of a manifest, or an InputError where no file is there."""
    if not Path(path).is_file():
        raise InputError(f"manifest not found: {path}. Give the path of a .jsonl or .parquet file.")
    return Path(path)


def read_manifest(
    path: str | os.PathLike, split: str | None = None, need: Sequence[str] = (), limit: int | None = None
) -> list[Clip]:
    """Read and check a manifest.

    Args:
        path: a `.jsonl` or `.parquet` file; media paths in it are relative to its folder.
        split: return only the clips of this split (None = all); "val" is "validation". Every row is checked, whatever
            its split.
        need: what each returned clip must carry: "audio", "visual" or the name of a label field.
        limit: return at most this many clips.

    Raises:
        InputError: for the first bad row, named by row number, id and field; when no clip is left.
    """
    path = manifest_file(path)
    split = _SAME_SPLIT.get(split, split) if split is not None else None
    if split is not None and split not in SPLITS:
        raise InputError(f"unknown split {split!r}: allowed are {', '.join(SPLITS)}.")
    root = Path(os.path.abspath(path.parent))
    check_name(root)
    clips: list[Clip] = []
    rows: dict[str, int] = {}
    labels: dict[str, dict[str, None]] = {name: {} for name in ("emotion", "content", "art_form")}
    for number, row in _read_rows(path):
        clip = _parse_row(row, number, root, path)
        if clip.id in rows:
            raise InputError(
                f"{path}, row {number}: id {clip.id!r} was already used in row {rows[clip.id]}. Ids must be unique."
            )
        rows[clip.id] = number
        for name, found in labels.items():
            value = getattr(clip, name)
            found.update(dict.fromkeys(value if isinstance(value, dict) else [value] if value else []))
        if split is None or clip.split == split:
            _check_needs(clip, need, number, path)
            clips.append(clip)
    for name, found in labels.items():
        warn_of_spellings(found, f"{path}, field `{name}`")
    if not clips:
        where = f" with split {split!r}" if split else ""
        raise InputError(f"{path} holds no clip{where} ({len(rows)} rows in all). Check the field `split`.")
    return clips[:limit] if limit is not None else clips


def warn_of_spellings(labels: Iterable[str], where: str) -> None:
    """Log a warning of labels that differ by case or blanks alone, since each counts as a label of its own."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings["".join(label.casefold().split())].append(label)
    if several := [same for same in spellings.values() if len(same) > 1]:
        logger.warning(
            "%s: labels that differ by case or blanks alone are different labels: %s. Write each in one way.",
            where,
            "; ".join(", ".join(map(repr, same)) for same in several),
        )


def total_of(shares: Mapping[str, float], where: str) -> float:
    """The sum of a distribution's shares, by which they are divided.

    Raises:
        InputError: it is no finite number above 0, so that there is no distribution.
    """
    total = sum(shares.values())
    if not 0 < total < math.inf:
        raise InputError(
            f"{where}: field `emotion` is a distribution whose shares sum to {total:g}; a finite number above 0 is "
            "needed. Leave it out or give shares."
        )
    return total


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row)."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a readable parquet file: {error}") from error
        return
    if path.suffix not in (".jsonl", ".json"):
        raise InputError(f"manifest {path} ends in {path.suffix!r}: allowed are .jsonl and .parquet.")
    yield from read_json_lines(path, "row")


def _parse_row(row: dict[str, Any], number: int, root: Path, path: Path) -> Clip:
    where = f"{path}, row {number} (id {row.get('id')!r})"
    values: dict[str, Any] = {name: _parse_text(row.get(name), name, where) for name in REQUIRED_FIELDS}
    for name in REQUIRED_FIELDS:
        if values[name] is None:
            raise InputError(f"{where}: field `{name}` is missing. Required are {', '.join(REQUIRED_FIELDS)}.")
    values["split"] = _SAME_SPLIT.get(values["split"], values["split"])
    if values["split"] not in SPLITS:
        raise InputError(f"{where}: field `split` is {row['split']!r}; allowed are {', '.join(SPLITS)}.")
    for name in MEDIA_FIELDS:
        values[name] = parse_medium(row.get(name), name, where, root)
    if all(values[name] is None for name in MEDIA_FIELDS):
        raise InputError(f"{where}: no medium. Give at least one of the fields {', '.join(MEDIA_FIELDS)}.")
    if values["video"] is not None and values["image"] is not None:
        raise InputError(f"{where}: both `video` and `image` are given. Keep the one that the clip shows.")
    for name in ("start_s", "end_s"):
        values[name] = _parse_number(row.get(name), name, where, low=0.0)
    if values["end_s"] is not None and values["end_s"] <= (values["start_s"] or 0.0):
        raise InputError(f"{where}: `end_s` {values['end_s']} is not after `start_s` {values['start_s'] or 0.0}.")
    for name in ("valence", "arousal"):
        values[name] = _parse_number(row.get(name), name, where, low=-1.0, high=1.0)
    for name in ("content", "caption", "art_form"):
        values[name] = _parse_text(row.get(name), name, where)
    emotion = row.get("emotion")
    if isinstance(emotion, dict):
        # A parquet struct column has every label in every row, the absent ones as None.
        emotion = {
            label: _parse_number(share, f"emotion.{label}", where, low=0.0)
            for label, share in emotion.items()
            if share is not None
        }
        total_of(emotion, where)
    elif emotion is not None and not isinstance(emotion, str):
        raise InputError(f"{where}: field `emotion` is {emotion!r}; allowed are a label or {{label: share}}.")
    values["emotion"] = emotion if isinstance(emotion, dict) else _parse_text(emotion, "emotion", where)
    values["extra"] = {name: value for name, value in row.items() if name not in _KNOWN_FIELDS}
    return Clip(**values)


def parse_medium(value: Any, name: str, where: str, root: Path) -> Media | None:
    """A medium of a row: the absolute path of a file below `root`, or embedded bytes; None where there is none.

    Args:
        value: a relative path, bytes, or {bytes, path}.
        name: of its field, and `where`: of its row, for errors.
        root: absolute folder of the file that holds the row.

    Raises:
        InputError: a path that leaves the folder or names no file, or a value of another type.
    """
    if isinstance(value, dict):  # the struct {bytes, path} that the datasets library writes
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InputError(f"{where}: field `{name}` is {value!r}; allowed are a relative path or embedded bytes.")
    # Only the text of the path is judged, and links are not followed: the Hub's cache stores every file as a link to
    # a blob outside the snapshot folder.
    relative = os.path.normpath(value)
    if os.path.isabs(value) or relative == ".." or relative.startswith(".." + os.sep):
        raise InputError(
            f"{where}: field `{name}` points outside the folder of its file: {value!r}. "
            f"Put the file below {root} and give its relative path."
        )
    absolute = os.path.join(root, relative)
    if not os.path.isfile(absolute):
        raise InputError(f"{where}: field `{name}`: file not found: {absolute}.")
    return absolute


def _parse_text(value: Any, name: str, where: str) -> str | None:
    """A text or a number as text; None where there is none. A table writes NaN for what is missing in some columns."""
    if isinstance(value, float) and not math.isfinite(value) or isinstance(value, (bytes, dict, list)):
        raise InputError(f"{where}: field `{name}` is {shown(value)}; allowed is a text, or null where there is none.")
    return None if value is None or not str(value).strip() else str(value)


def _parse_number(value: Any, name: str, where: str, low: float, high: float | None = None) -> float | None:
    if value is None:
        return None
    # bool is an int in Python, and a whole number may be too large for a float.
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= (sys.float_info.max if high is None else high):
        limits = f"a finite number, at least {low:g}" if high is None else f"a number [{low:g}, {high:g}]"
        raise InputError(f"{where}: field `{name}` is {shown(value)}; allowed is {limits}.")
    return float(value)


def _check_needs(clip: Clip, need: Sequence[str], number: int, path: Path) -> None:
    for name in need:
        missing = clip.visual is None if name == "visual" else getattr(clip, name) is None
        if missing:
            field_name = "video` or `image" if name == "visual" else name
            raise InputError(
                f"{path}, row {number} (id {clip.id!r}): field `{field_name}` is missing, and this step needs it."
            )
