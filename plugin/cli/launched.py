"""A command as one process of several, started by deepspeed, torchrun or accelerate as a module."""

import argparse
import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable

from ..utils import RankError, bound_spinning
from .main import USER_ERRORS, in_words


def run_as_rank(
    command: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Run a command and return its exit code: 2 for bad input.

    Rank 0 tells what all ranks met; what one rank alone met it tells itself.
    """
    bound_spinning()
    parser = argparse.ArgumentParser(prog=f"vaemotionllm {command}")
    add_arguments(parser)
    # The deepspeed launcher adds it; the environment variable LOCAL_RANK says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)
    code = 0
    try:
        code = run(parser.parse_args()) or 0
        leave_ranks()
    except USER_ERRORS as error:
        code, rank = 2, os.environ.get("RANK", "0")
        if rank == "0":
            print(f"vaemotionllm {command}: error: {in_words(error)}", file=sys.stderr)
        elif isinstance(error, RankError):
            print(f"vaemotionllm {command}: error on rank {rank}: {error}", file=sys.stderr)
    if "LOCAL_RANK" not in os.environ:
        return code
    # Not sys.exit: a rank that fails while others wait in a collective must not wait for them itself, and one that has
    # finished is now and then aborted by threads of the communication libraries that outlive the interpreter.
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
