"""ZeRO-3 on two CPU ranks: how often weights are gathered, how large checkpoints are, what a killed rank costs.

    python benchmarks/zero3.py             # with a tiny model, by the real trainer under the deepspeed launcher
    python benchmarks/zero3.py --seed 1    # another step at which a rank is killed

Prints a table; the last line is JSON:

- `gathers_per_layer`: all-gathers of a layer's weights in one optimizer step, the largest over layers and steps, for
  each variant of the run: teacher online or cached. Goal for a cached step: at most 2;
- `checkpoint_ratio`: bytes of a checkpoint folder by those of the trained weights and their two Adam moments in fp32;
- `resume_max_abs_difference`: between the losses of a run in which one rank got SIGKILL and of the uninterrupted one.

A tiny model would fit into the reach within which ZeRO-3 keeps weights for their next use (stage3_max_reuse_distance,
1e9 weights), where a full-size LLM does not; so that reach is set to 0 here.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import against_goals, last_line, quiet

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

STEPS, SAVE_STEPS, COUNTED_STEPS, TIMEOUT_S = 10, 4, 4, 240
LLM = "vlm.model.language_model.layers"
GOALS = {"gathers_cached": 2, "checkpoint_ratio": 1.1, "resume_max_abs_difference": 0}


# ---- in each rank


class GatherCounter:
    """Counts how often each parameter is gathered in an optimizer step; a callback of the trainer.

    Every gather of ZeRO-3 goes through one of two functions that DeepSpeed hangs on each parameter: those for
    forward and backward through `all_gather_coalesced`, those after a step and of single reads through `all_gather`.
    A parameter that is whole already is in their lists, and is not counted.
    """

    def __init__(self, file: Path):
        from transformers import TrainerCallback

        self.file, self.counts, self.steps = file, {}, []
        self.callback = type(
            "GatherCallback",
            (TrainerCallback,),
            {
                "on_train_begin": lambda _, args, state, control, model, **kwargs: self.watch(model),
                "on_step_begin": lambda *_, **kwargs: self.counts.clear(),
                "on_step_end": lambda *_, **kwargs: self.steps.append(dict(self.counts)),
                "on_train_end": lambda *_, **kwargs: self.file.write_text(json.dumps(self.steps)),
            },
        )()

    def watch(self, model) -> None:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def counted(gather, own):
            def wrapper(*args, **kwargs):
                listed = args[0] if args else kwargs.get("param_list")
                for parameter in [own] if listed is None else listed:
                    if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE:
                        name = names[id(parameter)]
                        self.counts[name] = self.counts.get(name, 0) + 1
                return gather(*args, **kwargs)

            return wrapper

        for parameter in model.parameters():
            for name in ("all_gather", "all_gather_coalesced"):
                setattr(parameter, name, counted(getattr(parameter, name), parameter))


def rank_main(values_file: str, counts_file: str) -> None:
    """What the launcher runs: the real training, with a counter where the main rank is."""
    from vaemotionllm.cli.train import leave_ranks
    from vaemotionllm.config_file import build_config
    from vaemotionllm.train import run as training
    from vaemotionllm.train.config import CONFIGS

    values = json.loads(Path(values_file).read_text())
    make_trainer = training.make_trainer

    def make_counted_trainer(config, *args):
        trainer = make_trainer(config, *args)
        if config.process_index == 0:
            trainer.add_callback(GatherCounter(Path(counts_file)).callback)
        return trainer

    training.make_trainer = make_counted_trainer
    training.run(build_config(CONFIGS[values["stage"]], values))
    leave_ranks()


# ---- what starts the ranks


def launch(folder: Path, name: str, values: dict) -> subprocess.Popen:
    values_file = folder / f"{name}.values.json"
    values_file.write_text(json.dumps(values))
    ranks = ("--values", str(values_file), "--counts", str(counts_file(folder, name)))
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with open(folder / f"{name}.log", "a") as log:
        return subprocess.Popen(
            [deepspeed, "--num_gpus", "2", "--master_port", str(random.randrange(20000, 30000)), __file__, *ranks],
            env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path},
            stdout=log, stderr=log,
        )  # fmt: skip


def train(folder: Path, name: str, values: dict) -> None:
    code = launch(folder, name, values).wait(timeout=TIMEOUT_S)
    if code:
        raise SystemExit(f"{name} ended with code {code}:\n" + (folder / f"{name}.log").read_text()[-3000:])


def kill_a_rank(folder: Path, name: str, values: dict, after_step: int, rank: int) -> None:
    """Start a run and send SIGKILL to one of its ranks once a step is logged; the launcher must end by itself."""
    import psutil

    launcher = launch(folder, name, values)
    deadline = time.monotonic() + TIMEOUT_S
    while not any(row["step"] >= after_step for row in metrics(values)):
        if launcher.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} ended too early:\n" + (folder / f"{name}.log").read_text()[-3000:])
        time.sleep(0.002)
    ranks = [p for p in psutil.Process(launcher.pid).children(recursive=True) if f"--local_rank={rank}" in p.cmdline()]
    ranks[0].send_signal(signal.SIGKILL)
    if launcher.wait(timeout=60) == 0:
        raise SystemExit(f"{name} was finished before its rank could be killed.")


def counts_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.counts.json"


def metrics(values: dict) -> list[dict]:
    from vaemotionllm.train.checkpoint import complete_rows

    return complete_rows(Path(values["output_dir"]) / "metrics.jsonl")


def gathers_per_layer(file: Path) -> dict[str, int]:
    """Tower -> the largest number of gathers of one of its layers in one step."""
    found: dict[str, int] = {}
    for step in json.loads(file.read_text()):
        for name, count in step.items():
            layer = re.match(r"(.*\.(?:layers|blocks))\.\d+\.", name)
            if layer:
                found[layer[1]] = max(found.get(layer[1], 0), count)
    return found


def checkpoint_ratio(run: Path) -> float:
    """Bytes of the last checkpoint by 12 bytes a trained weight: itself and two moments, in fp32."""
    folder = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = 0
    for _, shape in json.loads((folder / "trainable.json").read_text()):
        size = 1
        for length in shape:
            size *= length
        weights += size
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / (12 * weights)


def deepspeed_config(folder: Path, name: str, **zero) -> str:
    config = json.loads((ROOT / "configs" / "deepspeed" / "zero3.json").read_text())
    config["zero_optimization"] |= {"stage3_max_reuse_distance": 0, **zero}
    (folder / f"{name}.json").write_text(json.dumps(config))
    return str(folder / f"{name}.json")


def fill_cache(values: dict) -> None:
    """Query the teacher, in this process alone."""
    from vaemotionllm.config_file import build_config
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.data import Stage1Data
    from vaemotionllm.train.model import load_model

    config = build_config(Stage1Config, values | {"deepspeed": None})
    Stage1Data(config).fill_teacher_cache(*load_model(config))


def benchmark(folder: Path, seed: int) -> dict:
    from media_files import write_world
    from training import make_model, stage1_values

    # A projector that outweighs what a checkpoint holds beside it: file headers, random states, DeepSpeed's script.
    model = make_model(folder / "models", projector_hidden_size=2048)
    manifest = write_world(folder / "world", clips=16)
    sharded = deepspeed_config(folder, "sharded", stage3_param_persistence_threshold=0)

    def values(name: str, **changes) -> dict:
        options = dict(max_steps=STEPS, save_steps=SAVE_STEPS, train_audio_tower=False, per_device_train_batch_size=2)
        options |= {"deepspeed": sharded, "teacher_cache": str(folder / "cache")}
        return stage1_values(model, manifest, folder / name, **{**options, **changes})

    rng = random.Random(seed)
    step, rank = rng.randrange(SAVE_STEPS + 1, STEPS - 1), rng.randrange(2)
    whole = values("whole")
    killed = values("killed")
    runs = {
        "teacher online": values("online", teacher_cache=None, max_steps=COUNTED_STEPS, save_steps=STEPS),
        "teacher cached": whole,
        "teacher cached, resumed": killed,
    }
    fill_cache(whole)
    kill_a_rank(folder, "killed", killed, step, rank)
    for run in runs.values():
        train(folder, Path(run["output_dir"]).name, run)
    expected, found = metrics(whole), metrics(killed)
    if [row["step"] for row in expected] != [row["step"] for row in found]:
        raise SystemExit("the resumed run did not log the same steps.")
    return {
        "gathers_per_layer": {
            name: gathers_per_layer(counts_file(folder, Path(run["output_dir"]).name)) for name, run in runs.items()
        },
        "checkpoint_ratio": round(checkpoint_ratio(Path(whole["output_dir"])), 4),
        "killed_rank": rank,
        "killed_after_step": step,
        "resume_max_abs_difference": max(abs(a["loss"] - b["loss"]) for a, b in zip(expected, found)),
    }


def against(result: dict) -> dict[str, float]:
    """What the goals speak of."""
    gathers = result["gathers_per_layer"]
    return {
        "gathers_cached": max(gathers["teacher cached"].values()),
        "checkpoint_ratio": result["checkpoint_ratio"],
        "resume_max_abs_difference": result["resume_max_abs_difference"],
    }


def print_table(result: dict) -> None:
    print(f"{'gathers of a layer in one step, at most':45} {'LLM':>5} {'vision':>7} {'audio':>6}")
    for name, towers in result["gathers_per_layer"].items():
        vision = max(
            (count for tower, count in towers.items() if tower.startswith("vlm.") and tower != LLM), default=0
        )
        audio = max((count for tower, count in towers.items() if tower.startswith("audio_tower.")), default=0)
        print(f"{name:45} {towers.get(LLM, 0):5} {vision:7} {audio:6}")
    print(f"checkpoint by trained weights and moments: {result['checkpoint_ratio']:.3f}")
    killed = f"rank {result['killed_rank']} killed after step {result['killed_after_step']} of {STEPS}"
    print(f"{killed}: losses differ by at most {result['resume_max_abs_difference']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the step and the rank that is killed")
    parser.add_argument("--values", help=argparse.SUPPRESS)
    parser.add_argument("--counts", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.values:
        rank_main(args.values, args.counts)
        return
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), args.seed)
    print_table(result)
    against_goals(against(result), GOALS)
    last_line(against(result) | result)


if __name__ == "__main__":
    main()
