"""Two CPU ranks under ZeRO-3 against one process at the same global batch.

DeepSpeed's launcher starts those that are killed or refused; the others are forks of a process with everything
imported, which spares each 20 s of CPU time.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import fork_server
import psutil
import pytest
import torch
import zero3 as benchmark
from safetensors.torch import load_file
from training import (
    losses_of,
    make_setup,
    process_environment,
    stage1_values,
    stage2_values,
    train,
    write_config,
)  # fmt: skip

from vaemotionllm.cli.main import main

ROOT = Path(__file__).parents[2]

CONFIGS = ROOT / "configs" / "deepspeed"
OPTIONS = dict(max_steps=10, save_steps=4)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    # A projector that outweighs what a checkpoint holds beside it.
    return make_setup(tmp_path_factory.mktemp("setup"), projector_hidden_size=2048)


@pytest.fixture(scope="module")
def runs(setup, tmp_path_factory):
    """stage -> (output_dir of one process, of two ranks), trained when they are asked for."""
    done = {}

    def of(values_of):
        if values_of not in done:
            folder = tmp_path_factory.mktemp(values_of.__name__)
            train(values_of(*setup, folder / "one", **OPTIONS))
            result = launch(folder, values_of(*setup, folder / "two", **OPTIONS))
            assert result.returncode == 0, result.stderr[-4000:]
            done[values_of] = folder / "one", folder / "two"
        return done[values_of]

    return of


def sharded(folder, values) -> dict:
    """The same stage for two ranks, with every parameter sharded."""
    config = json.loads((CONFIGS / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3_all.json").write_text(json.dumps(config))
    values = {"deepspeed": str(folder / "zero3_all.json")} | values
    values["per_device_train_batch_size"] //= 2
    return values


def launch(folder, values):
    words = ["-m", "vaemotionllm.cli.train", "--config", write_config(folder / "two.yaml", sharded(folder, values))]
    return fork_server.run_ranks(words, process_environment())


def assert_same_losses(expected, found):
    assert [row["step"] for row in expected] == [row["step"] for row in found]
    for left, right in zip(expected, found, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], abs=1e-6), (left["step"], name)


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_two_ranks_follow_one_process(runs, values_of):
    one, two = runs(values_of)
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
        torch.testing.assert_close(
            first[name], second[name], atol=1e-3, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    if values_of is stage2_values:
        assert_same_adapter(one, two, atol=1e-3, rtol=1e-3)


def assert_same_adapter(expected, found, **tolerance):
    """The same folder for PEFT, but for what the two runs have learned within the tolerance."""
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (expected, found))
    assert first.keys() == second.keys() and any(".lora_A." in name for name in first)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )
    assert any(tensor.abs().max() > 1e-3 for name, tensor in second.items() if ".lora_B." in name)
    configs = [json.loads((run / "adapter" / "adapter_config.json").read_text()) for run in (expected, found)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_export_of_a_sharded_checkpoint_is_the_finished_model(runs, values_of, tmp_path):
    _, two = runs(values_of)
    assert main(["export", str(two), "--out", str(tmp_path / "out")]) == 0
    first, second = load_file(tmp_path / "out" / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    if values_of is stage2_values:
        assert_same_adapter(two, tmp_path / "out", atol=0, rtol=0)


def test_balanced_samples_and_lora_on_the_projector_follow_one_process_whatever_the_ranks_hear(setup, tmp_path):
    rows = [json.loads(line) for line in setup[1].read_text().splitlines()]
    for number, row in enumerate(rows):
        row.pop("audio" if number % 3 == 0 else "no field", None)
    manifest = setup[1].with_name("some_silent.jsonl")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dict(
        max_steps=6, save_steps=6, class_balance=1.0, lora={"rank": 2, "projector": True}, train_audio_projector=False,
        train_audio_tower=False, weight_decay=0.1,
    )  # fmt: skip
    train(stage2_values(setup[0], manifest, tmp_path / "one") | options)
    # The same four clips as two ranks with two micro-batches of one clip, in none of which there is a correlation.
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    result = launch(tmp_path, stage2_values(setup[0], manifest, tmp_path / "two") | options)
    assert result.returncode == 0, result.stderr[-4000:]
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    # A step of images, in which the projector has nothing to do, stands before one of audio.
    paths = [next(name for name in row if name.startswith("ce_")) for row in two]
    assert "ce_visual_loss" in paths[:-1]
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5), left["step"]
    assert_same_adapter(tmp_path / "one", tmp_path / "two", atol=1e-3, rtol=1e-3)
    assert "modules_to_save" in (tmp_path / "two" / "adapter" / "adapter_config.json").read_text()
    assert_holds_no_frozen_weight(tmp_path / "two")


def assert_holds_no_frozen_weight(run):
    """By name: a tied head must not hide under its second one."""
    trained = {name for file in run.glob("checkpoint-*/trainable.json") for name, _ in json.loads(file.read_text())}
    files = list(run.glob("checkpoint-*/global_step*/*model_states.pt"))
    assert files and trained
    for file in files:
        state = torch.load(file, weights_only=False)
        assert not state["frozen_param_fragments"]
        assert {name for name in state["module"] if name not in state["buffer_names"]} == trained


def test_a_checkpoint_holds_trained_weights_and_optimizer_only(runs):
    for values_of in (stage1_values, stage2_values):
        assert benchmark.checkpoint_ratio(runs(values_of)[1]) < 1.1
        assert_holds_no_frozen_weight(runs(values_of)[1])


def test_a_rank_that_is_killed_ends_the_launch_and_the_run_goes_on_as_if_it_had_not_been(setup, runs, tmp_path):
    expected = losses_of(runs(stage1_values)[1])
    values = stage1_values(*setup, tmp_path / "run", **OPTIONS, deepspeed=str(CONFIGS / "zero3.json"))
    step, rank = 5, 1  # after the first checkpoint, and long before the end
    process = benchmark.launch(tmp_path, "killed", sharded(tmp_path, values))
    deadline = time.monotonic() + fork_server.HANG_S
    while not any(row["step"] >= step for row in losses_of(tmp_path / "run")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    (victim,) = [child for child in children if f"--local_rank={rank}" in child.cmdline()]
    os.kill(victim.pid, signal.SIGKILL)
    assert process.wait(timeout=fork_server.HANG_S) != 0, "the launcher must end, and say that something failed"
    _, alive = psutil.wait_procs(children, timeout=fork_server.HANG_S)
    assert not alive, "the other rank must not wait for ever"
    assert not (tmp_path / "run" / "finished.json").exists()
    result = launch(tmp_path, values)
    assert result.returncode == 0, (step, rank, result.stderr[-4000:])
    assert_same_losses(expected, losses_of(tmp_path / "run"))
    assert_holds_no_frozen_weight(tmp_path / "run")


def test_a_checkpoint_of_other_parameters_is_refused_by_all_ranks(setup, runs, tmp_path):
    shutil.copytree(runs(stage1_values)[1], tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    record = tmp_path / "run" / "checkpoint-10" / "trainable.json"
    record.write_text(record.read_text().replace("audio_projector.linear_1.bias", "audio_projector.linear_9.bias"))
    result = launch(tmp_path, stage1_values(*setup, tmp_path / "run", **OPTIONS))
    assert result.returncode == 2, result.stderr[-4000:]
    assert "audio_projector.linear_1.bias is missing there" in result.stderr


@pytest.fixture(scope="module")
def gathers(setup, tmp_path_factory):
    """Gathers of a layer by tower in stage 2, whose step is one forward and one backward."""
    folder = tmp_path_factory.mktemp("gathers")
    values = stage2_values(
        *setup, folder / "sharded", max_steps=6, save_steps=6, lora=None, per_device_train_batch_size=2,
        deepspeed=benchmark.deepspeed_config(folder, "sharded", stage3_param_persistence_threshold=0),
    )  # fmt: skip
    (folder / "values.json").write_text(json.dumps(values))
    counts = benchmark.counts_file(folder, "sharded")
    words = [benchmark.__file__, "--values", folder / "values.json", "--counts", counts]
    result = fork_server.run_ranks(words, process_environment())
    assert result.returncode == 0, result.stderr[-4000:]
    return benchmark.gathers_per_layer(counts)


def test_a_step_of_one_forward_and_backward_gathers_each_layer_twice(gathers):
    assert gathers[benchmark.LLM] == 2


BF16 = dict(
    max_steps=3, save_steps=3, bf16=True, use_cpu=True, activation_checkpointing=True,
    gradient_accumulation_steps=2, per_device_train_batch_size=2, cache_media=True,
)  # fmt: skip


def test_offload_in_bf16_follows_one_process(setup, tmp_path):
    """Without offload, and in stage 2, test_engines.py has it."""
    train(stage1_values(*setup, tmp_path / "one", **BF16))
    # A minute where it is not compiled yet. Not within the time of a launch: who is killed leaves the lock behind.
    words = ["-c", "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"]
    assert fork_server.run(words, process_environment()).returncode == 0
    result = launch(tmp_path, stage1_values(*setup, tmp_path / "two", **BF16, deepspeed="zero3_offload"))
    assert result.returncode == 0, result.stderr[-4000:]
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == len(two) == 3
    for left, right in zip(one, two):
        # bf16 weights there, float32 weights under autocast here.
        assert left["loss"] == pytest.approx(right["loss"], rel=0.1), left["step"]
    assert_holds_no_frozen_weight(tmp_path / "two")
    # The checkpoint has kept in float32 what the model was saved in bf16 of.
    assert main(["export", str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    exported = load_file(tmp_path / "out" / "model.safetensors")
    saved = load_file(tmp_path / "two" / "model.safetensors")
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name].to(saved[name].dtype), saved[name]) for name in saved)


def test_bad_input_ends_all_ranks_with_code_2_and_one_line(setup, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "split": "train", "source": "s"}\n')
    values = sharded(tmp_path, stage1_values(setup[0], manifest, tmp_path / "run"))
    words = ["-m", "vaemotionllm.cli.train", "--config", write_config(tmp_path / "c.yaml", values)]
    result = fork_server.run_ranks(words, process_environment())
    assert result.returncode == 2
    assert result.stderr.count("vaemotionllm train: error:") + result.stdout.count("vaemotionllm train: error:") == 1
    assert not (tmp_path / "run").exists()
