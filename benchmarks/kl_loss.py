"""Time, memory and exactness of the stage-1 loss (`vaemotionllm.train.losses.divergence`) against naive ways.

    python benchmarks/kl_loss.py            # under 2 minutes on 2 cores; on a GPU with bfloat16 and the head of a 7B
    python benchmarks/kl_loss.py --chunks   # also times of other chunk sizes

A batch is 4 clips (on a GPU 32) of 256 positions, of which a quarter, 64 each, are response: a short response after
some 190 tokens of audio and prompt. Longer media make the share smaller and the naive way over all positions worse.
The head is that of Qwen2.5-0.5B, 151,936 x 896, on a CPU; on a GPU it has the width of Qwen2.5-7B, 3,584. Everything
is forward and backward, from hidden states to their gradient. Compared are

- all: logits of every position of teacher and student, log_softmax, kl_div, masked to the response;
- response: the same over the response positions only;
- ours.

Peaks leave out inputs and head; `common.peak_bytes` says how they are taken. Gradient errors are relative, in the
2-norm, against autograd through the naive form in float64 from the same inputs.
"""

import argparse
import statistics
from dataclasses import dataclass
from functools import partial

import torch
from common import DEVICE, against_goals, last_line, machine, paired_times, peak_bytes, ratio, run_alone, table
from torch.nn import functional as F

from vaemotionllm.train.chunked_divergence import KINDS, chunk_tokens_for
from vaemotionllm.train.losses import divergence

GOALS = {
    "memory_vs_all": 0.06,
    "memory_vs_response": 0.15,
    "time_vs_all": 0.20,
    "time_vs_response": 1.0,
    "gradient_error_fp64": 1e-12,
    "gradient_error_fp32": 1e-5,
    "gradient_error_bf16": 1e-2,
}
LOGIT_SPREAD = 3.0  # standard deviation of the logits; the likeliest token then has some tenths of the probability


@dataclass
class Batch:
    teacher: torch.Tensor  # (B, T, D)
    student: torch.Tensor  # (B, T, D)
    mask: torch.Tensor  # (B, T) bool, the response positions
    head: torch.nn.Linear  # (V, D)

    def small(self) -> "Batch":
        """The end of the first clip."""
        student = self.student.detach()[:1, -8:].requires_grad_()
        return Batch(self.teacher[:1, -8:], student, self.mask[:1, -8:], self.head)


def make_batch(clips: int, positions: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> Batch:
    torch.manual_seed(0)
    head = torch.nn.Linear(hidden, vocabulary, bias=False, dtype=dtype, device=DEVICE).requires_grad_(False)
    head.weight.normal_(std=LOGIT_SPREAD / hidden**0.5)
    teacher = torch.randn(clips, positions, hidden, dtype=dtype, device=DEVICE)
    student = (teacher + 0.1 * torch.randn_like(teacher)).requires_grad_()
    mask = torch.zeros(clips, positions, dtype=torch.bool, device=DEVICE)
    mask[:, -positions // 4 :] = True
    return Batch(teacher, student, mask, head)


def naive_kl(teacher: torch.Tensor, student: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """(..., D) twice -> KL(p || q) (...), from whole logits and a softmax in float32, as a trainer computes a loss."""
    with torch.no_grad():
        teacher_logits = head(teacher)
    student_logits = head(student)
    log_p, log_q = (F.log_softmax(logits.float(), -1) for logits in (teacher_logits, student_logits))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def over_all(batch: Batch) -> None:
    values = naive_kl(batch.teacher, batch.student, batch.head)  # (B, T)
    ((values * batch.mask).sum() / batch.mask.sum()).backward()


def over_response(batch: Batch) -> None:
    naive_kl(batch.teacher[batch.mask], batch.student[batch.mask], batch.head).mean().backward()


def ours(batch: Batch, chunk_tokens: int | None = None) -> None:
    teacher, student = batch.teacher[batch.mask], batch.student[batch.mask]  # (N, D)
    divergence(teacher, student, batch.head, chunk_tokens=chunk_tokens)["divergence_loss"].backward()


VARIANTS = {"all": over_all, "response": over_response, "ours": ours}


# ---- exactness


def exact_divergence(teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor, kind: str) -> torch.Tensor:
    """From the definition, in float64; at beta 1/2."""
    log_p, log_q = (F.log_softmax(states @ weight.T, -1) for states in (teacher, student))  # (N, V)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    terms = {
        "forward_kl": lambda: p * (log_p - log_q),
        "reverse_kl": lambda: q * (log_q - log_p),
        "jsd": lambda: (p * (log_p - log_m) + q * (log_q - log_m)) / 2,
    }
    return terms[kind]().sum(-1).mean()


def student_at(kl: float, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Student states in float64 whose mean KL(p || q) is near `kl`."""
    direction, distance = torch.randn_like(teacher), 0.05
    logits, change = teacher @ weight.T, direction @ weight.T  # (N, V)
    log_p = F.log_softmax(logits, -1)
    for _ in range(8):  # it grows about with the square of the distance
        log_q = F.log_softmax(logits + distance * change, -1)
        distance *= (kl / (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()) ** 0.5
    return teacher + distance * direction


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def exactness(tokens: int, hidden: int, vocabulary: int) -> tuple[dict[str, float], list[list[str]]]:
    """The largest error of each dtype over all divergences and distances, and all of them as rows of a table."""
    torch.manual_seed(1)
    head = torch.nn.Linear(hidden, vocabulary, bias=False, device=DEVICE).requires_grad_(False)
    # Values that every dtype can hold, so that one student serves all.
    head.weight.normal_(std=LOGIT_SPREAD / hidden**0.5).copy_(head.weight.bfloat16())
    weight = head.weight.double()
    teacher = torch.randn(tokens, hidden, device=DEVICE).bfloat16().double()
    rows, worst = [], {"fp64": 0.0, "fp32": 0.0, "bf16": 0.0}
    dtypes = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
    for kl in (1.0, 0.005):
        given = student_at(kl, teacher, weight).bfloat16()
        reached = exact_divergence(teacher, given.double(), weight, "forward_kl").item()
        for kind in KINDS:
            reference = given.double().requires_grad_()
            exact_divergence(teacher, reference, weight, kind).backward()
            errors = {}
            for name, dtype in dtypes.items():
                student = given.to(dtype).detach().requires_grad_()
                divergence(teacher.to(dtype), student, head.to(dtype), kind=kind)["divergence_loss"].backward()
                errors[name] = error(student.grad, reference.grad)
                worst[name] = max(worst[name], errors[name])
            naive = []
            if kind == "forward_kl":
                for dtype in (torch.float32, torch.bfloat16):
                    student = given.to(dtype).detach().requires_grad_()
                    naive_kl(teacher.to(dtype), student, head.to(dtype)).mean().backward()
                    naive.append(f"{error(student.grad, reference.grad):.1e}")
            head.float()
            rows.append([f"{kind}, KL {reached:.2g}", *(f"{e:.1e}" for e in errors.values()), *(naive or ["", ""])])
    return {f"gradient_error_{name}": value for name, value in worst.items()}, rows


def chunk_sweep(batch: Batch, rounds: int) -> None:
    positions, usual = int(batch.mask.sum()), chunk_tokens_for(batch.head.out_features, DEVICE)
    sizes = sorted({usual, *(size for size in (16, 32, 64, 128, 256, 512, 1024) if size <= positions)})
    runs = {f"{size}{' (default)' if size == usual else ''}": partial(ours, batch, size) for size in sizes}
    times = paired_times(runs, rounds)
    table(["positions in a chunk", "seconds"], [[n, f"{statistics.median(t):.3g}"] for n, t in times.items()])


def main() -> None:
    gpu = DEVICE == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=3584 if gpu else 896)
    parser.add_argument("--clips", type=int, default=32 if gpu else 4)
    parser.add_argument("--positions", type=int, default=256, help="of a clip; a quarter is response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", action="store_true", help="also compare chunk sizes")
    parser.add_argument("--peaks", action="store_true", help="only print the peaks, in this process")
    args = parser.parse_args()
    dtype = torch.bfloat16 if gpu else torch.float32
    batch = make_batch(args.clips, args.positions, args.hidden, args.vocabulary, dtype)
    if args.peaks:
        small = batch.small()
        last_line({name: peak_bytes(partial(run, batch), partial(run, small)) for name, run in VARIANTS.items()})
        return
    print(machine())
    positions, response = batch.mask.numel(), int(batch.mask.sum())
    print(f"{dtype} head {args.vocabulary:,} x {args.hidden:,}; {positions:,} positions, {response:,} of response\n")
    sizes = ["vocabulary", "hidden", "clips", "positions"]
    shape = [word for name in sizes for word in (f"--{name}", str(getattr(args, name)))]
    peaks = run_alone(__file__, [*shape, "--peaks"])
    for run in VARIANTS.values():
        run(batch.small())
    times = paired_times({name: partial(run, batch) for name, run in VARIANTS.items()}, args.rounds)
    rows = [[name, f"{statistics.median(times[name]):.3g}", f"{peaks[name] / 2**20:,.0f}"] for name in VARIANTS]
    table(["forward and backward", "seconds", "peak MiB"], rows)
    if args.chunks:
        chunk_sweep(batch, args.rounds)
    del batch
    result = {f"memory_vs_{name}": peaks["ours"] / peaks[name] for name in ("all", "response")}
    result |= {f"time_vs_{name}": ratio(times, "ours", name) for name in ("all", "response")}
    errors, rows = exactness(8, args.hidden, args.vocabulary)
    header = ["error of the gradient", "fp64", "fp32", "bf16 inputs", "naive fp32", "naive bf16 logits"]
    table(header, rows)
    result |= errors
    against_goals(result, GOALS)
    last_line(result)


if __name__ == "__main__":
    main()
