"""The scripts for several nodes: what they say they would launch, and that this is what they launch."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "configs" / "launch"
WORDS = ["--config", "stage1 of mine.yaml", "output_dir=runs/a b", "student_modalities={audio: 1}", "deepspeed=zero2"]
SLURM = {"SLURM_JOB_ID": "4212345", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}


@pytest.fixture
def programs(tmp_path):
    """A folder with stand-ins for the cluster's programs; each writes the words that it was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "deepspeed"):
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" > {tmp_path}/called\n')
    (folder / "scontrol").write_text(
        '#!/bin/bash\n[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n"'
    )
    for file in folder.iterdir():
        file.chmod(0o755)
    return folder


def run(script, *words, programs, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    clean["PATH"] = f"{programs}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words], env=clean | environment, capture_output=True, text=True,
        cwd=programs.parent, timeout=300,
    )  # fmt: skip


def after(words, option):
    return words[words.index(option) + 1]


def launched(tmp_path):
    return (tmp_path / "called").read_text().splitlines()


@pytest.mark.parametrize("script", ["deepspeed.sh", "slurm.sh"])
def test_what_a_dry_run_prints_is_what_a_run_starts(tmp_path, programs, script):
    (tmp_path / "hostfile").write_text("a slots=2\nb slots=2\n")
    for how in ({"DRY_RUN": "1"}, {}):
        words = WORDS if how else ["--dry-run", *WORDS]
        dry = run(script, *words, programs=programs, **SLURM, **how)
        assert dry.returncode == 0, dry.stderr
        assert not (tmp_path / "called").exists()
    real = run(script, *WORDS, programs=programs, **SLURM)
    assert real.returncode == 0, real.stderr
    assert shlex.split(dry.stdout) == launched(tmp_path)
    assert launched(tmp_path)[-5:] == WORDS


def test_slurm_starts_a_task_on_each_node_that_meets_the_others_at_the_first(programs):
    words = shlex.split(run("slurm.sh", "--dry-run", *WORDS, programs=programs, **SLURM).stdout)
    slurm, torchrun = words[: words.index("torchrun")], words[words.index("torchrun") :]
    assert (after(slurm, "--ntasks"), after(slurm, "--ntasks-per-node"), after(slurm, "--nodes")) == ("2", "1", "2")
    assert "--cpus-per-task" not in slurm
    assert (after(torchrun, "--nnodes"), after(torchrun, "--nproc-per-node")) == ("2", "4")
    assert (after(torchrun, "--rdzv-backend"), after(torchrun, "--rdzv-id")) == ("c10d", "4212345")
    assert after(torchrun, "--rdzv-endpoint") == "gpu07:22345"
    assert torchrun[torchrun.index("--module") + 1 :] == ["vaemotionllm.cli.train", *WORDS]
    given = {"GPUS_PER_NODE": "1", "HEAD_NODE": "other", "MASTER_PORT": "7", "SLURM_CPUS_PER_TASK": "16"}
    words = shlex.split(run("slurm.sh", "--dry-run", *WORDS, programs=programs, **SLURM, **given).stdout)
    assert (after(words, "--nproc-per-node"), after(words, "--rdzv-endpoint")) == ("1", "other:7")
    assert after(words, "--cpus-per-task") == "16"


def test_the_hostfile_is_deepspeed_s(tmp_path, programs):
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(LAUNCH / "hostfile"))) == {"node1": 8, "node2": 8}
    given = {"HOSTFILE": str(LAUNCH / "hostfile"), "MASTER_PORT": "1234"}
    words = shlex.split(run("deepspeed.sh", "--dry-run", *WORDS, programs=programs, **given).stdout)
    assert (after(words, "--hostfile"), after(words, "--master_port")) == (given["HOSTFILE"], "1234")
    assert words[words.index("--module") + 1 :] == ["vaemotionllm.cli.train", *WORDS]


def test_what_is_missing_is_named(programs):
    for missing in SLURM:
        rest = {name: value for name, value in SLURM.items() if name != missing}
        result = run("slurm.sh", "--dry-run", *WORDS, programs=programs, **rest)
        assert result.returncode == 2 and f"{missing} is not set" in result.stderr and not result.stdout
    result = run("deepspeed.sh", *WORDS, programs=programs, HOSTFILE="nowhere")
    assert result.returncode == 2 and "no hostfile at 'nowhere'" in result.stderr
