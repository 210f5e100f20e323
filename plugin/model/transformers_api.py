"""Versions of transformers and of the other packages that the model runs on, and what transformers names differently.

Copied to the Hub with the model, so that it also holds where the code is loaded by `trust_remote_code`. It does not
import transformers: the package imports it first of all.
"""

import re
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

LOWEST, BELOW = "5.23", "5.25"

try:
    INSTALLED = metadata.version("transformers")
except metadata.PackageNotFoundError:  # whatever needs it fails at its import
    INSTALLED = BELOW


def _release(version: str) -> tuple[int, ...]:
    """(5, 24) of "5.24.0.dev0"; by hand, since the first import of the package is to need no other."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


# 5.24 renamed the argument, and the field of outputs. The old argument is still taken there, with a warning.
CACHE = "cache" if _release(INSTALLED) >= (5, 24) else "past_key_values"


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of `forward` or `generate`, by its name of any supported version, or None."""
    named = arguments.get("cache")
    return arguments.get("past_key_values") if named is None else named


def check_transformers() -> None:
    """Raises an ImportError where transformers is older than what the model's code calls."""
    if _release(INSTALLED) < _release(LOWEST):
        raise ImportError(
            f"VAEmotionLLM runs on transformers >={LOWEST},<{BELOW}, and {INSTALLED} is installed: "
            f"pip install 'transformers>={LOWEST},<{BELOW}'"
        )


def unsupported() -> list[str]:
    """Installed packages whose version lies outside the stated range: "NAMERANGE (VERSION is installed)" each.

    Empty where this package or its requirements were not installed: then nothing states a range, or has one.
    """
    try:
        from packaging.requirements import Requirement

        stated = metadata.requires("vaemotionllm") or []
    except ImportError:  # also of the package's own metadata
        return []
    outside = []
    for requirement in map(Requirement, stated):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # its import fails by itself
        if not requirement.specifier.contains(installed, prereleases=True):
            outside.append(f"{requirement.name}{requirement.specifier} ({installed} is installed)")
    return outside


def warn_of_unsupported() -> None:
    """Warn once of packages outside the supported versions: what fails then fails far from its cause."""
    if outside := unsupported():
        warnings.warn(
            f"vaemotionllm supports {', '.join(outside)}; `pip install --upgrade vaemotionllm`, or install these "
            "packages in the versions named.",
            RuntimeWarning,
            stacklevel=3,
        )
