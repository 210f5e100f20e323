"""The model that a config names, at full size without its weights: on the meta device a tensor has no memory."""

import contextlib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.integrations import deepspeed as hf_deepspeed

from ..model.configuration_vaemotionllm import VAEmotionLLMConfig, check_config_fields
from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration
from ..utils import InputError
from .base_config import StageConfig


def check_folder(name: str, path: str | None) -> None:
    """A path that looks local must be a folder with a config; anything else is left to the Hub."""
    if path is None or (not Path(path).exists() and not path.startswith((".", "/", "~")) and path.count("/") <= 1):
        return
    if not Path(path).is_dir():
        raise InputError(f"config field `{name}`: folder not found: {path}.")
    if not (Path(path) / "config.json").is_file():
        raise InputError(
            f"config field `{name}`: {path} holds no config.json, so it is no saved model. A checkpoint-N folder is "
            "for going on with a run; the model is in the run's output_dir when it is finished."
        )


def model_config(config: StageConfig) -> VAEmotionLLMConfig:
    """Config of the model that a training config names; of a model on the Hub or in a folder only config.json is read.

    Raises:
        InputError: a model that cannot be found, or one that is of no use here.
    """
    for name in ("model", "vlm", "audio"):
        check_folder(name, getattr(config, name))
    try:
        if config.model is not None:
            found = AutoConfig.from_pretrained(config.model)
            if not isinstance(found, VAEmotionLLMConfig):
                raise ValueError(f"it is a {found.model_type!r}; give it as `vlm`, with `audio` beside it.")
            return type(found).from_dict({**found.to_dict(), **(config.model_fields or {})})
        fields = config.model_fields or {}
        check_config_fields(fields)
        vlm, audio = AutoConfig.from_pretrained(config.vlm), AutoConfig.from_pretrained(config.audio)
        if type(vlm) not in AutoModelForImageTextToText._model_mapping:
            raise ValueError(f"`vlm` is a {vlm.model_type!r}, which is no image-text-to-text model of transformers.")
        return VAEmotionLLMConfig(vlm_config=vlm, audio_config=audio, dtype=vlm.dtype, **fields)
    except (OSError, ValueError, KeyError) as error:
        where = config.model or f"{config.vlm} and {config.audio}"
        raise InputError(f"cannot read the config of {where}: {' '.join(str(error).split())}") from error


def meta_model(config: VAEmotionLLMConfig) -> VAEmotionLLMForConditionalGeneration:
    """The model with every parameter and buffer on the meta device; its names and shapes are those of the real one.

    Raises:
        InputError: halves that do not make a model, such as a backbone without a picture.
    """
    try:
        with without_sharding(), torch.device("meta"):
            return VAEmotionLLMForConditionalGeneration(config)
    except (ValueError, AttributeError) as error:
        kinds = f"{config.vlm_config.model_type!r} and {config.audio_config.model_type!r}"
        raise InputError(f"the configs {kinds} do not make a model that hears: {error}") from error


@contextlib.contextmanager
def without_sharding():
    """Where a ZeRO-3 run has begun, the library shards each model that it makes; not those of this block."""
    reference, hf_deepspeed._hf_deepspeed_config_weak_ref = hf_deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference
