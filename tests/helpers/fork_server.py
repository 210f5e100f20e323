"""Subprocesses that find the large libraries imported: forks of one server, which imports them once.

A fresh interpreter spends 7 s of CPU time on importing torch, transformers and DeepSpeed, a fork next to nothing. What
runs is the same: a process of its own, with its arguments, environment and output. Tests about how a process starts
(launchers, start-up patches, exit while importing) start a fresh interpreter instead.
"""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path

# Not lmms_eval itself, which changes settings of other libraries when it is imported; what it imports is among these.
# DeepSpeed imports torch's compiler for its optimizers, transformers timm (with it wandb) for its list of models.
IMPORTED = (
    "vaemotionllm.train.run", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "transformers.trainer",
    "timm", "datasets", "peft", "scipy.stats", "sklearn.metrics", "sacrebleu", "evaluate",
)  # fmt: skip
# Read while those are imported, so all forks have the same values. Tests are for the CPU, and reach for no hub.
FIXED = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


# A command that takes longer hangs: several times what a slow and busy machine needs.
HANG_S = 900


def free_port() -> str:
    """A port for ranks to meet at, which nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def _context():
    """The server is started by the first call."""
    context = multiprocessing.get_context("forkserver")
    if "HF_HOME" not in FIXED:
        FIXED["HF_HOME"] = tempfile.mkdtemp(prefix="hf_home_")
        atexit.register(shutil.rmtree, FIXED["HF_HOME"], ignore_errors=True)
        before = dict(os.environ)
        os.environ.update(FIXED)
        try:
            context.set_forkserver_preload(list(IMPORTED))
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)
    return context


def start(
    words: Sequence, env: Mapping[str, str] | None = None, cwd=None, stdout=os.devnull, stderr=os.devnull
) -> multiprocessing.process.BaseProcess:
    """Starts what `python *words` would run: `-m MODULE`, `-c CODE` or a script, each with its arguments.

    Args:
        words: as on a command line.
        env: its environment, but for `FIXED`; that of this process where it is None.
        cwd: its folder.
        stdout, stderr: files that its output is appended to.
    """
    context = _context()
    env = {**(os.environ if env is None else env), **FIXED}
    process = context.Process(
        target=_become, args=([str(word) for word in words], env, str(cwd or os.getcwd()), str(stdout), str(stderr))
    )
    process.start()
    return process


def run(words: Sequence, env=None, cwd=None, timeout_s: float = HANG_S) -> subprocess.CompletedProcess:
    """Runs it to its end, as `subprocess.run` would."""
    return run_together([words], [env], cwd, timeout_s)


def run_together(
    commands: Sequence[Sequence], environments, cwd=None, timeout_s=HANG_S
) -> subprocess.CompletedProcess:
    """Runs processes side by side; where one fails, the others have 10 s to end, and its code is returned."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        stdout.touch()
        stderr.touch()
        processes = [start(words, env, cwd, stdout, stderr) for words, env in zip(commands, environments)]
        running, code, deadline = list(processes), 0, time.monotonic() + timeout_s
        try:
            while running and not code:
                connection.wait([p.sentinel for p in running], deadline - time.monotonic())
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(commands[0], timeout_s, stderr=stderr.read_text())
                code = next((p.exitcode for p in running if p.exitcode), 0)
                running = [p for p in running if p.exitcode is None]
            deadline = time.monotonic() + 10
        finally:
            for process in running:
                process.join(max(0, deadline - time.monotonic()))
                process.kill()
                process.join()
        return subprocess.CompletedProcess(commands, code, stdout.read_text(), stderr.read_text())


def run_ranks(words: Sequence, env=None, cwd=None, ranks: int = 2, timeout_s=HANG_S) -> subprocess.CompletedProcess:
    """Runs the ranks of one machine, with the variables that torchrun and DeepSpeed's launcher give them."""
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = free_port()
    base = os.environ if env is None else env
    environments = [{**base, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return run_together([words] * ranks, environments, cwd, timeout_s)


def _become(words: list[str], env: dict[str, str], cwd: str, stdout: str, stderr: str) -> None:
    """In the fork: turns it into the process that was requested."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server ignores
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, which the server has changed
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    libraries = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    how, *arguments = words
    if how in ("-m", "-c"):
        code, *arguments = arguments
        sys.path[:] = [cwd, *given, *libraries]
    else:
        sys.path[:] = [str(Path(how).parent), *given, *libraries]
    sys.argv[:] = [how, *arguments]
    try:
        if how == "-m":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
                runpy.run_module(code, run_name="__main__", alter_sys=True)
        elif how == "-c":
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(how, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
