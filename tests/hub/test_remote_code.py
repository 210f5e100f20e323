"""A saved folder in fresh processes: as remote code where the package is not installed, and by the package."""

import json
import os
import subprocess
import sys

import fork_server
import media_files
import pytest
import tiny
import torch
from rounding import arithmetic_settings
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_relative_import_files

from vaemotionllm import VAEmotionLLMForConditionalGeneration

MODEL_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# What a user would write, on a real picture and a real sound.
USE = """
import json, os, sys, torch
from safetensors.torch import save_file
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
folder, consent = sys.argv[1], json.loads(sys.argv[2])

def use(path, auto=AutoModel):
    model, processor = auto.from_pretrained(path, **consent), AutoProcessor.from_pretrained(folder, **consent)
    media = [{"type": "image", "path": f"{folder}/a.png"}, {"type": "audio", "path": f"{folder}/a.wav"}]
    turn = {"role": "user", "content": [*media, {"type": "text", "text": "What is it?"}]}
    inputs = processor.apply_chat_template(
        [turn], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    [emotion] = model.predict_emotion({"image": f"{folder}/a.png", "audio": f"{folder}/a.wav"}, processor)
    values = torch.tensor([getattr(path, name) for path in (emotion.audio, emotion.visual, emotion.av)
                           for name in ("valence", "arousal")])
    return model, processor, {"logits": logits, "tokens": tokens, "emotion": values}

def words_of(call, *arguments, **named):
    try:
        return str(call(*arguments, **named))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""

REMOTE = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vaemotionllm": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
said = {f"no consent, {auto}": words_of(getattr(transformers, auto).from_pretrained, folder)
        for auto in ("AutoConfig", "AutoModel", "AutoProcessor")}
model, processor, found = use(folder)
save_file(found, f"{folder}/remote.safetensors")
config = AutoConfig.from_pretrained(folder, **consent)
said["modules"] = sorted({type(thing).__module__.split(".")[0] for thing in (model, processor, config)})
said["names"] = [type(thing).__name__ for thing in (model, processor, config)]
# Saved again by the code that came with it, whole and without the backbone.
model.save_pretrained(f"{folder}/again")
model.save_pretrained(f"{folder}/again_alone", audio_only=True)
for name in ("again", "again_alone", "alone"):
    _, _, other = use(f"{folder}/{name}", AutoModelForImageTextToText)
    said[name] = max((other[key] - found[key]).abs().max().item() for key in found)
said["maps"] = {name: json.load(open(f"{folder}/{name}/config.json"))["auto_map"] for name in ("again", "again_alone")}
said["newer"] = words_of(AutoModel.from_pretrained, f"{folder}/newer", **consent)
said["gone"] = words_of(AutoModel.from_pretrained, f"{folder}/alone", backbone_name=f"{folder}/nowhere", **consent)
print(json.dumps(said))
"""

PACKAGE = """
import vaemotionllm
model, processor, found = use(folder)
save_file(found, f"{folder}/package.safetensors")
print(json.dumps([type(thing).__module__ for thing in (model, processor, model.config)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.make_vaemotionllm(tmp_path_factory.mktemp("remote"))
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # as if EmoAdapter were trained
        for parameter in model.emotion_adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    tiny.write_audio_only(folder, folder / "alone")
    (folder / "newer").mkdir()
    for file in folder.iterdir():
        if file.suffix in (".py", ".json"):
            (folder / "newer" / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "newer" / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    media_files.write_png(folder / "a.png")
    media_files.write_wav(folder / "a.wav", rate_hz=22_050, channels=2)
    return folder


def run(script, folder, consent, *options, **environment):
    """In a process of its own, which nobody sits at; the JSON that it prints last."""
    paths = [path for path in sys.path if path.endswith("site-packages")]
    arguments = [str(folder), json.dumps(consent)]
    done = subprocess.run(
        [sys.executable, *options, "-c", f"import sys; sys.path.extend({paths!r})\n" + USE + script, *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900,
        env={"HF_HOME": str(folder / "hf"), "PATH": "", "HF_HUB_OFFLINE": "1", **arithmetic_settings(), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_same_with_the_package_and_as_remote_code_without_it(folder):
    said = run(REMOTE, folder, {"trust_remote_code": True}, "-S")  # -S: without the package's start-up line
    assert said["modules"] == ["transformers_modules"]
    assert said["names"] == ["VAEmotionLLMForConditionalGeneration", "VAEmotionLLMProcessor", "VAEmotionLLMConfig"]
    done = fork_server.run(["-c", USE + PACKAGE, folder, "{}"])
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    assert all(name.startswith("vaemotionllm.model.") for name in modules)
    remote, package = load_file(folder / "remote.safetensors"), load_file(folder / "package.safetensors")
    assert remote.keys() == package.keys() == {"logits", "tokens", "emotion"}
    assert all(torch.equal(tensor, package[name]) for name, tensor in remote.items())
    assert remote["emotion"].abs().min() > 0

    assert said["again"] == 0
    # The same weights; in another file they lie elsewhere in memory, and sums of a CPU hang on alignment.
    assert said["again_alone"] < 1e-5 and said["alone"] < 1e-5
    for auto_map in said["maps"].values():
        assert auto_map == json.loads((folder / "config.json").read_text())["auto_map"]
    assert "ValueError: config.json is of format_version 99" in said["newer"]
    assert f"InputError: the weights of the backbone '{folder}/nowhere' cannot be read" in said["gone"]
    # The library asks at the terminal where there is one; with none it says what to do.
    for auto in ("AutoConfig", "AutoModel", "AutoProcessor"):
        words = said[f"no consent, {auto}"]
        assert "ValueError" in words and "custom code" in words and "`trust_remote_code=True`" in words


def test_everything_that_the_code_imports_is_in_the_folder_and_named_by_the_maps(folder):
    for file in folder.glob("*.py"):
        for needed in get_relative_import_files(file):
            assert os.path.isfile(needed), f"{file.name} needs {needed}"
    config = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(config) == {"AutoConfig", *MODEL_CLASSES}
    processor = json.loads((folder / "processor_config.json").read_text())["auto_map"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]
    for reference in (*config.values(), *processor.values(), *tokenizer.values()):
        file, name = reference.split(".")
        assert f"class {name}(" in (folder / f"{file}.py").read_text()
    assert set(processor) == {"AutoProcessor"}
    package = {file.name for file in (folder.glob("*.py"))}
    for file in package:
        text = (folder / file).read_text()
        assert "from . import" not in text and "from .." not in text and "import vaemotionllm" not in text
