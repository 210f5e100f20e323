"""Writes a clip as real media: an mp4 with sound, or a PNG beside a WAV for a painting.

A benchmark's film and sound are two files with the same tracks: an adapter that takes the sound of a film would hear
the items that it is to see only.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from .clips import Clip, WorldConfig
from .picture import render
from .sound import synthesize


def write_mp4(
    path: Path, config: WorldConfig, frames: np.ndarray | None = None, wave: np.ndarray | None = None
) -> None:
    """Writes the tracks that are given: MPEG-4 part 2 and AAC, which every FFmpeg build has.

    Args:
        frames: uint8 (F, H, W, 3).
        wave: float32 (samples,) in [-1, 1].
    """
    with av.open(str(path), "w", format="mp4") as container:
        # All tracks before the first packet: the header names them.
        video = _video_stream(container, config.fps, frames) if frames is not None else None
        audio = _audio_stream(container, config.sampling_rate) if wave is not None else None
        if video is not None:
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, config.fps)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None:
            step = 1024  # samples of an AAC frame
            for start in range(0, len(wave), step):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + step], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = config.sampling_rate, start
                frame.time_base = Fraction(1, config.sampling_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


# One thread each: the same bytes on every machine, and the clips are written in parallel anyway.


def _video_stream(container, fps: int, frames: np.ndarray):
    video = container.add_stream("mpeg4", rate=fps, options={"threads": "1", "qmin": "2", "qmax": "4"})
    video.height, video.width = frames.shape[1:3]
    video.pix_fmt = "yuv420p"
    video.bit_rate = 1_500_000
    return video


def _audio_stream(container, sampling_rate: int):
    options = {"threads": "1", "aac_coder": "fast"}
    audio = container.add_stream("aac", rate=sampling_rate, layout="mono", options=options)
    audio.bit_rate = 64_000
    return audio


def media_names(clip: Clip) -> dict[str, str]:
    """File name of each manifest field that this clip fills."""
    if clip.art_form == "painting":
        return {"image": f"{clip.id}.png", "audio": f"{clip.id}.wav"}
    return {"video": f"{clip.id}.mp4", "audio": f"{clip.id}.{'m4a' if clip.split == 'benchmark' else 'mp4'}"}


def write_clip(config: WorldConfig, clip: Clip, folder: Path) -> dict[str, str]:
    """Writes the files of one clip, skipping those that are there; returns their names by manifest field.

    A file appears under its final name only when it is complete, so a build that was killed can go on.
    """
    names = media_names(clip)
    if all((folder / name).exists() for name in names.values()):
        return names
    wave = synthesize(config, clip)
    frames = render(config, clip)
    if clip.art_form == "painting":
        with _complete(folder / names["image"]) as path:
            Image.fromarray(frames[0]).save(path, format="PNG")
        with _complete(folder / names["audio"]) as path:
            soundfile.write(path, wave, config.sampling_rate, format="WAV", subtype="PCM_16")
    elif names["audio"] == names["video"]:
        with _complete(folder / names["video"]) as path:
            write_mp4(path, config, frames, wave)
    else:
        with _complete(folder / names["video"]) as path:
            write_mp4(path, config, frames=frames)
        with _complete(folder / names["audio"]) as path:
            write_mp4(path, config, wave=wave)
    return names


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A name to write to; what was written gets `path` at the end, unless that failed."""
    temporary = path.with_name(f".{path.name}")
    yield temporary
    os.replace(temporary, path)
