"""Steps of a run: commands that a user can type, one after another, with a marker file for each that is done.

The same arguments resume after the last complete step; a complete run, or one of other arguments, is replaced only
where the caller says so. Only files that the steps themselves make are ever removed.
"""

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils import OWNER_FILES, InputError, owned, read_json, write_json

RUN_FILE = "run.json"  # what decides a run's results
MARKERS = "steps"  # a JSON file a step: command, whether it is done, time and memory
LOGS = "logs"
HEARTBEAT_S = 30.0
OUT = "{out}"  # stands for the output folder in commands


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Args:
        name: of its marker, of its log, and in the report.
        title: what it does.
        command: what a user would type, with `OUT` for the output folder.
        makes: files or folders in the output folder that exist when it has succeeded; some tools end with 0 although
            they wrote nothing.
        owns: files or folders in the output folder that it writes, patterns allowed; removed before it starts from
            nothing.
        resumes: whether the command resumes from its own checkpoints, so that what it left is kept.
    """

    name: str
    title: str
    command: str
    makes: tuple[str, ...] = ()
    owns: tuple[str, ...] = ()
    resumes: bool = False

    def typed(self, out: Path) -> str:
        """The command as one line for a shell."""
        return self.command.replace(OUT, shlex.quote(str(out)))

    def missing(self, out: Path) -> list[str]:
        return [name for name in self.makes if not (out / name).exists()]

    def done(self, out: Path) -> bool:
        return bool(marker_of(out, self.name).get("done")) and not self.missing(out)


class StepFailed(Exception):
    """A step ended with an exit code that is not 0, or without the files it should have made."""

    def __init__(self, code: int, log: Path, reason: str):
        super().__init__(reason)
        self.code, self.log = code, log


def run(out: Path, steps: Sequence[Step], about: Mapping[str, Any], overwrite: bool = False,
        say: Callable[[str], None] = print) -> None:  # fmt: skip
    """Run what is not yet done of `steps` in `out`.

    Args:
        out: output folder; made if it is missing.
        steps: in the order in which they run.
        about: what `run.json` holds beside the commands, "arguments" among it.
        overwrite: whether a complete run, or one of other arguments, is removed. An interrupted run of the same
            arguments resumes in any case.
        say: prints a line of progress.

    Raises:
        InputError: `out` holds files but no `run.json`, another run works in it, or it holds a run of other arguments
            and `overwrite` is not set.
        StepFailed: with the exit code and the log of the step that failed.
        KeyboardInterrupt: passed on after the running step has been ended.
    """
    about = json.loads(json.dumps({**about, "commands": {step.name: step.command for step in steps}}))
    file = out / RUN_FILE
    if out.exists() and not file.is_file() and (not out.is_dir() or {p.name for p in out.iterdir()} - {*OWNER_FILES}):
        raise InputError(
            f"--out {out} is or holds a file that this command did not write (there is no {RUN_FILE}); name a new or "
            "empty folder"
        )
    with owned(out, "--out"):
        before = read_json(file, "the arguments of a run") if file.is_file() else about
        # A run resumes only where all that decides its results is the same.
        odd = [name for name in about if name != "machine" and before.get(name) != about[name]]
        finished = not odd and all(step.done(out) for step in steps)
        if odd and not overwrite:
            old, new = before.get("arguments", {}), about["arguments"]
            changes = [f"{name} {old.get(name)} and not {new[name]}" for name in new if old.get(name) != new[name]]
            raise InputError(
                f"{out} holds a run of other {'; '.join([*odd, *changes])}: name another folder, or replace that run "
                "by --overwrite"
            )
        if finished and not overwrite:
            return say(f"{out}: the run is finished; --overwrite makes it again")
        if odd or finished:
            say(f"replacing the run in {out}")
            _remove(out, [*(name for step in steps for name in step.owns), MARKERS, LOGS])
        write_json(file, about)
        for number, step in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.done(out):
                say(f"{label}: already done")
                continue
            # Later steps read what this one writes: whatever they had done is out of date.
            _remove(out, [f"{MARKERS}/{later.name}.json" for later in steps[number:]])
            say(f"{label}: {step.title}\n    $ {step.typed(out)}")
            marker = _run_step(out, step, say)
            say(f"{label}: done in {marker['wall_s']:.1f} s, peak memory {marker['peak_rss_mb']} MB")


def marker_of(out: Path, name: str) -> dict[str, Any]:
    """Of a step: `command`, `done`, `wall_s` and `peak_rss_mb`; empty where it never started."""
    path = out / MARKERS / f"{name}.json"
    return read_json(path, "the marker of a step") if path.is_file() else {}


def refuse_unlike(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise an InputError unless runs differ in their seeds alone, as those have to of which a mean is taken.

    Args:
        runs: folder -> "seed", "backbone", and what has to be equal. Each seed may have its own backbone; that one
            was given counts.
    """
    first, seeds = next(iter(runs)), set()
    for folder, run in runs.items():
        if run["seed"] in seeds:
            raise InputError(f"{folder} has the same seed as another, {run['seed']}; name each seed once")
        seeds.add(run["seed"])
        before, now = ({**of, "seed": None, "backbone": bool(of["backbone"])} for of in (runs[first], run))
        if odd := [f"{name} {before.get(name)} and {now[name]}" for name in now if now[name] != before.get(name)]:
            raise InputError(f"{first} and {folder} differ in {'; '.join(odd)}; a mean needs runs that are alike")


def _run_step(out: Path, step: Step, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a step, and return its marker."""
    path, log = out / MARKERS / f"{step.name}.json", out / LOGS / f"{step.name}.log"
    marker = marker_of(out, step.name)
    if not step.resumes or not marker or marker["done"]:
        # The time of broken attempts is not the cost of a step that starts from nothing.
        _remove(out, step.owns)
        marker = {"wall_s": 0.0, "peak_rss_mb": None}
    marker |= {"command": step.typed(out), "done": False}
    for folder in (path.parent, log.parent):
        folder.mkdir(exist_ok=True)
    write_json(path, marker)
    started, code = time.monotonic(), 1
    try:
        code, marker["peak_rss_mb"] = _run_command(out, step, log, say)
    finally:
        marker["wall_s"] = round(marker["wall_s"] + time.monotonic() - started, 2)
        marker["done"] = code == 0 and not step.missing(out)
        write_json(path, marker)
    if not marker["done"]:
        reason = f"with exit code {code}" if code else f"without writing {step.missing(out)[0]}"
        raise StepFailed(code or 1, log, f"step {step.name!r} ended {reason}")
    return marker


def _run_command(out: Path, step: Step, log: Path, say: Callable[[str], None]) -> tuple[int, float]:
    """Exit code (128 + the number of a signal that ended it) and the largest memory of one of its processes, in MB.

    Between fork and exec a subprocess is a copy of this process, so that the memory is never below this one's.
    """
    # Programs beside the running Python come first: no environment needs to be activated.
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with log.open("ab") as file:
        process = subprocess.Popen(
            shlex.split(step.typed(out)), env={**os.environ, "PATH": paths}, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
    started = beat = time.monotonic()
    try:
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            time.sleep(0.1)
            if time.monotonic() - beat > HEARTBEAT_S:
                beat = time.monotonic()
                say(f"    {beat - started:5.0f} s  {' '.join(last_lines(log, 1))}")
    except BaseException:
        _end(process)
        raise
    code = process.returncode = os.waitstatus_to_exitcode(ended[1])
    # Linux counts in KiB, macOS in bytes.
    peak = ended[2].ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return code if code >= 0 else 128 - code, round(peak / 2**20, 1)


def last_lines(log: Path, count: int = 20) -> list[str]:
    """The last lines of a log; of a progress bar its last state."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [re.split(r"\r+", line.rstrip())[-1] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]


def _end_with_parent() -> None:
    """In the subprocess before it starts: where the kernel can, SIGTERM when the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def _end(process: subprocess.Popen) -> None:
    """End a subprocess and its descendants: SIGTERM first, since a trainer may be writing a checkpoint."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _remove(out: Path, names: Sequence[str]) -> None:
    """Remove files and folders inside `out`, by names or patterns; of a link the link."""
    for path in (path for name in names for path in (out.glob(name) if "*" in name else [out / name])):
        if Path(os.path.abspath(out)) not in Path(os.path.abspath(path)).parents:
            raise ValueError(f"{path} is not inside {out}")
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
