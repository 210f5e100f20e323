"""Ends lmms-eval's command with an exit code and one line.

lmms-eval's command catches every exception, prints a stack trace and ends with code 0, so a script would take a failed
evaluation for a good one. Inside that command, and only there, bad input ends the process instead.
"""

import sys
from typing import NoReturn

INPUT_ERROR = 2
FAILURE = 1


def in_lmms_eval_command() -> bool:
    """Whether this process is `lmms-eval ...`, `python -m lmms_eval` or a launcher's worker of it."""
    if "lmms_eval.__main__" in sys.modules:
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "lmms_eval.__main__"


def stop(error: Exception, code: int = INPUT_ERROR) -> NoReturn:
    """Raises `error`, or inside lmms-eval's command writes it as one line and ends the process with `code`."""
    if in_lmms_eval_command():
        sys.stdout.flush()
        sys.stderr.write(f"lmms-eval: error: {error}\n")
        sys.stderr.flush()
        raise SystemExit(code) from error
    raise error
