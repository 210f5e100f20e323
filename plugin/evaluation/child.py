"""Runs one child process: its output into a log and a display, its time and the memory of its whole process tree."""

import ctypes
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

SAMPLE_S = 0.2
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def run_child(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    output: Callable[[bytes], None],
    progress: Callable[[float, float], None],
) -> int:
    """Runs `command` to its end.

    Args:
        command: program and arguments.
        env: its whole environment.
        log: file that its output (both streams) is appended to; of a progress bar only the last state is kept.
        output: called with each piece of output.
        progress: called about every 0.2 s, and once at the end, with wall time in s and peak memory in MB. Memory is
            the resident set of the process and its descendants, summed (pages they share count once each), or the
            largest single process by the kernel's own account where that is larger.

    Returns:
        The exit code; 128 + the signal's number if a signal ended it.
    """
    started = time.monotonic()
    with log.open("ab") as log_file:
        child = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )
        assert child.stdout is not None
        lines = _BarFilter(log_file)
        peak = 0.0
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                sampled, ended, closed = 0.0, None, False
                while ended is None or not closed:
                    piece = b""
                    if not closed and selector.select(SAMPLE_S):
                        piece = os.read(child.stdout.fileno(), 65536)
                        closed = not piece
                        lines.write(piece)
                        output(piece)
                    elif ended is not None:
                        break  # a stray descendant holds the pipe open, but the command itself is over
                    if ended is None and not piece:
                        pid, *rest = os.wait4(child.pid, os.WNOHANG if not closed else 0)
                        ended = rest if pid else None
                    if time.monotonic() - sampled >= SAMPLE_S:
                        peak = max(peak, tree_rss_mb(child.pid))
                        sampled = time.monotonic()
                        progress(sampled - started, peak)
        except BaseException:
            _end(child)
            raise
        finally:
            lines.close()
            child.stdout.close()
        status, usage = ended
        # The child has been reaped above; Popen must not wait for it a second time.
        child.returncode = os.waitstatus_to_exitcode(status)
        # The kernel's figure counts the moment between fork and exec, when the child is still a copy of this process.
        largest, own = _maxrss_mb(usage), _maxrss_mb(resource.getrusage(resource.RUSAGE_SELF))
        progress(time.monotonic() - started, max(peak, largest if largest > own else 0.0))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_with_parent() -> None:
    """In the child before it starts: where the kernel can, ask for SIGTERM when the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def tree_rss_mb(pid: int) -> float:
    """Resident memory of a process and all its descendants in MB; 0 if it has ended."""
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            pass
    return total / 2**20


def _maxrss_mb(usage) -> float:
    # Linux counts in KiB, macOS in bytes.
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _end(child: subprocess.Popen) -> None:
    """Ends the child and its descendants: asks first, since a trainer may be writing a checkpoint."""
    try:
        family = [psutil.Process(child.pid)]
        family += family[0].children(recursive=True)
    except psutil.Error:
        return
    for process in family:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.Error:
            pass
    for process in psutil.wait_procs(family, timeout=10)[1]:
        try:
            process.kill()
        except psutil.Error:
            pass
    child.poll()


class _BarFilter:
    """Writes complete lines; of a line that was overwritten by carriage returns, only the last state."""

    def __init__(self, file):
        self.file, self.rest = file, b""

    def write(self, piece: bytes) -> None:
        *complete, self.rest = (self.rest + piece).split(b"\n")
        for line in complete:
            self.file.write(_last_state(line) + b"\n")
        # A bar without any newline would grow for the whole run.
        if len(self.rest) > 1 << 16:
            self.rest = _last_state(self.rest)
        if complete:
            self.file.flush()

    def close(self) -> None:
        if self.rest:
            self.file.write(_last_state(self.rest) + b"\n")
            self.rest = b""
        self.file.flush()


def _last_state(line: bytes) -> bytes:
    states = [state for state in line.split(b"\r") if state.strip()]
    return states[-1] if states else b""


class Display:
    """Progress on a terminal: one line a finished step, and the running step's own last line or bar below it.

    Where standard output is no terminal, a line at each start and end, and the running step's last line every 30 s.
    `verbose` passes everything through.
    """

    def __init__(self, stream=None, verbose: bool = False, heartbeat_s: float = 30.0):
        self.stream = stream or sys.stdout
        self.verbose, self.heartbeat_s = verbose, heartbeat_s
        self.live = not verbose and self.stream.isatty()
        self.tail, self.label, self.begun, self.last_beat = b"", "", 0.0, 0.0

    def started(self, number: int, total: int, step) -> None:
        self.label = f"[{number}/{total}] {step.name}"
        self.tail, self.begun = b"", time.monotonic()
        self.last_beat = self.begun
        if not self.live:
            self._line(f"{self.label}: {step.title}\n    $ {step.typed()}")

    def output(self, piece: bytes) -> None:
        self.tail = (self.tail + piece)[-4096:]
        now = time.monotonic()
        if self.verbose:
            self.stream.write(piece.decode("utf-8", "replace"))
            self.stream.flush()
        elif self.live:
            if now - self.last_beat > 0.1:
                self.last_beat = now
                self._status(now)
        elif now - self.last_beat > self.heartbeat_s:
            self.last_beat = now
            self._line(f"    {now - self.begun:5.0f} s  {self.last_line()}")

    def finished(self, number: int, total: int, step, entry: dict) -> None:
        mark = "done" if entry["status"] == "done" else "FAILED"
        cached = ", from the cache" if entry.get("from_cache") else ""
        self._line(
            f"[{number}/{total}] {step.name:<16} {mark} in {entry['wall_s']:6.1f} s, "
            f"peak memory {entry['peak_rss_mb']:5.0f} MB{cached}"
        )

    def skipped(self, number: int, total: int, step, entry: dict) -> None:
        self._line(f"[{number}/{total}] {step.name:<16} already done ({entry['wall_s']:.1f} s)")

    def last_line(self) -> str:
        """The newest line of the running step that is not empty, without terminal escapes."""
        states = re.split(rb"[\r\n]+", _ESCAPE.sub(b"", self.tail))
        last = next((state for state in reversed(states) if state.strip()), b"")
        return last.decode("utf-8", "replace").strip()

    def _status(self, now: float) -> None:
        minutes, seconds = divmod(int(now - self.begun), 60)
        text = f"{self.label}  {minutes:02d}:{seconds:02d}  {self.last_line()}"
        self.stream.write("\r\x1b[2K" + text[: shutil.get_terminal_size().columns - 1])
        self.stream.flush()

    def _line(self, text: str) -> None:
        self.stream.write(("\r\x1b[2K" if self.live else "") + text + "\n")
        self.stream.flush()
