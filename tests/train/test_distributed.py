"""Attention of a device, what a DeepSpeed config leaves open, what an engine's checkpoint must hold."""

import contextlib
import functools
import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import emulated_flash
import full_size
import pytest
import torch
from training import make_model, make_setup, stage1_values, write_config
from transformers import AttentionInterface
from transformers.integrations import hub_kernels
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vaemotionllm import InputError, VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config
from vaemotionllm.train import checkpoint, config, distributed
from vaemotionllm.train.model import FRAME_PX, freeze_all_but, head_dimensions, load_model, window_calls

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
    config.join_cpu_ranks(SimpleNamespace(fsdp=False, deepspeed=None, ddp_timeout=60))
    assert given == [timedelta(minutes=1)]


# ---- attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is usable on a GPU depends on what is installed")
def test_without_a_gpu_auto_is_sdpa_and_what_is_named_is_taken():
    assert distributed.attention_candidates("auto", torch.bfloat16, {128}) == ["sdpa"]
    for name in (None, "eager", "flash_attention_2"):
        assert distributed.attention_candidates(name, torch.bfloat16, {128}) == [name]


def with_gpu(monkeypatch, major, versions=(2, 3, 4)):
    """As if a GPU were there, and these versions of FlashAttention installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    known = distributed.FLASH_ATTENTION_COMPATIBILITY_MATRIX
    installed = {
        version: entry | {"general_availability_check": lambda found=version in versions: found}
        for version, entry in known.items()
    }
    monkeypatch.setattr(distributed, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", installed)


@pytest.mark.parametrize(
    "major, dtype, expected",
    [
        (9, torch.bfloat16, (3, 2, 4)),
        (10, torch.bfloat16, (4, 3, 2)),
        (8, torch.float16, (3, 2)),
        (7, torch.bfloat16, ()),
        (9, torch.float32, ()),
        (9, None, ()),
    ],
)
def test_auto_takes_the_flash_attention_that_suits_the_device(monkeypatch, major, dtype, expected):
    with_gpu(monkeypatch, major)
    monkeypatch.setattr(distributed, "attention_problem", lambda *args: None)
    found = distributed.attention_candidates("auto", dtype, {128, 80})
    assert found == [*(f"flash_attention_{version}" for version in expected), "sdpa"]


def test_a_flash_attention_that_cannot_compute_the_heads_is_passed_over(monkeypatch, caplog):
    on_cpu = functools.partial(distributed.attention_problem, device="cpu")
    monkeypatch.setattr(distributed, "attention_problem", on_cpu)
    with emulated_flash.installed() as calls:
        with_gpu(monkeypatch, 9, versions=(2, 3))  # 3 is there by its name and cannot be imported
        assert distributed.attention_candidates("auto", torch.bfloat16, {72, 16}) == ["flash_attention_2", "sdpa"]
        assert "FlashAttention 3 is passed over: head dimension 72: " in caplog.text and calls == ["packed"] * 4
        # A dimension that is no multiple of 8: the real one refuses it as well.
        assert distributed.attention_candidates("auto", torch.bfloat16, {64, 20}) == ["sdpa"]
        assert "FlashAttention 2 is passed over: head dimension 20: RuntimeError" in caplog.text
        assert distributed.attention_problem("flash_attention_2", torch.bfloat16, {64}) is None
        # Wrong numbers are no better than none.
        right = emulated_flash._attention
        monkeypatch.setattr(emulated_flash, "_attention", lambda *states: 1.2 * right(*states))
        assert "differs from sdpa" in distributed.attention_problem("flash_attention_2", torch.bfloat16, {64})


def test_heads_of_the_shipped_models():
    heads = {name: head_dimensions(make()) for name, make in full_size.MAKERS.items()}
    assert heads["Qwen/Qwen2.5-VL-7B-Instruct"] == {128, 80} and heads["Qwen/Qwen3-VL-8B-Instruct"] == {128, 72}
    assert heads["openai/whisper-large-v3"] == heads["MIT/ast-finetuned-audioset-10-10-0.4593"] == {64}
    vlm, audio = (full_size.MAKERS[name]() for name in ("Qwen/Qwen3-VL-8B-Instruct", "openai/whisper-large-v3"))
    assert head_dimensions(VAEmotionLLMConfig(vlm_config=vlm, audio_config=audio)) == {128, 72, 64}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def model_config(path, device, attention):
    """What `load_model` reads of a config, for a device that is not there."""
    values = {"model": str(path), "vlm": None, "audio": None, "model_fields": None, "lora": None, "seed": 0}
    values |= {"num_frames": 4, "max_audio_s": 30.0, "max_pixels": 10**6, "max_clip_bytes": 10**9, "deepspeed": None}
    return SimpleNamespace(**values, process_index=0, attn_implementation=attention, device=torch.device(device))


def test_calls_of_a_vision_tower_with_windows(model_path):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(model_path)
    vision, calls = model.vlm.config.vision_config, []

    def counted(*args, **kwargs):
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("sdpa", counted)
    try:
        grid = FRAME_PX // vision.patch_size
        values = torch.zeros(grid * grid, 3 * vision.temporal_patch_size * vision.patch_size**2)
        model.vlm.get_video_features(values, torch.tensor([[1, grid, grid]]))
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)
    assert window_calls(model.vlm.config) == len(calls) == 1 + (FRAME_PX // vision.window_size) ** 2
    vision._attn_implementation = "flash_attention_2"
    assert window_calls(model.vlm.config) == 0
    assert window_calls(full_size.MAKERS["Qwen/Qwen2.5-VL-7B-Instruct"]()) == 4 + 28 * 16
    assert window_calls(full_size.MAKERS["Qwen/Qwen3-VL-8B-Instruct"]()) == 0


def test_a_run_on_a_gpu_says_what_sdpa_costs(model_path, monkeypatch, caplog):
    monkeypatch.setattr(VAEmotionLLMForConditionalGeneration, "to", lambda model, device: model)
    load_model(model_config(model_path, "cuda", "sdpa"))
    assert re.search(r"once for each window: 65 calls .* kernels-community/flash-attn2", caplog.text)
    caplog.clear()
    load_model(model_config(model_path, "cpu", "sdpa"))
    assert "window" not in caplog.text


def test_a_kernel_of_the_hub_is_taken_where_it_is_named(model_path, monkeypatch):
    name, fetched = "kernels-community/flash-attn2", []
    with emulated_flash.installed(half_only=False) as calls:
        package = sys.modules["flash_attn"]
        monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
        monkeypatch.setattr(hub_kernels, "get_kernel", lambda repo, **options: fetched.append(repo) or package)
        model, _ = load_model(model_config(model_path, "cpu", name))
        model(
            input_ids=torch.arange(20, 28).view(2, 4),
            attention_mask=torch.ones(2, 4),
            response_mask=torch.ones(2, 4).bool(),
            packing=True,
        )
    assert set(fetched) == {name} and set(calls) == {"packed"}
    assert model.audio_tower.config._attn_implementation == name


def test_the_command_shows_the_attention_once(tmp_path, capsys):
    values = stage1_values(*make_setup(tmp_path), tmp_path / "run", max_steps=1)
    file = str(write_config(tmp_path / "c.yaml", values))
    assert main(["train", "--config", file]) == 0
    error = capsys.readouterr().err
    assert error.count("Attention: sdpa (vlm), sdpa (audio tower).\n") == error.count("Attention: ") == 1
    if not torch.cuda.is_available():
        assert main(["train", "--config", file, "attn_implementation=flash_attention_3", "overwrite=true"]) == 2
        error = capsys.readouterr().err
        assert "FlashAttention3" in error and "kernels-community/flash-attn2" in error


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
