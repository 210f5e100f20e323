"""Checkpoints: their weight files, loading with every gap an error, and models saved without their backbone."""

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, extract_commit_hash
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_vaemotionllm import VAEmotionLLMConfig
from .inputs import InputError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
"""Arguments of `from_pretrained` that say how to fetch, whatever is fetched."""

BACKBONE = "vlm."
"""What the names of the backbone's weights begin with."""

# First letters of config fields -> the parameters whose number or form they decide.
_FORMS = {
    "enhancer_": "emotion_adapter.enhancers.",
    "supervisor_": "emotion_adapter.supervisor.",
    "emotion_labels": "emotion_adapter.supervisor.",
    "projector_": "audio_projector.",
}

# Fields of a config that `from_pretrained` takes for itself.
_NOT_FOR_THE_CONFIG = {"attn_implementation", "dtype", "experts_implementation", "quantization_config", "torch_dtype"}
# Values of each tensor in a fingerprint, evenly over it: any training changes some, and they are cheap to read.
_SAMPLES = 8


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say from where and how to fetch."""
    return {key: kwargs[key] for key in (*HUB_ARGUMENTS, "revision", "subfolder") if key in kwargs}


def weight_files(name: str | Path, **where) -> list[str]:
    """The safetensors files of a saved model, fetched where they are not here yet.

    Args:
        name: folder or Hub name.
        **where: `revision`, `subfolder` and `HUB_ARGUMENTS`, as in `from_pretrained`.

    Raises:
        OSError: the name, its revision or its weights cannot be found.
        ValueError: an index that cannot be read.
    """
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **where)
        if found is None:
            continue
        if file == SAFE_WEIGHTS_NAME:
            return [found]
        try:
            return get_checkpoint_shard_files(str(name), found, **where)[0]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{found} is no index of weights ({error}); fetch or copy it again.") from error
    raise OSError(f"{name} holds no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}.")


class Weights(Mapping[str, torch.Tensor]):
    """Tensors of safetensors files by name, each read when it is needed.

    Raises:
        InputError: a file that is not there or cannot be read.
    """

    def __init__(self, files: Iterable[str | Path]):
        self._of: dict[str, safe_open] = {}
        for file in map(Path, files):
            try:
                opened = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"the weight file {file} is cut off or altered, or not there ({error}). Fetch or copy it again."
                ) from error
            self._of.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._of[name].get_tensor(name)

    def __iter__(self):
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, dtypes, shapes and some values of each tensor, the same however they are spread over files."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // _SAMPLES)]
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def commit_of(name: str | Path, **where) -> str | None:
    """The commit that a Hub name stands for; None for a folder."""
    return extract_commit_hash(cached_file(str(name), "config.json", **where), None)


class Backbone:
    """The saved backbone that a config refers to.

    Args:
        name: folder or Hub name of the backbone.
        revision: commit, tag or branch on the Hub.
        **where: `HUB_ARGUMENTS`.

    Raises:
        InputError: it cannot be found or fetched, or its files cannot be read.
    """

    def __init__(self, name: str | None, revision: str | None = None, **where):
        self.name, self.where = name, {**where, **({} if revision is None else {"revision": revision})}
        self.label = f"{name!r}" + ("" if revision is None else f" at revision {revision!r}")
        if name is None:
            raise InputError(
                "the config names no backbone (backbone_name), without which its weights cannot be left out or "
                "fetched; give backbone_name, and backbone_revision for one on the Hub."
            )
        try:
            self.weights = Weights(weight_files(name, **self.where))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the weights of the backbone {self.label} cannot be read: {' '.join(str(error).split())} Give "
                "another backbone_name or backbone_revision to from_pretrained where they have moved."
            ) from error
        self.fingerprint = fingerprint(self.weights)

    def check_holds(self, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        """Checks that a model's backbone can be left out: that its tensors are this one's bit for bit.

        Args:
            weights: of a whole model, under the names that are saved. A tensor of another dtype must be what the
                backbone's becomes in it.
            prefix: of the backbone's among these names.

        Raises:
            InputError: tensors that differ, with their number.
        """
        names = sorted(name for name in weights if name.startswith(prefix))
        saved: Mapping[str, torch.Tensor] = self.weights
        if any(name.removeprefix(prefix) not in saved for name in names):
            saved = self._renamed()
        changed = [
            name
            for name in names
            if (own := name.removeprefix(prefix)) not in saved or not _equal(weights[name], saved[own])
        ]
        if changed or not names:
            raise InputError(
                f"{len(changed)} of {len(names)} tensors of the backbone are not those of {self.label}, "
                f"{', '.join(changed[:2])} among them; as after a stage 2 with LoRA, which is merged into the "
                "backbone. Save or push the model whole; a run's `adapter` folder has LoRA and what was trained alone."
            )

    def _renamed(self) -> dict[str, torch.Tensor]:
        """The weights under the names that this library saves: releases have had others."""
        model = AutoModelForImageTextToText.from_pretrained(self.name, dtype="auto", **self.where)
        model._weight_conversions = None  # those of its files are the names that were not found
        return revert_weight_conversion(model, model.state_dict())


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    if tensor.shape != other.shape:
        return False
    pair = (part.to("cpu", tensor.dtype).contiguous().flatten().view(torch.uint8) for part in (tensor, other))
    return torch.equal(*pair)


def load_checkpoint(
    cls: type[PreTrainedModel], load: Callable, name: str, *model_args, config=None, **kwargs
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and the library's report of what was missing, unexpected or mismatched.

    Args:
        cls: class of the model.
        load: the library's `from_pretrained` of it.
        name: folder or Hub name.
        *model_args, config, **kwargs: as of `from_pretrained`.

    Raises:
        InputError: see `VAEmotionLLMForConditionalGeneration.from_pretrained`.
    """
    if kwargs.setdefault("use_safetensors", True) is False:
        raise InputError("use_safetensors is False; weights are read from safetensors alone, which hold no code.")
    where = hub_arguments(kwargs)
    alone = _config_without_backbone(cls, name, config, where, kwargs)
    try:
        if alone is None:
            model, info = load(name, *model_args, config=config, output_loading_info=True, **kwargs)
        else:
            state_dict = _joined_weights(name, alone, where)
            with contextlib.suppress(OSError):  # a folder without one
                kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(name, **where))
            kwargs = {key: value for key, value in kwargs.items() if key not in where}
            adapter = dict(kwargs.pop("adapter_kwargs", None) or {})
            model, info = load(
                None, *model_args, config=alone, state_dict=state_dict, output_loading_info=True, **kwargs
            )
            model.name_or_path = model.config.name_or_path = str(name)
            model.config.backbone_included, model.config.backbone_fingerprint = True, None
            if path := adapter.pop("_adapter_model_path", None):  # by which AutoModel came to this model
                model.load_adapter(path, adapter_name=kwargs.get("adapter_name"), adapter_kwargs=adapter)
    except InputError:
        raise
    except Exception as error:
        if problem := _damage(name, where):
            raise InputError(f"the model '{name}' cannot be loaded: {problem}") from error
        raise
    if not model.config.backbone_included:  # of a PEFT adapter's base the library reads the folder alone
        raise InputError(
            f"the adapter '{name}' is for a model that was saved without its backbone: load it by AutoModel, or the "
            "model first and the adapter onto it by PeftModel.from_pretrained."
        )
    # Of quantised weights the library's report has other names, and with an adapter it is the adapter's.
    adapted = alone is None and getattr(model, "_hf_peft_config_loaded", False)
    exempt = adapted or getattr(model, "hf_quantizer", None) is not None or kwargs.get("ignore_mismatched_sizes")
    if info["missing_keys"] and not exempt:
        _check_complete(name, model.config, sorted(info["missing_keys"]), where)
    return model, info


def without_backbone(
    model: PreTrainedModel, state_dict: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of all other parts, and the fingerprint of the saved backbone that completes them.

    Args:
        model: the model; its config names the backbone.
        state_dict: its weights.

    Raises:
        InputError: a backbone that is not known, cannot be read, or was changed.
    """
    config = model.config
    backbone = Backbone(config.backbone_name, config.backbone_revision)
    held = {name.removeprefix(BACKBONE): tensor for name, tensor in state_dict.items() if name.startswith(BACKBONE)}
    tied = model.vlm.all_tied_weights_keys  # written once, under the name that they are tied to
    held = {name: tensor for name, tensor in held.items() if name not in tied}
    backbone.check_holds(revert_weight_conversion(model.vlm, held), prefix="")
    return {n: tensor for n, tensor in state_dict.items() if not n.startswith(BACKBONE)}, backbone.fingerprint


def _config_without_backbone(cls, name, config, where, kwargs: dict) -> VAEmotionLLMConfig | None:
    """The config of a model that was saved without its backbone, with the caller's fields, taken out of `kwargs`."""
    if isinstance(config, PreTrainedConfig):
        return None if getattr(config, "backbone_included", True) else copy.deepcopy(config)
    source = name if config is None else config
    try:
        saved, _ = cls.config_class.get_config_dict(source, **where)
    except OSError:  # an adapter, which has no config.json, or nothing: the library reports it
        return None
    if saved.get("backbone_included", True):
        return None
    names = {field.name for field in dataclasses.fields(cls.config_class)} - _NOT_FOR_THE_CONFIG
    fields = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
    return cls.config_class.from_pretrained(source, **where, **fields)


def _joined_weights(name, config: VAEmotionLLMConfig, where) -> dict[str, torch.Tensor]:
    """The backbone's weights with those of the folder as one state dict, mapped from the files."""
    own = Weights(weight_files(name, **where))
    there = {key: value for key, value in where.items() if key in HUB_ARGUMENTS}
    backbone = Backbone(config.backbone_name, config.backbone_revision, **there)
    if config.backbone_fingerprint not in (None, backbone.fingerprint):
        raise InputError(
            f"the model '{name}' was saved without its backbone, and the weights of {backbone.label} are not those "
            "that it was trained with. Give the backbone_name and backbone_revision that were; "
            "backbone_fingerprint=None takes these all the same."
        )
    return {**own, **{BACKBONE + key: tensor for key, tensor in backbone.weights.items()}}


def _damage(name, where) -> str | None:
    """What is wrong with the weight files of a model that could not be loaded; None where nothing is found."""
    try:
        Weights(weight_files(name, **where))
    except InputError as error:
        return str(error)
    except OSError:
        pass  # nothing to look at: the library's own words say what is not there
    return None


def _check_complete(name, config: VAEmotionLLMConfig, missing: list[str], where) -> None:
    """Raises InputError where weights were left at random but those that the caller gave another form."""
    saved = type(config).from_pretrained(name, **where)
    changed = [
        field for field in VAEmotionLLMConfig.__annotations__ if getattr(saved, field) != getattr(config, field)
    ]
    new = tuple(part for start, part in _FORMS.items() if any(field.startswith(start) for field in changed))
    if missing := [key for key in missing if not key.startswith(new)]:
        raise InputError(
            f"the model '{name}' cannot be loaded: {len(missing)} of its weights are not there, "
            f"{', '.join(missing[:3])} among them, and would be random numbers. The folder is incomplete, or its "
            "config.json is another model's. Fetch or save it again; ignore_mismatched_sizes=True loads it all the "
            "same."
        )
