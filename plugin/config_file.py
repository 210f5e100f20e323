"""Training configs from YAML files and `key=value` words, checked field by field."""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .model.inputs import folder_or_hub_name
from .utils import InputError, decoded, refuse_surrogates, shown

# Fields that are chosen by the launcher or that our own run controls.
_HIDDEN = {"local_rank", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "remove_unused_columns"}


def read_config(path: str, overrides: Sequence[str] = (), kind: str = "train") -> dict[str, Any]:
    """Values of a YAML file, with `key=value` words on top; values are read as YAML.

    Args:
        path: a file, or the name of a config that the package ships, such as `stage1_nano`.
        overrides: words such as `learning_rate=1e-4`.
        kind: folder of the shipped configs.

    Raises:
        InputError: no such file or no YAML.
    """
    file = shipped_file(kind, path, (".yaml", ".yml"))
    values = read_yaml(file) or {}
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold `field: value` lines, found {type(values).__name__}.")
    return values | parse_overrides(overrides)


def with_models_found(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with `~` in the names of models read.

    Raises:
        InputError: a name that is a path, where no folder is.
    """
    names = {name: values[name] for name in ("model", "vlm", "audio") if isinstance(values.get(name), str)}
    return values | {name: folder_or_hub_name(value, f"config field `{name}`") for name, value in names.items()}


def read_yaml(file: Path) -> Any:
    """What a YAML file in UTF-8 holds.

    Raises:
        InputError: another encoding, no YAML, or a text or number that cannot be used.
    """
    try:
        value = yaml.safe_load(decoded(file.read_bytes()))
        refuse_surrogates(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None
    return value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dictionary; values are read as YAML, so that `true`, `8` and `{audio: 1}` have types."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise InputError(f"{word!r} is not of the form key=value.")
        try:
            values[name] = yaml.safe_load(text) if text else None
            refuse_surrogates(values[name])
        except (yaml.YAMLError, ValueError, RecursionError):  # the field's type says what is wrong
            values[name] = text
    return values


def build_config(cls: type, values: dict[str, Any], listed: str = "see `vaemotionllm train --fields`."):
    """An instance of a config class from plain values. `listed` says where its fields are listed.

    Raises:
        InputError: naming a field that does not exist and the nearest that does, or a value of a wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in _HIDDEN}
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.7)
            hint = f"did you mean `{near[0]}`?" if near else listed
            raise InputError(f"unknown config field `{name}`: {hint}")
    arguments = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    try:
        return cls(**arguments)
    except InputError:
        raise
    except (ValueError, TypeError, AssertionError, OSError, ImportError) as error:
        raise InputError(f"the config cannot be used: {error}") from error


def shipped_file(kind: str, name: str, suffixes: Sequence[str]) -> Path:
    """A file that the user names, or one that the package ships under `configs/<kind>/` by its name without suffix."""
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(resources.files("vaemotionllm.configs"))) / kind
    for suffix in suffixes:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    shipped = sorted(file.stem for file in folder.glob("*") if file.suffix in suffixes)
    raise InputError(f"config not found: {name}. Give a file, or one of the shipped: {', '.join(shipped)}.")


def own_fields(cls: type) -> list[dataclasses.Field]:
    """The fields that a config class adds to `TrainingArguments` or gives another default."""
    from transformers import TrainingArguments

    parent = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    return [
        field
        for field in dataclasses.fields(cls)
        if field.init
        and field.name not in _HIDDEN
        and (field.name not in parent or parent[field.name] != field.default)
    ]


def describe_field(cls: type, field: dataclasses.Field) -> str:
    """A field of a config class as `name: type = default`."""
    hint = typing.get_type_hints(cls)[field.name]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return f"{field.name}: {shown} = {default!r}"


def _checked(name: str, value: Any, hint: Any) -> Any:
    """A YAML value in the field's type. YAML 1.1 reads 1e-4 as a string, so numbers are accepted in quotes."""
    if value is None and "None" in str(hint):
        return None
    try:
        if isinstance(value, bool) and "bool" not in str(hint):  # which pydantic takes for 1
            raise InputError(f"config field `{name}` is {value!r}; it is no yes or no.")
        rules: ConfigDict = {"coerce_numbers_to_str": True, "allow_inf_nan": False}
        found = TypeAdapter(hint, config=rules).validate_python(value)
        if isinstance(found, int) and abs(found) >= 2**63:
            raise InputError(f"config field `{name}` is {shown(value)}; a whole number must be below 2**63.")
        return found
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors()]
        raise InputError(f"config field `{name}` is {shown(value)}: {'; '.join(problems)}.") from None
