"""Real media files, made small, for tests: nothing here needs the network or a codec outside PyAV and soundfile."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np


def tone(seconds: float, rate_hz: int = 16_000, pitch_hz: float = 440.0, channels: int = 1) -> np.ndarray:
    """float32 (samples,) or (samples, channels); every channel has a pitch of its own."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    waves = [0.4 * np.sin(2 * np.pi * pitch_hz * (1 + i / 2) * time_s) for i in range(channels)]
    return np.stack(waves, axis=1).astype(np.float32) if channels > 1 else waves[0].astype(np.float32)


def write_wav(
    path: Path, seconds: float = 1.0, rate_hz: int = 16_000, pitch_hz: float = 440.0, channels: int = 1
) -> Path:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate_hz, pitch_hz, channels), rate_hz)
    return path


def write_png(path: Path, size_px: int = 56, seed: int = 0) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(size_px, seed)).save(path)
    return path


def picture(size_px: int, seed: int) -> np.ndarray:
    """A smooth uint8 image (size_px, size_px, 3) whose colours depend on the seed."""
    x, y = np.meshgrid(np.linspace(0, 1, size_px), np.linspace(0, 1, size_px))
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    waves = [np.sin(3 * x + p) * np.cos(4 * y + p) for p in phase]
    return ((np.stack(waves, axis=-1) * 0.5 + 0.5) * 255).astype(np.uint8)


def write_video(
    path: Path,
    seconds: float = 1.0,
    fps: int = 10,
    size_px: int = 56,
    gop: int = 5,
    sound: bool = True,
    pitch_hz: float = 440.0,
    seed: int = 0,
    faststart: bool = False,
    sound_s: float | None = None,
) -> Path:
    """An mp4 (mpeg4 + AAC). The grey level of frame i is about 10 + 8 * i, so that a test can tell frames apart."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width = video.height = size_px
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = gop
        video.codec_context.time_base = Fraction(1, fps)
        audio = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for index in range(round(seconds * fps)):
            level = np.full((size_px, size_px, 3), min(10 + 8 * index, 250), np.uint8)
            level[: size_px // 4] = picture(size_px, seed)[: size_px // 4]
            frame = av.VideoFrame.from_ndarray(level, format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            wave = tone(seconds if sound_s is None else sound_s, pitch_hz=pitch_hz)
            for begin in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], format="fltp", layout="mono")
                block.sample_rate = 16_000
                block.pts = begin
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


EMOTIONS = ("joy", "calm", "fear", "sadness")
CONTENTS = ("circle", "square")


def write_world(root: Path, clips: int = 8, split: str = "train", videos: bool = True, labels: bool = True) -> Path:
    """A folder of clips, half images with WAV and half (with `videos`) mp4 with audio, and its manifest."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(clips):
        row = {"id": f"{split}-{i}", "split": split, "source": "test", "license": "CC0-1.0"}
        if videos and i % 2:
            name = f"{split}-{i}.mp4"
            write_video(root / name, seed=i, pitch_hz=200 + 50 * i)
            row |= {"video": name, "audio": name}
        else:
            write_png(root / f"{split}-{i}.png", seed=i)
            write_wav(root / f"{split}-{i}.wav", seconds=1.0 + 0.1 * (i % 3), pitch_hz=200 + 50 * i)
            row |= {"image": f"{split}-{i}.png", "audio": f"{split}-{i}.wav"}
        if labels:
            row |= {
                "content": CONTENTS[i % 2],
                "emotion": EMOTIONS[i % 4],
                "valence": round(np.cos(i), 3),
                "arousal": round(np.sin(2 * i), 3),
                "caption": f"a {CONTENTS[i % 2]}",
                "art_form": "painting",
            }
        rows.append(row)
    manifest = root / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


# Of a container: the codecs of video that are tried in it, and one of audio.
CONTAINERS = {
    "mp4": (("libx264", "libx265", "mpeg4", "libvpx-vp9"), "aac"),
    "mov": (("libx264", "mpeg4", "mjpeg"), "aac"),
    "ipod": (("libx264", "mpeg4"), "aac"),
    "3gp": (("libx264", "mpeg4"), "aac"),
    "matroska": (("libx264", "libx265", "mpeg4", "libvpx-vp9"), "aac"),
    "webm": (("libvpx", "libvpx-vp9"), "libopus"),
    "avi": (("libx264", "mpeg4", "mjpeg"), "libmp3lame"),
    "mpegts": (("libx264", "libx265", "mpeg2video"), "aac"),
    "mpeg": (("mpeg1video", "mpeg2video"), "mp2"),
    "vob": (("mpeg2video",), "ac3"),
    "flv": (("libx264", "flv"), "aac"),
    "asf": (("wmv2", "mpeg4"), "wmav2"),
    "mxf": (("mpeg2video",), "pcm_s16le"),
}


def write_clip(
    path: Path,
    container: str,
    codec: str,
    audio_codec: str | None = None,
    seconds: float = 2.0,
    fps: int = 25,
    gop: int = 12,
    video_start_s: float = 0.0,
    audio_start_s: float = 0.0,
    flash_s: float | None = None,
    times_s: list[float] | None = None,
    size_px: tuple[int, int] = (64, 48),
    codec_options: dict[str, str] | None = None,
) -> Path:
    """A video in which every frame differs, or one that is black but for a flash, with a beep, both at `flash_s`.

    Args:
        container, codec, audio_codec: names as FFmpeg knows them; without `audio_codec` there is no audio.
        video_start_s, audio_start_s: when the tracks begin.
        times_s: when each frame is shown, in place of `fps`.
        codec_options: more of them.
    """
    import av

    rate_hz, shape = 48_000, (size_px[1], size_px[0], 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    with av.open(str(path), "w", format=container) as file:
        options = {"threads": "1"}
        if codec in ("libx264", "libx265"):
            options |= {"preset": "ultrafast" if codec == "libx265" else "veryfast"}
            options |= {"bf": "2"} if codec == "libx264" else {"x265-params": "log-level=none:bframes=2:pools=none"}
        elif codec in ("mpeg2video", "mpeg1video"):
            options |= {"bf": "2"}
        elif codec.startswith("libvpx"):
            options |= {"deadline": "realtime", "cpu-used": "8"}
        video = file.add_stream(codec, rate=fps, options=options | (codec_options or {}))
        video.width, video.height = size_px
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.gop_size = gop
        tick = Fraction(1, fps if times_s is None else 1000)
        video.codec_context.time_base = tick
        audio = None if audio_codec is None else file.add_stream(audio_codec, rate=rate_hz, layout="stereo")
        if audio is not None:
            audio.bit_rate = 128_000  # some encoders have no default
        shown_s = [video_start_s + i / fps for i in range(round(seconds * fps))] if times_s is None else times_s
        packets = []
        for index, time_s in enumerate(shown_s):
            if flash_s is None:
                pixels = np.full(shape, 20 + 7 * (index % 30), np.uint8)
                pixels[: shape[0] // 2] = rng.integers(0, 255, (*shape[:2], 3))[: shape[0] // 2] // 4
            else:
                pixels = np.full(shape, 255 if abs(time_s - flash_s) < 0.5 / fps else 0, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time_s / tick), tick
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            time = np.arange(round(seconds * rate_hz)) / rate_hz + audio_start_s
            wave = 0.5 * np.sin(2 * np.pi * 1000 * time)
            if flash_s is not None:
                wave *= (time >= flash_s) & (time < flash_s + 0.1)
            size = audio.codec_context.frame_size or 1024
            for begin in range(0, len(wave) - size, size):
                block = np.stack([wave[begin : begin + size]] * 2).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
                frame.pts = begin + round(audio_start_s * rate_hz)
                packets += audio.encode(_as_format(frame, audio.codec_context.format.name))
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            file.mux(packet)
    return path


def _as_format(frame, name: str):
    import av

    if frame.format.name == name:
        return frame
    resampler = av.AudioResampler(format=name, layout="stereo", rate=frame.sample_rate)
    (found,) = resampler.resample(frame)
    found.pts, found.time_base = frame.pts, frame.time_base
    return found
