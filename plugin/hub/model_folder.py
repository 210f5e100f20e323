"""A saved model's folder: its parts and their damage, pickles, `reproducibility.json`, and local paths in its configs.

`push` refuses what `verify` would report: both look at a folder through this module.
"""

import json
import platform
import re
from functools import partial
from pathlib import Path
from typing import Any

from ..model.checkpoint import Weights, weight_files
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..model.loading import load_processor
from ..train.checkpoint import REPRODUCIBILITY, versions
from ..utils import InputError, read_json, sha256_of_file, write_json

CARD = "README.md"
FORMAT = 1
RECORDED = ("verification.json", "verification.safetensors")
INDEX = "model.safetensors.index.json"
HUB_NAME = re.compile(r"[\w-]+[\w.-]*/[\w.-]+")
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "chat_template.jinja")
# Formats in which loading can run code. Nothing here opens one, but another program might.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
# Checkpoints of a training run lie in its folder and are no part of the model; `push` leaves them out.
_RUN_FOLDERS = "checkpoint-*"
# Beside a model for people; nothing that loads a model opens them.
_FOR_READERS = re.compile(r"(LICENSE|NOTICE|CITATION)[^/]*|.*\.(md|png|jpg|jpeg|svg|gif|webp|pdf)", re.IGNORECASE)


def one_line(error: BaseException) -> str:
    """The text of an error, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


# ---- parts


def pickles(folder: Path) -> list[str]:
    """One sentence for each file that by its name may be a pickle."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        f"{name.as_posix()} is a pickle or may hold one, which can run code where it is loaded."
        for name in names
        if is_pickle_name(name.name) and name.parts[0] != ".git" and not name.match(f"{_RUN_FOLDERS}/*")
    ]


def is_pickle_name(name: str) -> bool:
    return name.lower().endswith(PICKLE_SUFFIXES)


def part_problems(folder: Path) -> list[str]:
    """One sentence for each part that a model needs and that is missing or damaged: config, processor, weights."""
    problems = [f"{name} is missing." for name in PROCESSOR_FILES if not (folder / name).is_file()]
    try:
        VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a bad value makes the library raise anything
        problems.append(f"config.json cannot be used: {one_line(error)}")
    try:
        load_processor(folder)
    except Exception as error:  # tokenizers raises a plain Exception
        problems.append(f"the processor cannot be loaded: {one_line(error)}")
    try:
        Weights(folder.glob("adapter/*.safetensors"))  # LoRA alone: opened, and so checked
        sharded = INDEX in weight_names(folder)
        listed = read_json(folder / INDEX, "the index of the weights")["weight_map"] if sharded else {}
        if missing := sorted(set(listed) - tensor_names(folder)):
            problems.append(f"{INDEX} names {len(missing)} weights that no file holds, {missing[0]} among them.")
    except (InputError, OSError) as error:
        problems.append(one_line(error))
    return problems


def weight_names(folder: Path) -> list[str]:
    """Names of the files that `from_pretrained` takes the weights from: one file, or the index and what it names.

    Raises:
        InputError, OSError: there are none, or the index names files elsewhere.
    """
    files = [Path(file) for file in weight_files(folder)]
    if outside := [file for file in files if file.parent != folder or file.suffix != ".safetensors"]:
        raise InputError(
            f"{INDEX} names {str(outside[0])!r}; only safetensors files of the folder itself are allowed."
        )
    names = [file.name for file in files]
    return names if names == ["model.safetensors"] else [INDEX, *names]


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors in a model's weight files. Opening them compares their sizes with what they state."""
    return set(Weights(folder / name for name in weight_names(folder) if name != INDEX))


# ---- reproducibility.json: what a model was made by, and the SHA-256 of each of its files


def write_reproducibility(folder: Path, stages: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Writes `reproducibility.json`, without time or local path, into a model folder whose other files are complete.

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


def check_files(folder: Path) -> list[str]:
    """One sentence for each file that is not as `reproducibility.json` lists it, or that it does not list.

    Hidden files and those for people (*.md, LICENSE, ...) need not be listed.

    Raises:
        InputError: `reproducibility.json` is not there, not readable, or of another format.
    """
    file = folder / REPRODUCIBILITY
    found = read_json(file, "what `vaemotionllm push` writes")
    if found.get("format") != FORMAT:
        raise InputError(f"{file} is of format {found.get('format')!r}, and {FORMAT} is known; upgrade vaemotionllm.")
    try:
        listed = {name: (of["size"], of["sha256"]) for name, of in found["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} lacks the hashes of files ({error!r}); download it again.") from error
    there, sentences = _listed_files(folder), []
    for name, (size, sha256) in sorted(listed.items()):
        if name not in there:  # nor is a name that leads out of the folder
            sentences.append(f"{name} is missing.")
        elif (folder / name).stat().st_size != size:
            sentences.append(f"{name} has {(folder / name).stat().st_size:,} bytes instead of {size:,}.")
        elif sha256_of_file(folder / name) != sha256:
            sentences.append(f"{name} was altered: its SHA-256 is another.")
    return sentences + [
        f"{name} is not of this model: {REPRODUCIBILITY} does not list it."
        for name in there
        if name not in listed and not _FOR_READERS.fullmatch(name.rpartition("/")[2])
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
# A path of more parts than a name on the Hub has; no text, and no token that begins with a slash.
_PATH = re.compile(r"(file:/*|~\w*|\.\.|[A-Za-z]:|[\w.-]+[\\/][\w.-]+|(?=/[\w.]))([\\/][^\\/\n]+)+[\\/]?")


def is_hub_name(name: str, near: Path | None = None) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than a folder, here or beside or above the folder `near`, since
    runs are started from a project's root."""
    roots = (Path(), *(near.resolve().parents if near else ()))
    return bool(HUB_NAME.fullmatch(name)) and not any((root / name).exists() for root in roots)


def without_local_path(value: Any) -> Any:
    """A value with the last part of a path in place of each path. OWNER/NAME stays."""
    if isinstance(value, dict):
        return {name: without_local_path(of) for name, of in value.items()}
    if isinstance(value, list):
        return [without_local_path(of) for of in value]
    is_path = isinstance(value, str) and _PATH.fullmatch(value)
    return re.split(r"[\\/]", value.rstrip("/\\"))[-1] if is_path else value


def remove_local_paths(folder: Path, near: Path) -> None:
    """Takes local paths out of the configs in a folder, which is changed; `near` is where the model lay."""
    for file in (*folder.glob("*config.json"), *folder.glob("adapter/*config.json")):
        values = read_json(file, "a config of the model")
        cleaned = without_local_path(json.loads(json.dumps(values), object_hook=partial(_hub_names_alone, near)))
        if cleaned != values:
            file.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hub_names_alone(near: Path, values: dict[str, Any]) -> dict[str, Any]:
    found = {key: of for key, of in values.items() if key not in _DROPPED}
    for key, revision in _NAMES.items():
        if isinstance(found.get(key), str) and not is_hub_name(found[key], near):
            found |= {name: None for name in (key, revision) if name in found}
    return found
