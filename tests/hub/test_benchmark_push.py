"""`vaemotionllm benchmark push` against a small server that speaks the Hub's protocol on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import benchmark_files
import hub_server
import pytest

from vaemotionllm.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    made = benchmark_files.write_benchmark(tmp_path / "mine", clips=2)
    (made / "README.md").write_text("# Mine\n")
    (made / "notes.txt").write_text("not for others")
    return made


EXPECTED = ["README.md", "benchmark.json", "media/clip-0.png", "media/clip-0.wav", "media/clip-1.png",
            "media/clip-1.wav", "test.jsonl"]  # fmt: skip


# On the Hub before: shards of an earlier version, and a file of the owner's.
STALE = {"data/test-00000-of-00009.parquet": b"old", "LICENSE": b"mine"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as server:
        hub_server.connect(monkeypatch, server, tmp_path / "home")
        hub_server.no_waiting(monkeypatch)
        monkeypatch.setattr("vaemotionllm.hub.upload.WAITS_S", (0.0, 0.0))
        yield server


def pushed(folder, *words):
    return main(["benchmark", "push", str(folder), "--repo", "owner/name", *words])


def test_what_belongs_to_a_benchmark_goes_out_and_nothing_else(folder, hub, capsys):
    assert pushed(folder, "--private") == 0
    assert f"{hub.url}/datasets/owner/name: 7 files" in capsys.readouterr().out
    assert hub.repos["dataset", "owner/name"].private
    assert hub.files("owner/name", kind="dataset") == {name: (Path(folder) / name).read_bytes() for name in EXPECTED}
    assert hub.log("owner/name", kind="dataset") == ["test set, version 1"]


def test_items_of_an_earlier_version_go_in_the_same_commit(folder, hub):
    repo = hub.repos["dataset", "owner/name"] = hub_server.Repo(private=False)
    repo.commit("main", "initial commit", STALE)
    assert pushed(folder) == 0
    files = hub.files("owner/name", kind="dataset")
    assert sorted(files) == sorted([*EXPECTED, "LICENSE"]) and len(hub.log("owner/name", kind="dataset")) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the Hub refused the token (401). Run `hf auth login`"),
        (403, "the token may not write to owner/name (403). Use one with write access to owner"),
        (404, "the Hub knows no owner 'owner'"),
        (422, "the Hub answered 422"),
    ],
)
def test_refusals_are_told_in_words(folder, hub, capsys, status, message):
    hub.fail("*", status=status, times=1_000)
    assert pushed(folder) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and err.count("\n") == 1 and hub_server.TOKEN not in err


def test_an_unreachable_hub_is_told_in_words(folder, tmp_path):
    """In a process of its own, which finds the Hub by HF_ENDPOINT."""
    command = [sys.executable, "-m", "vaemotionllm.cli.main", "benchmark", "push", str(folder), "--repo", "owner/name"]
    environment = os.environ | hub_server.environment("http://127.0.0.1:9", tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "the Hub cannot be reached" in done.stderr and "Traceback" not in done.stderr
    assert hub_server.TOKEN not in done.stdout + done.stderr


def test_a_dry_run_lists_the_files(folder, capsys, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    assert main(["benchmark", "push", str(folder), "--repo", "owner/name", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == EXPECTED and lines[-1].startswith("would go to owner/name: 7 files, ")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../x", "owner/na me", ""])
def test_wrong_names_are_refused(folder, capsys, repo):
    assert main(["benchmark", "push", str(folder), "--repo", repo, "--dry-run"]) == 2
    assert "allowed is OWNER/NAME" in capsys.readouterr().err


def test_no_benchmark_and_no_card_are_refused(folder, tmp_path, capsys):
    (folder / "README.md").unlink()
    assert main(["benchmark", "push", str(folder), "--repo", "owner/name", "--dry-run"]) == 2
    assert "holds no README.md" in capsys.readouterr().err
    assert main(["benchmark", "push", str(tmp_path), "--repo", "owner/name", "--dry-run"]) == 2
    assert "is not a benchmark folder" in capsys.readouterr().err
