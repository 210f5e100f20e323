"""Configs of both stages: the fields that they add to `TrainingArguments`, and their ranges."""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..model.configuration_vaemotionllm import EMOTION_ADAPTER_FIELDS
from ..model.inputs import MODALITIES
from ..utils import InputError
from .chunked_divergence import KINDS
from .lora import check_settings

# Scores of the teacher's responses, see `teacher.py`.
SCORES = ("entropy", "agreement", "grounding", "audio_dbfs")


@dataclass
class StageConfig(TrainingArguments):
    """Fields of both stages, beside those of `TrainingArguments`."""

    # Those of `model_fields` that may change a given `model`.
    fields_of_given_model: ClassVar[tuple[str, ...]] = ()
    # Fields that must be above 0; where they are None, nothing is checked.
    positive: ClassVar[tuple[str, ...]] = (
        "num_frames", "max_audio_s", "per_device_train_batch_size", "gradient_accumulation_steps", "max_clips",
        "peak_tflops", "learning_rate", "num_train_epochs",
    )  # fmt: skip

    stage: int = HfArg(default=0, help="1 (VG-Align) or 2 (EmoAdapter).")
    model: str | None = HfArg(default=None, help="Folder or Hub name of a VAEmotionLLM to start from.")
    vlm: str | None = HfArg(default=None, help="Backbone to add an audio encoder to; give `audio` with it.")
    audio: str | None = HfArg(default=None, help="Audio encoder (with its feature extractor) for `vlm`.")
    model_fields: dict[str, Any] | None = HfArg(
        default=None,
        help="Fields of VAEmotionLLMConfig for a model made from `vlm` and `audio`; in stage 2 those of EmoAdapter "
        "also for `model`, which then starts with an EmoAdapter of that form, untrained.",
    )
    manifest: str | None = HfArg(default=None, help="Clip manifest, .jsonl or .parquet.")
    split: str = HfArg(default="train", help="Split of the manifest to train on.")
    max_clips: int | None = HfArg(default=None, help="Use at most this many clips.")
    num_frames: int = HfArg(default=8, help="Frames taken from a video, evenly over the clip.")
    max_audio_s: float = HfArg(default=300.0, help="Longest audio that is accepted, seconds.")
    cache_media: bool = HfArg(default=False, help="Keep decoded features in memory (small data, many epochs).")
    attn_implementation: str | None = HfArg(
        default="auto", help="Attention of the model; auto = flash_attention_4, 3 or 2 where usable, else sdpa."
    )
    packing: bool | None = HfArg(
        default=None, help="Run the LLM on the tokens alone, without padding; None = where FlashAttention is used."
    )
    peak_tflops: float | None = HfArg(
        default=None, help="Dense peak of a device in the run's dtype, for MFU; None = its data sheet's, if known."
    )
    train_audio_projector: bool = HfArg(default=True, help="Train the audio projector.")
    train_audio_tower: bool = HfArg(default=False, help="Train the audio tower.")
    audio_tower_lr: float | None = HfArg(default=None, help="Learning rate of the audio tower; None = learning_rate.")
    overwrite: bool = HfArg(default=False, help="Delete what an earlier run left in output_dir.")

    # Other defaults than the library's.
    logging_steps: float = HfArg(default=10, help="Log each N optimizer steps.")
    save_steps: float = HfArg(default=200, help="Save a checkpoint each N optimizer steps.")
    save_total_limit: int | None = HfArg(default=2, help="Keep this many checkpoints.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    report_to: None | str | list[str] = HfArg(default="none", help="Where else to log: tensorboard, wandb, ...")
    remove_unused_columns: bool = HfArg(default=False, help="Always false: batches are not columns.")

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
        for name in self.model_fields or () if self.model is not None else ():
            if name not in self.fields_of_given_model:
                can = f"of a given one {', '.join(self.fields_of_given_model)} can be changed. Remove it."
                raise InputError(
                    f"`model_fields.{name}` shapes a new model and cannot change `model`; "
                    + (can if self.fields_of_given_model else "remove one of the two.")
                )
        for name in self.positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"config field `{name}` is {value!r}; it must be above 0.")
        if self.max_steps != -1 and not self.max_steps > 0:
            raise InputError(
                f"config field `max_steps` is {self.max_steps!r}; it must be above 0, or -1 for num_train_epochs."
            )
        join_cpu_ranks(self)
        super().__post_init__()
        if self.n_gpu > 1:
            # One process trains on one GPU: the library would cut media and their placeholders apart (DataParallel).
            self._n_gpu = 1

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise InputError(
                f"config field `{name}` is {getattr(self, name)!r}; allowed {'is' if len(allowed) == 1 else 'are'} "
                f"{', '.join(allowed)}."
            )

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


@dataclass
class Stage1Config(StageConfig):
    """VG-Align: the frozen visual pathway teaches a new audio pathway what to expect next (arXiv 2511.12077).

    The paper names the objective, next-token distributions on synchronized clips; prompts, response lengths,
    temperature and modality weights are our choice.
    """

    positive = (
        *StageConfig.positive, "responses_per_clip", "max_response_tokens", "generation_batch_size", "temperature"
    )  # fmt: skip

    stage: int = HfArg(default=1, help="1: VG-Align.")
    prompts: str | list[str] | dict[str, list[str]] | None = HfArg(
        default=None, help="The teacher's prompts: {kind: [prompts]}, a list, a file with one a line, or `nano`."
    )
    teacher_cache: str | None = HfArg(
        default=None, help="Folder that `vaemotionllm cache-teacher` fills; None: the teacher runs in each step."
    )
    cache_audio_features: bool = HfArg(
        default=False, help="Keep the states of a frozen audio tower in `teacher_cache` as well."
    )
    responses_per_clip: int = HfArg(default=1, help="Teacher responses for each clip.")
    max_response_tokens: int = HfArg(default=64, help="Longest teacher response, tokens.")
    teacher_temperature: float = HfArg(
        default=0.0, help="0: the teacher answers greedily; above: it samples, by teacher_seed."
    )
    teacher_top_p: float = HfArg(default=1.0, help="Share of the probability that it samples from.")
    teacher_seed: int = HfArg(default=0, help="Seed of the choice of prompts and of sampling.")
    teacher_scores: list[str] = HfArg(
        default_factory=lambda: ["entropy", "audio_dbfs"],
        help=f"Scores of each response for `quality`: {', '.join(SCORES)}.",
    )
    quality: dict[str, dict[str, float]] | None = HfArg(
        default_factory=dict,
        help="Filter of responses: score -> {min or max: threshold}; beyond it they are dropped. null: no filter.",
    )
    generation_batch_size: int = HfArg(default=64, help="Clips a batch when the teacher generates.")
    divergence: str = HfArg(default="forward_kl", help="forward_kl, reverse_kl or jsd, of teacher and student.")
    jsd_beta: float = HfArg(default=0.5, help="Weight of the teacher in jsd's mixture, between 0 and 1.")
    temperature: float = HfArg(default=1.0, help="Temperature of both distributions in the loss.")
    student_modalities: dict[str, float] = HfArg(
        default_factory=lambda: {"audio": 0.5, "av": 0.5},
        help="How often the student is given audio alone (audio) and audio with the visual (av).",
    )

    # Another default than the library's.
    train_sampling_strategy: str = HfArg(
        default="group_by_length",
        help="group_by_length (within a step, clips of equal length share a batch) or random.",
    )

    def __post_init__(self):
        if self.stage != 1:
            raise InputError(f"config field `stage` is {self.stage!r}; this config is for stage 1.")
        if not self.prompts or not isinstance(self.prompts, str | list | dict):
            raise InputError("config field `prompts` is missing: prompts by kind, a list, a text file, or `nano`.")
        if not self.teacher_temperature >= 0 or not 0 < self.teacher_top_p <= 1:
            raise InputError(
                f"`teacher_temperature` is {self.teacher_temperature!r}, at least 0 is needed; `teacher_top_p` is "
                f"{self.teacher_top_p!r}, above 0 and at most 1 is needed."
            )
        for name in self.teacher_scores:
            if name not in SCORES:
                raise InputError(f"config field `teacher_scores` names {name!r}; allowed are {', '.join(SCORES)}.")
        self.quality = {} if self.quality is None else self.quality
        check_rules(self.quality)
        self._check_choice("train_sampling_strategy", ("group_by_length", "random"))
        self._check_choice("divergence", KINDS)
        if self.cache_audio_features and (self.teacher_cache is None or self.train_audio_tower):
            raise InputError(
                "`cache_audio_features` needs a folder in `teacher_cache`, and an audio tower that is not trained: "
                "set train_audio_tower to false."
            )
        if not 0 < self.jsd_beta < 1:
            raise InputError(
                f"config field `jsd_beta` is {self.jsd_beta!r}; a number between 0 and 1 is needed. Its limits are "
                "the divergences forward_kl and reverse_kl."
            )
        self._check_modality_weights("student_modalities", ("audio", "av"))
        if not (self.train_audio_projector or self.train_audio_tower):
            raise InputError("nothing to train: set `train_audio_projector` or `train_audio_tower` to true.")
        super().__post_init__()


@dataclass
class Stage2Config(StageConfig):
    """EmoAdapter: instruction tuning on audio, visual and audio-visual samples with valence-arousal supervision.

    The paper (arXiv 2511.12077) names the parts; the loss's form and all weights are our choice.
    """

    fields_of_given_model: ClassVar[tuple[str, ...]] = EMOTION_ADAPTER_FIELDS

    stage: int = HfArg(default=2, help="2: EmoAdapter.")
    instructions: str | list[dict[str, str]] | None = HfArg(
        default=None,
        help="Prompts and answers: `art` or a YAML file of templates, a .jsonl file of chat samples, a list of "
        "{prompt, answer} with {content}, {emotion} and other label names, or `nano`.",
    )
    class_balance: float = HfArg(
        default=0.0, help="Clips are drawn by the frequency of their emotion to the power of minus this, 0 to 1."
    )
    general: str | None = HfArg(
        default=None, help="A .jsonl file of general chat samples, of text, images and videos, against forgetting."
    )
    general_share: float = HfArg(default=0.0, help="Share of the steps that `general` has, below 1.")
    modalities: dict[str, float] = HfArg(
        default_factory=lambda: dict.fromkeys(MODALITIES, 1.0),
        help="How often a step takes each modality: audio, visual, av.",
    )
    valence_weight: float = HfArg(default=0.5, help="Weight of the Supervisor's valence loss.")
    arousal_weight: float = HfArg(default=0.5, help="Weight of the Supervisor's arousal loss.")
    emotion_weight: float = HfArg(default=0.5, help="Weight of the Supervisor's loss on emotion labels.")
    emotion_labels: str | list[str] | None = HfArg(
        default="manifest",
        help="Names that the Supervisor gives probabilities for: a list, `manifest` for the model's own and behind "
        "them those that the clips add, sorted, or null for none.",
    )
    ccc_weight: float = HfArg(default=1.0, help="Weight of 1 - CCC in the Supervisor's loss.")
    mse_weight: float = HfArg(default=1.0, help="Weight of the mean square error in the same.")
    train_emotion_adapter: bool = HfArg(default=True, help="Train the EmoAdapter.")
    emotion_adapter_lr: float | None = HfArg(
        default=None, help="Learning rate of the EmoAdapter; None = learning_rate."
    )
    lora: dict[str, Any] | None = HfArg(
        default=None,
        help="LoRA on the LLM: {rank, alpha, dropout, target_modules, projector (true: on the audio projector too)}; "
        "merged into the saved model, and alone in output_dir/adapter for PEFT.",
    )
    lora_lr: float | None = HfArg(default=None, help="Learning rate of LoRA; None = learning_rate.")

    def __post_init__(self):
        if self.stage != 2:
            raise InputError(f"config field `stage` is {self.stage!r}; this config is for stage 2.")
        if not self.instructions or not isinstance(self.instructions, str | list):
            raise InputError(
                "config field `instructions` is missing: `art`, a file of templates or of chat samples, a list of "
                "{prompt, answer}, or `nano`."
            )
        self._check_choice("train_sampling_strategy", ("random",))  # the lengths of its clips are not known
        self._check_modality_weights("modalities", MODALITIES)
        if not 0 <= self.class_balance <= 1:
            raise InputError(f"config field `class_balance` is {self.class_balance!r}; it must be between 0 and 1.")
        if not 0 <= self.general_share < 1 or (self.general is None) != (self.general_share == 0):
            raise InputError(
                f"config fields `general` ({self.general!r}) and `general_share` ({self.general_share!r}) belong "
                "together: a file of chat samples, and the share of the steps that it has, at least 0 and below 1."
            )
        for name in ("valence_weight", "arousal_weight", "emotion_weight", "ccc_weight", "mse_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"config field `{name}` is {getattr(self, name)!r}; it must be at least 0.")
        labels = self.emotion_labels
        listed = isinstance(labels, list) and all(isinstance(name, str) for name in labels)
        if labels not in (None, "manifest") and not (listed and len(set(labels)) == len(labels) > 1):
            raise InputError(
                f"config field `emotion_labels` is {self.emotion_labels!r}; allowed are a list of at least two "
                "different names (in quotes, where YAML would read another thing), `manifest` or null."
            )
        if self.lora is not None:
            self._check_lora()
        if not (
            self.train_emotion_adapter or self.train_audio_projector or self.train_audio_tower or self.lora is not None
        ):
            raise InputError("nothing to train: set `train_emotion_adapter`, `train_audio_projector` or `lora`.")
        super().__post_init__()

    def _check_lora(self) -> None:
        check_settings(self.lora)
        if not self.lora.get("projector", False):
            return
        if self.train_audio_projector:
            raise InputError(
                "config fields `lora.projector` and `train_audio_projector` are both true: LoRA leaves the "
                "projector's own weights frozen. Set train_audio_projector=false, or lora.projector=false to train "
                "them."
            )
        if self.model is None:
            raise InputError(
                "config field `lora.projector` is true, and a run from `vlm` and `audio` makes its projector new, "
                "with random weights that LoRA would leave frozen. Give the `model` of a stage 1, or set "
                "lora.projector=false."
            )


CONFIGS = {1: Stage1Config, 2: Stage2Config}


def check_rules(rules: Any) -> None:
    """Raises InputError where the rules of `quality` are not {score: {min or max: number}}."""
    if not isinstance(rules, dict):
        raise InputError(
            f"config field `quality` is {rules!r}; give rules such as {{grounding: {{min: 0.02}}}}, or null for none."
        )
    for name, rule in rules.items():
        if not isinstance(rule, dict) or set(rule) not in ({"min"}, {"max"}):
            raise InputError(f"config field `quality.{name}` is {rule!r}; give {{min: a}} or {{max: a}}.")
        value = next(iter(rule.values()))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"config field `quality.{name}` holds {value!r}; a number is needed.")


def join_cpu_ranks(config: TrainingArguments) -> None:
    """Let the ranks of a launcher find each other on a machine without an accelerator.

    There the library picks no backend for them: every process takes itself for rank 0 of 1. So the ranks are joined
    here, by gloo, and the library is instructed to take them as they are.
    """
    if torch.accelerator.is_available() or "LOCAL_RANK" not in os.environ:
        return
    if config.deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo", cpu=not config.deepspeed)
    finally:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    config.accelerator_config = {"use_configured_state": True}
