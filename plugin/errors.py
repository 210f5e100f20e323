"""Errors that a user can act on."""

# Defined beside the model, because the processor raises it and is copied to the Hub with its siblings alone.
from .model.input_error import InputError

__all__ = ["ClipError", "InputError"]


class ClipError(InputError):
    """A clip that one process of several met and cannot use, so that the others know nothing of it."""
