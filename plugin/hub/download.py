"""A model by its name on the Hub: what belongs to it is fetched into the Hub's cache, and nothing of it is run."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
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
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        commit, names = revision, []
        try:
            found = HfApi().model_info(name, revision=revision)
            commit, names = found.sha, [file.rfilename for file in found.siblings or ()]
        except OfflineModeIsEnabled:
            pass  # what the cache has is looked at
        path = Path(snapshot_download(name, revision=commit, allow_patterns=list(PATTERNS)))
    except GatedRepoError as error:
        raise InputError(f"{name} is given out on request only; ask on its page, then run `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r}; name a branch, a tag or a commit.") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name!r} is neither a folder nor a model that the Hub gives out to you.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise InputError(f"the Hub answered {status} when {name} was asked for; try again later.") from error
    except HFValidationError as error:
        raise InputError(f"{name!r} is neither a folder nor a name OWNER/NAME of the Hub.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise InputError(
            f"the Hub cannot be reached ({type(error).__name__}), and {name} is not whole in its cache. Check the "
            "network and HF_HUB_OFFLINE, or give a folder."
        ) from error
    return Source(path, path.name, tuple(file for file in names if is_pickle_name(file)))
