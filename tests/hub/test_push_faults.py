"""What goes wrong between `vaemotionllm push` and the Hub: no half is ever shown, and the user is told in words."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading

import hub_server
import pytest
import tiny
import torch
from hub_server import TOKEN

from vaemotionllm.cli.main import main

COMMIT = "POST /api/models/org/name/commit/main"
BATCH = "POST /org/name.git/info/lfs/objects/batch"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two versions of a tiny model in shards; the second has other weights in every shard."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration as Model

    root = tmp_path_factory.mktemp("versions")
    made = tiny.make_vaemotionllm(root / "made")
    model = Model.from_pretrained(made)
    (made / "model.safetensors").unlink()
    folders = []
    for name in ("old", "new"):
        shutil.copytree(made, root / name)
        model.save_pretrained(root / name, max_shard_size="100KB")
        folders.append(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
    return folders


@pytest.fixture(scope="module")
def old_files(versions, tmp_path_factory):
    """What a push of the old version puts on the Hub."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, hub_server.running() as hub:
        hub_server.connect(patch, hub, home)
        assert main(["push", str(versions[0]), "--repo", "org/name", "--no-recording"]) == 0
        return hub.files("org/name")


@pytest.fixture
def hub(tmp_path, monkeypatch, old_files):
    """A Hub that holds the old version."""
    with hub_server.running() as server:
        connect(monkeypatch, server, tmp_path)
        fill(server, old_files)
        yield server


def connect(monkeypatch, server, tmp_path):
    hub_server.connect(monkeypatch, server, tmp_path / "home")
    hub_server.no_waiting(monkeypatch)
    monkeypatch.setattr("vaemotionllm.hub.upload.WAITS_S", (0.0, 0.0))


def fill(server, files):
    repo = server.repos["model", "org/name"] = hub_server.Repo(private=False)
    repo.commit("main", "initial commit", {".gitattributes": b""})
    repo.commit("main", "old", {".gitattributes": b"", **files})


def run(versions, *words):
    return main(["push", str(versions[1]), "--repo", "org/name", "--no-recording", *words])


def is_new(hub, versions):
    """Whether the Hub's files are the new version's, all of them."""
    files, shards = hub.files("org/name"), sorted(versions[1].glob("*.safetensors"))
    names = sorted(name for name in files if name.endswith(".safetensors"))
    return names == [shard.name for shard in shards] and all(files[s.name] == s.read_bytes() for s in shards)


STAGES = {
    "making the repository": "POST /api/repos/create",
    "asking for the head": "GET /api/models/org/name/revision/main",
    "listing what is there": "GET /api/models/org/name/tree/*",
    "reading what an earlier push put there": "* /org/name/resolve/*",
    "asking how to upload": "POST /api/models/org/name/preupload/main",
    "asking where to": BATCH,
    "a large file": "PUT /lfs/object/*",
    "the end of a large file": "POST /lfs/verify",
    "the card's metadata": "POST /api/validate-yaml",
    "the commit": COMMIT,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_connection_that_breaks_leaves_the_old_version_whole(hub, versions, old_files, capsys, stage):
    hub.fail(STAGES[stage], cut=60, times=10_000)
    assert run(versions) == 2
    err = capsys.readouterr().err
    assert "the Hub cannot be reached" in err.splitlines()[-1] and "The same command goes on" in err
    assert "Traceback" not in err
    assert hub.files("org/name") == old_files and hub.log("org/name") == ["old"]
    hub.failures.clear()
    assert run(versions) == 0
    assert is_new(hub, versions) and len(hub.log("org/name")) == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_hub_that_is_overloaded_for_a_moment_is_asked_again(hub, versions, stage):
    hub.fail(STAGES[stage], status=503)
    assert run(versions) == 0
    assert is_new(hub, versions) and len(hub.log("org/name")) == 2


def test_what_was_uploaded_is_not_sent_twice(hub, versions, capsys):
    shards = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in versions[1].glob("*.safetensors")}
    broken = sorted(shards)[1]
    hub.fail(f"PUT /lfs/object/{shards[broken]}", cut=30, times=10_000)
    assert run(versions) == 2
    there = set(hub.objects)
    assert there and shards[broken] not in there
    hub.failures.clear()
    asked = len(hub.seen)
    assert run(versions) == 0
    sent = {path.rpartition("/")[2] for method, path, _, _ in hub.seen[asked:] if method == "PUT"}
    assert sent == set(shards.values()) - there and shards[broken] in sent
    assert is_new(hub, versions)


def test_a_large_file_in_parts_goes_on_at_the_part_that_broke(versions, old_files, tmp_path, monkeypatch):
    with hub_server.running(part_size=40_000) as hub:
        connect(monkeypatch, hub, tmp_path)
        fill(hub, old_files)
        hub.fail("PUT /lfs/part/*/2", cut=1_000)
        assert run(versions) == 0
        assert is_new(hub, versions)
        assert max(hub.received("PUT /lfs/*")) == 40_000 and hub.asked("POST /lfs/complete/*") > 0
        parts = [path for method, path, _, size in hub.seen if method == "PUT" and size != 1_000]
        assert len(parts) == len(set(parts))  # no part that had arrived came again


def test_a_commit_whose_answer_is_lost_is_made_once(hub, versions):
    hub.fail(COMMIT, lost=True)
    assert run(versions) == 0
    assert is_new(hub, versions) and len(hub.log("org/name")) == 2


def somebody_else(hub, old_files, **files):
    """Commits to the Hub when the push is about to commit."""

    def commit():
        hub.repos["model", "org/name"].commit("main", "theirs", {".gitattributes": b"", **old_files, **files})

    hub.fail(COMMIT, then=commit)


def test_a_push_of_somebody_else_is_not_overwritten(hub, versions, old_files, capsys):
    somebody_else(hub, old_files, **{"config.json": b"{}"})
    assert run(versions) == 2
    assert "org/name was changed by somebody else while this upload ran (412)" in capsys.readouterr().err
    assert hub.log("org/name") == ["theirs", "old"] and hub.files("org/name")["config.json"] == b"{}"


STATUSES = {
    401: "the Hub refused the token (401). Run `hf auth login`",
    403: "the token may not write to org/name (403). Use one with write access to org",
    404: "the Hub knows no owner 'org'",
    409: "org/name was changed by somebody else while this upload ran (409)",
    413: "too large (413)",
    422: "the Hub answered 422",
    429: "the Hub asks for patience (429",
    500: "the Hub is out of order (500)",
    503: "the Hub is out of order (503)",
}


ASKING, STORING = "POST /api/models/org/name/preupload/main", "PUT /lfs/object/*"


@pytest.mark.parametrize(
    ("where", "status"),
    [*((COMMIT, status) for status in STATUSES), (ASKING, 401), (ASKING, 429), (STORING, 403), (STORING, 503)],
)
def test_refusals_are_told_in_words(hub, versions, old_files, capsys, where, status):
    hub.fail(where, status=status, times=10_000)
    assert run(versions) == 2
    err = capsys.readouterr().err
    assert STATUSES[status] in err.splitlines()[-1] and TOKEN not in err and "Traceback" not in err
    assert hub.files("org/name") == old_files


def test_refusals_at_the_first_request(hub, versions, capsys):
    for status in (401, 403, 404):
        hub.failures.clear()
        hub.fail("*", status=status, times=10_000)
        assert run(versions) == 2
        assert STATUSES[status] in capsys.readouterr().err


def test_an_answer_that_is_no_json_is_told_in_words(hub, versions, capsys, monkeypatch):
    monkeypatch.setattr(hub_server._Handler, "_validate_yaml", lambda self, body: self._bytes(b"<html>", 200, {}))
    routes = [(*r[:2], hub_server._Handler._validate_yaml, r[3]) if "yaml" in r[1] else r for r in hub_server._ROUTES]
    monkeypatch.setattr(hub_server, "_ROUTES", routes)
    assert run(versions) == 2
    assert "the upload to org/name failed (JSONDecodeError)" in capsys.readouterr().err


def test_metadata_that_the_hub_refuses_is_told_as_such(hub, versions, old_files, capsys):
    hub.fail("POST /api/validate-yaml", status=400, times=10_000)
    assert run(versions, "--license", "no-such-licence") == 2
    assert "the Hub does not take the metadata at the head of the model card: --license" in capsys.readouterr().err
    assert hub.files("org/name") == old_files


def test_ctrl_c_ends_with_one_line_and_leaves_nothing_behind(hub, versions, old_files, tmp_path, monkeypatch, capsys):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def interrupted(*_, **__):
        assert any((tmp_path / "temporary").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupted)
    assert run(versions) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "vaemotionllm push: interrupted."
    assert not any((tmp_path / "temporary").iterdir()) and hub.files("org/name") == old_files


def test_what_the_storage_client_raises_is_told_in_words():
    """Large files go by hf_xet where it is installed; it raises exceptions of its own and plain ones."""
    hf_xet = pytest.importorskip("hf_xet")
    from vaemotionllm.hub.errors import in_words

    assert "refused the token (401)" in in_words(hf_xet.XetAuthenticationError("no"), "a/b")
    assert "did not answer in time" in in_words(TimeoutError("slow"), "a/b")
    assert "cannot be reached (ConnectionError)" in in_words(ConnectionError("gone"), "a/b")
    assert in_words(RuntimeError("a mistake of ours"), "a/b") is None  # and a traceback tells where


def test_slow_answers(hub, versions, old_files, capsys):
    # One second: a busy machine answers within it.
    hub.fail("POST /api/models/org/name/preupload/main", delay_s=3)
    assert run(versions, "--timeout", "1") == 0  # asked again
    hub.fail(COMMIT, delay_s=3, status=500, times=10_000)
    fill(hub, old_files)
    assert run(versions, "--timeout", "1") == 2
    assert "the Hub did not answer in time while org/name was uploaded" in capsys.readouterr().err
    assert hub.files("org/name") == old_files


def test_the_time_limit_is_gone_after_a_push(hub, versions):
    from huggingface_hub import get_session

    before = get_session().timeout
    assert run(versions, "--timeout", "7") == 0
    assert get_session().timeout == before


def test_an_unreachable_hub_is_told_in_words(versions, tmp_path, monkeypatch, capsys):
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path)
    assert run(versions) == 2
    assert "the Hub cannot be reached (ConnectError)" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(versions) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_killed_push_leaves_the_old_version_and_goes_on(hub, versions, old_files, tmp_path):
    """In a process of its own, which finds the Hub by HF_ENDPOINT."""
    reached = threading.Event()
    hub.fail("PUT /lfs/object/*", then=lambda: (reached.set(), killed.wait(600)), times=10_000)
    killed = threading.Event()
    command = [sys.executable, "-m", "vaemotionllm.cli.main", "push", str(versions[1]), "--repo", "org/name",
               "--no-recording"]  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ | hub_server.environment(hub, tmp_path / "home") | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert reached.wait(600), process.communicate()
    process.kill()
    output, _ = process.communicate()
    hub.failures.clear()
    killed.set()
    assert TOKEN not in output and process.returncode == -9
    assert hub.files("org/name") == old_files and hub.log("org/name") == ["old"]
    assert run(versions) == 0 and is_new(hub, versions)


def test_a_download_that_breaks_goes_on_where_it_was(hub, versions, monkeypatch):
    from transformers import AutoModel

    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 5_000)
    assert run(versions) == 0
    shard = sorted(versions[1].glob("*.safetensors"))[0].name
    hub.fail(f"GET /org/name/resolve/*/{shard}", cut=10_000)
    loaded = AutoModel.from_pretrained("org/name").state_dict()
    expected = AutoModel.from_pretrained(versions[1]).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert f"{shard} bytes=10000-" in hub.ranges


def test_a_download_that_never_ends_gives_no_model(hub, versions):
    from transformers import AutoModel

    hub.fail("GET /org/name/resolve/*/model-00002*", cut=10_000, times=10_000)
    with pytest.raises(Exception, match="(?i)model-00002|connect|peer|consistency"):
        AutoModel.from_pretrained("org/name")
