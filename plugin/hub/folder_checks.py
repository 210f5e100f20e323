"""What can be said about a model folder before anything of it is loaded: hashes, config, weight files, no pickle."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import InputError
from .opening import Unusable, read_json_object
from .recording import MANIFEST

MODEL_TYPE = "vaemotionllm"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "chat_template.jinja")
# Formats in which loading can run code. Nothing here reads one, but another program might.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
# The first bytes of pickle's protocols 2 to 5, and of the zip archives that torch.save writes.
_PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_ZIP_START = b"PK\x03\x04"
# Checkpoints of a training run lie in its folder and are no part of the model; `push` leaves them out.
RUN_FOLDERS = "checkpoint-*"


def check_is_model(folder: Path) -> None:
    """Raises InputError where a folder does not claim to hold a VAEmotionLLM at all."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a model folder or a Hub name OWNER/NAME.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; give the folder that save_pretrained or `train` wrote.")
    try:
        model_type = read_json_object(folder / "config.json").get("model_type")
    except Unusable as error:
        raise InputError(f"{folder}: {error}") from error
    if model_type != MODEL_TYPE:
        raise InputError(f"{folder} holds a model of type {model_type!r}; `verify` checks {MODEL_TYPE!r} models.")


def altered_files(folder: Path) -> list[str] | None:
    """One sentence for each file that is not as reproducibility.json lists it; None where the folder has no list."""
    if not (folder / MANIFEST).is_file():
        return None
    from .reproducibility import check_files

    return check_files(folder)


def format_problems(folder: Path) -> list[str]:
    """One sentence for each thing about the folder's form that keeps it from being a whole model."""
    return [*pickles(folder), *_config_problems(folder), *_processor_problems(folder), *_weight_problems(folder)]


def pickles(folder: Path) -> list[str]:
    """One sentence for each file that is, or by its name may be, a pickle."""
    found = [name for name, path in files_of(folder) if is_pickle_name(name) or _is_pickle(path)]
    return [f"{name} is a pickle or may hold one, which can run code where it is loaded." for name in found]


def is_pickle_name(name: str) -> bool:
    return name.lower().endswith(PICKLE_SUFFIXES)


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name below the folder, path) of each file, without those of a training run's checkpoints and of git."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != ".git" and not name.match(f"{RUN_FOLDERS}/*"):
            yield name.as_posix(), path


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    if not start.startswith((*_PICKLE_STARTS, _ZIP_START)):
        return False
    # A safetensors file begins with the length of its header, which may be any number.
    return path.suffix != ".safetensors" or bool(_problems_of_shard(path)[0])


def _config_problems(folder: Path) -> list[str]:
    from huggingface_hub.errors import StrictDataclassError

    from ..model.configuration_vaemotionllm import VAEmotionLLMConfig

    try:
        VAEmotionLLMConfig.from_pretrained(str(folder), local_files_only=True)
    except (StrictDataclassError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"config.json cannot be used: {' '.join(str(error).split()) or type(error).__name__}"]
    return []


def _processor_problems(folder: Path) -> list[str]:
    return [f"{name} is missing." for name in PROCESSOR_FILES if not (folder / name).is_file()]


def _weight_problems(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return _problems_of_shard(folder / WEIGHTS)[0]
    if not (folder / INDEX).is_file():
        return [f"the weights are missing: there is no {WEIGHTS} and no {INDEX}."]
    try:
        listed = dict(read_json_object(folder / INDEX)["weight_map"])
    except (Unusable, KeyError, TypeError, ValueError) as error:
        return [f"{INDEX} lists no weights ({error})."]
    problems: list[str] = []
    for shard in sorted({str(name) for name in listed.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            problems.append(f"{INDEX} names {shard!r}; only safetensors files of the folder itself are allowed.")
        elif not (folder / shard).is_file():
            problems.append(f"{shard} is missing, which {INDEX} names.")
        else:
            told, names = _problems_of_shard(folder / shard)
            missing = sorted(name for name, of in listed.items() if of == shard and name not in names)
            problems += told
            if missing and not told:
                problems.append(f"{shard} lacks {len(missing)} of its weights, {missing[0]} the first.")
    return problems


def _problems_of_shard(path: Path) -> tuple[list[str], set[str]]:
    """What is wrong with one file of weights, and the names in it. Opening compares its size with its header's."""
    try:
        with safe_open(path, framework="pt") as file:
            return [], set(file.keys())
    except (SafetensorError, OSError) as error:
        return [f"{path.name} is truncated or no safetensors file ({error})."], set()
