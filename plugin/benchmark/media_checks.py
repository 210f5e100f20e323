"""What a benchmark's media hold, measured once a file: length, loudness, silence, black frames, size, fingerprints."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from ..data.manifest import Media
from ..data.media import SAMPLING_RATE_HZ, load_audio, load_image, load_video
from ..model.media import open_av
from ..utils import InputError
from . import fingerprints

# All thresholds are our choice and stand in the report.
MIN_SOUND_S = 0.5
# Peak, relative to full scale, below which a sound is silent: a 16-bit file's last three bits.
SILENCE_DBFS = -78.0
# A piece of 50 ms whose RMS is below this counts as silent.
QUIET_DBFS = -60.0
QUIET_SHARE = 0.9
# Integrated loudness, ITU-R BS.1770-4, of the mono sound at 16 kHz; torchaudio's filters are within 0.35 dB of it.
LOUDNESS_LUFS = (-45.0, -5.0)
CLIPPED_SHARE = 0.01
# Largest luma of a frame, of 255, that counts as black; 16 is the black of video.
BLACK_LUMA = 24
BLACK_SHARE = 0.5
MIN_SIDE_PX = 56
FRAMES = 8
_PIECE_S = 0.05


@dataclass(frozen=True)
class Medium:
    """A file, or a part of it, and how it is read: "audio", "image" or "video"."""

    kind: str
    source: Media
    start_s: float | None = None
    end_s: float | None = None

    @property
    def group(self) -> str:
        return "sound" if self.kind == "audio" else "picture"


@dataclass(frozen=True)
class Facts:
    """What was measured of one medium.

    Args:
        duration_s: of a sound or a film, None of a picture.
        fingerprint: int8 (length,), see `fingerprints`.
        problems: (level, check, what was found), level "error" or "warning".
        error: why it cannot be decoded; nothing else was measured then.
        digest: of the file's bytes and the part that is used.
        other_track: a sound's file holds a film as well, or a film's file sound.
    """

    duration_s: float | None = None
    loudness_lufs: float | None = None
    size_px: tuple[int, int] | None = None
    fingerprint: np.ndarray | None = None
    problems: tuple[tuple[str, str, str], ...] = field(default=())
    error: str | None = None
    digest: str = ""
    other_track: bool = False


def measure(medium: Medium) -> Facts:
    """Decodes a medium as the models' processors do and measures it; never raises for a bad file."""
    try:
        facts = _measure_sound(medium) if medium.kind == "audio" else _measure_picture(medium)
    except InputError as error:
        return Facts(error=str(error))
    digest = f"{sha256_of(medium.source)} {medium.start_s} {medium.end_s}"
    return replace(facts, digest=digest, other_track=_other_track(medium))


def _other_track(medium: Medium) -> bool:
    import av

    if medium.kind == "image":
        return False
    other = "audio" if medium.kind == "video" else "video"
    source = medium.source
    try:
        with open_av(source) as container:
            return any(stream.type == other for stream in container.streams)
    except (av.error.FFmpegError, OSError):  # what soundfile reads and FFmpeg does not is sound alone
        return False


def sha256_of(source: Media) -> str:
    """Hash of a medium's bytes, of a file or in memory."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _measure_sound(medium: Medium) -> Facts:
    sound = load_audio(medium.source, start_s=medium.start_s, end_s=medium.end_s)  # (samples,)
    duration_s = len(sound) / SAMPLING_RATE_HZ
    peak = float(np.abs(sound).max())
    if peak <= 10 ** (SILENCE_DBFS / 20):
        found = f"no sample is above {SILENCE_DBFS:g} dBFS"
        return Facts(duration_s, problems=(("error", "silence", found),))
    problems = []
    if duration_s < MIN_SOUND_S:
        problems.append(("warning", "duration", f"the sound is {duration_s:.2f} s long, under {MIN_SOUND_S:g} s"))
    piece = round(_PIECE_S * SAMPLING_RATE_HZ)
    pieces = sound[: len(sound) // piece * piece].reshape(-1, piece)
    quiet = float((np.square(pieces).mean(axis=1) < 10 ** (QUIET_DBFS / 10)).mean()) if len(pieces) else 0.0
    if quiet > QUIET_SHARE:
        problems.append(("warning", "silence", f"{quiet:.0%} of the sound is below {QUIET_DBFS:g} dBFS"))
    clipped = float((np.abs(sound) >= 0.999).mean())
    if clipped > CLIPPED_SHARE:
        problems.append(("warning", "loudness", f"{clipped:.0%} of the samples are at full scale"))
    loudness = _loudness_lufs(sound)
    low, high = LOUDNESS_LUFS
    if loudness is not None and not low <= loudness <= high:
        problems.append(("warning", "loudness", f"{loudness:.1f} LUFS (BS.1770-4), outside {low:g} to {high:g} LUFS"))
    fingerprint = fingerprints.sound_fingerprint(sound, SAMPLING_RATE_HZ)
    return Facts(duration_s, loudness, None, fingerprint, tuple(problems))


def _loudness_lufs(sound: np.ndarray) -> float | None:
    """Integrated loudness; None for what is shorter than one gating block of 0.4 s, or all below the gate."""
    if len(sound) < 0.4 * SAMPLING_RATE_HZ:
        return None
    import torch
    from torchaudio.functional import loudness

    value = float(loudness(torch.from_numpy(sound)[None], SAMPLING_RATE_HZ))
    return value if np.isfinite(value) else None


def _measure_picture(medium: Medium) -> Facts:
    problems = []
    duration_s = None
    if medium.kind == "image":
        pictures = np.asarray(load_image(medium.source))[None]  # (1, H, W, 3)
    else:
        pictures, metadata = load_video(medium.source, FRAMES, medium.start_s, medium.end_s)
        duration_s = metadata.duration_s
    height, width = pictures.shape[1:3]
    if min(height, width) < MIN_SIDE_PX:
        problems.append(
            ("warning", "resolution", f"{width} x {height} px, the shorter side is under {MIN_SIDE_PX} px")
        )
    step = max(1, min(height, width) // 256)  # enough to tell black, at a fraction of the memory
    luma = pictures[:, ::step, ::step] @ np.array([0.299, 0.587, 0.114], np.float32)  # (frames, H / step, W / step)
    # Not the very brightest point: a hot pixel of a sensor does not light a picture.
    black = float((np.quantile(luma.reshape(len(luma), -1), 0.999, axis=1) <= BLACK_LUMA).mean())
    if black == 1:
        problems.append(("error", "black", "every frame that was looked at is black"))
    elif black >= BLACK_SHARE:
        problems.append(("warning", "black", f"{black:.0%} of {len(pictures)} frames are black"))
    fingerprint = fingerprints.picture_hash(pictures)
    return Facts(duration_s, None, (width, height), fingerprint, tuple(problems))
