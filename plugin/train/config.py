"""Configs of both stages: the fields that they add to `TrainingArguments`, and their ranges."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

import torch
from accelerate import DistributedType, PartialState
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from transformers import Trainer, TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import get_available_reporting_integrations
from transformers.optimization import get_scheduler

from ..model.configuration_vaemotionllm import EMOTION_ADAPTER_FIELDS
from ..model.inputs import MODALITIES
from ..model.media_files import Limits
from ..utils import InputError
from .lora import LoraSettings

# Fields of the library, which checks some of them when they are used, and some never.
_ABOVE_0 = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "logging_steps", "save_steps",
    "ddp_timeout",
)  # fmt: skip
_AT_LEAST_0 = ("weight_decay", "max_grad_norm", "warmup_steps", "seed", "dataloader_num_workers")


@dataclass
class StageConfig(TrainingArguments):
    """Fields of both stages, beside those of `TrainingArguments`."""

    # Those of `model_fields` that may change a given `model`.
    fields_of_given_model: ClassVar[tuple[str, ...]] = ()

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
    max_clips: PositiveInt | None = HfArg(default=None, help="Use at most this many clips.")
    num_frames: PositiveInt = HfArg(default=8, help="Frames taken from a video, evenly over the clip.")
    max_audio_s: PositiveFloat = HfArg(default=300.0, help="Longest audio that is accepted, seconds.")
    max_pixels: PositiveInt = HfArg(default=Limits.max_pixels, help="Most pixels of an image or a frame.")
    max_clip_bytes: PositiveInt = HfArg(default=Limits.max_bytes, help="Most bytes of a clip's decoded frames.")
    cache_media: bool = HfArg(default=False, help="Keep decoded features in memory (small data, many epochs).")
    attn_implementation: str | None = HfArg(
        default="auto",
        help="Attention of the model; auto = an installed FlashAttention that computes its heads, else sdpa. A kernel "
        "of the Hub such as kernels-community/flash-attn2 is downloaded where it is named.",
    )
    packing: bool | None = HfArg(
        default=None, help="Run the LLM on the tokens alone, without padding; None = where FlashAttention is used."
    )
    train_audio_projector: bool = HfArg(default=True, help="Train the audio projector.")
    train_audio_tower: bool = HfArg(default=False, help="Train the audio tower.")
    audio_tower_lr: PositiveFloat | None = HfArg(default=None, help="Rate of the audio tower; None = learning_rate.")
    overwrite: bool = HfArg(default=False, help="Delete what an earlier run left in output_dir.")

    # Other defaults than the library's.
    logging_steps: float = HfArg(default=10, help="Log each N optimizer steps.")
    save_steps: float = HfArg(default=200, help="Save a checkpoint each N optimizer steps.")
    save_total_limit: PositiveInt | None = HfArg(default=2, help="Keep this many checkpoints.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    report_to: None | str | list[str] = HfArg(default="none", help="Where else to log: tensorboard, wandb, ...")
    ddp_timeout: int = HfArg(
        default=86_400, help="Seconds that a rank waits for the others, which may have hours of work left."
    )
    remove_unused_columns: bool = HfArg(default=False, help="Always false: batches are not columns.")
    fsdp: bool = HfArg(default=False, help="Shard weights, gradients and optimizer by FSDP 2.")
    # Each trained parameter has a gradient in each step, see `SameModules`; buffers are constants.
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Look for parameters without a gradient.")
    ddp_broadcast_buffers: bool | None = HfArg(default=False, help="Broadcast buffers in each step.")

    def __post_init__(self):
        if not self.output_dir:
            raise InputError("config field `output_dir` is missing: name the folder of the run.")
        if not self.manifest:
            raise InputError("config field `manifest` is missing: name a .jsonl or .parquet file of clips.")
        new_parts = [part for part in (self.vlm, self.audio) if part is not None]
        if len(new_parts) != (2 if self.model is None else 0):
            raise InputError(
                "give either `model` (a VAEmotionLLM, as `vaemotionllm init` or `train` makes it), or both `vlm` and "
                f"`audio` (a backbone and an audio encoder); found model={self.model!r}, vlm={self.vlm!r}, "
                f"audio={self.audio!r}."
            )
        fixed = set(self.model_fields or ()).difference(self.fields_of_given_model)
        if self.model is not None and fixed:
            raise InputError(
                f"`model_fields` {sorted(fixed)} shape a new model: remove them (`model_fields=null`, where a config "
                f"file has them). Of a given model can be changed: {', '.join(self.fields_of_given_model) or 'none'}."
            )
        length = "num_train_epochs" if self.max_steps == -1 else "max_steps"
        for name in (*_ABOVE_0, length):
            if not getattr(self, name) > 0:
                raise InputError(f"config field `{name}` is {getattr(self, name)!r}; it must be above 0.")
        for name in _AT_LEAST_0:
            if not getattr(self, name) >= 0:
                raise InputError(f"config field `{name}` is {getattr(self, name)!r}; it must be at least 0.")
        for name in ("seed", "data_seed"):
            if (getattr(self, name) or 0) >= 2**32:
                raise InputError(f"config field `{name}` is {getattr(self, name)!r}; it must be below 2**32.")
        take_launcher_fsdp(self)
        join_cpu_ranks(self)
        super().__post_init__()
        self._check_library_fields()
        if self.n_gpu > 1:
            # One process trains on one GPU: the library would cut media and their placeholders apart (DataParallel).
            self._n_gpu = 1

    def _check_library_fields(self) -> None:
        """Make what the library would only make, and check, once a model is loaded and the run's folder is open."""
        known = get_available_reporting_integrations()
        if unknown := sorted({str(name) for name in self.report_to}.difference(known)):
            raise InputError(
                f"config field `report_to` names {', '.join(unknown)}; allowed are none, all, and what is installed: "
                f"{', '.join(known) or 'nothing'}."
            )
        if self.eval_strategy != "no":
            raise InputError(
                f"config field `eval_strategy` is {self.eval_strategy.value!r}; it must be no: a trained model is "
                "evaluated by lmms-eval and `vaemotionllm evaluate-emotion`."
            )
        if self.fsdp and self.world_size == 1:
            raise InputError(
                "config field `fsdp` is true, and this is one process alone: start it by torchrun or accelerate "
                "launch, or set it to false."
            )
        if self.deepspeed:  # which makes its own
            return
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(self)
        optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(2, 2))], **arguments)
        warmup, options = self.get_warmup_steps(1), self.lr_scheduler_kwargs
        get_scheduler(self.lr_scheduler_type, optimizer, warmup, 1, scheduler_specific_kwargs=options)


def _check_weights(name: str, weights: dict[str, float], allowed: tuple[str, ...]) -> None:
    if not weights.keys() <= set(allowed) or not sum(weights.values()) > 0 or min(weights.values()) < 0:
        raise InputError(
            f"config field `{name}` is {weights!r}; give {', '.join(allowed)} weights of at least 0, one above 0."
        )


@dataclass
class Stage1Config(StageConfig):
    """VG-Align: the frozen visual pathway teaches a new audio pathway what to expect next (arXiv 2511.12077).

    The paper names the objective, next-token distributions on synchronized clips; prompts, response lengths,
    temperature and modality weights are our choice.
    """

    stage: int = HfArg(default=1, help="1: VG-Align.")
    prompts: str | list[str] | dict[str, list[str]] | None = HfArg(
        default=None, help="The teacher's prompts: {kind: [prompts]}, a list, a file with one a line, or `nano`."
    )
    teacher_cache: str | None = HfArg(
        default=None, help="Folder that `vaemotionllm cache-teacher` fills; None: the teacher runs in each step."
    )
    responses_per_clip: PositiveInt = HfArg(default=1, help="Teacher responses for each clip.")
    max_response_tokens: PositiveInt = HfArg(default=64, help="Longest teacher response, tokens.")
    teacher_temperature: NonNegativeFloat = HfArg(
        default=0.0, help="0: the teacher answers greedily; above: it samples, by teacher_seed."
    )
    teacher_top_p: Annotated[float, Field(gt=0, le=1)] = HfArg(
        default=1.0, help="Share of the probability that it samples from."
    )
    teacher_seed: int = HfArg(default=0, help="Seed of the choice of prompts and of sampling.")
    teacher_scores: list[Literal["entropy", "grounding", "audio_dbfs"]] = HfArg(
        default_factory=lambda: ["entropy", "audio_dbfs"],
        help="Scores of each response for `quality`.",
    )
    quality: dict[str, dict[str, float]] | None = HfArg(
        default_factory=dict,
        help="Filter of responses: score -> {min or max: threshold}; beyond it they are dropped. null: no filter.",
    )
    generation_batch_size: PositiveInt = HfArg(default=64, help="Clips a batch when the teacher generates.")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = HfArg(
        default="forward_kl", help="Divergence of teacher and student."
    )
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = HfArg(default=0.5, help="Weight of the teacher in jsd's mixture.")
    temperature: PositiveFloat = HfArg(default=1.0, help="Temperature of both distributions in the loss.")
    student_modalities: dict[str, float] = HfArg(
        default_factory=lambda: {"audio": 0.5, "av": 0.5},
        help="How often the student is given audio alone (audio) and audio with the visual (av).",
    )

    # Another default than the library's.
    train_sampling_strategy: Literal["group_by_length", "random"] = HfArg(
        default="group_by_length",
        help="group_by_length: within a step, clips of equal length share a batch.",
    )

    def __post_init__(self):
        if not self.prompts:
            raise InputError("config field `prompts` is missing: prompts by kind, a list, a text file, or `nano`.")
        self.quality = self.quality or {}
        for name, rule in self.quality.items():
            if len(rule) != 1 or not rule.keys() <= {"min", "max"}:
                raise InputError(f"config field `quality.{name}` is {rule!r}; give {{min: a}} or {{max: a}}.")
        _check_weights("student_modalities", self.student_modalities, ("audio", "av"))
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
        help="Prompts and answers: `art` or a YAML file of templates, a list of {prompt, answer} with {content}, "
        "{emotion} and other names of labels or columns, or `nano`.",
    )
    class_balance: Annotated[float, Field(ge=0, le=1)] = HfArg(
        default=0.0, help="Clips are drawn by the frequency of their emotion to the power of minus this, 0 to 1."
    )
    modalities: dict[str, float] = HfArg(
        default_factory=lambda: dict.fromkeys(MODALITIES, 1.0),
        help="How often a step takes each modality: audio, visual, av.",
    )
    valence_weight: NonNegativeFloat = HfArg(default=0.5, help="Weight of the Supervisor's valence loss.")
    arousal_weight: NonNegativeFloat = HfArg(default=0.5, help="Weight of the Supervisor's arousal loss.")
    emotion_weight: NonNegativeFloat = HfArg(default=0.5, help="Weight of the Supervisor's loss on emotion labels.")
    emotion_labels: Literal["manifest"] | list[str] | None = HfArg(
        default="manifest",
        help="Names that the Supervisor gives probabilities for: a list, `manifest` for the model's own and behind "
        "them those that the clips add, sorted, or null for none.",
    )
    train_emotion_adapter: bool = HfArg(default=True, help="Train the EmoAdapter.")
    lora: LoraSettings | None = HfArg(
        default=None,
        help="LoRA on the LLM: {rank, alpha, dropout, target_modules, projector (true: on the audio projector too)}; "
        "merged into the saved model, and alone in output_dir/adapter for PEFT.",
    )
    lora_lr: PositiveFloat | None = HfArg(default=None, help="Learning rate of LoRA; None = learning_rate.")
    train_sampling_strategy: Literal["random"] = "random"  # the lengths of its clips are not known

    def __post_init__(self):
        if not self.instructions:
            raise InputError(
                "config field `instructions` is missing: `art`, a file of templates, a list of {prompt, answer}, or "
                "`nano`."
            )
        _check_weights("modalities", self.modalities, MODALITIES)
        labels = self.emotion_labels
        if isinstance(labels, list) and not len(set(labels)) == len(labels) > 1:
            raise InputError(f"config field `emotion_labels` is {labels!r}; give at least two different names.")
        if not (
            self.train_emotion_adapter or self.train_audio_projector or self.train_audio_tower or self.lora is not None
        ):
            raise InputError("nothing to train: set `train_emotion_adapter`, `train_audio_projector` or `lora`.")
        if self.lora and self.lora.get("projector") and (self.train_audio_projector or self.model is None):
            raise InputError(
                "config field `lora.projector` is true, and LoRA leaves the projector's own weights frozen: give the "
                "`model` of a stage 1 and train_audio_projector=false, or set lora.projector=false."
            )
        super().__post_init__()


CONFIGS = {1: Stage1Config, 2: Stage2Config}


FSDP_FIELDS = ("version", "reshard_after_forward")


def take_launcher_fsdp(config: TrainingArguments) -> None:
    """Take over what `accelerate launch` says of FSDP in the environment, and check it and the fields.

    Raises:
        InputError: FSDP 1, a setting that has another field here, or DeepSpeed beside it.
    """
    on = lambda name: os.environ.get(name, "").lower() in ("1", "true")
    if on("ACCELERATE_USE_FSDP") and not config.fsdp:
        config.fsdp = True
        config.fsdp_config = {"version": int(os.environ.get("FSDP_VERSION", 1)), **(config.fsdp_config or {})}
    if not config.fsdp:
        return
    given = config.fsdp_config or {}
    if not isinstance(given, dict):
        raise InputError(f"config field `fsdp_config` is {given!r}; give a mapping.")
    if config.deepspeed:
        raise InputError("config fields `fsdp` and `deepspeed` are both set: a run has one engine.")
    if unknown := sorted(set(given).difference(FSDP_FIELDS)):
        raise InputError(f"config field `fsdp_config` has {', '.join(unknown)}; allowed are {', '.join(FSDP_FIELDS)}.")
    if int(given.get("version", 2)) != 2:
        raise InputError(
            f"config field `fsdp_config.version` is {given['version']}; only FSDP 2 is supported (--fsdp_version 2)."
        )
    for name, field in (("FSDP_ACTIVATION_CHECKPOINTING", "activation_checkpointing=true"),
                        ("FSDP_OFFLOAD_PARAMS", "deepspeed=zero3_offload")):  # fmt: skip
        if on(name):
            raise InputError(f"{name} is set by the launcher; set it to false there, and give {field} here.")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # each rank reads the weights itself


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
    timeout = timedelta(seconds=config.ddp_timeout)
    state = PartialState(backend="gloo", cpu=not config.deepspeed, timeout=timeout)
    if config.fsdp:  # which the library ignores on anything but accelerators
        state.distributed_type = DistributedType.MULTI_GPU
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    config.accelerator_config = {"use_configured_state": True}
