"""Trainer of stage 1: it wires teacher, student and loss together, nothing else."""

import torch

from .flops import batch_sizes, microbatch_flops, model_costs
from .losses import divergence
from .stage_trainer import StageTrainer
from .teacher import states_of

# First and last place in a response, counted from 1, of what is watched together.
_PLACES = ((1, 1), (2, 4), (5, 16), (17, 64), (65, None))


class Stage1Trainer(StageTrainer):
    """VG-Align: divergence of the hearing student from the seeing teacher at the tokens of the teacher's responses.

    Args:
        as for StageTrainer; kinds: the kinds of prompts, each watched on its own where there are several.
    """

    def __init__(self, *args, kinds=(), **kwargs):
        self.kinds = sorted(kinds) if len(set(kinds)) > 1 else []
        names = [_place_name(place) for place in _PLACES] + [f"kl_kind_{kind}" for kind in self.kinds]
        super().__init__(*args, meters=names, **kwargs)
        self.costs = model_costs(self.model.config)

    def loss_terms(self, model, batch, num_items):
        modality, config = batch["modality"], self.args
        common = {"use_adapter": False, "packing": self.packing}
        if "teacher_states" in batch:
            teacher = batch["teacher_states"]  # (N, D)
        else:
            with torch.no_grad():
                teacher = model(**batch["teacher"], **common, response_fn=states_of).response  # (N, D)

        # From the rows' numbers: an engine would have rounded a tensor of them to its dtype.
        lengths = batch["student"]["response_mask"].sum(1)  # (B,)
        weights = torch.tensor(batch["weights"], device=lengths.device).repeat_interleave(lengths)  # (N,)

        def compare(states, head):
            return divergence(
                teacher, states, head, num_items, kind=config.divergence, temperature=config.temperature,
                beta=config.jsd_beta, token_weights=weights,
            )  # fmt: skip

        terms = model(**batch["student"], **common, response_fn=compare).response
        self._watch(terms["divergence"], batch)
        agree = (terms["agrees"] * weights).sum() / num_items.clamp(min=1)
        # One modality a step, so the terms of a modality are that modality's whole step.
        return {f"kl_{modality}_loss": terms["divergence_loss"], f"top1_{modality}": agree}

    def _watch(self, values: torch.Tensor, batch) -> None:
        """Mean divergence at places of the response, and by kind of prompt."""
        places = batch["positions"] + 1  # (N,)
        for first, last in _PLACES:
            inside = (places >= first) & (places <= (last or torch.inf))
            self.observe(_place_name((first, last)), (values * inside).sum(), inside.sum())
        if self.kinds:
            lengths = batch["student"]["response_mask"].sum(1)  # (B,)
            kinds = torch.tensor([self.kinds.index(kind) for kind in batch["kinds"]], device=values.device)
            kinds = kinds.repeat_interleave(lengths)  # (N,)
            for number, kind in enumerate(self.kinds):
                self.observe(f"kl_kind_{kind}", (values * (kinds == number)).sum(), (kinds == number).sum())

    def model_inputs(self, batch):
        return [batch[name] for name in ("student", "teacher") if name in batch]

    def model_flops(self, batch):
        sizes = batch_sizes(self.model.config, batch, self.packing)
        return microbatch_flops(self.costs, sizes, self.trained_parts).model

    def count_targets(self, batch):
        lengths = batch["student"]["response_mask"].sum(1)  # (B,)
        return (torch.tensor(batch["weights"]) * lengths).sum()


def _place_name(place) -> str:
    first, last = place
    return f"kl_place_{first}" if first == last else f"kl_place_{first}_{last or 'up'}"
