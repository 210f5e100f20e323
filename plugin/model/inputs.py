"""Modalities of the model's input, and the error for input that cannot be used. Imports nothing."""

MODALITIES = ("audio", "visual", "av")
"""Of a sample, a prediction or a question; "av" is audio-visual."""


class InputError(ValueError):
    """Raised for input that cannot be used: a file, a manifest row, a config field, a folder.

    The message names the value that was given, what is allowed and the remedy. Commands print it as one line on
    standard error and end with exit code 2.
    """
