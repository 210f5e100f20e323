"""Refuses the tasks with sound to a model that cannot hear.

Most adapters of lmms-eval for models without audio drop the sound of a question without a word: qwen2_5_vl, for one,
hands images and videos to its processor and nothing else. The answers would then be scored as if the model had heard.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..utils import InputError
from .artemo import TASK_PREFIX
from .cli_exit import stop

logger = logging.getLogger(__name__)

VARIABLE = "ARTEMO_MODEL_HEARS"
_WORDS = ("audio", "speech", "sound", "whisper", "acoustic", "music", "omni")
_PROCESSOR_PARTS = ("feature_extractor", "audio_processor", "audio_tokenizer")


def hears(model: Any) -> bool | None:
    """Whether a loaded lmms-eval model can take sound; None where that cannot be told.

    It can where its transformers config, or a config inside, has a field, a model type or an architecture with a word
    such as "audio" or "speech" in it, or where its processor has a part for sound. It cannot where there is a
    transformers config and none of that. A model behind an API, or of a package of its own, has no such config.
    """
    configs = configs_of(model)
    processors = [getattr(model, name, None) for name in ("processor", "_processor")]
    if any(getattr(processor, part, None) is not None for processor in processors for part in _PROCESSOR_PARTS):
        return True
    if not configs:
        return None
    names = {name.lower() for config in configs for name in _names(config.to_dict())}
    return any(word in name for name in names for word in _WORDS)


def configs_of(model: Any) -> list:
    """The transformers configs that a loaded lmms-eval model holds, that of the weights first."""
    from transformers import PretrainedConfig

    given = [getattr(getattr(model, "model", None), "config", None)]
    given += [getattr(model, "config", None), getattr(model, "_config", None)]
    return [config for config in given if isinstance(config, PretrainedConfig)]


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from _names(value)
        elif key == "model_type":
            yield str(value)
        elif key == "architectures":
            yield from map(str, value or ())


def tasks_of(task_dict: Mapping) -> dict[str, Any]:
    """The tasks in lmms-eval's nested groups, by name."""
    found: dict[str, Any] = {}
    for name, entry in task_dict.items():
        if isinstance(entry, Mapping):
            found.update(tasks_of(entry))
        elif entry is not None:
            found[str(name)] = entry[1] if isinstance(entry, tuple) else entry  # (group, task)
    return found


def refuse_deaf(model: Any, task_dict: Mapping) -> None:
    """Ends the evaluation with an InputError where artemo's tasks give sound to a model that cannot hear.

    Where that cannot be told, a warning says so. ARTEMO_MODEL_HEARS=1 overrules the check, =0 states the opposite.
    """
    documents = {
        name: task.test_docs() for name, task in tasks_of(task_dict).items() if name.startswith(f"{TASK_PREFIX}_")
    }
    with_sound = [name for name, rows in documents.items() if any(rows["audio"])]
    if not with_sound:
        return
    said = os.environ.get(VARIABLE, "")
    if said not in ("", "0", "1"):
        stop(InputError(f"the environment variable {VARIABLE} is {said!r}; allowed are 0 and 1."))
    able = bool(int(said)) if said else hears(model)
    if able is None:
        logger.warning(
            "Whether %s hears cannot be told; compare its audio tasks with artemo_silence before you trust them.",
            type(model).__name__,
        )
    elif not able:
        rest = [name for name in documents if name not in with_sound]
        remedy = (
            f"Leave them out: --tasks {','.join(rest)}"
            if rest
            else "Name tasks without sound, such as --tasks artemo_content_visual,artemo_emotion_visual,artemo_blind"
        )
        stop(
            InputError(
                f"the model {type(model).__name__} cannot hear: neither its config nor its processor knows sound, and "
                f"its answers to {', '.join(with_sound)} would be scored as if it had heard. {remedy}. If it does "
                f"hear, set {VARIABLE}=1."
            )
        )
