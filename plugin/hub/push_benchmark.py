"""Uploads a benchmark folder to the Hub as a data set. The token is huggingface_hub's own affair and never printed."""

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from ..benchmark import schema, unpack
from ..utils import InputError
from .errors import check_name
from .upload import upload

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
    check_name(repo)
    benchmark = schema.load(folder)
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} holds no README.md, the data set's card; `benchmark build` writes one.")
    files = _files(folder, benchmark)
    listed = Upload(repo, tuple(files), sum((folder / name).stat().st_size for name in files))
    if dry_run:
        return listed
    url = upload(
        {name: folder / name for name in files},
        repo,
        f"{benchmark.name}, version {benchmark.info.get('version', 1)}",
        repo_type="dataset",
        private=private,
        # Items of an earlier version would be read beside these.
        stale=lambda there, read: [n for n in there if n == schema.ITEMS_FILE or fnmatch.fnmatch(n, unpack.SHARDS)],
    )
    return Upload(repo, listed.files, listed.size, url)


def _files(folder: Path, benchmark: schema.Benchmark) -> list[str]:
    """Card, benchmark.json, and shards; or in a plain folder, items and the media that they name."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    if benchmark.folder == folder:
        media = (getattr(item, column) for item in benchmark.items for column in schema.MEDIA)
        found |= {Path(path) for path in media if path}
    return sorted(path.relative_to(folder).as_posix() for path in found)
