"""Runs a list of commands one after another, remembers which are done, and measures time and memory of each.

State is one JSON file in the output folder. The same arguments go on after the last complete step; a complete run, or
one of other arguments, is replaced only where the caller says so. Only files that the steps themselves make are ever
removed.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ..utils import InputError
from .child import run_child

logger = logging.getLogger(__name__)

STATE_FILE = "steps.json"
LOG_FOLDER = "logs"
FORMAT = 1
# Facts that decide the results as the arguments do: a run must not go on with other ones.
DECISIVE_FACTS = ("versions", "configs", "arithmetic")


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Args:
        name: key in the state file, in the report's `cost`, and of the log file.
        title: what it does, for the progress display.
        command: what a user would type, word by word.
        makes: files or folders that exist when it has succeeded; some tools end with 0 although they wrote nothing.
        owns: files or folders inside the output folder that it writes, patterns allowed; removed before it starts
            afresh.
        env: environment variables it needs.
        resumes: True if the command goes on from its own checkpoints, so that what it left is kept.
        cache: a folder that, when it is there before the step, means that the command has nothing to compute.
    """

    name: str
    title: str
    command: tuple[str, ...]
    makes: tuple[Path, ...] = ()
    owns: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    resumes: bool = False
    cache: Path | None = None

    def typed(self) -> str:
        """The command as one line for a shell."""
        prefix = [f"{key}={shlex.quote(value)}" for key, value in self.env.items()]
        return " ".join([*prefix, shlex.join(self.command)])


class StepFailed(Exception):
    """A step ended with an exit code that is not 0, or without the files it should have made."""

    def __init__(self, step: Step, code: int, log: Path, reason: str):
        super().__init__(reason)
        self.step, self.code, self.log, self.reason = step, code, log, reason


def executable(command: Sequence[str]) -> list[str]:
    """The command with its program found beside the running Python first: no environment needs to be activated."""
    program, rest = command[0], list(command[1:])
    if program == "python":
        return [sys.executable, *rest]
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        raise InputError(
            f"the command {program!r} is not installed beside {sys.executable} and not on PATH; "
            "install the package with `pip install vaemotionllm[demo]`"
        )
    return [found, *rest]


def fingerprint(arguments: dict, steps: Sequence[Step], out: Path, facts: dict) -> str:
    """Hash of what decides the results: arguments, each step's command without the output folder's name, versions."""
    decisive = {name: facts.get(name) for name in DECISIVE_FACTS}
    lines = [json.dumps([arguments, decisive], sort_keys=True, default=str)]
    lines += [f"{step.name}\t{step.typed().replace(str(out), 'OUT')}" for step in steps]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class StepRunner:
    """Runs steps into one output folder.

    Args:
        out: output folder; made if it is missing.
        steps: in the order in which they run.
        arguments: the user's arguments, written into the state file.
        facts: further entries of the state file; `DECISIVE_FACTS` count as arguments do.
        display: gets `started`, `output`, `finished` and `skipped` calls; see `child.Display`.
        overwrite: whether a complete run, or one of other arguments, is removed. An interrupted run of the same
            arguments goes on in any case.

    Attributes:
        resumed: whether an interrupted run goes on.
        finished: whether the same run is complete, so that `run` has nothing to do.
        replaced: the run that was removed, in words, or None.

    Raises:
        InputError: if `out` holds files but no state file of this program, another run works in it, or it holds a run
            of other arguments and `overwrite` is not set.
    """

    def __init__(
        self, out: Path, steps: Sequence[Step], arguments: dict, facts: dict, display, overwrite: bool = False
    ):
        self.out, self.steps, self.display = out, list(steps), display
        self.state_path = out / STATE_FILE
        self.fingerprint = fingerprint(arguments, steps, out, facts)
        previous = self._read_previous()
        same = bool(previous) and previous["fingerprint"] == self.fingerprint
        complete = bool(previous) and previous["status"] == "complete"
        self.finished = same and complete and not overwrite and all(p.exists() for step in steps for p in step.makes)
        self.replaced = None
        if self.finished:
            self.resumed, self.state = False, previous
            return
        # What a complete run has lost since is made again, unless all of it is.
        self.resumed = same and not (complete and overwrite)
        if previous and not self.resumed:
            self.replaced = described(previous)
            if not overwrite:
                raise InputError(
                    f"{out} holds {self.replaced}, {differences(previous, arguments)}; name another folder with "
                    "--out, or replace that run with --overwrite"
                )
            self._remove([out / name for name in previous["owned"]])
        out.mkdir(parents=True, exist_ok=True)
        self.state = (
            previous
            if self.resumed
            else {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "arguments": arguments,
                "steps": {},
            }
        )
        self.state.update(facts, status="running")
        self.state["owned"] = sorted(
            {self._inside(path).as_posix() for step in steps for path in step.owns} | {LOG_FOLDER}
        )
        self._claim()
        self._write()

    def run(self) -> None:
        """Runs what is not yet done.

        Raises:
            StepFailed: with the exit code and the log of the step that failed.
            KeyboardInterrupt: passed on after the running step has been ended.
        """
        if self.finished:
            return
        try:
            for number, step in enumerate(self.steps, 1):
                done = self.state["steps"].get(step.name, {})
                if done.get("status") == "done" and all(path.exists() for path in step.makes):
                    self.display.skipped(number, len(self.steps), step, done)
                    continue
                # Later steps read what this one writes: whatever they had done is out of date.
                for later in self.steps[number:]:
                    self.state["steps"].pop(later.name, None)
                self._run_step(number, step)
            self.state["status"] = "complete"
        finally:
            self.state["running"] = None
            self._write()

    def _run_step(self, number: int, step: Step) -> None:
        entry = self.state["steps"].get(step.name)
        if entry is None or entry["status"] == "done" or not step.resumes:
            # A step that does not resume starts again from nothing; the time of its broken attempts is not its cost.
            self._remove(step.owns)
            entry = {"wall_s": 0.0, "peak_rss_mb": 0.0, "attempts": 0}
        before_s = entry["wall_s"]
        entry.update(
            title=step.title,
            command=step.typed(),
            status="running",
            attempts=entry["attempts"] + 1,
            from_cache=bool(step.cache and step.cache.exists()),
        )
        self.state["steps"][step.name] = entry
        self._write()
        log = self.out / LOG_FOLDER / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.display.started(number, len(self.steps), step)
        last_write = time.monotonic()

        def progress(wall_s: float, peak_rss_mb: float) -> None:
            # Written now and then, so that the time of a killed attempt is not lost.
            nonlocal last_write
            entry["wall_s"] = round(before_s + wall_s, 2)
            entry["peak_rss_mb"] = round(max(entry["peak_rss_mb"], peak_rss_mb), 1)
            if time.monotonic() - last_write > 5:
                last_write = time.monotonic()
                self._write()

        entry["status"] = "failed"  # until the exit code says otherwise; an interrupt leaves it so
        code = run_child(executable(step.command), {**os.environ, **step.env}, log, self.display.output, progress)
        missing = [path for path in step.makes if not path.exists()]
        if code == 0 and not missing:
            entry["status"] = "done"
        self._write()
        self.display.finished(number, len(self.steps), step, entry)
        if code != 0:
            raise StepFailed(step, code, log, f"step {step.name!r} ended with exit code {code}")
        if missing:
            raise StepFailed(step, 1, log, f"step {step.name!r} ended without writing {missing[0]}")

    def _read_previous(self) -> dict | None:
        if not self.out.exists():
            return None
        if not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file; name a new or empty folder")
        if not self.state_path.is_file():
            if any(self.out.iterdir()):
                raise InputError(
                    f"--out {self.out} holds files that this command did not write (there is no "
                    f"{STATE_FILE} in it); name a new or empty folder"
                )
            return None
        try:
            previous = json.loads(self.state_path.read_text(encoding="utf-8"))
            if previous["format"] != FORMAT:
                raise ValueError(f"format {previous['format']!r}, expected {FORMAT}")
            previous["fingerprint"], previous["status"], previous["owned"], previous["steps"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.state_path} cannot be read ({error}); remove {self.out} yourself or name another folder"
            ) from error
        running = previous.get("running")
        if running and _alive(running):
            raise InputError(
                f"another run works in {self.out} (process {running['pid']}); wait for it, end it, or "
                "name another folder"
            )
        return previous

    def _claim(self) -> None:
        process = psutil.Process()
        self.state["running"] = {"pid": process.pid, "create_time": process.create_time()}

    def _inside(self, path: Path) -> Path:
        relative = Path(os.path.relpath(path, self.out))
        if relative.parts[:1] in ((), ("..",)) or relative.is_absolute():
            raise ValueError(f"{path} is not inside {self.out}")
        return relative

    def _remove(self, paths: Sequence[Path]) -> None:
        for path in paths:
            # A name may be a pattern such as `.world.*.partial`; what it finds lies inside the output folder as well.
            for target in self.out.glob(self._inside(path).as_posix()):
                if target.is_symlink() or target.is_file():
                    target.unlink()
                elif target.is_dir():
                    shutil.rmtree(target)

    def _write(self) -> None:
        temporary = self.state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=2), encoding="utf-8")
        os.replace(temporary, self.state_path)


def described(state: dict) -> str:
    """A run in words, such as "the finished run with seed 0"."""
    kind = "finished" if state.get("status") == "complete" else "interrupted"
    seed = state.get("arguments", {}).get("seed")
    return f"the {kind} run" + (f" with seed {seed}" if seed is not None else "")


def differences(state: dict, arguments: dict) -> str:
    """What keeps a run from being that of `arguments`, in words."""
    before = state.get("arguments", {})
    odd = [
        f"--{name.replace('_', '-')} {before.get(name)}, not {arguments.get(name)}"
        for name in sorted(before.keys() | arguments.keys())
        if before.get(name) != arguments.get(name)
    ]
    if odd:
        return f"made with {'; '.join(odd)}"
    return "made with other versions, configurations or commands than those installed now"


def _alive(running: dict) -> bool:
    try:
        return abs(psutil.Process(running["pid"]).create_time() - running["create_time"]) < 1
    except (psutil.Error, KeyError, TypeError):
        return False
