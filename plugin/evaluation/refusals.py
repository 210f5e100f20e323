"""Refusals of lmms-eval's command: one line and an exit code for bad input, and no audio tasks without audio.

lmms-eval's command catches every exception, prints a stack trace and ends with code 0, so a script would take a failed
evaluation for a good one. Inside that command, and only there, bad input ends the process instead.

Most adapters of lmms-eval for models without audio drop the audio of a question without a word: qwen2_5_vl, for one,
hands images and videos to its processor and nothing else. The answers would then be scored like any other.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ..utils import InputError

logger = logging.getLogger(__name__)

INPUT_ERROR = 2
FAILURE = 1
TASK_PREFIX = "artemo"
VARIABLE = "ARTEMO_MODEL_HEARS"
_AUDIO_NAMES = ("audio", "speech", "sound", "whisper", "acoustic", "music", "omni")  # words: in configs of others
_PROCESSOR_PARTS = ("feature_extractor", "audio_processor", "audio_tokenizer")


def in_lmms_eval_command() -> bool:
    """Whether this process is `lmms-eval ...`, `python -m lmms_eval` or a launcher's worker of it."""
    if "lmms_eval.__main__" in sys.modules:
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == "lmms_eval.__main__"


def stop(error: Exception, code: int = INPUT_ERROR) -> NoReturn:
    """Raises `error`, or inside lmms-eval's command writes it as one line and ends the process with `code`."""
    if in_lmms_eval_command():
        sys.stdout.flush()
        sys.stderr.write(f"lmms-eval: error: {error}\n")
        sys.stderr.flush()
        raise SystemExit(code) from error
    raise error


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Hands an InputError of the body to `stop`."""
    try:
        yield
    except InputError as error:
        stop(error)


def takes_audio(model: Any) -> bool | None:
    """Whether a loaded lmms-eval model takes audio; None where that cannot be determined.

    It does where its transformers config, or a config inside, has a field, a model type or an architecture with a word
    such as "audio" or "speech" in it, or where its processor has a part for audio. It does not where there is a
    transformers config and none of that. A model behind an API, or of a package of its own, has no such config.
    """
    configs = configs_of(model)
    processors = [getattr(model, name, None) for name in ("processor", "_processor")]
    if any(getattr(processor, part, None) is not None for processor in processors for part in _PROCESSOR_PARTS):
        return True
    if not configs:
        return None
    names = {name.lower() for config in configs for name in _names(config.to_dict())}
    return any(word in name for name in names for word in _AUDIO_NAMES)


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


def refuse_without_audio(model: Any, task_dict: Mapping) -> None:
    """Ends the evaluation with an InputError where artemo's tasks give audio to a model that takes none.

    Where that cannot be determined, a warning says so. ARTEMO_MODEL_HEARS=1 overrules the check, =0 states the
    opposite.
    """
    documents = {
        name: task.test_docs() for name, task in tasks_of(task_dict).items() if name.startswith(f"{TASK_PREFIX}_")
    }
    with_audio = [name for name, rows in documents.items() if any(rows["audio"])]
    if not with_audio:
        return
    stated = os.environ.get(VARIABLE, "")
    if stated not in ("", "0", "1"):
        stop(InputError(f"the environment variable {VARIABLE} is {stated!r}; allowed are 0 and 1."))
    able = bool(int(stated)) if stated else takes_audio(model)
    if able is None:
        logger.warning(
            "Whether %s takes audio is unknown; compare its audio tasks with artemo_silence before you trust them.",
            type(model).__name__,
        )
    elif not able:
        rest = [name for name in documents if name not in with_audio]
        remedy = (
            f"Leave them out: --tasks {','.join(rest)}"
            if rest
            else "Name tasks without audio, such as --tasks artemo_content_visual,artemo_emotion_visual,artemo_blind"
        )
        stop(
            InputError(
                f"the model {type(model).__name__} takes no audio: neither its config nor its processor names any, "
                f"and its answers to {', '.join(with_audio)} would be scored as if it did. {remedy}. If it does take "
                f"audio, set {VARIABLE}=1."
            )
        )
