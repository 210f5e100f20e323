"""The scripts for several nodes start real runs: a hostfile of this machine, and two SLURM tasks of one rank each."""

import json
import os
import subprocess
from pathlib import Path

import fork_server
import pytest
from training import (
    losses_of,
    make_setup,
    process_environment,
    stage1_values,
    write_config,
)  # fmt: skip

ROOT = Path(__file__).parents[2]

# As srun would on two nodes: the same words on each, which must find each other by the rendezvous alone.
SRUN = """#!/bin/bash
while [[ $1 != torchrun ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""
# The launcher asks each node of a hostfile for its name and address.
SSH = """#!/bin/bash
while [[ $1 == -* ]]; do shift 2; done
shift
exec "$@"
"""


@pytest.mark.parametrize("script", ["deepspeed.sh", "slurm.sh"])
def test_two_ranks_train(tmp_path, script):
    values = stage1_values(
        *make_setup(tmp_path), tmp_path / "run", max_steps=2, save_steps=2, per_device_train_batch_size=2
    )
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    for name, content in (("srun", SRUN), ("ssh", SSH)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    port = fork_server.free_port()
    environment = process_environment(
        DS_ACCELERATOR="cpu", MASTER_PORT=port, SLURM_JOB_ID="1", SLURM_NNODES="2",
        SLURM_JOB_NODELIST="unused", HEAD_NODE="localhost", GPUS_PER_NODE="1",
    )  # fmt: skip
    environment["PATH"] = os.pathsep.join([str(tmp_path), environment["PATH"]])
    words = ["--config", str(write_config(tmp_path / "config.yaml", values)), "deepspeed=zero2"]
    result = subprocess.run(
        ["bash", str(ROOT / "configs" / "launch" / script), *words], env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=fork_server.HANG_S,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    assert (tmp_path / "run" / "finished.json").is_file() and len(losses_of(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["world_size"] == 2
    # By their port, since other tests have ranks of their own at the same time; torchrun chooses another one.
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*")), "DeepSpeed's buffers were left in shared memory"
