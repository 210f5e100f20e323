"""Divergence of two next-token distributions from hidden states, without the logits of all positions at once.

The head is frozen and shared by teacher and student, so the only gradient that is wanted is that of the student's
hidden states, and it is known as soon as a chunk's logits are: it is computed in the forward pass, chunk by chunk.
Nothing of the size positions x vocabulary outlives a chunk, and the head is never differentiated.
"""

import torch
from torch.autograd.function import once_differentiable

# Elements of one buffer of logits. On a GPU a chunk must be wide enough to keep the matrix units busy.
_CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
# Rows of the head that are turned into float32 at a time where a device cannot accumulate half precision in float32.
_HEAD_ROWS = 16_384


class ChunkedDivergence(torch.autograd.Function):
    """sum_n w_n D(p_n || q_n), p and q the softmax of the head's logits at temperature T; see `losses.divergence`."""

    @staticmethod
    def forward(ctx, student, teacher, weight, bias, token_weights, kind, beta, temperature, chunk_tokens):
        positions, wants_grad = student.shape[0], ctx.needs_input_grad[0]
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        per_token = torch.empty(positions, dtype=accumulate, device=student.device)  # (N,)
        agrees = torch.empty(positions, dtype=torch.bool, device=student.device)  # (N,)
        # Rounded to the states' dtype once, in the end.
        grad = torch.empty(student.shape, dtype=accumulate, device=student.device) if wants_grad else None  # (N, D)
        width = min(chunk_tokens, max(positions, 1))
        compute, count = _DIVERGENCES[kind]
        buffers = [
            torch.empty(width, weight.shape[0], dtype=accumulate, device=student.device) for _ in range(count)
        ]  # (C, V) each
        # The caller's autocast would round the logits that must not be rounded.
        with torch.autocast(student.device.type, enabled=False):
            for begin in range(0, positions, width):
                part = slice(begin, begin + width)
                rows = student[part].shape[0]
                logits, log_q, log_p, *spare = (buffer[:rows] for buffer in buffers)  # (C, V)
                _logits(student[part], weight, bias, temperature, out=logits)
                best = logits.argmax(-1)  # (C,)
                torch.log_softmax(logits, -1, out=log_q)
                _logits(teacher[part], weight, bias, temperature, out=logits)
                agrees[part] = best == logits.argmax(-1)
                torch.log_softmax(logits, -1, out=log_p)
                per_token[part], difference = compute(log_p, log_q, [logits, *spare], beta)
                if wants_grad:
                    # d/d logits is `difference / T`, and the loss is scaled by T^2.
                    difference.mul_((token_weights[part] * temperature).unsqueeze(1).to(accumulate))  # (C, V)
                    grad[part] = _times_head(difference, weight)
        ctx.save_for_backward(grad)
        ctx.dtype = student.dtype
        loss = (per_token * token_weights).sum() * temperature**2
        ctx.mark_non_differentiable(per_token, agrees)
        return loss, per_token, agrees

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _per_token, _agrees):
        (grad,) = ctx.saved_tensors
        return (grad * grad_loss).to(ctx.dtype), *[None] * 8


def chunk_tokens_for(vocabulary: int, device_type: str) -> int:
    """Positions in a chunk, so that one buffer of float32 logits has a size that suits the device."""
    return max(_CHUNK_ELEMENTS.get(device_type, _CHUNK_ELEMENTS["cuda"]) // vocabulary, 1)


# ---- what each divergence is, from log-probabilities (C, V) and spare buffers of their shape: its value (C,), and its
# gradient with respect to the student's logits at T = 1 (C, V). All that is given is overwritten.


def _forward_kl(log_p, log_q, spare, beta):
    """sum p (log p - log q); gradient q - p."""
    p = torch.exp(log_p, out=spare[0])
    value = log_p.sub_(log_q).mul_(p).sum(-1)
    return value, log_q.exp_().sub_(p)


def _reverse_kl(log_p, log_q, spare, beta):
    """sum q (log q - log p); gradient q (log q - log p - value)."""
    difference = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    value = torch.mul(q, difference, out=spare[0]).sum(-1)
    return value, difference.sub_(value.unsqueeze(1)).mul_(q)


def _jsd(log_p, log_q, spare, beta):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    Its gradient is (1 - beta) q (log q/m - KL(q || m)). Generalised Jensen-Shannon divergence as in generalised
    knowledge distillation (arXiv 2306.13649).
    """
    log_m, one = spare
    torch.exp(log_p, out=log_m).mul_(beta).add_(torch.exp(log_q, out=one), alpha=1 - beta)
    # Where both underflow their share of the sums is 0, and must not be 0 * inf.
    log_m.clamp_min_(torch.finfo(log_m.dtype).tiny).log_()
    p = torch.exp(log_p, out=one)
    from_p = log_p.sub_(log_m).mul_(p).sum(-1)  # KL(p || m)
    q, ratio = torch.exp(log_q, out=one), log_q.sub_(log_m)
    from_q = torch.mul(q, ratio, out=log_p).sum(-1)  # KL(q || m)
    return beta * from_p + (1 - beta) * from_q, ratio.sub_(from_q.unsqueeze(1)).mul_(q).mul_(1 - beta)


# Function, and how many buffers (C, V) are held: logits, log q, log p and what else it needs.
_DIVERGENCES = {"forward_kl": (_forward_kl, 3), "reverse_kl": (_reverse_kl, 3), "jsd": (_jsd, 4)}
KINDS = tuple(_DIVERGENCES)


# ---- products with the head, accumulated in float32 or better


def _logits(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float, out):
    """(C, D) x (V, D)^T -> (C, V) in `out`'s dtype, divided by T."""
    states = states.to(weight.dtype)
    if weight.dtype == out.dtype:
        torch.mm(states, weight.T, out=out)
    elif weight.is_cuda:
        torch.mm(states, weight.T, out_dtype=out.dtype, out=out)
    else:
        states = states.to(out.dtype)
        for begin in range(0, weight.shape[0], _HEAD_ROWS):
            rows = slice(begin, begin + _HEAD_ROWS)
            torch.mm(states, weight[rows].to(out.dtype).T, out=out[:, rows])
    if bias is not None:
        out.add_(bias)
    if temperature != 1:
        out.div_(temperature)


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
            _logits(part, weight, bias, 1.0, out=logits)
            log_p = torch.log_softmax(logits, -1)
            found.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(found) if found else states.new_zeros(0, dtype=accumulate)
