"""One thread a process, here and in the processes that tests start: sums keep their order, so runs can be compared."""

import os
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def shared_memory_is_given_back():
    """DeepSpeed's ranks on a CPU leave their buffers, 69 MB each, in shared memory when they end."""
    buffers, name = Path("/dev/shm"), "deepspeed_allreduce_buffer_*"
    before = set(buffers.glob(name))
    yield
    for file in set(buffers.glob(name)) - before:
        file.unlink(missing_ok=True)
