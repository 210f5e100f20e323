"""One process of several under a launcher: how it ends, and what it logs."""

import atexit
import contextlib
import logging
import os
import sys
from typing import NoReturn


def end_rank(code: int) -> NoReturn:
    """End this process with an exit code.

    Under a launcher not by sys.exit: a rank that fails while others wait in a collective must not wait for them, and
    one that has finished is now and then aborted by threads of the communication libraries that outlive the
    interpreter.
    """
    if not code:
        leave_ranks()
    if "LOCAL_RANK" not in os.environ:
        sys.exit(code)
    if not code:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_ranks() -> None:
    """Take the process group down while Python still runs: its threads must not outlive the interpreter."""
    if "torch" not in sys.modules:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def shown_log(main_process: bool):
    """Shows what the library logs as plain lines on stderr; ranks other than the first show warnings only."""
    library = logging.getLogger("vaemotionllm")
    handler, before = logging.StreamHandler(), library.level
    handler.setLevel(logging.INFO if main_process else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(message)s"))
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(before)
