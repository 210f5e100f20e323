"""`reproducibility.json`: what a model folder was made by, and the SHA-256 of each of its files."""

import hashlib
import json
import platform
import re
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils import InputError
from .places import without_place

FILE = "reproducibility.json"
FORMAT = 1
CARD = "README.md"
# Beside a model for people; nothing that loads a model reads them.
_FOR_READERS = re.compile(r"(LICENSE|NOTICE|CITATION)[^/]*|.*\.(md|png|jpg|jpeg|svg|gif|webp|pdf)", re.IGNORECASE)


def write(folder: Path, stages: list[dict[str, Any]] | None = None, results: dict[str, Any] | None = None) -> None:
    """Writes `reproducibility.json` into a model folder whose other files are complete.

    The same folder gives the same file: it holds no time and no path of this machine.

    Args:
        folder: the model's folder.
        stages: the runs that made it, see `train.record.stages_of`.
        results: of its evaluation, see `hub.results.read`; {} or None where there are none.
    """
    from ..train.record import versions

    stages = [_stage(stage) for stage in stages or []]
    content = {
        "format": FORMAT,
        "versions": {**versions(), "python": platform.python_version()},
        "stages": stages,
        "configs": {f"stage {s['settings'].get('stage')}": s["settings_sha256"] for s in stages},
        "seeds": {f"stage {s['settings'].get('stage')}": s["settings"].get("seed") for s in stages},
        "data": _data(stages),
        "results": results or {},
        "files": {name: hash_of(folder / name) for name in files_of(folder)},
    }
    (folder / FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def files_of(folder: Path) -> list[str]:
    """Names of all files of a folder but hidden ones, the card and this file."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(n for n in found if n not in (FILE, CARD) and not any(p.startswith(".") for p in n.split("/")))


def hash_of(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"sha256": digest, "size": file.stat().st_size}


def read(folder: Path) -> dict[str, Any]:
    """What a folder's `reproducibility.json` holds.

    Raises:
        InputError: it is not there, not readable, or of another format.
    """
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        number, files = found["format"], found["files"]
        known = {str(name): (str(of["sha256"]), int(of["size"])) for name, of in files.items()}
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {FILE}, which `vaemotionllm push` writes.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({type(error).__name__}: {error}); download it again.") from error
    if number != FORMAT:
        raise InputError(f"{file} is of format {number!r}, and this release knows {FORMAT}; upgrade vaemotionllm.")
    for name in known:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise InputError(f"{file} names {name!r}, which leads out of the folder; do not use this model.")
    return found


def check_files(folder: Path) -> list[str]:
    """What differs between a folder and its `reproducibility.json`, one sentence a file; [] where nothing does.

    Hidden files, and files for readers alone (*.md, LICENSE, pictures), may be there beside it.

    Raises:
        InputError: see `read`.
    """
    known = read(folder)["files"]
    added = (name for name in files_of(folder) if name not in known)
    return changed_files(folder) + [
        f"{name} is not of this model: {FILE} does not list it."
        for name in added
        if not _FOR_READERS.fullmatch(name.rpartition("/")[2])
    ]


def changed_files(folder: Path) -> list[str]:
    """The same without files that are there beside the listed ones, such as what a run leaves.

    Raises:
        InputError: see `read`.
    """
    sentences, found = [], set(files_of(folder))
    for name, expected in sorted(read(folder)["files"].items()):
        if name not in found:
            sentences.append(f"{name} is missing.")
            continue
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            sentences.append(f"{name} has {size:,} bytes instead of {expected['size']:,}.")
        elif hash_of(folder / name)["sha256"] != expected["sha256"]:
            sentences.append(f"{name} was altered: its SHA-256 is another.")
    return sentences


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    return {**stage, "settings": {name: without_place(value) for name, value in stage["settings"].items()}}


def _data(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """By stage: the hash of the manifest and of other files that it learned from, and what the manifest says."""
    found = {}
    for stage in stages:
        settings = stage["settings"]
        hashes = {name: value for name, value in settings.items() if name.endswith("_sha256")}
        found[f"stage {settings.get('stage')}"] = {**hashes, **(stage.get("data") or {})}
    return found
