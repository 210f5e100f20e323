"""The versions that are supported: stated once, checked, and the private functions that tie us to them."""

import ast
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vaemotionllm
from vaemotionllm.config_file import build_config, read_config
from vaemotionllm.model import transformers_api
from vaemotionllm.model.transformers_api import unsupported
from vaemotionllm.patches import PATCHES
from vaemotionllm.patches.private_api import PRIVATE
from vaemotionllm.train.config import CONFIGS

PACKAGE = Path(vaemotionllm.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = {
    canonicalize_name(Requirement(line).name): Requirement(line) for line in metadata.requires("vaemotionllm")
}


def test_the_model_and_the_patches_state_the_range_of_the_package():
    stated = REQUIREMENTS["transformers"].specifier
    assert stated == Requirement(f"x>={transformers_api.LOWEST},<{transformers_api.BELOW}").specifier
    for patch in PATCHES.values():
        target = Requirement(patch["versions"].replace(" ", ""))
        assert target.specifier == REQUIREMENTS[target.name].specifier, patch


def test_what_is_pinned_is_supported():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for name, requirement in REQUIREMENTS.items():
        if requirement.marker is None:
            assert requirement.specifier.contains(pins[name]), f"{requirement}, pinned {pins[name]}"


def test_installed_versions_are_supported():
    assert unsupported() == []


@pytest.mark.parametrize("version, says", [("5.22.2", "ImportError"), ("5.99.0", "RuntimeWarning")])
def test_a_version_outside_says_what_is_supported(version, says):
    code = f"""
import importlib.metadata, transformers
real = importlib.metadata.version
importlib.metadata.version = lambda name: {version!r} if name == "transformers" else real(name)
transformers.__version__ = {version!r}
from vaemotionllm import VAEmotionLLMConfig
from vaemotionllm import VAEmotionLLMForConditionalGeneration
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode == 0) == (says != "ImportError"), done.stderr
    assert says in done.stderr and f"{version} is installed" in done.stderr
    assert transformers_api.LOWEST in done.stderr and transformers_api.BELOW in done.stderr


@pytest.mark.parametrize("owner, name, parameters", [entry[:3] for entry in PRIVATE], ids=lambda value: str(value))
def test_a_private_function_is_where_it_was(owner, name, parameters):
    if name == "_get_num_multimodal_tokens":  # each processor of the library has its own
        owner = "Qwen2_5_VLProcessor"
    function = getattr(getattr(transformers, owner), name)
    found = inspect.signature(function).parameters
    assert set(parameters or ()) <= set(found), found


def test_the_list_of_private_functions_is_complete():
    """What is called on `super()`, on another processor, or overridden in a subclass of the library."""
    used = set()
    for file in ("model/processing_vaemotionllm.py", "train/trainer.py"):
        for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                used.add(node.attr)
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
    library = {name for owner in ("ProcessorMixin", "Trainer") for name in dir(getattr(transformers, owner))}
    private = {name for name in used & library if name.startswith("_") and not name.startswith("__")}
    assert private <= {name for _, name, *_ in PRIVATE}
    assert {name for _, name, *_ in PRIVATE} <= used


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "configs" / "train").glob("*.yaml")))
@pytest.mark.filterwarnings("error")
def test_a_shipped_config_uses_nothing_that_is_deprecated(name, tmp_path):
    values = {"manifest": "clips.jsonl", "output_dir": str(tmp_path), **read_config(name)}
    values |= {"bf16": False, "use_cpu": True}  # a machine without a GPU refuses bf16 otherwise
    if "vlm" not in values and "model" not in values:
        values["model"] = "start"
        values.pop("model_fields", None)
    build_config(CONFIGS[values["stage"]], values)
