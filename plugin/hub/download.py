"""A model by its name on the Hub: what belongs to it is fetched into the Hub's cache, and nothing of it is run."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..utils import InputError
from .errors import fetching_in_words, told_in_words
from .folder_checks import is_pickle_name

# By kind, and not by name: backbones bring tokenizers of their own. No format that could hold a pickle.
PATTERNS = ("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.py", "*.txt", "*.md", "*.model", "*.yaml", "LICENSE*",
            "NOTICE*")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """folder: where the model lies. commit: of the Hub, None for a local folder. left: files that were not fetched."""

    folder: Path
    commit: str | None = None
    left: tuple[str, ...] = ()


def locate(name: str, revision: str | None = None) -> Source:
    """A local folder, or the snapshot of a model on the Hub.

    Args:
        name: a folder, or OWNER/NAME.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: neither, or the Hub does not give it out; in words.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"--revision is of models on the Hub, and {name} is a folder; leave one of them out.")
        return Source(folder.absolute())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"there is no folder {folder.absolute()}; give a model folder or a Hub name OWNER/NAME.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    commit, names = revision, None
    with told_in_words(name, lambda error, of: fetching_in_words(error, of, revision)):
        # Offline, what the cache has is looked at.
        with contextlib.suppress(OfflineModeIsEnabled):
            found = HfApi().model_info(name, revision=revision)
            commit, names = found.sha, [file.rfilename for file in found.siblings or ()]
        if names is not None and "config.json" not in names:
            raise InputError(f"{name} on the Hub holds no config.json, so it is no saved model.")
        path = Path(snapshot_download(name, revision=commit, allow_patterns=list(PATTERNS)))
    return Source(path, path.name, tuple(file for file in names or () if is_pickle_name(file)))
