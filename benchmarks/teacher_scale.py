"""The teacher cache at scale: responses a second of `cache-teacher`, and the start of a run that finds it finished.

    python benchmarks/teacher_scale.py fill [--clips 5000] [--responses 4] [--processes 2] [--workers 1] [--code DIR]
    python benchmarks/teacher_scale.py start [--rows 200000]

`fill` runs the command itself under torchrun on clips of 4 s (video of 32 frames of 224 x 224 pixels with audio, 8
frames taken) with a tiny model of random weights, so that what is measured is the way of clips to the teacher rather
than the teacher. `--code DIR` runs the package of another checkout, for a comparison. A pass over 64 clips, which is
timed as well, gives the cost of the start, which is subtracted.

`start` makes a finished cache of as many rows, each of a clip of its own, and times a training run from its config to
its first batch, without imports and the model, twice: the second finds the files' hashes. Goals: 10 s, and 1 GB of
resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import against_goals, last_line, machine, quiet, run_alone, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the builders of small models and media

GOALS = {"seconds": 10.0, "peak_gb": 1.0}
DISTINCT, ROWS_OF_SHARD, RESPONSE_TOKENS = 50, 256, 32
COMMON = {"split": "train", "source": "benchmark", "license": "CC0-1.0"}


def write_manifest(folder: Path, count: int, file_of) -> Path:
    """A manifest of clips whose audio and video are one file each."""
    rows = ({"id": f"{n:07d}", "video": file_of(n), "audio": file_of(n), **COMMON} for n in range(count))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def fill(args: argparse.Namespace) -> None:
    import yaml
    from media_files import write_video
    from training import make_model, stage1_values

    with tempfile.TemporaryDirectory() as temporary:
        folder, seconds = Path(temporary), {}
        for n in range(min(DISTINCT, args.clips)):
            write_video(folder / f"{n}.mp4", 4.0, size_px=224, fps=8, seed=n, pitch_hz=200 + n)
        for n in range(DISTINCT, args.clips):
            os.link(folder / f"{n % DISTINCT}.mp4", folder / f"{n}.mp4")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        if args.code:
            (folder / "code").mkdir()
            (folder / "code" / "vaemotionllm").symlink_to(Path(args.code).resolve() / "plugin")
            environment["PYTHONPATH"] = str(folder / "code")
        manifest, model = write_manifest(folder, args.clips, lambda n: f"{n}.mp4"), make_model(folder / "models")
        for count in (64, args.clips):
            values = stage1_values(
                model, manifest, folder / "run", teacher_cache=str(folder / f"cache-{count}"), max_clips=count,
                responses_per_clip=args.responses, num_frames=8, max_response_tokens=8, cache_media=False,
                dataloader_num_workers=args.workers, prompts=[f"Prompt {n}: what is it?" for n in range(8)],
            )  # fmt: skip
            config = folder / f"{count}.yaml"
            config.write_text(yaml.safe_dump(values))
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(args.processes),
                "--master_port", "0", "-m", "vaemotionllm.cli.train", "cache-teacher", "--config", str(config),
            ]  # fmt: skip
            begin, cpu = time.perf_counter(), cpu_seconds()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds[count] = time.perf_counter() - begin, cpu_seconds() - cpu
    table(["clips", "seconds", "CPU seconds"], [[str(n), *(f"{x:.1f}" for x in s)] for n, s in seconds.items()])
    wall_s, cpu_s = (whole - start for whole, start in zip(seconds[args.clips], seconds[64]))
    count = (args.clips - 64) * args.responses
    found = {"responses_per_s": count / wall_s, "responses_per_cpu_s": count / cpu_s}
    last_line(found | {"clips": args.clips, "responses": args.responses})


def cpu_seconds() -> float:
    """Of all processes that were waited for: on a machine with other work it moves less than the time of the clock."""
    used = os.times()
    return used[2] + used[3]


def start(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        make_store(Path(temporary), args.rows)
        runs = [run_alone(__file__, ["_started", "--folder", temporary, "--peaks"]) for _ in range(2)]
    names = ["seconds", "peak_gb", "resident_gb"]
    table(["start", *names], [[n, *(f"{run[k]:.2f}" for k in names)] for n, run in zip(("first", "second"), runs)])
    against_goals(runs[1], GOALS)
    last_line(runs[1] | {"rows": args.rows})


def make_store(folder: Path, count: int) -> None:
    """A finished cache, as a pass over that many clips would leave it, with states of one number a token."""
    import numpy as np
    import torch
    import yaml
    from safetensors.torch import save_file
    from training import make_model, stage1_values

    from vaemotionllm.config_file import build_config
    from vaemotionllm.data.manifest import read_manifest
    from vaemotionllm.train import teacher_cache
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.instructions import prompt_source
    from vaemotionllm.train.model import load_model
    from vaemotionllm.train.teacher import teacher_header

    def file_of(n: int) -> str:
        return f"media/{n // 1000}/{n}.mp4"

    for n in range(count):
        path = folder / file_of(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % n * 100)
    values = stage1_values(
        make_model(folder / "models"), write_manifest(folder, count, file_of), folder / "run", responses_per_clip=1,
        teacher_cache=str(folder / "cache"), cache_media=False, max_response_tokens=RESPONSE_TOKENS,
    )  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    config, cache = build_config(Stage1Config, values), folder / "cache"
    cache.mkdir()
    clips = read_manifest(values["manifest"])
    hashes = teacher_cache.clip_hashes(clips, folder / "nowhere" / "index")
    tokens = np.random.default_rng(0).integers(20, 90, (count, RESPONSE_TOKENS))
    tables = []
    for number, begin in enumerate(range(0, count, ROWS_OF_SHARD)):
        shard, rows = f"responses-00000000-{number:05d}.safetensors", []
        for n in range(begin, min(begin + ROWS_OF_SHARD, count)):
            rows.append({
                "id": clips[n].id, "slot": 0, "kind": "prompt", "prompt": values["prompts"][n % 2],
                "response": "It expresses a quiet joy, with warm colours.", "tokens": tokens[n].tolist(),
                "empty": False, "visual_hash": hashes[n][0], "audio_hash": hashes[n][1], "text_tokens": 24,
                "visual_tokens": 288, "audio_tokens": 125, "scores": {"entropy": 1.5, "audio_dbfs": -20.0},
            })  # fmt: skip
        save_file({teacher_cache.tensor_name(row): torch.zeros(RESPONSE_TOKENS, 1) for row in rows}, cache / shard)
        tables.append(teacher_cache.table_of(rows, shard))
    header = teacher_header(*load_model(config), prompt_source(values["prompts"]), config, states=True)
    store = teacher_cache.PartStore(cache, header)
    store._write(*tables)


def started(folder: Path) -> None:
    import yaml
    from common import _resident, peak_bytes

    from vaemotionllm.config_file import build_config
    from vaemotionllm.data.samplers import SampleKey
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.data import Stage1Data
    from vaemotionllm.train.model import load_model

    config = build_config(Stage1Config, yaml.safe_load((folder / "config.yaml").read_text()))
    model, processor = load_model(config)
    Path(config.output_dir).mkdir(exist_ok=True)
    seconds: list[float] = []

    def run() -> None:
        begin = time.perf_counter()
        data = Stage1Data(config)
        data.prepare(model, processor)
        dataset, collator, options = data.batches(model, processor)
        for index in range(16):
            options["sampler_options"]["length_of"](index, 0, 0)
            key = SampleKey(index, 0, 0)
            collator.row_of(dataset.clips[key.index].id, key.epoch, key.index)
        seconds.append(time.perf_counter() - begin)

    found = peak_bytes(run, lambda: None)
    last_line({"seconds": seconds[0], "peak_gb": found / 1e9, "resident_gb": _resident("VmHWM") / 1e9})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_fill = commands.add_parser("fill")
    of_fill.add_argument("--clips", type=int, default=5000)
    of_fill.add_argument("--responses", type=int, default=4)
    of_fill.add_argument("--processes", type=int, default=2)
    of_fill.add_argument("--workers", type=int, default=1)
    of_fill.add_argument("--code", help="another checkout")
    commands.add_parser("start").add_argument("--rows", type=int, default=200_000)
    of_started = commands.add_parser("_started")
    of_started.add_argument("--folder", type=Path)
    of_started.add_argument("--peaks", action="store_true")
    args = parser.parse_args()
    quiet()
    if args.command == "_started":
        started(args.folder)
        return
    print(machine())
    {"fill": fill, "start": start}[args.command](args)


if __name__ == "__main__":
    main()
