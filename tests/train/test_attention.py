"""Which attention a run takes, as a function of what is installed."""

import pytest
import torch
from training import make_model

from vaemotionllm import InputError
from vaemotionllm.train import attention


@pytest.mark.parametrize(
    "usable, expected",
    [
        ((2, 3, 4), ["flash_attention_4", "sdpa"]),
        ((2, 3), ["flash_attention_3", "sdpa"]),
        ((2,), ["flash_attention_2", "sdpa"]),
        ((), ["sdpa"]),
    ],
)
def test_auto_takes_the_newest_usable_flash_attention_and_sdpa_otherwise(usable, expected):
    assert attention.preferred(usable) == expected


@pytest.mark.parametrize(
    "dtype, expected", [(torch.bfloat16, "flash_attention_3"), (torch.float32, "sdpa"), (None, "sdpa")]
)
def test_flash_attention_is_for_half_precision_weights(monkeypatch, dtype, expected):
    monkeypatch.setattr(attention, "usable_versions", lambda: (3, 2))
    assert attention.attention_candidates("auto", dtype)[0] == expected


def test_what_is_named_is_taken_or_refused(monkeypatch):
    monkeypatch.setattr(attention, "usable_versions", lambda: (2,))
    for name in (None, "eager", "sdpa", "flash_attention_2"):
        assert attention.attention_candidates(name, torch.bfloat16) == [name]
    with pytest.raises(InputError, match="'flash_attention_4'.*package flash-attn-4.*usable here: flash_attention_2"):
        attention.attention_candidates("flash_attention_4", torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is usable on a GPU depends on what is installed")
def test_without_a_gpu_nothing_but_sdpa_is_usable():
    assert attention.usable_versions() == ()
    assert attention.attention_candidates("auto", torch.bfloat16) == ["sdpa"]
    with pytest.raises(InputError, match="no FlashAttention"):
        attention.attention_candidates("flash_attention_2", torch.bfloat16)


@pytest.mark.parametrize("major, expected", [(9, (4, 3, 2)), (8, (3, 2)), (7, ())])
def test_a_version_needs_a_device_that_it_supports_and_a_package_that_imports(monkeypatch, major, expected):
    from transformers import modeling_flash_attention_utils as flash

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    installed = {v: entry | {"general_availability_check": lambda: True} for v, entry in
                 flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX.items()}  # fmt: skip
    monkeypatch.setattr(flash, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", installed)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: None)
    assert attention.usable_versions() == expected

    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(flash, "lazy_import_flash_attention", broken)
    assert attention.usable_versions() == ()


def test_the_dtype_of_the_weights_is_read_from_the_config(tmp_path):
    from vaemotionllm import VAEmotionLLMConfig

    config = VAEmotionLLMConfig.from_pretrained(make_model(tmp_path))
    assert attention.weights_dtype(config) == torch.float32
    config.dtype = None
    config.get_text_config().dtype = torch.bfloat16
    assert attention.weights_dtype(config) == torch.bfloat16


def test_the_command_shows_the_attention_once(tmp_path, capsys):
    from training import make_setup, stage1_values, write_config

    from vaemotionllm.cli.main import main

    values = stage1_values(*make_setup(tmp_path), tmp_path / "run", max_steps=1)
    file = str(write_config(tmp_path / "c.yaml", values))
    assert main(["train", "--config", file]) == 0
    error = capsys.readouterr().err
    assert error.count("Attention: sdpa (vlm), sdpa (audio tower).\n") == error.count("Attention: ") == 1
    if not torch.cuda.is_available():
        assert main(["train", "--config", file, "attn_implementation=flash_attention_3", "overwrite=true"]) == 2
        assert "package flash-attn-3" in capsys.readouterr().err
