"""`vaemotionllm benchmark build`: manifest to questions to parquet shards, benchmark.json and a data set card.

Same manifest content, media and config: same bytes, whatever the machine's folders and the number of workers. A build
that was stopped goes on at the first shard that is missing.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.manifest import MEDIA_FIELDS, Clip, Media, read_manifest
from ..utils import InputError
from .build_config import BuildConfig
from .card import card
from .media_checks import sha256_of
from .questions import Plane, Question, make_questions
from .schema import FORMAT, INFO_FILE
from .shards import WRITING, check_ids, plan_shards, write_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """folder: the finished benchmark. items, clips: how many. counts: what was left out or widened, by name."""

    folder: Path
    items: int
    clips: int
    shards: int
    counts: dict[str, int]


def build(config: BuildConfig, workers: int | None = None, progress: bool = False) -> Built:
    """Builds a benchmark; the folder gets its name when all of it is there.

    Args:
        workers: threads that decode and copy media (default: one a core, eight at most).

    Raises:
        InputError: naming the clip or the field, and the remedy; `out` holds something else.
    """
    from filelock import FileLock
    from tqdm import tqdm

    workers = workers or min(8, os.cpu_count() or 1)
    out = Path(config.out).expanduser().absolute()
    need = {"audio": ("audio",), "visual": ("visual",), "av": ("audio", "visual")}
    needs = sorted({name for modality in config.modalities for name in need[modality]})
    clips = read_manifest(config.manifest, split=config.split, need=needs)
    hashes = _hash_media(clips, workers, progress)
    clips, dropped = _without_duplicates(clips, hashes, config)
    questions, counts, plane = make_questions(clips, config)
    counts += dropped
    check_ids(questions)
    key = _key(questions, hashes, config)
    info = _info(questions, counts, plane, config, key)
    labels = sorted({label for question in questions for label in question.distribution or ()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        if not _is_built(out, key):
            partial = out.with_name(f".{out.name}.{key}.partial")
            _remove_stale(out, partial)
            shards = plan_shards(questions, config.shard_mb)
            bar = tqdm(total=sum(map(len, shards)), desc="benchmark", unit="clip", disable=not progress)
            with bar:
                paths = write_shards(shards, partial, labels, config.modalities, workers, bar.update)
            info["shards"] = {f"data/{path.name}": sha256_of(str(path)) for path in paths}
            _write(partial / "README.md", card(info))
            _write(partial / INFO_FILE, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
            for leftover in partial.glob("data/*.tmp"):
                leftover.unlink()
            if out.exists():
                out.rmdir()  # empty: checked by _is_built
            os.replace(partial, out)
    found = len(list(out.glob("data/*.parquet")))
    return Built(out, info["items"], info["clips"], found, dict(counts))


def _hash_media(clips: Sequence[Clip], workers: int, progress: bool) -> dict[Media, str]:
    """SHA-256 of every medium, each file read once."""
    from tqdm import tqdm

    media = list(dict.fromkeys(m for clip in clips for f in MEDIA_FIELDS if (m := getattr(clip, f)) is not None))
    with ThreadPoolExecutor(workers) as pool:
        found = tqdm(pool.map(sha256_of, media), total=len(media), desc="hashing", unit="file", disable=not progress)
        return dict(zip(media, found))


def _same_media(clip: Clip, hashes: dict[Media, str]) -> dict[str, Any]:
    """What a clip's media are, without the names of their files."""
    found: dict[str, Any] = {name: hashes.get(medium) for name in MEDIA_FIELDS if (medium := getattr(clip, name))}
    return found | {"start_s": clip.start_s or 0.0, "end_s": clip.end_s}


def _without_duplicates(
    clips: Sequence[Clip], hashes: dict[Media, str], config: BuildConfig
) -> tuple[list[Clip], Counter]:
    first: dict[str, Clip] = {}
    kept, counts = [], Counter[str]()
    for clip in clips:
        same = json.dumps(_same_media(clip, hashes), sort_keys=True)
        if same not in first:
            first[same] = clip
            kept.append(clip)
        elif config.duplicates == "refuse":
            raise InputError(
                f"clip {clip.id!r} holds the same media as clip {first[same].id!r}. Remove one, or set "
                "duplicates=drop to keep the first. (`benchmark validate` also finds copies that were coded anew.)"
            )
        else:
            counts["duplicates_dropped"] += 1
    return kept, counts


def _key(questions: Sequence[Question], hashes: dict[Media, str], config: BuildConfig) -> str:
    """Stands for everything that the bytes depend on, the writing libraries' versions among it."""
    import av
    import pyarrow
    import soundfile

    versions = [FORMAT, WRITING, pyarrow.__version__, av.__version__, soundfile.__libsndfile_version__]
    digest = hashlib.sha256(json.dumps([versions, config.rules()], sort_keys=True).encode())
    for question in questions:
        asked = [question.aspect, question.text, question.options, question.answer, question.distribution]
        labels = [getattr(question.clip, name) for name in _KEPT]
        digest.update(json.dumps([asked, labels, _same_media(question.clip, hashes)], sort_keys=True).encode())
    return digest.hexdigest()[:16]


_KEPT = ("id", "valence", "arousal", "art_form", "license", "source")


def _info(questions: Sequence[Question], counts: Counter, plane: Plane, config: BuildConfig, key: str) -> dict:
    clips = {question.clip.id: question.clip for question in questions}
    art_forms = sorted({clip.art_form for clip in clips.values() if clip.art_form})
    return {
        "format": FORMAT,
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "items": len(questions) * len(config.modalities),
        "clips": len(clips),
        # Declared only where every clip has one: then another is an error.
        "art_forms": art_forms if art_forms and all(clip.art_form for clip in clips.values()) else None,
        "answers": {
            aspect: dict(sorted(Counter(q.answer for q in questions if q.aspect == aspect).items()))
            for aspect in config.aspects
        },
        "emotion_positions": {label: [round(v, 6), round(a, 6)] for label, (v, a) in plane.items()},
        "licenses": dict(sorted(Counter(clip.license for clip in clips.values()).items())),
        "counts": dict(sorted(counts.items())),
        "rules": config.rules(),
        "build_key": key,
    }


def _is_built(out: Path, key: str) -> bool:
    """Whether `out` is this very benchmark; False where it is not there or empty."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / INFO_FILE).read_text(encoding="utf-8")).get("build_key")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != key:
        raise InputError(
            f"{out} exists and holds something else than this benchmark (build_key {found!r}, not {key!r}); name a "
            "new folder or remove it."
        )
    logger.info("%s is already built.", out)
    return True


def _remove_stale(out: Path, partial: Path) -> None:
    """What was left by stopped builds of other questions."""
    for path in out.parent.glob(f".{out.name}.{'?' * 16}.partial"):
        if path != partial:
            logger.info("Removing %s: it was begun for other questions.", path)
            shutil.rmtree(path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
