"""`vaemotionllm benchmark build`: manifest to questions to parquet shards, benchmark.json and a data set card.

Same manifest content, media and config: same bytes, whatever the machine's folders and the number of workers. A build
that was stopped resumes at the first shard that is missing.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import jinja2
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import yaml
from filelock import FileLock
from tqdm import tqdm

from ..data.manifest import MEDIA_FIELDS, Clip, Media, read_manifest
from ..model.media import Tracks, end_of_track_s, iter_frames, load_audio, load_video, open_av, tracks_of
from ..model.media_images import load_image
from ..utils import InputError, atomic_file, check_new, read_json, sha256_of_file
from .questions import BuildConfig, Positions, Question, make_questions
from .schema import FORMAT, INFO_FILE, MEDIA, WORKERS, sha256_of_medium, suffix_of

# Raise it when the same questions give other bytes than before.
WRITING = 1
# Media of the clips in a row group, 1e6 bytes. One group is in memory.
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


def build(config: BuildConfig) -> dict[str, Any]:
    """Builds a benchmark; the folder gets its name when all of it is there.

    Returns:
        The content of its benchmark.json.

    Raises:
        InputError: naming the clip or the field, and the remedy; `out` holds something else.
    """
    out = Path(config.out).expanduser().absolute()
    need = [name for name, other in (("audio", "visual"), ("visual", "audio")) if set(config.modalities) - {other}]
    clips = read_manifest(config.manifest, split=config.split, need=need)
    media = list(dict.fromkeys(m for clip in clips for f in MEDIA_FIELDS if (m := getattr(clip, f)) is not None))
    with ThreadPoolExecutor(WORKERS) as pool:
        hashes = dict(zip(media, pool.map(sha256_of_medium, media)))
    clips, dropped = _without_duplicates(clips, hashes, config)
    questions, counts, positions = make_questions(clips, config)
    counts += dropped
    key = _key(questions, hashes, config)
    info = _info(questions, counts, positions, config, key)
    labels = sorted({label for question in questions for label in question.distribution or ()})
    shards = _groups([list(found) for _, found in groupby(questions, lambda q: q.clip.id)], config.shard_mb)
    names = [f"data/test-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        built = (out / INFO_FILE).is_file() and read_json(out / INFO_FILE, "about the benchmark")
        if not built or built.get("build_key") != key:
            check_new(out, "out")
            partial = out.with_name(f".{out.name}.{key}.partial")
            for stale in out.parent.glob(f".{out.name}.{'?' * 16}.partial"):
                if stale != partial:  # of a stopped build of other questions
                    shutil.rmtree(stale)
            (partial / "data").mkdir(parents=True, exist_ok=True)
            for name, shard in zip(names, tqdm(shards, desc="benchmark", unit="shard")):
                if not (partial / name).is_file():  # what is there is complete
                    _write_shard(shard, partial / name, labels, config.modalities)
            info["shards"] = {name: sha256_of_file(partial / name) for name in names}
            # The order of the fields is for readers, and part of the bytes.
            texts = {"README.md": card(info), INFO_FILE: json.dumps(info, indent=2, ensure_ascii=False) + "\n"}
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8", newline="\n")
            for leftover in partial.rglob("*.tmp"):  # of a build that was killed
                leftover.unlink()
            os.replace(partial, out)
    return read_json(out / INFO_FILE, "about the benchmark")


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


def _key(questions: Sequence[Question], hashes: dict[Media, str], config: BuildConfig) -> str:
    """Stands for everything that the bytes depend on, the writing libraries' versions among it."""
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
        # Only where every clip has one.
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
    tracks, whole = _track(clip.audio, "audio", clip, name)
    rate_hz, part = tracks.rate_hz, {} if whole else {"start_s": clip.start_s, "end_s": clip.end_s}
    # Decoded in any case: what cannot be decoded must not be published.
    waveform = load_audio(clip.audio, sampling_rate=rate_hz, name=name, **part)
    if whole and tracks.alone:
        return _bytes_and_suffix(clip.audio)
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
    tracks, whole = _track(clip.video, "video", clip, name)
    part = (None, None) if whole else (clip.start_s, clip.end_s)
    load_video(clip.video, 2, *part, name=name)
    if whole and tracks.alone:
        return _bytes_and_suffix(clip.video)
    # Of a track that begins later than the file a copy would begin at once.
    video = _video_track(clip.video, name) if whole and tracks.video_start_s < END_TOLERANCE_S else None
    video = video or _coded_part(clip.video, part[0] or 0.0, part[1], tracks.frame_rate, name)
    load_video(video, 2, name=f"{name}, copied")
    return video, ".mp4"


def _bytes_and_suffix(source: Media) -> tuple[bytes, str]:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    return content, suffix_of(source, content)


def _track(source: Media, kind: str, clip: Clip, name: str) -> tuple[Tracks, bool]:
    """What the file holds, and whether the clip is the whole of it."""
    tracks = tracks_of(source, name)
    if not getattr(tracks, kind) and not (kind == "video" and tracks.animated):
        raise InputError(f"{name}: the file has no {kind} track. Leave the field empty, or give another file.")
    ends = clip.end_s is None or (
        not tracks.image and clip.end_s >= (end_of_track_s(source, kind, name) or 0.0) - END_TOLERANCE_S
    )
    return tracks, not clip.start_s and ends


def _video_track(source: Media, name: str) -> bytes | None:
    """The video track in an mp4, not coded again; None where mp4 does not take its codec."""
    buffer = io.BytesIO()
    try:
        with open_av(source, name) as old, av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as new:
            track = old.streams.video[0]
            copy = new.add_stream_from_template(track)
            for packet in old.demux(track):
                if packet.dts is not None:
                    packet.stream = copy
                    new.mux(packet)
    except (av.error.FFmpegError, ValueError):
        return None
    return buffer.getvalue()


def _coded_part(source: Media, start_s: float, end_s: float | None, rate: Fraction | None, name: str) -> bytes:
    """The frames shown from `start_s` to `end_s`, coded again with their times; an odd last row or column is cut."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as new:
        video = None
        for time_s, pixels in iter_frames(source, start_s, end_s, name):
            height, width = (side - side % 2 for side in pixels.shape[:2])
            if video is None:
                video = new.add_stream("libx264", rate=rate or 25, options=VIDEO_OPTIONS)
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                video.codec_context.time_base = Fraction(1, _TICKS_HZ)
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            shown.pts, shown.time_base = round(time_s * _TICKS_HZ), Fraction(1, _TICKS_HZ)
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


def _groups(clips: Sequence[list[Question]], most_mb: float) -> list[list[list[Question]]]:
    """Groups of clips, each a list of its questions, in their order: up to `most_mb` of media, one clip at least."""
    groups: list[list[list[Question]]] = []
    filled = 0
    for questions in clips:
        media = [medium for name in MEDIA_FIELDS if (medium := getattr(questions[0].clip, name)) is not None]
        size = sum(len(medium) if isinstance(medium, bytes) else os.path.getsize(medium) for medium in media)
        if not groups or filled + size > most_mb * 1e6:
            groups.append([])
            filled = 0
        groups[-1].append(questions)
        filled += size
    return groups


def _write_shard(
    shard: Sequence[list[Question]], path: Path, labels: Sequence[str], modalities: Sequence[str]
) -> None:
    """One parquet file of clips of questions; `labels` are those of the distributions."""
    schema = features(labels).arrow_schema
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        atomic_file(path) as temporary,
        pyarrow.parquet.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[f"{column}.bytes" for column in MEDIA],
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            write_statistics=False,
        ) as writer,
    ):
        for group in _groups(shard, ROW_GROUP_MB):
            media = pool.map(lambda questions: _media(questions[0].clip, modalities), group)
            rows = [row for questions, found in zip(group, media) for row in _rows(questions, found, modalities)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _media(clip: Clip, modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{column: {"bytes", "path"}} of a clip's media that a modality needs, as the shards hold them."""
    found = {}
    if set(modalities) - {"visual"}:
        found["audio"] = audio_of(clip)
    if set(modalities) - {"audio"}:
        found[str(clip.visual)] = visual_of(clip)
    return {
        column: {"bytes": content, "path": f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"}
        for column, (content, suffix) in found.items()
    }


def _rows(
    questions: Sequence[Question], media: Mapping[str, dict[str, Any]], modalities: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The items of one clip; each carries the media of its modality, and nothing else. Absent columns are null."""
    for question in questions:
        clip = question.clip
        for modality in modalities:
            yield {
                "id": f"{clip.id}-{question.aspect}-{modality}",
                "clip_id": clip.id,
                "modality": modality,
                "aspect": question.aspect,
                "question": question.text,
                "options": list(question.options),
                "answer": question.answer,
                **{c: m for c, m in media.items() if modality == "av" or (c == "audio") == (modality == "audio")},
                "emotion_distribution": question.distribution,
                **{name: getattr(clip, name) for name in _KEPT[1:]},
            }


# ---- data set card

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Identifiers of licences that the Hub knows and that manifests are likely to name; others are "other" with a name.
_HUB_LICENCES = frozenset(
    "apache-2.0 mit cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 odbl pddl".split()
)


def card(info: Mapping[str, Any]) -> str:
    """README.md of a benchmark, from the content of its benchmark.json; YAML front matter for the Hub."""
    licence, *others = sorted(info["licenses"])
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
    text = Path(__file__).with_name("benchmark_card.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return template.render(info, front=front)
