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
