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
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from .inputs import InputError
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

logger = logging.getLogger(__name__)

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
# Decoders of audio need what comes before a part: AAC and Opus to settle, MP3 its reservoir of bits.
_SETTLING_S = 1.0
# Audio in floats may go over 1 a little, 40 dB never: it is integers that were converted and not scaled.
LOUDEST = 100.0
# The mean of two channels this much quieter than they are, in power, has lost what they hold: -40 dB.
_CANCELLED = 1e-4

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
# Shares of a channel in the mean of all, by its name: ITU-R BS.775, without the channel of low frequencies.
_SHARES = {"FL": 1.0, "FR": 1.0, "FC": 2**0.5, "LFE": 0.0, "LFE2": 0.0}
_SHARE_OF_OTHERS = 0.5**0.5

# Samples that stay in a processor's cache.
_RESAMPLED_AT_ONCE = 1 << 16


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
        audio = _AudioTrack(source, max_s, name)
        _read(source, name, start_s, end_s, audio=audio)
        return audio.waveform(sampling_rate)


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
        audio, video = _AudioTrack(source, max_s, name), _VideoTrack(source, name, num_frames, None)
        _read(source, name, start_s, end_s, audio, video)
        return audio.waveform(sampling_rate), video.frames, video.metadata


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
            start = None if video is None else video.start_time
            return Tracks(
                video=video is not None,
                frame_rate=None if video is None else video.average_rate,
                video_start_s=0.0 if start is None else float(start * video.time_base) - _zero(container),
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
    can_seek = low > _SETTLING_S and high < math.inf and demuxer_of(source, name) in _SEEKABLE
    for seek_s in (low - _SETTLING_S, None) if can_seek else (None,):
        with open_av(source, name) as container:
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
    for packet in container.demux():
        check_deadline(name)
        index = packet.stream.index  # not its stream_index, which is 0 in the packet that ends a stream
        if packet.pts is not None:
            last_s = max(last_s, (packet.pts + (packet.duration or 0)) * float(packet.time_base) - zero)
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
        if promised_s is not None and promised_s - found_s > _TRUNCATION_TOLERANCE_S + track.longest_gap_s:
            kind = track.stream.type
            raise InputError(f"{name}: truncated, {found_s:.2f} s of {promised_s:.2f} s of {kind} are there.")
    if _demuxer(container) in _FILE_PROMISES and container.duration:
        # Matroska counts it from the zero of the time stamps, others from the first.
        promised_s = container.duration / av.time_base - (
            _zero(container) if _demuxer(container) == "matroska" else 0.0
        )
        if promised_s - last_s > _TRUNCATION_TOLERANCE_S + max(track.longest_gap_s for track in tracks):
            raise InputError(f"{name}: truncated, {last_s:.2f} s of {promised_s:.2f} s are there.")


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
            self.counted += packet.duration or 0
            if packet.pts is not None:
                self.first_pts = packet.pts if self.first_pts is None else min(self.first_pts, packet.pts)
                self.end_pts = max(self.end_pts, packet.pts + (packet.duration or 0))

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
    """Decoded audio.

    Args:
        source, name: the file, and what errors call it.
        max_s: longest part that is accepted, seconds.
    """

    def __init__(self, source, max_s: float | None, name: str):
        super().__init__(source, name)
        self.max_s = max_s

    def stream_of(self, container):
        if not container.streams.audio:
            raise InputError(
                f"{self.name}: the file has no audio track. Leave the field `audio` empty for this clip, or add audio."
            )
        return _shown(container.streams.audio)

    def begin(self, container, stream, low: float, high: float) -> None:
        super().begin(container, stream, low, high)
        self.rate_hz = 0
        # In samples from the clock's zero: where the track begins, and where the next frame does.
        self.first = self.position = 0
        self.shift = 0
        # Frames that follow one another, the first one's position, and their rate, channels and format.
        self.run: av.AudioFifo | None = None
        self.run_at, self.form = 0, (0, 0, "")
        self.blocks: list[tuple[int, np.ndarray]] = []  # position of the first sample, (channels, samples)

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
        if not self.rate_hz:
            self.rate_hz = frame.rate
            self.first = self.position = 0 if frame.pts is None else round(self.seconds(frame.pts) * frame.rate)
        elif frame.pts is not None and self.demuxer not in _UNTIMED:
            self._keep_time(round(self.seconds(frame.pts) * self.rate_hz))
        form = frame.rate, frame.layout.nb_channels, frame.format.name
        if form != self.form:  # in a chained or joined file
            self._end_run()
            self.form = form
        end = self.position + frame.samples * self.rate_hz / frame.rate
        if end > self.low * self.rate_hz and self.position < self.high * self.rate_hz:
            if self.run is None:
                self.run, self.run_at = av.AudioFifo(), round(self.position)
            frame.pts = None  # it would be held against the number of samples before
            self.run.write(frame)
            self._check_length(min(end / self.rate_hz, self.high) - self.low)
        self.position = end
        self.done = end >= self.high * self.rate_hz

    def _keep_time(self, at: int) -> None:
        """Where a frame's time stamp says that it does not follow the one before."""
        gap_s = (at + self.shift - self.position) / self.rate_hz
        if abs(gap_s) <= _GAP_S:
            return
        if self.is_set_again(gap_s):
            self.shift = self.position - at
        else:  # what is missing between is silent
            self._end_run()
            self.position = at + self.shift

    def _end_run(self) -> None:
        """Frames that follow one another are joined before they become an array: there are 43 in a second."""
        if self.run is not None:
            block = _samples_of(self.run.read())
            self.blocks.append((self.run_at, resample(block, self.form[0], self.rate_hz)))
        self.run = None

    def _check_length(self, seconds: float) -> None:
        if self.max_s is not None and seconds > self.max_s + (0.0 if self.high < math.inf else _ENDING_S) + 1e-3:
            whole_s = min(end_of_track_s(self.source, "audio", self.name) or 0.0, self.high) - self.low
            raise InputError(
                f"{self.name}: the audio is {max(whole_s, seconds):.1f} s long, more than max_audio_s = "
                f"{self.max_s:g} s. Cut the clip (start_s, end_s) or raise max_audio_s."
            )

    def waveform(self, sampling_rate: int) -> np.ndarray:
        """float32 (samples,) of the part."""
        self._end_run()
        rate_hz = self.rate_hz
        begin = max(round(self.low * rate_hz), 0)
        end = round(self.position if self.high == math.inf else min(self.high * rate_hz, self.position))
        if not self.blocks or end <= begin:
            raise InputError(f"{self.name}: the audio is 0 s long. Remove the clip or give a part that holds audio.")
        channels = self.blocks[0][1].shape[0]
        if any(block.shape[0] != channels for _, block in self.blocks):
            self.blocks = [(position, mix(block, self.name)[None]) for position, block in self.blocks]
            channels = 1
        position, block = self.blocks[0]
        if position <= begin and end <= position + block.shape[1]:  # nearly always one run holds the part
            samples = block[:, begin - position : end - position]
        else:
            samples = np.zeros((channels, end - begin), np.float32)
            for position, block in self.blocks:
                at = position - begin
                samples[:, max(at, 0) : at + block.shape[1]] = block[:, max(-at, 0) : max(end - position, 0)]
        if samples.shape[1] < MIN_AUDIO_S * rate_hz:
            raise InputError(
                f"{self.name}: the audio is {samples.shape[1] / rate_hz:.4f} s long; at least {MIN_AUDIO_S} s are "
                "needed. Remove the clip or give a longer part."
            )
        waveform = check_samples(mix(samples, self.name), self.name)
        return np.ascontiguousarray(resample(waveform, rate_hz, sampling_rate), dtype=np.float32)


class _VideoTrack(_Track):
    """Frames chosen evenly.

    Args:
        source, name: the file, and what errors call it.
        num_frames, fps: see `load_video`.
    """

    frames: np.ndarray  # uint8 (num_frames, H, W, 3)
    metadata: VideoMetadata

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
        wanted, images = self._by_time(container, packets, last_s) if is_timed else ([], None)
        if images is None:
            # Without time stamps in the packets (AVI), or with some that the frames do not have.
            wanted, images = self._by_count(is_timed, last_s)
        self.frames = np.stack([images[index] for index in wanted])  # (num_frames, H, W, 3)

    def _by_time(self, container, packets, last_s: float | None) -> tuple[list[int], dict[int, np.ndarray] | None]:
        """Which frames are taken, and these frames; None where the packets' time stamps do not lead to them."""
        self.pts = [pts for pts, _, _ in packets]
        self.keys = [i for i, (_, is_key, _) in enumerate(packets) if is_key]
        wanted = self._choose([self.seconds(pts) for pts in self.pts], packets[-1][2] * self.base_s, last_s)
        images = self._by_seeks(container, sorted(set(wanted))) if self.demuxer in _SEEKABLE else None
        if images is None:
            images, chosen = {}, set(wanted)
            for index, frame in enumerate(self.from_start(self.pts[max(wanted)])):
                # AVI stores no times of display, and FFmpeg guesses some in a wrong order.
                if index == len(self.pts) or frame.pts != self.pts[index]:
                    return wanted, None
                if index in chosen:
                    images[index] = self.to_rgb(frame)
        return wanted, images if images.keys() == set(wanted) else None

    def _by_count(self, is_timed: bool, last_s: float | None) -> tuple[list[int], dict[int, np.ndarray]]:
        """Which frames are taken, and these frames, by their order alone; all are decoded to count them."""
        stamps = [frame.pts for frame in self.from_start()]
        if not is_timed and None not in self.decoding_stamps and len(stamps) == len(self.decoding_stamps):
            stamps = list(self.decoding_stamps)  # one frame is shown each time that one is decoded
        if None not in stamps:
            stamps.sort()  # frames come in the order in which they are shown, whatever was guessed of each
        times_s: list[float] = []
        for stamp in stamps:
            follows_s = times_s[-1] + 1 / self._rate(1) if times_s else 0.0
            times_s.append(follows_s if stamp is None else max([self.seconds(stamp), *times_s[-1:]]))
        wanted = self._choose(times_s, 1 / self._rate(1), last_s)
        chosen = set(wanted)
        frames = itertools.islice(self.from_start(), max(wanted) + 1)
        return wanted, {i: self.to_rgb(frame) for i, frame in enumerate(frames) if i in chosen}

    def _rate(self, frames: int, seconds: float = 0.0) -> float:
        return self.mean_rate or frames / max(seconds, 1e-3)

    def _choose(self, times_s: list[float], last_frame_s: float, last_s: float | None) -> list[int]:
        """Which of the frames shown from `times_s` on are taken. Sets the metadata."""
        if not times_s:
            raise InputError(f"{self.name}: no frame of the video can be decoded. The file is corrupt or truncated.")
        rate = self._rate(len(times_s), times_s[-1] - times_s[0])
        # Where it is not written how long the last frame is shown: as long as the one before.
        end_s = times_s[-1] + (last_frame_s or (times_s[-1] - times_s[-2] if len(times_s) > 1 else 0.0) or 1 / rate)
        if len(times_s) == 1 and last_s is not None:  # one image throughout
            end_s = max(end_s, last_s)
        wanted, self.metadata = spread_frames(
            times_s, rate, self.low, min(end_s, self.high), self.num_frames, self.fps, self.name, self.size_px
        )
        return wanted

    def _by_seeks(self, container, targets: Sequence[int]) -> dict[int, np.ndarray] | None:
        """The frames by seeks to the key frames before them; None where a seek lands elsewhere.

        A seek pays off only when it jumps over a key frame: between two key frames everything in between must be
        decoded anyway, and one seek per frame is three times slower on files with long groups.
        """
        images: dict[int, np.ndarray] = {}
        position, frames, is_exact = -1, None, False
        for target in targets:
            before = bisect.bisect_right(self.keys, target)
            if not before:
                return None
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
                return None
            if frame.pts != self.pts[target] or not is_exact or frame.is_corrupt:
                return None
            images[target], position = self.to_rgb(frame), target
        return images

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


# ---- audio


def _samples_of(frame) -> np.ndarray:
    """One decoded audio frame as float32 (channels, samples); of more than two channels their mean."""
    block = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples * channels)
    if not frame.format.is_planar:
        block = block.reshape(-1, frame.layout.nb_channels).T
    block = scaled(block)
    if len(block) <= 2:
        return block
    shares = np.array([_SHARES.get(channel.name, _SHARE_OF_OTHERS) for channel in frame.layout.channels], np.float32)
    return (shares / max(shares.sum(), 1e-6) @ block)[None]


def scaled(samples: np.ndarray) -> np.ndarray:
    """Samples of floats, or of integers scaled to [-1, 1) by their type, as float32."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:  # the only unsigned sample format
        return (samples.astype(np.float32) - 128.0) / 128.0
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def mix(samples: np.ndarray, name: str) -> np.ndarray:
    """The mean of the channels, float32 (channels, samples) -> (samples,); half the difference of two that cancel."""
    if len(samples) == 1:
        return samples[0]
    mono = (samples[0] + samples[1]) * np.float32(0.5) if len(samples) == 2 else samples.mean(0)
    if len(samples) == 2 and np.dot(mono, mono) < _CANCELLED * np.dot(samples[0], samples[0]):
        logger.warning(
            "%s: the two channels cancel each other (one is the other with its sign turned); half their difference is "
            "used in place of their mean.",
            name,
        )
        mono = (samples[0] - samples[1]) * np.float32(0.5)
    return mono


def check_samples(waveform: np.ndarray, name: str) -> np.ndarray:
    """A waveform (samples,) as it is.

    Raises:
        InputError: samples that are no audio.
    """
    if not np.isfinite(waveform).all():
        raise InputError(f"{name}: the audio holds NaN or infinite samples. Export the file again.")
    if (peak := float(np.abs(waveform).max())) > LOUDEST:
        raise InputError(
            f"{name}: samples reach {peak:.0f}, and floats lie in [-1, 1]; divide what was read as 16-bit integers by "
            "32768, or give the integers."
        )
    return waveform


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """A waveform, float32 (samples,) or (channels, samples), at another rate.

    By FFmpeg's libswresample, whose filter bank is bounded: torchaudio's grows with the product of the reduced rates,
    to 22 GB for 44,099 Hz to 16 kHz.
    """
    if from_hz == to_hz:
        return waveform
    if waveform.ndim == 2:
        return np.stack([resample(channel, from_hz, to_hz) for channel in waveform])
    resampler = av.AudioResampler(format="flt", layout="mono", rate=to_hz)
    resampled = []
    for begin in range(0, len(waveform), _RESAMPLED_AT_ONCE):
        part = np.ascontiguousarray(waveform[None, begin : begin + _RESAMPLED_AT_ONCE])
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
        frame.sample_rate, frame.pts = from_hz, begin
        resampled += resampler.resample(frame)
    resampled += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in resampled]) if resampled else waveform[:0]
