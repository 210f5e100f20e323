"""`vaemotionllm push`, `benchmark push` and `push_to_hub` with the real client, against a small Hub on this machine.

What goes out and what does not, what is refused, and what a failure at any point leaves behind.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import traceback

import benchmark_files
import hub_server
import pytest
import tiny
import torch
from hub_server import TOKEN
from rounding import in_own_memory

from vaemotionllm.cli.main import main
from vaemotionllm.hub.model_folder import INDEX, check_files, is_hub_name, without_local_path
from vaemotionllm.hub.push import push
from vaemotionllm.utils import InputError

CODE = {"audio_projector.py", "configuration_vaemotionllm.py", "emotion_adapter.py",
        "modeling_vaemotionllm.py", "processing_vaemotionllm.py"}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model in shards, which is never changed."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration as Model

    folder = tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"))
    model = Model.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, with what a run leaves beside a model."""
    copy = tmp_path / "stage2"
    shutil.copytree(saved, copy)
    for name in ("checkpoint-5/optimizer.pt", "checkpoint-5/trainable.safetensors", "logs/events.out", "metrics.jsonl",
                 "trainer_state.json", "pytorch_model.bin", "old.pkl", ".env", ".cache/model.safetensors", "notes.py",
                 "__pycache__/media.pyc", "wandb/config.json"):  # fmt: skip
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b'{"step": 1}\n')
    return copy


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.running() as server:
        hub_server.connect(monkeypatch, server, tmp_path / "home")
        hub_server.no_waiting(monkeypatch)
        yield server


def run(folder, *words):
    return main(["push", str(folder), "--repo", "org/name", "--no-recording", *words])


def ids(folder, text="What?"):
    from vaemotionllm import VAEmotionLLMProcessor

    turn = {"role": "user", "content": [{"type": "text", "text": text}]}
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    return VAEmotionLLMProcessor.from_pretrained(folder).apply_chat_template([turn], **options)


def logits_of(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_what_belongs_to_a_model_goes_out_in_one_commit_and_nothing_else(folder, hub, capsys):
    assert run(folder, "--message", "the first one") == 0
    files = hub.files("org/name")
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) > 2 and CODE < set(files)
    expected = {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "README.md",
                "tokenizer_config.json", "chat_template.jinja", "reproducibility.json",
                INDEX}  # fmt: skip
    assert set(files) - shards - expected == {name for name in files if name.endswith(".py")}
    assert "notes.py" not in files
    assert hub.log("org/name") == ["the first one"]
    for name in set(files) - {"README.md", "reproducibility.json", "config.json"}:
        assert files[name] == (folder / name).read_bytes()
    # Large files went by LFS, each once, before the one commit.
    assert hub.count("PUT /lfs/object/*") == len(shards) and hub.count("POST /api/*/commit/*") == 1
    order = [f"{method} {path}" for method, path, _, _ in hub.requests]
    assert order.index("POST /api/models/org/name/commit/main") > max(
        i for i, one in enumerate(order) if one.startswith("PUT")
    )
    out = capsys.readouterr().out
    assert out.startswith(f"{hub.url}/org/name: {len(files)} files, ")
    assert not hub.repos["model", "org/name"].private


def test_a_pushed_model_loads_by_name_with_the_same_logits(folder, hub, tmp_path):
    from transformers import AutoModel, AutoProcessor

    assert run(folder) == 0
    inputs = ids(folder)
    expected = logits_of(AutoModel.from_pretrained(folder), inputs)
    assert torch.equal(logits_of(AutoModel.from_pretrained("org/name"), inputs), expected)
    assert (
        AutoProcessor.from_pretrained("org/name").chat_template == AutoProcessor.from_pretrained(folder).chat_template
    )
    # What came down is what its hashes say.
    from huggingface_hub import snapshot_download

    down = snapshot_download("org/name", local_dir=tmp_path / "down")
    assert check_files(tmp_path / "down") == []
    assert down == str(tmp_path / "down")


def test_the_same_folder_makes_no_second_commit(folder, hub, capsys):
    assert run(folder) == 0 and run(folder) == 0
    assert len(hub.log("org/name")) == 1
    assert hub.count("PUT /lfs/*") == len(list(folder.glob("model-*.safetensors")))


def test_private_and_revision(folder, hub, capsys):
    assert run(folder, "--private", "--revision", "v2/try") == 0
    assert hub.repos["model", "org/name"].private
    assert "model-00001" in " ".join(hub.files("org/name", "v2/try")) and hub.files("org/name") == {}
    assert f"{hub.url}/org/name/tree/v2/try: " in capsys.readouterr().out
    assert run(folder, "--revision", "v2/try") == 0  # the branch is there already


def test_a_public_repository_is_not_taken_for_a_private_one(folder, hub, capsys):
    assert run(folder) == 0
    asked = len(hub.requests)
    assert run(folder, "--private") == 2
    assert "org/name is there already and public" in capsys.readouterr().err
    assert not any("preupload" in path for _, path, _, _ in hub.requests[asked:])


def test_files_of_an_earlier_version_go_in_the_same_commit(folder, hub, saved):
    assert run(folder) == 0
    repo = hub.repos["model", "org/name"]
    of_owner = {"LICENSE": b"mine", "figure.png": b"drawn", "examples/run.py": b"print()"}
    repo.commit(
        "main", "by hand", {**repo.at("main").files, **of_owner, "pytorch_model.bin": b"old", "x/y.pt": b"old"}
    )
    from vaemotionllm import VAEmotionLLMForConditionalGeneration as Model

    model = Model.from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    model.save_pretrained(folder)  # in one file
    (folder / "generation_config.json").unlink()
    assert run(folder) == 0
    files = hub.files("org/name")
    assert {name for name in files if "model" in name and not name.endswith(".py")} == {"model.safetensors"}
    assert of_owner.items() <= files.items() and "x/y.pt" not in files and "generation_config.json" not in files
    assert len(hub.log("org/name")) == 3


def test_a_dry_run_lists_the_files_and_connects_to_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    assert run(folder, "--dry-run", "--show-card") == 0
    out = capsys.readouterr().out
    assert f"tokenizer.json  {(folder / 'tokenizer.json').stat().st_size:,}\n" in out
    assert "would go to org/name: " in out and "checkpoint-" not in out and "\n# name\n" in out


def test_pushing_changes_nothing_in_the_folder(folder, hub):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(folder) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_no_place_of_this_machine_goes_out(folder, hub, tmp_path, capsys):
    """Of folders nothing; names on the Hub stay, with their revision."""
    (folder / "adapter").mkdir()
    made = {"from_backbone": {"vlm": str(tmp_path / "vlm"), "audio": "openai/whisper", "projector_stride": 4}}
    adapter = {"base_model_name_or_path": str(tmp_path / "start"), "revision": None, "auto_mapping": made}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    edited("config.json", lambda c: c.update(backbone_name=str(tmp_path / "vlm"), backbone_revision="1"))(folder)
    edited("processor_config.json", lambda c: c.update(_name_or_path=str(folder)))(folder)
    edited("tokenizer_config.json", lambda c: c.update(vocab_file="C:\\Users\\me\\vocab.txt", sep_token="/"))(folder)
    assert "_name_or_path" in (folder / "config.json").read_text()
    assert run(folder) == 0
    files = hub.files("org/name")
    for name, content in files.items():
        assert str(tmp_path).encode() not in content and b'_name_or_path": "/' not in content, name
    found = {name: json.loads(content) for name, content in files.items() if name.endswith("config.json")}
    assert "_name_or_path" not in files["config.json"].decode()
    assert (found["config.json"]["backbone_name"], found["config.json"]["backbone_revision"]) == (None, None)
    of = found["adapter/adapter_config.json"]
    assert of["base_model_name_or_path"] is None
    assert of["auto_mapping"]["from_backbone"] == {"vlm": None, "audio": "openai/whisper", "projector_stride": 4}
    of = found["tokenizer_config.json"]
    assert (of["vocab_file"], of["sep_token"]) == ("vocab.txt", "/")
    edited("config.json", lambda c: c.update(backbone_name="org/backbone", backbone_revision="1"))(folder)
    assert run(folder) == 0
    config = json.loads(hub.files("org/name")["config.json"])
    assert (config["backbone_name"], config["backbone_revision"]) == ("org/backbone", "1")


def test_a_relative_path_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "vlm").mkdir(parents=True)
    assert is_hub_name("runs/vlm") and not is_hub_name("runs/vlm", tmp_path / "runs" / "stage2")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("runs/vlm")
    assert not any(is_hub_name(name) for name in ("/a/b", "~/b", "./b", "a", "a/b/c", "a b/c"))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("/home/me/world/manifest.jsonl", "manifest.jsonl"), ("runs/demo/stage1", "stage1"), ("C:\\me\\stage1", "stage1"),
     ("file:///home/me/stage1/", "stage1"), ("/mnt/My Drive/vlm", "vlm"), ("/data", "data"), ("~jane/x", "x"),
     ("C:\\Users\\Jane Doe\\x", "x"), ("org/name", "org/name"), ("what is it / a or b / c?", None), (3, None)],
)  # fmt: skip
def test_settings_name_no_place(setting, shown):
    assert without_local_path({"a": [setting]}) == {"a": [setting if shown is None else shown]}


def test_without_its_backbone_a_model_needs_one_on_the_hub(folder, capsys):
    edited("config.json", lambda c: c.update(backbone_name=str(folder.parent / "vlm")))(folder)
    for words in (("--audio-only",), ("--audio-only", "--backbone", "vlm")):
        assert run(folder, "--dry-run", *words) == 2
        err = capsys.readouterr().err
        assert "is a folder; push the whole model with --audio-only --backbone OWNER/NAME." in err
    edited("config.json", lambda c: c.update(backbone_included=False))(folder)
    assert run(folder, "--dry-run") == 2 and "is a folder; push the whole" in capsys.readouterr().err


def test_a_card_in_the_folder_is_taken_as_it_is(folder, hub, capsys):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert run(folder) == 0
    assert "README.md is taken as the card; look whether it fits" in capsys.readouterr().err
    assert hub.files("org/name")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def cut_short(folder):
    shard = min(folder.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


def without(name):
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def edited(name, change):
    def edit(folder):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return edit


BROKEN = {
    "no config": (without("config.json"), "holds no config.json"),
    "another model": (edited("config.json", lambda c: c.update(model_type="bert")), "holds a model of type 'bert'"),
    "config with a bad value": (
        edited("config.json", lambda c: c.update(projector_stride=0)), "config.json cannot be used"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "weights cut short": (cut_short, "is cut off or altered"),
    "a pickle by that name": (
        lambda f: min(f.glob("model-*.safetensors")).write_bytes(b"PK\x03\x04" + b"\xff" * 20),
        "is cut off or altered",
    ),
    "a shard is missing": (without("model-00001-*"), "is cut off or altered, or not there"),
    "an index that names more": (
        edited(INDEX, lambda i: i["weight_map"].update(more=sorted(i["weight_map"].values())[0])),
        "names 1 weights that no file holds, more among them",
    ),
    "an index that leads out": (
        edited(INDEX, lambda i: i["weight_map"].update(more="../../x.safetensors")),
        "only safetensors files of the folder itself",
    ),
    "no weights": (without("model*"), "holds no model.safetensors"),
    "no processor": (without("processor_config.json"), "holds no processor_config.json"),
    "no tokenizer": (without("tokenizer.json"), "cannot be loaded"),
    "no code": (without("emotion_adapter.py"), "lacks emotion_adapter.py"),
    "a token": (
        edited("config.json", lambda c: c["vlm_config"].update(note=f"https://x:{TOKEN}@h")),
        "holds what looks like a token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_before_any_connection(folder, capsys, monkeypatch, name):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    damage, words = BROKEN[name]
    damage(folder)
    assert run(folder) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and TOKEN not in err


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, capsys):
    shard = min(folder.glob("model-*.safetensors"))
    shard.rename(tmp_path / "secret")
    shard.symlink_to(tmp_path / "secret")
    assert run(folder, "--dry-run") == 2
    assert "is a link that leads out of the folder" in capsys.readouterr().err
    shutil.move(tmp_path / "secret", folder / "kept")
    shard.unlink()
    shard.symlink_to("kept")
    assert run(folder, "--dry-run") == 0


WRONG = {
    "a repository without an owner": (("--repo", "name"), "allowed is OWNER/NAME"),
    "a backbone that nothing fetches": (("--backbone", "a/b"), "are for --audio-only"),
    "results that are not there": (("--results", "nowhere"), "nowhere holds no *_results.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_refused(folder, capsys, name):
    words, said = WRONG[name]
    assert run(folder, "--dry-run", *words) == 2
    assert said in capsys.readouterr().err


def test_the_token_is_nowhere(folder, hub, capsys, caplog, tmp_path):
    """Not in output, in logs at their most talkative, in an error that quotes it, or in a file."""
    from huggingface_hub.utils import logging as hub_logging

    talkative = ("huggingface_hub", "httpx2", "httpcore2", "transformers", "vaemotionllm")
    for name in ("", *(n for n in logging.root.manager.loggerDict if n.startswith(talkative))):
        caplog.set_level(logging.DEBUG, logger=name)
    hub_logging.enable_propagation()
    try:
        assert run(folder) == 0
        hub.fail("*", status=403, times=9)
        assert run(folder, "--revision", "b") == 2
        hub.failures.clear()
        hub.fail("*", status=401, times=9)
        with pytest.raises(InputError) as caught:
            push(folder, "org/name", recorded=False)
    finally:
        hub_logging.disable_propagation()
    captured = capsys.readouterr()
    shown = "".join(traceback.format_exception(caught.value))
    assert "commit" in caplog.text and "401" in shown
    for text in (captured.out, captured.err, caplog.text, shown):
        assert TOKEN not in text
    assert all(
        authorization == f"Bearer {TOKEN}" for _, path, authorization, _ in hub.requests if path.startswith("/api")
    )
    written = [path for root in (tmp_path, folder) for path in root.rglob("*") if path.is_file()]
    assert written and not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert not any(TOKEN.encode() in data for data in hub.files("org/name").values())


def test_the_stock_push_to_hub_makes_a_repository_that_loads(saved, hub):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from vaemotionllm import VAEmotionLLMForConditionalGeneration as Model
    from vaemotionllm import VAEmotionLLMProcessor as Processor

    model, processor = Model.from_pretrained(saved), Processor.from_pretrained(saved)
    model.push_to_hub("org/stock", private=True)
    processor.push_to_hub("org/stock")
    files = hub.files("org/stock")
    assert hub.repos["model", "org/stock"].private and CODE < set(files)
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
            "chat_template.jinja", "README.md"} < set(files)  # fmt: skip
    inputs = ids(saved)
    again = in_own_memory(AutoModel.from_pretrained("org/stock"))
    assert torch.equal(logits_of(again, inputs), logits_of(in_own_memory(model), inputs))
    assert AutoProcessor.from_pretrained("org/stock").chat_template == processor.chat_template
    assert AutoConfig.from_pretrained("org/stock").auto_map == model.config.auto_map
    # A command afterwards takes over, and leaves nothing of the other form of the weights.
    assert main(["push", str(saved), "--repo", "org/stock", "--no-recording"]) == 0
    assert "model.safetensors" not in hub.files("org/stock") and INDEX in hub.files("org/stock")


def test_help_needs_no_torch():
    code = (
        "import sys; from vaemotionllm.cli.main import main\ntry: main(['push', '--help'])\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--audio-only" in done.stdout, done.stderr


# ---- failures between the command and the Hub

COMMIT = "POST /api/models/org/name/commit/main"


@pytest.fixture(scope="module")
def versions(saved, tmp_path_factory):
    """Two versions of a tiny model in shards; the second has other weights in every shard."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration as Model

    root = tmp_path_factory.mktemp("versions")
    model = Model.from_pretrained(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(shutil.copytree(saved, root / "new"), max_shard_size="100KB")
    return saved, root / "new"


@pytest.fixture(scope="module")
def old_files(versions, tmp_path_factory):
    """What a push of the old version puts on the Hub."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, hub_server.running() as server:
        hub_server.connect(patch, server, home)
        assert run(versions[0]) == 0
        return server.files("org/name")


@pytest.fixture
def filled(hub, old_files):
    """A Hub that holds the old version."""
    repo = hub.repos["model", "org/name"] = hub_server.Repo(private=False)
    repo.commit("main", "initial commit", {".gitattributes": b""})
    repo.commit("main", "old", {".gitattributes": b"", **old_files})
    return hub


def is_new(hub, versions):
    """Whether the Hub's files are the new version's, all of them."""
    files, shards = hub.files("org/name"), sorted(versions[1].glob("*.safetensors"))
    names = sorted(name for name in files if name.endswith(".safetensors"))
    return names == [shard.name for shard in shards] and all(files[s.name] == s.read_bytes() for s in shards)


@pytest.mark.parametrize(
    "where",
    [
        "GET /api/models/org/name/revision/main",
        "* /org/name/resolve/*",
        "PUT /lfs/object/*",
        "POST /lfs/verify",
        COMMIT,
    ],
)
def test_a_connection_that_breaks_leaves_the_old_version_whole(filled, versions, old_files, capsys, where):
    filled.fail(where, cut=60, times=10_000)
    assert run(versions[1]) == 2
    err = capsys.readouterr().err
    assert "the upload to org/name failed (" in err.splitlines()[-1] and "Run the same command again" in err
    assert "Traceback" not in err and TOKEN not in err
    assert filled.files("org/name") == old_files and filled.log("org/name") == ["old"]
    filled.failures.clear()
    assert run(versions[1]) == 0
    assert is_new(filled, versions) and len(filled.log("org/name")) == 2


def test_what_was_uploaded_is_not_sent_twice(filled, versions):
    shards = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in versions[1].glob("*.safetensors")}
    broken = sorted(shards)[1]
    filled.fail(f"PUT /lfs/object/{shards[broken]}", cut=30, times=10_000)
    assert run(versions[1]) == 2
    there = set(filled.objects)
    assert there and shards[broken] not in there
    filled.failures.clear()
    before = len(filled.requests)
    assert run(versions[1]) == 0
    sent = {path.rpartition("/")[2] for method, path, _, _ in filled.requests[before:] if method == "PUT"}
    assert sent == set(shards.values()) - there and shards[broken] in sent
    assert is_new(filled, versions)


def test_a_commit_whose_answer_is_lost_is_made_once(filled, versions):
    filled.fail(COMMIT, lost=True)
    assert run(versions[1]) in (0, 2) and run(versions[1]) == 0
    assert is_new(filled, versions) and len(filled.log("org/name")) == 2


def test_a_push_of_somebody_else_is_not_overwritten(filled, versions, old_files, capsys):
    files = {".gitattributes": b"", **old_files, "config.json": b"{}"}
    filled.fail(COMMIT, then=lambda: filled.repos["model", "org/name"].commit("main", "theirs", files))
    assert run(versions[1]) == 2
    assert "A commit has happened since" in capsys.readouterr().err
    assert filled.log("org/name") == ["theirs", "old"] and filled.files("org/name")["config.json"] == b"{}"


@pytest.mark.parametrize(
    ("where", "status", "shown"),
    [*((COMMIT, status, str(status)) for status in (401, 403, 413, 503)), ("PUT /lfs/object/*", 403, "403"),
     ("POST /api/validate-yaml", 400, "Invalid metadata in README.md")],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line_of_the_clients(filled, versions, old_files, capsys, where, status, shown):
    filled.fail(where, status=status, times=10_000)
    assert run(versions[1]) == 2
    err = capsys.readouterr().err
    assert "the upload to org/name failed (" in err.splitlines()[-1] and shown in err.splitlines()[-1]
    assert TOKEN not in err and "Traceback" not in err
    assert filled.files("org/name") == old_files


def test_ctrl_c_ends_with_one_line_and_leaves_nothing_behind(
    filled, versions, old_files, tmp_path, monkeypatch, capsys
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def interrupted(*_, **__):
        assert any((tmp_path / "temporary").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupted)
    assert run(versions[1]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "vaemotionllm push: interrupted."
    assert not any((tmp_path / "temporary").iterdir()) and filled.files("org/name") == old_files


def test_a_hub_that_cannot_be_reached(versions, tmp_path, monkeypatch, capsys):
    hub_server.connect(monkeypatch, "http://127.0.0.1:9", tmp_path)
    hub_server.no_waiting(monkeypatch)
    assert run(versions[1]) == 2
    assert "the upload to org/name failed (ConnectError" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(versions[1]) == 2
    assert "(OfflineModeIsEnabled" in capsys.readouterr().err


def test_without_a_token_the_clients_text_says_how_to_log_in(folder, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert run(folder) == 2
    assert "401" in capsys.readouterr().err


def test_a_killed_push_leaves_the_old_version_and_can_be_run_again(filled, versions, old_files, tmp_path):
    """In a process of its own, which finds the Hub by HF_ENDPOINT."""
    reached, killed = threading.Event(), threading.Event()
    filled.fail("PUT /lfs/object/*", then=lambda: (reached.set(), killed.wait(600)), times=10_000)
    command = [sys.executable, "-m", "vaemotionllm.cli.main", "push", str(versions[1]), "--repo", "org/name",
               "--no-recording"]  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ | hub_server.environment(filled, tmp_path / "home") | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert reached.wait(600), process.communicate()
    process.kill()
    output, _ = process.communicate()
    filled.failures.clear()
    killed.set()
    assert TOKEN not in output and process.returncode == -9
    assert filled.files("org/name") == old_files and filled.log("org/name") == ["old"]
    assert run(versions[1]) == 0 and is_new(filled, versions)


# ---- a benchmark

BENCHMARK = ["README.md", "benchmark.json", "media/clip-0.png", "media/clip-0.wav", "media/clip-1.png",
             "media/clip-1.wav", "test.jsonl"]  # fmt: skip


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    made = benchmark_files.write_benchmark(tmp_path / "mine", clips=2)
    (made / "README.md").write_text("# Mine\n")
    (made / "notes.txt").write_text("not for others")
    return made


def run_benchmark(folder, *words):
    return main(["benchmark", "push", str(folder), "--repo", "owner/name", *words])


def test_what_belongs_to_a_benchmark_goes_out_and_nothing_else(benchmark, hub, capsys):
    assert run_benchmark(benchmark, "--private") == 0
    assert f"{hub.url}/datasets/owner/name: 7 files" in capsys.readouterr().out
    assert hub.repos["dataset", "owner/name"].private
    assert hub.files("owner/name", kind="dataset") == {name: (benchmark / name).read_bytes() for name in BENCHMARK}
    assert hub.log("owner/name", kind="dataset") == ["test set, version 1"]


def test_items_of_an_earlier_version_go_in_the_same_commit(benchmark, hub):
    repo = hub.repos["dataset", "owner/name"] = hub_server.Repo(private=False)
    repo.commit("main", "initial commit", {"data/test-00000-of-00009.parquet": b"old", "LICENSE": b"mine"})
    assert run_benchmark(benchmark) == 0
    files = hub.files("owner/name", kind="dataset")
    assert sorted(files) == sorted([*BENCHMARK, "LICENSE"]) and len(hub.log("owner/name", kind="dataset")) == 1


def test_a_refused_benchmark_is_one_line(benchmark, hub, capsys):
    hub.fail("*", status=403, times=1_000)
    assert run_benchmark(benchmark) == 2
    err = capsys.readouterr().err
    assert "the upload to owner/name failed (" in err and err.count("\n") == 1 and TOKEN not in err


def test_a_dry_run_of_a_benchmark_lists_the_files(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    assert run_benchmark(benchmark, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == BENCHMARK and lines[-1].startswith(
        "would go to owner/name: 7 files, "
    )


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../x", "owner/na me", ""])
def test_wrong_names_are_refused(benchmark, capsys, repo):
    assert main(["benchmark", "push", str(benchmark), "--repo", repo, "--dry-run"]) == 2
    assert "allowed is OWNER/NAME" in capsys.readouterr().err


def test_no_benchmark_and_no_card_are_refused(benchmark, tmp_path, capsys):
    (benchmark / "README.md").unlink()
    assert run_benchmark(benchmark, "--dry-run") == 2
    assert "holds no README.md" in capsys.readouterr().err
    assert run_benchmark(tmp_path, "--dry-run") == 2
    assert "is not a benchmark folder" in capsys.readouterr().err
