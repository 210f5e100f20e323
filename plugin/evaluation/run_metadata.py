"""Metadata of a run for the results file: versions, attention backend, dtype, frames, sampling rate.

lmms-eval's results file holds the arguments of the command alone, and defaults are not among them. These are read from
the loaded model instead, of any adapter, and kept in the tasks' metadata. What a model does not hold is left out,
never guessed.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from .artemo import TASK_PREFIX
from .refusals import configs_of, tasks_of

PACKAGES = ("vaemotionllm", "lmms_eval", "transformers", "torch")
# The first of these attributes that an adapter or its processor has.
FRAMES = ("num_frames", "max_num_frames", "_max_num_frames")


def note(model: Any, task_dict: Mapping) -> None:
    """Put the metadata of a loaded lmms-eval model into that of artemo's tasks, as "run"."""
    run: dict | None = None
    for name, task in tasks_of(task_dict).items():
        metadata = task.get_config("metadata") if name.startswith(f"{TASK_PREFIX}_") else None
        if isinstance(metadata, Mapping):
            run = run or run_metadata(model)
            task.set_config("metadata", {**metadata, "run": run})


def run_metadata(model: Any) -> dict:
    """Metadata of a loaded lmms-eval model, as JSON takes it; see the module's docstring.

    Returns:
        "versions" (package -> version), "adapter", and of "attention", "dtype", "device", "revision" (the Hub's
        commit), "num_frames", "sampling_rate_hz", "max_audio_s", "use_adapter" and "scoring" those that the model
        holds.
    """
    processor = getattr(model, "processor", None) or getattr(model, "_processor", None)
    weights = getattr(model, "model", None)
    configs = configs_of(model)
    extractor = getattr(processor, "feature_extractor", None)
    found = {
        "attention": _attention(configs[0]) if configs else None,
        "dtype": _text(getattr(weights, "dtype", None)),
        "device": _text(getattr(weights, "device", None)),
        "revision": _text(getattr(configs[0], "_commit_hash", None)) if configs else None,
        "num_frames": _first((model, processor), FRAMES),
        "sampling_rate_hz": _first((processor, extractor), ("sampling_rate",)),
        "max_audio_s": _first((model, processor), ("max_audio_s",)),
        "use_adapter": _first((model,), ("use_adapter",)),
        # Of our adapter; a stock one generates.
        "scoring": scoring if isinstance(scoring := getattr(model, "scoring", None), str) else None,
    }
    return {
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "adapter": f"{type(model).__module__}.{type(model).__name__}",
        **{name: value for name, value in found.items() if value is not None},
    }


def _attention(config: Any) -> str | None:
    """The attention backends of a config and those inside it: one word where they agree, else one a part."""
    parts = {"": config}
    for name in getattr(config, "sub_configs", {}) or {}:
        parts[name] = getattr(config, name, None)
    found = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items()}
    stated = {name: value for name, value in found.items() if isinstance(value, str)}
    if len(set(stated.values())) <= 1:
        return next(iter(stated.values()), None)
    return ", ".join(f"{name or 'model'} {value}" for name, value in stated.items())


def _first(holders: tuple, names: tuple[str, ...]) -> int | float | bool | None:
    """The first number or truth value that one of `holders` has under one of `names`."""
    for holder in holders:
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, (bool, int, float)):
                return value
    return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        if package == "vaemotionllm":  # run from a checkout
            return __version__
        return None
