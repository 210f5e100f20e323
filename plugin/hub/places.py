"""Where files lie on the machine of a run: found in settings and configs, and kept out of what goes to the Hub."""

import json
import re
from pathlib import Path
from typing import Any

from .opening import read_json_object

# Files of a model in which the libraries keep by what path something was loaded.
FILES = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
         "video_preprocessor_config.json", "tokenizer_config.json", "adapter/adapter_config.json")  # fmt: skip
# Of no use to who loads the model, whatever they say.
_DROPPED = ("_name_or_path", "name_or_path")
# Of use where they are names on the Hub; the revision goes with the name.
_NAMES = {"backbone_name": "backbone_revision", "base_model_name_or_path": "revision", "vlm": None, "audio": None}
# An absolute path, or a relative one of more parts than a name on the Hub has.
_PLACE = re.compile(r"[/~]|\.\.|file:|\\\\|[A-Za-z]:[\\/]|[\w.-]+([\\/][\w.-]+){2,}[\\/]?$")


def is_hub_name(name: str, near: Path | None = None) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than a folder.

    Args:
        near: a folder beside or above which a relative path may lead to a folder as well: runs are started from a
            project's root.
    """
    if not re.fullmatch(r"[\w-]+[\w.-]*/[\w.-]+", name):
        return False
    roots = (Path(), *(() if near is None else (near.resolve(), *near.resolve().parents)))
    return not any((root / name).exists() for root in roots)


def without_place(value: Any) -> Any:
    """A setting without where files lie on the machine of the run: of a path its last part. OWNER/NAME stays."""
    if isinstance(value, str) and _PLACE.match(value):
        return re.split(r"[\\/]", value.rstrip("/\\"))[-1]
    if isinstance(value, dict):
        return {name: without_place(of) for name, of in value.items()}
    return [without_place(of) for of in value] if isinstance(value, list) else value


def remove_places(folder: Path, near: Path) -> None:
    """Takes local paths out of the configs in a folder, which is changed.

    Args:
        near: where the model lay, see `is_hub_name`.
    """
    for name in FILES:
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            if (cleaned := _cleaned(values, near)) != values:
                text = json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n"
                (folder / name).write_text(text, encoding="utf-8")


def _cleaned(value: Any, near: Path) -> Any:
    if isinstance(value, list):
        return [_cleaned(of, near) for of in value]
    if not isinstance(value, dict):
        # A path, and no text of a template or a token that begins with a slash.
        is_path = isinstance(value, str) and re.fullmatch(r"(/[^/\s]+|~|[A-Za-z]:)([\\/][^\\/\s]+)+[\\/]?", value)
        return None if is_path else value
    found = {key: _cleaned(of, near) for key, of in value.items() if key not in _DROPPED}
    for key, revision in _NAMES.items():
        if isinstance(value.get(key), str) and not is_hub_name(value[key], near):
            found[key] = None
            if revision in found:
                found[revision] = None
    return found
