"""From annotated clips to questions: the answer, distractors by the config's rules, and balanced answer positions."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.manifest import Clip
from ..utils import InputError
from .build_config import BuildConfig
from .distractors import Dealer, banded_sets, drawn_sets, nearest_to_bands
from .item_checks import normalised
from .schema import ASPECTS

Plane = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Question:
    """One question about one clip, asked under every modality. distribution: {label: share of the votes} or None."""

    clip: Clip
    aspect: str
    text: str
    options: tuple[str, ...]
    answer: str
    distribution: dict[str, float] | None = None


class Drawn(NamedTuple):
    """votes: {label: share}, where several annotators spoke."""

    clip: Clip
    answer: str
    distractors: list[str]
    votes: dict[str, float] | None = None


def make_questions(clips: Sequence[Clip], config: BuildConfig) -> tuple[list[Question], Counter, Plane]:
    """The questions about `clips`, in their order, content before emotion.

    Options are dealt as `distractors` says; answer positions are a shuffle of equal numbers of each position over the
    questions of an aspect.

    Returns:
        The questions, what was counted (clips that were left out, rules that were widened), and where each emotion
        stands on the plane.

    Raises:
        InputError: naming the clip, the rule and the remedy.
    """
    counts: Counter = Counter()
    asked: dict[str, list[Drawn]] = {}
    plane: Plane = {}
    if "content" in config.aspects:
        asked["content"] = _content(clips, config, counts)
    if "emotion" in config.aspects:
        asked["emotion"], plane = _emotion(clips, config, counts)
    by_clip: dict[str, list[Question]] = defaultdict(list)
    for aspect, drawn in asked.items():
        if not drawn:
            raise InputError(
                f"no clip of the split {config.split!r} has the label `{aspect}`; add labels to the manifest, or "
                f"leave {aspect!r} out of `aspects`."
            )
        rng = np.random.default_rng([config.seed, ASPECTS.index(aspect)])
        positions = rng.permutation(np.arange(len(drawn)) % config.options)
        text = config.content_question if aspect == "content" else config.emotion_question
        for found, position in zip(drawn, positions):
            options = (*found.distractors[:position], found.answer, *found.distractors[position:])
            question = Question(found.clip, aspect, text, options, found.answer, found.votes)
            by_clip[found.clip.id].append(question)
    return [question for clip in clips for question in by_clip[clip.id]], counts, plane


def _content(clips: Sequence[Clip], config: BuildConfig, counts: Counter) -> list[Drawn]:
    """Each clip with a content; distractors are contents of its art form."""
    # By the normalised text, so that "Rain" and "the rain" are never both options.
    texts: dict[str, str] = {}
    pools: dict[str | None, Counter] = defaultdict(Counter)
    for clip in clips:
        if clip.content is None:
            _leave_out(clip, "content", config, counts)
            continue
        texts.setdefault(normalised(clip.content), clip.content)
        pools[clip.art_form][normalised(clip.content)] += 1
    every = sum(pools.values(), Counter())
    needed = config.options - 1
    dealer = _dealer(config, "content")
    drawn: dict[str, Drawn] = {}
    for clip in _shuffled([clip for clip in clips if clip.content is not None], dealer):
        answer = normalised(str(clip.content))
        pool = {key: count for key, count in pools[clip.art_form].items() if key != answer}
        if len(pool) < needed:
            if config.content_pool == "refuse":
                raise InputError(
                    f"clip {clip.id!r}: the art form {clip.art_form!r} has {len(pool)} other contents, and "
                    f"{needed} distractors are needed. Lower `options`, or set content_pool=widen to take those of "
                    "all art forms."
                )
            counts["content_pool_widened"] += 1
            pool = {key: count for key, count in every.items() if key != answer}
            if len(pool) < needed:
                raise InputError(
                    f"clip {clip.id!r}: the manifest has {len(pool)} other contents in all, and {needed} distractors "
                    "are needed. Lower `options`."
                )
        chosen = dealer.deal(answer, drawn_sets(pool, needed, dealer.rng))
        drawn[clip.id] = Drawn(clip, str(clip.content), [texts[key] for key in chosen])
    return [drawn[clip.id] for clip in clips if clip.id in drawn]


def _emotion(clips: Sequence[Clip], config: BuildConfig, counts: Counter) -> tuple[list[Drawn], Plane]:
    """Each clip with one strongest emotion; distractors by their distances on the plane, which is returned."""
    answers: dict[str, tuple[str, dict[str, float] | None]] = {}
    for clip in clips:
        if clip.emotion is None:
            _leave_out(clip, "emotion", config, counts)
        elif (found := strongest(clip, config, counts)) is not None:
            answers[clip.id] = found
    plane = label_positions(clips, {clip: answer for clip, (answer, _) in answers.items()}, config)
    dealer, bands = _dealer(config, "emotion"), config.emotion_distances
    sets = {label: banded_sets(label, plane, bands, dealer.rng) for label in plane}
    drawn: dict[str, Drawn] = {}
    for clip in _shuffled([clip for clip in clips if clip.id in answers], dealer):
        answer, votes = answers[clip.id]
        free = _free(clip, answer, votes or {}, plane, config)
        mutual, one_sided = ([labels for labels in found if free.issuperset(labels)] for found in sets[answer])
        if not mutual:
            counts["emotion_one_sided" if one_sided else "emotion_outside_band"] += 1
        nearest = [] if mutual or one_sided else [nearest_to_bands(answer, sorted(free), plane, bands)]
        allowed = mutual or one_sided or nearest
        drawn[clip.id] = Drawn(clip, answer, dealer.deal(answer, allowed), votes)
    return [drawn[clip.id] for clip in clips if clip.id in drawn], plane


def _free(clip: Clip, answer: str, votes: Mapping[str, float], plane: Plane, config: BuildConfig) -> set[str]:
    """Labels that may be distractors of this clip: not too many of its annotators chose them."""
    free: dict[str, str] = {}
    for label in plane:
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
                "no one answer. Ask one more annotator, or set ties=drop to leave such emotion questions out."
            )
        counts["emotion_ties_dropped"] += 1
        return None
    return first[0], shares


def label_positions(clips: Sequence[Clip], answers: Mapping[str, str], config: BuildConfig) -> Plane:
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
    plane: Plane = {}
    for label in sorted(set(answers.values())):
        if label in given:
            plane[label] = (float(given[label][0]), float(given[label][1]))
        elif points[label]:
            valences, arousals = zip(*points[label])
            plane[label] = (math.fsum(valences) / len(valences), math.fsum(arousals) / len(arousals))
        else:
            raise InputError(
                f"no clip with the emotion {label!r} has `valence` and `arousal`, so its place on the plane is not "
                f"known. Give it in emotion_positions={{{label}: [valence, arousal], ...}}."
            )
    return plane


def _leave_out(clip: Clip, aspect: str, config: BuildConfig, counts: Counter) -> None:
    if config.unlabelled == "refuse":
        raise InputError(
            f"clip {clip.id!r} has no label `{aspect}`. Add it, leave {aspect!r} out of `aspects`, or set "
            "unlabelled=drop to leave such questions out."
        )
    counts[f"{aspect}_unlabelled_dropped"] += 1


def _dealer(config: BuildConfig, aspect: str) -> Dealer:
    return Dealer(np.random.default_rng([config.seed, ASPECTS.index(aspect), 1]))


def _shuffled(clips: Sequence[Clip], dealer: Dealer) -> list[Clip]:
    """In a random order: a manifest that is sorted by label would be dealt unevenly."""
    return [clips[i] for i in dealer.rng.permutation(len(clips))]
