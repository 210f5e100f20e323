"""Versions of transformers that the model runs on, and what they name differently.

Copied to the Hub with the model, so that it also holds where the code is loaded by `trust_remote_code`.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version

LOWEST, BELOW = "5.23", "5.25"

INSTALLED = Version(transformers.__version__)
if INSTALLED < Version(LOWEST):
    raise ImportError(
        f"VAEmotionLLM runs on transformers >={LOWEST},<{BELOW}, and {INSTALLED} is installed: "
        f"pip install 'transformers>={LOWEST},<{BELOW}'"
    )

# 5.24 renamed the argument, and the field of outputs. The old argument is still taken there, with a warning.
CACHE = "cache" if INSTALLED >= Version("5.24") else "past_key_values"


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of `forward` or `generate`, by its name of any supported version, or None."""
    named = arguments.get("cache")
    return arguments.get("past_key_values") if named is None else named
