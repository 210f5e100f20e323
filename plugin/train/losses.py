"""Losses of both stages, as pure functions of tensors.

Each returns a dict of named terms. A term is the share that this batch has in the whole step: its sum divided by the
number of targets of the whole step (`num_items`, over accumulation and ranks). So the terms of all micro-batches and
ranks add up to the step's loss, and neither accumulation nor world size changes the gradient. Everything is computed
in float32 or better.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..model.inputs import MODALITIES
from .chunked_divergence import KINDS, ChunkedDivergence, chunk_tokens_for

Count = int | float | torch.Tensor


def divergence(
    teacher: torch.Tensor,
    student: torch.Tensor,
    head: nn.Module,
    num_items: Count | None = None,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    chunk_tokens: int | None = None,
) -> dict[str, torch.Tensor]:
    """Divergence of the student's next-token distributions from the teacher's, from their states and the frozen head.

    `T^2 / num_items * sum_n D(p_n || q_n)`, p = softmax(head(teacher) / T), q = softmax(head(student) / T); T^2
    keeps the size of the gradient (Hinton et al., arXiv 1503.02531). D is

    - forward_kl: KL(p || q), which spreads the student over all that the teacher holds possible (the default);
    - reverse_kl: KL(q || p), which lets it settle on a part of that;
    - jsd: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (arXiv 2306.13649).

    The paper (arXiv 2511.12077) aligns next-token distributions; direction and temperature are our choice. Logits are
    accumulated in float32 whatever the weights' dtype, a chunk of positions at a time; the head gets no gradient.

    Args:
        teacher: (N, D) states after the final norm, constants.
        student: (N, D).
        head: linear layer (V, D), frozen, with or without bias. Under ZeRO-3 call this inside the engine's forward.
        num_items: number of targets of the whole step, N if not given.
        kind: "forward_kl", "reverse_kl" or "jsd".
        temperature: T, above 0.
        beta: of "jsd", between 0 and 1, without them.
        chunk_tokens: positions at a time; chosen by device and vocabulary if not given.

    Returns:
        {"divergence_loss": scalar, "divergence": (N,) D(p_n || q_n), "agrees": (N,) bool, whether both expect the
        same token most}; the last two carry no gradient. The loss is 0 where N is 0.

    Raises:
        ValueError: shapes that do not fit, an unknown kind, beta or temperature out of range, a head that is trained.
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher states are {tuple(teacher.shape)} and student states {tuple(student.shape)}: their response "
            "masks must mark the same number of tokens."
        )
    if kind not in KINDS:
        raise ValueError(f"divergence {kind!r} is unknown; allowed are {', '.join(KINDS)}.")
    if not temperature > 0 or (kind == "jsd" and not 0 < beta < 1):
        raise ValueError(f"temperature {temperature} must be above 0, and beta {beta} between 0 and 1.")
    weight, bias = head.weight, getattr(head, "bias", None)
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("the head is trained, and this loss gives it no gradient: freeze it.")
    count = _at_least_one(num_items, student.shape[0])
    loss, per_token, agrees = ChunkedDivergence.apply(
        student, teacher.detach(), weight, bias, kind, beta, temperature,
        chunk_tokens or chunk_tokens_for(weight.shape[0], weight.device.type),
    )  # fmt: skip
    return {"divergence_loss": loss / count, "divergence": per_token, "agrees": agrees}


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


def valence_arousal_loss(prediction: torch.Tensor, target: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Supervisor loss of one dimension on every modality: 1 - CCC + MSE. The form is ours.

    CCC belongs to a whole set of clips and is not a sum over them: give all rows of the step at once, see
    `gather_rows`. With fewer than two labelled rows it says nothing and only MSE counts.

    Args:
        prediction: (B, 3) in [-1, 1], columns as in `MODALITIES`; NaN where the sample lacks the modality.
        target: (B,) in [-1, 1]; NaN where the clip has no label.
        name: "valence" or "arousal", the prefix of the terms.

    Returns:
        {"<name>_<modality>_loss": scalar} for each modality that has a labelled row; others are absent.
    """
    terms = {}
    for modality, rows in _rows_by_modality(~torch.isnan(prediction) & ~torch.isnan(target).unsqueeze(1)).items():
        predicted, wanted = prediction[rows, MODALITIES.index(modality)].float(), target[rows].float()  # (n,)
        loss = (predicted - wanted).square().mean()
        if len(rows) > 1:
            loss = loss + (1 - concordance(predicted, wanted))
        terms[f"{name}_{modality}_loss"] = loss
    return terms


def emotion_loss(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """KL(target || prediction) of the emotion labels on every modality; for one hard label it is the cross entropy.

    Args:
        logits: (B, 3, K), columns as in `MODALITIES`; NaN where the sample lacks the modality.
        target: (B, K) distributions; NaN where the clip has no label.

    Returns:
        {"emotion_<modality>_loss": scalar}, a mean over labelled rows, for each modality that has one; others are
        absent.
    """
    terms = {}
    labelled = ~torch.isnan(target).any(1, keepdim=True)  # (B, 1)
    for modality, rows in _rows_by_modality(labelled & ~torch.isnan(logits).any(2)).items():
        log_q = F.log_softmax(logits[rows, MODALITIES.index(modality)].float(), -1)  # (n, K)
        terms[f"emotion_{modality}_loss"] = F.kl_div(log_q, target[rows].float(), reduction="batchmean")
    return terms


def _rows_by_modality(valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """Numbers (n,) of the rows that are True in a column of (B, 3), by modality, where there are any.

    The host waits for the device once, and not at each use of a mask.
    """
    columns = zip(MODALITIES, valid.T.tolist())
    rows = {modality: [row for row, is_valid in enumerate(column) if is_valid] for modality, column in columns}
    return {name: torch.tensor(found).to(valid.device, non_blocking=True) for name, found in rows.items() if found}


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
