"""What of a folder belongs to a model: found, checked, and gathered in a folder of its own.

Nothing else goes out: no checkpoint, optimizer state, log, cache, pickle, hidden file, or file beyond the folder.
"""

import fnmatch
import json
import re
import shutil
from pathlib import Path

from ..errors import InputError

CARD = "README.md"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# The names that transformers and PEFT give; what they do not name is not taken.
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tekken.json", "*.model", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
RECORDED = ("verification.json", "verification.safetensors")
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model*.safetensors", "adapter/*.safetensors.index.json")
TAKEN = ("config.json", "generation_config.json", *PROCESSOR, *RECORDED, *ADAPTER)
# By which loaders other than ours may find weights, and which can execute code.
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz")

_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library


def model_files(folder: Path) -> list[str]:
    """Names, relative to `folder`, of the files that are the model.

    Raises:
        InputError: a file that belongs to it is a link that leads out of the folder.
    """
    names = {path.relative_to(folder).as_posix() for pattern in TAKEN for path in folder.glob(pattern)}
    names = {name for name in names if not name.rpartition("/")[2].startswith(".")}
    names |= {*weight_files(folder), *code_files(folder)}
    if (folder / CARD).is_file():
        names.add(CARD)
    root = folder.resolve()
    for name in sorted(names):
        if not (folder / name).resolve().is_relative_to(root):
            raise InputError(f"{folder / name} is a link that leads out of the folder; put the file itself there.")
    return sorted(names)


def weight_files(folder: Path) -> list[str]:
    """Those that `from_pretrained` reads: one file, or else the index and what it names."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file() or not index.is_file():
        return [single.name]
    mapped = _json(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise InputError(f"{index} has no weight_map; save the model again.")
    if strange := sorted(name for name in set(mapped.values()) if Path(name).name != name):
        raise InputError(f"{index} names {strange[0]!r}, which is not beside it; save the model again.")
    return [index.name, *sorted(set(mapped.values()))]


def code_files(folder: Path) -> list[str]:
    """The remote code that the folder's configs name, and what it imports from beside it.

    Raises:
        InputError: one that is not there.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    found: set[str] = set()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        for module in _modules(folder / name):
            file = folder / f"{module}.py"
            try:
                with open(file):
                    reached = [file, *map(Path, get_relative_import_files(file))]
            except FileNotFoundError as error:
                lacking = Path(error.filename).name
                raise InputError(f"{folder} lacks {lacking}, code that {name} needs; save the model again.") from error
            found |= {path.relative_to(folder).as_posix() for path in reached}
    return sorted(found)


def _modules(file: Path) -> set[str]:
    """Modules that the auto_map of a config names; those of other repositories have `--` in them."""
    if not file.is_file():
        return set()
    mapped = _json(file).get("auto_map") or {}
    classes = [c for value in mapped.values() for c in (value if isinstance(value, list) else [value]) if c]
    return {name.rpartition(".")[0] for name in classes if "--" not in name and re.fullmatch(r"\w+\.\w+", name)}


def check(folder: Path) -> None:
    """Checks without any connection that a folder holds a whole model: config, weights, processor, code.

    Raises:
        InputError: naming the file and the remedy.
    """
    if not (folder / "config.json").is_file():
        hint = "; its newest model is made by `vaemotionllm export`" if any(folder.glob("checkpoint-*")) else ""
        raise InputError(f"{folder} holds no config.json, so it is no saved model{hint}.")
    _check_config(folder)
    check_weights(folder)
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise InputError(
            f"{folder} holds no processor_config.json; save the processor beside the model: "
            "processor.save_pretrained(DIR)."
        )
    _check_processor(folder)
    for name in model_files(folder):
        # Weights hold numbers alone, and are gigabytes.
        if not name.endswith(".safetensors") and _TOKEN.search((folder / name).read_bytes()):
            raise InputError(f"{folder / name} holds what looks like a token of the Hub; remove it, and revoke it.")


def _check_config(folder: Path) -> None:
    from ..model.configuration_vaemotionllm import VAEmotionLLMConfig

    found = _json(folder / "config.json").get("model_type")
    if found != VAEmotionLLMConfig.model_type:
        raise InputError(
            f"{folder}/config.json is of a {found!r} model; `push` takes a {VAEmotionLLMConfig.model_type!r}."
        )
    try:
        VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}/config.json does not load: {_line(error)}.") from error


def _check_processor(folder: Path) -> None:
    from ..model.processing_vaemotionllm import VAEmotionLLMProcessor

    try:
        VAEmotionLLMProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the processor in {folder} does not load: {_line(error)}. Save it beside the model: "
            "processor.save_pretrained(DIR)."
        ) from error


def check_weights(folder: Path) -> None:
    """Every weight file is whole, and holds what the index says.

    Raises:
        InputError: naming the file.
    """
    names = weight_files(folder)
    for name in names:
        if not (folder / name).is_file():
            of = f", which {INDEX} names" if len(names) > 1 else ""
            raise InputError(f"{folder} lacks {name}{of}; save the model again with save_pretrained(DIR).")
    held = {name: tensor_names(folder / name) for name in names if name != INDEX}
    if INDEX in names:
        for tensor, file in sorted(_json(folder / INDEX)["weight_map"].items()):
            if tensor not in held[file]:
                raise InputError(f"{folder / file} lacks {tensor!r}, which {INDEX} says is there; save it again.")
    for path in folder.glob("adapter/*.safetensors"):
        tensor_names(path)


def tensor_names(file: Path) -> set[str]:
    """Names of the tensors of a safetensors file, from its header, whose offsets must end where the file ends.

    Raises:
        InputError: cut short, longer than it says, or no safetensors file.
    """
    size = file.stat().st_size
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise InputError(f"{file} is no whole safetensors file; save the model again.")
        try:
            header = json.loads(content.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{file} is no safetensors file ({type(error).__name__}); save the model again."
            ) from error
    if 8 + length + end != size:
        raise InputError(f"{file} has {size:,} bytes, and its header speaks of {8 + length + end:,}; save it again.")
    return set(header)


def stage(folder: Path, out: Path) -> None:
    """Puts a model's files into `out`: the weights as links, as they may be gigabytes, all else as copies."""
    for name in model_files(folder):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            target.symlink_to((folder / name).resolve())
        else:
            shutil.copyfile(folder / name, target)


def goes(name: str, earlier: set[str]) -> bool:
    """Whether a file on the Hub goes with a new version that does not have it.

    What an earlier push put there goes, and weights of any kind, which a loader might find. What the owner has put
    there, such as pictures of the card, stays.

    Args:
        name: path in the repository.
        earlier: what the repository's reproducibility.json lists.
    """
    return name in earlier or matches(name, (*TAKEN, *WEIGHTS, *PICKLES))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """As `Path.glob` does: a star does not reach over a slash, but for a pattern without one any folder will do."""
    for pattern in patterns:
        if "/" not in pattern and pattern in PICKLES:
            name_or_last = name.rpartition("/")[2]
        else:
            name_or_last = name
            if name.count("/") != pattern.count("/"):
                continue
        if fnmatch.fnmatchcase(name_or_last, pattern):
            return True
    return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable JSON ({error}); save the model again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no JSON object; save the model again.")
    return found


def size_of(folder: Path, names: list[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)
