"""Versions of transformers that the model runs on, and what transformers names differently.

Copied to the Hub with the model, so that it also holds where the code is loaded by `trust_remote_code`.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from packaging.version import Version
from transformers import __version__ as INSTALLED

LOWEST, BELOW = "5.23", "5.25"
_RELEASE = Version(INSTALLED).release

# 5.24 renamed the argument, and the field of outputs. The old argument is still taken there, with a warning.
CACHE = "cache" if _RELEASE >= (5, 24) else "past_key_values"


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of `forward` or `generate`, by its name of any supported version, or None."""
    named = arguments.get("cache")
    return arguments.get("past_key_values") if named is None else named


def check_transformers() -> None:
    """Raises an ImportError where transformers is older than what the model's code calls, and warns where it is newer:
    what fails then fails far from its cause."""
    text = f"VAEmotionLLM runs on transformers >={LOWEST},<{BELOW}, and {INSTALLED} is installed: "
    text += f"pip install 'transformers>={LOWEST},<{BELOW}'"
    if _RELEASE < Version(LOWEST).release:
        raise ImportError(text)
    if _RELEASE >= Version(BELOW).release:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
