"""Trainer of stage 1: it wires teacher, student and loss together, nothing else."""

import torch

from .losses import divergence
from .stage_trainer import StageTrainer


class Stage1Trainer(StageTrainer):
    """VG-Align: divergence of the hearing student from the seeing teacher at the tokens of the teacher's responses."""

    def loss_terms(self, model, batch, num_items):
        path, config = batch["path"], self.args
        with torch.no_grad():
            # (N, D)
            teacher = model(**batch["teacher"], use_adapter=False, response_fn=lambda states, head: states).response

        def compare(states, head):
            return divergence(
                teacher, states, head, num_items, kind=config.divergence, temperature=config.temperature,
                beta=config.jsd_beta,
            )  # fmt: skip

        terms = model(**batch["student"], use_adapter=False, response_fn=compare).response
        agree = terms["agrees"].sum() / num_items.clamp(min=1)
        # One path a step, so the terms of a path are that path's whole step.
        return {f"kl_{path}_loss": terms["divergence_loss"], f"top1_{path}": agree}

    def count_targets(self, batch):
        return batch["student"]["response_mask"].sum()
