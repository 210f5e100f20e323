"""Trainer of stage 2: it wires the model's answers and readings to their losses, nothing else."""

import torch

from ..model.configuration_vaemotionllm import MODALITIES
from .freezing import set_modes
from .losses import consistency_loss, cross_entropy, emotion_loss, gather_rows, share_of, valence_arousal_loss
from .stage_trainer import StageTrainer


class Stage2Trainer(StageTrainer):
    """EmoAdapter: cross entropy on the answers + the Supervisor's losses on each modality that a step carries.

    The Supervisor's losses are of the whole step's clips, over ranks and accumulated micro-batches: a correlation of
    two clips says nothing. With accumulation the micro-batches are therefore read once without a gradient before the
    first of them is trained on, which costs a forward pass; with dropout in LoRA the two readings differ by it. Where
    the Supervisor's losses have no weight nothing of this is done.
    """

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        ahead = len(batches) > 1 and self._supervised
        self._micro_batch, self._read = 0, self._read_ahead(batches) if ahead else [None] * len(batches)
        return batches, num_items

    @property
    def _supervised(self) -> bool:
        return any(self.loss_weights.values())

    @torch.no_grad()
    def _read_ahead(self, batches) -> list[torch.Tensor]:
        """Readings and labels of all ranks, see `_rows`, of each micro-batch."""
        set_modes(self.model, ())
        found = []
        for batch in map(self._prepare_inputs, batches):
            nowhere = torch.zeros_like(batch["inputs"]["response_mask"])
            with self.compute_loss_context_manager():
                output = self.model_wrapped(
                    **batch["inputs"] | {"response_mask": nowhere}, use_adapter=True, packing=self.packing
                )
            found.append(self._rows(output, batch))
        return found

    def _rows(self, output, batch) -> torch.Tensor:
        """(world * B, 4, 2 + K): the outputs of the three modalities, then the labels. Valence, arousal, logits."""
        plane = torch.stack([output.valence, output.arousal], -1)  # (B, 3, 2)
        readings = plane if output.emotion_logits is None else torch.cat([plane, output.emotion_logits], -1)
        labels = torch.cat([batch["valence"].unsqueeze(1), batch["arousal"].unsqueeze(1), batch["emotion"]], 1)
        rows = torch.cat([readings, labels.to(readings).unsqueeze(1)], 1)
        return gather_rows(rows, self.args.world_size, self.args.process_index)

    def loss_terms(self, model, batch, num_items):
        inputs, modality = batch["inputs"], batch["modality"]
        output = model(**inputs, use_adapter=True, packing=self.packing)
        targets = inputs["input_ids"][inputs["response_mask"]]  # (N,)
        terms = {f"ce_{modality}_loss": cross_entropy(output.logits, targets, num_items)["ce_loss"]}
        rows = self._rows(output, batch)
        # Where no clip has a label the heads would be left without a gradient, see `SameModules`.
        terms[f"ce_{modality}_loss"] = terms[f"ce_{modality}_loss"] + 0.0 * torch.nan_to_num(rows).sum()
        if not self._supervised:
            return terms
        # The gradient reaches this rank's rows of this micro-batch alone.
        step, self._micro_batch = list(self._read), self._micro_batch + 1
        step[self._micro_batch - 1] = rows
        found = self._supervision(torch.cat(step))
        return terms | {name: share_of(term, self.args.world_size * len(step)) for name, term in found.items()}

    def _supervision(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The Supervisor's losses of a whole step, from rows as `_rows` makes them."""
        readings, labels = rows[:, : len(MODALITIES)], rows[:, len(MODALITIES)]  # (R, 3, 2 + K), (R, 2 + K)
        terms = {}
        for column, name in enumerate(("valence", "arousal")):
            terms |= valence_arousal_loss(
                readings[..., column], labels[:, column], name, self.args.ccc_weight, self.args.mse_weight
            )
        logits = readings[..., 2:] if readings.shape[-1] > 2 else None
        if logits is not None:
            terms |= emotion_loss(logits, labels[:, 2:])
        if self.args.consistency_weight:
            terms |= consistency_loss(readings[..., 0], readings[..., 1], logits)
        return terms

    @property
    def loss_weights(self):
        weights = {name: getattr(self.args, f"{name}_weight") for name in ("valence", "arousal", "emotion")}
        per_modality = {
            f"{name}_{modality}_loss": weight for name, weight in weights.items() for modality in MODALITIES
        }
        return per_modality | {"consistency_loss": self.args.consistency_weight}

    def model_inputs(self, batch):
        return [batch["inputs"]]

    def count_targets(self, batch):
        return batch["inputs"]["response_mask"].sum()
