"""The few facts about a distributed run that training code asks for, valid in one process as well."""

import torch


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        torch.distributed.barrier()


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
