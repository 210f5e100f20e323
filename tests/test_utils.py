"""Settings of the CPU libraries: set before torch starts, the user's own kept, and the same sums under all of them."""

import os
import socket
import subprocess
import sys

import pytest

from vaemotionllm import InputError, utils
from vaemotionllm.utils import FIXED_ARITHMETIC, SPIN, bound_spinning, fixed_environment

HOLD = """
import sys, time
from pathlib import Path
from vaemotionllm.utils import owned
with owned(Path(sys.argv[1]), "output_dir"):
    print("held", flush=True)
    time.sleep(600)
"""
SETTINGS = {*SPIN, "OMP_WAIT_POLICY", *FIXED_ARITHMETIC, "MKL_ENABLE_INSTRUCTIONS"}
CLEAN = {name: value for name, value in os.environ.items() if name not in SETTINGS}


def run(code: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("said, holds", [
    ({}, SPIN),
    ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
])  # fmt: skip
def test_what_the_user_says_is_kept(said, holds):
    environment = dict(said)
    bound_spinning(environment)
    assert environment == holds


AS_A_RANK = """
import os, sys
from vaemotionllm.cli import main, train

loaded = "torch" in sys.modules
train.run_train = lambda args: print(loaded, os.environ["GOMP_SPINCOUNT"])
main.main(["train", "--local_rank=0", "--config", "x"])
"""
AS_A_COMMAND = """
import os, sys
import vaemotionllm.cli.main as command

loaded = "torch" in sys.modules
try:
    command.main(["--version"])
except SystemExit:
    print(loaded, os.environ["GOMP_SPINCOUNT"])
"""
OF_LMMS_EVAL = "import os, sys, lmms_eval; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"


@pytest.mark.parametrize("code", [AS_A_COMMAND, AS_A_RANK, OF_LMMS_EVAL])
def test_a_command_sets_it_before_torch_is_imported(code):
    assert run(code, CLEAN).splitlines()[-1] == f"False {SPIN['GOMP_SPINCOUNT']}"


def test_fixed_arithmetic_takes_the_place_of_the_users_settings():
    said = {"MKL_CBWR": "AVX512", "OMP_NUM_THREADS": "64", "ATEN_CPU_CAPABILITY": "default", "PATH": "/bin"}
    environment = fixed_environment(said)
    assert environment == {"PATH": "/bin", **SPIN, **FIXED_ARITHMETIC}


def test_numpy_uses_nothing_above_avx2():
    code = "import numpy; print(numpy.show_config(mode='dicts')['SIMD Extensions']['found'])"
    found = run(code, fixed_environment(CLEAN))
    assert "AVX512" not in found and "V4" not in found and ("V3" in found or "AVX2" in found)


SUMS = """
import hashlib, numpy, torch
from torch.nn import functional as F
torch.manual_seed(0)
x, w, kernel = torch.randn(97, 128), torch.randn(512, 128), torch.randn(32, 16, 3)
found = [x @ w.T, F.gelu(x @ w.T), x.sum(), x.exp(), F.conv1d(x.reshape(1, 16, -1), kernel), x.softmax(-1).log()]
found.append(torch.stft(x.flatten(), 400, 160, window=torch.hann_window(400), return_complex=True).abs())
found.append(torch.from_numpy(numpy.sin(x.double().numpy()) @ w.T.double().numpy()))
print(torch.backends.cpu.get_cpu_capability(), *(hashlib.sha256(t.numpy().tobytes()).hexdigest()[:8] for t in found))
"""


def test_fixed_arithmetic_gives_the_same_sums_whatever_is_set_around_it():
    """Settings stand in for other processors; without it, the first of these gives other sums on any of them."""
    around = (
        {"ATEN_CPU_CAPABILITY": "default"},
        {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "4", "MKL_CBWR": "AUTO"},
    )
    fixed = {run(SUMS, fixed_environment(CLEAN | setting)) for setting in around}
    assert len(fixed) == 1
    capability, *sums = fixed.pop().split()
    assert capability == "AVX2" and run(SUMS, CLEAN | around[0]).split()[1:] != sums


def test_a_folder_has_one_owner_until_that_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "WAIT_S", 0.2)
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        said = f"output_dir {folder} is in use by process {first.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=said), utils.owned(folder, "output_dir"):
            pass
        first.kill()
    assert {path.name for path in folder.iterdir()} == {*utils.OWNER_FILES}  # what a kill leaves
    with utils.owned(folder, "output_dir"):
        assert (folder / utils.OWNER).read_text().startswith(f"process {os.getpid()} on ")
    assert folder.is_dir() and not list(folder.iterdir()), "the user's own folder stays"
    with utils.owned(tmp_path / "new", "output_dir"):
        pass
    with utils.owned(tmp_path / "full", "output_dir"):
        (tmp_path / "full" / "x").touch()
    assert not (tmp_path / "new").exists() and [path.name for path in (tmp_path / "full").iterdir()] == ["x"]
