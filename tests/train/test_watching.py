"""What one watches while stage 1 trains, and what stops it."""

import json
import shutil

import pytest
import torch
from training import losses_of, make_setup, stage1_values, stage2_values, train

from vaemotionllm import InputError
from vaemotionllm.train import checkpoint
from vaemotionllm.train.checkpoint import complete_rows
from vaemotionllm.train.trainer import Stage1Trainer


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


KINDS = {"mood": ["Which mood?", "What mood is it?"], "scene": ["What happens here?"]}


def test_divergence_by_place_and_kind_padding_and_waiting(setup, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    options = dict(prompts=KINDS, responses_per_clip=3, max_steps=6, logging_steps=2, report_to="tensorboard")
    options["peak_tflops"] = 0.5
    train(stage1_values(*setup, run, **options))
    rows = complete_rows(run / "metrics.jsonl")
    for row in rows:
        names = {"kl_place_1", "kl_place_2_4", "kl_place_5_16", "kl_kind_mood", "kl_kind_scene", "grad_norm"}
        assert names <= row.keys() and "kl_place_17_64" not in row  # responses have 6 tokens at most
        assert 0 <= row["loader_wait"] <= 1 and 0 <= row["padding"] < 1
        assert row["tflops"] > 0 and row["mfu"] == pytest.approx(row["tflops"] / 0.5, rel=1e-6)
        losses = [value for name, value in row.items() if name.startswith("kl_") and name.endswith("_loss")]
        # Each mean lies within what it is made of.
        places = [row[name] for name in ("kl_place_1", "kl_place_2_4", "kl_place_5_16")]
        assert min(places) <= max(losses) and max(places) >= min(losses)
        assert min(row["kl_kind_mood"], row["kl_kind_scene"]) <= max(losses)
    events = EventAccumulator(str(next(run.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/kl_place_1", "train/kl_kind_mood", "train/grad_norm", "train/padding"} <= set(tags)
    assert [event.value for event in events.Scalars("train/kl_kind_mood")] == pytest.approx(
        [row["kl_kind_mood"] for row in rows], rel=1e-5
    )


def test_the_watched_means_are_those_of_the_values(setup):
    """By hand: three responses of 2, 1 and 5 tokens."""

    class Watcher(Stage1Trainer):
        def __init__(self):
            self.kinds, self.seen = ["mood", "scene"], {}

        def observe(self, name, total, count):
            self.seen[name] = (float(total), float(count))

    watcher, values = Watcher(), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]).bool()
    batch = {
        "positions": torch.tensor([0, 1, 0, 0, 1, 2, 3, 4]), "kinds": ["mood", "scene", "mood"],
        "student": {"response_mask": mask},
    }  # fmt: skip
    watcher._watch(values, batch)
    assert watcher.seen["kl_place_1"] == (1 + 4 + 8, 3) and watcher.seen["kl_place_2_4"] == (2 + 16 + 32 + 64, 4)
    assert watcher.seen["kl_place_5_16"] == (128, 1) and watcher.seen["kl_place_65_up"] == (0, 0)
    assert watcher.seen["kl_kind_mood"] == (3 + 248, 7) and watcher.seen["kl_kind_scene"] == (4, 1)


def test_packed_training_has_the_losses_of_padded_training(setup, tmp_path):
    train(stage1_values(*setup, tmp_path / "padded", packing=False))
    train(stage1_values(*setup, tmp_path / "packed", packing=True))
    assert complete_rows(tmp_path / "padded" / "metrics.jsonl")[0]["padding"] > 0
    assert complete_rows(tmp_path / "packed" / "metrics.jsonl")[0]["padding"] == 0
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
