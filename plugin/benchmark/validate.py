"""Validation of a whole benchmark: its rows, its questions and answers, and its media, each file measured once.

Every threshold is our choice. An issue is an error or a warning that names its items.
"""

import difflib
import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.stats import binomtest, chisquare
from tqdm import tqdm

from ..data.manifest import Media, read_manifest
from ..model.inputs import MODALITIES
from ..model.media import SAMPLING_RATE_HZ, load_audio, load_video, tracks_of
from ..model.media_images import load_image
from ..utils import InputError
from . import schema
from .questions import normalised
from .schema import Item

# Item ids that a printed line names, and lines of one check; the JSON has all.
SHOWN_ITEMS = 4
SHOWN_ISSUES = 20
# Splits of a manifest that models are trained on before they are tested.
TRAINING_SPLITS = ("train", "validation")

# Below this the counts are no chance: a test of a benchmark's six cells errs once in 170 fair benchmarks.
P_VALUE = 0.001
# Fewest expected questions in a class for which a chi-square test means something.
MIN_EXPECTED = 5
SIMILAR_OPTIONS = 0.85

# Peak, relative to full scale, below which audio is silent: a 16-bit file's last three bits.
SILENCE_DBFS = -78.0
# Largest luma of a frame, of 255, that counts as black; 16 is the black of video.
BLACK_LUMA = 24
BLACK_SHARE = 0.5
FRAMES = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Images: signs of the low frequencies of the cosine transform (Zauner 2010, "pHash"), finer than its usual 8 x 8.
IMAGE_SIDE_PX = 64
IMAGE_FREQUENCIES = 16
# Grey levels in the orthonormal transform. Coding noise of 2 levels a pixel gives coefficients of about 2.
IMAGE_FLOOR = 8.0
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
# kind -> (agreement from which two match, signs that must be informative in both). Agreement is (agreeing - differing)
# / informative signs: 0.8 means that 90% of the signs agree.
MATCHING = {"audio": (0.6, 200), "image": (0.8, 24), "video": (0.8, 96)}
# Fingerprints of each side that are compared at once.
MATCHED_ROWS = 512


@dataclass(frozen=True)
class Issue:
    """level: "error" or "warning". check: which rule. items: the ids of the items that it is about, all of them."""

    level: str
    check: str
    message: str
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.items[:SHOWN_ITEMS])
        more = len(self.items) - SHOWN_ITEMS
        where = f" [{shown}{f' and {more} more' if more > 0 else ''}]" if self.items else ""
        return f"{self.level}: {self.check}: {self.message}{where}"


@dataclass(frozen=True)
class Report:
    """All issues of one benchmark, errors first; `items` and `clips` say how many it has."""

    name: str
    folder: str
    items: int
    clips: int
    issues: tuple[Issue, ...]

    def count(self, level: str) -> int:
        return sum(issue.level == level for issue in self.issues)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"errors": self.count("error"), "warnings": self.count("warning")}

    def lines(self) -> list[str]:
        """Text for people: of each check the first `SHOWN_ISSUES`, and how many more there are."""
        lines: list[str] = []
        for (level, check), group in itertools.groupby(self.issues, lambda issue: (issue.level, issue.check)):
            found = [str(issue) for issue in group]
            lines += found[:SHOWN_ISSUES]
            if (more := len(found) - SHOWN_ISSUES) > 0:
                lines.append(f"{level}: {check}: {more} more; --json FILE has them all")
        return lines


def validate(folder: str | Path, media: bool = True, against: str | None = None) -> Report:
    """Checks a benchmark as a whole.

    Args:
        folder: a benchmark folder, of plain files or of parquet shards.
        media: decode and measure the media as well, each file once.
        against: a manifest, whose train and validation clips must not be in the benchmark.

    Raises:
        InputError: the folder or `against` cannot be read at all; a bad item is an issue instead.
    """
    if against is not None and not media:
        raise InputError("--against compares media, and --no-media leaves them out; give one of the two.")
    folder, info = schema.open_folder(folder)
    training = _training_media(against) if against is not None else {}
    rows = list(schema.read_items(folder))
    items = [item for _, item in rows if isinstance(item, Item)]
    issues = [Issue("error", "schema", str(item), (name,)) for name, item in rows if isinstance(item, InputError)]
    if not rows:
        issues.append(Issue("error", "schema", f"{folder / schema.ITEMS_FILE} holds no item."))
    if items:
        issues += check_items(items)
    if items and media:
        issues += check_media(items, training)
    issues.sort(key=lambda issue: (issue.level, issue.check))
    clips = len({item.clip_id for item in items})
    return Report(str(info.get("name") or folder.name), str(folder), len(items), clips, tuple(issues))


# ---- questions and answers: what a model could score without any medium, and unfair comparisons


def check_items(items: Sequence[Item]) -> Iterator[Issue]:
    """What is wrong with the questions and answers."""
    if missing := [item.id for item in items if not item.license]:
        yield Issue("error", "licence", f"{len(missing)} items have no licence", tuple(missing))
    rows = pd.DataFrame(items)
    # A question is the first item of a clip and aspect in each modality, then the next: by number and not by wording,
    # which may suit the modality ("What do you hear?").
    rows["number"] = rows.groupby(["clip_id", "aspect", "modality"]).cumcount()
    yield from _modalities(rows)
    yield from _similar_options(items)
    yield from _positions(rows)
    # Counted are questions, not items, where the three modalities have the same: counting them thrice would make
    # chance look like a pattern.
    for aspect, questions in rows.drop_duplicates(["clip_id", "aspect", "number"]).groupby("aspect"):
        yield from _plausibility(aspect, list(questions.itertuples()))


def _modalities(rows: pd.DataFrame) -> Iterator[Issue]:
    """The same questions with the same options about the same media under all three modalities."""
    questions = rows.groupby(["clip_id", "aspect", "number"], sort=False)
    ids = questions["id"].agg(tuple)
    for key, shown in questions["modality"].agg(set).items():
        if missing := [modality for modality in MODALITIES if modality not in shown]:
            message = f"the clip {key[0]!r} has no {key[1]} item for {', '.join(missing)}"
            yield Issue("warning", "modalities", message, ids[key])
    for column in ("options", "answer", *schema.MEDIA):
        differs = questions[column].nunique() > 1
        for key in differs.index[differs]:
            message = f"the clip {key[0]!r} ({key[1]}) differs in {column} by modality"
            yield Issue("error", "modalities", message, ids[key])


def _similar_options(items: Sequence[Item]) -> Iterator[Issue]:
    @functools.cache
    def similarity(first: str, second: str) -> float:
        return difflib.SequenceMatcher(None, normalised(first), normalised(second), autojunk=False).ratio()

    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in items:
        for pair in itertools.combinations(sorted(item.options), 2):
            if similarity(*pair) >= SIMILAR_OPTIONS:
                found[pair].append(item.id)
    for (first, second), ids in found.items():
        same = similarity(first, second) == 1
        message = f"{first!r} and {second!r} {'say' if same else 'are nearly'} the same"
        yield Issue("error" if same else "warning", "options", message, tuple(ids))


def _positions(rows: pd.DataFrame) -> Iterator[Issue]:
    """Each position holds the answer equally often in each cell: else a constant letter scores above chance."""
    at = [options.index(answer) for options, answer in zip(rows.options, rows.answer)]
    rows = rows.assign(at=at, count=rows.options.map(len))
    for (aspect, modality, options), cell in rows.groupby(["aspect", "modality", "count"]):
        counts = [int((cell["at"] == position).sum()) for position in range(options)]
        if len(cell) < MIN_EXPECTED * options or (p_value := chisquare(counts).pvalue) >= P_VALUE:
            continue
        most = counts.index(max(counts))
        message = (
            f"{aspect} {modality}, {options} options: the answer stands at {chr(ord('A') + most)} in {counts[most]} "
            f"of {len(cell)} items (counts {counts}, chi-square p = {p_value:.1g} < {P_VALUE:g}); shuffle options"
        )
        yield Issue("error", "positions", message, tuple(cell.id[cell["at"] == most]))


def _plausibility(aspect: str, questions: Sequence[Any]) -> Iterator[Issue]:
    """Nobody can tell the answer without any clip: by options that are never right, by length, by other questions."""
    answers = {normalised(item.answer) for item in questions}
    never: dict[str, list[str]] = defaultdict(list)
    for item in questions:
        for option in item.options:
            if normalised(option) not in answers:
                never[option].append(item.id)
    for option, ids in sorted(never.items()):
        message = f"{aspect}: {option!r} is an option and never an answer anywhere"
        yield Issue("warning", "plausibility", message, tuple(ids))
    chance = sum(1 / len(item.options) for item in questions) / len(questions)
    for how, score in (
        ("by the longest option", lambda item, option: len(option)),
        ("by the shortest option", lambda item, option: -len(option)),
        ("from the options and the other questions", _naive_bayes(questions)),
    ):
        right = 0.0  # expected: among equally likely options each is guessed equally often
        for item in questions:
            scores = {option: score(item, option) for option in item.options}
            likeliest = [option for option in scores if scores[option] >= max(scores.values()) - 1e-9]
            right += (item.answer in likeliest) / len(likeliest)
        p_value = binomtest(round(right), len(questions), chance, alternative="greater").pvalue
        if p_value < P_VALUE:
            message = (
                f"{aspect}: {right:.0f} of {len(questions)} answers can be guessed {how}, without any clip, and by "
                f"chance {chance:.0%} (p = {p_value:.1g} < {P_VALUE:g})"
            )
            yield Issue("warning", "plausibility", message)


def _naive_bayes(questions: Sequence[Any]) -> Callable[[Any, str], float]:
    """How likely an option is right, from the other questions: how often it is where it is offered, and beside which.

    A rule by which distractors are chosen can give the answer away in this manner.
    """
    offered = Counter(option for item in questions for option in item.options)
    answers = Counter(item.answer for item in questions)
    pairs = Counter((item.answer, option) for item in questions for option in item.options)

    def score(item: Any, option: str) -> float:
        own = option == item.answer  # this question is left out of every count
        times = answers[option] - own
        others = [pairs[option, other] - own + 1 for other in item.options if other != option]
        beside = sum(math.log(count / (times + len(offered))) for count in others)
        return math.log((times + 1) / (offered[option] + 1)) + beside

    return score


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
        digest: of the file's bytes and the part that is used; "" where it cannot be decoded, and nothing was measured.
        problem: (level, check, message) of what cannot be used, level "error" or "warning".
        duration_s: of audio or a video, None of an image.
        fingerprint: int8 (length,), see `image_fingerprint` and `audio_fingerprint`.
        colours: of an image or video, see `colours_of`.
        other_track: an audio file also holds a video track, or a video file audio.
    """

    digest: str = ""
    problem: tuple[str, str, str] | None = None
    duration_s: float | None = None
    fingerprint: np.ndarray | None = None
    colours: np.ndarray | None = None
    other_track: bool = False


def measure(medium: Medium) -> Measured:
    """Decodes a medium as the models' processors do and measures it; never raises for a bad file."""
    problem, duration_s, colours = None, None, None
    try:
        if medium.kind == "audio":
            waveform = load_audio(medium.source, start_s=medium.start_s, end_s=medium.end_s)  # (samples,)
            duration_s = len(waveform) / SAMPLING_RATE_HZ
            if np.abs(waveform).max() <= 10 ** (SILENCE_DBFS / 20):
                problem = ("error", "silence", f"no sample is above {SILENCE_DBFS:g} dBFS")
            fingerprint = audio_fingerprint(waveform, SAMPLING_RATE_HZ)
        else:
            if medium.kind == "image":
                frames = np.asarray(load_image(medium.source))[None]  # (1, H, W, 3)
            else:
                frames, metadata = load_video(medium.source, FRAMES, medium.start_s, medium.end_s)
                duration_s = metadata.duration_s
            step = max(1, min(frames.shape[1:3]) // 256)  # enough to tell black, at a fraction of the memory
            luma = frames[:, ::step, ::step] @ _LUMA  # (frames, H / step, W / step)
            # Not the very brightest point: a hot pixel of a sensor does not light an image.
            black = np.mean(np.quantile(luma.reshape(len(luma), -1), 0.999, axis=1) <= BLACK_LUMA)
            if black >= BLACK_SHARE:
                problem = ("error" if black == 1 else "warning", "black", f"{black:.0%} of the frames are black")
            fingerprint, colours = image_fingerprint(frames), colours_of(frames)
    except InputError as error:
        return Measured(problem=("error", "decode", str(error)))
    digest = f"{schema.sha256_of_medium(medium.source)} {medium.start_s} {medium.end_s}"
    return Measured(digest, problem, duration_s, fingerprint, colours, _other_track(medium))


def _other_track(medium: Medium) -> bool:
    tracks = tracks_of(medium.source)
    return {"audio": tracks.video, "video": tracks.audio}.get(medium.kind, False)


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
    levels = _resized(frames, "L", IMAGE_SIDE_PX)  # (frames, side, side)
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
    pixels = _resized(frames, "RGB", COLOUR_SIDE)  # (frames, side, side, 3)
    luma = pixels @ _LUMA
    return ((pixels[..., [0, 2]] - luma[..., None]) / max(float(luma.mean()), 1.0)).reshape(-1)


def _resized(frames: np.ndarray, mode: str, side_px: int) -> np.ndarray:
    images = [Image.fromarray(frame).convert(mode) for frame in frames]
    small = [image.resize((side_px, side_px), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float32) for image in small])


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
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))  # 40 dB below the peak
    if loud.size:
        waveform = waveform[loud[0] : loud[-1] + 1]  # an encoder's delay is silent
    if not loud.size or len(waveform) < 4 * AUDIO_PIECES:
        return np.zeros((AUDIO_PIECES - 1) * AUDIO_BANDS, np.int8)
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


def matching_pairs(first: np.ndarray, second: np.ndarray, kind: str) -> Iterator[tuple[int, int, float]]:
    """Pairs of matching fingerprints, in bounded memory.

    Args:
        first, second: int8 (n, length) and (m, length).
        kind: of the media, "audio", "image" or "video".

    Yields:
        (row of `first`, row of `second`, agreement up to 1).
    """
    least, signs = MATCHING[kind]
    for a in range(0, len(first), MATCHED_ROWS):
        left: np.ndarray = first[a : a + MATCHED_ROWS].astype(np.float32)
        for b in range(0, len(second), MATCHED_ROWS):
            right: np.ndarray = second[b : b + MATCHED_ROWS].astype(np.float32)
            informative = np.abs(left) @ np.abs(right).T  # (rows of left, rows of right)
            agreement = (left @ right.T) / np.maximum(informative, 1)
            for i, j in zip(*np.nonzero((agreement >= least) & (informative >= signs))):
                yield a + int(i), b + int(j), float(agreement[i, j])


def _copies(
    first: Sequence[Medium], second: Sequence[Medium], measured: Mapping[Medium, Measured]
) -> Iterator[tuple[Medium, Medium, float]]:
    """(medium of first, medium of second, agreement) of media of one kind that are copies of each other."""
    by_digest: dict[tuple[str, str], list[Medium]] = defaultdict(list)
    for medium in second:
        by_digest[medium.kind, measured[medium].digest].append(medium)
    for medium in first:
        if digest := measured[medium].digest:  # the very same bytes, silence and all
            yield from ((medium, same, 1.0) for same in by_digest[medium.kind, digest])
    for kind in MATCHING:
        left, right = ([m for m in side if m.kind == kind and measured[m].digest] for side in (first, second))
        if left and right:
            ours, theirs = (np.stack([measured[medium].fingerprint for medium in side]) for side in (left, right))
            for a, b, agreement in matching_pairs(ours, theirs, kind):
                one, other = measured[left[a]], measured[right[b]]
                if one.digest != other.digest and _fit(one, other):
                    yield left[a], right[b], agreement


def _fit(first: Measured, second: Measured) -> bool:
    """Whether the lengths and the colours allow that one is a copy of the other."""
    if first.duration_s is not None and second.duration_s is not None:
        # A copy may be cut by an encoder's delay, not by more.
        if not math.isclose(first.duration_s, second.duration_s, rel_tol=0.05, abs_tol=0.15):
            return False
    return first.colours is None or second.colours is None or same_colours(first.colours, second.colours)


# ---- media of the benchmark


def check_media(items: Sequence[Item], training: Mapping[Medium, str]) -> Iterator[Issue]:
    """What is wrong with the media; `training` are those of a manifest and their names."""
    users: dict[Medium, list[Item]] = defaultdict(list)
    for item in items:
        for kind in schema.MEDIA:
            if path := getattr(item, kind):
                users[Medium(kind, path)].append(item)
    every = list(dict.fromkeys([*users, *training]))
    # Threads suffice: decoders, FFT and matrix products let others run meanwhile.
    with ThreadPoolExecutor(schema.WORKERS) as pool:
        found = tqdm(pool.map(measure, every), total=len(every), desc="media", unit="file")
        measured = dict(zip(every, found))
    for medium, members in users.items():
        where = f"clip {members[0].clip_id!r}, {medium.kind}"
        if problem := measured[medium].problem:
            level, check, message = problem
            yield Issue(level, check, f"{where}: {message}", tuple(item.id for item in members))
        # An adapter may take both tracks of a file.
        alone = "audio" if medium.kind == "audio" else "visual"
        leaks = tuple(item.id for item in members if item.modality == alone)
        if measured[medium].other_track and leaks:
            message = "the file holds both audio and video, which some adapters take; `benchmark build` leaves one out"
            yield Issue("warning", "tracks", f"{where}: {message}", leaks)
    yield from _duplicates(items, users, measured)
    for medium, name in training.items():
        if not measured[medium].digest:
            yield Issue("warning", "against", f"{name}, {medium.kind}: cannot be decoded and compared")
    for ours, theirs, agreement in _copies([*users], [*training], measured):
        message = (
            f"clip {users[ours][0].clip_id!r}, {ours.kind}: also in the manifest as {training[theirs]} (agreement "
            f"{agreement:.2f})"
        )
        yield Issue("error", "against", message, tuple(item.id for item in users[ours]))


def _duplicates(
    items: Sequence[Item], users: Mapping[Medium, list[Item]], measured: Mapping[Medium, Measured]
) -> Iterator[Issue]:
    """Two clips with the same audio and the same image are one clip; with one of them, they share what tells it."""
    shared: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for first, second, agreement in _copies([*users], [*users], measured):
        clips = ({item.clip_id for item in users[medium]} for medium in (first, second))
        for a, b in itertools.product(*clips):
            if a < b:
                shared[a, b].setdefault(first.kind, agreement)
    by_clip: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_clip[item.clip_id].append(item)
    for (a, b), found in sorted(shared.items()):
        both = [*by_clip[a], *by_clip[b]]
        whole = all(found.keys() >= {kind for kind in schema.MEDIA if getattr(item, kind)} for item in both)
        how = " and ".join(f"{kind} (agreement {agreement:.2f})" for kind, agreement in sorted(found.items()))
        message = f"clips {a!r} and {b!r}: same {how}"
        yield Issue("error" if whole else "warning", "duplicate", message, tuple(item.id for item in both))


def _training_media(manifest: str) -> dict[Medium, str]:
    """Media of a manifest's training splits, and what reports call each."""
    media: dict[Medium, str] = {}
    for clip in read_manifest(Path(manifest).expanduser()):
        for kind in schema.MEDIA if clip.split in TRAINING_SPLITS else ():
            if (source := getattr(clip, kind)) is not None:
                part = (None, None) if kind == "image" else (clip.start_s, clip.end_s)
                media.setdefault(Medium(kind, source, *part), f"{clip.split} clip {clip.id!r}")
    if not media:
        raise InputError(f"{manifest} holds no clip of the splits {', '.join(TRAINING_SPLITS)} to compare with.")
    return media
