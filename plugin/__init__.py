"""VAEmotionLLM: vision-language models that hear, and understand the emotion that art expresses.

Importing the package is cheap: torch and transformers are imported when a class is first used.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "VAEmotionLLMConfig": ".model.configuration_vaemotionllm",
    "VAEmotionLLMForConditionalGeneration": ".model.modeling_vaemotionllm",
    "VAEmotionLLMProcessor": ".model.processing_vaemotionllm",
    "InputError": ".utils",
}

__all__ = ["__version__", *_EXPORTS]

# Where the start-up line of site-packages did not run (python -S, a zipped or copied install), this does its work.
from .patches import startup as _startup  # noqa: E402, F401


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
