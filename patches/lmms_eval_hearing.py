"""A check, before lmms-eval evaluates, that the model takes the audio of artemo's tasks, and a note of how it is run.

A task is built without the model, and its documents and prompts never meet it: `evaluate` alone knows both. Without
the check, adapters that know no audio drop it and answer all the same. Without the note, results files say nothing of
frames, sampling rate, attention backend and versions: lmms-eval has no field for them.
"""

import functools
import inspect
import sys
import warnings
from typing import Any

MARK = "_vaemotionllm_hearing"


def apply(loaded: str | None = None) -> bool:
    """Wraps `lmms_eval.evaluator.evaluate`. Returns False, after a warning, where it does not fit."""
    module: Any = sys.modules.get("lmms_eval.evaluator")
    original: Any = getattr(module, "evaluate", None)
    if getattr(original, MARK, False):
        return True
    found = list(inspect.signature(original).parameters) if callable(original) else []
    if found[:2] != ["lm", "task_dict"]:
        warnings.warn(
            f"vaemotionllm: lmms_eval.evaluator.evaluate takes {found} where lm, task_dict, ... is known, so nobody "
            "checks that a model takes audio before the audio tasks of artemo are scored, and results files do not "
            "say how it is run. Give a model without audio the visual tasks alone: "
            "--tasks artemo_content_visual,artemo_emotion_visual",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    @functools.wraps(original)
    def evaluate(*args, **kwargs):
        from vaemotionllm.evaluation.refusals import refuse_without_audio
        from vaemotionllm.evaluation.results import note

        given = inspect.signature(original).bind(*args, **kwargs).arguments
        refuse_without_audio(given["lm"], given["task_dict"])
        note(given["lm"], given["task_dict"])
        return original(*args, **kwargs)

    setattr(evaluate, MARK, True)
    module.evaluate = evaluate
    return True
