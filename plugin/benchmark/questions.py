"""Questions about annotated clips: the rules (`BuildConfig`), the answer, distractors, and balanced answer positions.

Distractors are dealt so that the answer cannot be found without the clip. A rule about their distances to the answer
alone would give it away: it would be the one label that the others surround as the rule says. So sets are preferred
that keep the rule whichever of their labels is the answer, and they are dealt so that in each pair of labels each is
the answer equally often.
"""

import dataclasses
import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ..config_file import build_config, read_config
from ..data.manifest import SPLITS, Clip
from ..model.inputs import MODALITIES
from ..utils import InputError
from .schema import ASPECTS, Aspect, Coordinate, Modality, Share, Text

# All combinations of distractors are tried up to here, beyond it this many that are drawn.
MOST_SETS = 3000

# label -> (valence, arousal)
Positions = dict[str, tuple[float, float]]
Labels = tuple[str, ...]


@dataclass
class BuildConfig:
    """All rules of a benchmark. They are our choice, and benchmark.json keeps them.

    Args:
        manifest: the clip manifest (`.jsonl` or `.parquet`) with labels. Media that it embeds are held in memory;
            files are not.
        out: folder to create.
        name, version, description: of the benchmark, for benchmark.json and the data set card.
        split: split of the manifest whose clips get questions.
        seed: of every shuffle and draw.
        aspects, modalities: which cells are built.
        options: options of each question.
        content_question, emotion_question: the wordings.
        emotion_distances: for each distractor a band [low, high] of distances from the answer in the valence-arousal
            space, whose sides are 2 long. Sets of options are preferred that keep the rule whichever of them is the
            answer; where a label has none, the answer alone keeps it (counted as `emotion_one_sided`), and where a
            band holds no label the nearest to it is taken (`emotion_outside_band`).
        emotion_positions: {label: [valence, arousal]}; labels that are not in it stand at the mean of the clips whose
            answer they are.
        max_vote_share: a label for which more of a clip's annotators voted is no distractor for that clip.
        content_pool: where an art form has too few contents for the distractors: "refuse", or "widen" to those of all
            art forms, and count it.
        ties: clips whose strongest emotion is shared by two labels: "refuse", or "drop" their emotion questions.
        unlabelled: clips without the label that an aspect needs: "refuse", or "drop" the question.
        duplicates: clips with the same media as an earlier clip: "refuse" or "drop".
        shard_mb: media in a parquet shard, in 1e6 bytes; a clip is never divided.
    """

    manifest: Text = ""
    out: Text = ""
    name: Text = ""
    version: str = "1"
    description: str = ""
    split: Annotated[str, Field(pattern=f"^({'|'.join(SPLITS)})$")] = "benchmark"
    seed: Annotated[int, Field(ge=0)] = 0
    aspects: Annotated[list[Aspect], Field(min_length=1)] = field(default_factory=lambda: list(ASPECTS))
    modalities: Annotated[list[Modality], Field(min_length=1)] = field(default_factory=lambda: list(MODALITIES))
    options: Annotated[int, Field(ge=2, le=26)] = 4
    content_question: Text = "What is the subject of this artwork?"
    emotion_question: Text = "Which emotion does this artwork express?"
    emotion_distances: list[list[Share]] = field(default_factory=lambda: [[0.2, 1.2], [0.6, 1.8], [1.2, 2.83]])
    emotion_positions: dict[str, Annotated[list[Coordinate], Field(min_length=2, max_length=2)]] | None = None
    max_vote_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    content_pool: Literal["refuse", "widen"] = "refuse"
    # Of a clip that a rule cannot use: end the build and name it, or leave it out and count it.
    ties: Literal["refuse", "drop"] = "refuse"
    unlabelled: Literal["refuse", "drop"] = "refuse"
    duplicates: Literal["refuse", "drop"] = "refuse"
    shard_mb: Annotated[float, Field(gt=0)] = 256.0

    def __post_init__(self):
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            try:
                TypeAdapter(hint).validate_python(getattr(self, name))
            except ValidationError as error:
                message = f"config field `{name}` is {getattr(self, name)!r}: {error.errors()[0]['msg']}."
                raise InputError(message) from None
        # In the schema's order and once each, so that the order in the file changes nothing.
        self.aspects = [aspect for aspect in ASPECTS if aspect in self.aspects]
        self.modalities = [modality for modality in MODALITIES if modality in self.modalities]
        bands = self.emotion_distances
        fit = len(bands) == self.options - 1 and all(len(band) == 2 and band[0] < band[1] for band in bands)
        if "emotion" in self.aspects and not fit:
            raise InputError(
                f"config field `emotion_distances` is {bands!r}; {self.options} options need {self.options - 1} bands "
                "[low, high] with low < high, one a distractor."
            )

    def rules(self) -> dict[str, Any]:
        """Every field that shapes the items, without the paths of this machine."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("manifest", "out")}


def read_build_config(path: str, overrides: Sequence[str] = ()) -> BuildConfig:
    """The config of a YAML file, or of a shipped one by its name, with `key=value` words on top.

    Raises:
        InputError: naming the field and what is allowed.
    """
    fields = ", ".join(known.name for known in dataclasses.fields(BuildConfig))
    return build_config(BuildConfig, read_config(path, overrides, "benchmark"), f"the fields are {fields}.")


# ---- distractors


def normalised(option: str) -> str:
    """An option's text without case, accents' encoding, punctuation, articles and repeated blanks."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", option).casefold())
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


@dataclass
class Dealer:
    """Deals one of several sets of distractors. pairs: (answer, distractor) -> how often they were dealt."""

    rng: np.random.Generator
    pairs: Counter = field(default_factory=Counter)

    def deal(self, answer: str, sets: Sequence[Labels]) -> list[str]:
        """The set whose labels were distractors of `answer` least often beyond being answers beside it; shuffled.

        This is the greedy step on the sum of squared differences pairs[a, b] - pairs[b, a].
        """
        costs = [sum(self.pairs[answer, other] - self.pairs[other, answer] for other in labels) for labels in sets]
        best = [labels for labels, cost in zip(sets, costs) if cost == min(costs)]
        chosen = best[int(self.rng.integers(len(best)))]
        for other in chosen:
            self.pairs[answer, other] += 1
        return [chosen[i] for i in self.rng.permutation(len(chosen))]


def drawn_sets(weights: Mapping[str, int], count: int, rng: np.random.Generator, draws: int = 64) -> list[Labels]:
    """Random sets of `count` labels, each label drawn as often as its weight says: as often as it is an answer."""
    labels = sorted(weights)
    shares = np.array([weights[label] for label in labels], float)
    shares /= shares.sum()
    found = (rng.choice(len(labels), count, replace=False, p=shares) for _ in range(draws))
    return sorted({tuple(labels[i] for i in sorted(chosen)) for chosen in found})


def banded_sets(
    answer: str, positions: Positions, bands: Sequence[Sequence[float]], rng: np.random.Generator
) -> tuple[list[Labels], list[Labels]]:
    """Sets of distractors with one label in each band of distances to the answer.

    Returns:
        Those that keep the rule whichever of their labels and `answer` is the answer, and the others.
    """
    mutual: list[Labels] = []
    one_sided: list[Labels] = []
    for labels in _candidates(answer, positions, bands, rng):
        if len({normalised(label) for label in (answer, *labels)}) <= len(labels):
            continue
        if _keeps(answer, labels, positions, bands):
            every = (answer, *labels)
            others = ([x for x in every if x != label] for label in labels)
            fits = all(_keeps(label, rest, positions, bands) for label, rest in zip(labels, others))
            (mutual if fits else one_sided).append(labels)
    return mutual, one_sided


def nearest_to_bands(
    answer: str, free: Sequence[str], positions: Positions, bands: Sequence[Sequence[float]]
) -> Labels:
    """For each band the label whose distance to the answer is nearest to it, where no set has one in each."""
    left = {label: math.dist(positions[answer], positions[label]) for label in sorted(free)}
    chosen = []
    for low, high in bands:
        chosen.append(min(left, key=lambda label: max(low - left[label], left[label] - high, 0.0)))
        del left[chosen[-1]]
    return tuple(chosen)


def _candidates(answer: str, positions: Positions, bands, rng: np.random.Generator) -> Iterator[Labels]:
    others = [label for label in sorted(positions) if label != answer]
    inside = [
        [label for label in others if low <= math.dist(positions[answer], positions[label]) <= high]
        for low, high in bands
    ]
    if not all(inside):
        return
    near = sorted(set(itertools.chain.from_iterable(inside)))
    if math.comb(len(near), len(bands)) <= MOST_SETS:
        yield from itertools.combinations(near, len(bands))
        return
    found = set()
    for _ in range(MOST_SETS):
        labels = {band[int(rng.integers(len(band)))] for band in inside}
        if len(labels) == len(bands):
            found.add(tuple(sorted(labels)))
    yield from sorted(found)


def _keeps(answer: str, labels: Sequence[str], positions: Positions, bands: Sequence[Sequence[float]]) -> bool:
    """Whether each label has a band of its own. Ascending, into the fitting band that ends first: this finds a way."""
    free = sorted(bands, key=lambda band: band[1])
    for distance in sorted(math.dist(positions[answer], positions[label]) for label in labels):
        fitting = next((band for band in free if band[0] <= distance <= band[1]), None)
        if fitting is None:
            return False
        free.remove(fitting)
    return True


# ---- questions


@dataclass(frozen=True)
class Question:
    """One question about one clip, for every modality. distribution: {label: share of the votes} or None."""

    clip: Clip
    aspect: str
    text: str
    options: tuple[str, ...]
    answer: str
    distribution: dict[str, float] | None = None


# clip id -> (answer, distractors, {label: share of the votes} where there are several annotators)
Drawn = dict[str, tuple[str, list[str], dict[str, float] | None]]


def make_questions(clips: Sequence[Clip], config: BuildConfig) -> tuple[list[Question], Counter, Positions]:
    """The questions about `clips`, in their order, content before emotion.

    Answer positions are a shuffle of equal numbers of each position over the questions of an aspect.

    Returns:
        The questions, what was counted (clips that were left out, rules that were widened), and the position of each
        emotion in the valence-arousal space.

    Raises:
        InputError: naming the clip, the rule and the remedy.
    """
    counts: Counter = Counter()
    positions: Positions = {}
    by_clip: dict[str, list[Question]] = {clip.id: [] for clip in clips}
    for aspect in config.aspects:
        if aspect == "content":
            drawn, text = _content(clips, config, counts), config.content_question
        else:
            (drawn, positions), text = _emotion(clips, config, counts), config.emotion_question
        if not drawn:
            raise InputError(
                f"no clip of the split {config.split!r} has the label `{aspect}`; add labels to the manifest, or "
                f"leave {aspect!r} out of `aspects`."
            )
        rng = np.random.default_rng([config.seed, ASPECTS.index(aspect)])
        answer_positions = rng.permutation(np.arange(len(drawn)) % config.options)
        answered = [clip for clip in clips if clip.id in drawn]
        for clip, at in zip(answered, answer_positions):
            answer, distractors, votes = drawn[clip.id]
            options = (*distractors[:at], answer, *distractors[at:])
            by_clip[clip.id].append(Question(clip, aspect, text, options, answer, votes))
    return [question for clip in clips for question in by_clip[clip.id]], counts, positions


def _content(clips: Sequence[Clip], config: BuildConfig, counts: Counter) -> Drawn:
    """Each clip with a content; distractors are contents of its art form."""
    # By the normalised text, so that "Rain" and "the rain" are never both options.
    texts: dict[str, str] = {}
    pools: dict[str | None, Counter] = defaultdict(Counter)
    labelled = _labelled(clips, "content", config, counts)
    for clip in labelled:
        texts.setdefault(normalised(str(clip.content)), str(clip.content))
        pools[clip.art_form][normalised(str(clip.content))] += 1
    every = sum(pools.values(), Counter())
    needed = config.options - 1
    dealer = Dealer(np.random.default_rng([config.seed, ASPECTS.index("content"), 1]))
    drawn: Drawn = {}
    for clip in _shuffled(labelled, dealer):
        answer = normalised(str(clip.content))
        pool = pools[clip.art_form]
        if len(pool) <= needed and config.content_pool == "widen":
            counts["content_pool_widened"] += 1
            pool = every
        if len(pool) <= needed:
            raise InputError(
                f"clip {clip.id!r}: {needed} distractors are needed, and the art form {clip.art_form!r} has "
                f"{len(pool) - 1} other contents. Lower `options`, or set content_pool=widen to take those of all art "
                "forms."
            )
        others = {content: count for content, count in pool.items() if content != answer}
        chosen = dealer.deal(answer, drawn_sets(others, needed, dealer.rng))
        drawn[clip.id] = (str(clip.content), [texts[content] for content in chosen], None)
    return drawn


def _emotion(clips: Sequence[Clip], config: BuildConfig, counts: Counter) -> tuple[Drawn, Positions]:
    """Each clip with one strongest emotion; distractors by their distances, and the positions these come from."""
    answers: dict[str, tuple[str, dict[str, float] | None]] = {}
    for clip in _labelled(clips, "emotion", config, counts):
        if (found := strongest(clip, config, counts)) is not None:
            answers[clip.id] = found
    positions = label_positions(clips, {clip: answer for clip, (answer, _) in answers.items()}, config)
    dealer, bands = Dealer(np.random.default_rng([config.seed, ASPECTS.index("emotion"), 1])), config.emotion_distances
    sets = {label: banded_sets(label, positions, bands, dealer.rng) for label in positions}
    drawn: Drawn = {}
    for clip in _shuffled([clip for clip in clips if clip.id in answers], dealer):
        answer, votes = answers[clip.id]
        free = _free(clip, answer, votes or {}, positions, config)
        mutual, one_sided = ([labels for labels in found if free.issuperset(labels)] for found in sets[answer])
        if not mutual:
            counts["emotion_one_sided" if one_sided else "emotion_outside_band"] += 1
        nearest = [] if mutual or one_sided else [nearest_to_bands(answer, sorted(free), positions, bands)]
        drawn[clip.id] = (answer, dealer.deal(answer, mutual or one_sided or nearest), votes)
    return drawn, positions


def _free(clip: Clip, answer: str, votes: Mapping[str, float], positions: Positions, config: BuildConfig) -> set[str]:
    """Labels that may be distractors of this clip: not too many of its annotators chose them."""
    free: dict[str, str] = {}
    for label in positions:
        if normalised(label) != normalised(answer) and votes.get(label, 0) <= config.max_vote_share:
            free.setdefault(normalised(label), label)
    if len(free) < config.options - 1:
        raise InputError(
            f"clip {clip.id!r}: {len(free)} emotions can be distractors for {answer!r} and {config.options - 1} are "
            "needed (those with more votes than `max_vote_share` cannot). Lower `options`, or raise `max_vote_share`."
        )
    return set(free.values())


def strongest(clip: Clip, config: BuildConfig, counts: Counter) -> tuple[str, dict[str, float] | None] | None:
    """The emotion with most votes, and the shares of the votes; None where two share the lead and `ties` is "drop"."""
    if isinstance(clip.emotion, str):
        return clip.emotion, None
    assert clip.emotion is not None
    total = math.fsum(clip.emotion.values())
    shares = {label: share / total for label, share in sorted(clip.emotion.items()) if share > 0}
    most = max(shares.values())
    first = [label for label, share in shares.items() if math.isclose(share, most, rel_tol=1e-9)]
    if len(first) > 1:
        if config.ties == "refuse":
            raise InputError(
                f"clip {clip.id!r}: the emotions {', '.join(first)} have equal votes ({most:.3g} each), so there is "
                "no one answer. Add one more annotator, or set ties=drop to leave such emotion questions out."
            )
        counts["emotion_ties_dropped"] += 1
        return None
    return first[0], shares


def label_positions(clips: Sequence[Clip], answers: Mapping[str, str], config: BuildConfig) -> Positions:
    """Valence and arousal of every label that is an answer: the config's, else the mean of its clips.

    Labels that are no clip's answer are left out: as a distractor they would give themselves away.
    """
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for clip in clips:
        if clip.id in answers and clip.valence is not None and clip.arousal is not None:
            points[answers[clip.id]].append((clip.valence, clip.arousal))
    given = config.emotion_positions or {}
    if unknown := sorted(set(given) - set(answers.values())):
        raise InputError(
            f"config field `emotion_positions` names {unknown[0]!r}, which is no clip's emotion; the emotions are "
            f"{', '.join(sorted(set(answers.values())))}."
        )
    positions: Positions = {}
    for label in sorted(set(answers.values())):
        if label in given:
            positions[label] = (float(given[label][0]), float(given[label][1]))
        elif points[label]:
            valences, arousals = zip(*points[label])
            positions[label] = (math.fsum(valences) / len(valences), math.fsum(arousals) / len(arousals))
        else:
            raise InputError(
                f"no clip with the emotion {label!r} has `valence` and `arousal`, so its position is not "
                f"known. Give it in emotion_positions={{{label}: [valence, arousal], ...}}."
            )
    return positions


def _labelled(clips: Sequence[Clip], aspect: str, config: BuildConfig, counts: Counter) -> list[Clip]:
    """The clips with the label of an aspect; what becomes of the others is `config.unlabelled`."""
    labelled = [clip for clip in clips if getattr(clip, aspect) is not None]
    if len(labelled) < len(clips):
        if config.unlabelled == "refuse":
            first = next(clip.id for clip in clips if getattr(clip, aspect) is None)
            raise InputError(
                f"clip {first!r} has no label `{aspect}`. Add it, leave {aspect!r} out of `aspects`, or set "
                "unlabelled=drop to leave such questions out."
            )
        counts[f"{aspect}_unlabelled_dropped"] = len(clips) - len(labelled)
    return labelled


def _shuffled(clips: Sequence[Clip], dealer: Dealer) -> list[Clip]:
    """In a random order: a manifest that is sorted by label would be dealt unevenly."""
    return [clips[i] for i in dealer.rng.permutation(len(clips))]
