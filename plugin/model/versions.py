"""Versions of the packages that this one runs on, as its own metadata states them."""

import warnings
from importlib import metadata


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
            continue  # its import says so itself
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
