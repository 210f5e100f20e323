"""Makes `lmms-eval power --tasks GROUP` count the questions of the group's tasks.

lmms-eval looks only at tasks there: it loads a group, finds no documents on it and leaves it out without a word.
"""

import functools
import inspect
import sys
import warnings
from typing import Any

MARK = "_vaemotionllm_power"


def _tasks_of(manager, name: str) -> list[str]:
    """The names of a group's tasks, its subgroups' too; a task stands for itself."""
    entry = manager.task_index.get(name)
    if not entry or entry["type"] != "group" or entry["yaml_path"] == -1:
        return [name]
    from lmms_eval.utils import load_yaml_config

    members = load_yaml_config(entry["yaml_path"], mode="simple").get("task") or []
    if not all(isinstance(member, str) for member in members):
        return [name]
    return [task for member in members for task in _tasks_of(manager, member)]


def apply(loaded: str | None = None) -> bool:
    """Wraps `collect_task_sizes`. Returns False, after a warning, where it does not fit."""
    module: Any = sys.modules["lmms_eval.cli.power_utils"]
    original: Any = getattr(module, "collect_task_sizes", None)
    if getattr(original, MARK, False):
        return True
    expected = ["tasks_arg", "verbosity", "include_path"]
    found = list(inspect.signature(original).parameters) if callable(original) else None
    if found != expected:
        warnings.warn(
            f"vaemotionllm: lmms_eval.cli.power_utils.collect_task_sizes takes {found} where {expected} is known, so "
            "`lmms-eval power` does not count the tasks of the group artemo. Name them one by one: "
            "--tasks artemo_content_audio,artemo_emotion_audio,...",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    @functools.wraps(original)
    def collect_task_sizes(tasks_arg, *, verbosity="WARNING", include_path=None):
        if tasks_arg:
            manager = module.TaskManager(verbosity, include_path=include_path)
            names = [name.strip() for name in tasks_arg.split(",") if name.strip()]
            tasks_arg = ",".join(dict.fromkeys(task for name in names for task in _tasks_of(manager, name)))
        return original(tasks_arg, verbosity=verbosity, include_path=include_path)

    setattr(collect_task_sizes, MARK, True)
    module.collect_task_sizes = collect_task_sizes
    return True
