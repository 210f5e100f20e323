"""Files onto the Hub in one commit: large ones go first, and what makes anything of it visible comes last."""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..utils import InputError
from .errors import is_passing, told_in_words

logger = logging.getLogger(__name__)

# Waits before another attempt at what the client itself tries once.
WAITS_S = (1.0, 4.0)
TIMEOUT_S = 120.0


def upload(
    files: Mapping[str, Path],
    repo: str,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    stale: Callable[[list[str], Callable[[str], bytes]], list[str]] | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Makes the repository where it is missing and commits all files at once.

    Whoever loads the revision meanwhile gets what was there before, whole, whenever the upload breaks off:
    `upload_folder` and `upload_large_folder` may make several commits and are not used. A commit names the one that
    it follows, so that the Hub refuses it where somebody else was faster.

    Args:
        files: path in the repository -> file.
        repo: "owner/name".
        private: make the repository private, where it is made.
        revision: branch; made where it is missing. The main one if not given.
        stale: called with the paths in the commit before, and with what reads one of them; gives those that go.
        endpoint, token: of the Hub, in place of HF_ENDPOINT and the saved token.
        timeout_s: longest silence of the Hub within one request.

    Returns:
        Address of the repository, at the branch if one was named.

    Raises:
        InputError: in words, whatever went wrong.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint, token=token)
    branch = revision or "main"
    with told_in_words(repo), _time_limit(timeout_s):
        url = str(_again(api.create_repo, repo, repo_type=repo_type, private=private or None, exist_ok=True))
        if private and not _again(api.repo_info, repo, repo_type=repo_type).private:
            raise InputError(f"{repo} is there already and public, and --private was asked for. Take another name.")
        if revision is not None:
            _again(api.create_branch, repo, branch=revision, repo_type=repo_type, exist_ok=True)
            url = f"{url}/tree/{revision}"
        before = str(_again(api.repo_info, repo, repo_type=repo_type, revision=branch).sha)
        there = _again(api.list_repo_files, repo, repo_type=repo_type, revision=before)
        read = partial(_read, api, repo, repo_type, before)
        gone = sorted(set(stale(there, read) if stale else ()) - set(files))
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(files[name])) for name in sorted(files)]
        operations = [*additions, *(CommitOperationDelete(path_in_repo=name) for name in gone)]
        api.preupload_lfs_files(repo, additions, repo_type=repo_type, revision=branch, free_memory=False)
        _commit(api, repo, repo_type, branch, before, operations, message)
    return url


def _read(api, repo: str, repo_type: str, commit: str, name: str) -> bytes:
    """A file of a commit, past the cache of downloads."""
    with tempfile.TemporaryDirectory() as folder:
        file = _again(api.hf_hub_download, repo, name, repo_type=repo_type, revision=commit, local_dir=folder)
        return Path(file).read_bytes()


def _commit(api, repo: str, repo_type: str, branch: str, before: str, operations: list, message: str) -> None:
    """One commit; where its answer was lost, the Hub is asked whether it was made."""
    for attempt in range(len(WAITS_S) + 1):
        try:
            api.create_commit(
                repo,
                operations,
                commit_message=message,
                repo_type=repo_type,
                revision=branch,
                parent_commit=before,
            )
            return
        except Exception as error:
            if attempt and _is_there(api, repo, repo_type, branch, operations):
                return
            if attempt == len(WAITS_S) or not is_passing(error):
                raise
            logger.warning("The commit did not go through (%s); trying again.", type(error).__name__)
            time.sleep(WAITS_S[attempt])


def _is_there(api, repo: str, repo_type: str, branch: str, operations: list) -> bool:
    """Whether the branch holds what the operations would make."""
    tree = {file.path: file for file in api.list_repo_tree(repo, repo_type=repo_type, revision=branch, recursive=True)}
    for operation in operations:
        found = tree.get(operation.path_in_repo)
        if not hasattr(operation, "path_or_fileobj"):  # it goes
            if found is not None:
                return False
            continue
        if found is None or operation.upload_info.size != found.size:
            return False
        lfs = found.lfs
        with operation.as_file() as file:
            same = (
                operation.upload_info.sha256.hex() == lfs.sha256
                if lfs is not None
                else _git_hash(file.read()) == found.blob_id
            )
        if not same:
            return False
    return True


def _git_hash(content: bytes) -> str:
    from huggingface_hub.utils.sha import git_hash

    return git_hash(content)


def _again(call: Callable, *args, **kwargs) -> Any:
    """A call that changes nothing when it is made twice; the client itself tries these once."""
    for attempt in range(len(WAITS_S) + 1):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if attempt == len(WAITS_S) or not is_passing(error):
                raise
            logger.warning("The Hub did not answer as it should (%s); trying again.", type(error).__name__)
            time.sleep(WAITS_S[attempt])
    raise AssertionError("the loop returns or raises")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """The client waits for ever by default; in the block, so long for each piece of an answer."""
    from httpx2 import Timeout
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    # There is no public way to ask for the factory in force, which may be the user's own (proxies, certificates).
    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)

    def limited():
        client = factory()
        client.timeout = Timeout(seconds)
        return client

    set_client_factory(limited)
    try:
        yield
    finally:
        set_client_factory(factory)
