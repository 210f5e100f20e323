"""Training steps of the nano backbone a second by how OpenMP's threads wait, idle and beside busy processes.

Each figure is of a process of its own, since the libraries read their settings once. In each round every setting runs
once idle, then once beside the busy processes. GOMP_SPINCOUNT unset is libgomp's default, which beside other work may
take minutes for what else takes seconds: it is stopped after a minute and counts with what it had done by then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import common

from vaemotionllm.utils import FIXED_ARITHMETIC, SPIN

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "ours": SPIN,
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "ours, fixed arithmetic": SPIN | FIXED_ARITHMETIC,
}
KNOWN = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", *FIXED_ARITHMETIC}
STOP_S = 60.0


def measure(seconds: float) -> None:
    """Print steps, and the seconds that they took, after each step."""
    import time

    import torch

    from vaemotionllm.nano import backbone
    from vaemotionllm.nano.clips import WorldConfig

    torch.manual_seed(0)
    config, world = backbone.BackboneConfig(), WorldConfig()
    processor = backbone.build_processor(world.size_px, backbone.PATCH_PX, backbone.MERGE)
    model = backbone.build_vlm(processor.tokenizer, config.hidden, config.layers, config.vision_layers).train()
    optimizer, maker = backbone.make_optimizer(model), backbone.BatchMaker(world, processor.tokenizer)
    begin, steps = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        batch = backbone.make_batch(maker, config, config.text_steps + steps)
        backbone.answer_loss(backbone.packed_logits(model, batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        print(json.dumps([steps, time.monotonic() - begin]), flush=True)


def steps_per_second(setting: dict[str, str], seconds: float) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in KNOWN} | setting
    command = [sys.executable, __file__, "--measure", str(seconds)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        out = process.communicate(timeout=seconds + STOP_S)[0]
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with code {process.returncode}")
    except subprocess.TimeoutExpired:
        process.kill()
        out = process.communicate()[0]
    lines = out.splitlines()
    if not lines:
        return 0.0
    steps, took = json.loads(lines[-1])
    return steps / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--busy", type=int, default=4, help="busy processes beside (4)")
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        return measure(args.measure)
    idle: dict[str, list[float]] = {name: [] for name in SETTINGS}
    busy: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            idle[name].append(steps_per_second(setting, args.seconds))
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
        try:
            for name, setting in SETTINGS.items():
                busy[name].append(steps_per_second(setting, args.seconds))
        finally:
            for other in others:
                other.kill()
                other.wait()
    threads = len(os.sched_getaffinity(0))
    share = threads / (threads + args.busy)  # of a core, for each of our threads
    best = idle["libgomp's default"]
    rows, result = [], {"busy_processes": args.busy, "cores": threads, "share_left": share}
    for name in SETTINGS:
        of_idle = statistics.median(a / b for a, b in zip(idle[name], best))
        of_busy = statistics.median(a / b for a, b in zip(busy[name], best))
        rows.append([name, f"{of_idle:.2f}", f"{of_busy:.2f}", f"{share / of_busy if of_busy else float('inf'):.2f}"])
        key = name.replace(" ", "_").replace("'", "").replace(",", "")
        result |= {f"{key}_idle": of_idle, f"{key}_busy": of_busy}
    print(f"{common.machine()}; {threads} cores, {args.busy} busy processes, {args.rounds} rounds\n")
    common.table(["steps/s, of libgomp's default idle", "idle", "busy", "times slower than the share left"], rows)
    common.last_line(result)


if __name__ == "__main__":
    main()
