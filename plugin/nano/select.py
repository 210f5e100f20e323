"""Which benchmark the lmms-eval tasks read: the user's choice, or the embedded nano set."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..benchmark import schema
from ..utils import InputError, cache_dir, config_dir

logger = logging.getLogger(__name__)

VARIABLE = "ARTEMO_DATASET"
CHOICE_FILE = "benchmark.json"
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
    """name: as the user gave it, or None for the embedded set. origin: where the choice comes from, in words."""

    name: str | None
    origin: str


def choice_path() -> Path:
    return config_dir() / CHOICE_FILE


def current_choice() -> Choice:
    """The environment variable wins over `vaemotionllm benchmark use`, which wins over the embedded set."""
    if name := os.environ.get(VARIABLE):
        return Choice(name, f"the environment variable {VARIABLE}")
    path = choice_path()
    if path.is_file():
        try:
            name = json.loads(path.read_text(encoding="utf-8"))["dataset"]
            if not isinstance(name, str) or not name:
                raise ValueError(f"dataset is {name!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read ({error}); run `vaemotionllm benchmark use NAME_OR_DIR` again."
            ) from error
        return Choice(name, f"`vaemotionllm benchmark use`, kept in {path}")
    return Choice(None, f"nothing was chosen by {VARIABLE} or `vaemotionllm benchmark use`")


def use(name: str) -> schema.Benchmark | None:
    """Remembers a benchmark for all later runs of this user; "nano" goes back to the embedded set.

    Returns:
        The checked benchmark, or None for "nano".

    Raises:
        InputError: the data set cannot be found or read; the previous choice stays.
    """
    path = choice_path()
    if name == NANO_NAME:
        path.unlink(missing_ok=True)
        return None
    folder = find(name)
    benchmark = schema.load(folder)
    # A relative folder would mean another one when the next command starts elsewhere.
    kept = str(Path(name).expanduser().absolute()) if Path(name).expanduser().is_dir() else name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"dataset": kept}, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return benchmark


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
    from .world import build_world, world_key

    sizes = {"benchmark": NANO_CLIPS}
    world = cache_dir() / "nano" / f"benchmark-{world_key(NANO_SEED, sizes)}"
    if not world.is_dir():
        logger.info("Building the embedded nano benchmark in %s, once.", world)
    manifest = build_world(world, seed=NANO_SEED, sizes=sizes)
    return Path(manifest).parent / "benchmark"


def resolve() -> schema.Benchmark:
    """The benchmark that is in force, read and checked.

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
            "%s Benchmark folder: %s. Another one: %s=NAME_OR_DIR or `vaemotionllm benchmark use NAME_OR_DIR`.",
            NANO_NOTICE,
            benchmark.folder,
            VARIABLE,
        )
    return benchmark
