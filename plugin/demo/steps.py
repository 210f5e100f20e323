"""Steps of a run: commands that a user can type, one after another, with a marker file for each that is done.

The same arguments resume after the last complete step; a complete run, or one of other arguments, is replaced only
where the caller says so. Only files that the steps themselves make are ever removed.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import InputError, read_json, write_json

RUN_FILE = "run.json"  # what decides a run's results
MARKERS = "steps"  # a JSON file a step: command, whether it is done, time and memory
LOGS = "logs"
HEARTBEAT_S = 30.0
# What of `run.json` decides the results; a run resumes only where all of it is the same.
DECISIVE = ("arguments", "versions", "configs", "arithmetic", "commands")


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Args:
        name: of its marker, of its log, and in the report.
        title: what it does.
        command: what a user would type, word by word.
        makes: files or folders that exist when it has succeeded; some tools end with 0 although they wrote nothing.
        owns: files or folders inside the output folder that it writes, patterns allowed; removed before it starts
            from nothing.
        env: environment variables it needs.
        resumes: whether the command resumes from its own checkpoints, so that what it left is kept.
    """

    name: str
    title: str
    command: tuple[str, ...]
    makes: tuple[Path, ...] = ()
    owns: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    resumes: bool = False

    def typed(self) -> str:
        """The command as one line for a shell."""
        prefix = [f"{key}={shlex.quote(value)}" for key, value in self.env.items()]
        return " ".join([*prefix, shlex.join(self.command)])


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
    for path in (path for step in steps for path in step.owns):
        _inside(path, out)
    commands = {step.name: step.typed().replace(str(out), "OUT") for step in steps}
    about = json.loads(json.dumps({**about, "commands": commands}))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a new or empty folder")
    file = out / RUN_FILE
    if not file.is_file() and out.exists() and any(out.iterdir()):
        raise InputError(
            f"--out {out} holds files that this command did not write (there is no {RUN_FILE} in it); name a new or "
            "empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        if file.is_file():
            before = read_json(file, "the arguments of a run")
            complete = all(marker_of(out, name).get("done") for name in before.get("commands", ["none"]))
            same = all(before.get(name) == about.get(name) for name in DECISIVE)
            if same and complete and not overwrite and all(path.exists() for step in steps for path in step.makes):
                return say(f"{out}: the run is finished; --overwrite makes it again")
            if same and not (complete and overwrite):
                say(f"{out}: resuming after the last complete step")
            else:
                described = _described(before, about, complete)
                if not overwrite:
                    raise InputError(
                        f"{out} holds {described}; name another folder with --out, or replace that run with "
                        "--overwrite"
                    )
                say(f"replacing {described.partition(',')[0]} in {out}")
                _remove(out, [*(path for step in steps for path in step.owns), out / MARKERS, out / LOGS])
        write_json(file, about)
        for number, step in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {step.name}"
            marker = marker_of(out, step.name)
            if marker.get("done") and all(path.exists() for path in step.makes):
                say(f"{label}: already done ({marker['wall_s']:.1f} s)")
                continue
            # Later steps read what this one writes: whatever they had done is out of date.
            for later in steps[number:]:
                (out / MARKERS / f"{later.name}.json").unlink(missing_ok=True)
            say(f"{label}: {step.title}\n    $ {step.typed()}")
            _run_step(out, step, label, marker, say)


def marker_of(out: Path, name: str) -> dict[str, Any]:
    """Of a step: `title`, `command`, `done`, `wall_s` and `peak_rss_mb`; empty where it never started."""
    path = out / MARKERS / f"{name}.json"
    return read_json(path, "the marker of a step") if path.is_file() else {}


def _run_step(out: Path, step: Step, label: str, marker: dict, say: Callable[[str], None]) -> None:
    path, log = out / MARKERS / f"{step.name}.json", out / LOGS / f"{step.name}.log"
    resumed = step.resumes and marker and not marker.get("done")
    if not resumed:
        # The time of broken attempts is not the cost of a step that starts from nothing.
        _remove(out, step.owns)
        marker = {"wall_s": 0.0}
    marker = {"title": step.title, "command": step.typed(), "peak_rss_mb": None, **marker, "done": False}
    for folder in (path.parent, log.parent):
        folder.mkdir(exist_ok=True)
    write_json(path, marker)
    started, code = time.monotonic(), 1
    try:
        code, marker["peak_rss_mb"] = _run_command(step, log, say)
    finally:
        missing = [made for made in step.makes if not made.exists()]
        marker["wall_s"] = round(marker["wall_s"] + time.monotonic() - started, 2)
        marker["done"] = code == 0 and not missing
        write_json(path, marker)
    if code != 0:
        raise StepFailed(code, log, f"step {step.name!r} ended with exit code {code}")
    if missing:
        raise StepFailed(1, log, f"step {step.name!r} ended without writing {missing[0]}")
    say(f"{label}: done in {marker['wall_s']:.1f} s, peak memory {marker['peak_rss_mb']:.0f} MB")


def _run_command(step: Step, log: Path, say: Callable[[str], None]) -> tuple[int, float]:
    """Exit code (128 + the number of a signal that ended it) and the largest memory of one of its processes, in MB.

    Between fork and exec a subprocess is a copy of this process, so that the memory is never below this one's.
    """
    started = beat = time.monotonic()
    # Programs beside the running Python come first: no environment needs to be activated.
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with log.open("ab") as file:
        try:
            process = subprocess.Popen(
                step.command, env={**os.environ, "PATH": paths, **step.env}, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise InputError(
                f"the command {step.command[0]!r} is not on PATH nor beside {sys.executable}; install the package "
                "with `pip install vaemotionllm[demo]`"
            ) from error
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


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold a folder against another run; the kernel lets go when this process ends, however it ends."""
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"another run works in {out}; wait for it, end it, or name another folder") from error
    finally:
        os.close(folder)


def _inside(path: Path, out: Path) -> str:
    relative = Path(os.path.relpath(path, out))
    if relative.parts[:1] in ((), ("..",)) or relative.is_absolute():
        raise ValueError(f"{path} is not inside {out}")
    return relative.as_posix()


def _remove(out: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        # A name may be a pattern such as `.world.*.partial`; what it matches lies inside the output folder as well.
        for target in out.glob(_inside(path, out)):
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)


def _described(before: Mapping[str, Any], about: Mapping[str, Any], complete: bool) -> str:
    """A run as text, and what keeps it from being that of `about`."""
    old, new = before.get("arguments", {}), about["arguments"]
    odd = [
        f"--{name.replace('_', '-')} {old.get(name)}, not {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    reason = "; ".join(odd) or "other versions, configurations or commands than those installed now"
    return f"the {'finished' if complete else 'interrupted'} run with seed {old.get('seed')}, made with {reason}"
