"""As many threads a process as OMP_NUM_THREADS says, by default one, here and in the processes that tests start."""

import os
import sys
from pathlib import Path

# Before torch and numpy are imported, which read it then; processes, pytest-xdist's workers too, inherit it.
if not os.environ.get("OMP_NUM_THREADS"):
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MKL_DYNAMIC", "FALSE")  # it would take no more threads than there are cores

# Where DeepSpeed's operators are compiled, which takes minutes: once for each environment.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))  # where a plugin of pytest imported it earlier

# Buffers of DeepSpeed's ranks on a CPU, 69 MB each; a rank that is killed early leaves its own in shared memory.
BUFFERS = "deepspeed_allreduce_buffer_*"

# Files of half a minute and more, so that no worker is left alone with one at the end.
LONG = ("test_zero3.py", "test_demo.py", "test_modalities.py", "test_stock_adapters.py", "test_train.py",
        "test_launch_scripts.py", "test_ablation.py", "test_lmms_eval.py")  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def same_environment():
    """What a command sets in its process, such as the demo's arithmetic, stays with its test."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


def pytest_sessionstart(session):
    session.config.buffers_before = set(Path("/dev/shm").glob(BUFFERS))


def pytest_sessionfinish(session):
    # Not by a worker of pytest-xdist: ranks that another worker has started may still be opening theirs.
    if not hasattr(session.config, "workerinput"):
        for file in set(Path("/dev/shm").glob(BUFFERS)) - session.config.buffers_before:
            if not is_mapped(file):  # by ranks of another run of the tests
                file.unlink(missing_ok=True)


def is_mapped(file: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(file) in maps.read_text():
                return True
        except OSError:  # it has ended, or is someone else's
            pass
    return False
