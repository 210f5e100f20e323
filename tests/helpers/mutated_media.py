"""Damaged media files: each is decoded, or refused by an InputError, within its time and memory.

    python tests/helpers/mutated_media.py --count 20000 --seed 0

The files are decoded in a process of their own. Its death, a hang or another exception is counted, with the number of
the file, which `--only NUMBER` decodes alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT_S = 5.0  # of decoding
HANG_S = 60.0
MEMORY_BYTES = 2 << 30  # beyond what the libraries take


def make_originals(folder: Path) -> None:
    """Small files of every admitted kind."""
    import soundfile
    from media_files import CONTAINERS, picture, tone, write_clip
    from PIL import Image

    for container, (codecs, audio) in CONTAINERS.items():
        for codec in codecs[:2]:
            write_clip(folder / f"{container}-{codec}", container, codec, audio, seconds=0.6)
    wave = tone(0.6, 22_050, channels=2)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"):
        soundfile.write(folder / f"audio.{suffix}", wave, 22_050, format=suffix.upper())
    image = Image.fromarray(picture(40, 0))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"):
        image.save(folder / f"image.{format}", format)
    image.save(folder / "moving.WEBP", "WEBP", save_all=True, append_images=[image.rotate(90)])
    Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257).save(folder / "deep.TIFF", "TIFF")


def mutated(originals: list[bytes], seed: int, number: int) -> bytes:
    """One of the files, damaged in one to three ways."""
    rng = np.random.default_rng((seed, number))
    content = bytearray(originals[rng.integers(len(originals))])
    for _ in range(rng.integers(1, 4)):
        # Headers are where lengths and sizes stand, so half of the damage is near the beginning.
        end = max(len(content) if rng.random() < 0.5 else min(512, len(content)), 1)
        at = int(rng.integers(end))
        way = rng.integers(6)
        if way == 0:
            for place in rng.integers(0, end, rng.integers(1, 20)):
                content[place] ^= 1 << rng.integers(8)
        elif way == 1:
            content[at : at + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(0, 64)))
        elif way == 2:
            del content[int(rng.integers(len(content))) :]
        elif way == 3:
            other = originals[rng.integers(len(originals))]
            content[at:] = other[int(rng.integers(len(other))) :]
        elif way == 4:
            size = int(rng.choice([2, 4, 8]))
            content[at : at + size] = rng.choice([b"\xff", b"\x7f", b"\x00", b"\x80"]) * size
        else:
            content[at:at] = content[at : at + int(rng.integers(1, 2048))]
        if not content:
            return b"\0"
    return bytes(content)


def decode(content: bytes, path: Path) -> str:
    """ "decoded", "refused", or another exception, as a sentence."""
    from vaemotionllm import InputError
    from vaemotionllm.model.media import load_audio, load_video, tracks_of
    from vaemotionllm.model.media_files import limits
    from vaemotionllm.model.media_images import load_image

    path.write_bytes(content)
    outcome = "refused"
    for source in (content, path):
        for load in (load_audio, lambda file: load_video(file, 4), lambda file: load_video(file, 2, 0.2, 0.4),
                     lambda file: load_audio(file, start_s=0.1, end_s=0.3), load_image, tracks_of):  # fmt: skip
            try:
                with limits(max_s=LIMIT_S, max_pixels=20_000_000, max_bytes=1 << 28):
                    load(source)
                outcome = "decoded"
            except InputError:
                pass
            except BaseException as error:
                return f"{type(error).__name__}: {error}"
    return outcome


def work(folder: Path, seed: int, begin: int, end: int) -> None:
    """Decodes the files of these numbers and prints a line before and after each."""
    import av

    from vaemotionllm.model.media_audio import resample

    for rate_hz in (44_100, 44_099):  # what it imports, before the limit of memory
        resample(np.zeros(1000, np.float32), rate_hz, 16_000)

    av.logging.set_level(av.logging.PANIC)
    originals = [file.read_bytes() for file in sorted(folder.iterdir())]
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES,) * 2)
    with tempfile.TemporaryDirectory() as own:
        for number in range(begin, end):
            print(json.dumps([number, "begun", 0.0]), flush=True)
            started = time.process_time()
            outcome = decode(mutated(originals, seed, number), Path(own) / "file")
            print(json.dumps([number, outcome, time.process_time() - started]), flush=True)


def run(count: int, seed: int, begin: int = 0) -> dict:
    """{"decoded", "refused", "failed": {number: how}, "slowest_s"} of `count` files."""
    found: dict = {"decoded": 0, "refused": 0, "failed": {}, "slowest_s": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        make_originals(Path(folder))
        number, end = begin, begin + count
        while number < end:
            words = [sys.executable, __file__, "--work", folder, str(seed), str(number), str(min(number + 500, end))]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                output, errors = process.communicate(timeout=HANG_S + 500)
            except subprocess.TimeoutExpired as error:
                process.kill()
                output, errors = (error.stdout or b"").decode(), "hang"
            last = None
            for line in output.splitlines():
                last, outcome, seconds = json.loads(line)
                if outcome == "begun":
                    continue
                found["slowest_s"] = max(found["slowest_s"], seconds)
                if outcome in ("decoded", "refused"):
                    found[outcome] += 1
                else:
                    found["failed"][last] = outcome
                number = last + 1
            if process.returncode and last is not None and last >= number:
                found["failed"][last] = f"ended with {process.returncode}: {errors[-300:]}"
                number = last + 1
            elif process.returncode and last is None:
                raise RuntimeError(errors)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), *map(int, sys.argv[3:]))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one file")
    args = parser.parse_args()
    result = run(1, args.seed, args.only) if args.only is not None else run(args.count, args.seed)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["failed"]))
