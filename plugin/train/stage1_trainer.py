"""Trainer of stage 1: it wires teacher, student and loss together, nothing else."""

import torch

from .losses import kl_divergence
from .stage_trainer import StageTrainer


class Stage1Trainer(StageTrainer):
    """VG-Align: KL(teacher || student) where the teacher sees and the student hears, or hears and sees."""

    def loss_terms(self, model, batch, num_items):
        teacher, student, path = batch["teacher"], batch["student"], batch["path"]
        with torch.no_grad():
            teacher_logits = model(**teacher, use_adapter=False).logits  # (N, V)
        student_logits = model(**student, use_adapter=False).logits  # (N, V)
        loss = kl_divergence(teacher_logits, student_logits, num_items, self.args.temperature)["kl_loss"]
        with torch.no_grad():
            agree = (teacher_logits.argmax(-1) == student_logits.argmax(-1)).sum() / num_items.clamp(min=1)
        # One path a step, so the terms of a path are that path's whole step.
        return {f"kl_{path}_loss": loss, f"top1_{path}": agree}

    def count_targets(self, batch):
        return batch["student"]["response_mask"].sum()
