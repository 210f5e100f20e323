"""The way of a model or a benchmark to the Hub and back: gathered in a folder of its own, committed at once, fetched.

Nothing but the model goes out: no checkpoint, optimizer state, log, cache, pickle, hidden file, or file beyond the
folder, and no local path.
"""

import contextlib
import fnmatch
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_relative_import_files

from .. import __version__
from ..benchmark import schema
from ..model.checkpoint import BACKBONE, Backbone, Weights, commit_of
from ..model.loading import check_model_folder
from ..train.checkpoint import stages_of
from ..utils import InputError, read_json, reported_writing
from . import card, model_folder
from .model_folder import CARD, HUB_NAME, INDEX, REPRODUCIBILITY, is_hub_name, is_pickle_name, one_line
from .verify import record

# The names that transformers and PEFT give; what they do not name is not taken.
TAKEN = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.model", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "adapter/adapter_config.json", "adapter/adapter_model*.safetensors",
    "adapter/*.safetensors.index.json",
)  # fmt: skip
# What belongs to a benchmark beside the media that its items name.
BENCHMARK_FILES = (CARD, schema.INFO_FILE, schema.ITEMS_FILE, schema.SHARDS)
_TOKEN = re.compile(r"hf_[A-Za-z0-9_.-]{20,}")


@dataclass(frozen=True)
class Pushed:
    """What went out, or in a dry run would.

    Args:
        files: name in the repository -> bytes.
        card: text of the card.
        url: of the repository; None in a dry run.
        notes: what the user should know, a sentence each.
    """

    repo: str
    files: dict[str, int]
    card: str
    url: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


# ---- a model


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
    results: str | Path | None = None,
    license: str | None = None,
    recorded: bool = True,
    dry_run: bool = False,
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
        results: the model's evaluation, see `card.read_results`.
        license: identifier of the licence, for the card.
        recorded: record inputs and their logits for `vaemotionllm verify`.
        dry_run: do all but connect to the Hub.

    Raises:
        InputError: no whole model, no such name, or what the Hub answered.
    """
    folder = Path(folder).expanduser().absolute()
    check_name(repo)
    check_whole(folder)
    notes, stages, found = [], stages_of(folder), dict[str, Any]()
    if results is not None:
        found = card.read_results(Path(results).expanduser(), folder.resolve().name)
    elif not (folder / CARD).is_file():
        notes.append(f"no evaluation of {folder} was named, and the card says so; name one by --results PATH.")
    with staged(folder, audio_only, backbone, backbone_revision) as out:
        parts = card.parts_of(out)
        model_folder.remove_local_paths(out, folder)
        with reported_writing(out):
            if recorded:
                record(out)
            if not (out / CARD).is_file():
                (out / CARD).write_text(card.card(out, repo, stages, found, license, parts), encoding="utf-8")
            else:
                notes.append(f"{folder / CARD} is taken as the card; look whether it fits this model and {repo}.")
            model_folder.write_reproducibility(out, stages, found)
        files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        text = (out / CARD).read_text(encoding="utf-8", errors="replace")
        message = message or f"Model, by vaemotionllm {__version__}"
        stale = (*TAKEN, "*.safetensors", "*.safetensors.index.json")
        url = None if dry_run else upload(files, repo, message, stale, private=private, revision=revision)
    return Pushed(repo, sizes, text, url, tuple(notes))


def check_whole(folder: Path) -> None:
    """Checks without any connection that a folder holds a whole model: config, weights, processor, code.

    Raises:
        InputError: naming the file and the remedy.
    """
    check_model_folder(folder)
    if problems := model_folder.part_problems(folder):
        raise InputError(f"{folder}: {problems[0].rstrip('.')}. Save model and processor again: save_pretrained(DIR).")
    for name in model_files(folder):
        # Weights hold numbers alone, and are gigabytes.
        if not name.endswith(".safetensors") and _TOKEN.search((folder / name).read_text("utf-8", errors="replace")):
            raise InputError(f"{folder / name} holds what looks like a token of the Hub; remove it, and revoke it.")


@contextlib.contextmanager
def staged(
    folder: Path, audio_only: bool = False, backbone: str | None = None, revision: str | None = None
) -> Iterator[Path]:
    """A folder with the files of a model alone, which is gone after the block.

    Weights are links, since they may be gigabytes, all else copies.
    """
    if (backbone or revision) and not audio_only:
        raise InputError("--backbone and --backbone-revision are for --audio-only.")
    config = read_json(folder / "config.json", "the model's config")
    name = backbone or config.get("backbone_name")
    # Whoever loads the model fetches the backbone, and has no folder of this machine.
    if (audio_only or not config.get("backbone_included", True)) and name and not is_hub_name(str(name), folder):
        raise InputError(
            f"the backbone of a model without its weights has to be on the Hub, and {name!r} is a folder; "
            "push the whole model with --audio-only --backbone OWNER/NAME."
        )
    with tempfile.TemporaryDirectory(prefix="vaemotionllm-push-") as root:
        out = Path(root) / "model"
        with reported_writing(Path(root)):
            for file in model_files(folder):
                target = out / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.endswith(".safetensors"):
                    target.symlink_to((folder / file).resolve())
                else:
                    shutil.copyfile(folder / file, target)
            if audio_only:
                leave_out_backbone(out, backbone, revision)
        yield out


def leave_out_backbone(folder: Path, backbone: str | None = None, revision: str | None = None) -> None:
    """Takes the backbone's weights out of a folder; `from_pretrained` then fetches them by name and revision.

    Files are read tensor by tensor: no more is held than the parts that stay.

    Args:
        folder: a saved model with its backbone, which is changed; links are replaced.
        backbone: folder or Hub name of the backbone; the config's `backbone_name` if not given.
        revision: its commit on the Hub; the config's, or the newest one of a backbone that is given.

    Raises:
        InputError: a folder without a whole model, a backbone that is not known or cannot be fetched, or one that has
            other weights than the model, bit by bit.
    """
    config = read_json(folder / "config.json", "the model's config")
    if not config.get("backbone_included", True):
        raise InputError(f"{folder} holds no weights of its backbone already; push it as it is.")
    if backbone is None:
        backbone, revision = config.get("backbone_name"), revision or config.get("backbone_revision")
    names = model_folder.weight_names(folder)
    weights, saved = Weights(folder / name for name in names if name != INDEX), Backbone(backbone, revision)
    saved.check_holds(weights, prefix=BACKBONE)
    own = {name: weights[name] for name in weights if not name.startswith(BACKBONE)}
    config |= {
        "backbone_included": False,
        "backbone_name": backbone,
        "backbone_revision": revision or commit_of(str(backbone)),
        "backbone_fingerprint": saved.fingerprint,
    }
    for name in names:
        (folder / name).unlink()
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"  # as the library writes it
    (folder / "config.json").write_text(text, encoding="utf-8")


def model_files(folder: Path) -> list[str]:
    """Names, relative to `folder`, of the files that are the model.

    Raises:
        InputError: a file that belongs to it is a link that leads out of the folder.
    """
    names = {path.relative_to(folder).as_posix() for pattern in (*TAKEN, CARD) for path in folder.glob(pattern)}
    names |= {*model_folder.weight_names(folder), *code_files(folder)}
    root = folder.resolve()
    for name in sorted(names):
        if not (folder / name).resolve().is_relative_to(root):
            raise InputError(f"{folder / name} is a link that leads out of the folder; put the file itself there.")
    return sorted(names)


def code_files(folder: Path) -> set[str]:
    """The remote code: the modules of config, model and processor, and what they import from beside them.

    Raises:
        InputError: one that is not there.
    """
    modules = [folder / f"{name}_vaemotionllm.py" for name in ("configuration", "modeling", "processing")]
    try:
        reached = [path for module in modules for path in (module, *get_relative_import_files(module))]
    except FileNotFoundError as error:
        raise InputError(f"{folder} lacks {Path(error.filename).name}, code of the model; save it again.") from error
    return {Path(path).name for path in reached}


# ---- a benchmark


def push_benchmark(folder: str | Path, repo: str, private: bool = False, dry_run: bool = False) -> Pushed:
    """Checks a benchmark and uploads its files; the data set is made where it does not exist.

    Args:
        repo: "owner/name".
        private: make the data set private, where it is made.
        dry_run: check, and list what would go out, without any connection.

    Raises:
        InputError: no valid benchmark, no such name, or what the Hub answered.
    """
    folder = Path(folder).expanduser().absolute()
    check_name(repo)
    benchmark = schema.load(folder)
    if not (folder / CARD).is_file():
        raise InputError(f"{folder} holds no {CARD}, the data set's card; `benchmark build` writes one.")
    paths = {path for pattern in BENCHMARK_FILES for path in folder.glob(pattern) if path.is_file()}
    if benchmark.folder == folder:  # a plain one, whose items name files; in shards they hold them
        media = (getattr(item, column) for item in benchmark.items for column in schema.MEDIA)
        paths |= {Path(path) for path in media if path}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    message = f"{benchmark.name}, version {benchmark.info.get('version', 1)}"
    # Items of an earlier version would be loaded beside these.
    stale = (schema.ITEMS_FILE, schema.SHARDS)
    url = None if dry_run else upload(files, repo, message, stale, "dataset", private)
    return Pushed(repo, sizes, (folder / CARD).read_text(encoding="utf-8"), url)


# ---- the Hub


def check_name(repo: str) -> None:
    """Raises an InputError unless `repo` is "owner/name"."""
    if not HUB_NAME.fullmatch(repo):
        raise InputError(f"--repo is {repo!r}; allowed is OWNER/NAME.")


@contextlib.contextmanager
def hub_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turns whatever the client raises in the block into an InputError of one line with the client's own text.

    What the Hub answers may quote the token: the client's error is not kept as its cause, which a traceback prints.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # The status of a large file's upload stands in the cause alone.
        parts = [error] if isinstance(error, HfHubHTTPError) else [error, error.__cause__]
        text = "; ".join(f"{type(one).__name__}: {one_line(one)}" for one in parts if one)
        if token := get_token():
            text = text.replace(token, "[token]")
        raise InputError(f"{doing} failed ({_TOKEN.sub('[token]', text)}). {remedy}") from None


def upload(
    files: Mapping[str, Path],
    repo: str,
    message: str,
    stale: tuple[str, ...],
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Makes the repository where it is missing and commits all files at once; the client sends large ones first.

    Whoever loads the revision meanwhile gets what was there before, whole, whenever the upload breaks off:
    `upload_folder` may make several commits and is not used. The commit names the one that it follows, so that the
    Hub refuses it where somebody else was faster.

    Args:
        files: path in the repository -> file.
        repo: "owner/name".
        stale: patterns of files that go, where they are not among `files`; with them what the repository's
            reproducibility.json lists, and model_folder.pickles. What else its owner has put there stays.
        private: make the repository private, where it is made.
        revision: branch; made where it is missing. The main one if not given.

    Returns:
        Address of the repository, at the branch if one was named.

    Raises:
        InputError: whatever went wrong.
    """
    api, of, branch = HfApi(), {"repo_type": repo_type}, revision or "main"
    again = "Run the same command again: what was uploaded is not sent twice, and the Hub shows what it showed before."
    with hub_errors(f"the upload to {repo}", again):
        url = str(api.create_repo(repo, private=private or None, exist_ok=True, **of))
        if private and not api.repo_info(repo, **of).private:
            raise InputError(f"{repo} is there already and public, and --private was given. Take another name.")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True, **of)
            url = f"{url}/tree/{revision}"
        head = api.repo_info(repo, revision=branch, **of)
        there = {file.rfilename for file in head.siblings or ()}
        earlier: set[str] = set()
        if REPRODUCIBILITY in there:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                listed = Path(api.hf_hub_download(repo, REPRODUCIBILITY, revision=head.sha, **of)).read_bytes()
                earlier = {REPRODUCIBILITY, *json.loads(listed)["files"]}
        gone = {name for name in there if name in earlier or is_pickle_name(name)}
        for pattern in stale:  # as in `Path.glob` a star does not reach over a slash
            gone |= {name for name in fnmatch.filter(there, pattern) if name.count("/") == pattern.count("/")}
        operations = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(files[name])) for name in sorted(files)),
            *(CommitOperationDelete(path_in_repo=name) for name in sorted(gone - set(files))),
        ]
        api.create_commit(repo, operations, commit_message=message, revision=branch, parent_commit=head.sha, **of)
    return url


def download(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """A local folder, or the snapshot of a model on the Hub in the Hub's cache; nothing of it is run.

    Args:
        name: a folder, or OWNER/NAME.
        revision: branch, tag or commit on the Hub.

    Returns:
        The folder; the commit on the Hub, None for a local folder.

    Raises:
        InputError: neither, or the Hub does not give it out.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"--revision is of models on the Hub, and {name} is a folder; leave one of them out.")
        return folder.absolute(), None
    check_model_folder(name)
    with hub_errors(f"fetching {name}", "Look at the name and the revision; `hf auth login` for private models."):
        # Where the Hub fails, the client would take what the cache has; only HF_HUB_OFFLINE may do that.
        with contextlib.suppress(OfflineModeIsEnabled):
            revision = HfApi().model_info(name, revision=revision).sha
        path = Path(snapshot_download(name, revision=revision))
    return path, path.name
