"""Teaches the nano backbone to see: captions and free questions first, then multiple choice as well."""

import json
import logging
import math
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import InputError
from .backbone_model import packed_logits
from .clips import WorldConfig
from .seeing_batches import BatchMaker, PackedBatch, draw_question

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that decides the backbone's weights.

    Args:
        seed: seed of weights and clips.
        hidden, layers, vision_layers: sizes of the networks.
        steps: training steps in all.
        caption_steps: steps with captions and free questions only, before multiple choice joins.
        choice_share: share of multiple choice after that.
        pictures, questions: pictures a step, and questions about each.
        learning_rate: peak, after `warmup_steps`; it falls linearly to 0 over the last `decay_share` of the steps.
        max_grad_norm, weight_decay: as usual.
        checkpoint_steps: steps between checkpoints.
    """

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    vision_layers: int = 3
    steps: int = 2800
    caption_steps: int = 500
    choice_share: float = 0.65
    pictures: int = 8
    questions: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.3
    max_grad_norm: float = 1.0
    weight_decay: float = 0.02
    checkpoint_steps: int = 250

    def __post_init__(self):
        for name in ("hidden", "layers", "vision_layers", "steps", "pictures", "questions", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.hidden % 32:
            raise InputError(f"hidden is {self.hidden}; give a multiple of 32.")

    def as_dict(self) -> dict:
        return asdict(self)


def learning_rate_at(config: BackboneConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    tail = max(1, round(config.decay_share * config.steps))
    return config.learning_rate * warm * min(1.0, (config.steps - step) / tail)


def seeing_loss(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Weighted cross-entropy, divided by the number of questions."""
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / sum(map(bool, batch.kinds))


def accuracies(logits: torch.Tensor, batch: PackedBatch) -> dict[str, list[bool]]:
    """Whether the first answer token was right, by kind of question."""
    right = (logits.argmax(-1) == batch.targets).tolist()
    result = defaultdict(list)
    for kind, hit in zip(batch.kinds, right):
        if kind:
            result[kind].append(hit)
    return result


def _optimizer(model, config: BackboneConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _save(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train_to_see(model, tokenizer, config: BackboneConfig, world: WorldConfig, folder: Path, progress: bool = True) -> dict:
    """Trains `model` in place; `folder` gets `checkpoint.pt` (to resume) and `metrics.jsonl` (the learning curve).

    The clips are fresh at every step, so the accuracies of the curve are those on pictures never seen before.
    """
    optimizer = _optimizer(model, config)
    maker = BatchMaker(world, tokenizer, config.pictures, config.questions)
    checkpoint, metrics = folder / "checkpoint.pt", folder / "metrics.jsonl"
    lines, start, spent_s = [], 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, lines, spent_s = state["step"], state["metrics"], state["wall_s"]
        logger.info("resuming the nano backbone at step %d", start)
    model.train()
    window, losses, began = defaultdict(list), [], time.monotonic() - spent_s
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="nano backbone", disable=not progress)
    for step in bar:
        share = 0.0 if step < config.caption_steps else config.choice_share
        batch = maker.make(
            step, lambda rng, clip: [draw_question(rng, clip, share) for _ in range(config.questions)]
        )
        logits = packed_logits(model, batch)
        loss = seeing_loss(logits, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        for kind, hits in accuracies(logits.detach(), batch).items():
            window[kind] += hits
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            line = {"step": step + 1, "loss": float(torch.stack(losses).mean()), "learning_rate": learning_rate_at(config, step)}
            if not math.isfinite(line["loss"]):
                raise RuntimeError(f"the loss is {line['loss']} at step {step + 1}; lower learning_rate.")
            line |= {f"accuracy_{kind}": sum(hits) / len(hits) for kind, hits in sorted(window.items())}
            line["wall_s"] = round(time.monotonic() - began, 2)
            lines.append(line)
            bar.set_postfix({k.removeprefix("accuracy_"): f"{v:.2f}" for k, v in line.items() if k.startswith("acc")})
            window.clear()
            losses.clear()
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < config.steps:
            _save(
                checkpoint,
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1,
                    "metrics": lines, "wall_s": time.monotonic() - began,
                },
            )
    model.eval()
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines[-1] if lines else {}
