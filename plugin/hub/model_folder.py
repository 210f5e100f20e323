"""A saved model's folder: its parts and their damage, pickles, `reproducibility.json`, and local paths in its configs.

`push` refuses what `verify` would report: both look at a folder through this module.
"""

import json
import platform
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from ..model.checkpoint import Weights, weight_files
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..train.checkpoint import versions
from ..utils import InputError, read_json, sha256_of_file, write_json

REPRODUCIBILITY, CARD = "reproducibility.json", "README.md"
FORMAT = 1
RECORDED = ("verification.json", "verification.safetensors")
INDEX = "model.safetensors.index.json"
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "chat_template.jinja")
# Formats in which loading can run code. Nothing here opens one, but another program might.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
# The first bytes of pickle's protocols 2 to 5, and of the zip archives that torch.save writes.
_PICKLE_STARTS = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"PK\x03\x04")
# Checkpoints of a training run lie in its folder and are no part of the model; `push` leaves them out.
_RUN_FOLDERS = "checkpoint-*"
# Beside a model for people; nothing that loads a model opens them.
_FOR_READERS = re.compile(r"(LICENSE|NOTICE|CITATION)[^/]*|.*\.(md|png|jpg|jpeg|svg|gif|webp|pdf)", re.IGNORECASE)


def one_line(error: BaseException) -> str:
    """The text of an error, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def loaded(load: Callable[[str], Any], folder: Path) -> Any:
    """What `load` makes of a folder; damaged files make the libraries raise anything, tokenizers a plain Exception.

    Raises:
        InputError: on one line, whatever was raised.
    """
    try:
        return load(str(folder))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder} cannot be loaded ({type(error).__name__}: {one_line(error)[:400]}).") from error


# ---- parts


def pickles(folder: Path) -> list[str]:
    """One sentence for each file that is, or by its name may be, a pickle."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or name.parts[0] == ".git" or name.match(f"{_RUN_FOLDERS}/*"):
            continue
        if is_pickle_name(path.name) or _is_pickle(path):
            found.append(f"{name.as_posix()} is a pickle or may hold one, which can run code where it is loaded.")
    return found


def is_pickle_name(name: str) -> bool:
    return name.lower().endswith(PICKLE_SUFFIXES)


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        if not file.read(4).startswith(_PICKLE_STARTS):
            return False
    if path.suffix != ".safetensors":
        return True
    try:
        Weights([path])  # it begins with the length of its header, which may be any number
    except InputError:
        return True
    return False


def part_problems(folder: Path) -> list[str]:
    """One sentence for each part that a model needs and that is missing or damaged: config, processor, weights."""
    problems = [f"{name} is missing." for name in PROCESSOR_FILES if not (folder / name).is_file()]
    try:
        loaded(lambda name: VAEmotionLLMConfig.from_pretrained(name, local_files_only=True), folder)
    except InputError as error:
        problems.append(f"config.json cannot be used: {error}")
    try:
        Weights(folder.glob("adapter/*.safetensors"))  # LoRA alone: opened, and so checked
        sharded = INDEX in weight_names(folder)
        listed = read_json(folder / INDEX, "the index of the weights")["weight_map"] if sharded else {}
        if missing := sorted(set(listed) - tensor_names(folder)):
            problems.append(f"{INDEX} names {len(missing)} weights that no file holds, {missing[0]} among them.")
    except InputError as error:
        problems.append(str(error))
    return problems


def weight_names(folder: Path) -> list[str]:
    """Names of the files that `from_pretrained` takes the weights from: one file, or the index and what it names.

    Raises:
        InputError: there are none, or the index names files elsewhere.
    """
    try:
        files = [Path(file) for file in weight_files(folder)]
    except (OSError, ValueError) as error:
        raise InputError(f"the weights are missing: {one_line(error)}") from error
    if outside := [file for file in files if file.parent != folder or file.suffix != ".safetensors"]:
        raise InputError(
            f"{INDEX} names {str(outside[0])!r}; only safetensors files of the folder itself are allowed."
        )
    if not files:
        raise InputError(f"{INDEX} lists no weights.")
    names = [file.name for file in files]
    return names if names == ["model.safetensors"] else [INDEX, *names]


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors in a model's weight files. Opening them compares their sizes with what they state."""
    return set(Weights(folder / name for name in weight_names(folder) if name != INDEX))


# ---- reproducibility.json: what a model was made by, and the SHA-256 of each of its files


def write_reproducibility(folder: Path, stages: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Writes `reproducibility.json` into a model folder whose other files are complete.

    The same folder gives the same file: it holds no time and no local path.

    Args:
        folder: the model's folder.
        stages: the runs that made it, see `train.checkpoint.stages_of`.
        results: of its evaluation, see `hub.card.read_results`; {} where there are none.
    """
    stages = [{**stage, "settings": without_local_path(stage["settings"])} for stage in stages]
    by_stage = {f"stage {stage['settings'].get('stage')}": stage for stage in stages}
    data = {
        name: {key: value for key, value in stage["settings"].items() if key.endswith("_sha256")}
        | (stage.get("data") or {})
        for name, stage in by_stage.items()
    }
    content = {
        "format": FORMAT,
        "versions": {**versions(), "python": platform.python_version()},
        "stages": stages,
        "configs": {name: stage["settings_sha256"] for name, stage in by_stage.items()},
        "seeds": {name: stage["settings"].get("seed") for name, stage in by_stage.items()},
        "data": data,
        "results": results,
        "files": {
            name: {"sha256": sha256_of_file(folder / name), "size": (folder / name).stat().st_size}
            for name in _listed_files(folder)
        },
    }
    write_json(folder / REPRODUCIBILITY, content)


def read_reproducibility(folder: Path) -> dict[str, Any]:
    """What a folder's `reproducibility.json` holds.

    Raises:
        InputError: it is not there, not readable, of another format, or names a file outside the folder.
    """
    file = folder / REPRODUCIBILITY
    found = read_json(file, "what `vaemotionllm push` writes")
    if found.get("format") != FORMAT:
        raise InputError(f"{file} is of format {found.get('format')!r}, and {FORMAT} is known; upgrade vaemotionllm.")
    try:
        for name, entry in found["files"].items():
            str(entry["sha256"]), int(entry["size"])
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise InputError(f"{file} names {name!r}, which leads out of the folder; do not use this model.")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} lacks the hashes of files ({error!r}); download it again.") from error
    return found


def changed_files(folder: Path) -> list[str]:
    """One sentence for each file that is not as `reproducibility.json` lists it, whatever else is in the folder.

    Raises:
        InputError: see `read_reproducibility`.
    """
    sentences = []
    for name, expected in sorted(read_reproducibility(folder)["files"].items()):
        if not (folder / name).is_file():
            sentences.append(f"{name} is missing.")
        elif (size := (folder / name).stat().st_size) != expected["size"]:
            sentences.append(f"{name} has {size:,} bytes instead of {expected['size']:,}.")
        elif sha256_of_file(folder / name) != expected["sha256"]:
            sentences.append(f"{name} was altered: its SHA-256 is another.")
    return sentences


def check_files(folder: Path) -> list[str]:
    """The same with files that it does not list; hidden ones and those for people (*.md, LICENSE, ...) are allowed.

    Raises:
        InputError: see `read_reproducibility`.
    """
    listed = read_reproducibility(folder)["files"]
    added = [name for name in _listed_files(folder) if name not in listed]
    return changed_files(folder) + [
        f"{name} is not of this model: {REPRODUCIBILITY} does not list it."
        for name in added
        if not _FOR_READERS.fullmatch(name.rpartition("/")[2])
    ]


def _listed_files(folder: Path) -> list[str]:
    """Names of all files of a folder but hidden ones, the card and the list itself."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    return sorted(name for name in visible if name not in (REPRODUCIBILITY, CARD))


# ---- local paths, which are kept out of what goes to the Hub

# Of no use to whoever loads the model, whatever they hold.
_DROPPED = ("_name_or_path", "name_or_path")
# Of use where they are names on the Hub; the revision goes with the name.
_NAMES = {"backbone_name": "backbone_revision", "base_model_name_or_path": "revision", "vlm": None, "audio": None}
# An absolute path, or a relative one of more parts than a name on the Hub has.
_PATH = re.compile(r"[/~]|\.\.|file:|\\\\|[A-Za-z]:[\\/]|[\w.-]+([\\/][\w.-]+){2,}[\\/]?$")


def is_hub_name(name: str, near: Path | None = None) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than a folder.

    Args:
        near: a folder beside or above which a relative path may lead to a folder as well: runs are started from a
            project's root.
    """
    if not re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", name):
        return False
    roots = (Path(), *(() if near is None else (near.resolve(), *near.resolve().parents)))
    return not any((root / name).exists() for root in roots)


def without_local_path(value: Any) -> Any:
    """A setting with the last part of a path in place of the path. OWNER/NAME stays."""
    if isinstance(value, str) and _PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("/\\"))[-1]
    if isinstance(value, dict):
        return {name: without_local_path(of) for name, of in value.items()}
    return [without_local_path(of) for of in value] if isinstance(value, list) else value


def remove_local_paths(folder: Path, near: Path) -> None:
    """Takes local paths out of the configs in a folder, which is changed.

    Args:
        near: where the model lay, see `is_hub_name`.
    """
    for file in (*folder.glob("*config.json"), *folder.glob("adapter/*config.json")):
        values = read_json(file, "a config of the model")
        if (cleaned := _cleaned(values, near)) != values:
            file.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cleaned(value: Any, near: Path) -> Any:
    if isinstance(value, list):
        return [_cleaned(of, near) for of in value]
    if not isinstance(value, dict):
        # A path, and no text of a template or a token that begins with a slash.
        is_path = isinstance(value, str) and re.fullmatch(r"(/[^/\s]+|~|[A-Za-z]:)([\\/][^\\/\s]+)+[\\/]?", value)
        return None if is_path else value
    found = {key: _cleaned(of, near) for key, of in value.items() if key not in _DROPPED}
    for key, revision in _NAMES.items():
        if isinstance(value.get(key), str) and not is_hub_name(value[key], near):
            found[key] = None
            if revision in found:
                found[revision] = None
    return found
