import json
import re
import subprocess
import sys
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


def test_make_bench_names_scripts_that_exist():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(r"^BENCHMARKS := (.*)$", makefile, re.M).group(1).split()
    assert "eval_throughput.py" in listed  # on the last line
    assert listed and all((ROOT / "benchmarks" / name).is_file() for name in listed)
