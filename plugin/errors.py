"""Errors that a user can act on."""

# Defined beside the model, because the processor raises it and is copied to the Hub with its siblings alone.
from .model.input_error import InputError

__all__ = ["InputError"]
