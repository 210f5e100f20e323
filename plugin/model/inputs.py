"""Modalities of the model's input, the error for input that cannot be used, and the names of models.

Imports the standard library alone.
"""

from pathlib import Path

MODALITIES = ("audio", "visual", "av")
"""Of a sample, a prediction or a question; "av" is audio-visual."""


class InputError(ValueError):
    """Raised for input that cannot be used: a file, a manifest row, a config field, a folder.

    The message names the value that was given, what is allowed and the remedy. Commands print it as one line on
    standard error and end with exit code 2.
    """


def folder_or_hub_name(name: str | Path, option: str = "") -> str:
    """The name of a model as a loader takes it, or an error where it is a path and no folder is there.

    A path is what has another form than OWNER/NAME, and what has that form while a folder OWNER is there.

    Args:
        name: a folder, in which ~ is the user's home, or OWNER/NAME on the Hub.
        option: what the user calls it, for the error.

    Raises:
        InputError: naming the folder that does not exist. The Hub is not looked at.
    """
    folder, text = Path(name).expanduser(), str(name)
    if folder.is_dir():
        return str(folder)
    has_form = text.count("/") == 1 and not text.startswith((".", "~", "/"))
    if has_form and not folder.parent.is_dir():
        return text
    hub = f"; for {text} on the Hub run this where there is no folder {folder.parent}" if has_form else ""
    raise InputError(
        f"{option and f'{option} is {text}: '}the folder {folder.absolute()} does not exist; give a model's folder, "
        f"or OWNER/NAME on the Hub{hub}."
    )
