"""A model from `push` to `verify` by its name: recorded, hashed, whole or without its backbone."""

import json
import shutil

import hub_server
import pytest
import tiny
import torch
from rounding import in_own_memory
from safetensors.torch import load_file

from vaemotionllm.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as server:
        hub_server.connect(monkeypatch, server, tmp_path / "home")
        hub_server.no_waiting(monkeypatch)
        yield server


def logits_of(name):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    model = in_own_memory(model)  # the files differ, and so do the places of the weights in them
    with torch.no_grad():
        return model(**processor(text="What?", return_tensors="pt")).logits


def test_what_was_pushed_agrees_by_its_name(folder, hub, capsys):
    before = sorted(path.name for path in folder.iterdir())
    assert main(["push", str(folder), "--repo", "org/whole"]) == 0
    files = hub.files("org/whole")
    listed = json.loads(files["reproducibility.json"])["files"]
    assert {"verification.json", "verification.safetensors"} < set(files)
    assert set(listed) == set(files) - {"README.md", "reproducibility.json"}
    assert b"recorded inputs and the logits" in files["README.md"]
    assert sorted(path.name for path in folder.iterdir()) == before  # recorded beside the folder, not in it
    capsys.readouterr()
    assert main(["verify", "org/whole"]) == 0
    out = capsys.readouterr().out
    assert "DISAGREES" not in out and "agree" in out
    # The commit with one byte of the weights altered is told apart.
    repo = hub.repos["model", "org/whole"]
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 64
    repo.commit("main", "altered", {**repo.at("main").files, "model.safetensors": bytes(weights)})
    assert main(["verify", "org/whole"]) == 1
    assert "model.safetensors was altered" in capsys.readouterr().out


def test_a_model_without_its_backbone_is_small_and_loads_by_name(folder, hub, tmp_path, capsys):
    """The backbone is fetched from the Hub by its name and commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("org/backbone")
    commit = api.upload_folder(
        repo_id="org/backbone", folder_path=folder.parent / "qwen2_5_vl", commit_message="backbone"
    ).oid
    words = ["push", str(folder), "--repo", "org/small", "--audio-only", "--backbone", "org/backbone"]
    assert main([*words, "--backbone-revision", commit]) == 0, capsys.readouterr().err
    files = hub.files("org/small")
    config = json.loads(files["config.json"])
    assert (config["backbone_name"], config["backbone_revision"]) == ("org/backbone", commit)
    assert (
        config["backbone_included"] is False
        and len(files["model.safetensors"]) < (folder / "model.safetensors").stat().st_size
    )
    (tmp_path / "weights").write_bytes(files["model.safetensors"])
    assert not any(name.startswith("vlm.") for name in load_file(tmp_path / "weights"))
    assert b"not in this repository: they are fetched by the name above" in files["README.md"]
    assert b"base_model:\n- org/backbone\n" in files["README.md"]
    assert b"base_model_relation: finetune\n" in files["README.md"]
    assert torch.equal(logits_of("org/small"), logits_of(folder))
    assert main(["verify", "org/small"]) == 0, capsys.readouterr().out
    # Another backbone than the model's is refused, and nothing goes out.
    other = shutil.copytree(folder.parent / "qwen2_5_vl", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).add_(1)
    from safetensors.torch import save_file

    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    api.upload_folder(repo_id="org/backbone", folder_path=other, commit_message="another")
    asked = len(hub.seen)
    assert main([*words, "--backbone-revision", "main"]) == 2
    assert "tensors of the backbone are not those of 'org/backbone'" in capsys.readouterr().err
    assert not any(method == "PUT" for method, *_ in hub.seen[asked:])
