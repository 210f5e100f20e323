"""What rounds alike: bit for bit is wanted of the same operations on the same operands, and of nothing else.

The same operands are equal values in equal shapes that lie in memory alike (the sum of a vector may begin where its
memory is aligned) and take a gradient alike: `torch.matmul` gives the library of linear algebra a batch as one matrix
where a weight takes a gradient and as several where it is frozen, and the library may sum those in another order.
Which of these shows hangs on the processor.
"""

import copy
import os

import torch

ARITHMETIC = ("OMP_", "GOMP_", "MKL_", "ATEN_", "ONEDNN_", "DNNL_", "OPENBLAS_", "NPY_")


def in_own_memory(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose weights lie where torch puts them, all aligned alike, and not as a file happens to hold them."""
    return copy.deepcopy(model)


def arithmetic_settings() -> dict[str, str]:
    """The variables by which another process, started with none but those it is given, computes as this one does."""
    return {name: value for name, value in os.environ.items() if name.startswith(ARITHMETIC)}


def assert_equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor, ulps: int = 64, name: str = "") -> None:
    """Allows at most so many units in the last place of the largest value: what a few layers make of another order.

    NaN stands where NaN stands.
    """
    largest = expected.nan_to_num().abs().max().item()
    torch.testing.assert_close(
        found, expected, rtol=0, atol=ulps * torch.finfo(expected.dtype).eps * largest, equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )  # fmt: skip
