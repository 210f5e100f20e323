"""A failure to write, a full disk mostly: said in words, and nothing half-written left."""

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError

from ..errors import RankError


@contextlib.contextmanager
def told_writing(path: Path, unfinished: bool = False):
    """Turns a failure to write below `path`, a file or a folder, into an error that says what to do.

    Args:
        path: what is written, or the folder in which several files are.
        unfinished: whether `path` is of no use half-written and is removed.

    Raises:
        RankError: one rank may meet it alone.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            # torch.save has no exception of its own, and names a place in its sources.
            if not any(words in str(error) for words in ("PytorchStreamWriter", "inline_container", "write(): fd")):
                raise
            error = OSError("a file was cut short")
        if unfinished:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free / 2**30
        name = path.name.removesuffix(".tmp")
        raise RankError(
            f"cannot write {name} in {path.parent}: {error} ({free:.1f} GiB are free there). What was written before "
            "is whole: make room and run the same command again to go on."
        ) from error
