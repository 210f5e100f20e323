"""No pickle, which runs code when it is read: not in the sources, not in what is written, not in what is read."""

import ast
import io
import pickle
import pickletools
import zipfile
from pathlib import Path

import hub_server
import numpy as np
import pytest
import torch
import training
from nano_config import TINY
from training import make_setup, stage1_values, stage2_values, train, write_config

from vaemotionllm.cli.main import main
from vaemotionllm.hub.push import check_whole
from vaemotionllm.model.checkpoint import Weights
from vaemotionllm.utils import InputError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("plugin", "patches", "eval_tasks", "benchmarks", "setup.py")

# What is left, each with its reason.
EXCEPTIONS = {
    ("plugin/train/checkpoint.py", "get_fp32_state_dict_from_zero_checkpoint"): (
        "DeepSpeed writes checkpoints of its own; `export --help` says that they are unpickled: runs of one's own only"
    ),
    ("plugin/train/trainer.py", "torch.save"): (
        "the scheduler's state beside DeepSpeed's, the optimizer's too under FSDP, by the Trainer's names, which are "
        "read with weights_only"
    ),
    ("plugin/train/trainer.py", "torch.load"): "those of FSDP, with weights_only, to share them out among the ranks",
}
# Of a run that is not finished: transformers' own files, which its Trainer reads with weights_only. They are in
# checkpoint-N alone, no model needs them, and no push takes them.
OF_THE_TRAINER = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}

_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
_CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load_state_dict_from_url", "np.load", "numpy.load",
          "np.save", "numpy.save", "np.savez", "np.savez_compressed", "pd.read_pickle"}  # fmt: skip
_NAMES = {
    "get_fp32_state_dict_from_zero_checkpoint",
    "load_state_dict_from_zero_checkpoint",
    "read_pickle",
    "to_pickle",
}
_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("safe_serialization", False),
             ("use_safetensors", False), ("trust_remote_code", True)}  # fmt: skip


def offences(source: str) -> set[str]:
    """What a source does that reads or writes pickles, or runs code that was downloaded."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in _MODULES}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if (node.module or "").partition(".")[0] in _MODULES else set()
            found |= {alias.name for alias in node.names if alias.name in _NAMES}
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found |= {name} if name in _CALLS or node.attr in _NAMES else set()
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            found |= {f"{node.arg}={node.value.value}"} if (node.arg, node.value.value) in _KEYWORDS else set()
    return found


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "import marshal as m", "state = torch.load(p, weights_only=True)",
     "torch.save(x, p)", "np.load(p)", "f(p, weights_only=False)", "np.lib.f(p, allow_pickle=True)",
     "m.save_pretrained(p, safe_serialization=False)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
     "from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint"],
)  # fmt: skip
def test_the_scan_of_sources_sees(line):
    assert offences(f"def f(p):\n    {line}\n")


def test_the_sources_neither_read_nor_write_pickles():
    files = [f for name in SOURCES for f in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    assert len(files) > 100
    found = {(file.relative_to(ROOT).as_posix(), what) for file in files for what in offences(file.read_text())}
    assert found == set(EXCEPTIONS), found ^ set(EXCEPTIONS)


def is_pickle(content: bytes) -> bool:
    """By content: a pickle of any protocol, an archive with one as torch.save writes it, numpy's arrays of objects."""
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(is_pickle(archive.read(name)) for name in archive.namelist())
    if content.startswith(b"\x93NUMPY"):
        return b"'|O'" in content[:200]
    if len(content) < 2:
        return False
    try:
        for opcode, _, position in pickletools.genops(content):
            if opcode.name == "STOP":
                # Legacy torch files are several pickles in a row.
                return position + 1 == len(content) or content.startswith(b"\x80")
    except (ValueError, UnicodeDecodeError, IndexError):
        pass
    return False


def pickles_in(folder: Path) -> set[str]:
    """Names of the pickles below a folder; a whole safetensors file is none, whatever its first bytes are."""
    found = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        try:
            Weights([path])
        except InputError:
            if is_pickle(path.read_bytes()):
                found.add(path.relative_to(folder).as_posix())
    return found


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_scan_of_files_sees(tmp_path, protocol):
    (tmp_path / "by_pickle.json").write_bytes(pickle.dumps({"a": [1, "x" * 300]}, protocol))
    torch.save({"a": torch.ones(3)}, tmp_path / "by_torch.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / "by_old_torch", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "numbers.npy", np.ones(3))
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "empty").touch()
    assert pickles_in(tmp_path) == {"by_pickle.json", "by_torch.safetensors", "by_old_torch", "objects.npy"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the package writes, by its own commands: caches, runs, an export, the nano world and backbone."""
    from vaemotionllm.nano import backbone

    root = tmp_path_factory.mktemp("written")
    model, manifest = make_setup(root, clips=6)
    short = {"max_steps": 2, "save_steps": 1, "responses_per_clip": 1}
    cached = {"teacher_cache": str(root / "cache")}
    values = stage1_values(model, manifest, root / "stage1", **short, **cached)
    assert main(["cache-teacher", "--config", str(write_config(root / "stage1.yaml", values))]) == 0
    train(values)
    del short["responses_per_clip"]
    train(stage2_values(root / "stage1", manifest, root / "stage2", **short))
    assert main(["export", str(root / "stage2"), "--checkpoint", "1", "--out", str(root / "exported")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEMOTIONLLM_CACHE", str(root / "user_cache"))
        backbone.build_backbone(config=TINY)
        assert main(["nano", "world", "--out", str(root / "nano_world"), "--train", "2", "--validation", "1",
                     "--benchmark", "1"]) == 0  # fmt: skip
    return root


def test_nothing_that_is_written_is_a_pickle(written):
    found = pickles_in(written)
    checkpoints = {name for name in found if Path(name).parent.name.startswith("checkpoint-")}
    assert {Path(name).name for name in checkpoints} == OF_THE_TRAINER
    assert found == checkpoints, found - checkpoints
    for place in ("cache", "stage1", "stage2/adapter", "exported/adapter", "nano_world", "user_cache"):
        assert any((written / place).rglob("*.*")), place


def test_a_push_sends_no_pickle_and_a_load_reads_none(written, tmp_path, monkeypatch):
    from transformers import AutoModel, AutoProcessor

    with hub_server.running() as hub:
        hub_server.connect(monkeypatch, hub, tmp_path / "home")
        for name in ("load", "loads", "Unpickler", "_Unpickler", "dump", "dumps", "Pickler"):
            monkeypatch.setattr(pickle, name, lambda *_, what=name, **__: pytest.fail(f"pickle.{what}"))
        for name in ("load", "save"):
            monkeypatch.setattr(torch, name, lambda *_, what=name, **__: pytest.fail(f"torch.{what}"))
        folder = written / "stage2"
        assert main(["push", str(folder), "--repo", "org/name", "--no-recording"]) == 0
        processor = AutoProcessor.from_pretrained("org/name")
        inputs = processor(text="What?", return_tensors="pt")
        AutoModel.from_pretrained("org/name").generate(**inputs, max_new_tokens=2)
        monkeypatch.undo()
        sent = tmp_path / "sent"
        for name, content in hub.files("org/name").items():
            (sent / name).parent.mkdir(parents=True, exist_ok=True)
            (sent / name).write_bytes(content)
    assert (sent / "adapter" / "adapter_model.safetensors").is_file()
    assert pickles_in(sent) == set() == pickles_in(tmp_path / "home")


def test_weights_in_a_pickle_are_not_read(tmp_path):
    from transformers import AutoModel

    folder = training.make_model(tmp_path)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(InputError, match="holds no model.safetensors"):
        check_whole(folder)
