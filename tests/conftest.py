"""One thread a process, here and in the processes that tests start: sums keep their order, so runs can be compared."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
