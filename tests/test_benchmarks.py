import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import benchmark_files
import fork_server
import pytest
import speaking_model

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_of_the_loss_measures_at_tiny_size():
    sizes = ["--vocabulary", "3000", "--hidden", "32", "--clips", "2", "--positions", "64", "--rounds", "1"]
    done = fork_server.run([ROOT / "benchmarks" / "kl_loss.py", *sizes])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    ratios = {f"{what}_vs_{other}" for what in ("time", "memory") for other in ("all", "response")}
    assert set(result) == ratios | {f"gradient_error_{dtype}" for dtype in ("fp64", "fp32", "bf16")}
    # How large, at this size, says nothing about goals; exactness does.
    assert all(result[name] > 0 for name in ratios)
    assert 0 < result["gradient_error_fp64"] < 1e-12
    assert 0 < result["gradient_error_fp32"] < 1e-5
    assert 0 < result["gradient_error_bf16"] < 1e-2


def test_the_benchmark_of_the_builder_measures_at_tiny_size():
    command = [sys.executable, str(ROOT / "benchmarks" / "benchmark_build.py"), "--items", "180"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    stages = ("build", "load", "validate", "load_again")
    expected = {"peak_gb", "seconds_per_item_ratio", *(f"ratio_{stage}" for stage in stages)}
    expected |= {f"{stage}_{what}_180" for stage in stages for what in ("items_per_s", "peak_mb")}
    assert set(result) == expected and all(value > 0 for value in result.values())
    # A process that loads a benchmark needs no torch, whose import alone takes more.
    assert result["load_again_peak_mb_180"] < result["validate_peak_mb_180"]


def test_the_benchmark_of_the_adapter_measures_at_tiny_size(tmp_path):
    model = speaking_model.make(tmp_path / "model")
    folder = benchmark_files.write_benchmark(tmp_path / "benchmark")
    words = ["--model", model, "--benchmark", folder, "--batch-size", "4", "--rounds", "1", "--limit", "3"]
    done = fork_server.run([ROOT / "benchmarks" / "eval_throughput.py", *words])
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["questions"] == 6 * 3 and result["different_answers"] > 6
    assert result["equal_answers"] == 1  # the generic adapter's
    assert 0 < result["time_vs_stock"] == pytest.approx(1 / result["samples_per_s_vs_stock"], rel=1e-2)


def test_the_check_of_a_gpu_runs_its_steps_at_tiny_size(tmp_path):
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    # Without offload, which test_zero3.py has: the compiler that it waits for would have it wait here as well.
    steps = ("imports", "kernels", "packed", "loss", "training", "syncs", "generation", "nano", "four_bit")
    done = fork_server.run([ROOT / "benchmarks" / "gpu_check.py", "--tiny", "--only", *steps])
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    steps = json.loads(done.stdout.splitlines()[-1])
    outcomes = {name: step["outcome"].split(" (")[0] for name, step in steps.items()}
    no_4bit = outcomes.pop("four_bit")
    assert no_4bit == ("measured" if find_spec("bitsandbytes") else "not available: bitsandbytes is not installed")
    assert set(outcomes.values()) == {"measured"} and len(outcomes) == 8, outcomes
    rows = {name: step["rows"] for name, step in steps.items()}
    assert any("flash_attention_2" in row for row in rows["kernels"]) and len(rows["training"]) > 3
    differences = [float(re.search(r"differ by (\S+)", value)[1]) for value in rows["nano"].values()]
    assert differences == [0, 0]  # what is resumed is what was not stopped
    assert results.read_bytes() == before


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu_check")


def fails(size, folder):
    yield "before", "1"
    raise RuntimeError("no kernel image")


def dies(size, folder):
    yield "before", "2"
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(size, folder):
    yield "before", "3"
    time.sleep(60)


def test_a_step_that_fails_ends_alone(gpu_check, tmp_path, monkeypatch):
    steps = {"fails": (fails, 10), "dies": (dies, 10), "hangs": (hangs, 1)}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    found = {name: gpu_check.measure(name, gpu_check.Size(), tmp_path) for name in steps}
    assert [rows for _, rows in found.values()] == [[("before", number)] for number in "123"]
    outcomes = [outcome for outcome, _ in found.values()]
    assert outcomes[0].startswith("failed: RuntimeError: no kernel image")
    assert outcomes[1].startswith("failed: its process ended with code -9")
    assert outcomes[2].startswith("stopped after its 1 s")
    file = tmp_path / "RESULTS.md"
    file.write_text("# A\n\n" + "\n\nold\n\n".join(gpu_check.MARKS) + "\n\n## B\n")
    for _ in range(2):
        gpu_check.write_results(file, gpu_check.as_markdown("one GPU", found, 12))
    text = file.read_text()
    assert text.startswith("# A\n") and text.endswith("\n## B\n") and "old" not in text
    assert text.count("no kernel image") == text.count(gpu_check.MARKS[0]) == 1


def test_make_bench_names_scripts_that_exist():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(r"^BENCHMARKS := (.*)$", makefile, re.M).group(1).split()
    assert "eval_throughput.py" in listed  # on the last line
    assert listed and all((ROOT / "benchmarks" / name).is_file() for name in listed)
