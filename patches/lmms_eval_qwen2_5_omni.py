"""Lets lmms-eval's adapter `qwen2_5_omni` get its answers from transformers 5.

The adapter removes the talker, which speaks, and requests text by `return_audio=False`. transformers 5 does not know
that argument: it takes the call for one that wants speech and refuses it, and `generation_mode="text"`, its new word,
fails at the talker that is gone. The adapter makes an empty answer of each refusal. So the thinker is called, which
writes the text in any case. And inputs go to where the model is: the adapter sends them to CUDA whatever `device` is.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

MARK = "_vaemotionllm_qwen2_5_omni"
# Arguments of the parts that speak.
_SPEECH = ("talker_", "token2wav_")


def text_of(model: Any) -> Callable:
    """A `generate` of a Qwen2.5-Omni that takes the arguments of transformers 4 and gives text alone.

    As there, `thinker_NAME` wins over `NAME`.
    """

    def generate(return_audio: bool = False, speaker: str | None = None, **kwargs):
        if return_audio:
            raise ValueError("return_audio is True, and the adapter has removed the talker; request text.")
        shared = {name: value for name, value in kwargs.items() if not name.startswith((*_SPEECH, "thinker_"))}
        own = {name.removeprefix("thinker_"): value for name, value in kwargs.items() if name.startswith("thinker_")}
        return model.thinker.generate(**{**shared, **own})

    return generate


def apply(loaded: str | None = None) -> bool:
    """Wraps `Qwen2_5_Omni.__init__`, which the chat adapter of the same name inherits.

    Returns False, after a warning, where it does not fit.
    """
    module: Any = sys.modules.get("lmms_eval.models.simple.qwen2_5_omni")
    adapter: Any = getattr(module, "Qwen2_5_Omni", None)
    original: Any = getattr(adapter, "__init__", None)
    if getattr(original, MARK, False):
        return True
    source = inspect.getsource(adapter.generate_until) if adapter is not None else ""
    if "return_audio=False" not in source:
        # The adapter was changed: it may request text as transformers 5 wants it, and then nothing is to be done.
        if "generation_mode" not in source and ".thinker.generate" not in source:
            warnings.warn(
                "vaemotionllm: lmms_eval.models.simple.qwen2_5_omni.Qwen2_5_Omni requests text in a way that is not "
                "known, so it is left as it is. If `--model qwen2_5_omni` answers nothing, install "
                "lmms-eval>=0.7.3,<0.8.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True
    knows = inspect.signature(module.Qwen2_5OmniForConditionalGeneration.generate).parameters
    if "return_audio" in knows:  # transformers 4
        return True

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.model.generate = text_of(self.model)
        if self.device_map == "auto" and self.model.device.type != "cuda":
            self.device_map = str(self.model.device)

    setattr(__init__, MARK, True)
    adapter.__init__ = __init__
    return True
