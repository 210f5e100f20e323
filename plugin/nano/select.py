"""The benchmark that tasks and commands read: the one that ARTEMO_DATASET names, or the embedded nano set."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..benchmark import schema
from ..utils import InputError, cache_dir
from .world import build_world, world_key

logger = logging.getLogger(__name__)

VARIABLE = "ARTEMO_DATASET"
NANO_SEED = 0
NANO_CLIPS = 192
NANO_NAME = "nano"
NANO_NOTICE = (
    "This is the embedded nano set: clips drawn by a program to test the way from media files to a score table. "
    "It is not ArtEmoBenchmark and its numbers belong on no leaderboard."
)
NANO_LABEL = "nano set, not a leaderboard number"


@dataclass(frozen=True)
class Choice:
    """name: as the user gave it, or None for the embedded set. origin: text about where the choice comes from."""

    name: str | None
    origin: str


def current_choice() -> Choice:
    """What the environment variable names, or the embedded set."""
    if name := os.environ.get(VARIABLE):
        return Choice(name, f"the environment variable {VARIABLE}")
    return Choice(None, f"{VARIABLE} not being set")


def find(name: str) -> Path:
    """Folder of a benchmark: the embedded set for "nano", `name` itself, or the snapshot of a data set on the Hub."""
    if name == NANO_NAME:
        return nano_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    # A Hub name is "owner/name"; what cannot be one was meant as a folder.
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"there is no folder {folder.absolute()}; give a benchmark folder or a Hub name OWNER/NAME.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"{name!r} is neither a folder nor a data set that the Hub gives out here "
            f"({type(error).__name__}: {error}). Check the name, or download it and give the folder."
        ) from error


def nano_folder() -> Path:
    """Folder of the embedded set; it is built on first use and reused afterwards."""
    sizes = {"benchmark": NANO_CLIPS}
    world = cache_dir() / "nano" / f"benchmark-{world_key(NANO_SEED, sizes)}"
    if not world.is_dir():
        logger.info("Building the embedded nano benchmark in %s, once.", world)
    return build_world(world, seed=NANO_SEED, sizes=sizes).parent / "benchmark"


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
        logger.warning(
            "%s Benchmark folder: %s. For another one set %s to a folder or a data set's name on the Hub.",
            NANO_NOTICE,
            benchmark.folder,
            VARIABLE,
        )
    return benchmark
