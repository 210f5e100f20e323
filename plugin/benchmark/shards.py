"""Parquet shards with embedded media: bytes that depend on the questions alone, written in bounded memory."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..data.manifest import Clip
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .clip_media import picture_of, sound_of
from .questions import Question
from .schema import MEDIA

# Raise it when the same questions give other bytes than before.
WRITING = 1
# Shards that are written at once: each writer holds a row group.
MAX_WRITERS = 4
# Media of the clips in a row group, 1e6 bytes: a group is what a writer holds, once for each of its items.
ROW_GROUP_MB = 8.0
# A dictionary holds each medium of a row group once, however many items show it.
DICTIONARY_BYTES = 1 << 30


def features(labels: Sequence[str]):
    """The columns as the datasets library and the Hub's viewer know them; `labels` are those of the distributions."""
    from datasets import Audio, Features, Image, List, Value, Video

    text, number = Value("string"), Value("float64")
    columns: dict[str, Any] = dict.fromkeys(("id", "clip_id", "modality", "aspect", "question"), text)
    columns |= {"options": List(text), "answer": text}
    columns |= {"audio": Audio(), "image": Image(), "video": Video(), "valence": number, "arousal": number}
    if labels:
        columns["emotion_distribution"] = dict.fromkeys(sorted(labels), number)
    return Features(columns | dict.fromkeys(("art_form", "license", "source"), text))


def plan_shards(questions: Sequence[Question], shard_mb: float) -> list[list[list[Question]]]:
    """Shards of clips of questions: clips in their order, up to `shard_mb` of media a shard, one clip at least."""
    shards: list[list[list[Question]]] = []
    filled = 0.0
    for asked in _clips(questions):
        size = clip_bytes(asked[0].clip)
        if not shards or filled + size > shard_mb * 1e6:
            shards.append([])
            filled = 0.0
        shards[-1].append(asked)
        filled += size
    return shards


def clip_bytes(clip: Clip) -> int:
    """Bytes of the files of a clip."""
    media = [medium for medium in (clip.audio, clip.image, clip.video) if medium is not None]
    return sum(len(medium) if isinstance(medium, bytes) else os.path.getsize(medium) for medium in media)


def write_shards(
    shards: Sequence[list[list[Question]]],
    folder: Path,
    labels: Sequence[str],
    modalities: Sequence[str],
    workers: int,
    done: Callable[[int], object],
) -> list[Path]:
    """Writes `folder/data/test-*.parquet`; a shard that is there is complete and stays.

    Args:
        labels: of the distributions.
        workers: threads that decode and copy media. Beside them up to `MAX_WRITERS` write.
        done: called with the number of clips after every row group.

    Raises:
        InputError: a medium cannot be decoded; the clip is named. Shards that were finished stay.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    paths = [folder / f"data/test-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))]
    schema = features(labels).arrow_schema
    stop = threading.Event()

    def write(shard: list[list[Question]], path: Path) -> None:
        if path.is_file():
            done(len(shard))
        elif not stop.is_set():
            _write_shard(shard, path, schema, labels, modalities, media, done, stop)

    # Two pools: a writer waits for its media, and must not keep those who make them from a thread.
    with ThreadPoolExecutor(workers) as media, ThreadPoolExecutor(min(workers, MAX_WRITERS)) as writers:
        futures = [writers.submit(write, shard, path) for shard, path in zip(shards, paths)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()  # the others end after their row group
            writers.shutdown(wait=False, cancel_futures=True)
            media.shutdown(wait=False, cancel_futures=True)
            raise
    return paths


def _write_shard(
    shard, path: Path, schema, labels, modalities, media: ThreadPoolExecutor, done, stop: threading.Event
) -> None:
    import pyarrow
    import pyarrow.parquet

    temporary = path.with_suffix(".tmp")
    dictionaries = [f"{column}.bytes" for column in MEDIA]
    with contextlib.closing(
        pyarrow.parquet.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionaries,
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            write_statistics=False,
        )  # fmt: skip
    ) as writer:
        for group in _row_groups(shard):
            if stop.is_set():
                return
            made = media.map(lambda asked: _clip_media(asked[0].clip, modalities), group)
            rows = [row for asked, found in zip(group, made) for row in _rows(asked, *found, labels, modalities)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            done(len(group))
    os.replace(temporary, path)


def _row_groups(shard: Sequence[list[Question]]) -> Iterator[list[list[Question]]]:
    group: list[list[Question]] = []
    filled = 0
    for asked in shard:
        size = clip_bytes(asked[0].clip)
        if group and filled + size > ROW_GROUP_MB * 1e6:
            yield group
            group, filled = [], 0
        group.append(asked)
        filled += size
    if group:
        yield group


def _clip_media(clip: Clip, modalities: Sequence[str]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """A clip's sound and its picture or film, as the shards hold them; None where no modality needs it."""
    sound = _medium(*sound_of(clip)) if set(modalities) & {"audio", "av"} else None
    picture = _medium(*picture_of(clip)) if set(modalities) & {"visual", "av"} else None
    return sound, picture


def _rows(asked: Sequence[Question], sound, picture, labels: Sequence[str], modalities: Sequence[str]):
    """The items of one clip; each carries what its modality may see, and nothing else."""
    clip = asked[0].clip
    for question in asked:
        for modality in modalities:
            row = {
                "id": f"{clip.id}-{question.aspect}-{modality}",
                "clip_id": clip.id,
                "modality": modality,
                "aspect": question.aspect,
                "question": question.text,
                "options": list(question.options),
                "answer": question.answer,
                "audio": sound if modality != "visual" else None,
                "image": picture if modality != "audio" and clip.visual == "image" else None,
                "video": picture if modality != "audio" and clip.visual == "video" else None,
                "valence": clip.valence,
                "arousal": clip.arousal,
                "art_form": clip.art_form,
                "license": clip.license,
                "source": clip.source,
            }
            if labels:
                votes = question.distribution
                row["emotion_distribution"] = {label: votes.get(label) for label in labels} if votes else None
            yield row


def _medium(content: bytes, suffix: str) -> dict[str, Any]:
    return {"bytes": content, "path": f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"}


def _clips(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions of one clip together; they stand beside one another."""
    asked: list[Question] = []
    for question in questions:
        if asked and asked[0].clip is not question.clip:
            yield asked
            asked = []
        asked.append(question)
    if asked:
        yield asked


def check_ids(questions: Sequence[Question]) -> None:
    """No two items may get one id: clip "a-content" and clip "a" could.

    Raises:
        InputError: naming both clips.
    """
    seen: dict[str, str] = {}
    for question in questions:
        for modality in MODALITIES:
            item = f"{question.clip.id}-{question.aspect}-{modality}"
            if seen.setdefault(item, question.clip.id) != question.clip.id:
                raise InputError(
                    f"the clips {seen[item]!r} and {question.clip.id!r} would both get the item {item!r}; rename one."
                )
