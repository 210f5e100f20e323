"""Trainer of stage 2: it wires the model's answers and readings to their losses, nothing else."""

import torch

from ..model.emotion_adapter import PATHS
from .losses import cross_entropy, gather_rows, share_of, valence_arousal_loss
from .stage_trainer import StageTrainer


class Stage2Trainer(StageTrainer):
    """EmoAdapter: cross entropy on the answers + valence-arousal supervision of each path that a step carries."""

    def loss_terms(self, model, batch, num_items):
        inputs, path = batch["inputs"], batch["path"]
        output = model(**inputs, use_adapter=True, packing=self.packing)
        targets = inputs["input_ids"][inputs["response_mask"]]  # (N,)
        terms = {f"ce_{path}_loss": cross_entropy(output.logits, targets, num_items)["ce_loss"]}
        # Where no clip has a label the heads would be left without a gradient, see `SameModules`.
        touched = torch.nan_to_num(output.valence).sum() + torch.nan_to_num(output.arousal).sum()
        terms[f"ce_{path}_loss"] = terms[f"ce_{path}_loss"] + 0.0 * touched
        world, rank = self.args.world_size, self.args.process_index
        for name, prediction in (("valence", output.valence), ("arousal", output.arousal)):
            # CCC is of the whole step's clips: rows of all ranks, (world * B, 3) and (world * B,).
            rows = gather_rows(prediction, world, rank)
            labels = gather_rows(batch[name], world, rank)
            found = valence_arousal_loss(rows, labels, name, self.args.ccc_weight, self.args.mse_weight)
            # Over accumulated micro-batches it is the mean of theirs.
            terms |= {
                key: share_of(term, world) / self.args.gradient_accumulation_steps for key, term in found.items()
            }
        return terms

    @property
    def loss_weights(self):
        weights = {"valence": self.args.valence_weight, "arousal": self.args.arousal_weight}
        return {f"{name}_{path}_loss": w for name, w in weights.items() for path in PATHS}

    def model_inputs(self, batch):
        return [batch["inputs"]]

    def count_targets(self, batch):
        return batch["inputs"]["response_mask"].sum()
