"""What the DeepSpeed config leaves open, and what a checkpoint of an engine must hold."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import make_model

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.train import checkpoint, engine
from vaemotionllm.train.freezing import freeze_all_but

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
THRESHOLD = "stage3_param_persistence_threshold"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(make_model(tmp_path_factory.mktemp("model")))
    freeze_all_but(model, ["audio_projector"])
    return model


def config(name, replicate=None, device="cpu", **zero):
    """The fields of a training config that are read; the DeepSpeed config is the library's own object."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, HfTrainerDeepSpeedConfig

    values = json.loads((CONFIGS / f"{name}.json").read_text())
    values["zero_optimization"] |= zero
    loaded = HfTrainerDeepSpeedConfig(values)
    assert isinstance(loaded, HfDeepSpeedConfig)
    return SimpleNamespace(
        hf_deepspeed_config=loaded, zero3_replicate_frozen=replicate, bf16=True, fp16=False,
        device=torch.device(device),
    )  # fmt: skip


def filled(settings, model):
    engine.fill_sizes(settings, model)
    return settings.hf_deepspeed_config.config["zero_optimization"]


def test_replicated_frozen_weights_persist_and_sharded_ones_do_not(model):
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    assert filled(config("zero3", replicate=True), model)[THRESHOLD] >= max(frozen)
    for settings in (config("zero3"), config("zero3", replicate=False), config("zero3_offload")):
        zero = filled(settings, model)
        assert zero[THRESHOLD] < max(frozen)
        assert "auto" not in zero.values()
    assert filled(config("zero3", **{THRESHOLD: 7}), model)[THRESHOLD] == 7
    assert "auto" not in filled(config("zero2"), model).values()


def test_frozen_weights_are_replicated_where_they_take_at_most_half_of_the_device(monkeypatch, model):
    frozen_bytes = 2 * sum(p.numel() for p in model.parameters() if not p.requires_grad)  # bf16
    for total, expected in ((2 * frozen_bytes, True), (2 * frozen_bytes - 2, False)):
        properties = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        monkeypatch.setattr(engine, "is_on_all_ranks", lambda value, device: value)
        assert engine.replicates_frozen(config("zero3", device="cuda"), model) is expected
        assert not engine.replicates_frozen(config("zero3_offload", device="cuda"), model)
        assert not engine.replicates_frozen(config("zero2", device="cuda"), model)


def test_a_wish_that_the_json_contradicts_is_refused(model):
    with pytest.raises(InputError, match="offload_param"):
        engine.fill_sizes(config("zero3_offload", replicate=True), model)
    with pytest.raises(InputError, match=f"{THRESHOLD} to 7"):
        engine.fill_sizes(config("zero3", replicate=True, **{THRESHOLD: 7}), model)


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_the_shipped_configs_are_deepspeed_s(name, model):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = filled(config(name), model)
    parsed = DeepSpeedZeroConfig(**values)
    known = {field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    assert values.keys() <= known | set(DeepSpeedZeroConfig.model_fields), values.keys() - known
    assert parsed.stage == (2 if name == "zero2" else 3)


def test_an_engine_s_checkpoint_must_hold_what_is_trained(tmp_path, model):
    checkpoint.record_trainable_shapes(model, tmp_path)
    checkpoint.check_trainable_shapes(model, tmp_path)
    file = tmp_path / checkpoint.TRAINABLE_SHAPES
    good = json.loads(file.read_text())
    assert dict(good)["audio_projector.boundary"] == [2, 32] and all(name.startswith("audio_p") for name, _ in good)
    for changed, words in (
        (good[1:], "missing"),
        ([*good, ["audio_tower.x", [1]]], "unknown \\['audio_tower.x'\\]"),
        ([[good[0][0], [9, 9]], *good[1:]], "is \\[9, 9\\] there"),
        (good[::-1], "another order"),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words):
            checkpoint.check_trainable_shapes(model, tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="trainable.json"):
        checkpoint.check_trainable_shapes(model, tmp_path)
