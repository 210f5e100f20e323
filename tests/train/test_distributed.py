"""Attention of a device, what a DeepSpeed config leaves open, what an engine's checkpoint must hold."""

import contextlib
import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import make_model, make_setup, stage1_values, write_config
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config
from vaemotionllm.train import checkpoint, config, distributed
from vaemotionllm.train.model import freeze_all_but

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
THRESHOLD = "stage3_param_persistence_threshold"


def test_ranks_wait_for_each_other_as_long_as_the_config_says(monkeypatch, tmp_path):
    values = stage1_values("model", "manifest.jsonl", tmp_path)
    assert build_config(config.Stage1Config, values).ddp_timeout == 86_400
    assert build_config(config.Stage1Config, values | {"ddp_timeout": 60}).ddp_timeout == 60
    given = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(config, "PartialState", lambda **options: given.append(options["timeout"]))
    config.join_cpu_ranks(SimpleNamespace(deepspeed=None, ddp_timeout=60))
    assert given == [timedelta(minutes=1)]


# ---- attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is usable on a GPU depends on what is installed")
def test_without_a_gpu_auto_is_sdpa_and_what_is_named_is_taken():
    assert distributed.attention_candidates("auto", torch.bfloat16) == ["sdpa"]
    for name in (None, "eager", "flash_attention_2"):
        assert distributed.attention_candidates(name, torch.bfloat16) == [name]


@pytest.mark.parametrize(
    "major, dtype, expected",
    [(9, torch.bfloat16, (4, 3, 2)), (8, torch.float16, (3, 2)), (7, torch.bfloat16, ()), (9, torch.float32, ()),
     (9, None, ())],
)  # fmt: skip
def test_auto_takes_the_newest_flash_attention_that_the_device_supports(monkeypatch, major, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    known = distributed.FLASH_ATTENTION_COMPATIBILITY_MATRIX
    installed = {version: entry | {"general_availability_check": lambda: True} for version, entry in known.items()}
    monkeypatch.setattr(distributed, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", installed)
    found = distributed.attention_candidates("auto", dtype)
    assert found == [*(f"flash_attention_{version}" for version in expected), "sdpa"]


def test_the_command_shows_the_attention_once(tmp_path, capsys):
    values = stage1_values(*make_setup(tmp_path), tmp_path / "run", max_steps=1)
    file = str(write_config(tmp_path / "c.yaml", values))
    assert main(["train", "--config", file]) == 0
    error = capsys.readouterr().err
    assert error.count("Attention: sdpa (vlm), sdpa (audio tower).\n") == error.count("Attention: ") == 1
    if not torch.cuda.is_available():
        assert main(["train", "--config", file, "attn_implementation=flash_attention_3", "overwrite=true"]) == 2
        assert "FlashAttention3" in capsys.readouterr().err


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
    good = checkpoint.trainable_shapes(model)
    assert dict(good)["audio_projector.boundary"] == [2, 32] and all(name.startswith("audio_p") for name, _ in good)
    for found, words in (
        (good, None),
        (good[1:], "is missing there and"),
        ([*good, ["audio_tower.x", [1]]], "audio_tower.x is \\[1\\] there and missing here"),
        ([[good[0][0], [9, 9]], *good[1:]], "is \\[9, 9\\] there"),
        (good[::-1], "another order"),
    ):
        (tmp_path / checkpoint.TRAINABLE_SHAPES).write_text(json.dumps(found))
        with pytest.raises(InputError, match=words) if words else contextlib.nullcontext():
            checkpoint.check_engine_checkpoint(model, tmp_path)
