"""What `vaemotionllm benchmark build` is told: a YAML file and `key=value` words, checked before anything is read."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ..data.manifest import SPLITS
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .schema import ASPECTS

# What to do with a clip that a rule cannot use: end the build and name it, or leave it out and count it.
POLICIES = ("refuse", "drop")


@dataclasses.dataclass
class BuildConfig:
    """All rules of a benchmark. They are our choice, and benchmark.json keeps them.

    Args:
        manifest: the clip manifest (`.jsonl` or `.parquet`) with labels. Media that it embeds are held in memory;
            files are not.
        out: folder to create.
        name, version, description: of the benchmark, for benchmark.json and the data set card.
        split: split of the manifest whose clips are asked about.
        seed: of every shuffle and draw.
        aspects, modalities: which cells are built.
        options: options of each question.
        content_question, emotion_question: the wordings.
        emotion_distances: for each distractor a band [low, high] of distances from the answer on the valence-arousal
            plane, whose sides are 2 long. Sets of options are preferred that keep the rule whichever of them is the
            answer; where a label has none, the answer alone keeps it (counted as `emotion_one_sided`), and where a
            band holds no label the nearest to it is taken (`emotion_outside_band`).
        emotion_positions: {label: [valence, arousal]}; labels that are not in it stand at the mean of the clips whose
            answer they are.
        max_vote_share: a label for which more of a clip's annotators voted is no distractor for that clip.
        content_pool: where an art form has too few contents for the distractors: "refuse", or "widen" to those of all
            art forms, and count it.
        ties: clips whose strongest emotion is shared by two labels: "refuse", or "drop" their emotion questions.
        unlabelled: clips without the label that an aspect asks for: "refuse", or "drop" the question.
        duplicates: clips with the same media as an earlier clip: "refuse" or "drop".
        shard_mb: media in a parquet shard, in 1e6 bytes; a clip is never divided.
    """

    manifest: str = ""
    out: str = ""
    name: str = ""
    version: str = "1"
    description: str = ""
    split: str = "benchmark"
    seed: int = 0
    aspects: list[str] = dataclasses.field(default_factory=lambda: list(ASPECTS))
    modalities: list[str] = dataclasses.field(default_factory=lambda: list(MODALITIES))
    options: int = 4
    content_question: str = "What is the subject of this artwork?"
    emotion_question: str = "Which emotion does this artwork express?"
    emotion_distances: list[list[float]] = dataclasses.field(
        default_factory=lambda: [[0.2, 1.2], [0.6, 1.8], [1.2, 2.83]]
    )
    emotion_positions: dict[str, list[float]] | None = None
    max_vote_share: float = 0.2
    content_pool: str = "refuse"
    ties: str = "refuse"
    unlabelled: str = "refuse"
    duplicates: str = "refuse"
    shard_mb: float = 256.0

    def __post_init__(self):
        for field in ("manifest", "out", "name", "content_question", "emotion_question"):
            if not getattr(self, field):
                raise InputError(f"config field `{field}` is missing; give it in the file or as {field}=VALUE.")
        for field, allowed in (("aspects", ASPECTS), ("modalities", MODALITIES)):
            values = getattr(self, field)
            if not isinstance(values, list) or not values or not set(values) <= set(allowed):
                raise InputError(f"config field `{field}` is {values!r}; allowed is a list of {', '.join(allowed)}.")
            # In the schema's order and once each, so that the order in the file changes nothing.
            setattr(self, field, [value for value in allowed if value in values])
        for field, allowed in (
            ("split", SPLITS), ("ties", POLICIES), ("unlabelled", POLICIES), ("duplicates", POLICIES),
            ("content_pool", ("refuse", "widen")),
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise InputError(
                    f"config field `{field}` is {getattr(self, field)!r}; allowed are {', '.join(allowed)}."
                )
        if not 2 <= self.options <= 26:
            raise InputError(f"config field `options` is {self.options}; allowed is 2 to 26.")
        if self.seed < 0:
            raise InputError(f"config field `seed` is {self.seed}; give a whole number from 0.")
        if not self.shard_mb > 0:
            raise InputError(f"config field `shard_mb` is {self.shard_mb}; give a number above 0.")
        if not 0 <= self.max_vote_share < 0.5:
            raise InputError(f"config field `max_vote_share` is {self.max_vote_share}; allowed is 0 to below 0.5.")
        if "emotion" in self.aspects:
            self._check_plane()

    def _check_plane(self) -> None:
        bands = self.emotion_distances
        if not isinstance(bands, list) or len(bands) != self.options - 1:
            raise InputError(
                f"config field `emotion_distances` is {bands!r}; {self.options} options need {self.options - 1} bands "
                "[low, high], one a distractor."
            )
        for band in bands:
            if not _is_numbers(band, 2) or not 0 <= band[0] < band[1]:
                raise InputError(
                    f"config field `emotion_distances` holds {band!r}; a band is [low, high] with 0 <= low < high; "
                    f"the plane's diagonal is {math.sqrt(8):.2f} long."
                )
        if self.emotion_positions is not None and not isinstance(self.emotion_positions, dict):
            raise InputError(f"config field `emotion_positions` is {self.emotion_positions!r}; give label: [v, a].")
        for label, position in (self.emotion_positions or {}).items():
            if not _is_numbers(position, 2) or max(abs(value) for value in position) > 1:
                raise InputError(
                    f"config field `emotion_positions`: {label!r} is {position!r}; give [valence, arousal] in [-1, 1]."
                )

    def rules(self) -> dict[str, Any]:
        """Every field that shapes the items, without the paths of this machine."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("manifest", "out")}


def read_build_config(path: str, overrides: Sequence[str] = ()) -> BuildConfig:
    """The config of a YAML file, or of a shipped one by its name, with `key=value` words on top.

    Raises:
        InputError: naming the field and what is allowed.
    """
    from ..config_file import build_config, read_config

    fields = ", ".join(field.name for field in dataclasses.fields(BuildConfig))
    return build_config(BuildConfig, read_config(path, overrides, "benchmark"), f"the fields are {fields}.")


def _is_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )
