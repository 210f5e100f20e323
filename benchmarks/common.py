"""What the benchmarks share: paired times, true peaks of memory, tables, and the last line of JSON.

Machines are shared and noisy, so times are never compared across runs: in each round every variant runs once, and a
ratio is the median of the rounds' ratios. Peaks are measured in a process of their own.
"""

import ctypes
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    """What ran, in one line: device, threads, versions."""
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{where}; Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {version('transformers')}"
    )


def quiet() -> None:
    """Keep the libraries' bars and warnings out of the tables."""
    from transformers.utils.logging import disable_progress_bar

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    disable_progress_bar()


def paired_times(
    variants: dict[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, `before` untimed ahead of each. What is set up once must have run."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            before()
            times[name].append(_seconds(run))
    return times


def _seconds(run: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of time of `name` / time of `other`."""
    return statistics.median(a / b for a, b in zip(times[name], times[other]))


def peak_bytes(run: Callable[[], object], warm_up: Callable[[], object]) -> int:
    """Most memory that `run` holds above what is held before it: allocated on a GPU, resident in RAM on a CPU (Linux).

    Resident memory holds also what libraries allocate for themselves. `warm_up` is the same at a small size, for what
    is set up once. Call this in a process that `run_alone` has started with --peaks.
    """
    warm_up()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what is free must not look as if it were held
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins again, proc(5)
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def run_alone(script: str, arguments: list[str], path: str | None = None) -> dict:
    """Run a script in a fresh process and return the JSON object of its last line. `path` goes before its sys.path."""
    environment = dict(os.environ)
    if "--peaks" in arguments:  # each block that is freed goes back to the system at once
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows in columns; the first is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))))
    print()


def against_goals(measured: dict[str, float], goals: dict[str, float]) -> None:
    """Print every goal, "at most", beside what was measured."""
    rows = [
        [name, f"{measured[name]:.2g}", f"{goal:.2g}", "met" if measured[name] <= goal else "missed"]
        for name, goal in goals.items()
    ]
    table(["", "measured", "at most", ""], rows)


def last_line(result: dict) -> None:
    """Print the object that programs read."""
    print(json.dumps({key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in result.items()}))
