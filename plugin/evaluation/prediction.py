"""The emotion of files: what a file holds, its reading as a whole, and a curve over its time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.dataset import ClipEncoder
from ..data.manifest import Clip
from ..model.emotion_prediction import EmotionPrediction
from ..utils import InputError

PAIR = "+"


@dataclass(frozen=True)
class Source:
    """One thing to read: a sound, a picture or film, or both."""

    name: str
    audio: str | None = None
    image: str | None = None
    video: str | None = None
    duration_s: float | None = None  # of what has time

    @property
    def title(self) -> str:
        """The names of its files, without folders."""
        files = (self.audio, self.image, self.video)
        return PAIR.join(dict.fromkeys(Path(file).name for file in files if file is not None))

    def clip(self, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """It, or a part of it, as a clip."""
        return Clip(
            id=self.name, split="test", source="user", license="unknown", audio=self.audio, image=self.image,
            video=self.video, start_s=start_s, end_s=end_s,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A source's emotion, and that of each window of it: (begin, end) in seconds -> prediction."""

    source: Source
    whole: EmotionPrediction
    curve: list[tuple[float, float, EmotionPrediction]] = field(default_factory=list)


def source_of(word: str) -> Source:
    """What a command's argument names: a file, or two joined by "+" (a sound and a picture or film).

    Raises:
        InputError: a file that is missing or of no known kind, or a pair of two of a kind.
    """
    if PAIR in word and not Path(word).exists():
        parts = word.split(PAIR)
        for cut in range(1, len(parts)):  # a name may hold the sign itself
            names = PAIR.join(parts[:cut]), PAIR.join(parts[cut:])
            if all(Path(name).is_file() for name in names):
                one, two = (_single(name) for name in names)
                return _paired(word, one, two)
        raise InputError(f"{word!r} is no pair of files joined by {PAIR!r}: one of them is not there.")
    return _single(word)


def read_sources(model, processor, sources: Sequence[Source], window_s: float | None = None) -> Iterator[Reading]:
    """Readings of sources, one after the other.

    Args:
        model: a VAEmotionLLM.
        processor: its processor.
        sources: what to read.
        window_s: length of the windows of the curve of what has time and is longer than one; None for no curve.

    Raises:
        InputError: a file that cannot be decoded, or is longer than the processor accepts.
    """
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)

    def predict(clip: Clip, part: bool = False) -> EmotionPrediction:
        return model.predict_emotion(_features(encoder, clip, part), processor)[0]

    for source in sources:
        whole = predict(source.clip())
        curve = []
        if window_s is not None and source.duration_s is not None and source.duration_s > window_s:
            for begin, end in windows(source.duration_s, window_s):
                curve.append((begin, end, predict(source.clip(begin, end), part=True)))
        yield Reading(source, whole, curve)


def windows(duration_s: float, window_s: float) -> list[tuple[float, float]]:
    """Windows side by side over a duration; what is left joins the last where it is shorter than half a window."""
    count = max(int(duration_s / window_s + 0.5), 1)
    return [(i * window_s, duration_s if i == count - 1 else (i + 1) * window_s) for i in range(count)]


def _features(encoder: ClipEncoder, clip: Clip, part: bool = False) -> dict:
    """Features of what a clip has; in a part of it sound or sight may have ended before the other."""
    wanted = [(str(clip.visual), "visual")] * (clip.visual is not None) + [("audio", "audio")] * (
        clip.audio is not None
    )
    found, last = {}, None
    for kind, modality in wanted:
        try:
            found[kind] = encoder.encode(clip, modality)
        except InputError as error:
            if not part:
                raise
            last = error
    if last is not None and not found:
        raise last
    return found


def _single(name: str) -> Source:
    import av
    from PIL import Image, UnidentifiedImageError

    if not Path(name).is_file():
        raise InputError(f"there is no file {name!r}; give an image, a sound, a film, or SOUND{PAIR}PICTURE.")
    try:
        with Image.open(name) as image:
            if getattr(image, "n_frames", 1) == 1 or image.format == "MPO":  # as phones write: a picture and more
                return Source(name, image=name)
    except UnidentifiedImageError:
        pass
    try:
        with av.open(name) as container:
            # The cover of an album is a picture of one frame, and no film.
            films = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            sounds = container.streams.audio
            duration = container.duration / av.time_base if container.duration else None
            if not films and not sounds:
                raise InputError(f"{name} holds neither sound nor picture.")
            return Source(name, audio=name if sounds else None, video=name if films else None, duration_s=duration)
    except av.error.FFmpegError as error:
        raise InputError(f"{name} is neither an image nor a sound nor a film that can be read ({error}).") from error


def _paired(word: str, one: Source, two: Source) -> Source:
    """A sound with a picture, or with a film, whose own sound is then left out."""
    sounds = [part for part in (one, two) if part.audio and not (part.image or part.video)]
    seen = [part for part in (one, two) if part.image or part.video]
    if len(sounds) != 1 or len(seen) != 1:
        raise InputError(f"{word!r} must be a sound and a picture or film; these are two of a kind.")
    [sound], [sight] = sounds, seen
    durations = [part.duration_s for part in (sound, sight) if part.duration_s is not None]
    return Source(word, sound.audio, sight.image, sight.video, min(durations) if durations else None)
