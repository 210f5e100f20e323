"""The bytes that a benchmark embeds for a clip: its sound without pictures, its picture or film without sound.

A model that is asked by sound alone must not get a film, and one that is asked by sight alone no sound track. What is
already so, and is used whole, is embedded as it is; the rest is copied without the other tracks, or coded anew where
only a part is used.
"""

import io
from fractions import Fraction

import numpy as np

from ..data.manifest import Clip, Media
from ..data.media import load_audio, load_image, load_video
from ..model.media import open_av
from ..utils import InputError
from .unpack import suffix_of

# A part that ends this near to the end of the file is the whole file.
END_TOLERANCE_S = 0.05
# Near to lossless; one thread, because x264's bytes depend on their number.
FILM_OPTIONS = {"crf": "16", "preset": "medium", "threads": "1"}
_TICKS_HZ = 90_000


def sound_of(clip: Clip) -> tuple[bytes, str]:
    """A clip's sound as (bytes of a file, suffix): the file itself, or 16-bit mono FLAC at the file's rate.

    Raises:
        InputError: it cannot be decoded; the clip is named.
    """
    assert clip.audio is not None
    name = f"clip {clip.id!r}, audio"
    rate_hz, whole, alone = _track(clip.audio, "audio", clip, name)
    part = {} if whole else {"start_s": clip.start_s, "end_s": clip.end_s}
    # Decoded in any case: what cannot be decoded must not be published.
    sound = load_audio(clip.audio, sampling_rate=rate_hz, name=name, **part)
    if whole and alone:
        return _bytes_and_suffix(clip.audio)
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound, -1, 1), rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), ".flac"


def picture_of(clip: Clip) -> tuple[bytes, str]:
    """A clip's picture or film as (bytes of a file, suffix): the file itself, its picture track, or H.264 of a part.

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
    film = (_picture_track(clip.video) if whole else None) or _coded_part(clip.video, part[0] or 0.0, part[1])
    load_video(film, 2, name=f"{name}, copied")
    return film, ".mp4"


def _bytes_and_suffix(source: Media) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, suffix_of(None, source)
    with open(source, "rb") as file:
        content = file.read()
    return content, suffix_of(source, content)


def _track(source: Media, kind: str, clip: Clip, name: str) -> tuple[int, bool, bool]:
    """Sampling rate (of a sound), whether the clip is the whole file, whether the file holds no other track."""
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


def _picture_track(source: Media) -> bytes | None:
    """The picture track in an mp4, not coded anew; None where mp4 does not take its codec."""
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
    """The pictures from `start_s` to `end_s`, coded anew with their times; an odd last row or column is cut."""
    import av

    buffer = io.BytesIO()
    with open_av(source) as old, av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as new:
        track = old.streams.video[0]
        film = None
        first_s = None
        for frame in old.decode(track):
            if frame.time is None:
                continue
            origin_s = first_s = frame.time if first_s is None else first_s
            time_s = frame.time - origin_s
            if time_s < start_s - 5e-4:
                continue
            if end_s is not None and time_s >= end_s - 5e-4:
                break
            picture = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90) % 4)
            height, width = (side - side % 2 for side in picture.shape[:2])
            if film is None:
                film = new.add_stream("libx264", rate=track.average_rate or 25, options=FILM_OPTIONS)
                film.width, film.height, film.pix_fmt = width, height, "yuv420p"
                film.codec_context.time_base = Fraction(1, _TICKS_HZ)
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            shown.pts, shown.time_base = round((time_s - start_s) * _TICKS_HZ), Fraction(1, _TICKS_HZ)
            new.mux(film.encode(shown))
        if film is not None:
            new.mux(film.encode(None))
    return buffer.getvalue()
