"""A checkpoint becomes the model that the finished run saved."""

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import make_setup, stage1_values, stage2_values, train

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def assert_same_model(exported, run):
    first, second = load_file(exported / "model.safetensors"), load_file(run / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), name
    assert (exported / "adapter").exists() == (run / "adapter").exists()
    for file in (run / "adapter").glob("*"):
        assert (exported / "adapter" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_the_last_checkpoint_is_the_finished_run_s_model(setup, tmp_path, values_of, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    train(values_of(*setup, run, max_steps=4, save_steps=2))
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"{out}: the model of {run / 'checkpoint-4'}"
    assert_same_model(out, run)
    assert (out / "adapter").exists() == (values_of is stage2_values)  # which trains LoRA
    assert not any(".lora_" in name for name in load_file(out / "model.safetensors"))
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(out)
    assert VAEmotionLLMProcessor.from_pretrained(out).num_frames == 4 and model.config.model_type == "vaemotionllm"
    # An earlier checkpoint is another model.
    assert main(["export", str(run), "--checkpoint", "2", "--out", str(tmp_path / "two")]) == 0
    earlier, last = load_file(tmp_path / "two" / "model.safetensors"), load_file(out / "model.safetensors")
    assert earlier.keys() == last.keys() and any(not torch.equal(earlier[name], last[name]) for name in last)


def test_a_run_that_bolted_its_model_together_is_bolted_together_again(setup, tmp_path):
    parts = setup[0].parent
    new = {"model": None, "vlm": str(parts / "qwen2_5_vl"), "audio": str(parts / "whisper")}
    values = stage1_values(*setup, tmp_path / "run", max_steps=2) | new | {"model_fields": {"projector_stride": 5}}
    train(values)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert_same_model(tmp_path / "out", tmp_path / "run")
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.config.projector_stride == 5


def test_a_full_disk_is_told_and_no_folder_is_left(setup, tmp_path, capsys):
    train(stage1_values(*setup, tmp_path / "run", max_steps=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "GiB are free there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_bad_input_ends_with_code_2_and_leaves_no_folder(setup, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"

    def error(*words):
        assert main(["export", str(run), "--out", str(out), *words]) == 2
        assert [path.name for path in tmp_path.iterdir() if path != run] == []
        return capsys.readouterr().err

    assert "run.json" in error()
    values = stage1_values(*setup, run, max_steps=4, save_steps=2)
    train(values)
    assert "no complete checkpoint of step 3; complete: 2, 4" in error("--checkpoint", "3")
    file = run / "checkpoint-4" / "trainable.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if name.endswith("norm.weight") and tensor.dim() == 1)
    save_file(tensors | {name: torch.zeros(3)}, file)
    assert "checkpoint-4" not in error("--checkpoint", "4").split("complete: ")[-1]  # its size has changed
    sizes = json.loads((run / "checkpoint-4" / "complete.json").read_text())
    sizes["trainable.safetensors"] = file.stat().st_size
    (run / "checkpoint-4" / "complete.json").write_text(json.dumps(sizes))
    assert f"{name} is [3] there and" in error()
    for folder in run.glob("checkpoint-*"):
        (folder / "complete.json").unlink()
    assert "no complete checkpoint; complete: none" in error()
