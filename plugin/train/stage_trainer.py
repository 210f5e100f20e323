"""What both trainers share: data order, normalisation of the loss, logs, checkpoints. No loss is defined here."""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME

from ..data.samplers import ScheduledBatchSampler
from ..utils import ClipError, InputError, RankError, reported_writing
from . import checkpoint
from .distributed import barrier, sum_over_ranks
from .engine import is_zero3, keep_frozen_whole, save_engine
from .flops import peak_tflops_of
from .freezing import parameter_groups, set_modes
from .losses import total
from .metrics import EpochOfSampler, MetricsFile
from .same_modules import SameModules


class StageTrainer(Trainer):
    """HF Trainer whose data order is a function of seed and step, and whose checkpoints hold trained parameters only.

    A subclass defines `loss_terms(model, batch, num_items)` -> named terms, `count_targets(batch)` and `loss_weights`.
    What it wants to watch beside them it names in `meters` and gives to `observe`.

    Args:
        model, args, train_dataset, data_collator, processing_class: as for Trainer.
        trained_parts: names of the submodules that are trained.
        learning_rates: prefix of parameter names -> learning rate, None for the default.
        sampler_options: `length_of` of `ScheduledBatchSampler`.
        meters: names of what a subclass observes, the same on all ranks.
    """

    loss_is_scaled_for_ga = True  # the terms are shares of the whole step
    loss_weights: dict[str, float] = {}

    def __init__(
        self,
        model,
        args,
        train_dataset,
        data_collator,
        processing_class,
        trained_parts,
        learning_rates,
        sampler_options: dict[str, Any] | None = None,
        meters: Sequence[str] = (),
    ):
        self.trained_parts, self.learning_rates = tuple(trained_parts), learning_rates
        names = ("loader_wait", "padding", "tflops", *meters)
        self._meters = {name: torch.zeros(2, dtype=torch.float64) for name in names}
        self._step_ids: list[str] = []
        self._step_flops = 0
        self._last_fetch_s: float | None = None
        self._logged: dict[str, list[float]] = {}  # term -> [sum over steps, number of steps]
        self._step_terms: dict[str, torch.Tensor] = {}
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, data_collator=data_collator,
            processing_class=processing_class,
        )  # fmt: skip
        self.loss_is_scaled_for_ga = True
        attention = model.get_decoder().config._attn_implementation
        self.packing = "flash" in attention if args.packing is None else args.packing
        device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
        self.peak_tflops = args.peak_tflops or peak_tflops_of(device)
        self.batch_sampler = ScheduledBatchSampler(
            train_dataset.groups, args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size,
            args.process_index, args.seed, **(sampler_options or {}),
        )  # fmt: skip
        hears = any(p.requires_grad for part in (model.audio_projector, model.audio_tower) for p in part.parameters())
        self.same_modules = SameModules(model, processing_class, hears)
        self.add_callback(EpochOfSampler(self.batch_sampler))
        self.add_callback(MetricsFile(Path(args.output_dir) / "metrics.jsonl"))

    # ---- what a stage defines

    def loss_terms(self, model, batch: dict[str, Any], num_items: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named terms of a micro-batch on this rank; the names that end in `_loss` are trained on, all are logged."""
        raise NotImplementedError

    def count_targets(self, batch: dict[str, Any]) -> torch.Tensor:
        """Number of target tokens in a micro-batch."""
        raise NotImplementedError

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the sampler already gives each rank its own part.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers > 0 else None,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        begin_s = time.monotonic()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        now_s = time.monotonic()
        if self._last_fetch_s is not None:
            self.observe("loader_wait", now_s - begin_s, now_s - self._last_fetch_s)
            if self._step_flops:
                self.observe("tflops", self._step_flops / 1e12, now_s - self._last_fetch_s)
        self._last_fetch_s, self._step_flops, self._step_ids = now_s, 0, []
        for batch in batches:
            if "error" in batch:
                raise ClipError(batch["error"])
            self._step_ids += batch["ids"]
            self._step_flops += self.model_flops(batch)
            for inputs in self.model_inputs(batch):
                self._check_context(batch["ids"], inputs["attention_mask"].sum(1).tolist())
        targets = sum(self.count_targets(batch) for batch in batches)
        return batches, sum_over_ranks(torch.as_tensor(targets, device=device))

    def model_inputs(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """The inputs of the model's calls for a batch."""
        raise NotImplementedError

    def model_flops(self, batch: dict[str, Any]) -> int:
        """FLOPs of a micro-batch, without recomputation; 0 where they are not counted."""
        return 0

    def _check_context(self, ids: Sequence[str], lengths: Sequence[int]) -> None:
        limit = self.model.config.get_text_config().max_position_embeddings
        for clip_id, length in zip(ids, lengths):
            if length > limit:
                raise ClipError(
                    f"clip {clip_id!r}: its input of {length} tokens exceeds the backbone's context of {limit} "
                    "tokens. Lower num_frames or max_audio_s, or take a shorter part of it."
                )

    def _run_epoch(self, *args, **kwargs):
        # A run that was killed while it saved its model has no step left; the library would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        set_modes(self.model, self.trained_parts)
        for part in self.model_inputs(inputs):
            mask = part["attention_mask"]
            padding = mask.numel() - mask.sum()
            self.observe("padding", 0 * padding if self.packing else padding, mask.numel())
        terms = self.loss_terms(model, inputs, num_items_in_batch)
        for name, term in terms.items():
            self._step_terms[name] = self._step_terms.get(name, 0) + term.detach().float()
        if self.accelerator.sync_gradients:
            self._close_step()
        # Engines average gradients over ranks; the terms are shares whose sum is wanted.
        return total(terms, self.loss_weights) * self.args.world_size

    def observe(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float) -> None:
        """Add to a meter: `total / count` over all ranks and steps since the last log is logged."""
        meter = self._meters[name]
        self._meters[name] = meter.to(getattr(total, "device", meter.device)) + torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=getattr(total, "device", meter.device)).detach()
             for value in (total, count)]
        )  # fmt: skip

    def _close_step(self) -> None:
        """Add the finished step's terms, summed over ranks, to what the next log averages.

        Raises:
            InputError: a term is not finite. The step's gradient has not reached the weights.
        """
        if not self._step_terms:
            return
        names = sorted(self._step_terms)
        own = torch.stack([self._step_terms[name] for name in names])
        values = sum_over_ranks(own).tolist()
        if not all(map(math.isfinite, values)):
            self._stop(dict(zip(names, values)), bool(torch.isfinite(own).all()))
        for name, value in zip(names, values):
            entry = self._logged.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1
        self._step_terms = {}

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # Under fp16 the loss scaler skips such a step itself.
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            self._stop({"grad_norm": float(norm)}, elsewhere=False)
        return norm

    def _stop(self, values: dict[str, float], elsewhere: bool) -> None:
        bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        last = checkpoint.last_complete(Path(self.args.output_dir))
        step = f"step {self.state.global_step + 1}: {bad}"
        if elsewhere:
            raise InputError(f"{step}. The rank that met it names its clips.")
        raise RankError(
            f"{step}; clips of this step: {', '.join(self._step_ids)}. Nothing of it was learned. The last checkpoint "
            f"is {last or 'none yet'}: look at these clips, lower learning_rate or raise warmup_steps, and start "
            "again in another output_dir."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            meters = sum_over_ranks(torch.stack([meter.to(self.args.device) for meter in self._meters.values()]))
            for name, (total_, count) in zip(list(self._meters), meters.tolist()):
                if count > 0:
                    logs[name] = total_ / count
                self._meters[name] = torch.zeros(2, dtype=torch.float64)
            # Of each device, over the time on the wall, saving and waiting included.
            if self.peak_tflops and "tflops" in logs:
                logs["mfu"] = logs["tflops"] / self.peak_tflops
            # A term that belongs to one modality is averaged over the steps that took the modality.
            logs |= {name: value / steps for name, (value, steps) in sorted(self._logged.items())}
            self._logged = {}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs) -> int:
        return 0  # the library's estimate does not know our batches

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            # An explicit 0.0 instead of the default: the groups carry their own decay.
            groups = parameter_groups(self.model, self.learning_rates, self.args.learning_rate, self.args.weight_decay)
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    # ---- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not _internal_call:
            super().save_model(output_dir)
        elif not self.is_deepspeed_enabled and self.args.should_save:
            checkpoint.save_trainable(self.model, Path(output_dir))
        else:
            os.makedirs(output_dir, exist_ok=True)  # DeepSpeed writes its own files beside the optimizer's

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            save_engine(self.model_wrapped, output_dir)
            if self.args.should_save:
                checkpoint.record_trainable_shapes(self.model, Path(output_dir))
            if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
                torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_checkpoint(self, model, trial):
        # The library deletes old checkpoints before the new one is known to be whole; we do it after.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        output_dir = Path(self._get_output_dir(trial=trial))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        with reported_writing(folder, unfinished=True):
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            barrier()
            if self.args.should_save:
                checkpoint.mark_complete(folder)
        if self.args.should_save:
            checkpoint.rotate(output_dir, limit)
        barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        checkpoint.load_trainable(self.model if model is None else model, Path(resume_from_checkpoint))

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if not self.is_deepspeed_enabled:
            self.same_modules.attach()
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            checkpoint.check_trainable_shapes(self.model, Path(resume_from_checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            # The library loads strictly unless the model is a PeftModel; our checkpoints hold no frozen weights.
            deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        if is_zero3(self.model_wrapped):
            keep_frozen_whole(self.model_wrapped)
            self.same_modules.attach(self.model_wrapped)
        else:
            self.same_modules.attach()
        return prepared
