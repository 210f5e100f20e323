"""`vaemotionllm benchmark push` against a small server that speaks the Hub's protocol on this machine."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import benchmark_files
import pytest

from vaemotionllm.cli.main import main

TOKEN = "hf_thisMustNeverBePrinted"


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
STALE = ["data/test-00000-of-00009.parquet", "LICENSE"]


class Hub(BaseHTTPRequestHandler):
    """Takes every file inline. `server.status` is what every request is answered with, `server.seen` what came."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.status != 200:
            return self._answer({"error": f"no, {self.headers.get('Authorization')}"}, self.server.status)
        if self.path == "/api/repos/create":
            return self._answer({"url": f"{self.server.url}/datasets/owner/name", "id": "owner/name"})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self._answer({"files": files})
        if "/commit/" in self.path:
            return self._answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self.server.url}/datasets/owner/name/commit/0",
                }
            )
        return self._answer({})

    def do_GET(self):
        if "/tree/" in self.path:
            return self._answer([{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in STALE])
        self._answer({"id": "owner/name", "sha": "0" * 40, "siblings": []}, self.server.status)

    def _answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.status, server.seen = 200, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(folder, hub_url, *words):
    """In a process of its own: huggingface_hub reads its settings once."""
    command = [sys.executable, "-m", "vaemotionllm.cli.main", "benchmark", "push", str(folder), "--repo", "owner/name"]
    settings = {"HF_ENDPOINT": hub_url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    done = subprocess.run([*command, *words], env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_what_belongs_to_a_benchmark_goes_out_and_nothing_else(folder, hub):
    done = pushed(folder, hub.url, "--private")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/datasets/owner/name: 7 files" in done.stdout
    assert all(authorization == f"Bearer {TOKEN}" for _, authorization, _ in hub.seen)
    created = json.loads(next(body for path, _, body in hub.seen if path == "/api/repos/create"))
    assert (created["name"], created["organization"], created["type"]) == ("name", "owner", "dataset")
    assert created.get("private") is True or created.get("visibility") == "private"
    [commit] = [body for path, _, body in hub.seen if "/commit/" in path]
    values = [json.loads(line) for line in commit.splitlines()]
    files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in values if v["key"] == "file"}
    assert files == {name: (Path(folder) / name).read_bytes() for name in EXPECTED}
    assert [v["value"]["path"] for v in values if v["key"] == "deletedFile"] == ["data/test-00000-of-00009.parquet"]
    assert values[0]["value"]["summary"] == "test set, version 1"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the Hub refused the token (401). Run `hf auth login`"),
        (403, "the token may not write to owner/name (403). Use one with write access to owner"),
        (404, "the Hub knows no owner 'owner'"),
        (422, "the Hub answered 422"),
    ],
)
def test_refusals_are_told_in_words(folder, hub, status, message):
    hub.status = status
    done = pushed(folder, hub.url)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unreachable_hub_is_told_in_words(folder):
    done = pushed(folder, "http://127.0.0.1:9")
    assert done.returncode == 2 and "the Hub cannot be reached" in done.stderr and "Traceback" not in done.stderr


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
