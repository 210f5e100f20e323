"""Divergence of two next-token distributions from hidden states, without the logits of all positions at once.

The head is frozen and shared by teacher and student, so the only gradient that is wanted is that of the student's
hidden states, and it is known as soon as a chunk's logits are: it is computed in the forward pass, chunk by chunk.
Nothing of the size positions x vocabulary outlives a chunk, and the head is never differentiated.

Late in training the distributions are near, and what counts is their small difference. So the head is applied to the
difference of the states where that is exact, log q/p is made from it, and q - p from log q/p: no two large numbers
are subtracted. Sums over the vocabulary are those of `torch.sum`, which adds in pairs; `softmax` on a CPU adds in
order, and its error there is what otherwise limits float32.
"""

from math import ceil

import torch
from torch.autograd.function import once_differentiable

# Elements of a chunk of logits (C, V), of which two are held. A chunk is wide because the whole head is read twice for
# each. On a GPU, with 2 bytes a weight, the product for teacher and student does 2 C operations per byte of the head
# and the product for the gradient C; matrix units and memory of large GPUs are in balance near 300, and 2**26 is
# C = 441 at V = 152k. That figure is reasoned; benchmarks/kl_loss.py --chunks measures others, on a CPU too.
_CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
# Elements that pass through the element-wise part at a time, which holds one more buffer of this size (jsd two): few,
# for memory and caches, yet enough that on a CPU threads seldom wait for each other, and that on a GPU starting a
# kernel costs little beside what it does.
_BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**24}
# Rows of the head that a CPU multiplies at a time, in float32: so few that they stay in its cache.
_HEAD_ROWS = 1_024


class ChunkedDivergence(torch.autograd.Function):
    """sum_n D(p_n || q_n), p and q the softmax of the head's logits at temperature T; see `losses.divergence`."""

    @staticmethod
    def forward(ctx, student, teacher, weight, bias, kind, beta, temperature, chunk_tokens):
        positions, vocabulary, device = student.shape[0], weight.shape[0], student.device
        wants_grad, compute = ctx.needs_input_grad[0], _DIVERGENCES[kind]
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        per_token = torch.empty(positions, dtype=accumulate, device=device)  # (N,)
        agrees = torch.empty(positions, dtype=torch.bool, device=device)  # (N,)
        # Rounded to the states' dtype once, in the end.
        grad = torch.empty(student.shape, dtype=accumulate, device=device) if wants_grad else None  # (N, D)
        # As many chunks as needed, of about the same width.
        chunks = max(ceil(positions / chunk_tokens), 1)
        width = max(ceil(positions / chunks), 1)
        height = max(_for_device(_BLOCK_ELEMENTS, device.type) // vocabulary, 1)
        buffer = torch.empty(2 * width, vocabulary, dtype=accumulate, device=device)  # (2 C, V)
        # The caller's autocast would round the logits that must not be rounded.
        with torch.autocast(device.type, enabled=False):
            for begin in range(0, positions, width):
                end = min(begin + width, positions)
                logits, change = _logits(teacher[begin:end], student[begin:end], weight, buffer)  # (C, V) each
                for top in range(0, end - begin, height):
                    rows, part = slice(top, top + height), slice(begin + top, min(begin + top + height, end))
                    p, q, log_ratio, agrees[part] = _distributions(logits[rows], change[rows], bias, temperature)
                    per_token[part] = compute(p, q, log_ratio, beta)
                if wants_grad:
                    # d/d logits is the divergence's gradient / T, and the loss is scaled by T^2.
                    grad[begin:end] = _times_head(change, weight).mul_(temperature)
        ctx.save_for_backward(grad)
        ctx.dtype = student.dtype
        loss = per_token.sum() * temperature**2
        ctx.mark_non_differentiable(per_token, agrees)
        return loss, per_token, agrees

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _per_token, _agrees):
        (grad,) = ctx.saved_tensors
        return (grad * grad_loss).to(ctx.dtype), *[None] * 7


def chunk_tokens_for(vocabulary: int, device_type: str) -> int:
    """Positions in a chunk, so that a chunk of float32 logits has a size that suits the device."""
    return max(_for_device(_CHUNK_ELEMENTS, device_type) // vocabulary, 1)


def _for_device(sizes: dict[str, int], device_type: str) -> int:
    return sizes.get(device_type, sizes["cuda"])


def _distributions(logits, change, bias, temperature):
    """Softmax p of the teacher's logits (R, V), q of the student's, log q/p, and whether both expect one token most.

    `change` is what the student's logits are above the teacher's. Both arguments are overwritten, `change` by log q/p.
    """
    if bias is not None:
        logits.add_(bias)
    if temperature != 1:
        logits.div_(temperature)
        change.div_(temperature)
    q = logits + change
    (top_p, best_p), (top_q, best_q) = logits.max(-1, keepdim=True), q.max(-1, keepdim=True)  # (R, 1) each
    p, q = logits.sub_(top_p).exp_(), q.sub_(top_q).exp_()
    sum_p, sum_q = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)  # (R, 1)
    log_ratio = change.sub_(top_q - top_p + (sum_q / sum_p).log())
    return p.div_(sum_p), q.div_(sum_q), log_ratio, (best_p == best_q).squeeze(-1)


# ---- what each divergence is: its value (R,), from p, q and log q/p (R, V). All are overwritten, the last by the
# gradient with respect to the student's logits at T = 1.


def _forward_kl(p, q, log_ratio, beta):
    """sum p log p/q; gradient q - p = (p + q) tanh(log(q/p) / 2), which has no cancellation."""
    both = q.add_(p)
    value = -p.mul_(log_ratio).sum(-1)
    difference = log_ratio.div_(2).tanh_().mul_(both)
    # It sums to 0; what is left is the error of the normalization in log q/p.
    excess = difference.sum(-1, keepdim=True)  # (R, 1)
    difference.addcmul_(both, excess, value=-0.5)
    return value + excess.squeeze(-1)


def _reverse_kl(p, q, log_ratio, beta):
    """sum q log q/p; gradient q (log q/p - value)."""
    value = torch.mul(q, log_ratio, out=p).sum(-1, keepdim=True)  # (R, 1)
    log_ratio.sub_(value).mul_(q)
    return value.squeeze(-1)


def _jsd(p, q, log_ratio, beta):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    Its gradient is (1 - beta) q (log q/m - KL(q || m)). Generalised Jensen-Shannon divergence as in generalised
    knowledge distillation (arXiv 2306.13649).
    """
    # log m/q = log(1 + beta (p/q - 1)). Beyond the bound p/q would overflow; q is then nothing beside p.
    log_ratio.clamp_min_(-80)
    log_m = log_ratio.neg().expm1_().mul_(beta).log1p_()  # log m/q
    from_p = -p.mul_(log_ratio.add_(log_m)).sum(-1)  # KL(p || m)
    from_q = -torch.mul(q, log_m, out=p).sum(-1, keepdim=True)  # KL(q || m), (R, 1)
    torch.add(log_m, from_q, out=log_ratio).mul_(q).mul_(beta - 1)
    return beta * from_p + (1 - beta) * from_q.squeeze(-1)


_DIVERGENCES = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jsd}
KINDS = tuple(_DIVERGENCES)


# ---- products with the head, accumulated in float32 or better


def _logits(teacher, student, weight, buffer):
    """Logits of the teacher without bias, and what the student's are above them, (C, V) each, views of `buffer`.

    Both in one product, so that the head is read, and where needed converted, once.
    """
    teacher, student = teacher.to(weight.dtype), student.to(weight.dtype)  # (C, D)
    out = buffer[: 2 * len(teacher)]  # (2 C, V)
    if weight.is_cuda and weight.dtype != out.dtype:
        # The states' difference would be rounded to half precision; that of the logits is in float32.
        logits, change = _product(torch.cat([teacher, student]), weight, out).chunk(2)
        return logits, change.sub_(logits)
    teacher, student = teacher.to(out.dtype), student.to(out.dtype)
    return _product(torch.cat([teacher, student - teacher]), weight, out).chunk(2)


def _product(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """(C, D) x (V, D)^T -> (C, V) in `out`'s dtype."""
    if weight.is_cuda:
        wider = {} if weight.dtype == out.dtype else {"out_dtype": out.dtype}
        return torch.mm(states.to(weight.dtype), weight.T, out=out, **wider)
    states = states.to(out.dtype)
    for begin in range(0, weight.shape[0], _HEAD_ROWS):
        rows = slice(begin, begin + _HEAD_ROWS)
        torch.mm(states, weight[rows].to(out.dtype).T, out=out[:, rows])
    return out


def _times_head(difference: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(C, V) x (V, D) -> (C, D), the gradient of the states."""
    if weight.dtype == difference.dtype:
        return difference @ weight
    if weight.is_cuda:
        return torch.mm(difference.to(weight.dtype), weight, out_dtype=difference.dtype)
    grad = difference.new_zeros(difference.shape[0], weight.shape[1])
    for begin in range(0, weight.shape[0], _HEAD_ROWS):
        rows = slice(begin, begin + _HEAD_ROWS)
        grad.addmm_(difference[:, rows], weight[rows].to(difference.dtype))
    return grad


@torch.no_grad()
def entropy(states: torch.Tensor, head: torch.nn.Module, chunk_tokens: int | None = None) -> torch.Tensor:
    """Entropy of next-token distributions, in nats, with logits accumulated in float32 a chunk at a time.

    Args:
        states: (N, D).
        head: linear layer (V, D).
        chunk_tokens: positions at a time; chosen by device and vocabulary if not given.

    Returns:
        (N,) float32 (float64 for such a head).
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    accumulate = torch.promote_types(weight.dtype, torch.float32)
    width = chunk_tokens or chunk_tokens_for(weight.shape[0], weight.device.type)
    found = []
    with torch.autocast(states.device.type, enabled=False):
        for part in states.split(width):
            logits = torch.empty(part.shape[0], weight.shape[0], dtype=accumulate, device=part.device)  # (C, V)
            _product(part, weight, logits)
            if bias is not None:
                logits.add_(bias)
            log_p = torch.log_softmax(logits, -1)
            found.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(found) if found else states.new_zeros(0, dtype=accumulate)
