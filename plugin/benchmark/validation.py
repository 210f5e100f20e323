"""The benchmark as a whole: read row by row, its media measured once a file, and every finding reported."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..data.manifest import read_manifest
from ..utils import InputError
from . import fingerprints, item_checks, media_checks, schema
from .findings import Report
from .media_checks import Facts, Medium

# Splits of a manifest that models see before they are tested.
TRAINING_SPLITS = ("train", "validation")
# Sound and film of one clip may differ by this, and by a tenth of the longer.
LENGTHS_S = 0.5
THRESHOLDS = {
    "silence_peak_dbfs": media_checks.SILENCE_DBFS,
    "quiet_dbfs": media_checks.QUIET_DBFS,
    "quiet_share": media_checks.QUIET_SHARE,
    "loudness_lufs": media_checks.LOUDNESS_LUFS,
    "loudness_measure": "integrated loudness, ITU-R BS.1770-4, mono, 16 kHz",
    "clipped_share": media_checks.CLIPPED_SHARE,
    "min_sound_s": media_checks.MIN_SOUND_S,
    "min_side_px": media_checks.MIN_SIDE_PX,
    "black_luma": media_checks.BLACK_LUMA,
    "black_share": media_checks.BLACK_SHARE,
    "duplicate_agreement": {"picture": fingerprints.PICTURE_AGREEMENT, "sound": fingerprints.SOUND_AGREEMENT},
}


def validate(
    folder: str | Path,
    media: bool = True,
    against: str | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Checks a benchmark as a whole.

    Args:
        folder: a benchmark folder, of plain files or of parquet shards.
        media: decode and measure the media as well, each file once.
        against: a manifest, whose train and validation clips must not be in the benchmark, or another benchmark.
        workers: threads that decode (default: one a core, eight at most). What each holds is one clip.
        progress: show a bar.

    Raises:
        InputError: the folder or `against` cannot be read at all; a bad item is a finding instead.
    """
    if against is not None and not media:
        raise InputError("--against compares media, and --no-media leaves them out; give one of the two.")
    folder, info = schema.open_folder(folder)
    report = Report(str(info.get("name") or folder.name), str(folder))
    others = _media_against(against) if against is not None else {}
    items = _read_items(folder, info, report)
    report.items, report.clips = len(items), len({item.clip_id for item in items})
    item_checks.check_items(items, report)
    if media and items:
        report.thresholds |= THRESHOLDS
        _check_media(items, others, against or "", report, workers, progress)
    return report


def _read_items(folder: Path, info: Mapping, report: Report) -> list[schema.Item]:
    """The items that can be read; the others become findings."""
    items: list[schema.Item] = []
    seen: dict[str, int] = {}
    rows = 0
    for number, row in schema.enumerate_rows(folder):
        rows += 1
        try:
            if isinstance(row, InputError):
                raise row
            item = schema.parse_item(row, folder, schema.where_of(folder, number), info.get("art_forms"))
            schema.check_new_id(item, number, seen, folder)
        except InputError as error:
            found = row.get("id") if isinstance(row, dict) else None
            report.add("error", "schema", str(error), [str(found)] if found is not None else [])
        else:
            items.append(item)
    if not rows:
        report.add("error", "schema", f"{folder / schema.ITEMS_FILE} holds no item.")
    return items


def _check_media(items, others, against: str, report: Report, workers: int | None, progress: bool) -> None:
    users: dict[Medium, list[schema.Item]] = defaultdict(list)
    for item in items:
        for column in schema.MEDIA:
            if path := getattr(item, column):
                users[Medium(column, path)].append(item)
    every = [*users, *(medium for medium in others if medium not in users)]
    facts = dict(zip(every, _measure_all(every, workers, progress)))
    for medium, members in users.items():
        _report_medium(medium, facts[medium], members, report)
    for medium in others:
        if facts[medium].error:
            report.add("warning", "against", f"{others[medium]} cannot be compared: {facts[medium].error}")
    _check_tracks(users, facts, report)
    _check_lengths(items, facts, report)
    _check_duplicates(users, facts, report)
    if others:
        _check_against(users, others, facts, against, report)
    loudness = [value for medium in users if (value := facts[medium].loudness_lufs) is not None]
    seconds = [facts[medium].duration_s for medium in users if medium.kind == "audio" and facts[medium].duration_s]
    report.measures["media"] = {
        "files": len(users),
        "loudness_lufs_quartiles": _quartiles(loudness),
        "sound_s_quartiles": _quartiles(seconds),
    }


def _measure_all(media: Sequence[Medium], workers: int | None, progress: bool) -> list[Facts]:
    """Threads suffice: decoders, FFT and matrix products let others run meanwhile."""
    from tqdm import tqdm

    workers = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(media_checks.measure, media)
        return list(tqdm(found, total=len(media), desc="media", unit="file", disable=not progress))


def _report_medium(medium: Medium, facts: Facts, members: Sequence[schema.Item], report: Report) -> None:
    ids = [item.id for item in members]
    where = f"clip {members[0].clip_id!r}, {medium.kind}"
    if facts.error:
        report.add("error", "decode", f"{where}: {facts.error}", ids)
    for level, check, found in facts.problems:
        report.add(level, check, f"{where}: {found}", ids)


def _check_tracks(users: Mapping[Medium, list[schema.Item]], facts, report: Report) -> None:
    """A film with sound in a visual-only item, or as an audio-only item's sound; with both senses it tells nothing."""
    for kind, other, modality in (("audio", "film", "audio"), ("video", "sound", "visual")):
        found = {m: [item.id for item in users[m] if item.modality == modality] for m in users if m.kind == kind}
        ids = [item for medium, members in found.items() if facts[medium].other_track for item in members]
        if ids:
            report.add(
                "warning",
                "tracks",
                f"files of {len(ids)} {modality} items also hold {other}, which some adapters take; `benchmark build` "
                "leaves it out",
                ids,
            )


def _check_lengths(items: Sequence[schema.Item], facts: Mapping[Medium, Facts], report: Report) -> None:
    for item in items:
        if item.audio and item.video:
            heard = facts[Medium("audio", item.audio)].duration_s
            seen = facts[Medium("video", item.video)].duration_s
            if heard and seen and abs(heard - seen) > max(LENGTHS_S, 0.1 * max(heard, seen)):
                found = f"clip {item.clip_id!r}: {heard:.2f} s of sound and {seen:.2f} s of film"
                report.add("warning", "duration", found, [item.id])


def _check_duplicates(users: Mapping[Medium, list[schema.Item]], facts, report: Report) -> None:
    """Two clips with the same sound and the same picture are one clip; with one of them, they share what tells it."""
    shared: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    same: dict[tuple[str, str], set[str]] = defaultdict(set)  # the very same bytes, silence and all
    for medium, members in users.items():
        same[medium.group, facts[medium].digest or str(medium)] |= {item.clip_id for item in members}
    for (group, _), members_of in same.items():
        clips = sorted(members_of)
        for first, second in zip(clips, clips[1:]):
            shared[first, second][group] = 1.0
    media = list(users)
    for i, j, agreement in _matches(media, media, facts):
        if i < j:
            for first in {item.clip_id for item in users[media[i]]}:
                for second in {item.clip_id for item in users[media[j]]} - {first}:
                    pair = (first, second) if first < second else (second, first)
                    shared[pair].setdefault(media[i].group, agreement)
    if not shared:
        return
    groups: dict[str, set[str]] = defaultdict(set)
    ids: dict[str, list[str]] = defaultdict(list)
    for medium, members in users.items():
        for item in members:
            groups[item.clip_id].add(medium.group)
            ids[item.clip_id].append(item.id)
    for (first, second), found in sorted(shared.items()):
        whole = found.keys() == groups[first] == groups[second]
        how = " and ".join(f"{group} (agreement {agreement:.2f})" for group, agreement in sorted(found.items()))
        named = list(dict.fromkeys([*ids[first], *ids[second]]))
        report.add("error" if whole else "warning", "duplicate", f"clips {first!r} and {second!r}: same {how}", named)


def _check_against(users, others: Mapping[Medium, str], facts, against: str, report: Report) -> None:
    ours, theirs = list(users), list(others)
    digests = {facts[medium].digest: name for medium, name in others.items() if facts[medium].digest}
    found = {(medium, digests[facts[medium].digest]): 1.0 for medium in ours if facts[medium].digest in digests}
    for i, j, agreement in _matches(ours, theirs, facts):
        found.setdefault((ours[i], others[theirs[j]]), agreement)
    for (medium, name), agreement in found.items():
        members = users[medium]
        report.add(
            "error",
            "against",
            f"clip {members[0].clip_id!r}, {medium.kind}: also in {against} as {name} (agreement {agreement:.2f})",
            [item.id for item in members],
        )


def _matches(first: Sequence[Medium], second: Sequence[Medium], facts: Mapping[Medium, Facts]):
    """(index in first, index in second, agreement) of media of one kind whose fingerprints match."""
    picture = fingerprints.PICTURE_AGREEMENT
    for kind, least, places in (
        ("audio", fingerprints.SOUND_AGREEMENT, fingerprints.SOUND_PLACES),
        ("image", picture, fingerprints.PICTURE_PLACES),
        ("video", picture, fingerprints.PICTURE_PLACES * media_checks.FRAMES // 2),
    ):
        rows = [[i for i, m in enumerate(group) if m.kind == kind and _printed(facts[m])] for group in (first, second)]
        if not all(rows):
            continue
        left, right = ([group[i] for i in found] for group, found in zip((first, second), rows))
        ours, theirs = (np.stack([facts[medium].fingerprint for medium in side]) for side in (left, right))
        for a, b, agreement in fingerprints.matching_pairs(ours, theirs, least, places):
            if _lengths_fit(facts[left[a]].duration_s, facts[right[b]].duration_s):
                yield rows[0][a], rows[1][b], agreement


def _printed(facts: Facts) -> bool:
    return facts.fingerprint is not None and bool(facts.fingerprint.any())


def _lengths_fit(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return True
    allowed = max(fingerprints.SOUND_LENGTH_S, (fingerprints.SOUND_LENGTH_RATIO - 1) * max(first, second))
    return abs(first - second) <= allowed


def _media_against(against: str) -> dict[Medium, str]:
    """Media of a manifest's training splits, or of another benchmark, and what reports call each."""
    path = Path(against).expanduser()
    media: dict[Medium, str] = {}
    if path.is_dir():
        for item in schema.load(path).items:
            for column in schema.MEDIA:
                if source := getattr(item, column):
                    media.setdefault(Medium(column, source), f"clip {item.clip_id!r}")
        return media
    for clip in read_manifest(path):
        if clip.split not in TRAINING_SPLITS:
            continue
        for column in schema.MEDIA:
            if (source := getattr(clip, column)) is not None:
                part = (None, None) if column == "image" else (clip.start_s, clip.end_s)
                media.setdefault(Medium(column, source, *part), f"{clip.split} clip {clip.id!r}")
    if not media:
        raise InputError(f"{path} holds no clip of the splits {', '.join(TRAINING_SPLITS)} to compare with.")
    return media


def _quartiles(values: Sequence[float]) -> list[float] | None:
    if not values:
        return None
    found: list[float] = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return [round(value, 3) for value in found]
