"""Writes a clip as real media: an mp4 with sound, or a PNG beside a WAV for a painting."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from .clips import Clip, WorldConfig
from .picture import render
from .sound import synthesize


def write_mp4(path: Path, frames: np.ndarray, fps: int, wave: np.ndarray, sampling_rate: int) -> None:
    """frames uint8 (F, H, W, 3), wave float32 (samples,) in [-1, 1]. MPEG-4 part 2 + AAC, in every FFmpeg build."""
    with av.open(str(path), "w", format="mp4") as container:
        # One thread: the same bytes on every machine, and the clips are written in parallel anyway.
        video = container.add_stream("mpeg4", rate=fps, options={"threads": "1", "qmin": "2", "qmax": "4"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.bit_rate = 1_500_000
        options = {"threads": "1", "aac_coder": "fast"}
        audio = container.add_stream("aac", rate=sampling_rate, layout="mono", options=options)
        audio.bit_rate = 64_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        step = 1024  # samples of an AAC frame
        for start in range(0, len(wave), step):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + step], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sampling_rate, start, Fraction(1, sampling_rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())


def media_names(clip: Clip) -> dict[str, str]:
    """File name of each manifest field that this clip fills."""
    if clip.art_form == "painting":
        return {"image": f"{clip.id}.png", "audio": f"{clip.id}.wav"}
    return {"video": f"{clip.id}.mp4", "audio": f"{clip.id}.mp4"}


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
        temporary = folder / f".{names['image']}"
        Image.fromarray(frames[0]).save(temporary, format="PNG")
        os.replace(temporary, folder / names["image"])
        temporary = folder / f".{names['audio']}"
        soundfile.write(temporary, wave, config.sampling_rate, format="WAV", subtype="PCM_16")
        os.replace(temporary, folder / names["audio"])
    else:
        temporary = folder / f".{names['video']}"
        write_mp4(temporary, frames, config.fps, wave, config.sampling_rate)
        os.replace(temporary, folder / names["video"])
    return names
