"""Environment variables of the CPU libraries below torch: how threads wait, and what fixes the arithmetic.

The libraries read them once, when torch is imported; so they are set first, or in the environment of a subprocess.
"""

import os
from collections.abc import Mapping, MutableMapping

# Iterations that a thread of OpenMP (libgomp) spins before it sleeps; its own default is 300,000, some milliseconds. A
# waiting thread then keeps the core from the very thread that it waits for as soon as another process runs:
# benchmarks/threads.py.
SPIN = {"GOMP_SPINCOUNT": "2000"}

# The same sums in the same order on every x86-64 processor that has AVX2, which is every one since 2013:
FIXED_ARITHMETIC = {
    # One code path of MKL for all vendors. The faster ones differ: MKL takes others on AMD than on Intel.
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    # numpy: all that is above AVX2, by the names of 2.4 and of those before.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",  # of numpy and scipy
    # Sums are split among the threads, so their number counts, on a machine with more cores or fewer as well.
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
}


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep early when they wait, unless the user has said how they are to wait.

    Without effect in a process that has imported torch.
    """
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in SPIN.items():
            environment.setdefault(name, value)


def fixed_environment(base: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that is to be started, with `FIXED_ARITHMETIC` in place of the user's settings."""
    environment = dict(base)
    bound_spinning(environment)
    return environment | FIXED_ARITHMETIC


def arithmetic() -> dict[str, str]:
    """What of `FIXED_ARITHMETIC` holds in this process; empty where the libraries choose for themselves."""
    return {name: os.environ[name] for name in FIXED_ARITHMETIC if name in os.environ}
