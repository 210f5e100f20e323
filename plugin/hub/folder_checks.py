"""What can be said about a model folder before anything of it is loaded: hashes, config, weight files, no pickle.

`push` refuses what `verify` would tell: both ask here.
"""

from collections.abc import Iterator, Set
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..utils import InputError
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
        hint = "`vaemotionllm export` makes a model of its newest checkpoint" if any(folder.glob(RUN_FOLDERS)) else (
            "give the folder that save_pretrained or `train` wrote"
        )  # fmt: skip
        raise InputError(f"{folder} holds no config.json, so it is no saved model; {hint}.")
    try:
        model_type = read_json_object(folder / "config.json").get("model_type")
    except Unusable as error:
        raise InputError(f"{folder}: {error}") from error
    if model_type != MODEL_TYPE:
        raise InputError(f"{folder} holds a model of type {model_type!r}; {MODEL_TYPE!r} is needed.")


def altered_files(folder: Path) -> list[str] | None:
    """One sentence for each file that is not as reproducibility.json lists it; None where the folder has no list."""
    if not (folder / MANIFEST).is_file():
        return None
    from .reproducibility import check_files

    return check_files(folder)


def format_problems(folder: Path) -> list[str]:
    """One sentence for each thing about the folder's form that keeps it from being a whole model."""
    return [*pickles(folder), *part_problems(folder)]


def part_problems(folder: Path) -> list[str]:
    """The same of the parts that a model needs, whatever else lies beside them."""
    return [*_config_problems(folder), *_processor_problems(folder), *_weight_problems(folder)]


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


def weight_files(folder: Path) -> list[str]:
    """Names of those that `from_pretrained` reads: one file, or else the index and what it names, there or not.

    Raises:
        Unusable: neither is there, or an index that lists no weights, or files elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        raise Unusable(f"the weights are missing: there is no {WEIGHTS} and no {INDEX}.")
    shards = sorted(set(_listed(folder).values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise Unusable(f"{INDEX} names {shard!r}; only safetensors files of the folder itself are allowed.")
    return [INDEX, *shards]


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors of a safetensors file. Opening compares its size with what its header says.

    Raises:
        Unusable: cut short, longer than it says, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise Unusable(f"{path.name} is truncated or no safetensors file ({error}).") from error


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    if not start.startswith((*_PICKLE_STARTS, _ZIP_START)):
        return False
    # A safetensors file begins with the length of its header, which may be any number.
    return path.suffix != ".safetensors" or bool(_problems_of_file(path))


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
    """Of the model's own weights, and of LoRA alone in `adapter/`."""
    try:
        names = weight_files(folder)
        listed = _listed(folder) if INDEX in names else {}
    except Unusable as error:
        return [str(error)]
    problems: list[str] = []
    for name in names:
        if name == INDEX:
            continue
        if not (folder / name).is_file():
            problems.append(f"{name} is missing, which {INDEX} names.")
            continue
        wanted = {tensor for tensor, file in listed.items() if file == name}
        problems += _problems_of_file(folder / name, wanted)
    return problems + [p for path in sorted(folder.glob("adapter/*.safetensors")) for p in _problems_of_file(path)]


def _problems_of_file(path: Path, wanted: Set[str] = frozenset()) -> list[str]:
    try:
        missing = sorted(wanted - tensor_names(path))
    except Unusable as error:
        return [str(error)]
    return [f"{path.name} lacks {len(missing)} of its weights, {missing[0]} the first."] if missing else []


def _listed(folder: Path) -> dict[str, str]:
    """Tensor -> file, as the index says."""
    try:
        listed = {str(tensor): str(file) for tensor, file in read_json_object(folder / INDEX)["weight_map"].items()}
    except (Unusable, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{INDEX} lists no weights ({error}).") from error
    if not listed:
        raise Unusable(f"{INDEX} lists no weights.")
    return listed
