"""`vaemotionllm verify OWNER/NAME`: a model that was pushed to a small Hub on this machine, with the real client."""

import json

import hub_server
import pytest
import tiny

from vaemotionllm.cli.main import main
from vaemotionllm.hub.push import push


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model and its backbone; not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    return tiny.make_vaemotionllm(folder), folder / "qwen2_5_vl"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as server:
        hub_server.connect(monkeypatch, server, tmp_path / "home")
        hub_server.no_waiting(monkeypatch)
        yield server


@pytest.fixture
def pushed(saved, hub):
    """The same, pushed as org/name."""
    push(saved[0], "org/name")
    return hub


def verified(capsys, *words) -> tuple[int, dict]:
    code = main(["verify", *words, "--device", "cpu", "--json"])
    printed = capsys.readouterr()
    assert hub_server.TOKEN not in printed.out + printed.err
    return code, json.loads(printed.out) if printed.out else {"error": printed.err}


def results(found: dict) -> dict[str, str]:
    return {check["name"]: check["result"] for check in found["checks"]}


def add_commit(hub, name: str, **files: bytes) -> str:
    """A commit with these files changed or added, "__" in a name for a dot."""
    repo = hub.repos["model", name]
    changed = {key.replace("__", "."): content for key, content in files.items()}
    return repo.commit("main", "changed", {**hub.files(name), **changed}).oid


def test_a_pushed_model_agrees_by_name_and_by_commit(pushed, capsys):
    code, found = verified(capsys, "org/name")
    assert code == 0 and set(results(found).values()) == {"agrees"}, results(found)
    assert found["commit"] == pushed.repos["model", "org/name"].branches["main"]
    first = found["commit"]
    content = bytearray(pushed.files("org/name")["model.safetensors"])
    content[-1] ^= 1
    second = add_commit(pushed, "org/name", model__safetensors=bytes(content))
    code, found = verified(capsys, "org/name")
    assert code == 1 and found["commit"] == second and results(found)["files"] == "disagrees"
    assert "model.safetensors" in found["checks"][0]["notes"][0] and results(found)["weights"] == "not checked"
    assert verified(capsys, "org/name", "--revision", first)[0] == 0, "the commit before is as it was"


def test_a_pickle_in_the_repository_is_told_and_not_fetched(pushed, capsys):
    add_commit(pushed, "org/name", pytorch_model__bin=b"anything")
    code, found = verified(capsys, "org/name")
    assert code == 1 and results(found)["format"] == "disagrees"
    assert "pytorch_model.bin is in the repository and may hold a pickle." in found["checks"][1]["notes"]
    assert not pushed.asked("*pytorch_model.bin*") and pushed.asked("*config.json*")


def test_a_model_without_its_backbone_fetches_it(saved, hub, capsys):
    folder, backbone = saved
    files = {file.name: file.read_bytes() for file in backbone.iterdir()}
    repo = hub.repos["model", "org/backbone"] = hub_server.Repo(private=False)
    commit = repo.commit("main", "first", files).oid
    push(folder, "org/small", audio_only=True, backbone="org/backbone", backbone_revision=commit)
    sizes = [len(of["model.safetensors"]) for of in (hub.files("org/small"), hub.files("org/backbone"))]
    code, found = verified(capsys, "org/small")
    assert code == 0 and set(results(found).values()) == {"agrees"}, found
    assert sizes[0] < (folder / "model.safetensors").stat().st_size - sizes[1] / 2


@pytest.mark.parametrize(
    ("words", "failure", "message"),
    [
        (["org/none"], None, "'org/none' is neither a folder nor a model that the Hub gives out"),
        (["org/name", "--revision", "v9"], None, "org/name has no revision 'v9'"),
        (["org/name"], {"status": 500}, "the Hub answered 500"),
        (["org/name"], {"status": 403}, "403"),
    ],
)
def test_what_the_hub_does_not_give_out(pushed, capsys, words, failure, message):
    if failure:
        pushed.fail("GET /api/models/org/name", times=99, **failure)
    code, found = verified(capsys, *words)
    assert code == 2 and message in found["error"] and "Traceback" not in found["error"]


def test_a_repository_without_files(hub, capsys):
    repo = hub.repos["model", "org/empty"] = hub_server.Repo(private=False)
    repo.commit("main", "first", {".gitattributes": b""})
    code, found = verified(capsys, "org/empty")
    assert code == 2 and "org/empty on the Hub holds no config.json" in found["error"]


def test_no_connection(pushed, tmp_path, monkeypatch, capsys):
    hub_server.connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "other")
    code, found = verified(capsys, "org/name")
    assert code == 2 and "the Hub cannot be reached" in found["error"]
