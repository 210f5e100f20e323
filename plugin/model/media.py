"""Decoders of audio, image and video files: paths or bytes into arrays, with errors that a user can act on.

torchaudio.load and the decoders of the datasets library need torchcodec and a system FFmpeg, so this file uses
soundfile (wav, flac, ogg, mp3) and PyAV (m4a, mp4 and everything else), both of which bring their own libraries.
"""

import bisect
import contextlib
import functools
import io
import os
import threading
from dataclasses import dataclass

import av
import numpy as np
import soundfile
from PIL import Image, ImageFile, ImageOps

from .inputs import InputError

SAMPLING_RATE_HZ = 16_000
MAX_AUDIO_S = 300.0
# A container's header may be off by a frame or an encoder delay; more than this means that data is missing.
_TRUNCATION_TOLERANCE_S = 0.25

_pil_setting = threading.Lock()
_SOUNDFILE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")


@dataclass(frozen=True)
class VideoMetadata:
    """fps: frames a second of the file. duration_s: of the chosen part. indices: of each returned frame in it."""

    fps: float
    duration_s: float
    indices: tuple[int, ...]


def load_audio(
    source: str | os.PathLike | bytes,
    sampling_rate: int = SAMPLING_RATE_HZ,
    max_s: float | None = MAX_AUDIO_S,
    start_s: float | None = None,
    end_s: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Decode the audio of an audio or video file to a mono waveform.

    Args:
        source: a path, or the bytes of a file.
        sampling_rate: of the result, Hz.
        max_s: longest part that is accepted, seconds; None accepts any.
        start_s, end_s: the part to take, seconds; None means from the start, to the end.
        name: what errors call the source (default: its path).

    Returns:
        float32 array of shape (samples,).

    Raises:
        InputError: file missing, corrupt or truncated, no audio track, nothing in it, longer than `max_s`.
    """
    name = _checked(source, name)
    if _is_soundfile(source):
        waveform, rate_hz = _read_soundfile(source, name, max_s, start_s, end_s)
    else:
        waveform, rate_hz = _read_av_audio(source, name, max_s, start_s, end_s)
    # (frames, channels) or (frames,); the sum of two channels is far faster than a mean over a strided axis.
    if waveform.ndim == 2:
        if waveform.shape[1] == 2:
            waveform = (waveform[:, 0] + waveform[:, 1]) * np.float32(0.5)
        else:
            waveform = waveform.mean(axis=1)
    if waveform.shape[0] == 0:
        raise InputError(f"{name}: the audio is 0 s long. Remove the clip or give a part that holds audio.")
    if not np.isfinite(waveform).all():
        raise InputError(f"{name}: the audio holds NaN or infinite samples. Export the file again.")
    _check_length(waveform.shape[0] / rate_hz, max_s, name)
    if rate_hz != sampling_rate:
        waveform = resample(waveform, rate_hz, sampling_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def audio_duration_s(source: str | os.PathLike | bytes, name: str | None = None) -> float | None:
    """Seconds of audio in an audio or video file, without decoding it; None where it has no audio track.

    A track in which there is nothing counts as none.

    Args:
        source: a path, or the bytes of a file.
        name: what errors call the source (default: its path).

    Raises:
        InputError: file missing, empty, or of no known kind.
    """
    name = _checked(source, name)
    with _decoding("audio", name), open_av(source) as container:
        if not container.streams.audio:
            return None
        stream, first, last = container.streams.audio[0], None, None
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                first = packet.pts if first is None else first
                last = packet.pts + (packet.duration or 0)
                if stream.duration:
                    return float(stream.duration * stream.time_base)
        return None if first is None or last is None else float((last - first) * stream.time_base)


def load_image(source, name: str | None = None):
    """Decode an image to a PIL image in RGB, upright as its EXIF says.

    Args:
        source: a path, the bytes of a file, or a PIL image, which may be decoded in part.
        name: what errors call the source (default: its path).

    Raises:
        InputError: file missing, corrupt or truncated.
    """
    given = isinstance(source, Image.Image)
    name = name or "the PIL image" if given else _checked(source, name)
    with _decoding("image", name):
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        with contextlib.nullcontext(source) if given else Image.open(source) as image:
            with _refuse_truncated_images():
                image.load()
            return ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def _decoding(kind: str, name: str):
    """Turns what the decoders raise for a damaged file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (
        av.error.FFmpegError, soundfile.SoundFileError, Image.DecompressionBombError, OSError, ValueError, IndexError,
        RuntimeError, SyntaxError,
    ) as error:  # fmt: skip
        raise InputError(f"{name}: cannot decode the {kind} ({error}). The file is corrupt or truncated.") from error


@contextlib.contextmanager
def _refuse_truncated_images():
    """lmms_eval, among others, sets PIL for the whole process to fill what is missing with grey."""
    with _pil_setting:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def load_video(
    source: str | os.PathLike | bytes,
    num_frames: int | None,
    start_s: float | None = None,
    end_s: float | None = None,
    name: str | None = None,
    fps: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decode frames that lie uniformly over a video or a part of it.

    The part is cut into `num_frames` equal pieces and the frame in the middle of each is taken, so a part with fewer
    frames repeats some.

    Args:
        source: a path, or the bytes of a file.
        num_frames: how many frames to return, at least 1; None returns every frame.
        start_s, end_s: the part to take, seconds; None means from the start, to the end.
        name: what errors call the source (default: its path).
        fps: frames to return for each second of the part, in place of `num_frames`; at least one is.

    Returns:
        frames uint8 (num_frames, height, width, 3), and the metadata.

    Raises:
        InputError: file missing, corrupt or truncated, no video track, no frame in the part.
    """
    if num_frames is not None and num_frames < 1:
        raise InputError(f"num_frames is {num_frames}; at least 1 is needed.")
    name = _checked(source, name)
    with _decoding("video", name), open_av(source) as container:
        if not container.streams.video:
            raise InputError(f"{name}: the file has no video track. Use it as `audio`, or give a video.")
        stream = container.streams.video[0]
        start, times_s, keyframes = _index_frames(container, stream)
        # Not the number of frames: a file whose edit list hides some holds more than can be shown.
        promised_s, found_s = _promised_s(container, stream), times_s[-1] if times_s else 0.0
        if promised_s is not None and promised_s - found_s > _TRUNCATION_TOLERANCE_S + _longest_gap(times_s):
            raise InputError(f"{name}: truncated, {found_s:.2f} s of {promised_s:.2f} s of video are there.")
        low = start_s or 0.0
        high = end_s if end_s is not None else float("inf")
        # Half a millisecond absorbs the rounding of time stamps.
        inside = [i for i, time_s in enumerate(times_s) if low - 5e-4 <= time_s < high - 5e-4]
        if not inside:
            total_s = times_s[-1] if times_s else 0.0
            raise InputError(
                f"{name}: no frame between {low:g} s and {end_s if end_s is not None else 'the end'} "
                f"(the last frame is at {total_s:.2f} s)."
            )
        file_fps = float(stream.average_rate or stream.guessed_rate or 0) or len(times_s) / max(times_s[-1], 1e-3)
        if fps is not None:
            num_frames = max(1, round(len(inside) / file_fps * fps))
        elif num_frames is None:
            num_frames = len(inside)
        wanted = [inside[int((i + 0.5) * len(inside) / num_frames)] for i in range(num_frames)]
        frames = _decode_frames(container, stream, start, wanted, times_s, keyframes, name)
    metadata = VideoMetadata(
        fps=file_fps,
        duration_s=len(inside) / file_fps,
        indices=tuple(i - inside[0] for i in wanted),
    )
    return np.stack(frames), metadata  # (num_frames, H, W, 3)


def _promised_s(container, stream) -> float | None:
    """Length of a track in seconds as the file's header says, None where it does not."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # Matroska and WebM keep it as text, "00:00:06.000000000".
    for key, value in stream.metadata.items():
        if key.upper() == "DURATION" and value.count(":") == 2:
            hours, minutes, seconds = value.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def _longest_gap(times_s: list[float]) -> float:
    """Longest time that one frame is shown, as far as the next frame tells."""
    return max((after - before for before, after in zip(times_s, times_s[1:])), default=0.0)


def _index_frames(container, stream) -> tuple[int, list[float], list[int]]:
    """First time stamp, the time of every frame after it in the order of display, and the indices of the key frames.

    Nothing is decoded.
    """
    stamps = []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size and not packet.is_discard:
            stamps.append((packet.pts, packet.is_keyframe))
    stamps.sort()
    start = stamps[0][0] if stamps else 0
    times_s = [float((pts - start) * stream.time_base) for pts, _ in stamps]
    container.seek(0)
    return start, times_s, [i for i, (_, is_key) in enumerate(stamps) if is_key]


def _decode_frames(container, stream, start, wanted, times_s, keyframes, name) -> list[np.ndarray]:
    """Decode the frames `wanted` (ascending indices, repeats allowed).

    A seek pays off only when it jumps over a key frame: between two key frames everything in between must be
    decoded anyway, and one seek per frame is three times slower on files with long groups.
    """
    images: dict[int, np.ndarray] = {}
    targets = sorted(set(wanted))
    position = -1  # index of the last decoded frame
    decoder = container.decode(stream)
    for target in targets:
        key = keyframes[bisect.bisect_right(keyframes, target) - 1] if keyframes and keyframes[0] <= target else 0
        if key > position + 1:
            container.seek(start + round(times_s[key] / stream.time_base), stream=stream, backward=True)
            decoder = container.decode(stream)
        for frame in decoder:
            if frame.pts is None or frame.pts < start:
                continue
            time_s = float((frame.pts - start) * stream.time_base)
            position = bisect.bisect_left(times_s, time_s - 1e-6)
            if position >= target:
                images[target] = _to_rgb(frame)
                break
        else:
            raise InputError(f"{name}: truncated, the frame at {times_s[target]:.2f} s cannot be decoded.")
    return [images[index] for index in wanted]


def _to_rgb(frame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")  # (H, W, 3)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # phones store upright video lying on its side
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _read_soundfile(source, name, max_s, start_s, end_s) -> tuple[np.ndarray, int]:
    _check_wav_size(source, name)
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with _decoding("audio", name), soundfile.SoundFile(source) as file:
        rate_hz = file.samplerate
        begin = min(round((start_s or 0.0) * rate_hz), file.frames)
        end = file.frames if end_s is None else min(round(end_s * rate_hz), file.frames)
        _check_length((end - begin) / rate_hz, max_s, name)
        if begin:
            file.seek(begin)
        waveform = file.read(end - begin, dtype="float32")
    if end - begin - waveform.shape[0] > _TRUNCATION_TOLERANCE_S * rate_hz:
        raise InputError(
            f"{name}: truncated, {waveform.shape[0] / rate_hz:.2f} s of {(end - begin) / rate_hz:.2f} s can be read."
        )
    return waveform, rate_hz


def _read_av_audio(source, name, max_s, start_s, end_s) -> tuple[np.ndarray, int]:
    start_s = start_s or 0.0
    with _decoding("audio", name), open_av(source) as container:
        if not container.streams.audio:
            raise InputError(
                f"{name}: the file has no audio track. Leave the field `audio` empty for this clip, or add audio."
            )
        stream = container.streams.audio[0]
        rate_hz = stream.rate
        promised_s = _promised_s(container, stream)
        if promised_s is not None:
            _check_length(min(end_s or promised_s, promised_s) - start_s, max_s, name)
        limit_s = (max_s if max_s is not None else float("inf")) + _TRUNCATION_TOLERANCE_S
        origin_s = float((stream.start_time or 0) * stream.time_base)
        if start_s > 1.0:  # land before the part: AAC needs the frames before to settle
            container.seek(round((origin_s + start_s - 0.5) / stream.time_base), stream=stream, backward=True)
        blocks, first_s, decoded_s = [], None, 0.0
        for frame in container.decode(stream):
            time_s = frame.time - origin_s if frame.time is not None else decoded_s
            decoded_s = time_s + frame.samples / rate_hz
            if decoded_s <= start_s:
                continue
            if end_s is not None and time_s >= end_s:
                break
            first_s = time_s if first_s is None else first_s
            blocks.append(_frame_to_float(frame))
            if decoded_s - start_s > limit_s and end_s is None:
                _check_length(decoded_s - start_s, max_s, name)
    if promised_s is not None and end_s is not None:
        promised_s = min(promised_s, end_s)
    if promised_s is not None and promised_s - decoded_s > _TRUNCATION_TOLERANCE_S:
        raise InputError(f"{name}: truncated, {decoded_s:.2f} s of {promised_s:.2f} s of audio can be decoded.")
    if not blocks:
        return np.zeros(0, np.float32), rate_hz
    waveform = np.concatenate(blocks)  # (samples, channels)
    begin = max(round((start_s - first_s) * rate_hz), 0)
    end = None if end_s is None else round((end_s - first_s) * rate_hz)
    return waveform[begin:end], rate_hz


def _frame_to_float(frame) -> np.ndarray:
    """One decoded audio frame as float32 (samples, channels)."""
    block = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples * channels)
    channels = frame.layout.nb_channels
    block = block.T if frame.format.is_planar else block.reshape(-1, channels)
    return scaled(block)


def scaled(samples: np.ndarray) -> np.ndarray:
    """Samples of floats, or of integers scaled to [-1, 1) by their type, as float32."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:  # the only unsigned sample format
        return (samples.astype(np.float32) - 128.0) / 128.0
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def _check_wav_size(source, name: str) -> None:
    """libsndfile silently shortens a cut WAV file, so compare the size that its header promises with what is there."""
    if isinstance(source, bytes):
        head, actual = source[:4096], len(source)
    else:
        actual = os.path.getsize(source)
        with open(source, "rb") as file:
            head = file.read(4096)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return
    offset = 12
    while offset + 8 <= len(head):
        size = int.from_bytes(head[offset + 4 : offset + 8], "little")
        if head[offset : offset + 4] == b"data":
            # Programs that write to a pipe leave 0 or 0xFFFFFFFF, which says nothing.
            if 0 < size < 0xFFFFFFF0 and offset + 8 + size > actual:
                raise InputError(
                    f"{name}: truncated, the header promises {size} bytes of audio and "
                    f"{actual - offset - 8} are there. Copy the file again."
                )
            return
        offset += 8 + size + (size & 1)


def _check_length(seconds: float, max_s: float | None, name: str) -> None:
    if max_s is not None and seconds > max_s + 1e-3:
        raise InputError(
            f"{name}: the audio is {seconds:.1f} s long, more than max_audio_s = {max_s:g} s. "
            f"Cut the clip (start_s, end_s) or raise max_audio_s."
        )


def _checked(source, name: str | None) -> str:
    """What errors call a source, which is there and not empty."""
    embedded = isinstance(source, bytes)
    name = name or (f"<{len(source)} embedded bytes>" if embedded else os.fspath(source))
    if not embedded and not os.path.isfile(source):
        raise InputError(f"{name}: file not found.")
    if (len(source) if embedded else os.path.getsize(source)) == 0:
        raise InputError(f"{name}: the file is empty.")
    return name


def _is_soundfile(source) -> bool:
    if isinstance(source, bytes):
        return source[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM") or source[:3] == b"ID3" or source[:2] == b"\xff\xfb"
    return os.fspath(source).lower().endswith(_SOUNDFILE_SUFFIXES)


def open_av(source: str | os.PathLike | bytes):
    """A path, or the bytes of a file, as PyAV's container.

    A playlist (concat, HLS, SDP) names other files and hosts. Of a path FFmpeg follows no network address; of bytes it
    would follow every one, so there it may open nothing else.
    """
    if isinstance(source, bytes):
        return av.open(io.BytesIO(source), options={"protocol_whitelist": "none"})
    return av.open(os.fspath(source))


@functools.lru_cache(maxsize=16)
def _resampler(from_hz: int, to_hz: int):
    import torchaudio

    return torchaudio.transforms.Resample(from_hz, to_hz)


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """A waveform, float32 (samples,), at another rate."""
    import torch  # here, so that who only looks at files, or sets torch's environment first, does not import it

    with torch.no_grad():
        return _resampler(from_hz, to_hz)(torch.from_numpy(np.ascontiguousarray(waveform))).numpy()
