"""Trainers of both stages: data order, losses, logs and checkpoints, on the HF Trainer."""

import contextlib
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper, DynamoBackend, TorchDynamoPlugin, send_to_device
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..data.samplers import ScheduledBatchSampler
from ..model.inputs import MODALITIES
from ..utils import ClipError, InputError, RankError, reported_writing, write_json, write_json_lines
from . import checkpoint
from .distributed import (
    SameModules,
    barrier,
    head_with_the_rest,
    max_over_ranks,
    prepare_fsdp,
    save_engine,
    sharded_like,
    sum_over_ranks,
    whole,
    zero3_coordinator,
)
from .host_inputs import with_host_inputs, without_vision_inputs
from .losses import cross_entropy, divergence, emotion_loss, gather_rows, share_of, total, valence_arousal_loss
from .model import parameter_groups, set_modes
from .teacher import states_of


class StageTrainer(Trainer):
    """HF Trainer whose data order is a function of seed and step, and whose checkpoints hold trained parameters only.

    A subclass defines `loss_terms`, `count_targets`, `model_inputs` and `loss_weights`.

    Args:
        model, args, train_dataset, data_collator, processing_class: as for Trainer.
        trained_parts: names of the submodules that are trained.
        learning_rates: see `parameter_groups`.
        sampler_options: further arguments of `ScheduledBatchSampler`.
    """

    loss_is_scaled_for_ga = True  # the terms are shares of the whole step
    loss_weights: dict[str, float] = {}

    def __init__(self, model, args, *, trained_parts, learning_rates, sampler_options=None, **kwargs):
        self.trained_parts, self.learning_rates = tuple(trained_parts), learning_rates
        self._step_ids: list[str] = []
        self._last_fetch_s: float | None = None
        self._logged: dict[str, list[float]] = {}  # name -> [sum since the last log, what it is divided by]
        self._step_terms: dict[str, torch.Tensor] = {}
        super().__init__(model, args, **kwargs)
        if self.is_fsdp_enabled:
            prepare_fsdp(self.accelerator.state.fsdp_plugin, model)
        if args.torch_compile:
            compile_layers(model, self.accelerator.state.dynamo_plugin)
        model.get_decoder().register_forward_pre_hook(without_vision_inputs, with_kwargs=True)
        attention = model.get_decoder().config._attn_implementation
        self.packing = "flash" in attention if args.packing is None else args.packing
        groups, per_device = self.train_dataset.groups, args.per_device_train_batch_size
        schedule = (
            groups,
            per_device,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            args.seed,
        )
        self.batch_sampler = ScheduledBatchSampler(*schedule, **(sampler_options or {}))
        audio = (model.audio_projector, model.audio_tower)
        trains_audio = any(parameter.requires_grad for part in audio for parameter in part.parameters())
        self.same_modules = SameModules(model, self.processing_class, trains_audio)
        self.add_callback(MetricsFile(Path(args.output_dir) / checkpoint.METRICS))

    # ---- what a stage defines

    def loss_terms(self, model, batch: dict[str, Any], num_items: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named terms of a micro-batch on this rank; the names that end in `_loss` are trained on, all are logged."""
        raise NotImplementedError

    def count_targets(self, batch: dict[str, Any]) -> torch.Tensor:
        """Number of target tokens in a micro-batch."""
        raise NotImplementedError

    def model_inputs(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """The inputs of each of the model's calls for a batch."""
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
            worker_init_fn=_ignore_sigterm,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers > 0 else None,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        begin_s = time.monotonic()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        now_s = time.monotonic()
        if self._last_fetch_s is not None:
            self._observe("loader_wait", now_s - begin_s, now_s - self._last_fetch_s)
        self._last_fetch_s, self._step_ids = now_s, []
        limit = self.model.config.get_text_config().max_position_embeddings
        for batch in batches:
            if "error" in batch:
                raise ClipError(batch["error"])
            self._step_ids += batch["ids"]
            lengths = torch.stack([inputs["attention_mask"].sum(1) for inputs in self.model_inputs(batch)]).amax(
                0
            )  # (B,)
            for clip_id, length in zip(batch["ids"], lengths.tolist()):
                if length > limit:
                    raise ClipError(
                        f"clip {clip_id!r}: its input of {length} tokens exceeds the backbone's context of {limit} "
                        "tokens. Lower num_frames or max_audio_s, or take a shorter part of it."
                    )
        targets = sum(self.count_targets(batch) for batch in batches)
        return batches, sum_over_ranks(torch.as_tensor(targets, device=device))

    def _run_epoch(self, *args, **kwargs):
        self.batch_sampler.set_epoch(self.state.global_step // self.batch_sampler.steps_per_epoch)
        # A run that was killed while it saved its model has no step left; the library would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # The library's copy waits for the device, and rounds labels to DeepSpeed's dtype.
        batch = {
            name: with_host_inputs(self.model, value) if isinstance(value, dict) else value
            for name, value in inputs.items()
        }
        return send_to_device(batch, self.args.device, non_blocking=True)

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        set_modes(self.model, self.trained_parts)
        terms = self.loss_terms(model, inputs, num_items_in_batch)
        for name, term in terms.items():
            self._step_terms[name] = self._step_terms.get(name, 0) + term.detach().float()
        if self.accelerator.sync_gradients:
            self._close_step()
        # Engines average gradients over ranks; the terms are shares whose sum is wanted.
        return total(terms, self.loss_weights) * self.args.world_size

    def autocast_smart_context_manager(self, cache_enabled=True):
        # accelerate wraps the forward of each model but those under FSDP 2.
        return self.accelerator.autocast() if self.is_fsdp_enabled else super().autocast_smart_context_manager()

    def _observe(self, name: str, total: float, count: float) -> None:
        """Add to what the next log divides: `total / count` since the last one."""
        entry = self._logged.setdefault(name, [0.0, 0])
        entry[0] += total
        entry[1] += count

    def _close_step(self) -> None:
        """Add the finished step's terms, summed over ranks, to what the next log averages.

        Raises:
            InputError: a term is not finite. The step's gradient has not reached the weights.
        """
        names = sorted(self._step_terms)
        own = torch.stack([self._step_terms[name] for name in names])
        values = sum_over_ranks(own).tolist()
        if not all(map(math.isfinite, values)):
            self._stop(dict(zip(names, values)), bool(torch.isfinite(own).all()))
        for name, value in zip(names, values):
            self._observe(name, value, 1)
        self._step_terms = {}

    def _get_grad_norm(self, model, grad_norm=None):
        norm = whole(super()._get_grad_norm(model, grad_norm))
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
            # A term that belongs to one modality is averaged over the steps that took the modality.
            names = sorted(self._logged)
            own = torch.tensor([self._logged[name] for name in names], dtype=torch.float64, device=self.args.device)
            logs |= {name: value / count for name, (value, count) in zip(names, sum_over_ranks(own).tolist())}
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
        elif not self.is_deepspeed_enabled:
            checkpoint.save_trainable(self.model, Path(output_dir), self.args.should_save)
        else:
            os.makedirs(output_dir, exist_ok=True)  # DeepSpeed writes its own files beside the optimizer's

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            save_engine(self.model_wrapped, output_dir)
            if self.args.should_save:
                shapes = checkpoint.trainable_shapes(self.model)
                write_json(Path(output_dir) / checkpoint.TRAINABLE_SHAPES, shapes)
            if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
                torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))
        elif self.is_fsdp_enabled:  # in the form of a run without an engine
            optimizer = whole(self.optimizer.state_dict())
            if self.args.should_save:
                torch.save(optimizer, os.path.join(output_dir, OPTIMIZER_NAME))
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
            self.same_modules.attach(agree=self.is_fsdp_enabled)
            with head_with_the_rest(self.model) if self.is_fsdp_enabled else contextlib.nullcontext():
                return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            checkpoint.check_engine_checkpoint(self.model, Path(resume_from_checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            # The library loads strictly unless the model is a PeftModel; our checkpoints hold no frozen weights.
            deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        coordinator = zero3_coordinator(self.model_wrapped)
        self.same_modules.attach(coordinator is not None, coordinator)
        return prepared

    def _load_optimizer_and_scheduler(self, folder):
        if folder is not None and self.is_fsdp_enabled:
            optimizer, schedule = (
                torch.load(os.path.join(folder, name), map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            for number, state in optimizer["state"].items():
                optimizer["state"][number] = {k: sharded_like(v, parameters[number]) for k, v in state.items()}
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(schedule)
        else:
            super()._load_optimizer_and_scheduler(folder)
        scheduler = self.lr_scheduler
        if folder is not None and isinstance(scheduler, LambdaLR):
            # A run that is made longer has another schedule than the one that the saved learning rates are of.
            schedules = zip(scheduler.base_lrs, scheduler.lr_lambdas)
            scheduler._last_lr = [base * schedule(scheduler.last_epoch) for base, schedule in schedules]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr):
                group["lr"] = rate


def compile_layers(model, plugin: TorchDynamoPlugin) -> None:
    """Compile each decoder layer in place, for any length, and nothing else by accelerate.

    The whole model has media, masks and branches of other forms in each batch, and would be compiled at each step.
    """
    for layer in model.get_decoder().layers:
        layer.compile(**plugin.to_kwargs() | {"dynamic": True})
    plugin.backend = DynamoBackend.NO


class Stage1Trainer(StageTrainer):
    """VG-Align: divergence of the student, given audio, from the teacher, given the visual, at its responses."""

    def loss_terms(self, model, batch, num_items):
        modality, config = batch["modality"], self.args
        common = {"use_adapter": False, "packing": self.packing}
        if "teacher_states" in batch:
            teacher = batch["teacher_states"]  # (N, D)
        else:
            with torch.no_grad():
                teacher = model(**batch["teacher"], **common, response_fn=states_of).response  # (N, D)

        def compare(states, head):
            return divergence(
                teacher, states, head, num_items, kind=config.divergence, temperature=config.temperature,
                beta=config.jsd_beta,
            )  # fmt: skip

        terms = model(**batch["student"], **common, response_fn=compare).response
        agree = terms["agrees"].sum() / num_items.clamp(min=1)
        # One modality a step, so the terms of a modality are that modality's whole step.
        return {f"kl_{modality}_loss": terms["divergence_loss"], f"top1_{modality}": agree}

    def model_inputs(self, batch):
        return [batch[name] for name in ("student", "teacher") if name in batch]

    def count_targets(self, batch):
        return batch["student"]["response_mask"].sum()


class Stage2Trainer(StageTrainer):
    """EmoAdapter: cross entropy on the answers + the Supervisor's losses on each modality that a step carries.

    The Supervisor's losses are of the whole step's clips, over ranks and accumulated micro-batches: a correlation of
    two clips says nothing. A micro-batch's gradient depends on the predictions of all. Those of micro-batches that
    have been trained on are known; those of the ones to come are made ahead, without a gradient and up to the last
    media token, for what follows it does not reach the Supervisor. With dropout in LoRA the two predictions of a
    micro-batch differ by it. Where the Supervisor's losses have no weight nothing of this is done.

    Other exact ways were rejected: the graphs of all micro-batches take the memory that accumulation is there to save,
    and no engine goes forward several times before it goes backward; the correlation's gradient, linear in a few
    moments of the step, would need a backward pass for each of them.
    """

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        ahead = len(batches) > 1 and any(self.loss_weights.values())
        self._micro_batch = 0
        self._step_rows = [None, *self._predict(batches[1:])] if ahead else [None] * len(batches)
        return batches, num_items

    @torch.no_grad()
    def _predict(self, batches) -> list[torch.Tensor]:
        """Predictions and labels of all ranks, see `_rows`, of each micro-batch."""
        set_modes(self.model, ())
        found = []
        config = self.model.config
        media = torch.tensor([config.audio_token_id, *config.visual_token_ids])
        for batch in batches:
            ids = batch["inputs"]["input_ids"]
            last = int(torch.isin(ids, media).any(0).nonzero().max())
            inputs = {
                name: value[:, : last + 1] if isinstance(value, torch.Tensor) and value.shape == ids.shape else value
                for name, value in batch["inputs"].items()
            }
            inputs["response_mask"] = torch.zeros_like(inputs["response_mask"])  # no position for the head
            batch = self._prepare_inputs({**batch, "inputs": inputs})
            with self.compute_loss_context_manager():
                output = self.model_wrapped(**batch["inputs"], use_adapter=True, packing=self.packing)
            found.append(self._rows(output, batch))
        return found

    def _rows(self, output, batch) -> torch.Tensor:
        """(world * B, 4, 2 + K): the outputs of the three modalities, then the labels. Valence, arousal, logits."""
        outputs = torch.stack([output.valence, output.arousal], -1)  # (B, 3, 2)
        if output.emotion_logits is not None:
            outputs = torch.cat([outputs, output.emotion_logits], -1)  # (B, 3, 2 + K)
        labels = torch.cat([batch["valence"].unsqueeze(1), batch["arousal"].unsqueeze(1), batch["emotion"]], 1)
        rows = torch.cat([outputs, labels.to(outputs).unsqueeze(1)], 1)
        return gather_rows(rows, self.args.world_size, self.args.process_index)

    def loss_terms(self, model, batch, num_items):
        inputs, modality = batch["inputs"], batch["modality"]
        output = model(**inputs, use_adapter=True, packing=self.packing)
        host = inputs["host"]
        targets = host.input_ids[host.response_mask].to(output.logits.device, non_blocking=True)  # (N,)
        terms = {f"ce_{modality}_loss": cross_entropy(output.logits, targets, num_items)["ce_loss"]}
        rows = self._rows(output, batch)
        # Where no clip has a label the heads would be left without a gradient, see `SameModules`.
        terms[f"ce_{modality}_loss"] = terms[f"ce_{modality}_loss"] + 0.0 * torch.nan_to_num(rows).sum()
        if not any(self.loss_weights.values()):
            return terms
        # The gradient reaches this rank's rows of this micro-batch alone.
        step, self._micro_batch = list(self._step_rows), self._micro_batch + 1
        step[self._micro_batch - 1], self._step_rows[self._micro_batch - 1] = rows, rows.detach()
        found = self._supervision(torch.cat(step))
        return terms | {name: share_of(term, self.args.world_size * len(step)) for name, term in found.items()}

    def _supervision(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The Supervisor's losses of a whole step, from rows as `_rows` makes them."""
        outputs, labels = rows[:, : len(MODALITIES)], rows[:, len(MODALITIES)]  # (R, 3, 2 + K), (R, 2 + K)
        terms = {}
        for column, name in enumerate(("valence", "arousal")):
            terms |= valence_arousal_loss(outputs[..., column], labels[:, column], name)
        return terms | (emotion_loss(outputs[..., 2:], labels[:, 2:]) if outputs.shape[-1] > 2 else {})

    @property
    def loss_weights(self):
        weights = {name: getattr(self.args, f"{name}_weight") for name in ("valence", "arousal", "emotion")}
        return {f"{name}_{modality}_loss": weight for name, weight in weights.items() for modality in MODALITIES}

    def model_inputs(self, batch):
        return [batch["inputs"]]

    def count_targets(self, batch):
        return batch["inputs"]["response_mask"].sum()


# ---- callbacks


class MetricsFile(TrainerCallback):
    """Appends every log of the trainer to a JSONL file: step, loss terms by name, learning_rate, grad_norm, wall_s.

    When a run resumes from a checkpoint, lines of later steps are cut off first, and `wall_s` counts on.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started, self.earlier_s = time.monotonic(), 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.earlier_s = time.monotonic(), 0.0
        if not state.is_world_process_zero:
            return
        rows = [row for row in checkpoint.complete_rows(self.path) if row["step"] <= state.global_step]
        if rows:
            self.earlier_s = rows[-1].get("wall_s", 0.0)
        write_json_lines(self.path, rows)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The last log of a run holds its summary and no loss of a step.
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        wall_s = round(self.earlier_s + time.monotonic() - self.started, 3)
        row = {"step": state.global_step, **logs, "wall_s": wall_s}
        with reported_writing(self.path), open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


class StopAtSigterm(TrainerCallback):
    """Ends training after the step in which SIGTERM came, with a checkpoint: what SLURM and spot machines send.

    All ranks end after the same step, whichever of them the signal reached. The library's `enable_jit_checkpoint` lets
    each rank decide alone. As a context manager it takes the signal while its body runs, in the main thread.
    """

    def __init__(self):
        self.received = self.stopped = False

    def __enter__(self):
        self.handles = threading.current_thread() is threading.main_thread()
        if self.handles:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error):
        if self.handles:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, number, frame):
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        if any(max_over_ranks((int(self.received),), args.device)):
            self.stopped = control.should_log = control.should_save = control.should_training_stop = True


def _ignore_sigterm(worker: int) -> None:
    """In a worker of the data loader: a signal to the whole job is the trainer's to handle, which still needs it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
