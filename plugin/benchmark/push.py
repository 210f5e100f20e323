"""Uploads a benchmark folder to the Hub as a data set. The token is huggingface_hub's own affair and never printed."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import schema, unpack

# What belongs to a benchmark; nothing else in the folder goes out.
PATTERNS = ("README.md", schema.INFO_FILE, schema.ITEMS_FILE, unpack.SHARDS)


@dataclass(frozen=True)
class Upload:
    """files: paths relative to the folder. size: their bytes. url: of the data set, None in a dry run."""

    repo: str
    files: tuple[str, ...]
    size: int
    url: str | None = None


def push(folder: str | Path, repo: str, private: bool = False, dry_run: bool = False) -> Upload:
    """Checks a benchmark and uploads its files; the data set is made where it does not exist.

    Args:
        repo: "owner/name".
        private: make the data set private, where it is made.
        dry_run: check, and say what would go out, without any connection.

    Raises:
        InputError: no valid benchmark, no such name, not allowed, not reachable; each in words.
    """
    folder = Path(folder).expanduser().absolute()
    _check_name(repo)
    benchmark = schema.load(folder)
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} holds no README.md, the data set's card; `benchmark build` writes one.")
    files = _files(folder, benchmark)
    upload = Upload(repo, tuple(files), sum((folder / name).stat().st_size for name in files))
    if dry_run:
        return upload
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        url = str(api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
        # Patterns would be matched by fnmatch, in which these names could be patterns themselves.
        allowed = [name.replace("[", "[[]") for name in files]
        message = f"{benchmark.name}, version {benchmark.info.get('version', 1)}"
        api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type="dataset", allow_patterns=allowed, commit_message=message,
            # Items of an earlier version would be read beside these.
            delete_patterns=[unpack.SHARDS, schema.ITEMS_FILE],
        )  # fmt: skip
    except LocalTokenNotFoundError as error:
        raise InputError("no token for the Hub was found here; run `hf auth login` or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise InputError(_in_words(error, repo)) from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise InputError(
            f"the Hub cannot be reached ({type(error).__name__}). Check the network and HF_HUB_OFFLINE; the same "
            "command goes on."
        ) from error
    return Upload(repo, upload.files, upload.size, url)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("an owner and a name are needed")
    except HFValidationError as error:
        raise InputError(f"--repo is {repo!r}; allowed is OWNER/NAME ({error}).") from error


def _files(folder: Path, benchmark: schema.Benchmark) -> list[str]:
    """Card, benchmark.json, and shards; or in a plain folder, items and the media that they name."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    if benchmark.folder == folder:
        media = (getattr(item, column) for item in benchmark.items for column in schema.MEDIA)
        found |= {Path(path) for path in media if path}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _in_words(error, repo: str) -> str:
    """What a user can do about an answer of the Hub. Its text is not repeated: it may quote what was sent."""
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return "the Hub refused the token (401). Run `hf auth login` with a valid one, or set HF_TOKEN."
    if status == 403:
        return (
            f"the token may not write to {repo} (403). Use one with write access to {repo.partition('/')[0]}, or "
            "another owner in --repo."
        )
    if status == 404:
        return f"the Hub knows no owner {repo.partition('/')[0]!r} that this token may write for (404)."
    return f"the Hub answered {status} while {repo} was uploaded. Try again; what was uploaded is not sent twice."
