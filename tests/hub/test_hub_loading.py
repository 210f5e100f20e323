"""A pushed model by its name in fresh processes: in an environment without this package, and in one with it."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import hub_server
import media_files
import pytest
import torch
import training
from rounding import arithmetic_settings
from safetensors.torch import load_file

from vaemotionllm.hub.push import push

SAVE = """
from safetensors.torch import save_file
save_file({"logits": model(**inputs).logits.detach()}, sys.argv[1])
print(type(model).__module__)
"""
REFUSED = """
for auto in (AutoModel, AutoProcessor):
    try:
        auto.from_pretrained("org/name")
    except ValueError as error:
        print("\\nrefused:", " ".join(str(error).split()))
print("=====")
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """(Hub, folder of the model, the five lines of its card), with painting.png and song.wav in the parent folder."""
    root = tmp_path_factory.mktemp("pushed")
    folder = training.make_model(root)
    media_files.write_png(root / "painting.png")
    media_files.write_wav(root / "song.wav")
    with pytest.MonkeyPatch.context() as patch, hub_server.running() as hub:
        hub_server.connect(patch, hub, root / "home")
        done = push(folder, "org/name", recorded=False)
        lines = re.search(r"```python\n(.*?)```", done.card, re.DOTALL)[1]
        patch.undo()
        yield hub, folder, lines


@pytest.fixture
def site(tmp_path) -> Path:
    """An environment with everything that is installed here but this package: no start-up line, no entry point."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "vaemotionllm" not in entry.name and entry.suffix != ".pth":
            (tmp_path / "site").mkdir(exist_ok=True)
            (tmp_path / "site" / entry.name).symlink_to(entry)
    return tmp_path / "site"


def run(hub, code, out, *options, **environment) -> str:
    """Runs code in a process of its own, in the folder with the files."""
    settings = hub_server.environment(hub, out.parent / "home") | {"PATH": os.environ["PATH"]} | arithmetic_settings()
    done = subprocess.run(
        [sys.executable, *options, "-c", code, str(out)], env=settings | environment, cwd=out.parents[1],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub_server.TOKEN not in done.stdout + done.stderr
    return done.stdout


def logits_here(folder):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image", "path": str(folder.parent / "painting.png")},
            {"type": "audio", "path": str(folder.parent / "song.wav")},
            {"type": "text", "text": "Describe this artwork."}]}  # fmt: skip
    inputs = processor.apply_chat_template(
        [turn], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**inputs).logits


def test_the_five_lines_of_the_card_without_and_with_the_package(pushed, site, tmp_path):
    hub, folder, lines = pushed
    assert len(lines.splitlines()) == 5 and lines.count("trust_remote_code=True") == 1
    here = folder.parent / "runs"
    here.mkdir(exist_ok=True)
    fresh = f"import sys\nsys.path.append({str(site)!r})\nimport importlib.util\n"
    fresh += "assert importlib.util.find_spec('vaemotionllm') is None\n" + lines.splitlines()[0] + REFUSED
    # -I: no folder of PYTHONPATH; -S: no site-packages, and no line of a .pth file.
    asked, without = run(hub, fresh + lines + SAVE, here / "without.safetensors", "-I", "-S").split("=====\n")
    refused = [line for line in asked.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 2 and all("trust_remote_code=True" in line and "org/name" in line for line in refused)
    without = without.splitlines()
    assert without[-1].startswith("transformers_modules.org.name.")
    lines = lines.replace(", trust_remote_code=True", "")
    path = os.environ.get("PYTHONPATH", "")
    with_it = run(hub, "import sys\n" + lines + SAVE, here / "with.safetensors", PYTHONPATH=path).splitlines()
    assert with_it[-1] == "vaemotionllm.model.modeling_vaemotionllm"
    assert with_it[:-1] == without[:-1] and any(line.strip() for line in with_it[:-1])  # the same description
    expected = logits_here(folder)
    for name in ("without", "with"):
        assert torch.equal(load_file(here / f"{name}.safetensors")["logits"], expected), name
