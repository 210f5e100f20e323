"""What of a folder belongs to a model: found, checked, and gathered in a folder of its own.

Nothing else goes out: no checkpoint, optimizer state, log, cache, pickle, hidden file, or file beyond the folder.
"""

import fnmatch
import re
import shutil
from pathlib import Path

from ..utils import InputError
from .folder_checks import check_is_model, is_pickle_name, part_problems, weight_files
from .opening import Unusable, open_processor, read_json_object

CARD = "README.md"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# The names that transformers and PEFT give; what they do not name is not taken.
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tekken.json", "*.model", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
RECORDED = ("verification.json", "verification.safetensors")
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model*.safetensors", "adapter/*.safetensors.index.json")
TAKEN = ("config.json", "generation_config.json", *PROCESSOR, *RECORDED, *ADAPTER)

_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


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
    mapped = read_json_object(file).get("auto_map") or {}
    classes = [c for value in mapped.values() for c in (value if isinstance(value, list) else [value]) if c]
    return {name.rpartition(".")[0] for name in classes if "--" not in name and re.fullmatch(r"\w+\.\w+", name)}


def check(folder: Path) -> None:
    """Checks without any connection that a folder holds a whole model: config, weights, processor, code.

    Raises:
        InputError: naming the file and the remedy.
    """
    check_is_model(folder)
    if problems := part_problems(folder):
        raise InputError(f"{folder}: {problems[0].rstrip('.')}. Save model and processor again: save_pretrained(DIR).")
    try:
        open_processor(folder)
    except Unusable as error:
        raise InputError(
            f"{folder}: {error} Save it again beside the model: processor.save_pretrained(DIR)."
        ) from error
    for name in model_files(folder):
        # Weights hold numbers alone, and are gigabytes.
        if not name.endswith(".safetensors") and _TOKEN.search((folder / name).read_bytes()):
            raise InputError(f"{folder / name} holds what looks like a token of the Hub; remove it, and revoke it.")


def stage(folder: Path, out: Path) -> None:
    """Puts a model's files into `out`: the weights as links, as they may be gigabytes, all else as copies."""
    for name in model_files(folder):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            _link(target, (folder / name).resolve())
        else:
            shutil.copyfile(folder / name, target)


def _link(target: Path, file: Path) -> None:
    try:
        target.symlink_to(file)
    except OSError:  # Windows lets not everybody make links
        shutil.copyfile(file, target)


def goes(name: str, earlier: set[str]) -> bool:
    """Whether a file on the Hub goes with a new version that does not have it.

    What an earlier push put there goes, and weights of any kind, which a loader might find. What the owner has put
    there, such as pictures of the card, stays.

    Args:
        name: path in the repository.
        earlier: what the repository's reproducibility.json lists.
    """
    pickled = is_pickle_name(name.removesuffix(".index.json"))
    return name in earlier or pickled or matches(name, (*TAKEN, *WEIGHTS))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """As `Path.glob` does: a star does not reach over a slash."""
    return any(name.count("/") == p.count("/") and fnmatch.fnmatchcase(name, p) for p in patterns)
