"""Attention and peak of a device, what a DeepSpeed config leaves open, what an engine's checkpoint must hold."""

import json
from pathlib import Path

import pytest
import torch
from training import make_model, make_setup, stage1_values, write_config
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.cli.main import main
from vaemotionllm.train import checkpoint, distributed
from vaemotionllm.train.model import freeze_all_but

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
THRESHOLD = "stage3_param_persistence_threshold"


# ---- attention and peak


@pytest.mark.parametrize(
    "usable, expected",
    [((4, 3, 2), ["flash_attention_4", "sdpa"]), ((2,), ["flash_attention_2", "sdpa"]), ((), ["sdpa"])],
)
def test_auto_takes_the_newest_usable_flash_attention_and_sdpa_otherwise(monkeypatch, usable, expected):
    monkeypatch.setattr(distributed, "usable_flash_versions", lambda: usable)
    assert distributed.attention_candidates("auto", torch.float16) == expected


@pytest.mark.parametrize(
    "dtype, expected", [(torch.bfloat16, "flash_attention_3"), (torch.float32, "sdpa"), (None, "sdpa")]
)
def test_flash_attention_is_for_half_precision_weights(monkeypatch, dtype, expected):
    monkeypatch.setattr(distributed, "usable_flash_versions", lambda: (3, 2))
    assert distributed.attention_candidates("auto", dtype)[0] == expected


def test_what_is_named_is_taken_or_refused(monkeypatch):
    monkeypatch.setattr(distributed, "usable_flash_versions", lambda: (2,))
    for name in (None, "eager", "sdpa", "flash_attention_2"):
        assert distributed.attention_candidates(name, torch.bfloat16) == [name]
    with pytest.raises(InputError, match="'flash_attention_4'.*package flash-attn-4.*usable here: flash_attention_2"):
        distributed.attention_candidates("flash_attention_4", torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is usable on a GPU depends on what is installed")
def test_without_a_gpu_nothing_but_sdpa_is_usable():
    assert distributed.usable_flash_versions() == ()
    assert distributed.attention_candidates("auto", torch.bfloat16) == ["sdpa"]
    with pytest.raises(InputError, match="no FlashAttention"):
        distributed.attention_candidates("flash_attention_2", torch.bfloat16)


@pytest.mark.parametrize("major, expected", [(9, (4, 3, 2)), (8, (3, 2)), (7, ())])
def test_a_version_needs_a_device_that_it_supports_and_a_package_that_imports(monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    installed = {v: entry | {"general_availability_check": lambda: True} for v, entry in
                 flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX.items()}  # fmt: skip
    monkeypatch.setattr(flash, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", installed)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: None)
    assert distributed.usable_flash_versions() == expected

    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(flash, "lazy_import_flash_attention", broken)
    assert distributed.usable_flash_versions() == ()


def test_the_command_shows_the_attention_once(tmp_path, capsys):
    values = stage1_values(*make_setup(tmp_path), tmp_path / "run", max_steps=1)
    file = str(write_config(tmp_path / "c.yaml", values))
    assert main(["train", "--config", file]) == 0
    error = capsys.readouterr().err
    assert error.count("Attention: sdpa (vlm), sdpa (audio tower).\n") == error.count("Attention: ") == 1
    if not torch.cuda.is_available():
        assert main(["train", "--config", file, "attn_implementation=flash_attention_3", "overwrite=true"]) == 2
        assert "package flash-attn-3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0), ("NVIDIA H200", 989.0), ("NVIDIA A10", 125.0), ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0), ("NVIDIA GeForce RTX 4090", 165.2), ("h100", 989.0), ("NVIDIA A10G", None),
        ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_peak_of_a_device_by_its_name(device, peak):
    assert distributed.peak_tflops_of(device) == peak


# ---- DeepSpeed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(make_model(tmp_path_factory.mktemp("model")))
    freeze_all_but(model, ["audio_projector"])
    return model


def filled(name, **zero):
    """The DeepSpeed config of a name once its sizes are filled, for a hidden size of 32."""
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    values["zero_optimization"] |= zero
    config = HfTrainerDeepSpeedConfig(values)
    distributed.fill_sizes(config, 32)
    return config.config["zero_optimization"]


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_the_shipped_configs_are_deepspeed_s(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = filled(name)
    assert "auto" not in values.values()
    parsed = DeepSpeedZeroConfig(**values)
    known = {field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    assert values.keys() <= known | set(DeepSpeedZeroConfig.model_fields), values.keys() - known
    assert parsed.stage == (2 if name == "zero2" else 3)


def test_what_the_json_sets_is_left():
    assert filled("zero3")[THRESHOLD] == 320 and filled("zero3", **{THRESHOLD: 7})[THRESHOLD] == 7


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
