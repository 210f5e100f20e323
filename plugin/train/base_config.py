"""What both stages' configs have in common."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from ..utils import InputError


def join_cpu_ranks(config: TrainingArguments) -> None:
    """Let the ranks of a launcher find each other on a machine without an accelerator.

    There the library picks no backend for them: every process takes itself for rank 0 of 1. So the ranks are joined
    here, by gloo, and the library is told to take them as they are.
    """
    import torch

    if torch.accelerator.is_available() or "LOCAL_RANK" not in os.environ:
        return
    from accelerate import PartialState

    if config.deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo", cpu=not config.deepspeed)
    finally:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    config.accelerator_config = {"use_configured_state": True}


@dataclass
class StageConfig(TrainingArguments):
    """Fields of both stages, beside those of `TrainingArguments`."""

    # Those of `model_fields` that may change a given `model`.
    fields_of_given_model: ClassVar[tuple[str, ...]] = ()

    stage: int = field(default=0, metadata={"help": "1 (VG-Align) or 2 (EmoAdapter)."})
    model: str | None = field(default=None, metadata={"help": "Folder or Hub name of a VAEmotionLLM to go on from."})
    vlm: str | None = field(default=None, metadata={"help": "Backbone to bolt hearing onto; give `audio` with it."})
    audio: str | None = field(default=None, metadata={"help": "Audio encoder (with its feature extractor) for `vlm`."})
    model_fields: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Fields of VAEmotionLLMConfig for a model made from `vlm` and `audio`; in stage 2 those of "
            "EmoAdapter also for `model`, which then starts with an EmoAdapter of that form, untrained."
        },
    )
    manifest: str | None = field(default=None, metadata={"help": "Clip manifest, .jsonl or .parquet."})
    split: str = field(default="train", metadata={"help": "Split of the manifest to train on."})
    max_clips: int | None = field(default=None, metadata={"help": "Use at most this many clips."})
    num_frames: int = field(default=8, metadata={"help": "Frames taken from a video, evenly over the clip."})
    max_audio_s: float = field(default=300.0, metadata={"help": "Longest sound that is accepted, seconds."})
    cache_media: bool = field(
        default=False, metadata={"help": "Keep decoded features in memory (small data, many epochs)."}
    )
    attn_implementation: str | None = field(
        default="auto",
        metadata={"help": "Attention of the model; auto = flash_attention_4, 3 or 2 where usable, else sdpa."},
    )
    packing: bool | None = field(
        default=None,
        metadata={"help": "Run the LLM on the tokens alone, without padding; None = where FlashAttention is used."},
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={"help": "Dense peak of a device in the run's dtype, for MFU; None = its data sheet's, if known."},
    )
    zero3_replicate_frozen: bool | None = field(
        default=None,
        metadata={"help": "ZeRO-3 keeps frozen weights whole on each GPU; None = where they take at most half of it."},
    )
    train_audio_projector: bool = field(default=True, metadata={"help": "Train the audio projector."})
    train_audio_tower: bool = field(default=False, metadata={"help": "Train the audio tower."})
    audio_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the audio tower; None = learning_rate."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what an earlier run left in output_dir."})

    # Other defaults than the library's.
    logging_steps: float = field(default=10, metadata={"help": "Log each N optimizer steps."})
    save_steps: float = field(default=200, metadata={"help": "Save a checkpoint each N optimizer steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Keep this many checkpoints."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where else to log: tensorboard, wandb, ..."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always false: batches are not columns."})

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("config field `output_dir` is missing: name the folder of the run.")
        if not self.manifest:
            raise InputError("config field `manifest` is missing: name a .jsonl or .parquet file of clips.")
        new_parts = [part for part in (self.vlm, self.audio) if part is not None]
        if len(new_parts) != (2 if self.model is None else 0):
            raise InputError(
                "give either `model` (an existing VAEmotionLLM), or both `vlm` and `audio` (a backbone and an audio "
                f"encoder); found model={self.model!r}, vlm={self.vlm!r}, audio={self.audio!r}."
            )
        if self.model is not None:
            for name in self.model_fields or ():
                if name not in self.fields_of_given_model:
                    raise InputError(
                        f"`model_fields.{name}` shapes a new model and cannot change `model`; "
                        + (
                            f"of a given one {', '.join(self.fields_of_given_model)} can be changed. Remove it."
                            if self.fields_of_given_model
                            else "remove one of the two."
                        )
                    )
        for name in ("num_frames", "max_audio_s", "per_device_train_batch_size", "gradient_accumulation_steps"):
            self._check_positive(name)
        for name in ("max_clips", "peak_tflops"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        if self.learning_rate <= 0:
            self._check_positive("learning_rate")
        join_cpu_ranks(self)
        super().__post_init__()
        if self.n_gpu > 1:
            # One process trains on one GPU: the library would cut media and their placeholders apart (DataParallel).
            self._n_gpu = 1

    def _check_positive(self, name: str) -> None:
        if not getattr(self, name) > 0:
            raise InputError(f"config field `{name}` is {getattr(self, name)!r}; it must be above 0.")

    def _check_modality_weights(self, name: str, allowed: tuple[str, ...]) -> None:
        weights = getattr(self, name)
        if not isinstance(weights, dict) or not weights:
            raise InputError(f"config field `{name}` is {weights!r}; give weights such as {{{allowed[0]}: 1.0}}.")
        for modality, weight in weights.items():
            if modality not in allowed:
                raise InputError(
                    f"config field `{name}` names the modality {modality!r}; allowed are {', '.join(allowed)}."
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                raise InputError(f"config field `{name}.{modality}` is {weight!r}; a weight of at least 0 is needed.")
        if sum(weights.values()) <= 0:
            raise InputError(f"config field `{name}` has no weight above 0: {weights}.")
