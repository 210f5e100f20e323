"""A saved model onto the Hub: checked, gathered with its card and its hashes, and committed at once."""

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils import InputError
from . import card, folder_checks, places, reproducibility, results, staging
from .errors import check_name
from .opening import read_json_object
from .upload import TIMEOUT_S, upload

RECORDING = "verification.json"


@dataclass(frozen=True)
class Pushed:
    """files: name in the repository -> bytes. card: text of the model card. url: None in a dry run. notes: what the
    user should know, a sentence each."""

    repo: str
    files: dict[str, int]
    card: str
    url: str | None = None
    notes: tuple[str, ...] = ()


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    audio_only: bool = False,
    backbone: str | None = None,
    backbone_revision: str | None = None,
    results_path: str | Path | None = None,
    license: str | None = None,
    recorded: bool = True,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Pushed:
    """Uploads a model folder in one commit; files of an earlier version that this one lacks go in the same commit.

    A README.md in the folder is taken as the card; else one is made from the run.

    Args:
        folder: what `save_pretrained`, `vaemotionllm train` or `export` wrote.
        repo: "owner/name"; made where it is missing.
        private: make the repository private, where it is made.
        revision: branch to push to; made where it is missing.
        message: of the commit.
        audio_only: leave out the weights of the backbone, which loading then fetches.
        backbone, backbone_revision: where it fetches them, if the model's config does not say.
        results_path: the model's evaluation, see `hub.results.read`; a demo's own is found by itself.
        license: identifier of the licence, for the card.
        recorded: record inputs and their logits for `vaemotionllm verify`, where the folder has none, or has those of
            a model that was changed since it came from the Hub.
        dry_run: do all but connect to the Hub.
        endpoint, token: of the Hub, in place of HF_ENDPOINT and the saved token.
        timeout_s: longest silence of the Hub within one request.

    Raises:
        InputError: no whole model, no such name, or what the Hub answered; each in words.
    """
    folder = Path(folder).expanduser().absolute()
    check_name(repo)
    card.check_license(license)
    if timeout_s <= 0:
        raise InputError(f"--timeout is {timeout_s:g}; give a number of seconds above 0.")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name a saved model.")
    staging.check(folder)
    with _staged(folder, audio_only, backbone, backbone_revision) as staged:
        parts = card.parts_of(staged, folder)
        places.remove_places(staged, folder)
        if problems := folder_checks.format_problems(staged):
            raise InputError(f"{folder}: {problems[0]}")
        # A model that came from the Hub and was trained on: what its files say is of the one before.
        altered = (folder / reproducibility.FILE).is_file() and bool(reproducibility.changed_files(folder))
        if altered:
            for name in staging.RECORDED:
                (staged / name).unlink(missing_ok=True)
        if recorded and not (staged / RECORDING).is_file():
            from .recording import record

            record(staged)
        stages, found, evaluation = _facts(folder, results_path, altered)
        notes = [] if evaluation is None else _record_answers(staged, evaluation)
        if not (staged / staging.CARD).is_file():
            text = card.card(staged, repo, stages, found, license, parts)
            (staged / staging.CARD).write_text(text, encoding="utf-8")
        elif altered:
            notes.append(
                f"{folder / staging.CARD} is taken as the card, and the model was changed since it came here."
            )
        elif repo not in (staged / staging.CARD).read_text(encoding="utf-8", errors="replace"):
            notes.append(f"{folder / staging.CARD} is taken as the card, and does not name {repo}.")
        reproducibility.write(staged, stages, found)
        files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        text = (staged / staging.CARD).read_text(encoding="utf-8", errors="replace")
        url = None
        if not dry_run:
            url = upload(
                files, repo, message or _message(stages), private=private, revision=revision, stale=_stale,
                endpoint=endpoint, token=token, timeout_s=timeout_s,
            )  # fmt: skip
    return Pushed(repo, sizes, text, url, tuple(notes))


@contextlib.contextmanager
def _staged(folder: Path, audio_only: bool, backbone: str | None, revision: str | None) -> Iterator[Path]:
    """A folder with the model's files that is gone after the block."""
    root = Path(tempfile.mkdtemp(prefix="vaemotionllm-push-"))
    try:
        whole = root / "model"
        whole.mkdir()
        staging.stage(folder, whole)
        config = read_json_object(whole / "config.json")
        name = backbone or config.get("backbone_name")
        if audio_only or not config.get("backbone_included", True):
            # Whoever loads the model fetches the backbone, and has no folder of this machine.
            if name is not None and not places.is_hub_name(str(name), folder):
                raise InputError(
                    f"the backbone of a model without its weights has to be on the Hub, and {name!r} is a folder; "
                    "push the whole model with --audio-only --backbone OWNER/NAME."
                )
        if audio_only:
            from .audio_only import write_audio_only

            small = root / "audio_only"
            write_audio_only(whole, small, backbone=backbone, revision=revision)
            yield small
        elif backbone is not None or revision is not None:
            raise InputError("--backbone and --backbone-revision are for --audio-only.")
        else:
            yield whole
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"the disk of {root.parent} is full, where what goes out is gathered; make room, or name another folder "
            "by TMPDIR."
        ) from error
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _facts(
    folder: Path, results_path: str | Path | None, altered: bool
) -> tuple[list[dict[str, Any]], dict[str, Any], Path | None]:
    """The runs that made a model, its results, and where its evaluation lies, as far as they are known.

    Args:
        altered: its files are not those of its reproducibility.json.
    """
    from ..train.record import stages_of

    stages = stages_of(folder)
    found: dict[str, Any] = {}
    if not stages and not altered and (folder / reproducibility.FILE).is_file():
        # It came from the Hub, and is what it was there.
        earlier = reproducibility.read(folder)
        stages, found = earlier.get("stages") or [], earlier.get("results") or {}
    place = results.beside(folder)
    if results_path is not None:
        place = results.place_of(Path(results_path).expanduser(), folder)
    if place is not None:
        found = results.read(place, folder)
    return stages, found, place


def _record_answers(staged: Path, evaluation: Path) -> list[str]:
    """Adds answers of an evaluation to the recording; a sentence where that cannot be done."""
    if not (staged / RECORDING).is_file():
        return []
    from .recorded_evaluation import record_evaluation

    try:
        record_evaluation(staged, evaluation)
    except InputError as error:
        return [f"no answers are recorded for `verify --evaluation`: {error}"]
    return []


def _message(stages: list[dict[str, Any]]) -> str:
    from .. import __version__

    last = f" after stage {stages[-1]['settings'].get('stage')}" if stages else ""
    return f"Model{last}, by vaemotionllm {__version__}"


def _stale(there: list[str], read: Callable[[str], bytes]) -> list[str]:
    """Files of a repository that a new version replaces or drops; see `staging.goes`."""
    earlier: set[str] = set()
    if reproducibility.FILE in there:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            earlier = set(json.loads(read(reproducibility.FILE))["files"]) | {reproducibility.FILE}
    return [name for name in there if staging.goes(name, earlier)]
