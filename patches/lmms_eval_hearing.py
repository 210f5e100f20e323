"""Checks, before lmms-eval evaluates, that the model takes the audio of artemo's tasks and that the arguments can be
used, and a note of how the model is run.

A task is built without the model, and its documents and prompts never meet it: `evaluate` alone knows both. Without
the checks, adapters that know no audio drop it and answer all the same, examples of --num_fewshot reach nobody, and a
wrong --gen_kwargs is a stack trace with exit code 0. Without the note, results files say nothing of frames, sampling
rate, attention backend and versions: lmms-eval has no field for them.
"""

import functools
import inspect
import sys
import warnings
from typing import Any

MARK = "_vaemotionllm_hearing"
# Function of lmms_eval.evaluator -> parameters that it needs to have.
WRAPPED = {"evaluate": ["lm", "task_dict"], "simple_evaluate": ["model", "model_args", "tasks", "gen_kwargs"]}


def apply(loaded: str | None = None) -> bool:
    """Wraps `lmms_eval.evaluator.evaluate` and `simple_evaluate`. False, after a warning, where they do not fit."""
    module: Any = sys.modules.get("lmms_eval.evaluator")
    originals: dict[str, Any] = {name: getattr(module, name, None) for name in WRAPPED}
    for name, needed in WRAPPED.items():
        found = list(inspect.signature(originals[name]).parameters) if callable(originals[name]) else []
        if [parameter for parameter in found if parameter in needed] != needed:
            warnings.warn(
                f"vaemotionllm: lmms_eval.evaluator.{name} takes {found} where {', '.join(needed)}, ... is known, so "
                "nobody checks that a model takes audio before the audio tasks of artemo are scored, or that the "
                "command's arguments can be used, and results files do not say how it is run. Give a model without "
                "audio the visual tasks alone: --tasks artemo_content_visual,artemo_emotion_visual",
                RuntimeWarning,
                stacklevel=2,
            )
            return False

    def check_evaluate(given: dict[str, Any]) -> None:
        from vaemotionllm.evaluation.refusals import refuse_examples, refuse_without_audio
        from vaemotionllm.evaluation.results import note

        refuse_without_audio(given["lm"], given["task_dict"])
        refuse_examples(given["lm"], given["task_dict"], getattr(given.get("cli_args"), "num_fewshot", None))
        note(given["lm"], given["task_dict"])

    def check_simple_evaluate(given: dict[str, Any]) -> None:
        from vaemotionllm.evaluation.requests import check_arguments

        check_arguments(given["model"], *(given.get(name) for name in WRAPPED["simple_evaluate"][1:]))

    for name, check in (("evaluate", check_evaluate), ("simple_evaluate", check_simple_evaluate)):
        if not getattr(originals[name], MARK, False):
            setattr(module, name, _checked(originals[name], check))
    return True


def _checked(original: Any, check: Any) -> Any:
    @functools.wraps(original)
    def function(*args, **kwargs):
        check(inspect.signature(original).bind(*args, **kwargs).arguments)
        return original(*args, **kwargs)

    setattr(function, MARK, True)
    return function
