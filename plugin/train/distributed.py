"""The few facts about a distributed run that training code asks for, valid in one process as well."""

import os
from pathlib import Path

import torch


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        torch.distributed.barrier()


def unlink_shared_buffers() -> None:
    """Remove the names of the buffers that DeepSpeed's ranks share on a CPU; every rank must call it.

    DeepSpeed leaves them, tens of MB of memory a rank, when it ends or is killed. Once every rank has mapped them,
    which is when the engine's process group stands, nobody opens them again, and without a name they end with their
    processes.
    """
    if is_distributed():
        barrier()
        names = (os.environ.get(variable, "") for variable in ("MASTER_ADDR", "MASTER_PORT"))
        buffer = "_".join(["deepspeed_allreduce_buffer", str(os.getuid()), *names, str(torch.distributed.get_rank())])
        Path("/dev/shm", buffer).unlink(missing_ok=True)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over ranks; every rank must call it."""
    if is_distributed():
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def is_on_all_ranks(value: bool, device: torch.device) -> bool:
    """Whether a statement holds on every rank; every rank must call it."""
    return int(sum_over_ranks(torch.tensor(int(not value), device=device))) == 0


def max_over_ranks(values: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
    """The largest of each number over ranks; every rank must call it."""
    if not is_distributed():
        return values
    tensor = torch.tensor(values, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tuple(tensor.tolist())
