"""Errors that a user can act on."""

# Defined beside the model, because the processor raises it and is copied to the Hub with its siblings alone.
from .model.input_error import InputError

__all__ = ["ClipError", "InputError", "RankError"]


class RankError(InputError):
    """What one process of several met, so that the others know nothing of it and this one must say it."""


class ClipError(RankError):
    """A clip that cannot be used."""
