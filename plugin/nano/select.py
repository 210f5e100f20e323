"""The benchmark that tasks and commands read: the one that ARTEMO_DATASET names, or the embedded nano set."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from ..benchmark import schema
from ..utils import InputError, cache_dir
from .world import build_world, world_key

logger = logging.getLogger(__name__)

VARIABLE = "ARTEMO_DATASET"
NANO_CLIPS = 192
NANO_NAME = "nano"
NANO_NOTICE = (
    "This is the embedded nano set: clips drawn by a program to test the way from media files to a score table. "
    "It is not ArtEmoBenchmark and its numbers belong on no leaderboard."
)
NANO_LABEL = "nano set, not a leaderboard number"


class Choice(NamedTuple):
    """name: as the user gave it, or None for the embedded set. origin: text about where the choice comes from."""

    name: str | None
    origin: str


def current_choice() -> Choice:
    """What the environment variable names, or the embedded set."""
    if name := os.environ.get(VARIABLE):
        return Choice(name, f"the environment variable {VARIABLE}")
    return Choice(None, f"{VARIABLE} not being set")


def find(name: str, local_files_only: bool = False) -> Path:
    """Folder of a benchmark: the embedded set for "nano", `name` itself, or the snapshot of a data set on the Hub.

    Args:
        name: a folder, OWNER/NAME on the Hub, or "nano".
        local_files_only: take of the Hub what is in its cache alone.

    Raises:
        InputError: no folder, and no data set that can be fetched.
    """
    if name == NANO_NAME:
        return nano_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=local_files_only))
    except (OSError, ValueError) as error:  # of the Hub, the network or the name
        raise InputError(
            f"there is no folder {folder.absolute()}, and no data set {name!r} that the Hub gives out here: "
            f"{' '.join(str(error).split())}"
        ) from error


def nano_folder() -> Path:
    """Folder of the embedded set; it is built on first use and reused afterwards."""
    sizes = {"benchmark": NANO_CLIPS}
    world = cache_dir() / "nano" / f"benchmark-{world_key(0, sizes)}"
    return build_world(world, sizes=sizes).parent / "benchmark"


def resolve() -> schema.Benchmark:
    """The benchmark that is selected, read and checked.

    Raises:
        InputError: it cannot be found or has a wrong column; the message says where the choice comes from.
    """
    choice = current_choice()
    try:
        benchmark = schema.load(find(choice.name or NANO_NAME))
    except InputError as error:
        raise InputError(f"{error} (The benchmark was chosen by {choice.origin}.)") from error
    if benchmark.is_nano:
        logger.warning("%s %s selects another: a folder or a data set's name on the Hub.", NANO_NOTICE, VARIABLE)
    return benchmark
