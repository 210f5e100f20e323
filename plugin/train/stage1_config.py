"""Config of stage 1, VG-Align."""

from dataclasses import dataclass, field

from ..errors import InputError
from .base_config import StageConfig
from .chunked_divergence import KINDS


@dataclass
class Stage1Config(StageConfig):
    """VG-Align: the frozen visual pathway teaches a new audio pathway what to expect next (arXiv 2511.12077).

    The paper names the objective, next-token distributions on synchronized clips; prompts, response lengths,
    temperature and path weights are our choice.
    """

    stage: int = field(default=1, metadata={"help": "1: VG-Align."})
    prompts: str | list[str] | None = field(
        default=None,
        metadata={"help": "What the teacher is asked: a list, a text file with one prompt a line, or `nano`."},
    )
    responses_per_clip: int = field(default=1, metadata={"help": "Teacher responses for each clip."})
    max_response_tokens: int = field(default=64, metadata={"help": "Longest teacher response, tokens."})
    generation_batch_size: int = field(default=64, metadata={"help": "Clips a batch when responses are generated."})
    divergence: str = field(
        default="forward_kl", metadata={"help": "forward_kl, reverse_kl or jsd, of teacher and student."}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "Weight of the teacher in jsd's mixture, between 0 and 1."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of both distributions in the loss."})
    student_paths: dict[str, float] = field(
        default_factory=lambda: {"audio": 0.5, "av": 0.5},
        metadata={"help": "How often the student hears only (audio) and hears and sees (av)."},
    )

    def __post_init__(self):
        if self.stage != 1:
            raise InputError(f"config field `stage` is {self.stage!r}; this config is for stage 1.")
        if not self.prompts or not isinstance(self.prompts, str | list):
            raise InputError("config field `prompts` is missing: a list of prompts, a text file, or `nano`.")
        for name in ("responses_per_clip", "max_response_tokens", "generation_batch_size", "temperature"):
            self._check_positive(name)
        if self.divergence not in KINDS:
            raise InputError(f"config field `divergence` is {self.divergence!r}; allowed are {', '.join(KINDS)}.")
        if not 0 < self.jsd_beta < 1:
            raise InputError(
                f"config field `jsd_beta` is {self.jsd_beta!r}; a number between 0 and 1 is needed. Its limits are "
                "the divergences forward_kl and reverse_kl."
            )
        self._check_path_weights("student_paths", ("audio", "av"))
        if not (self.train_audio_projector or self.train_audio_tower):
            raise InputError("nothing to train: set `train_audio_projector` or `train_audio_tower` to true.")
        super().__post_init__()
