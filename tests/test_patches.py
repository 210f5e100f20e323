"""The patches of lmms-eval and transformers, and the start-up hook that applies them."""

import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import yaml

from vaemotionllm.patches import PATCHES, lmms_eval_power, lmms_eval_tasks, startup, transformers_auto

TASKS = {f"artemo_{aspect}_{path}" for aspect in ("content", "emotion") for path in ("audio", "visual", "av")}
CONTROLS = {f"artemo_{a}_audio_{kind}" for a in ("content", "emotion") for kind in ("silence", "noise", "mismatch")}


def run_python(code: str, *, cwd) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_index_names_every_patch_and_why():
    assert set(PATCHES) == set(startup.TARGETS.values())
    for patch in PATCHES.values():
        assert set(patch) == {"target", "why", "how", "upstream", "versions", "until"}
        assert "github.com" in patch["upstream"]
        assert re.search(r">=.*,<", patch["versions"])


def test_start_up_imports_next_to_nothing(tmp_path):
    loaded = run_python(
        "import sys; before = set(sys.modules)\n"
        "import vaemotionllm.patches.startup\n"
        "print(*sorted(name.partition('.')[0] for name in sys.modules))",
        cwd=tmp_path,
    ).split()
    assert "vaemotionllm" in loaded
    assert not {"torch", "transformers", "lmms_eval", "numpy"} & set(loaded)


def test_auto_classes_work_where_the_config_is_imported_first(tmp_path):
    out = run_python(
        "from vaemotionllm import VAEmotionLLMConfig\n"
        "from transformers import AutoModel\n"
        "from transformers.models.auto.modeling_auto import MODEL_MAPPING\n"
        "print(MODEL_MAPPING[VAEmotionLLMConfig].__name__)",
        cwd=tmp_path,
    )
    assert out.split() == ["VAEmotionLLMForConditionalGeneration"]


def test_tasks_are_listed_with_no_flag_and_no_variable(tmp_path):
    out = run_python(
        "import sys; sys.argv = ['lmms-eval', 'tasks', 'list']\nfrom lmms_eval.cli.dispatch import main; main()",
        cwd=tmp_path,
    )
    assert TASKS | CONTROLS | {"artemo", "artemo_controls"} <= set(out.split())


def test_libyaml_reads_task_files_as_the_parser_in_python_does(tmp_path):
    file = Path(lmms_eval_tasks.tasks_folder()) / "artemo" / "artemo.yaml"
    seen = []

    def function(loader, node):
        seen.append((loader.name, node.value))
        return node.value

    yaml.add_constructor("!function", function, Loader=yaml.FullLoader)
    read = yaml.full_load
    with open(file, "rb") as stream:
        expected = read(stream)
    with lmms_eval_tasks.parsed_by_libyaml(), open(file, "rb") as stream:
        assert yaml.__with_libyaml__ == (yaml.full_load is not read)
        assert yaml.full_load(stream) == expected
    assert yaml.full_load is read and seen and len(set(seen)) * 2 == len(seen)


def fake_manager(signature_fits: bool):
    """A stand-in for lmms_eval.tasks whose method is ours to change."""
    calls = []
    module = types.ModuleType("lmms_eval.tasks")

    class TaskManager:
        if signature_fits:

            def initialize_tasks(self, include_path=None, include_defaults=True):
                calls.append((include_path, include_defaults))
                return {}
        else:

            def initialize_tasks(self, folders, recursive=True):
                return {}

    module.TaskManager = TaskManager
    return module, calls


def test_task_patch_adds_the_folder_once(monkeypatch):
    module, calls = fake_manager(signature_fits=True)
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", module)
    assert lmms_eval_tasks.apply()
    patched = module.TaskManager.initialize_tasks
    assert lmms_eval_tasks.apply()
    assert module.TaskManager.initialize_tasks is patched
    folder = lmms_eval_tasks.tasks_folder()
    manager = module.TaskManager()
    manager.initialize_tasks()
    manager.initialize_tasks(include_path="mine")
    manager.initialize_tasks(include_path=["mine", folder])
    manager.initialize_tasks(include_path="mine", include_defaults=False)
    assert calls == [([folder], True), (["mine", folder], True), (["mine", folder], True), (["mine"], False)]


def test_task_patch_warns_where_it_does_not_fit(monkeypatch):
    module, _ = fake_manager(signature_fits=False)
    original = module.TaskManager.initialize_tasks
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", module)
    with pytest.warns(RuntimeWarning, match="--include_path " + re.escape(lmms_eval_tasks.tasks_folder())):
        assert not lmms_eval_tasks.apply()
    assert module.TaskManager.initialize_tasks is original


def test_power_patch_expands_groups_and_warns_where_it_does_not_fit(monkeypatch, tmp_path):
    (tmp_path / "group.yaml").write_text("group: pair\ntask:\n  - one\n  - two\n")

    class TaskManager:
        def __init__(self, verbosity, include_path=None):
            self.task_index = {
                "pair": {"type": "group", "yaml_path": str(tmp_path / "group.yaml")},
                "one": {"type": "task", "yaml_path": "-"},
            }

    module = types.ModuleType("lmms_eval.cli.power_utils")
    module.TaskManager = TaskManager

    def collect_task_sizes(tasks_arg, *, verbosity="WARNING", include_path=None):
        return tasks_arg

    module.collect_task_sizes = collect_task_sizes
    monkeypatch.setitem(sys.modules, "lmms_eval.cli.power_utils", module)
    assert lmms_eval_power.apply() and lmms_eval_power.apply()
    assert module.collect_task_sizes("pair, one,other") == "one,two,other"
    assert module.collect_task_sizes(None) is None
    module.collect_task_sizes = lambda tasks: {}
    with pytest.warns(RuntimeWarning, match="--tasks artemo_content_audio"):
        assert not lmms_eval_power.apply()


def test_transformers_patch_warns_where_the_registry_changed(monkeypatch):
    module = types.ModuleType(transformers_auto.CONFIGURATION_AUTO)
    module.__spec__ = types.SimpleNamespace(_initializing=False)
    module.CONFIG_MAPPING = object()
    monkeypatch.setitem(sys.modules, transformers_auto.CONFIGURATION_AUTO, module)
    with pytest.warns(RuntimeWarning, match="from vaemotionllm import"):
        assert not transformers_auto.apply()


def test_lazy_classes_are_loaded_when_read():
    lazy = transformers_auto.LazyClasses()
    dict.__setitem__(lazy, "key", transformers_auto.Later("fractions", "Fraction"))
    from fractions import Fraction

    assert dict(lazy) == {"key": Fraction} and lazy["key"] is Fraction and lazy.get("none") is None
    assert list(lazy.values()) == [Fraction] and list(lazy.items()) == [("key", Fraction)]


def test_a_failing_patch_is_a_warning(monkeypatch):
    monkeypatch.setattr(lmms_eval_tasks, "apply", lambda loaded: 1 / 0)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        assert startup.apply("lmms_eval.tasks") is False


def test_the_hook_is_installed_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        startup.install()
    assert sum(isinstance(finder, startup.PostImportHook) for finder in sys.meta_path) == 1
