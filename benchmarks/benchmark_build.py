"""Items a second and peak memory of building, validating and loading a benchmark with embedded media, at three sizes.

    python benchmarks/benchmark_build.py [--items 2000 6000 20000]

Clips are generated: 2 s of audio with an image of 96 px or, for a third of them, with a video in the same file; no two
are alike, and each has six items. Each stage runs in a process of its own, so that its peak is its own: the build
(hashing, decoding, parquet), the validation of the shards with their media, the first load (which unpacks them into
the cache) and every later load. Goals: at most 1.5 GB at any stage, and at the largest size at most 1.3 times the
seconds an item of the smallest, the start of Python left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STAGES = ("build", "load", "validate", "load again")
GOALS = {"peak_gb": 1.5, "seconds_per_item_ratio": 1.3}
ITEMS_PER_CLIP = 6
AUDIO_S, RATE_HZ, SIDE_PX, FPS = 2.0, 16_000, 96, 8
EMOTIONS = {"joyful": (0.7, 0.5), "calm": (0.6, -0.5), "sad": (-0.6, -0.4), "tense": (-0.6, 0.6), "proud": (0.4, 0.3)}
CONTENTS = ("rain", "fire", "bell", "drum", "horse", "harbour")
ART_FORMS = ("film", "painting", "dance")  # words: an art form


def write_clips(folder: Path, clips: int) -> None:
    """A manifest of images and videos with audio; the random numbers of clip i depend on i alone."""
    import soundfile
    from PIL import Image

    from vaemotionllm.nano.clips import WorldConfig
    from vaemotionllm.nano.world import write_mp4

    world = WorldConfig(clip_s=AUDIO_S, fps=FPS, size_px=SIDE_PX, sampling_rate=RATE_HZ)
    folder.mkdir(parents=True)
    note_s = np.arange(round(RATE_HZ * AUDIO_S / 16)) / RATE_HZ
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for i in range(clips):
            rng = np.random.default_rng(i)
            pitches_hz = 220 * 2 ** (rng.integers(0, 24, (16, 1)) / 12)
            notes = sum(np.sin(2 * np.pi * pitches_hz * h * note_s) / h for h in (1, 2, 3)) * np.exp(-8 * note_s)
            audio = 0.2 * notes.reshape(-1).astype(np.float32)  # (samples,)
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            image = coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            art_form = ART_FORMS[i // 30 % 3]
            if art_form == "film":  # words: an art form
                frames = [np.roll(image, 2 * frame, axis=1) for frame in range(round(world.clip_s * world.fps))]
                write_mp4(folder / f"{i}.mp4", world, np.stack(frames), audio)
                media = {"audio": f"{i}.mp4", "video": f"{i}.mp4"}
            else:
                soundfile.write(folder / f"{i}.wav", audio, RATE_HZ)
                image.save(folder / f"{i}.png")
                media = {"audio": f"{i}.wav", "image": f"{i}.png"}
            emotion = tuple(EMOTIONS)[i % len(EMOTIONS)]
            row = {
                "id": f"clip-{i}", "split": "benchmark", "source": "generated", "license": "CC0-1.0", **media,
                "emotion": emotion, "valence": EMOTIONS[emotion][0], "arousal": EMOTIONS[emotion][1],
                "content": CONTENTS[i // 5 % 6], "art_form": art_form,
            }  # fmt: skip
            manifest.write(json.dumps(row) + "\n")


def run_stage(stage: str, folder: Path) -> dict[str, float]:
    """Runs one stage in this process: seconds without imports, items, and the process's peak in bytes."""
    from vaemotionllm.benchmark import schema
    from vaemotionllm.benchmark.build import build
    from vaemotionllm.benchmark.questions import BuildConfig
    from vaemotionllm.benchmark.validate import validate

    out = folder / "built"
    if stage == "build":
        import datasets  # noqa: F401 - seconds that do not grow with the benchmark

        config = BuildConfig(
            manifest=str(folder / "clips/manifest.jsonl"), out=str(out), name="generated", shard_mb=64
        )
        begin = time.perf_counter()
        items = build(config)["items"]
    elif stage == "validate":
        import scipy.stats  # noqa: F401
        import torchaudio  # noqa: F401

        begin = time.perf_counter()
        report = validate(out)
        items = report.items
        if report.count("error"):
            sys.exit("\n".join(report.lines()))
    else:
        import pyarrow.parquet  # noqa: F401

        begin = time.perf_counter()
        items = len(schema.load(out).items)
    seconds = time.perf_counter() - begin
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {"seconds": seconds, "items": items, "peak_bytes": peak}


def measure(items: int) -> dict[str, dict[str, float]]:
    """Every stage at one size, each in a fresh process, with a cache of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_clips(folder / "clips", -(-items // ITEMS_PER_CLIP))
        environment = os.environ | {"VAEMOTIONLLM_CACHE": str(folder / "cache")}
        found = {}
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--folder", temporary]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"the stage {stage!r} at {items} items ended with code {done.returncode}")
            found[stage] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[2000, 6000, 20_000])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(run_stage(args.stage, args.folder)))
        return
    from common import against_goals, last_line, machine, table  # not in the stages: it loads torch

    print(machine())
    sizes = {items: measure(items) for items in sorted(args.items)}
    rows = [
        [f"{items} items, {stage}", f"{cost['items'] / cost['seconds']:.0f}", f"{cost['peak_bytes'] / 1e6:.0f}"]
        for items, found in sizes.items()
        for stage, cost in found.items()
    ]
    table(["", "items/s", "peak MB"], rows)
    first, last = sizes[min(sizes)], sizes[max(sizes)]
    ratios = {s: last[s]["seconds"] / last[s]["items"] / (first[s]["seconds"] / first[s]["items"]) for s in STAGES}
    measured = {
        "peak_gb": max(cost["peak_bytes"] for found in sizes.values() for cost in found.values()) / 1e9,
        "seconds_per_item_ratio": max(ratios.values()),
    }
    against_goals(measured, GOALS)
    names = {stage: stage.replace(" ", "_") for stage in STAGES}
    last_line(
        measured
        | {f"ratio_{names[stage]}": ratio for stage, ratio in ratios.items()}
        | {f"{names[s]}_items_per_s_{n}": f[s]["items"] / f[s]["seconds"] for n, f in sizes.items() for s in STAGES}
        | {f"{names[s]}_peak_mb_{n}": f[s]["peak_bytes"] / 1e6 for n, f in sizes.items() for s in STAGES}
    )


if __name__ == "__main__":
    main()
