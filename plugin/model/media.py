"""Decoders of audio, image and video files: paths or bytes into arrays, with errors that a user can act on.

PyAV and PIL bring their own libraries; torchaudio.load and the decoders of the datasets library would need a system
FFmpeg.

Times are on the container's clock, which starts with its earliest track. What is shown at time t is the last frame
whose time stamp is at or before t. A track that begins late is silent, or shows its first frame, until it begins.
"""

import bisect
import contextlib
import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from .inputs import InputError
from .media_audio import AT_ONCE, Resampler, cancel, check_peak, mean_of, resample, samples_of
from .media_files import (
    check_data_size,
    check_deadline,
    check_pixels,
    checked,
    decoding,
    demuxer_of,
    head_of,
    mpeg_audio_frame,
)
from .media_images import ROUNDING_S, VideoMetadata, is_moving, open_image, read_animation, rgb_of, spread_frames

SAMPLING_RATE_HZ = 16_000
MAX_AUDIO_S = 300.0
# One window of the filter banks of the audio towers; of less they make nothing.
MIN_AUDIO_S = 0.025
# A container's header may be off by a frame or an encoder delay; more than this means that data is missing.
_TRUNCATION_TOLERANCE_S = 0.25
# A longer gap between the frames of an audio track is silence; a shorter one is jitter of its time stamps.
_GAP_S = 0.1
# In a stream of broadcasting a longer one is a clock that was set again.
_JUMP_S = 10.0
# The last frame of a codec may go over the end by what fills it up.
_ENDING_S = 0.1
# Where neither time stamps nor a rate say how long a frame is shown.
_UNKNOWN_FRAME_S = 1e-3
# Decoders of audio need what comes before a part: AAC and Opus to settle, MP3 its reservoir of bits.
_SETTLING_S = 1.0

# Demuxers whose time stamps and index are of the file, so that a part is reached by a seek. The others are decoded
# from the start: they seek by an estimate (MP3, ADTS), or to frames whose predecessors are missing.
_SEEKABLE = ("mov", "matroska", "wav", "w64", "aiff", "au", "caf", "mpegts")
# Demuxers whose duration is counted from the file or written by who made it, and no estimate.
_TRACK_PROMISES = ("mov", "flac", "aiff", "caf", "au")
_FILE_PROMISES = ("mov", "matroska", "flv")
# Streams without time stamps of their own: their frames follow one another.
_UNTIMED = ("mp3", "aac", "flac", "ac3", "amr", "wav", "ogg")
# Headers of the next of chained Opus streams. Those of Vorbis and FLAC the decoder needs.
_NO_AUDIO = (b"OpusHead", b"OpusTags")


# ---- audio and video


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
        InputError: file missing, corrupt or truncated, no audio track, next to nothing in it, longer than `max_s`.
    """
    name = checked(source, name)
    with decoding("audio", name):
        audio = _AudioTrack(source, sampling_rate, max_s, name)
        _read(source, name, start_s, end_s, audio=audio)
        return audio.waveform()


def load_video(
    source: str | os.PathLike | bytes,
    num_frames: int | None,
    start_s: float | None = None,
    end_s: float | None = None,
    name: str | None = None,
    fps: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decode frames that lie uniformly over a video or a part of it.

    The part is cut into `num_frames` equal pieces and the frame that is shown in the middle of each is taken, so a
    part with fewer frames repeats some. An animated GIF, WebP or PNG is a video as well.

    Args:
        source: a path, or the bytes of a file.
        num_frames: how many frames to return, at least 1; None returns every frame.
        start_s, end_s: the part to take, seconds; None means from the start, to the end.
        name: what errors call the source (default: its path).
        fps: frames to return for each second of the part, in place of `num_frames`; at least one is.

    Returns:
        frames uint8 (num_frames, height, width, 3), and the metadata.

    Raises:
        InputError: file missing, corrupt or truncated, no video track, no frame in the part, too large a video.
    """
    if num_frames is not None and num_frames < 1:
        raise InputError(f"num_frames is {num_frames}; at least 1 is needed.")
    name = checked(source, name)
    with decoding("video", name):
        if demuxer_of(source, name) == "image":
            return read_animation(source, name, num_frames, fps, start_s, end_s)
        video = _VideoTrack(source, name, num_frames, fps)
        _read(source, name, start_s, end_s, video=video)
        return video.frames, video.metadata


def load_audio_and_video(
    source: str | os.PathLike | bytes,
    num_frames: int | None,
    sampling_rate: int = SAMPLING_RATE_HZ,
    max_s: float | None = MAX_AUDIO_S,
    start_s: float | None = None,
    end_s: float | None = None,
    name: str | None = None,
) -> tuple[np.ndarray, np.ndarray, VideoMetadata]:
    """What `load_audio` and `load_video` return of one file, which is read once."""
    name = checked(source, name)
    with decoding("video", name):
        audio, video = _AudioTrack(source, sampling_rate, max_s, name), _VideoTrack(source, name, num_frames, None)
        _read(source, name, start_s, end_s, audio, video)
        return audio.waveform(), video.frames, video.metadata


def iter_frames(
    source: str | os.PathLike | bytes, start_s: float = 0.0, end_s: float | None = None, name: str | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame that is shown in a part, with the time in the part from which it is; the first from 0 on.

    Args:
        source: a path, or the bytes of a file.
        start_s, end_s, name: see `load_video`.

    Returns:
        Seconds, and uint8 (height, width, 3).
    """
    name = checked(source, name)
    with decoding("video", name):
        track = _VideoTrack(source, name, None, None)
        with open_av(source, name) as container:
            track.begin(container, track.stream_of(container), start_s, math.inf if end_s is None else end_s)
        before, time_s, is_started = None, 0.0, False
        for frame in track.from_start():
            time_s = time_s if frame.pts is None else track.seconds(frame.pts)
            if time_s <= track.low + ROUNDING_S:
                before = frame
                continue
            if not is_started:  # the last at or before the beginning, or the first of all
                yield 0.0, track.to_rgb(frame if before is None else before)
                is_started, frame = True, None if before is None else frame
            if time_s >= track.high - ROUNDING_S:
                return
            if frame is not None:
                yield time_s - track.low, track.to_rgb(frame)
        if before is not None and not is_started:
            yield 0.0, track.to_rgb(before)


def end_of_track_s(source: str | os.PathLike | bytes, kind: str, name: str | None = None) -> float | None:
    """Time at which the audio or video of a file ends by its packets, seconds; None where it has none.

    Nothing is decoded. A track in which there is nothing counts as none.

    Args:
        source: a path, or the bytes of a file.
        kind: "audio" or "video".
        name: what errors call the source (default: its path).

    Raises:
        InputError: file missing, empty, or of no known kind.
    """
    name = checked(source, name)
    if demuxer_of(source, name) == "image":
        return None
    with decoding(kind, name), open_av(source, name) as container:
        if not (streams := getattr(container.streams, kind)):
            return None
        track = _Track(source, name)
        track.begin(container, _shown(streams), 0.0, math.inf)
        for packet in container.demux(track.stream):
            check_deadline(name)
            track.note(packet)
        return track.end_s


@dataclass(frozen=True)
class Tracks:
    """What a file holds. An image, one that moves too, is `image`; the cover of an album is no video.

    rate_hz: sampling rate of the audio, 0 without one. frame_rate: of the video, None where the header does not say.
    video_start_s: when its first frame is shown.
    alone: whether there is one track and no more.
    """

    image: bool = False
    animated: bool = False
    video: bool = False
    audio: bool = False
    rate_hz: int = 0
    frame_rate: Fraction | None = None
    video_start_s: float = 0.0
    alone: bool = True


def tracks_of(source: str | os.PathLike | bytes, name: str | None = None) -> Tracks:
    """What an image, audio or video file holds, by its header.

    Raises:
        InputError: file missing, empty, corrupt, or of no known kind.
    """
    name = checked(source, name)
    with decoding("file", name):
        if demuxer_of(source, name) == "image":
            with open_image(source) as image:
                return Tracks(image=True, animated=is_moving(image))
        with open_av(source, name) as container:
            streams = container.streams
            video = _shown(streams.video) if streams.video else None
            video = None if video is None or _is_cover(video) else video
            audio = _shown(streams.audio) if streams.audio else None
            start = video.start_time if video is not None else None
            return Tracks(
                video=video is not None,
                frame_rate=None if video is None else video.average_rate,
                video_start_s=0.0
                if video is None or start is None
                else float(start * video.time_base) - _zero(container),
                audio=audio is not None,
                rate_hz=0 if audio is None or audio.codec_context is None else audio.rate,
                alone=len(streams) == 1,
            )


def open_av(source: str | os.PathLike | bytes, name: str):
    """An audio or video file as PyAV's container, by the demuxer of its content alone, which opens no other file."""
    demuxer = demuxer_of(source, name)
    if demuxer == "image":
        raise InputError(f"{name}: this is an image; give it as `image`, or give an audio or a video.")
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    try:
        if not isinstance(source, bytes):
            file.encode()
            # Not taken for a URL by its first letters, whatever its name.
            file = "file:" + os.path.abspath(file)
    except UnicodeEncodeError:  # a name that is not UTF-8
        file = open(file, "rb")  # noqa: SIM115  the container closes it
    # PyAV 15.1 ends the interpreter where streams are found late (FLV, MPEG-PS, RoQ) and there are options. Of a WAV
    # file, with its one stream, FFmpeg would look through seconds of samples for compressed audio.
    options = {"options": {"probesize": "2048"}} if demuxer == "wav" else {}
    return av.open(file, format=demuxer, metadata_errors="replace", **options)


def _read(source, name: str, start_s: float | None, end_s: float | None, audio=None, video=None) -> None:
    """Reads the packets of a part once: audio is decoded and frames are listed; then the frames chosen are decoded."""
    low, high = start_s or 0.0, math.inf if end_s is None else end_s
    tracks = [track for track in (audio, video) if track is not None]
    check_data_size(source, name)
    for seek_s in (low - _SETTLING_S, None) if low > _SETTLING_S and high < math.inf else (None,):
        with open_av(source, name) as container:
            if seek_s is not None and _demuxer(container) not in _SEEKABLE:
                seek_s = None
            if seek_s is not None:
                try:
                    container.seek(round((_zero(container) + seek_s) * av.time_base))
                except av.error.FFmpegError:
                    continue
            for track in tracks:
                track.begin(container, track.stream_of(container), low, high)
            last_s = _scan(container, tracks, name)
            if seek_s is not None and (last_s is not None or not all(track.covers_start for track in tracks)):
                continue  # it landed behind, or the part ends with the file, which is to be whole
            if last_s is not None:
                _check_whole(container, tracks, last_s, name)
            if video is not None:
                video.decode(container, last_s)
            return


def _scan(container, tracks: Sequence["_AudioTrack | _VideoTrack"], name: str) -> float | None:
    """Gives the packets to their tracks; the time at which the last one ends, None where the part ends before."""
    by_index, zero, last_s = {track.stream.index: track for track in tracks}, _zero(container), 0.0
    base_s: dict[int, float] = {}  # of each stream: a packet makes a new fraction each time
    for packet in container.demux():
        check_deadline(name)
        index = packet.stream.index  # not its stream_index, which is 0 in the packet that ends a stream
        if (pts := packet.pts) is not None:
            if index not in base_s:
                base_s[index] = float(packet.time_base)
            if (end_s := (pts + (packet.duration or 0)) * base_s[index] - zero) > last_s:
                last_s = end_s
        if (track := by_index.get(index)) is None:
            continue
        if track.done:
            track.note(packet)
            continue
        track.add(packet)
        if track.done and all(track.done for track in tracks):
            return None
    return last_s


def _check_whole(container, tracks: Sequence["_Track"], last_s: float, name: str) -> None:
    """Whether what the header promises is there. What it only estimates is no promise."""
    for track in tracks:
        promised_s, found_s = track.promised_and_found_s()
        if promised_s is not None and _is_missing(promised_s - found_s, [track]):
            kind = track.stream.type
            raise InputError(f"{name}: truncated, {found_s:.2f} s of {promised_s:.2f} s of {kind} are there.")
    if _demuxer(container) in _FILE_PROMISES and container.duration:
        # Matroska counts it from the zero of the time stamps, others from the first.
        promised_s = container.duration / av.time_base - (
            _zero(container) if _demuxer(container) == "matroska" else 0.0
        )
        if _is_missing(promised_s - last_s, tracks):
            raise InputError(f"{name}: truncated, {last_s:.2f} s of {promised_s:.2f} s are there.")


def _is_missing(seconds: float, tracks: Sequence["_Track"]) -> bool:
    return seconds > _TRUNCATION_TOLERANCE_S and seconds > _TRUNCATION_TOLERANCE_S + max(
        track.longest_gap_s for track in tracks
    )


class _Track:
    """A track of a part of a file, on the container's clock."""

    def __init__(self, source, name: str):
        self.source, self.name = source, name

    def begin(self, container, stream, low: float, high: float) -> None:
        """Before the packets of `stream` are given; `low` and `high` are the part's ends in seconds."""
        if stream.codec_context is None:
            raise InputError(f"{self.name}: the codec of the {stream.type} is not known. Convert the file.")
        self.stream, self.low, self.high = stream, low, high  # the stream is of use as long as its container is open
        self.demuxer, self.zero, self.base_s = _demuxer(container), _zero(container), float(stream.time_base)
        self.first_pts: int | None = None
        self.end_pts, self.counted = -(1 << 62), 0
        self.done = False

    @property
    def longest_gap_s(self) -> float:
        """Longest time between two time stamps: that long the last frame may be shown."""
        return 0.0

    def seconds(self, pts: int) -> float:
        return pts * self.base_s - self.zero

    def is_set_again(self, gap_s: float) -> bool:
        """Whether the clock of the stream was set again, by the time between two frames."""
        return gap_s < -_GAP_S or (self.demuxer == "mpegts" and gap_s > _JUMP_S)

    def note(self, packet) -> None:
        """Where the packets of the track begin and end."""
        if packet.size:
            pts, length = packet.pts, packet.duration or 0
            self.counted += length
            if pts is not None:
                if self.first_pts is None or pts < self.first_pts:
                    self.first_pts = pts
                if pts + length > self.end_pts:
                    self.end_pts = pts + length

    @property
    def end_s(self) -> float | None:
        """Where the packets end; None without any."""
        if self.first_pts is None:
            return self.counted * self.base_s or None
        return max(self.seconds(self.end_pts), self.counted * self.base_s)

    def promised_and_found_s(self) -> tuple[float | None, float]:
        """Seconds of the track by the header, None where it makes no promise; and of what is there."""
        if _is_cover(self.stream):
            return None, 0.0
        if self.demuxer in _TRACK_PROMISES and self.stream.duration:
            # From the first packet, also of those that an edit list hides.
            return self.stream.duration * self.base_s, (self.end_pts - (self.first_pts or 0)) * self.base_s
        if self.demuxer == "mp3" and (promised_s := _xing_s(head_of(self.source))) is not None:
            return promised_s, self.end_s or 0.0
        for key, value in self.stream.metadata.items():  # Matroska: the time of its end, as "00:00:06.000000000"
            if key.upper() == "DURATION" and value.count(":") == 2:
                with contextlib.suppress(ValueError):
                    hours, minutes, seconds = map(float, value.split(":"))
                    return 3600 * hours + 60 * minutes + seconds - self.zero, self.end_s or 0.0
        return None, 0.0


class _AudioTrack(_Track):
    """Decoded audio as one channel.

    Args:
        source, name: the file, and what errors call it.
        sampling_rate: of the result, Hz.
        max_s: longest part that is accepted, seconds.
        sign: of the second of two channels in their mean.
    """

    def __init__(self, source, sampling_rate: int, max_s: float | None, name: str, sign: int = 1):
        super().__init__(source, name)
        self.sampling_rate, self.max_s, self.sign = sampling_rate, max_s, sign

    def stream_of(self, container):
        if not container.streams.audio:
            raise InputError(
                f"{self.name}: the file has no audio track. Leave the field `audio` empty for this clip, or add audio."
            )
        return _shown(container.streams.audio)

    def begin(self, container, stream, low: float, high: float) -> None:
        super().begin(container, stream, low, high)
        self.rate_hz, self.is_timed = 0, self.demuxer not in _UNTIMED
        # In samples from the clock's zero: where the track begins, and where the next frame does.
        self.first = self.position = 0
        self.shift = 0
        # Frames that follow one another, the first one's position, and their rate, channels and format.
        self.run: av.AudioFifo | None = None
        self.run_at, self.form = 0, (0, 0, "")
        self.mono: Resampler | None = None  # the part as far as it was read
        self.peak, self.mean_power, self.power = np.float32(0), 0.0, 0.0

    @property
    def covers_start(self) -> bool:
        # Within compressed audio these seek by the mean bit rate.
        is_exact = self.demuxer not in ("wav", "w64", "aiff", "au") or self.stream.codec_context.name.startswith("pcm")
        return is_exact and self.rate_hz > 0 and self.first <= (self.low + ROUNDING_S) * self.rate_hz

    def add(self, packet) -> None:
        if self.demuxer == "mp3" and packet.size and mpeg_audio_frame(bytes(packet)[:4]) is None:
            return  # a tag, between joined files too
        self.note(packet)
        if self.demuxer == "ogg" and bytes(packet)[:8].startswith(_NO_AUDIO):
            return
        for frame in packet.decode():
            self._add_frame(frame)

    def _add_frame(self, frame) -> None:
        pts, rate_hz = frame.pts, self.rate_hz
        if not rate_hz:
            self.rate_hz = rate_hz = frame.rate
            self.first = self.position = 0 if pts is None else round(self.seconds(pts) * rate_hz)
        elif pts is not None and self.is_timed:
            self._keep_time(round((pts * self.base_s - self.zero) * rate_hz) + self.shift)
        form = frame.rate, frame.layout.nb_channels, frame.format.name
        if form != self.form:  # in a chained or joined file
            self._end_run()
            self.form = form
        begin = self.position
        self.position = end = begin + frame.samples * rate_hz / form[0]
        if end > self.low * rate_hz and begin < self.high * rate_hz:
            if self.run is None:
                self.run, self.run_at = av.AudioFifo(), round(begin)
            frame.pts = None  # it would be held against the number of samples before
            self.run.write(frame)
            self._check_length()
            # Of more channels the last bit of the mean would change with where they are cut, and behind a joined file
            # of another rate a run may begin between two samples.
            if self.run.samples >= AT_ONCE and form[0] == rate_hz and form[1] <= 2 and end % 1 == 0:
                self._add_run()
        self.done = end >= self.high * rate_hz

    def _keep_time(self, at: int) -> None:
        """Where a frame's time stamp says that it does not follow the one before."""
        gap_s = (at - self.position) / self.rate_hz
        if abs(gap_s) <= _GAP_S:
            return
        if self.is_set_again(gap_s):
            self.shift += self.position - at
        else:  # what is missing between is silent
            self._end_run()
            self.position = at

    def _end_run(self) -> None:
        self._add_run()
        self.run = None

    def _add_run(self) -> None:
        """Frames that follow one another are joined before they become an array: there are 43 in a second."""
        if self.run is not None and self.run.samples:
            self._add_block(resample(samples_of(self.run.read()), self.form[0], self.rate_hz))  # (channels, samples)
            self.run_at = round(self.position)

    def _add_block(self, block: np.ndarray) -> None:
        """What of a run lies in the part, behind silence where something is missing before it."""
        begin, end = self.bounds
        self.mono = self.mono or Resampler(self.rate_hz, self.sampling_rate)
        at = begin + self.mono.samples - self.run_at
        self.mono.add(np.zeros(max(-at, 0), np.float32))
        block = block[:, max(at, 0) : max(end - self.run_at, 0)]
        if block.size:
            mean = mean_of(block, self.sign)
            self.peak = np.maximum(self.peak, np.abs(mean).max())
            if len(block) == 2:
                self.mean_power, self.power = self.mean_power + mean @ mean, self.power + block[0] @ block[0]
            self.mono.add(mean)

    @property
    def bounds(self) -> tuple[int, int]:
        """The part as far as the track was read, in samples from the clock's zero."""
        end = self.position if self.high == math.inf else min(self.high * self.rate_hz, self.position)
        return max(round(self.low * self.rate_hz), 0), round(end)

    def _check_length(self) -> None:
        seconds = min(self.position / self.rate_hz, self.high) - self.low
        if self.max_s is not None and seconds > self.max_s + (0.0 if self.high < math.inf else _ENDING_S) + 1e-3:
            whole_s = min(end_of_track_s(self.source, "audio", self.name) or 0.0, self.high) - self.low
            raise InputError(
                f"{self.name}: the audio is {max(whole_s, seconds):.1f} s long, more than max_audio_s = "
                f"{self.max_s:g} s. Cut the clip (start_s, end_s) or raise max_audio_s."
            )

    def waveform(self) -> np.ndarray:
        """float32 (samples,) of the part."""
        self._end_run()
        begin, end = self.bounds
        if self.mono is None or end <= begin:
            raise InputError(f"{self.name}: the audio is 0 s long. Remove the clip or give a part that holds audio.")
        if end - begin < MIN_AUDIO_S * self.rate_hz:
            raise InputError(
                f"{self.name}: the audio is {(end - begin) / self.rate_hz:.4f} s long; at least {MIN_AUDIO_S} s are "
                "needed. Remove the clip or give a longer part."
            )
        if self.sign > 0 and cancel(self.mean_power, self.power, self.name):
            turned = _AudioTrack(self.source, self.sampling_rate, self.max_s, self.name, sign=-1)
            _read(self.source, self.name, self.low, None if self.high == math.inf else self.high, audio=turned)
            return turned.waveform()
        check_peak(float(self.peak), self.name)
        self.mono.add(np.zeros(end - begin - self.mono.samples, np.float32))
        return self.mono.end()


class _VideoTrack(_Track):
    """Frames chosen evenly.

    Args:
        source, name: the file, and what errors call it.
        num_frames, fps: see `load_video`.
    """

    frames: Any  # uint8 (num_frames, H, W, 3); None until one is decoded
    metadata: VideoMetadata
    wanted: list[int]  # which of the file's frames these are, in order

    def __init__(self, source, name: str, num_frames: int | None, fps: float | None):
        super().__init__(source, name)
        self.num_frames, self.fps = num_frames, fps

    def stream_of(self, container):
        if not container.streams.video:
            raise InputError(f"{self.name}: the file has no video track. Use it as `audio`, or give a video.")
        return _shown(container.streams.video)

    def begin(self, container, stream, low: float, high: float) -> None:
        super().begin(container, stream, low, high)
        self.index, self.mean_rate = stream.index, float(stream.average_rate or stream.guessed_rate or 0)
        self.size_px = stream.codec_context.width, stream.codec_context.height
        check_pixels(*self.size_px, self.name)
        self.reformatter = VideoReformatter()  # one for all frames: making one takes as long as using it
        self.packets: list[tuple[int | None, bool, int]] = []  # time stamp, whether a key frame, duration
        self.decoding_stamps: list[int | None] = []
        self.last_dts: int | None = None

    @property
    def covers_start(self) -> bool:
        first = min((pts for pts, is_key, _ in self.packets if is_key and pts is not None), default=None)
        return first is not None and self.seconds(first) <= self.low + ROUNDING_S

    def add(self, packet) -> None:
        self.note(packet)
        if packet.size and not packet.is_discard:
            self._check_clock(packet)
            self.packets.append((packet.pts, packet.is_keyframe, packet.duration or 0))
            self.decoding_stamps.append(packet.dts)
            # Frames are stored before those that are shown after them: the time of decoding only grows.
            self.done = packet.dts is not None and self.seconds(packet.dts) > self.high + ROUNDING_S

    def _check_clock(self, packet) -> None:
        if packet.dts is None or packet.is_discard:
            return
        if self.last_dts is not None and self.is_set_again((packet.dts - self.last_dts) * self.base_s):
            raise InputError(
                f"{self.name}: the clock of the video is set again at {self.seconds(self.last_dts):.2f} s, as where "
                "files were joined. Give the files one by one, or join them by FFmpeg's concat."
            )
        self.last_dts = packet.dts

    @property
    def longest_gap_s(self) -> float:
        stamps = sorted(pts for pts, _, _ in self.packets if pts is not None)
        return max((after - before for before, after in zip(stamps, stamps[1:])), default=0) * self.base_s

    def decode(self, container, last_s: float | None) -> None:
        """Decode the frames of the packets that were given; `last_s` is the end of the file where it was reached."""
        packets = sorted((pts, is_key, length) for pts, is_key, length in self.packets if pts is not None)
        is_timed = len(packets) == len(self.packets) > 0
        if not is_timed or not self._by_time(container, packets, last_s):
            # Without time stamps in the packets (AVI), or with some that the frames do not have.
            self._by_count(is_timed, last_s)

    def _by_time(self, container, packets, last_s: float | None) -> bool:
        """Takes the frames of these time stamps; whether the packets' time stamps led to them."""
        self.pts = [pts for pts, _, _ in packets]
        self.keys = [i for i, (_, is_key, _) in enumerate(packets) if is_key]
        self._choose([self.seconds(pts) for pts in self.pts], packets[-1][2] * self.base_s, last_s)
        if self.demuxer in _SEEKABLE and self._by_seeks(container):
            return True
        return self._take_all(self.from_start(self.pts[self.wanted[-1]]), self.pts)

    def _by_count(self, is_timed: bool, last_s: float | None) -> None:
        """Takes frames by their order alone; all are decoded to count them."""
        stamps = [frame.pts for frame in self.from_start()]
        if not is_timed and None not in self.decoding_stamps and len(stamps) == len(self.decoding_stamps):
            stamps = list(self.decoding_stamps)  # one frame is shown each time that one is decoded
        if None not in stamps:
            stamps.sort()  # frames come in the order in which they are shown, whatever was guessed of each
        frame_s = 1 / self.mean_rate if self.mean_rate else _UNKNOWN_FRAME_S
        times_s: list[float] = []
        for stamp in stamps:
            follows_s = times_s[-1] + frame_s if times_s else 0.0
            times_s.append(follows_s if stamp is None else max([self.seconds(stamp), *times_s[-1:]]))
        self._choose(times_s, frame_s, last_s)
        if not self._take_all(itertools.islice(self.from_start(), self.wanted[-1] + 1)):
            raise InputError(f"{self.name}: frames of the video are decoded once and not again. The file is corrupt.")

    def _take_all(self, frames: Iterable[Any], stamps: Sequence[int] | None = None) -> bool:
        """Takes what is wanted of the file's frames; whether all of it was there, with these time stamps."""
        wanted, found = set(self.wanted), set()
        for index, frame in enumerate(frames):
            # AVI stores no times of display, and FFmpeg guesses some in a wrong order.
            if stamps is not None and (index == len(stamps) or frame.pts != stamps[index]):
                return False
            if index in wanted:
                self._take(index, frame)
                found.add(index)
        return found == wanted

    def _take(self, index: int, frame) -> None:
        """Sets what is made of the file's frame of this index."""
        image = self.to_rgb(frame)
        if self.frames is None:
            self.frames = np.empty((len(self.wanted), *image.shape), np.uint8)
        self.frames[bisect.bisect_left(self.wanted, index) : bisect.bisect_right(self.wanted, index)] = image

    def _choose(self, times_s: list[float], last_frame_s: float, last_s: float | None) -> None:
        """Sets which of the frames shown from `times_s` on are taken, and the metadata."""
        if not times_s:
            raise InputError(f"{self.name}: no frame of the video can be decoded. The file is corrupt or truncated.")
        rate = self.mean_rate or len(times_s) / max(times_s[-1] - times_s[0], _UNKNOWN_FRAME_S)
        # Where it is not written how long the last frame is shown: as long as the one before.
        end_s = times_s[-1] + (last_frame_s or (times_s[-1] - times_s[-2] if len(times_s) > 1 else 0.0) or 1 / rate)
        if len(times_s) == 1 and last_s is not None:  # one image throughout
            end_s = max(end_s, last_s)
        self.frames = None
        self.wanted, self.metadata = spread_frames(
            times_s, rate, self.low, min(end_s, self.high), self.num_frames, self.fps, self.name, self.size_px
        )

    def _by_seeks(self, container) -> bool:
        """Takes the frames by seeks to the key frames before them; False where a seek lands elsewhere.

        A seek pays off only when it jumps over a key frame: between two key frames everything in between must be
        decoded anyway, and one seek per frame is three times slower on files with long groups.
        """
        position, frames, is_exact = -1, None, False
        for target in dict.fromkeys(self.wanted):
            before = bisect.bisect_right(self.keys, target)
            if not before:
                return False
            key = self.keys[before - 1]
            if frames is None or key > position + 1:
                container.seek(self.pts[key], stream=self.stream, backward=True)
                frames, is_exact = container.decode(self.stream), False
            for frame in frames:
                check_deadline(self.name)
                is_exact |= frame.pts == self.pts[key]
                if frame.pts is None or frame.pts >= self.pts[target]:
                    break
            else:
                return False
            if frame.pts != self.pts[target] or not is_exact or frame.is_corrupt:
                return False
            self._take(target, frame)
            position = target
        return True

    def from_start(self, last_pts: int | None = None) -> Iterator[Any]:
        """Frames from the first key frame on, in the order of display, as far as `last_pts`."""
        with open_av(self.source, self.name) as container:
            stream, is_started, self.last_dts = container.streams[self.index], False, None
            for packet in container.demux(stream):
                check_deadline(self.name)
                self._check_clock(packet)
                is_started = is_started or packet.is_keyframe or not packet.size
                for frame in packet.decode() if is_started else ():
                    yield frame
                    if last_pts is not None and frame.pts is not None and frame.pts >= last_pts:
                        return

    def to_rgb(self, frame) -> np.ndarray:
        width, height = self.size_px if all(self.size_px) else (frame.width, frame.height)
        check_pixels(width, height, self.name)
        self.size_px = width, height  # of the first frame: one of another size is scaled to it
        alpha = frame.format.components[-1].is_alpha
        image = self.reformatter.reformat(frame, width, height, "rgba" if alpha else "rgb24").to_ndarray()
        if alpha:
            image = np.asarray(rgb_of(Image.fromarray(image), self.name))  # (H, W, 3)
        if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
            # Phones store upright video lying on its side, and mirrored. x' = ax + cy, y' = bx + dy
            a, b, _, c, d = np.frombuffer(matrix, np.int32, 5)
            is_lying = abs(int(b)) > abs(int(a))
            x, y = (c, b) if is_lying else (a, d)
            image = image.swapaxes(0, 1) if is_lying else image
            image = image[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]
        return np.ascontiguousarray(image)


def _zero(container) -> float:
    """The container's time of its clock's zero, seconds; what is before it (the delay of an encoder) is not shown."""
    start_s = (container.start_time or 0) / av.time_base
    # Clocks of broadcasting go round after 26.5 hours; what is before that has negative time stamps.
    return start_s if _demuxer(container) in ("mpegts", "mpeg") else max(start_s, 0.0)


def _demuxer(container) -> str:
    return container.format.name.split(",")[0]


def _xing_s(head: bytes) -> float | None:
    """Seconds of an MP3 as its first frame counts them, with the sizes of its frames; None where it does not."""
    for start in range(len(head) - 4):
        if (found := mpeg_audio_frame(head[start : start + 4])) is not None:
            length, samples, rate_hz = found
            frame = head[start : start + length]
            at = max(frame.find(b"Xing"), frame.find(b"Info"))
            if at < 0 or not frame[at + 7] & 1:
                return None
            return int.from_bytes(frame[at + 8 : at + 12], "big") * samples / rate_hz
    return None


def _is_cover(stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _shown(streams):
    """Of several audio or video streams the one that players take: the default, and the cover of an album last."""
    default = av.stream.Disposition.default
    return max(streams, key=lambda stream: (not _is_cover(stream), bool(stream.disposition & default)))
