"""Two CPU ranks under ZeRO-3, started by the deepspeed launcher, against one process at the same global batch."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import command, losses_of, make_setup, stage1_values, stage2_values, train, write_config  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def launch(folder, values, port):
    """The same stage on two ranks, with every parameter sharded."""
    config = json.loads((CONFIGS / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3_all.json").write_text(json.dumps(config))
    values = values | {
        "deepspeed": str(folder / "zero3_all.json"),
        "per_device_train_batch_size": values["per_device_train_batch_size"] // 2,
    }
    launcher = ("deepspeed", "--num_gpus", "2", "--master_port", str(port), "--module", "vaemotionllm.cli.train")
    words = ("--config", write_config(folder / f"{port}.yaml", values))
    return command(*words, launcher=launcher, timeout_s=400, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_two_ranks_follow_one_process(setup, tmp_path, values_of):
    one, two = tmp_path / "one", tmp_path / "two"
    options = dict(max_steps=10, save_steps=4)
    train(values_of(*setup, one, **options))
    port = 29650 + (values_of is stage2_values)
    result = launch(tmp_path, values_of(*setup, two, **options), port)
    assert result.returncode == 0, result.stderr[-4000:]
    paths = {name for row in losses_of(one) for name in row if name.endswith("_loss")}
    assert len({name.split("_")[1] for name in paths}) > 1  # the run took more than one path
    assert losses_of(one)[0]["loss"] > 0.1
    for left, right in zip(losses_of(one), losses_of(two), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5), (left["step"], name)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-3)
    # Going on from a sharded checkpoint gives the same losses again.
    expected = losses_of(two)
    for name in ("finished.json", "model.safetensors"):
        (two / name).unlink()
    shutil.rmtree(two / "checkpoint-10")
    result = launch(tmp_path, values_of(*setup, two, **options), port)
    assert result.returncode == 0, result.stderr[-4000:]
    for left, right in zip(expected, losses_of(two), strict=True):
        for name in left:
            assert left[name] == pytest.approx(right[name], abs=1e-6), (left["step"], name)


def test_bad_input_ends_all_ranks_with_code_2_and_one_line(setup, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "split": "train", "source": "s"}\n')
    result = launch(tmp_path, stage1_values(setup[0], manifest, tmp_path / "run"), 29652)
    assert result.returncode == 2
    assert result.stderr.count("vaemotionllm train: error:") + result.stdout.count("vaemotionllm train: error:") == 1
    assert not (tmp_path / "run").exists()
