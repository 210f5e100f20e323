"""A saved model onto the Hub: checked, gathered with its card and its hashes, and committed at once."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import card, reproducibility, results, staging
from .errors import check_name
from .upload import TIMEOUT_S, upload


@dataclass(frozen=True)
class Pushed:
    """files: name in the repository -> bytes. card: text of the model card. url: None in a dry run."""

    repo: str
    files: dict[str, int]
    card: str
    url: str | None = None


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
        recorded: record inputs and their logits for `vaemotionllm verify`, where the folder has none.
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
        if recorded and not (staged / "verification.json").is_file():
            from .recording import record

            record(staged)
        stages, found = _facts(folder, results_path)
        if not (staged / staging.CARD).is_file():
            text = card.card(staged, repo, stages, found, license)
            (staged / staging.CARD).write_text(text, encoding="utf-8")
        reproducibility.write(staged, stages, found)
        files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        done = Pushed(repo, sizes, (staged / staging.CARD).read_text(encoding="utf-8"))
        if dry_run:
            return done
        url = upload(
            files, repo, message or _message(stages), private=private, revision=revision, stale=_stale,
            endpoint=endpoint, token=token, timeout_s=timeout_s,
        )  # fmt: skip
    return Pushed(repo, sizes, done.card, url)


@contextlib.contextmanager
def _staged(folder: Path, audio_only: bool, backbone: str | None, revision: str | None) -> Iterator[Path]:
    """A folder with the model's files that is gone after the block."""
    root = Path(tempfile.mkdtemp(prefix="vaemotionllm-push-"))
    try:
        whole = root / "model"
        whole.mkdir()
        staging.stage(folder, whole)
        if audio_only:
            from .audio_only import write_audio_only

            small = root / "audio_only"
            write_audio_only(whole, small, backbone=backbone, revision=revision)
            yield small
        elif backbone is not None or revision is not None:
            raise InputError("--backbone and --backbone-revision are for --audio-only.")
        else:
            yield whole
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _facts(folder: Path, results_path: str | Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The runs that made a model and its results, where they are known."""
    from ..train.record import stages_of

    stages = stages_of(folder)
    found: dict[str, Any] = {}
    if not stages and (folder / reproducibility.FILE).is_file() and not reproducibility.check_files(folder):
        # It came from the Hub, and is what it was there.
        earlier = reproducibility.read(folder)
        stages, found = earlier.get("stages") or [], earlier.get("results") or {}
    if results_path is not None:
        found = results.read(Path(results_path).expanduser(), folder)
    elif (place := results.beside(folder)) is not None:
        found = results.read(place, folder)
    return stages, found


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
