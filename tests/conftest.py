"""One thread a process, here and in the processes that tests start: sums keep their order, so runs can be compared."""

import os
import sys
from pathlib import Path

import torch

os.environ["OMP_NUM_THREADS"] = "1"
# Where DeepSpeed's operators are compiled, which takes minutes: once for each environment.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
torch.set_num_threads(1)

# Buffers of DeepSpeed's ranks on a CPU, 69 MB each; a rank that is killed early leaves its own in shared memory.
BUFFERS = "deepspeed_allreduce_buffer_*"

# Files of half a minute and more, so that no worker is left alone with one at the end.
LONG = ("test_zero3.py", "test_demo.py", "test_modalities.py", "test_stock_adapters.py", "test_train.py",
        "test_launch_scripts.py", "test_ablation.py", "test_lmms_eval.py")  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_sessionstart(session):
    session.config.buffers_before = set(Path("/dev/shm").glob(BUFFERS))


def pytest_sessionfinish(session):
    # Not by a worker of pytest-xdist: ranks that another worker has started may still be opening theirs.
    if not hasattr(session.config, "workerinput"):
        for file in set(Path("/dev/shm").glob(BUFFERS)) - session.config.buffers_before:
            file.unlink(missing_ok=True)
