"""Which attention a run uses. The optional flash-attn packages stand behind this module."""

import logging
from collections.abc import Sequence

import torch

from ..utils import InputError

logger = logging.getLogger(__name__)

AUTO, FALLBACK = "auto", "sdpa"
FLASH_VERSIONS = (4, 3, 2)
"""FlashAttention by preference."""

_HALF = (torch.bfloat16, torch.float16)
_PACKAGES = {2: "flash-attn", 3: "flash-attn-3", 4: "flash-attn-4"}


def attention_candidates(requested: str | None, dtype: torch.dtype | None) -> list[str | None]:
    """Attention implementations to try for a model, the best first; None is the model's own default.

    Args:
        requested: "auto", a name that transformers knows, or None.
        dtype: of the weights, None where it is not known. FlashAttention computes in bfloat16 and float16 only.

    Raises:
        InputError: a FlashAttention was named that is not installed or cannot run on this device.
    """
    if requested != AUTO:
        check_installed(requested, usable_versions() if requested in _names(FLASH_VERSIONS) else ())
        return [requested]
    return preferred(usable_versions() if dtype in _HALF else ())


def preferred(usable: Sequence[int]) -> list[str | None]:
    """What "auto" means where these versions of FlashAttention are usable: the newest, else sdpa.

    sdpa follows in any case, for a model that has no FlashAttention at all.
    """
    return [*_names(version for version in FLASH_VERSIONS if version in usable)[:1], FALLBACK]


def check_installed(requested: str | None, usable: Sequence[int]) -> None:
    """Refuse a FlashAttention that is not among the usable versions.

    Raises:
        InputError: naming what is usable and what to install.
    """
    for version in FLASH_VERSIONS:
        if requested == f"flash_attention_{version}" and version not in usable:
            found = ", ".join(_names(usable)) or "no FlashAttention"
            raise InputError(
                f"config field `attn_implementation` is {requested!r}, which needs the package {_PACKAGES[version]} "
                f"and a CUDA device that it supports; usable here: {found}. Install it, or use `auto` or `sdpa`."
            )


def usable_versions() -> tuple[int, ...]:
    """Versions of FlashAttention that are installed, can be imported and support this process's CUDA device."""
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX as MATRIX

    if not torch.cuda.is_available():
        return ()
    major, _ = torch.cuda.get_device_capability()
    return tuple(
        version
        for version in FLASH_VERSIONS
        if version in MATRIX
        and MATRIX[version]["general_availability_check"]()
        and major >= MATRIX[version].get("cuda_min_major_version", 8)
        and _imports(version)
    )


def weights_dtype(config) -> torch.dtype | None:
    """The dtype that a transformers config gives for its weights, at its top or in its text part; None if neither."""
    return getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)


def _imports(version: int) -> bool:
    """Whether the package can be imported: one that was built for another torch is installed and still useless."""
    from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

    try:
        lazy_import_flash_attention(f"flash_attention_{version}")
    except Exception as error:  # whatever a broken binary raises
        logger.warning("%s is installed but cannot be imported: %s", _PACKAGES[version], error)
        return False
    return True


def _names(versions) -> list[str]:
    return [f"flash_attention_{version}" for version in versions]
