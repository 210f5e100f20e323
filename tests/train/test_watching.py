"""What one watches while stage 1 trains, and what stops it."""

import json
import shutil

import pytest
import torch
from training import losses_of, make_setup, stage1_values, stage2_values, train

from vaemotionllm import InputError
from vaemotionllm.train import checkpoint
from vaemotionllm.train.checkpoint import complete_rows


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def test_waiting_for_data_is_logged(setup, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(stage1_values(*setup, run, max_steps=6, logging_steps=2, report_to="tensorboard"))
    rows = complete_rows(run / "metrics.jsonl")
    assert all(0 <= row["loader_wait"] <= 1 and "grad_norm" in row for row in rows)
    events = EventAccumulator(str(next(run.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loader_wait")] == pytest.approx(
        [row["loader_wait"] for row in rows], rel=1e-5
    )


def test_packed_training_has_the_losses_of_padded_training(setup, tmp_path):
    train(stage1_values(*setup, tmp_path / "padded", packing=False))
    train(stage1_values(*setup, tmp_path / "packed", packing=True))
    one, two = losses_of(tmp_path / "padded"), losses_of(tmp_path / "packed")
    assert one[0]["loss"] > 0.1
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], abs=1e-5)
    for left, right in zip(one, two, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-3)


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_a_loss_that_is_not_finite_stops_the_run(setup, tmp_path, values_of, monkeypatch):
    from vaemotionllm.train import losses

    run, calls = tmp_path / "run", []
    name, module = ("divergence", "trainer") if values_of is stage1_values else ("cross_entropy", "trainer")
    whole = getattr(losses, name)

    def breaks(*args, **kwargs):
        terms = whole(*args, **kwargs)
        calls.append(1)
        return {
            key: value * torch.nan if key.endswith("_loss") and len(calls) == 4 else value
            for key, value in terms.items()
        }

    monkeypatch.setattr(f"vaemotionllm.train.{module}.{name}", breaks)
    pattern = r"step 4: \w+_loss is nan; clips of this step: train-\d+(, train-\d+){3}\. .*checkpoint-2: look at"
    with pytest.raises(InputError, match=pattern):
        train(values_of(*setup, run, max_steps=6, save_steps=2))
    assert [row["step"] for row in losses_of(run)] == [1, 2, 3]
    assert checkpoint.last_complete(run) == run / "checkpoint-2" and not (run / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_applied(setup, tmp_path, monkeypatch):
    from vaemotionllm.train import losses

    run, seen = tmp_path / "run", []
    whole = losses.divergence

    def breaks(teacher, student, *args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            student.register_hook(lambda grad: grad * torch.inf)
        return whole(teacher, student, *args, **kwargs)

    monkeypatch.setattr("vaemotionllm.train.trainer.divergence", breaks)
    with pytest.raises(InputError, match="step 3: grad_norm is (nan|inf); clips of this step: train-"):
        train(stage1_values(*setup, run, max_steps=6, save_steps=2))
    assert checkpoint.last_complete(run) == run / "checkpoint-2"


def test_an_input_longer_than_the_context_is_named(setup, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(setup[0], small)
    values = json.loads((small / "config.json").read_text())
    values["vlm_config"]["text_config"]["max_position_embeddings"] = 75  # room for the picture, none for both
    (small / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"clip 'train-\d+': its input of \d+ tokens exceeds .*context of 75 tokens"):
        train(stage1_values(small, setup[1], tmp_path / "run", student_modalities={"av": 1.0}))
