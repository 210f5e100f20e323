"""`vaemotionllm benchmark build`: manifest to questions to parquet shards, benchmark.json and a data set card.

Same manifest content, media and config: same bytes, whatever the machine's folders and the number of workers. A build
that was stopped resumes at the first shard that is missing.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.manifest import MEDIA_FIELDS, Clip, Media, read_manifest
from ..model.media import load_audio, load_image, load_video, open_av
from ..utils import InputError, atomic_file
from .questions import BuildConfig, Positions, Question, make_questions
from .schema import FORMAT, INFO_FILE, MEDIA, sha256_of_medium, suffix_of

logger = logging.getLogger(__name__)

# Raise it when the same questions give other bytes than before.
WRITING = 1
# Media of the clips in a row group, 1e6 bytes. Two groups are in memory: one is written, the next is decoded.
ROW_GROUP_MB = 8.0
# A dictionary holds each medium of a row group once, however many items show it.
DICTIONARY_BYTES = 1 << 30
# A part that ends this near to the end of the file is the whole file.
END_TOLERANCE_S = 0.05
# Near to lossless; one thread, because x264's bytes depend on their number.
VIDEO_OPTIONS = {"crf": "16", "preset": "medium", "threads": "1"}
_TICKS_HZ = 90_000
# Fields of a clip that its items carry.
_KEPT = ("id", "valence", "arousal", "art_form", "license", "source")

Encoded = dict[str, Any]
"""A medium as the shards hold it: {"bytes", "path"}."""


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
    questions, counts, positions = make_questions(clips, config)
    counts += dropped
    _check_ids(questions, config.modalities)
    key = _key(questions, hashes, config)
    info = _info(questions, counts, positions, config, key)
    labels = sorted({label for question in questions for label in question.distribution or ()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        if not _is_built(out, key):
            partial = out.with_name(f".{out.name}.{key}.partial")
            _remove_stale(out, partial)
            shards = plan_shards(questions, config.shard_mb)
            with tqdm(total=sum(map(len, shards)), desc="benchmark", unit="clip", disable=not progress) as bar:
                paths = write_shards(shards, partial, labels, config.modalities, workers, bar.update)
            info["shards"] = {f"data/{path.name}": sha256_of_medium(str(path)) for path in paths}
            _write(partial / "README.md", card(info))
            # The order of the fields is for readers, and part of the bytes.
            _write(partial / INFO_FILE, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
            for leftover in partial.rglob("*.tmp"):  # of a build that was killed
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
        found = pool.map(sha256_of_medium, media)
        return dict(zip(media, tqdm(found, total=len(media), desc="hashing", unit="file", disable=not progress)))


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
                "duplicates=drop to keep the first. (`benchmark validate` also finds copies that were coded again.)"
            )
        else:
            counts["duplicates_dropped"] += 1
    return kept, counts


def _check_ids(questions: Sequence[Question], modalities: Sequence[str]) -> None:
    """No two items may get one id: clip "a-content" and clip "a" could.

    Raises:
        InputError: naming both clips.
    """
    clips: dict[str, str] = {}
    for question in questions:
        for modality in modalities:
            item = _item_id(question, modality)
            if clips.setdefault(item, question.clip.id) != question.clip.id:
                raise InputError(
                    f"the clips {clips[item]!r} and {question.clip.id!r} would both get the item {item!r}; rename one."
                )


def _item_id(question: Question, modality: str) -> str:
    return f"{question.clip.id}-{question.aspect}-{modality}"


def _key(questions: Sequence[Question], hashes: dict[Media, str], config: BuildConfig) -> str:
    """Stands for everything that the bytes depend on, the writing libraries' versions among it."""
    import av
    import pyarrow
    import soundfile

    versions = [FORMAT, WRITING, pyarrow.__version__, av.__version__, soundfile.__libsndfile_version__]
    digest = hashlib.sha256(json.dumps([versions, config.rules()], sort_keys=True).encode())
    for question in questions:
        content = [question.aspect, question.text, question.options, question.answer, question.distribution]
        labels = [getattr(question.clip, name) for name in _KEPT]
        digest.update(json.dumps([content, labels, _same_media(question.clip, hashes)], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _info(questions: Sequence[Question], counts: Counter, positions: Positions, config: BuildConfig, key: str) -> dict:
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
        "emotion_positions": {label: [round(v, 6), round(a, 6)] for label, (v, a) in positions.items()},
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
    """Folders that stopped builds of other questions have left."""
    for path in out.parent.glob(f".{out.name}.{'?' * 16}.partial"):
        if path != partial:
            logger.info("Removing %s: it was begun for other questions.", path)
            shutil.rmtree(path)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


# ---- media: audio without images, an image or video without audio
#
# A model that gets audio alone must not get a video, and one that gets a video alone no audio track. What is already
# so, and is used whole, is embedded as it is; the rest is copied without the other tracks, or coded again where only a
# part is used.


def audio_of(clip: Clip) -> tuple[bytes, str]:
    """A clip's audio as (bytes of a file, suffix): the file itself, or 16-bit mono FLAC at the file's rate.

    Raises:
        InputError: it cannot be decoded; the clip is named.
    """
    assert clip.audio is not None
    name = f"clip {clip.id!r}, audio"
    rate_hz, whole, alone = _track(clip.audio, "audio", clip, name)
    part = {} if whole else {"start_s": clip.start_s, "end_s": clip.end_s}
    # Decoded in any case: what cannot be decoded must not be published.
    waveform = load_audio(clip.audio, sampling_rate=rate_hz, name=name, **part)
    if whole and alone:
        return _bytes_and_suffix(clip.audio)
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), ".flac"


def visual_of(clip: Clip) -> tuple[bytes, str]:
    """A clip's image or video as (bytes of a file, suffix): the file itself, its video track, or H.264 of a part.

    Raises:
        InputError: it cannot be decoded; the clip is named.
    """
    name = f"clip {clip.id!r}, {clip.visual}"
    if clip.image is not None:
        load_image(clip.image, name=name)
        return _bytes_and_suffix(clip.image)
    assert clip.video is not None
    _, whole, alone = _track(clip.video, "video", clip, name)
    part = (None, None) if whole else (clip.start_s, clip.end_s)
    load_video(clip.video, 2, *part, name=name)
    if whole and alone:
        return _bytes_and_suffix(clip.video)
    video = (_video_track(clip.video) if whole else None) or _coded_part(clip.video, part[0] or 0.0, part[1])
    load_video(video, 2, name=f"{name}, copied")
    return video, ".mp4"


def _bytes_and_suffix(source: Media) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, suffix_of(None, source)
    content = Path(source).read_bytes()
    return content, suffix_of(source, content)


def _track(source: Media, kind: str, clip: Clip, name: str) -> tuple[int, bool, bool]:
    """Sampling rate (of audio), whether the clip is the whole file, whether the file holds no other track."""
    import av

    try:
        with open_av(source) as container:
            streams = [stream for stream in container.streams if stream.type == kind]
            if not streams:
                raise InputError(f"{name}: the file has no {kind} track. Leave the field empty, or give another file.")
            length_s = container.duration / 1e6 if container.duration else None
            rate_hz = streams[0].rate if kind == "audio" else 0
            alone = len(container.streams) == len(streams) == 1
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{name}: cannot decode the file ({error}). The file is corrupt or truncated.") from error
    ends = clip.end_s is None or (length_s is not None and clip.end_s >= length_s - END_TOLERANCE_S)
    return rate_hz, not clip.start_s and ends, alone


def _video_track(source: Media) -> bytes | None:
    """The video track in an mp4, not coded again; None where mp4 does not take its codec."""
    import av

    buffer = io.BytesIO()
    try:
        with open_av(source) as old, av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as new:
            track = old.streams.video[0]
            copy = new.add_stream_from_template(track)
            for packet in old.demux(track):
                if packet.dts is not None:
                    packet.stream = copy
                    new.mux(packet)
    except (av.error.FFmpegError, ValueError):
        return None
    return buffer.getvalue()


def _coded_part(source: Media, start_s: float, end_s: float | None) -> bytes:
    """The frames from `start_s` to `end_s`, coded again with their times; an odd last row or column is cut."""
    import av

    buffer = io.BytesIO()
    with open_av(source) as old, av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as new:
        track = old.streams.video[0]
        video = None
        first_s = None
        for frame in old.decode(track):
            if frame.time is None:
                continue
            first_s = frame.time if first_s is None else first_s
            time_s = frame.time - first_s
            if time_s < start_s - 5e-4:
                continue
            if end_s is not None and time_s >= end_s - 5e-4:
                break
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90) % 4)
            height, width = (side - side % 2 for side in pixels.shape[:2])
            if video is None:
                video = new.add_stream("libx264", rate=track.average_rate or 25, options=VIDEO_OPTIONS)
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                video.codec_context.time_base = Fraction(1, _TICKS_HZ)
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            shown.pts, shown.time_base = round((time_s - start_s) * _TICKS_HZ), Fraction(1, _TICKS_HZ)
            new.mux(video.encode(shown))
        if video is not None:
            new.mux(video.encode(None))
    return buffer.getvalue()


# ---- parquet shards


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
    by_clip: dict[str, list[Question]] = {}
    for question in questions:
        by_clip.setdefault(question.clip.id, []).append(question)
    return list(_filled(by_clip.values(), shard_mb))


def _filled(clips: Iterable[list[Question]], most_mb: float) -> Iterator[list[list[Question]]]:
    """Groups of clips in their order, up to `most_mb` of media a group, one clip at least."""
    group: list[list[Question]] = []
    filled = 0
    for questions in clips:
        clip = questions[0].clip
        media = [medium for medium in (clip.audio, clip.image, clip.video) if medium is not None]
        size = sum(len(medium) if isinstance(medium, bytes) else os.path.getsize(medium) for medium in media)
        if group and filled + size > most_mb * 1e6:
            yield group
            group, filled = [], 0
        group.append(questions)
        filled += size
    if group:
        yield group


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
        workers: threads that decode and copy media.
        done: called with the number of clips after every row group.

    Raises:
        InputError: a medium cannot be decoded; the clip is named. Shards that were finished stay.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    paths = [folder / f"data/test-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))]
    pool = ThreadPoolExecutor(workers)
    try:
        for shard, path in zip(shards, paths):
            if path.is_file():
                done(len(shard))
            else:
                _write_shard(shard, path, labels, modalities, pool, done)
    finally:
        pool.shutdown(cancel_futures=True)
    return paths


def _write_shard(shard, path: Path, labels, modalities, pool: ThreadPoolExecutor, done) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = features(labels).arrow_schema
    groups = list(_filled(shard, ROW_GROUP_MB))
    with (
        atomic_file(path) as temporary,
        contextlib.closing(
            pyarrow.parquet.ParquetWriter(
                temporary,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[f"{column}.bytes" for column in MEDIA],
                dictionary_pagesize_limit=DICTIONARY_BYTES,
                write_statistics=False,
            )
        ) as writer,
    ):
        waiting = pool.map(lambda clip: _encode(clip[0].clip, modalities), groups[0])
        for group, following in zip(groups, [*groups[1:], []]):
            encoded = list(waiting)
            # Media of the next group are decoded while this one is written.
            waiting = pool.map(lambda clip: _encode(clip[0].clip, modalities), following)
            rows = [row for clip, media in zip(group, encoded) for row in _rows(clip, *media, labels, modalities)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            done(len(group))


def _encode(clip: Clip, modalities: Sequence[str]) -> tuple[Encoded | None, Encoded | None]:
    """A clip's audio and its image or video, as the shards hold them; None where no modality needs it."""

    def encoded(content: bytes, suffix: str) -> Encoded:
        return {"bytes": content, "path": f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"}

    audio = encoded(*audio_of(clip)) if set(modalities) & {"audio", "av"} else None
    visual = encoded(*visual_of(clip)) if set(modalities) & {"visual", "av"} else None
    return audio, visual


def _rows(questions: Sequence[Question], audio: Encoded | None, visual: Encoded | None, labels, modalities):
    """The items of one clip; each carries the media of its modality, and nothing else."""
    for question in questions:
        clip = question.clip
        for modality in modalities:
            row = {
                "id": _item_id(question, modality),
                "clip_id": clip.id,
                "modality": modality,
                "aspect": question.aspect,
                "question": question.text,
                "options": list(question.options),
                "answer": question.answer,
                "audio": audio if modality != "visual" else None,
                "image": visual if modality != "audio" and clip.visual == "image" else None,
                "video": visual if modality != "audio" and clip.visual == "video" else None,
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


# ---- data set card

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Identifiers of licences that the Hub knows and that manifests are likely to name; others are "other" with a name.
_HUB_LICENCES = frozenset(
    "apache-2.0 mit cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 odbl pddl".split()
)


def card(info: Mapping[str, Any]) -> str:
    """README.md of a benchmark, from the content of its benchmark.json; YAML front matter for the Hub."""
    rules, [licence, *others] = info["rules"], sorted(info["licenses"])
    known = not others and licence.lower() in _HUB_LICENCES
    matter = {
        "pretty_name": info["name"],
        **({"license": licence.lower()} if known else {"license": "other", "license_name": "per-clip"}),
        "task_categories": ["question-answering"],
        "tags": ["art", "emotion", "audio", "video", "image", "multiple-choice", "lmms-eval", "vaemotionllm"],
        "size_categories": [next((name for limit, name in _SIZES if info["items"] < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}],
    }
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    lines = [f"---\n{front}---", "", f"# {info['name']}", ""]
    lines += [info["description"], ""] if info["description"] else []
    lines += [
        f"{info['items']} multiple-choice items about {info['clips']} clips, version {info['version']}: "
        f"{' and '.join(rules['aspects'])} under {', '.join(rules['modalities'])}. Every clip has the same questions "
        "with the same options under each modality, so that modalities are compared in pairs. Audio files hold no "
        "video and videos no audio track; each item carries only the media of its modality.",
        "",
        "```bash",
        "export ARTEMO_DATASET=OWNER/NAME",
        "lmms-eval --model vaemotionllm --model_args pretrained=MODEL --tasks artemo --output_path scores",
        "```",
        "",
        "## Answers",
        "",
    ]
    for aspect, answers in info["answers"].items():
        lines += [f"| {aspect} | questions |", "| --- | ---: |"]
        lines += [f"| {_cell(answer)} | {count} |" for answer, count in answers.items()] + [""]
    if info["art_forms"]:
        lines += [f"Art forms: {', '.join(info['art_forms'])}.", ""]
    lines += ["## Rules", "", f"- {rules['options']} options; each position holds the answer equally often."]
    if "content" in rules["aspects"]:
        pool = "of the same art form" + (", or of all where it has too few" * (rules["content_pool"] == "widen"))
        lines.append(f"- Content: distractors are contents {pool}.")
    if "emotion" in rules["aspects"]:
        bands = ", ".join(f"{low:g} to {high:g}" for low, high in rules["emotion_distances"])
        lines += [
            f"- Emotion: one distractor from each band of distances in the valence-arousal space: {bands}. Where sets "
            "allow it, this holds whichever of the options is the answer, so that the rule does not give it away.",
            f"- A label that over {rules['max_vote_share']:.0%} of a clip's annotators chose is no distractor for it.",
            "- Where there are several annotators, the answer is the strongest emotion, and `emotion_distribution` "
            "keeps the shares.",
            "",
            "| emotion | valence | arousal |",
            "| --- | ---: | ---: |",
            *(f"| {_cell(k)} | {v:.3f} | {a:.3f} |" for k, (v, a) in info["emotion_positions"].items()),
        ]
    lines.append("")
    if info["counts"]:
        lines += ["Left out or widened:", ""]
        lines += [f"- {name.replace('_', ' ')}: {count}" for name, count in info["counts"].items()] + [""]
    lines += ["## Licences of the clips", ""]
    lines += [f"- {name}: {count} clips" for name, count in info["licenses"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
