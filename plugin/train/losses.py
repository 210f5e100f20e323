"""Losses of both stages, as pure functions of tensors.

Each returns a dict of named terms. A term is the share that this batch has in the whole step: its sum divided by the
number of targets of the whole step (`num_items`, over accumulation and ranks). So the terms of all micro-batches and
ranks add up to the step's loss, and neither accumulation nor world size changes the gradient. Everything is computed
in float32 from the logits as they come: what a bf16 head has rounded away stays lost.
"""

import torch
from torch.nn import functional as F

from ..model.emotion_adapter import PATHS

Count = int | float | torch.Tensor


def kl_divergence(
    teacher_logits: torch.Tensor,
    student_logits: torch.Tensor,
    num_items: Count | None = None,
    temperature: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Forward KL(teacher || student) of next-token distributions, summed over targets and divided by their number.

    `T^2 / num_items * sum_n sum_v p_T(v|n) (log p_T(v|n) - log p_S(v|n))` with both distributions at temperature
    T; T^2 keeps the size of the gradient (Hinton et al., arXiv 1503.02531). The paper (arXiv 2511.12077) aligns
    next-token distributions; the direction and the temperature are our choice.

    Args:
        teacher_logits: (N, V), any float dtype; no gradient flows into them.
        student_logits: (N, V).
        num_items: number of targets of the whole step, N if not given.
        temperature: T, above 0.

    Returns:
        {"kl_loss": scalar}; 0 where N is 0.
    """
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher logits are {tuple(teacher_logits.shape)} and student logits {tuple(student_logits.shape)}: "
            "their response masks must mark the same number of tokens."
        )
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)  # (N, V)
    with torch.no_grad():
        teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)  # (N, V)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    return {"kl_loss": total / _at_least_one(num_items, teacher_logits.shape[0])}


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, num_items: Count | None = None
) -> dict[str, torch.Tensor]:
    """Next-token cross entropy, summed over targets and divided by their number.

    Args:
        logits: (N, V), what predicts each target.
        targets: (N,) int64.
        num_items: number of targets of the whole step, N if not given.

    Returns:
        {"ce_loss": scalar}; 0 where N is 0.
    """
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return {"ce_loss": total / _at_least_one(num_items, logits.shape[0])}


def concordance(prediction: torch.Tensor, target: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Concordance correlation coefficient of Lin (1989): 2 cov / (var_p + var_t + (mean_p - mean_t)^2).

    Args:
        prediction, target: (N,). Moments are those of the whole population, without Bessel's correction.
        eps: added to the denominator, so that constant inputs give 0 and a finite gradient.

    Returns:
        scalar in [-1, 1]; 0 where N is 0.
    """
    prediction, target = prediction.float(), target.float()
    if prediction.numel() == 0:
        return prediction.sum()
    mean_p, mean_t = prediction.mean(), target.mean()
    covariance = ((prediction - mean_p) * (target - mean_t)).mean()
    spread = (prediction - mean_p).square().mean() + (target - mean_t).square().mean()
    return 2 * covariance / (spread + (mean_p - mean_t).square() + eps)


def valence_arousal_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    name: str,
    ccc_weight: float = 1.0,
    mse_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Supervisor loss of one dimension on every path: ccc_weight * (1 - CCC) + mse_weight * MSE. The form is ours.

    CCC belongs to a whole set of clips and is not a sum over them: give all rows of the step at once, see
    `gather_rows`. With fewer than two labelled rows it says nothing and only MSE counts.

    Args:
        prediction: (B, 3) in [-1, 1], columns as in `PATHS`; NaN where the sample lacks the path.
        target: (B,) in [-1, 1]; NaN where the clip has no label.
        name: "valence" or "arousal", the prefix of the terms.

    Returns:
        {"<name>_<path>_loss": scalar} for each path that has a labelled row; others are absent.
    """
    terms = {}
    labelled = ~torch.isnan(target)  # (B,)
    for column, path in enumerate(PATHS):
        rows = labelled & ~torch.isnan(prediction[:, column])  # (B,)
        count = int(rows.sum())
        if count == 0:
            continue
        predicted, wanted = prediction[rows, column].float(), target[rows].float()  # (n,)
        loss = mse_weight * (predicted - wanted).square().mean()
        if count > 1:
            loss = loss + ccc_weight * (1 - concordance(predicted, wanted))
        terms[f"{name}_{path}_loss"] = loss
    return terms


def share_of(value: torch.Tensor, parts: int) -> torch.Tensor:
    """A term that every rank computes in full over gathered rows, as this rank's share: value / parts, full gradient.

    On each rank the gradient of such a term reaches only that rank's own rows, so the ranks' gradients already add up
    to the whole; the values would be counted `parts` times.
    """
    if parts == 1:
        return value
    return value - value.detach() * (1 - 1 / parts)


def gather_rows(rows: torch.Tensor, world_size: int, rank: int) -> torch.Tensor:
    """Rows (B, ...) of all ranks, in rank order: (world_size * B, ...). The gradient reaches this rank's rows only."""
    if world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank] = rows
    return torch.cat(parts)


def total(terms: dict[str, torch.Tensor], weights: dict[str, float] | None = None) -> torch.Tensor:
    """Sum of the terms whose names end in `_loss`, each with its weight (1 where none is given)."""
    weights = weights or {}
    return sum(weights.get(name, 1.0) * term for name, term in terms.items() if name.endswith("_loss"))


def _at_least_one(num_items: Count | None, found: int) -> Count:
    count = found if num_items is None else num_items
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
