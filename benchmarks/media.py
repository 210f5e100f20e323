"""CPU time of decoding on one core, against torchcodec, decord, librosa and lmms-eval's reader.

    python benchmarks/media.py    # a minute; installs the peers into build/media_peers

Video: 250 frames of H.264, 640 x 360, of which 8 spread evenly are taken, with a key frame each 12, 50 and 250 frames.
Audio: 10 s of stereo at 44.1 kHz as mono at 16 kHz. Every reader is given the path of the same file, and opens it.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before numpy and torch are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "LMMS_VIDEO_TORCHCODEC_THREADS": "1"}

import numpy as np
from common import against_goals, last_line, machine, run_alone, table

PEERS = ["torchcodec==0.17.0", "decord==0.6.0", "librosa==0.11.0"]
# What librosa imports and the package does not bring.
BESIDE = ["audioread", "soxr", "numba", "llvmlite", "lazy_loader", "pooch", "msgpack", "decorator"]
FOLDER = Path(__file__).resolve().parents[1] / "build" / "media_peers"
FRAMES, TAKEN, FPS, GOPS = 250, 8, 25, (12, 50, 250)
SECONDS, RATE_HZ = 10, 16_000
AUDIO = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libvorbis", "m4a": "aac"}


def install() -> None:
    """Put the peers into their folder, without their dependencies: those are the package's own, as pinned."""
    marker = FOLDER / "installed.txt"
    if marker.is_file() and marker.read_text() == "\n".join(PEERS):
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(FOLDER),
        *PEERS,
        *BESIDE,
    ]
    if subprocess.run(command).returncode:
        sys.exit(f"{', '.join(PEERS)} could not be installed into {FOLDER}: see above; the network is needed once.")
    # torchcodec looks for an FFmpeg of the system; PyAV's has other file names.
    import av

    for library in (Path(av.__file__).parents[1] / "av.libs").glob("lib*"):
        if (found := re.match(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)", library.name)) is not None:
            (FOLDER / f"{found[1]}.so.{found[2]}").symlink_to(library)
    marker.write_text("\n".join(PEERS))


def write_files(folder: Path) -> None:
    import av

    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 6, 640), np.linspace(0, 4, 360))
    for gop in GOPS:
        with av.open(str(folder / f"gop{gop}.mp4"), "w") as file:
            video = file.add_stream("libx264", rate=FPS, options={"threads": "1"})
            video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
            video.codec_context.gop_size = gop
            for i in range(FRAMES):
                wave = 127 + 60 * np.sin(x + i / 9)[..., None] * np.cos(y[..., None] + np.arange(3) + i / 20)
                pixels = (wave + rng.normal(0, 4, wave.shape)).clip(0, 255).astype(np.uint8)
                file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(video.encode(None))
    time_s = np.arange(SECONDS * 44_100) / 44_100
    wave = np.stack([0.3 * np.sin(2 * np.pi * f * time_s) for f in (440, 660)]) + rng.normal(0, 0.02, (2, len(time_s)))
    for suffix, codec in AUDIO.items():
        with av.open(str(folder / f"audio.{suffix}"), "w") as file:
            audio = file.add_stream(codec, rate=44_100, layout="stereo")
            resampler = av.AudioResampler(format=audio.codec_context.format.name, layout="stereo", rate=44_100)
            size = audio.codec_context.frame_size or 1024
            for begin in range(0, len(time_s) - size + 1, size):
                block = np.ascontiguousarray(wave[:, begin : begin + size], np.float32)
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44_100, begin
                for part in resampler.resample(frame):
                    file.mux(audio.encode(part))
            file.mux(audio.encode(None))


def video_readers() -> dict[str, Callable[[str], np.ndarray]]:
    import decord
    from lmms_eval.models.model_utils.load_video import read_video
    from torchcodec.decoders import VideoDecoder

    from vaemotionllm.model.media import load_video

    wanted = [int((i + 0.5) * FRAMES / TAKEN) for i in range(TAKEN)]

    def of_torchcodec(path):
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return decoder.get_frames_at(wanted).data.numpy()

    def of_decord(path):
        return decord.VideoReader(path, num_threads=1).get_batch(wanted).asnumpy()

    return {
        "ours": lambda path: load_video(path, TAKEN)[0],
        "torchcodec": of_torchcodec,
        "decord": of_decord,
        "lmms-eval": lambda path: read_video(path, num_frm=TAKEN),
    }


def audio_readers() -> dict[str, Callable[[str], np.ndarray]]:
    import librosa
    from torchcodec.decoders import AudioDecoder

    from vaemotionllm.model.media import load_audio

    return {
        "ours": load_audio,
        "torchcodec": lambda path: (
            AudioDecoder(path, sample_rate=RATE_HZ, num_channels=1).get_all_samples().data[0].numpy()
        ),
        "librosa": lambda path: librosa.load(path, sr=RATE_HZ, mono=True)[0],
    }


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """File -> reader -> CPU seconds of each round; a reader that cannot read a file is left out of it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times: dict[str, dict[str, list[float]]] = {}
    for readers, files in (
        (video_readers(), [f"gop{gop}.mp4" for gop in GOPS]),
        (audio_readers(), [f"audio.{suffix}" for suffix in AUDIO]),
    ):
        for name in files:
            path, usable = str(folder / name), dict(readers)
            for reader, read in readers.items():
                try:
                    read(path)  # what is set up once
                except Exception as error:
                    print(f"{reader} does not read {name}: {type(error).__name__} {str(error)[:80]}", file=sys.stderr)
                    del usable[reader]
            times[name] = {reader: [] for reader in usable}
            for _ in range(rounds):
                for reader, read in usable.items():
                    times[name][reader].append(cpu_seconds(partial(read, path)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process that finds the peers
    args = parser.parse_args()
    if args.measure:
        last_line(measure(args.measure, args.rounds))
        return
    install()
    os.environ["LD_LIBRARY_PATH"] = str(FOLDER)
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        times = run_alone(__file__, ["--measure", folder, "--rounds", str(args.rounds)], path=str(FOLDER))
    readers = ["ours", "torchcodec", "decord", "librosa", "lmms-eval"]
    rows = [
        [name, *(f"{1000 * statistics.median(of[r]):.1f}" if r in of else "-" for r in readers)]
        for name, of in times.items()
    ]
    table(["CPU ms", *readers], rows)
    ratios = {
        f"{name}, of the best peer": max(
            (statistics.median(a / b for a, b in zip(of["ours"], of[reader])) for reader in of if reader != "ours"),
        )
        for name, of in times.items()
    }
    against_goals(ratios, dict.fromkeys(ratios, 1.0))
    last_line(ratios)


if __name__ == "__main__":
    main()
