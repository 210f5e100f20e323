"""Teaches the nano backbone its language, then to see."""

import json
import logging
import math
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from ..utils import InputError
from .backbone_model import packed_logits
from .clips import WorldConfig
from .seeing_batches import BatchMaker, PackedBatch

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that decides the backbone's weights.

    First it learns the language: content and emotion are named in words, and it is asked about them (`text_` fields).
    Then it learns to see: the same questions about pictures. The first part is there because that letters stand for
    options is hard to learn from pictures that are not understood yet, and easy from words.

    Args:
        seed: seed of weights and clips.
        hidden, layers, vision_layers: sizes of the networks.
        text_steps, text_rows, text_questions: steps of the first part, facts a step, and questions about each.
        text_clips: different facts; few, see `BatchMaker.make_told`.
        steps, pictures, questions: steps of the second part, pictures a step, and questions about each.
        choice_share: share of multiple choice among the questions about pictures.
        learning_rate: peak of each part, after `warmup_steps`; it falls linearly to 0 over the last `decay_share` of
            the second part.
        max_grad_norm, weight_decay: as usual.
        checkpoint_steps: steps between checkpoints.
    """

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    vision_layers: int = 3
    text_steps: int = 500
    text_rows: int = 8
    text_questions: int = 4
    text_clips: int = 32
    steps: int = 1000
    pictures: int = 24
    questions: int = 2
    choice_share: float = 0.5
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    max_grad_norm: float = 1.0
    weight_decay: float = 0.02
    checkpoint_steps: int = 250

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("seed", "text_steps", "warmup_steps", "weight_decay", "choice_share") else None
            if value < least if least is not None else value <= 0:
                raise InputError(f"{name} is {value}; give {'at least 0' if least == 0 else 'more than 0'}.")
        if self.hidden % 32:
            raise InputError(f"hidden is {self.hidden}; give a multiple of 32.")

    @property
    def total_steps(self) -> int:
        return self.text_steps + self.steps

    def as_dict(self) -> dict:
        return asdict(self)


def learning_rate_at(config: BackboneConfig, step: int) -> float:
    since = step if step < config.text_steps else step - config.text_steps
    warm = min(1.0, (since + 1) / max(1, config.warmup_steps))
    tail = max(1, round(config.decay_share * config.steps))
    return config.learning_rate * warm * min(1.0, (config.total_steps - step) / tail)


def seeing_loss(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Weighted cross-entropy, divided by the number of questions."""
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / sum(map(bool, batch.kinds))


def make_batch(maker: BatchMaker, config: BackboneConfig, step: int) -> PackedBatch:
    """The batch of a step, a function of the configs alone."""
    if step < config.text_steps:
        return maker.make_told(step, config.text_rows, config.text_questions, config.text_clips)
    return maker.make(step, config.pictures, config.questions, config.choice_share)


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


def _save(path: Path, model, optimizer: torch.optim.Optimizer, facts: dict) -> None:
    """Writes weights, the optimizer's state and `facts`, which JSON can hold, as safetensors."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    temporary = path.with_suffix(".tmp")
    metadata = {"facts": json.dumps({**facts, "param_groups": state["param_groups"]})}
    # Clones, because tied weights share their memory, which the format refuses.
    save_file({name: value.detach().clone() for name, value in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def _load(path: Path, model, optimizer: torch.optim.Optimizer) -> dict:
    """Puts back what `_save` wrote, and gives its facts."""
    weights, state = {}, defaultdict(dict)
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for key in file.keys():
            part, _, name = key.partition(".")
            if part == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, value = name.partition(".")
                state[int(index)][value] = file.get_tensor(key)
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": dict(state), "param_groups": facts.pop("param_groups")})
    return facts


def train_to_see(
    model, tokenizer, config: BackboneConfig, world: WorldConfig, folder: Path, progress: bool = True
) -> dict:
    """Trains `model` in place; `folder` gets `checkpoint.safetensors` (to resume) and `metrics.jsonl` (the curve).

    The clips are fresh at every step, so the accuracies of the curve's part "sight" are those on pictures never seen
    before. Those of the part "language" are not: it shows no pictures and repeats a few facts.
    """
    optimizer = _optimizer(model, config)
    maker = BatchMaker(world, tokenizer)
    checkpoint, metrics = folder / CHECKPOINT, folder / "metrics.jsonl"
    lines, start, spent_s = [], 0, 0.0
    if checkpoint.exists():
        facts = _load(checkpoint, model, optimizer)
        start, lines, spent_s = facts["step"], facts["metrics"], facts["wall_s"]
        logger.info("resuming the nano backbone at step %d", start)
    model.train()
    window, losses, began = defaultdict(list), [], time.monotonic() - spent_s
    total = config.total_steps
    bar = tqdm(range(start, total), initial=start, total=total, desc="nano backbone", disable=not progress)
    for step in bar:
        batch = make_batch(maker, config, step)
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
        if (step + 1) % 50 == 0 or step + 1 in (config.text_steps, total):
            line = {"step": step + 1, "loss": float(torch.stack(losses).mean())}
            line["learning_rate"] = learning_rate_at(config, step)
            if not math.isfinite(line["loss"]):
                raise RuntimeError(f"the loss is {line['loss']} at step {step + 1}; lower learning_rate.")
            line["part"] = "language" if step < config.text_steps else "sight"
            line |= {f"accuracy_{kind}": sum(hits) / len(hits) for kind, hits in sorted(window.items())}
            line["wall_s"] = round(time.monotonic() - began, 2)
            lines.append(line)
            bar.set_postfix({k.removeprefix("accuracy_"): f"{v:.2f}" for k, v in line.items() if k.startswith("acc")})
            window.clear()
            losses.clear()
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < total:
            facts = {"step": step + 1, "metrics": lines, "wall_s": time.monotonic() - began}
            _save(checkpoint, model, optimizer, facts)
    model.eval()
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines[-1] if lines else {}
