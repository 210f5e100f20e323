"""Refusals of lmms-eval's command: one line and an exit code for bad input, and no audio tasks without audio.

lmms-eval's command catches every exception, prints a stack trace and ends with code 0, so a script would take a failed
evaluation for a good one. Inside that command, and only there, bad input ends the process instead.

Most adapters of lmms-eval for models without audio drop the audio of a question without a word: qwen2_5_vl, for one,
hands images and videos to its processor and nothing else. The answers would then be scored like any other.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

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


@contextlib.contextmanager
def stopping(step: str) -> Iterator[None]:
    """Lets an error of the body end lmms-eval's command with one line: code 2 for bad input, else 1.

    Outside that command the error is raised: an InputError as it is, all else as a RuntimeError that names `step`.
    """
    try:
        yield
    except Exception as error:
        bad_input = isinstance(error, InputError)
        shown = error if bad_input else RuntimeError(f"{step} failed with {type(error).__name__}: {error}")
        if in_lmms_eval_command():
            sys.stdout.flush()
            print(f"lmms-eval: error: {shown}", file=sys.stderr, flush=True)
            raise SystemExit(INPUT_ERROR if bad_input else FAILURE) from error
        if bad_input:
            raise
        raise shown from error


def takes_audio(model: Any) -> bool | None:
    """Whether a loaded lmms-eval model takes audio; None where that cannot be determined.

    It does where its transformers config, or a config inside, has a field, a model type or another name with a word
    such as "audio" or "speech" in it, or where its processor has a part for audio. It does not where there is a
    transformers config and none of that. A model behind an API, or of a package of its own, has no such config.
    """
    configs = configs_of(model)
    processors = [getattr(model, name, None) for name in ("processor", "_processor")]
    if any(getattr(processor, part, None) is not None for processor in processors for part in _PROCESSOR_PARTS):
        return True
    if not configs:
        return None
    texts = [config.to_json_string(use_diff=False).lower() for config in configs]
    names = {name for text in texts for name in re.findall(r'"(\w+)"', text)}  # no paths, which hold other characters
    return any(word in name for name in names for word in _AUDIO_NAMES)


def configs_of(model: Any) -> list:
    """The transformers configs that a loaded lmms-eval model holds, that of the weights first."""
    from transformers import PretrainedConfig

    given = [getattr(getattr(model, "model", None), "config", None)]
    given += [getattr(model, "config", None), getattr(model, "_config", None)]
    return [config for config in given if isinstance(config, PretrainedConfig)]


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
    with stopping("the check for audio"):
        stated = os.environ.get(VARIABLE, "")
        if stated not in ("", "0", "1"):
            raise InputError(f"the environment variable {VARIABLE} is {stated!r}; allowed are 0 and 1.")
        able = bool(int(stated)) if stated else takes_audio(model)
        if able is None:
            logger.warning(
                "Whether %s takes audio is unknown; compare its audio tasks with artemo_silence before you trust it.",
                type(model).__name__,
            )
        elif not able:
            rest = [name for name in documents if name not in with_audio]
            rest = rest or ["artemo_content_visual", "artemo_emotion_visual", "artemo_blind"]
            raise InputError(
                f"the model {type(model).__name__} takes no audio: neither its config nor its processor names any, "
                f"and its answers to {', '.join(with_audio)} would be scored as if it did. Name tasks without: "
                f"--tasks {','.join(rest)}. If it does take audio, set {VARIABLE}=1."
            )


def refuse_examples(model: Any, task_dict: Mapping, num_fewshot: int | None) -> None:
    """Ends the evaluation with an InputError where the examples of --num_fewshot would not be in the questions.

    lmms-eval puts them into a text that a task with media, or with messages of its own, does not give to a chat model;
    the results would be labelled by them all the same. The tasks `artemo` have no examples for any model.
    """
    ours = any(config.model_type == "vaemotionllm" for config in configs_of(model))
    without = [
        name
        for name, task in tasks_of(task_dict).items()
        if name.startswith(f"{TASK_PREFIX}_")
        or (ours and (callable(task.config.doc_to_messages) or task.config.doc_to_visual is not None))
    ]
    if num_fewshot and without:
        with stopping("the check for examples"):
            raise InputError(
                f"--num_fewshot is {num_fewshot}, and questions of {', '.join(without)} are put without examples: "
                "leave it out."
            )
