"""Adds the folder of the `artemo` tasks to every lmms-eval TaskManager.

lmms-eval finds models of other packages by entry points, but tasks only by `--include_path` or an environment
variable. `lmms-eval tasks list` and `lmms-eval power` have no other way in at all. While it reads its more than 3,000
task files, at every start, YAML is parsed by libyaml: 1 s where the parser in Python takes 5.
"""

import contextlib
import functools
import importlib.util
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

MARK = "_vaemotionllm_tasks"


def tasks_folder() -> str:
    """Folder that holds the task YAMLs; works for a wheel and for an editable install."""
    spec = importlib.util.find_spec("vaemotionllm.eval_tasks")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package vaemotionllm.eval_tasks is not installed")
    return str(Path(list(spec.submodule_search_locations)[0]))


@contextlib.contextmanager
def parsed_by_libyaml():
    """Within it `yaml.full_load` parses by libyaml, and constructs as before; lmms-eval reads the stream's name."""
    if not yaml.__with_libyaml__:
        yield
        return

    class Loader(yaml.CFullLoader):
        def __init__(self, stream):
            self.name, self.yaml_constructors = stream.name, yaml.FullLoader.yaml_constructors
            super().__init__(stream)

    before, yaml.full_load = yaml.full_load, lambda stream: yaml.load(stream, Loader)
    try:
        yield
    finally:
        yaml.full_load = before


def apply(loaded: str | None = None) -> bool:
    """Wraps `TaskManager.initialize_tasks`. Returns False, after a warning, where it does not fit."""
    folder = tasks_folder()
    manager: Any = getattr(sys.modules.get("lmms_eval.tasks"), "TaskManager", None)
    original: Any = getattr(manager, "initialize_tasks", None)
    if getattr(original, MARK, False):
        return True
    expected = ["self", "include_path", "include_defaults"]
    found = list(inspect.signature(original).parameters) if callable(original) else None
    if found != expected:
        warnings.warn(
            "vaemotionllm: lmms_eval.tasks.TaskManager.initialize_tasks takes "
            f"{found} where {expected} is known, so the tasks `artemo` are not added by themselves. "
            f"Give lmms-eval the folder by hand: --include_path {folder}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    @functools.wraps(original)
    def initialize_tasks(self, include_path=None, include_defaults=True):
        paths = [] if include_path is None else [include_path] if isinstance(include_path, str) else list(include_path)
        # Without the defaults the caller wants exactly the folders given: a test of one task, for example.
        if include_defaults and folder not in paths:
            paths.append(folder)
        with parsed_by_libyaml():
            return original(self, include_path=paths or None, include_defaults=include_defaults)

    setattr(initialize_tasks, MARK, True)
    manager.initialize_tasks = initialize_tasks
    return True
