"""The wheel: what it holds, and that it works from another folder. The start-up line of both kinds of install."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"plugin": "vaemotionllm", "patches": "vaemotionllm/patches", "eval_tasks": "vaemotionllm/eval_tasks",
           "configs": "vaemotionllm/configs"}  # fmt: skip
DATA = ("*.yaml", "*.json", "*.jinja", "*.sh", "hostfile", "_*_template_yaml")
STARTUP = "vaemotionllm_startup.pth"


def run(*command, cwd, **kwargs) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=900, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what is built: a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        target,
        sources,
        cwd=target,
    )
    (path,) = target.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for pattern in ("*.py", *DATA)
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }
    for suffix in (".jinja", ".yaml", "launch/slurm.sh", "launch/hostfile"):
        assert any(name.endswith(suffix) for name in expected)
    assert expected <= names, sorted(expected - names)
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vaemotionllm", STARTUP}


def test_the_wheel_names_commands_and_entry_points(wheel):
    archive = zipfile.ZipFile(wheel)
    points = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "vaemotionllm = vaemotionllm.cli.main:main" in points
    assert "[lmms_eval.models]\nvaemotionllm = vaemotionllm.evaluation.manifest:manifest" in points
    metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    for line in (
        "Provides-Extra: flash-attn",
        "Provides-Extra: test",
        "Provides-Extra: demo",
        "Requires-Python: >=3.11,<3.13",
    ):
        assert line in metadata


def test_the_wheel_works_in_another_environment_from_another_folder(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel, cwd=elsewhere)
    # Without `site` nothing of the tests' own install is seen; its dependencies are, through the plain path.
    code = f"""
import json, site, sys
site.addsitedir({str(target)!r})
assert "vaemotionllm.patches.startup" in sys.modules, "the start-up line did not run"
sys.path.append({sysconfig.get_path("purelib")!r})
from importlib.resources import files
from transformers import AutoConfig
import vaemotionllm
from vaemotionllm.patches.lmms_eval_tasks import tasks_folder
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager
registry = ModelRegistryV2()
registry.load_entrypoint_manifests(overwrite=True)
print(json.dumps({{
    "file": vaemotionllm.__file__,
    "config": sys.modules[type(AutoConfig.for_model("vaemotionllm")).__module__].__file__,
    "tasks": tasks_folder(),
    "artemo": TaskManager().task_index["artemo"]["yaml_path"],
    "template": (files("vaemotionllm.model") / "chat_template.jinja").is_file(),
    "model": registry.resolve("vaemotionllm").class_path,
}}))
"""
    out = json.loads(run(sys.executable, "-S", "-c", code, cwd=elsewhere).splitlines()[-1])
    for key in ("file", "config", "tasks", "artemo"):
        assert Path(out[key]).is_relative_to(target), (key, out[key])
    assert out["template"] and out["model"] == "vaemotionllm.evaluation.lmms_model.VAEmotionLLM"
    run(sys.executable, "-S", "-c", f"import site, sys; site.addsitedir({str(target)!r})\n"
        "from vaemotionllm.cli.main import main; main(['--version'])", cwd=elsewhere)  # fmt: skip


def test_an_editable_install_has_the_start_up_line_too(sources, tmp_path):
    code = f"import setuptools.build_meta as b; print(b.build_editable({str(tmp_path)!r}))"
    run(sys.executable, "-c", code, cwd=sources)
    (path,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(path)
    assert archive.read(STARTUP).decode().startswith("import ")
    # What RECORD names is what an uninstall removes.
    record = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/RECORD"))
    assert f"\n{STARTUP}," in f"\n{record}"


def test_the_start_up_line_never_fails(tmp_path):
    line = (ROOT / "patches" / STARTUP).read_text()
    # An environment that has the line but lost the package.
    assert run(sys.executable, "-S", "-c", line + "\nprint('alive')", cwd=tmp_path).strip() == "alive"


def test_constraints_pin_every_requirement_and_agree_with_the_ranges():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins[re.sub(r"[-_.]+", "-", requirement.name).lower()] = specifier.version
    text = (ROOT / "setup.py").read_text()
    wanted = [
        Requirement(name) for name in re.findall(r'"([A-Za-z][\w.-]*(?:>=|<|==)[^"]*)"', text) if "flash" not in name
    ]
    assert len(wanted) > 15
    for requirement in wanted:
        if requirement.name != "python":
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert name in pins and requirement.specifier.contains(pins[name]), requirement


def test_the_workflow_calls_targets_of_the_makefile():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = {word for step in steps if step.get("run") for word in re.findall(r"^make (\S+)", step["run"])}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"quality", "test", "dist", "compat"} <= called <= targets
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_source_archive_holds_what_the_wheel_is_made_of_and_no_test(sources, wheel, tmp_path):
    (sources / "tests").mkdir(exist_ok=True)
    (sources / "tests" / "test_nothing.py").touch()
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-c", code, cwd=sources)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for packaged in zipfile.ZipFile(wheel).namelist():
        folder = next((f for f, package in reversed(FOLDERS.items()) if packaged.startswith(package + "/")), None)
        if folder:
            assert folder + packaged.removeprefix(FOLDERS[folder]) in names, packaged
    assert "LICENSE" in names and not [name for name in names if re.search(r"tests|__pycache__|\.pyc", name)]
