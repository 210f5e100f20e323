"""Config of stage 2, the Cross-Modal Emotion Adapter."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..model.configuration_vaemotionllm import EMOTION_ADAPTER_FIELDS, MODALITIES
from ..utils import InputError
from .base_config import StageConfig
from .lora import check_settings


@dataclass
class Stage2Config(StageConfig):
    """EmoAdapter: instruction tuning on audio, visual and audio-visual samples with valence-arousal supervision.

    The paper (arXiv 2511.12077) names the parts; the loss's form and all weights are our choice.
    """

    fields_of_given_model: ClassVar[tuple[str, ...]] = EMOTION_ADAPTER_FIELDS

    stage: int = field(default=2, metadata={"help": "2: EmoAdapter."})
    instructions: str | list[dict[str, str]] | None = field(
        default=None,
        metadata={
            "help": "What is asked: `art` or a YAML file of templates, a .jsonl file of chat samples, a list of "
            "{prompt, answer} with {content}, {emotion} and other label names, or `nano`."
        },
    )
    class_balance: float = field(
        default=0.0,
        metadata={"help": "Clips are drawn by the frequency of their emotion to the power of minus this, 0 to 1."},
    )
    general: str | None = field(
        default=None,
        metadata={"help": "A .jsonl file of general chat samples, of text, pictures and films, against forgetting."},
    )
    general_share: float = field(default=0.0, metadata={"help": "Share of the steps that `general` has, below 1."})
    modalities: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(MODALITIES, 1.0),
        metadata={"help": "How often a step takes each modality: audio, visual, av."},
    )
    valence_weight: float = field(default=0.5, metadata={"help": "Weight of the Supervisor's valence loss."})
    arousal_weight: float = field(default=0.5, metadata={"help": "Weight of the Supervisor's arousal loss."})
    emotion_weight: float = field(default=0.5, metadata={"help": "Weight of the Supervisor's loss on emotion labels."})
    emotion_labels: str | list[str] | None = field(
        default="manifest",
        metadata={
            "help": "Names that the Supervisor gives probabilities for: a list, `manifest` for the model's own and "
            "behind them those that the clips add, sorted, or null for none."
        },
    )
    consistency_weight: float = field(
        default=0.0, metadata={"help": "Weight of the distance of the single modalities from the audio-visual one."}
    )
    ccc_weight: float = field(default=1.0, metadata={"help": "Weight of 1 - CCC in the Supervisor's loss."})
    mse_weight: float = field(default=1.0, metadata={"help": "Weight of the mean square error in the same."})
    train_emotion_adapter: bool = field(default=True, metadata={"help": "Train the EmoAdapter."})
    emotion_adapter_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the EmoAdapter; None = learning_rate."}
    )
    lora: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "LoRA on the LLM: {rank, alpha, dropout, target_modules, projector (true: on the audio projector "
            "too)}; merged into the saved model, and alone in output_dir/adapter for PEFT."
        },
    )
    lora_lr: float | None = field(default=None, metadata={"help": "Learning rate of LoRA; None = learning_rate."})

    def __post_init__(self):
        if self.stage != 2:
            raise InputError(f"config field `stage` is {self.stage!r}; this config is for stage 2.")
        if not self.instructions or not isinstance(self.instructions, str | list):
            raise InputError(
                "config field `instructions` is missing: `art`, a file of templates or of chat samples, a list of "
                "{prompt, answer}, or `nano`."
            )
        if self.train_sampling_strategy != "random":
            raise InputError(
                f"config field `train_sampling_strategy` is {self.train_sampling_strategy!r}; stage 2 does not know "
                "the lengths of its clips, allowed is random."
            )
        self._check_modality_weights("modalities", MODALITIES)
        self._check_data()
        for name in (
            "valence_weight", "arousal_weight", "emotion_weight", "consistency_weight", "ccc_weight", "mse_weight"
        ):  # fmt: skip
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

    def _check_data(self) -> None:
        if not 0 <= self.class_balance <= 1:
            raise InputError(f"config field `class_balance` is {self.class_balance!r}; it must be between 0 and 1.")
        if not 0 <= self.general_share < 1:
            raise InputError(
                f"config field `general_share` is {self.general_share!r}; at least 0 and below 1 is needed."
            )
        if (self.general is None) != (self.general_share == 0):
            raise InputError(
                f"config fields `general` ({self.general!r}) and `general_share` ({self.general_share!r}) belong "
                "together: a file of chat samples, and the share of the steps that it has."
            )

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
                "config field `lora.projector` is true, and a run from `vlm` and `audio` makes its projector anew, "
                "with random weights that LoRA would leave frozen. Give the `model` of a stage 1, or set "
                "lora.projector=false."
            )
