"""Validation of a whole benchmark: its rows, its questions and answers, and its media, each file measured once.

Every threshold is our choice and stands in the report. An issue is an error or a warning that names its items.
"""

import difflib
import functools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import Media, read_manifest
from ..model.inputs import MODALITIES
from ..model.media import SAMPLING_RATE_HZ, load_audio, load_image, load_video, open_av
from ..utils import InputError
from . import schema
from .questions import normalised
from .schema import Item

LEVELS = ("error", "warning")
# Item ids that a printed line names; the JSON names all.
SHOWN_ITEMS = 4
# Splits of a manifest that models are trained on before they are tested.
TRAINING_SPLITS = ("train", "validation")

# Below this the counts are no chance: a test of a benchmark's six cells errs once in 170 fair benchmarks.
P_VALUE = 0.001
# Fewest expected questions in a class for which a chi-square test means something.
MIN_EXPECTED = 5
SIMILAR_OPTIONS = 0.85

MIN_AUDIO_S = 0.5
# Audio and video of one clip may differ by this, and by a tenth of the longer.
LENGTHS_S = 0.5
# Peak, relative to full scale, below which audio is silent: a 16-bit file's last three bits.
SILENCE_DBFS = -78.0
# A piece of 50 ms whose RMS is below this counts as silent.
QUIET_DBFS = -60.0
QUIET_SHARE = 0.9
# Integrated loudness, ITU-R BS.1770-4, of the mono waveform at 16 kHz; torchaudio's filters are within 0.35 dB of it.
LOUDNESS_LUFS = (-45.0, -5.0)
CLIPPED_SHARE = 0.01
# Largest luma of a frame, of 255, that counts as black; 16 is the black of video.
BLACK_LUMA = 24
BLACK_SHARE = 0.5
MIN_SIDE_PX = 56
FRAMES = 8
_PIECE_S = 0.05
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Images: signs of the low frequencies of the cosine transform (Zauner 2010, "pHash"), finer than its usual 8 x 8.
IMAGE_SIDE_PX = 64
IMAGE_FREQUENCIES = 16
# Grey levels in the orthonormal transform. Coding noise of 2 levels a pixel gives coefficients of about 2.
IMAGE_FLOOR = 8.0
IMAGE_SIGNS = 24
# Colours are those of a grid of this side. Two images whose colours differ by more than this share of the stronger
# ones are two works; so are not two that are nearly grey.
COLOUR_SIDE = 8
COLOUR_SHARE = 0.5
COLOUR_FLOOR = 0.05
# Audio: signs of energy differences between bands and between times (Haitsma and Kalker 2002), over pieces that are a
# fixed share of the whole, so that waveforms can be compared without aligning them.
AUDIO_BANDS_HZ = (100.0, 4000.0)
AUDIO_BANDS = 24
AUDIO_PIECES = 64
AUDIO_FLOOR_DB = 1.5
AUDIO_SIGNS = 200
# A copy may be cut by an encoder's delay, not by more.
AUDIO_LENGTH_RATIO = 1.05
AUDIO_LENGTH_S = 0.15
# (agreeing - differing) / informative signs: 0.8 means that 90% of the signs agree.
IMAGE_AGREEMENT = 0.8
AUDIO_AGREEMENT = 0.6

ITEM_THRESHOLDS = {"p_value": P_VALUE, "min_expected": MIN_EXPECTED, "similar_options": SIMILAR_OPTIONS}
MEDIA_THRESHOLDS = {
    "silence_peak_dbfs": SILENCE_DBFS,
    "quiet_dbfs": QUIET_DBFS,
    "quiet_share": QUIET_SHARE,
    "loudness_lufs": LOUDNESS_LUFS,
    "loudness_measure": "integrated loudness, ITU-R BS.1770-4, mono, 16 kHz",
    "clipped_share": CLIPPED_SHARE,
    "min_audio_s": MIN_AUDIO_S,
    "min_side_px": MIN_SIDE_PX,
    "black_luma": BLACK_LUMA,
    "black_share": BLACK_SHARE,
    "duplicate_agreement": {"image": IMAGE_AGREEMENT, "video": IMAGE_AGREEMENT, "audio": AUDIO_AGREEMENT},
    "duplicate_colour_share": COLOUR_SHARE,
}


@dataclass(frozen=True)
class Issue:
    """level: "error" or "warning". check: which rule. items: the ids of the items that it is about, all of them."""

    level: str
    check: str
    message: str
    items: tuple[str, ...] = ()

    def line(self) -> str:
        shown = ", ".join(self.items[:SHOWN_ITEMS])
        more = len(self.items) - SHOWN_ITEMS
        where = f" [{shown}{f' and {more} more' if more > 0 else ''}]" if self.items else ""
        return f"{self.level}: {self.check}: {self.message}{where}"


@dataclass
class Report:
    """All issues of one benchmark. measures: numbers behind them. thresholds: the bounds that they were judged by."""

    name: str
    folder: str
    items: int = 0
    clips: int = 0
    issues: list[Issue] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)

    def add(self, level: str, check: str, message: str, items: Iterable[str] = ()) -> None:
        self.issues.append(Issue(level, check, message, tuple(items)))

    def error(self, check: str, message: str, items: Iterable[str] = ()) -> None:
        self.add("error", check, message, items)

    def warn(self, check: str, message: str, items: Iterable[str] = ()) -> None:
        self.add("warning", check, message, items)

    def count(self, level: str) -> int:
        return sum(issue.level == level for issue in self.issues)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"errors": self.count("error"), "warnings": self.count("warning")}

    def lines(self, per_check: int = 20) -> list[str]:
        """Text for people: errors first, of each check the first `per_check`, and how many more there are."""
        lines, counts = [], Counter[tuple[str, str]]()
        for issue in sorted(self.issues, key=lambda issue: LEVELS.index(issue.level)):
            counts[issue.level, issue.check] += 1
            if counts[issue.level, issue.check] <= per_check:
                lines.append(issue.line())
        return lines + [
            f"{level}: {check}: {count - per_check} more; --json FILE has them all"
            for (level, check), count in counts.items()
            if count > per_check
        ]


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
        workers: threads that decode (default: one a core, eight at most). Each holds one clip.
        progress: show a bar.

    Raises:
        InputError: the folder or `against` cannot be read at all; a bad item is an issue instead.
    """
    if against is not None and not media:
        raise InputError("--against compares media, and --no-media leaves them out; give one of the two.")
    folder, info = schema.open_folder(folder)
    report = Report(str(info.get("name") or folder.name), str(folder))
    others = _media_against(against) if against is not None else {}
    items: list[Item] = []
    empty = True
    for _, row, item in schema.read_items(folder, info):
        empty = False
        if isinstance(item, Item):
            items.append(item)
        else:
            found = row.get("id") if isinstance(row, dict) else None
            report.error("schema", str(item), [str(found)] if found is not None else [])
    if empty:
        report.error("schema", f"{folder / schema.ITEMS_FILE} holds no item.")
    report.items, report.clips = len(items), len({item.clip_id for item in items})
    check_items(items, report)
    if media and items:
        _check_media(items, others, against or "", report, workers, progress)
    return report


# ---- questions and answers: what a model could score without any medium, and unfair comparisons
#
# Counts are over questions, not items, where the three modalities have the same: counting them thrice would make
# chance look like a pattern.


def check_items(items: Sequence[Item], report: Report) -> None:
    """Adds the issues of `items` to the report, and the counts behind them to its measures."""
    report.thresholds |= ITEM_THRESHOLDS
    _check_licences(items, report)
    by_question = _questions(items)
    _check_modalities(by_question, report)
    _check_similar_options(items, report)
    _check_positions(items, report)
    by_aspect: dict[str, list[Item]] = defaultdict(list)
    for found in by_question.values():
        question = next(iter(found.values()))
        by_aspect[question.aspect].append(question)
    by_aspect = dict(sorted(by_aspect.items()))
    for check in (_check_implausible, _check_lengths, _check_guessing, _check_labels):
        check(by_aspect, report)


def _questions(items: Iterable[Item]) -> dict[tuple[str, str, int], dict[str, Item]]:
    """(clip, aspect, number) -> {modality: item}: the first item of a clip and aspect in each modality, then the next.

    By number and not by wording, which may suit the modality ("What do you hear?").
    """
    found: dict[tuple[str, str, int], dict[str, Item]] = defaultdict(dict)
    numbers: Counter[tuple[str, str, str]] = Counter()
    for item in items:
        number = numbers[item.clip_id, item.aspect, item.modality]
        numbers[item.clip_id, item.aspect, item.modality] += 1
        found[item.clip_id, item.aspect, number][item.modality] = item
    return found


def _check_licences(items: Sequence[Item], report: Report) -> None:
    missing: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if not item.license:
            missing[item.clip_id].append(item.id)
    for clip, ids in missing.items():
        report.error("licence", f"the clip {clip!r} has no licence", ids)
    report.measures["licences"] = dict(Counter(item.license for item in items if item.license))


def _check_modalities(by_question: Mapping[tuple[str, str, int], Mapping[str, Item]], report: Report) -> None:
    """The same questions with the same options about the same media under all three modalities."""
    for (clip, aspect, _), found in by_question.items():
        ids = [item.id for item in found.values()]
        if missing := [modality for modality in MODALITIES if modality not in found]:
            report.warn("modalities", f"the clip {clip!r} has no {aspect} item for {', '.join(missing)}", ids)
        for column in ("options", "answer", *schema.MEDIA):
            values = {getattr(item, column) for item in found.values()}
            if len(values - {None}) > 1:
                differ = "differ" if column == "options" else "differs"
                report.error("modalities", f"{column} of the clip {clip!r} ({aspect}) {differ} by modality", ids)


def _check_similar_options(items: Sequence[Item], report: Report) -> None:
    similarity = functools.lru_cache(maxsize=65_536)(
        lambda a, b: difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    )
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for item in items:
        options = sorted(item.options)
        for i, first in enumerate(options):
            for second in options[i + 1 :]:
                a, b = normalised(first), normalised(second)
                if a == b:
                    found["error", first, second].append(item.id)
                elif similarity(a, b) >= SIMILAR_OPTIONS:
                    found["warning", first, second].append(item.id)
    for (level, first, second), ids in found.items():
        how = "say the same" if level == "error" else "are nearly the same"
        report.add(level, "options", f"{first!r} and {second!r} {how}", ids)


def _check_positions(items: Sequence[Item], report: Report) -> None:
    """Each position holds the answer equally often in each cell: else a constant letter scores above chance."""
    cells: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        cells[f"{item.aspect} {item.modality}, {len(item.options)} options"].append(item)
    measured = report.measures["answer_positions"] = {}
    for cell, members in sorted(cells.items()):
        positions = [item.options.index(item.answer) for item in members]
        counts = [positions.count(position) for position in range(len(members[0].options))]
        p_value = _even(counts)
        measured[cell] = {"counts": counts, "p_value": p_value}
        if p_value is not None and p_value < P_VALUE:
            most = counts.index(max(counts))
            report.error(
                "positions",
                f"{cell}: the answer stands at {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[most]} in {counts[most]} of "
                f"{len(members)} items (counts {counts}, chi-square p = {p_value:.1g} < {P_VALUE:g}); shuffle options",
                [item.id for item, position in zip(members, positions) if position == most],
            )


def _check_implausible(by_aspect: Mapping[str, list[Item]], report: Report) -> None:
    """An option that is never an answer is known to be wrong to anyone who knows the benchmark's labels."""
    for aspect, members in by_aspect.items():
        answers = {normalised(item.answer) for item in members}
        never: dict[str, list[str]] = defaultdict(list)
        for item in members:
            for option in item.options:
                if normalised(option) not in answers:
                    never[option].append(item.id)
        for option, ids in sorted(never.items()):
            report.warn("plausibility", f"{aspect}: {option!r} is an option and never an answer anywhere", ids)


def _check_lengths(by_aspect: Mapping[str, list[Item]], report: Report) -> None:
    """The answer is the longest, or the shortest, option no more often than chance has it."""
    report.measures["answer_lengths"] = {}
    for aspect, members in by_aspect.items():
        for extreme, name in ((max, "longest"), (min, "shortest")):
            # Where two options share the extreme, length alone does not tell which one to take.
            lengths = [[len(option) for option in item.options] for item in members]
            alone = [item for item, found in zip(members, lengths) if found.count(extreme(found)) == 1]
            right = [item.id for item in alone if extreme(item.options, key=len) == item.answer]
            if alone:
                message = f"{aspect}: the {name} option is the answer in {len(right)} of {len(alone)} questions"
                _check_chance("answer_lengths", f"{aspect} {name}", len(right), alone, report, message, right)


def _check_guessing(by_aspect: Mapping[str, list[Item]], report: Report) -> None:
    """Nobody can guess a question's answer from its options and the other questions, without any clip.

    The guess is naive Bayes with each question left out in turn: how often an option is right where it is offered, and
    beside which others. A rule by which distractors are chosen can give the answer away in this manner.
    """
    report.measures["guessed_from_options"] = {}
    for aspect, members in by_aspect.items():
        right = round(_guessed(members))
        message = (
            f"{aspect}: {right} of {len(members)} answers can be guessed from the options and the other questions, "
            "without any clip"
        )
        _check_chance("guessed_from_options", aspect, right, members, report, message)


def _check_chance(
    measure: str,
    name: str,
    right: int,
    questions: Sequence[Item],
    report: Report,
    message: str,
    ids: Iterable[str] = (),
) -> None:
    """Notes how probable `right` answers or more are by chance (a one-sided binomial test); warns if they are not."""
    from scipy.stats import binomtest

    chance = sum(1 / len(item.options) for item in questions) / len(questions)
    p_value = float(binomtest(right, len(questions), chance, alternative="greater").pvalue)
    report.measures[measure][name] = {"answers": right, "of": len(questions), "chance": chance, "p_value": p_value}
    if p_value < P_VALUE:
        report.warn("plausibility", f"{message}, and by chance in {chance:.0%} (p = {p_value:.1g} < {P_VALUE:g})", ids)


def _guessed(members: Sequence[Item]) -> float:
    """Expected number of right guesses; among equally likely options each is guessed equally often."""
    offered = Counter(option for item in members for option in item.options)
    answers = Counter(item.answer for item in members)
    pairs = Counter((item.answer, option) for item in members for option in item.options)
    right = 0.0
    for item in members:
        scores = {}
        for option in item.options:
            own = option == item.answer  # this question is left out of every count
            times = answers[option] - own
            score = math.log((times + 1) / (offered[option] + 1))
            for other in item.options:
                if other != option:
                    score += math.log((pairs[option, other] - own + 1) / (times + len(offered)))
            scores[option] = score
        likeliest = [option for option, score in scores.items() if score >= max(scores.values()) - 1e-9]
        right += (item.answer in likeliest) / len(likeliest)
    return right


def _check_labels(by_aspect: Mapping[str, list[Item]], report: Report) -> None:
    """Within an art form no answer is much more frequent than the others: else the art form tells the answer."""
    measured = report.measures["answers_by_art_form"] = {}
    for aspect, members in by_aspect.items():
        by_form: dict[str, list[Item]] = defaultdict(list)
        for item in members:
            by_form[item.art_form or ""].append(item)
        for form, same in sorted(by_form.items()):
            counts = Counter(item.answer for item in same)
            where = f"{aspect}, {form or 'no art form'}"
            p_value = _even(list(counts.values()))
            measured[where] = {"counts": dict(counts.most_common()), "p_value": p_value}
            answer, most = counts.most_common(1)[0]
            alone = len(counts) == 1 and len(same) >= MIN_EXPECTED
            if alone or (p_value is not None and p_value < P_VALUE):
                how = "the only answer" if alone else f"chi-square p = {p_value:.1g} < {P_VALUE:g}"
                report.warn(
                    "labels",
                    f"{where}: {answer!r} is the answer to {most} of {len(same)} questions ({how})",
                    [item.id for item in same if item.answer == answer],
                )


def _even(counts: Sequence[int]) -> float | None:
    """p-value of Pearson's chi-square test of equal counts; None where too few are expected for it."""
    if len(counts) < 2 or sum(counts) / len(counts) < MIN_EXPECTED:
        return None
    from scipy.stats import chisquare

    return float(chisquare(list(counts)).pvalue)


# ---- what a file holds


@dataclass(frozen=True)
class Medium:
    """A file, or a part of it, and its kind: "audio", "image" or "video"."""

    kind: str
    source: Media
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of one medium.

    Args:
        duration_s: of audio or a video, None of an image.
        fingerprint: int8 (length,), see `image_fingerprint` and `audio_fingerprint`.
        colours: of an image or video, see `colours_of`.
        problems: (level, check, what was found), level "error" or "warning".
        error: why it cannot be decoded; nothing else was measured then.
        digest: of the file's bytes and the part that is used.
        other_track: an audio file also holds a video track, or a video file audio.
    """

    duration_s: float | None = None
    loudness_lufs: float | None = None
    fingerprint: np.ndarray | None = None
    colours: np.ndarray | None = None
    problems: tuple[tuple[str, str, str], ...] = ()
    error: str | None = None
    digest: str = ""
    other_track: bool = False


def measure(medium: Medium) -> Measured:
    """Decodes a medium as the models' processors do and measures it; never raises for a bad file."""
    try:
        measured = _measure_audio(medium) if medium.kind == "audio" else _measure_visual(medium)
    except InputError as error:
        return Measured(error=str(error))
    digest = f"{schema.sha256_of_medium(medium.source)} {medium.start_s} {medium.end_s}"
    return replace(measured, digest=digest, other_track=_other_track(medium))


def _other_track(medium: Medium) -> bool:
    import av

    if medium.kind == "image":
        return False
    other = "audio" if medium.kind == "video" else "video"
    try:
        with open_av(medium.source) as container:
            return any(stream.type == other for stream in container.streams)
    except (av.error.FFmpegError, OSError):  # what soundfile reads and FFmpeg does not is audio alone
        return False


def _measure_audio(medium: Medium) -> Measured:
    waveform = load_audio(medium.source, start_s=medium.start_s, end_s=medium.end_s)  # (samples,)
    duration_s = len(waveform) / SAMPLING_RATE_HZ
    peak = float(np.abs(waveform).max())
    if peak <= 10 ** (SILENCE_DBFS / 20):
        return Measured(duration_s, problems=(("error", "silence", f"no sample is above {SILENCE_DBFS:g} dBFS"),))
    problems = []
    if duration_s < MIN_AUDIO_S:
        problems.append(("warning", "duration", f"the audio is {duration_s:.2f} s long, under {MIN_AUDIO_S:g} s"))
    piece = round(_PIECE_S * SAMPLING_RATE_HZ)
    pieces = waveform[: len(waveform) // piece * piece].reshape(-1, piece)
    quiet = float((np.square(pieces).mean(axis=1) < 10 ** (QUIET_DBFS / 10)).mean()) if len(pieces) else 0.0
    if quiet > QUIET_SHARE:
        problems.append(("warning", "silence", f"{quiet:.0%} of the audio is below {QUIET_DBFS:g} dBFS"))
    clipped = float((np.abs(waveform) >= 0.999).mean())
    if clipped > CLIPPED_SHARE:
        problems.append(("warning", "loudness", f"{clipped:.0%} of the samples are at full scale"))
    loudness = _loudness_lufs(waveform)
    low, high = LOUDNESS_LUFS
    if loudness is not None and not low <= loudness <= high:
        problems.append(("warning", "loudness", f"{loudness:.1f} LUFS (BS.1770-4), outside {low:g} to {high:g} LUFS"))
    fingerprint = audio_fingerprint(waveform, SAMPLING_RATE_HZ)
    return Measured(duration_s, loudness, fingerprint, problems=tuple(problems))


def _loudness_lufs(waveform: np.ndarray) -> float | None:
    """Integrated loudness; None for what is shorter than one gating block of 0.4 s, or all below the gate."""
    if len(waveform) < 0.4 * SAMPLING_RATE_HZ:
        return None
    import torch
    from torchaudio.functional import loudness

    value = float(loudness(torch.from_numpy(waveform)[None], SAMPLING_RATE_HZ))
    return value if np.isfinite(value) else None


def _measure_visual(medium: Medium) -> Measured:
    problems = []
    duration_s = None
    if medium.kind == "image":
        frames = np.asarray(load_image(medium.source))[None]  # (1, H, W, 3)
    else:
        frames, metadata = load_video(medium.source, FRAMES, medium.start_s, medium.end_s)
        duration_s = metadata.duration_s
    height, width = frames.shape[1:3]
    if min(height, width) < MIN_SIDE_PX:
        problems.append(
            ("warning", "resolution", f"{width} x {height} px, the shorter side is under {MIN_SIDE_PX} px")
        )
    step = max(1, min(height, width) // 256)  # enough to tell black, at a fraction of the memory
    luma = frames[:, ::step, ::step] @ _LUMA  # (frames, H / step, W / step)
    # Not the very brightest point: a hot pixel of a sensor does not light an image.
    black = float((np.quantile(luma.reshape(len(luma), -1), 0.999, axis=1) <= BLACK_LUMA).mean())
    if black == 1:
        problems.append(("error", "black", "every frame that was checked is black"))
    elif black >= BLACK_SHARE:
        problems.append(("warning", "black", f"{black:.0%} of {len(frames)} frames are black"))
    return Measured(duration_s, None, image_fingerprint(frames), colours_of(frames), tuple(problems))


# ---- copies that were encoded again
#
# Fingerprints are vectors of +1, -1 and 0: signs of differences that survive coding, scaling and gain, and 0 where a
# difference is too small to survive. Two of them match where enough signs are informative in both and nearly all of
# these agree. `tests/benchmark/test_validate.py` has copies that must match, and others that must not.


def image_fingerprint(frames: np.ndarray) -> np.ndarray:
    """Signs of the low frequencies of brightness.

    Args:
        frames: uint8 (frames, height, width, 3); an image is one frame.

    Returns:
        int8 (frames * 255,), each +1, -1 or 0. A flat image gives zeros.
    """
    from PIL import Image
    from scipy.fft import dctn

    size = (IMAGE_SIDE_PX, IMAGE_SIDE_PX)
    small = [Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX) for frame in frames]
    levels = np.stack([np.asarray(image, np.float32) for image in small])  # (frames, side, side)
    low = dctn(levels, axes=(1, 2), norm="ortho")[:, :IMAGE_FREQUENCIES, :IMAGE_FREQUENCIES]
    waves = low.reshape(len(levels), -1)[:, 1:]  # the first is the mean, which brightness changes
    return (np.sign(waves) * (np.abs(waves) > IMAGE_FLOOR)).astype(np.int8).reshape(-1)


def colours_of(frames: np.ndarray) -> np.ndarray:
    """Red and blue beyond grey on a coarse grid, relative to the mean brightness, which a gain does not change.

    Args:
        frames: uint8 (frames, height, width, 3).

    Returns:
        float32 (frames * COLOUR_SIDE**2 * 2,); 0 is grey.
    """
    from PIL import Image

    size = (COLOUR_SIDE, COLOUR_SIDE)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.float32) for frame in frames]
    pixels = np.stack(small)  # (frames, side, side, 3)
    luma = pixels @ _LUMA
    return ((pixels[..., [0, 2]] - luma[..., None]) / max(float(luma.mean()), 1.0)).reshape(-1)


def same_colours(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two vectors of `colours_of` are of one work: one work in two colourings is two."""
    rms = lambda values: float(np.sqrt(np.mean(np.square(values))))
    return rms(first - second) <= max(COLOUR_FLOOR, COLOUR_SHARE * max(rms(first), rms(second)))


def audio_fingerprint(waveform: np.ndarray, rate_hz: int) -> np.ndarray:
    """Signs of how the difference of neighbouring bands changes from one piece of the waveform to the next.

    Args:
        waveform: float32 (samples,).
        rate_hz: its sampling rate, at least 8,000 Hz.

    Returns:
        int8 (63 * 24,), each +1, -1 or 0. Silence, and audio that never changes, gives zeros.
    """
    zeros: np.ndarray = np.zeros((AUDIO_PIECES - 1) * AUDIO_BANDS, np.int8)
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))  # 40 dB below the peak
    if not loud.size:
        return zeros
    waveform = waveform[loud[0] : loud[-1] + 1]  # an encoder's delay is silent
    if len(waveform) < 4 * AUDIO_PIECES:
        return zeros
    # Windows twice as long as the step between them: a small shift changes little.
    window = max(2 * len(waveform) // (AUDIO_PIECES + 1), 1)
    edges = np.geomspace(*AUDIO_BANDS_HZ, AUDIO_BANDS + 2)
    starts = np.linspace(0, len(waveform) - window, AUDIO_PIECES).astype(int)
    size = 1 << max(window - 1, 1).bit_length()
    shape: np.ndarray = np.hanning(window).astype(np.float32)
    limits = [int(np.searchsorted(np.fft.rfftfreq(size, 1 / rate_hz), edge)) for edge in edges]
    energy = np.empty((AUDIO_PIECES, AUDIO_BANDS + 1))
    for i, start in enumerate(starts):  # one at a time: the windows of long audio are large
        power = np.square(np.abs(np.fft.rfft(waveform[start : start + window] * shape, size)))
        energy[i] = [power[a : max(b, a + 1)].sum() for a, b in zip(limits, limits[1:])]
    level_db = 10 * np.log10(energy + 1e-6 * energy.max() + 1e-20)
    change_db = np.diff(np.diff(level_db, axis=1), axis=0)  # (pieces - 1, bands)
    return (np.sign(change_db) * (np.abs(change_db) > AUDIO_FLOOR_DB)).astype(np.int8).reshape(-1)


def matching_pairs(
    first: np.ndarray, second: np.ndarray, least: float, signs: int, rows: int = 512
) -> Iterator[tuple[int, int, float]]:
    """Pairs of matching fingerprints, in bounded memory.

    Args:
        first, second: int8 (n, length) and (m, length).
        least: agreement from which two match.
        signs: how many must be informative in both.
        rows: that are compared at once.

    Yields:
        (row of `first`, row of `second`, agreement, from `least` to 1).
    """
    for a in range(0, len(first), rows):
        left: np.ndarray = first[a : a + rows].astype(np.float32)
        for b in range(0, len(second), rows):
            right: np.ndarray = second[b : b + rows].astype(np.float32)
            informative = np.abs(left) @ np.abs(right).T  # (rows of left, rows of right)
            agreement = (left @ right.T) / np.maximum(informative, 1)
            for i, j in zip(*np.nonzero((agreement >= least) & (informative >= signs))):
                yield a + int(i), b + int(j), float(agreement[i, j])


def _matches(first: Sequence[Medium], second: Sequence[Medium], measured: Mapping[Medium, Measured]):
    """(medium of first, medium of second, agreement) of media of one kind that are copies of each other."""
    for kind, least, signs in (
        ("audio", AUDIO_AGREEMENT, AUDIO_SIGNS),
        ("image", IMAGE_AGREEMENT, IMAGE_SIGNS),
        ("video", IMAGE_AGREEMENT, IMAGE_SIGNS * FRAMES // 2),
    ):
        left, right = ([m for m in side if m.kind == kind and _informative(measured[m])] for side in (first, second))
        if not left or not right:
            continue
        ours, theirs = (np.stack([measured[medium].fingerprint for medium in side]) for side in (left, right))
        for a, b, agreement in matching_pairs(ours, theirs, least, signs):
            if _fit(measured[left[a]], measured[right[b]]):
                yield left[a], right[b], agreement


def _informative(measured: Measured) -> bool:
    return measured.fingerprint is not None and bool(measured.fingerprint.any())


def _fit(first: Measured, second: Measured) -> bool:
    """Whether the lengths and the colours allow that one is a copy of the other."""
    if first.duration_s is not None and second.duration_s is not None:
        longer = max(first.duration_s, second.duration_s)
        if abs(first.duration_s - second.duration_s) > max(AUDIO_LENGTH_S, (AUDIO_LENGTH_RATIO - 1) * longer):
            return False
    return first.colours is None or second.colours is None or same_colours(first.colours, second.colours)


# ---- media of the benchmark


def _check_media(items, others, against: str, report: Report, workers: int | None, progress: bool) -> None:
    from tqdm import tqdm

    report.thresholds |= MEDIA_THRESHOLDS
    users: dict[Medium, list[Item]] = defaultdict(list)
    for item in items:
        for column in schema.MEDIA:
            if path := getattr(item, column):
                users[Medium(column, path)].append(item)
    every = [*users, *(medium for medium in others if medium not in users)]
    # Threads suffice: decoders, FFT and matrix products let others run meanwhile.
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        found = tqdm(pool.map(measure, every), total=len(every), desc="media", unit="file", disable=not progress)
        measured = dict(zip(every, found))
    for medium, members in users.items():
        ids = [item.id for item in members]
        where = f"clip {members[0].clip_id!r}, {medium.kind}"
        if error := measured[medium].error:
            report.error("decode", f"{where}: {error}", ids)
        for level, check, problem in measured[medium].problems:
            report.add(level, check, f"{where}: {problem}", ids)
    for medium in others:
        if error := measured[medium].error:
            report.warn("against", f"{others[medium]} cannot be compared: {error}")
    _check_tracks(users, measured, report)
    _check_durations(items, measured, report)
    _check_duplicates(users, measured, report)
    if others:
        _check_against(users, others, measured, against, report)
    loudness = [value for medium in users if (value := measured[medium].loudness_lufs) is not None]
    seconds = [value for medium in users if medium.kind == "audio" and (value := measured[medium].duration_s)]
    report.measures["media"] = {
        "files": len(users),
        "loudness_lufs_quartiles": _quartiles(loudness),
        "audio_s_quartiles": _quartiles(seconds),
    }


def _check_tracks(users: Mapping[Medium, list[Item]], measured, report: Report) -> None:
    """A video with audio in a visual-only item, or an audio-only item's audio in a video: an adapter may take both."""
    for kind, other, modality in (("audio", "video", "audio"), ("video", "audio", "visual")):
        ids = [
            item.id
            for medium, members in users.items()
            if medium.kind == kind and measured[medium].other_track
            for item in members
            if item.modality == modality
        ]
        if ids:
            report.warn(
                "tracks",
                f"files of {len(ids)} {modality} items also hold {other}, which some adapters take; `benchmark build` "
                "leaves it out",
                ids,
            )


def _check_durations(items: Sequence[Item], measured: Mapping[Medium, Measured], report: Report) -> None:
    for item in items:
        if item.audio and item.video:
            audio_s = measured[Medium("audio", item.audio)].duration_s
            video_s = measured[Medium("video", item.video)].duration_s
            if audio_s and video_s and abs(audio_s - video_s) > max(LENGTHS_S, 0.1 * max(audio_s, video_s)):
                found = f"clip {item.clip_id!r}: {audio_s:.2f} s of audio and {video_s:.2f} s of video"
                report.warn("duration", found, [item.id])


def _check_duplicates(users: Mapping[Medium, list[Item]], measured, report: Report) -> None:
    """Two clips with the same audio and the same image are one clip; with one of them, they share what tells it."""
    shared: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    kinds: dict[str, set[str]] = defaultdict(set)
    ids: dict[str, list[str]] = defaultdict(list)
    same: dict[tuple[str, str], set[str]] = defaultdict(set)  # the very same bytes, silence and all
    for medium, members in users.items():
        for item in members:
            same[medium.kind, measured[medium].digest or str(medium)].add(item.clip_id)
            kinds[item.clip_id].add(medium.kind)
            ids[item.clip_id].append(item.id)
    for (kind, _), members_of in same.items():
        clips = sorted(members_of)
        for pair in zip(clips, clips[1:]):
            shared[pair][kind] = 1.0
    for first, second, agreement in _matches(list(users), list(users), measured):
        for a in {item.clip_id for item in users[first]}:
            for b in {item.clip_id for item in users[second]}:
                if a < b:
                    shared[a, b].setdefault(first.kind, agreement)
    for (a, b), found in sorted(shared.items()):
        whole = found.keys() == kinds[a] == kinds[b]
        how = " and ".join(f"{kind} (agreement {agreement:.2f})" for kind, agreement in sorted(found.items()))
        named = dict.fromkeys([*ids[a], *ids[b]])
        report.add("error" if whole else "warning", "duplicate", f"clips {a!r} and {b!r}: same {how}", named)


def _check_against(users, others: Mapping[Medium, str], measured, against: str, report: Report) -> None:
    digests = {measured[medium].digest: name for medium, name in others.items() if measured[medium].digest}
    found = {(m, digests[measured[m].digest]): 1.0 for m in users if measured[m].digest in digests}
    for ours, theirs, agreement in _matches(list(users), list(others), measured):
        found.setdefault((ours, others[theirs]), agreement)
    for (medium, name), agreement in found.items():
        report.error(
            "against",
            f"clip {users[medium][0].clip_id!r}, {medium.kind}: also in {against} as {name} (agreement "
            f"{agreement:.2f})",
            [item.id for item in users[medium]],
        )


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
