"""Config of stage 1, VG-Align."""

from dataclasses import dataclass, field

from ..utils import InputError
from .base_config import StageConfig
from .chunked_divergence import KINDS
from .quality import check_rules
from .teacher_scores import SCORES


@dataclass
class Stage1Config(StageConfig):
    """VG-Align: the frozen visual pathway teaches a new audio pathway what to expect next (arXiv 2511.12077).

    The paper names the objective, next-token distributions on synchronized clips; prompts, response lengths,
    temperature and modality weights are our choice.
    """

    stage: int = field(default=1, metadata={"help": "1: VG-Align."})
    prompts: str | list[str] | dict[str, list[str]] | None = field(
        default=None,
        metadata={"help": "What the teacher is asked: {kind: [prompts]}, a list, a file with one a line, or `nano`."},
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that `vaemotionllm cache-teacher` fills; None: the teacher runs in each step."},
    )
    cache_audio_features: bool = field(
        default=False, metadata={"help": "Keep the states of a frozen audio tower in `teacher_cache` as well."}
    )
    responses_per_clip: int = field(default=1, metadata={"help": "Teacher responses for each clip."})
    max_response_tokens: int = field(default=64, metadata={"help": "Longest teacher response, tokens."})
    teacher_temperature: float = field(
        default=0.0, metadata={"help": "0: the teacher answers greedily; above: it samples, by teacher_seed."}
    )
    teacher_top_p: float = field(default=1.0, metadata={"help": "Share of the probability that it samples from."})
    teacher_seed: int = field(default=0, metadata={"help": "Seed of the choice of prompts and of sampling."})
    teacher_scores: list[str] = field(
        default_factory=lambda: ["entropy", "audio_dbfs"],
        metadata={"help": f"Scores of each response for `quality`: {', '.join(SCORES)}."},
    )
    quality: dict[str, dict[str, float]] = field(
        default_factory=dict,
        metadata={"help": "Score -> {min or max: threshold, full: where the weight is 1}; others are dropped."},
    )
    generation_batch_size: int = field(default=64, metadata={"help": "Clips a batch when the teacher is asked."})
    divergence: str = field(
        default="forward_kl", metadata={"help": "forward_kl, reverse_kl or jsd, of teacher and student."}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "Weight of the teacher in jsd's mixture, between 0 and 1."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of both distributions in the loss."})
    student_modalities: dict[str, float] = field(
        default_factory=lambda: {"audio": 0.5, "av": 0.5},
        metadata={"help": "How often the student hears only (audio) and hears and sees (av)."},
    )

    # Another default than the library's.
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "group_by_length (within a step, clips of equal length share a batch) or random."},
    )

    def __post_init__(self):
        if self.stage != 1:
            raise InputError(f"config field `stage` is {self.stage!r}; this config is for stage 1.")
        if not self.prompts or not isinstance(self.prompts, str | list | dict):
            raise InputError("config field `prompts` is missing: prompts by kind, a list, a text file, or `nano`.")
        for name in ("responses_per_clip", "max_response_tokens", "generation_batch_size", "temperature"):
            self._check_positive(name)
        if not self.teacher_temperature >= 0 or not 0 < self.teacher_top_p <= 1:
            raise InputError(
                f"`teacher_temperature` is {self.teacher_temperature!r}, at least 0 is needed; `teacher_top_p` is "
                f"{self.teacher_top_p!r}, above 0 and at most 1 is needed."
            )
        for name in self.teacher_scores:
            if name not in SCORES:
                raise InputError(f"config field `teacher_scores` names {name!r}; allowed are {', '.join(SCORES)}.")
        check_rules(self.quality)
        if self.train_sampling_strategy not in ("group_by_length", "random"):
            raise InputError(
                f"config field `train_sampling_strategy` is {self.train_sampling_strategy!r}; allowed are "
                "group_by_length and random."
            )
        if self.cache_audio_features and (self.teacher_cache is None or self.train_audio_tower):
            raise InputError(
                "`cache_audio_features` needs a folder in `teacher_cache`, and an audio tower that is not trained: "
                "set train_audio_tower to false."
            )
        if self.divergence not in KINDS:
            raise InputError(f"config field `divergence` is {self.divergence!r}; allowed are {', '.join(KINDS)}.")
        if not 0 < self.jsd_beta < 1:
            raise InputError(
                f"config field `jsd_beta` is {self.jsd_beta!r}; a number between 0 and 1 is needed. Its limits are "
                "the divergences forward_kl and reverse_kl."
            )
        self._check_modality_weights("student_modalities", ("audio", "av"))
        if not (self.train_audio_projector or self.train_audio_tower):
            raise InputError("nothing to train: set `train_audio_projector` or `train_audio_tower` to true.")
        super().__post_init__()
