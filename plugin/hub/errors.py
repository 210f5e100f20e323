"""What a user can do about an answer of the Hub, in words. Its own text is not repeated: it may quote the token."""

import contextlib
from collections.abc import Callable, Iterator

from ..utils import InputError

_AGAIN = "The same command goes on; what was uploaded is not sent twice."


def check_name(repo: str) -> None:
    """Raises an InputError unless `repo` is "owner/name"."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("an owner and a name are needed")
    except HFValidationError as error:
        raise InputError(f"--repo is {repo!r}; allowed is OWNER/NAME ({error}).") from error


@contextlib.contextmanager
def told_in_words(repo: str, words_of: Callable[[BaseException, str], str | None] | None = None) -> Iterator[None]:
    """Turns what the client raises in the block into an InputError.

    The client's error is not kept as its cause: a traceback would print the Hub's text.

    Args:
        words_of: error, repo -> sentences, or None for an error that is raised as it is; of an upload if not given.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words = (words_of or in_words)(error, repo)
        if words is None:
            raise
        raise InputError(words) from None


def in_words(error: BaseException, repo: str) -> str | None:
    """One or two sentences about an error of huggingface_hub; None for one that is not about the Hub."""
    from httpx2 import HTTPError, TimeoutException
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return "no token for the Hub was found here; run `hf auth login` or set HF_TOKEN."
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
        return (
            "the Hub does not take the metadata at the head of the model card: --license, or what the folder's own "
            "README.md says there. Mend it and push again."
        )
    # The client wraps what ends the upload of a large file.
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _status_in_words(getattr(cause.response, "status_code", None), repo)
        if isinstance(cause, OfflineModeIsEnabled):
            return "the Hub cannot be reached: HF_HUB_OFFLINE is set. Unset it to upload."
        if isinstance(cause, (TimeoutException, TimeoutError)):
            return f"the Hub did not answer in time while {repo} was uploaded. Try again later. {_AGAIN}"
        if isinstance(cause, (HTTPError, ConnectionError)):
            return f"the Hub cannot be reached ({type(cause).__name__}). Check the network. {_AGAIN}"
        if type(cause).__name__ == "XetAuthenticationError":  # of hf_xet, which need not be installed
            return _status_in_words(401, repo)
    # hf_xet raises plain ones; the client's own about a malformed answer are ValueErrors.
    if isinstance(error, (RuntimeError, ValueError, OSError)) and _from_client(error):
        return f"the upload to {repo} failed ({type(error).__name__}). {_AGAIN}"
    return None


def fetching_in_words(error: BaseException, name: str, revision: str | None) -> str | None:
    """One or two sentences about an error of huggingface_hub while a model is fetched; None for one that is not."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"{name} is given out on request only; ask on its page, then run `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; name a branch, a tag or a commit."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name!r} is neither a folder nor a model that the Hub gives out to you. Look at the name; of a private "
            "one run `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            return f"the Hub does not give {name} out to this token ({status}). Run `hf auth login` with another."
        return f"the Hub answered {status} when {name} was asked for; try again later."
    if isinstance(error, HFValidationError):
        return f"{name!r} is neither a folder nor a name OWNER/NAME of the Hub."
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError)):
        return (
            f"the Hub cannot be reached ({type(error).__name__}), and {name} is not whole in its cache. Check the "
            "network and HF_HUB_OFFLINE, or give a folder."
        )
    if isinstance(error, OSError):
        return f"{name} cannot be put into the Hub's cache ({error.strerror or type(error).__name__}): see HF_HOME."
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment: a broken connection, a timeout, an overloaded Hub."""
    from httpx2 import NetworkError, RemoteProtocolError, TimeoutException
    from huggingface_hub.errors import HfHubHTTPError

    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return getattr(cause.response, "status_code", 0) in (408, 429, 500, 502, 503, 504)
        if isinstance(cause, (NetworkError, RemoteProtocolError, TimeoutException)):
            return True
    return False


def _status_in_words(status: int | None, repo: str) -> str:
    owner = repo.partition("/")[0]
    if status == 401:
        return "the Hub refused the token (401). Run `hf auth login` with a valid one, or set HF_TOKEN."
    if status == 403:
        who = f"Use one with write access to {owner}, or another owner in --repo."
        return f"the token may not write to {repo} (403). {who}"
    if status == 404:
        return f"the Hub knows no owner {owner!r} that this token may write for, or no such revision of {repo} (404)."
    if status in (409, 412):
        return (
            f"{repo} was changed by somebody else while this upload ran ({status}); nothing of it was overwritten. "
            f"Look at what is there now, then push again. {_AGAIN}"
        )
    if status == 413:
        return f"the Hub took a file or the whole of {repo} as too large (413). Save with a smaller max_shard_size."
    if status == 429:
        return f"the Hub asks for patience (429: too many requests). Wait some minutes. {_AGAIN}"
    if status is not None and status >= 500:
        return f"the Hub is out of order ({status}) while {repo} was uploaded. Try again later. {_AGAIN}"
    return f"the Hub answered {status} while {repo} was uploaded. Try again; what was uploaded is not sent twice."


def _from_client(error: BaseException) -> bool:
    """Whether it was raised inside the client and not in code of ours."""
    traceback, last = error.__traceback__, ""
    while traceback is not None:
        last = str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next
    return last.partition(".")[0] in ("huggingface_hub", "hf_xet", "json")
