"""Which placeholder of a batch of texts stands for which medium, and what it becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import processing_utils

from .input_error import InputError

# What precedes a control token that `sanitize_control_tokens` found in a user's words, which is no placeholder.
_MARK = getattr(processing_utils, "_CONTROL_TOKEN_START", None)


@dataclass(frozen=True)
class Placed:
    """A medium with what errors call it: "sample 1, audio 0"."""

    medium: Any
    name: str


def pieces(text: str, token: str) -> list[str]:
    """The text between the placeholders."""
    if not _MARK:
        return text.split(token)
    marked, stand_in = _MARK + token, _MARK + "\0"
    return [piece.replace(stand_in, marked) for piece in text.replace(marked, stand_in).split(token)]


def place_media(
    texts: Sequence[str] | None, given: Mapping[str, Any], tokens: Mapping[str, str]
) -> dict[str, list[Placed]]:
    """The media of a call, named by the sample whose placeholder they stand for.

    Args:
        texts: the rendered conversations; None where there is no text.
        given: kind -> one medium, a list, a list for each text, or None.
        tokens: kind -> placeholder.

    Raises:
        InputError: as many media of a kind as placeholders are needed, in all or in one sample.
    """
    placed = {}
    for kind, media in given.items():
        rows, flat = _rows_of(media, kind)
        if texts is None:
            placed[kind] = [Placed(medium, f"{kind} {number}") for number, medium in enumerate(flat)]
            continue
        counts = [len(pieces(text, tokens[kind])) - 1 for text in texts]
        if rows is not None and len(rows) == len(counts) and rows != counts:
            row = next(row for row, (one, other) in enumerate(zip(rows, counts)) if one != other)
            raise InputError(
                f"sample {row}: its text holds {counts[row]} {kind} placeholders ({tokens[kind]}) and {rows[row]} "
                f"{kind} inputs were given for it; there must be as many of the one as of the other."
            )
        _check_counts(kind, tokens[kind], counts, len(flat))
        names = [f"sample {row}, {kind} {n}" for row, count in enumerate(counts) for n in range(count)]
        placed[kind] = [Placed(medium, name) for medium, name in zip(flat, names, strict=True)]
    return placed


def _rows_of(media: Any, kind: str) -> tuple[list[int] | None, list]:
    """How many media each text has, where that is said, and all of them in a row."""
    if media is None:
        return None, []
    if not isinstance(media, (list, tuple)):
        # A batch in one array or tensor, or one medium.
        batched = {"image": 4, "video": 5}.get(kind, -1)
        return None, list(media) if getattr(media, "ndim", None) == batched else [media]
    if kind == "video" and media and _is_picture(media[0]):
        return None, [media]  # one film as its frames
    if kind == "audio" and media and _is_sample(media[0]):
        return None, [media]  # one sound as its samples
    if media and all(isinstance(row, (list, tuple)) for row in media):
        if kind == "audio" and any(row and _is_sample(row[0]) for row in media):
            return None, list(media)  # sounds as their samples
        if kind == "video" and any(row and _is_picture(row[0]) for row in media):
            return None, list(media)  # films as their frames
        return [len(row) for row in media], [medium for row in media for medium in row]
    return None, list(media)


def _is_picture(medium: Any) -> bool:
    """Whether it can be a frame of a film, and no film."""
    from PIL import Image

    return isinstance(medium, Image.Image) or (hasattr(medium, "shape") and np.ndim(medium) in (2, 3))


def _is_sample(value: Any) -> bool:
    return np.isscalar(value) and not isinstance(value, (str, bytes))


def _check_counts(kind: str, token: str, counts: Sequence[int], given: int) -> None:
    if sum(counts) != given:
        held = ", ".join(f"sample {row}: {count}" for row, count in enumerate(counts) if count) or "none"
        raise InputError(
            f"The text holds {sum(counts)} {kind} placeholders ({token}; {held}) and {given} {kind} inputs were "
            "given; there must be as many of the one as of the other."
        )


def replace_placeholders(texts: list[str], media: Sequence[Any], tokens: Mapping[str, str]) -> list[str]:
    """Texts in which each placeholder became the placeholders of its medium's embeddings.

    Args:
        texts: rendered conversations.
        media: `MediaFeatures` of all texts, in the order of their placeholders.
        tokens: kind -> placeholder.

    Raises:
        InputError: the placeholders and the media do not match.
    """
    for kind, token in tokens.items():
        replacements = [medium.replacement for medium in media if medium.kind == kind]
        split = [pieces(text, token) for text in texts]
        _check_counts(kind, token, [len(parts) - 1 for parts in split], len(replacements))
        rest = iter(replacements)
        texts = [parts[0] + "".join(next(rest) + part for part in parts[1:]) for parts in split]
    return texts


def sound_after_films(
    texts: Sequence[str],
    films: Sequence[Placed],
    heard: Sequence[bool],
    sounds: Sequence[Placed],
    film_token: str,
    sound_token: str,
    after: str,
) -> tuple[list[str], list[Placed]]:
    """Texts with a placeholder for the sound of each film that is heard, and all sounds in their order.

    Args:
        texts: rendered conversations.
        films: the films in the order of their placeholders.
        heard: whether each is heard.
        sounds: what stands for the sound placeholders that are there already.
        film_token, sound_token: the placeholders.
        after: what closes a film's placeholder; the sound's comes after it where it is there.
    """
    own, given = iter(zip(films, heard, strict=True)), iter(sounds)
    written, ordered = [], []
    for text in texts:
        first, *others = pieces(text, film_token)
        ordered += [next(given) for _ in pieces(first, sound_token)[1:]]
        for number, part in enumerate(others):
            film, hears = next(own)
            if hears:
                ordered.append(film)
                cut = len(after) if part.startswith(after) else 0
                others[number] = part[:cut] + sound_token + part[cut:]
            ordered += [next(given) for _ in pieces(part, sound_token)[1:]]
        written.append(film_token.join([first, *others]))
    return written, ordered


def composed_offsets(first: list[list[dict]], second: list[list[dict]]) -> list[list[dict]]:
    """Two rounds of replacements in a text as one: where each was in the text before both, and is after both.

    Args:
        first, second: for each sample the replacements of a round, as `get_text_with_replacements` gives them: `span`
            before the round and `new_span` after it.
    """
    composed = []
    for early, late in zip(first, second, strict=True):
        found = []
        for change in early:
            begin, end = change["new_span"]
            gained = sum(_gain(other) for other in late if other["span"][0] < begin)
            found.append({**change, "new_span": (begin + gained, end + gained)})
        for change in late:
            begin, end = change["span"]
            gained = sum(_gain(other) for other in early if other["new_span"][0] < begin)
            found.append({**change, "span": (begin - gained, end - gained)})
        composed.append(sorted(found, key=lambda change: change["span"]))
    return composed


def _gain(change: dict) -> int:
    """Characters that a replacement made the text longer by."""
    (begin, end), (new_begin, new_end) = change["span"], change["new_span"]
    return (new_end - new_begin) - (end - begin)
