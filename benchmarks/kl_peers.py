"""The stage-1 loss against the chunked divergences of TRL and of Liger-Kernel: time, memory, exactness.

    python benchmarks/kl_peers.py    # under 2 minutes on 2 cores; installs both peers into build/peers

Every variant gets the same hidden states of the response positions and the same frozen head, and computes the mean
divergence and its gradient at the student's states, at temperature 1. Conventions: `beta` 0 of both peers is forward
KL(teacher || student), 1 is reverse KL, and between them m = beta teacher + (1 - beta) student, as here. Neither
multiplies by the square of the temperature, so at another temperature theirs times its square is ours.

- TRL: `trl.kernels.chunked_divergence.ChunkedDivergenceFunction`, the loss of its DistillationTrainer. It projects
  again in the backward pass. On a GPU it runs Triton kernels, elsewhere its own form in torch.
- Liger: `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss` without its hard loss, plain and with torch.compile, its
  default (where there is a C++ compiler). It computes the gradient in the forward pass, that of the head too.

Peaks leave out inputs and head, see `common.peak_bytes`; sizes are those of kl_loss.py.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import DEVICE, against_goals, last_line, machine, paired_times, peak_bytes, ratio, run_alone, table
from kl_loss import LOGIT_SPREAD, error, exact_divergence

from vaemotionllm.train.losses import divergence

PEERS = ["trl==1.16.0", "liger-kernel==0.8.5"]
FOLDER = Path(__file__).resolve().parents[1] / "build" / "peers"
BETA = {"forward_kl": 0.0, "jsd": 0.5}
GOALS = {
    "time_vs_trl_forward_kl": 0.7,
    "time_vs_liger_jsd": 1.0,
    "time_vs_liger_compiled_jsd": 1.0,
    "memory_vs_liger_jsd": 1.0,
    "memory_vs_liger_compiled_jsd": 1.0,
}


def install() -> None:
    """Put the peers into their folder, without their dependencies: those are the package's own, as pinned."""
    marker = FOLDER / "installed.txt"
    if marker.is_file() and marker.read_text() == "\n".join(PEERS):
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), *PEERS]
    if subprocess.run(command).returncode:
        sys.exit(f"{' and '.join(PEERS)} could not be installed into {FOLDER}: see above; the network is needed once.")
    marker.write_text("\n".join(PEERS))


def ours(kind: str, teacher, student, head) -> torch.Tensor:
    return divergence(teacher, student, head, kind=kind, beta=BETA[kind])["divergence_loss"]


def trl(kind: str, teacher, student, head) -> torch.Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    return ChunkedDivergenceFunction.apply(student, head.weight, None, teacher, head.weight, None, BETA[kind])[
        0
    ].mean()


def liger(kind: str, teacher, student, head, compiled: bool = False) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[kind], compiled=compiled)
    labels = torch.zeros(len(student), dtype=torch.long, device=student.device)  # none is ignored
    return loss(student, head.weight, teacher, head.weight, labels)


VARIANTS: dict[str, Callable] = {
    "ours_forward_kl": partial(ours, "forward_kl"),
    "trl_forward_kl": partial(trl, "forward_kl"),
    "ours_jsd": partial(ours, "jsd"),
    "liger_jsd": partial(liger, "jsd"),
}
if shutil.which("g++"):
    VARIANTS["liger_compiled_jsd"] = partial(liger, "jsd", compiled=True)


def make_inputs(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    """Teacher and student (N, D), head (V, D)."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    head = torch.nn.Linear(args.hidden, args.vocabulary, bias=False, dtype=dtype, device=DEVICE).requires_grad_(False)
    head.weight.normal_(std=LOGIT_SPREAD / args.hidden**0.5)
    teacher = torch.randn(args.response, args.hidden, dtype=dtype, device=DEVICE)
    return teacher, teacher + 0.05 * torch.randn_like(teacher), head


def step(name: str, teacher, student, head) -> torch.Tensor:
    """The gradient (N, D)."""
    student = student.detach().requires_grad_()
    VARIANTS[name](teacher, student, head).backward()
    return student.grad


def peaks_of_all(teacher, student, head) -> dict[str, int]:
    """Bytes of each variant."""
    found = {}
    for name in VARIANTS:
        run, small = partial(step, name, teacher, student, head), partial(step, name, teacher[:4], student[:4], head)
        found[name] = peak_bytes(run, run if "compiled" in name else small)  # what is compiled is so for one shape
    return found


def measure(teacher, student, head, rounds: int) -> dict:
    """Errors against float64 on a few positions, and times on all, of each variant."""
    few, errors, weight = slice(0, 8), {}, head.weight.double()
    for kind in BETA:
        reference = student[few].double().requires_grad_()
        exact_divergence(teacher[few].double(), reference, weight, kind).backward()
        for name in (name for name in VARIANTS if name.endswith(kind)):
            if "compiled" in name:  # for the shape that is timed; the loss is a mean over all
                grad = step(name, teacher, student, head)[few] * (len(student) / 8)
            else:
                grad = step(name, teacher[few], student[few], head)
            errors[name] = error(grad, reference.grad)
    del weight
    runs = {name: partial(step, name, teacher, student, head) for name in VARIANTS}
    return {"errors": errors, "times": paired_times(runs, rounds)}


def main() -> None:
    gpu = DEVICE == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=3584 if gpu else 896)
    parser.add_argument("--response", type=int, default=2048 if gpu else 192, help="response positions")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peaks", action="store_true", help="only print the peaks, in this process")
    parser.add_argument("--measure", action="store_true", help="only print errors and times, in this process")
    args = parser.parse_args()
    if args.peaks:
        last_line(peaks_of_all(*make_inputs(args)))
        return
    if args.measure:
        last_line(measure(*make_inputs(args), args.rounds))
        return
    install()
    print(machine() + ", " + ", ".join(PEERS))
    print(f"head {args.vocabulary:,} x {args.hidden:,}; {args.response:,} response positions\n")
    shape = [w for name in ("vocabulary", "hidden", "response") for w in (f"--{name}", str(getattr(args, name)))]
    peers = str(FOLDER)
    peaks = run_alone(__file__, [*shape, "--peaks"], peers)
    found = run_alone(__file__, [*shape, "--rounds", str(args.rounds), "--measure"], peers)
    times = found["times"]
    rows = [
        [name, f"{statistics.median(times[name]):.3g}", f"{peaks[name] / 2**20:,.0f}", f"{found['errors'][name]:.1e}"]
        for name in VARIANTS
    ]
    table(["forward and backward", "seconds", "peak MiB", "gradient's error"], rows)
    result = {}
    for other in (name for name in VARIANTS if not name.startswith("ours")):
        mine = "ours_jsd" if other.endswith("jsd") else "ours_forward_kl"
        result[f"time_vs_{other}"] = ratio(times, mine, other)
        result[f"memory_vs_{other}"] = peaks[mine] / peaks[other]
    against_goals(result, {name: goal for name, goal in GOALS.items() if name in result})
    last_line(result)


if __name__ == "__main__":
    main()
