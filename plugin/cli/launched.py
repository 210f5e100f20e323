"""Commands as one process of several under a launcher, and hints for settings that are given in the wrong form."""

import argparse
import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable

from ..utils import RankError, bound_spinning
from .main import USER_ERRORS, one_line


def run_as_rank(
    command: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    words: list[str],
) -> int:
    """Run a command with the words of its command line, and return its exit code: 2 for bad input.

    Rank 0 reports what all ranks met; what one rank alone met it reports itself.
    """
    bound_spinning()
    parser = argparse.ArgumentParser(prog=f"vaemotionllm {command}")
    add_arguments(parser)
    # The deepspeed launcher adds it; the environment variable LOCAL_RANK says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)
    code = 0
    try:
        code = run(parser.parse_args(words)) or 0
        leave_ranks()
    except USER_ERRORS as error:
        code, rank = 2, os.environ.get("RANK", "0")
        if rank == "0":
            print(f"vaemotionllm {command}: error: {one_line(error)}", file=sys.stderr)
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


def hint_at_form(parser: argparse.ArgumentParser) -> None:
    """Let a parser end with a hint where config fields are given as flags, or flags as `key=value`.

    Settings have one form: `key=value` for the fields of a config that the command reads, flags for all else.
    """
    parse = parser.parse_known_args

    def parse_known_args(args=None, namespace=None):
        flags = {flag for action in parser._actions for flag in action.option_strings}
        reads_config = any(action.dest == "overrides" for action in parser._actions)
        for word, following in zip(args, [*args[1:], "VALUE"]):
            name, equals, value = word.partition("=")
            flag = "--" + name.lstrip("-").replace("_", "-")
            if equals and not word.startswith("-") and flag in flags:
                parser.error(f"{word}: this setting is a flag; write {flag} {value}")
            if not word.startswith("--") or any(known.startswith(name) for known in flags):
                continue
            if flag in flags:
                parser.error(f"{name} is unknown; write {flag}")
            if reads_config:
                field = name.lstrip("-").replace("-", "_")
                parser.error(f"{name}: config fields are given without dashes; write {field}={value or following}")
        found, rest = parse(args, namespace)
        if reads_config:  # argparse takes them where they stand together
            scattered = [word for word in rest if "=" in word and not word.startswith("-")]
            found.overrides = [*found.overrides, *scattered]
            rest = [word for word in rest if word not in scattered]
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


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
