"""`vaemotionllm verify`: what a whole model shows, what damage shows, and a model by its name on the Hub."""

import json
import shutil
from pathlib import Path

import hub_server
import pytest
import tiny
import torch
from rounding import in_own_memory
from safetensors.torch import load_file, save_file

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.cli.main import main
from vaemotionllm.hub import verify as verification
from vaemotionllm.hub.model_folder import REPRODUCIBILITY, write_reproducibility
from vaemotionllm.hub.push import download, push
from vaemotionllm.hub.verify import AGREES, DISAGREES, NOT_CHECKED, TOLERANCES, read_recording, record, verify

LOGITS = [
    f"logits: {name}"
    for name in ("text", "image", "video", "audio", "image and audio", "mixed batch", "mixed batch, adapter off")
]
ADAPTER = "valence, arousal, emotions"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A tiny model whose logits hang on every part of it, with its recording; not to be changed."""
    folder = tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"), emotion_labels=["joy", "fear", "calm"])
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("emotion_adapter") and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif parameter.ndim >= 2 and ("layers" in name or "audio_projector.linear" in name or "conv" in name):
                parameter.mul_(8)
    model.save_pretrained(folder)
    record(folder)
    return folder


@pytest.fixture
def folder(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "model"))


def results_of(folder: Path, **arguments) -> dict[str, verification.Check]:
    return {check.name: check for check in verify(folder, device="cpu", **arguments)[0]}


def disagreeing(folder: Path, **arguments) -> list[str]:
    return [name for name, check in results_of(folder, **arguments).items() if check.result == DISAGREES]


def change_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_weight(folder: Path, name: str, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_whole_model_agrees(recorded, capsys):
    assert main(["verify", str(recorded), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "run here in float32 with sdpa attention on cpu" in out
    assert "recorded in float32 with eager attention on cpu by " in out
    assert "15 agree, 0 disagree, 1 not checked." in out and "the folder has no reproducibility.json" in out


def test_the_recording_holds_every_kind_of_input(recorded):
    about, tensors = read_recording(recorded)
    mixed = next(case for case in about["cases"] if case["name"] == "mixed batch")
    assert [row["media"] for row in mixed["rows"]] == [[], ["image"], ["video"], ["audio"], ["image", "audio"]]
    inputs = verification.inputs_of(tensors, mixed)
    assert (inputs["attention_mask"][:, 0] == 0).any() and (inputs["attention_mask"][:, -1] == 1).all()
    assert {"pixel_values", "pixel_values_videos", "input_features", "audio_num_tokens"} <= inputs.keys()
    on, off = (verification.part(tensors, f"outputs/{name}") for name in ("mixed batch", "mixed batch, adapter off"))
    media = [bool(row["media"]) for row in mixed["rows"]]
    assert ((on["logits"] - off["logits"]).abs().amax((1, 2)) > 1e-4).tolist() == media, "the adapter is for media"
    assert on["valence"].isfinite().tolist() == [
        [False, False, False], [False, True, False], [False, True, False], [True, False, False], [True, True, True],
    ] and "valence" not in off  # fmt: skip
    size = sum((recorded / name).stat().st_size for name in (verification.JSON_FILE, verification.TENSOR_FILE))
    assert size < 500_000, "small beside any model"


def test_two_recordings_are_alike(recorded, folder):
    record(folder)
    for name in (verification.JSON_FILE, verification.TENSOR_FILE):
        assert (folder / name).read_bytes() == (recorded / name).read_bytes()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_and_attention_backends_agree(recorded, dtype, attention):
    found = results_of(recorded, dtype=dtype, attn_implementation=attention)
    assert {check.result for name, check in found.items() if name != "files"} == {AGREES}
    largest = max(found[name].difference for name in LOGITS)
    if (dtype, attention) == ("float32", "eager"):
        assert largest == 0, "as it was recorded"
    else:
        assert largest < TOLERANCES[dtype] / 2
        assert largest > 0 or dtype == "float32", "nothing was rounded, nothing to tolerate"
    assert {found[name].tolerance for name in LOGITS} == {TOLERANCES[dtype]}


@pytest.mark.parametrize(("vlm", "audio"), [("qwen3_vl", "whisper"), ("llava_onevision", "ast")])
def test_other_families_agree(tmp_path, vlm, audio):
    folder = tiny.make_vaemotionllm(tmp_path, vlm, audio)
    record(folder)
    assert disagreeing(folder) == [] and set(LOGITS) <= results_of(folder).keys()


def test_a_tolerance_of_lower_precision_is_needed(recorded, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "bfloat16", TOLERANCES["float32"])
    assert set(LOGITS) <= set(disagreeing(recorded, dtype="bfloat16"))


def test_one_altered_value_shows_where_it_counts(folder):
    change_weight(folder, "audio_projector.boundary", lambda weight: weight[0, :2].add_(3.0))
    found = results_of(folder)
    with_audio = [name for name in LOGITS if "audio" in name or "mixed" in name]
    assert [name for name, check in found.items() if check.result == DISAGREES] == [*with_audio, ADAPTER]
    assert all(found[name].difference > found[name].tolerance for name in with_audio)
    assert found["logits: text"].difference < 1e-5, "what has no audio is as it was"
    assert main(["verify", str(folder), "--device", "cpu"]) == 1


def test_one_altered_value_of_a_supervisor_shows_in_its_outputs(folder):
    change_weight(folder, "emotion_adapter.supervisor.labels.1.bias", lambda weight: weight[:1].add_(0.5))
    found = results_of(folder)
    assert [name for name, check in found.items() if check.result == DISAGREES] == [ADAPTER]
    assert "emotion_logits" in found[ADAPTER].notes[0]


def test_one_altered_bit_shows_in_the_hashes_and_nothing_is_loaded(folder, monkeypatch):
    def flip(weight):
        weight.view(torch.int32)[0, 0] ^= 1

    name = "emotion_adapter.supervisor.planes.0.weight"
    write_reproducibility(folder, [], {})
    assert results_of(folder)["files"].result == AGREES
    change_weight(folder, name, flip)
    monkeypatch.setattr(verification, "load_model", lambda *a, **k: pytest.fail("it was loaded"))
    monkeypatch.setattr(verification, "load_processor", lambda *a, **k: pytest.fail("it was loaded"))
    found = results_of(folder)
    assert found["files"].result == DISAGREES and "model.safetensors" in found["files"].notes[0]
    assert {check.result for name, check in found.items() if name != "files"} == {NOT_CHECKED}
    # Without the list of hashes one bit is within rounding.
    monkeypatch.undo()
    (folder / REPRODUCIBILITY).unlink()
    assert disagreeing(folder) == []


def test_a_list_of_hashes_is_not_made_wrong_by_a_new_recording(folder):
    (folder / "reproducibility.json").write_text("{}")
    with pytest.raises(InputError, match="which lists its files"):
        record(folder)


@pytest.mark.parametrize(
    ("change", "processors"),
    [
        (lambda v: v["image_processor"].update(image_mean=[0.6, 0.6, 0.6]), ["image"]),
        (lambda v: v["feature_extractor"].update(hop_length=200), ["audio"]),
        (lambda v: v.update(samples_per_token=1600), ["audio", "ids"]),
    ],
)
def test_a_changed_processor_setting(folder, change, processors):
    change_json(folder / "processor_config.json", change)
    found = results_of(folder)
    disagree = [name for name, check in found.items() if check.result == DISAGREES]
    assert disagree == [f"processor: {name}" for name in processors]
    assert {found[name].result for name in LOGITS} == {AGREES}, "the model is given what was recorded"


def test_a_changed_chat_template(folder):
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>system"))
    found = results_of(folder)
    assert [name for name, check in found.items() if check.result == DISAGREES] == ["processor: ids"]
    assert "'shape' do not match" in found["processor: ids"].notes[0]


@pytest.mark.parametrize(
    ("change", "also"),
    [
        (lambda v: v["vlm_config"]["text_config"].update(rms_norm_eps=1e-2), LOGITS),
        (lambda v: v.update(enhancer_rank=8), ["weights"]),
        (lambda v: v.update(projector_stride=5), ["weights"]),
    ],
)
def test_a_changed_config_value(folder, change, also):
    change_json(folder / "config.json", change)
    assert set(also) <= set(disagreeing(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "verification.safetensors"])
def test_a_truncated_file(folder, name, capsys):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) * 2 // 3])
    code = main(["verify", str(folder), "--device", "cpu"])
    printed = capsys.readouterr()
    if name == "config.json":  # nothing says that this is a model at all
        assert code == 2 and "config.json is not valid JSON" in printed.err
    else:
        assert code == 1 and "DISAGREES" in printed.out and "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("model.safetensors", "format"), ("chat_template.jinja", "format"),
        ("tokenizer.json", "format"), ("verification.json", "recording"), ("verification.safetensors", "recording"),
    ],
)  # fmt: skip
def test_a_missing_file(folder, name, check):
    (folder / name).unlink()
    assert check in disagreeing(folder)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pytorch_model.bin", lambda path: path.write_bytes(b"anything")),
        ("extra/weights.PT", lambda path: torch.save({"a": torch.zeros(1)}, path)),
    ],
)
def test_a_pickle_in_the_folder_and_nothing_is_loaded(folder, name, write, monkeypatch):
    (folder / "extra").mkdir()
    write(folder / name)
    monkeypatch.setattr(verification, "load_model", lambda *a, **k: pytest.fail("it was loaded"))
    found = results_of(folder)
    assert found["format"].result == DISAGREES and any(
        note.startswith(f"{name} is a pickle") for note in found["format"].notes
    )
    assert found["weights"].result == NOT_CHECKED


def test_checkpoints_of_a_run_are_no_part_of_the_model(folder):
    (folder / "checkpoint-5").mkdir()
    torch.save({}, folder / "checkpoint-5" / "optimizer.pt")
    assert disagreeing(folder) == []


def test_a_folder_without_records(folder):
    for name in (verification.JSON_FILE, verification.TENSOR_FILE):
        (folder / name).unlink()
    found = results_of(folder)
    assert {name: check.result for name, check in found.items()} == {
        "files": NOT_CHECKED, "format": AGREES, "recording": NOT_CHECKED, "weights": AGREES,
    }  # fmt: skip
    assert "verify DIR --record" in found["recording"].notes[0]
    assert main(["verify", str(folder), "--device", "cpu"]) == 0


def test_weights_that_are_missing_or_unknown(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["something.else"] = tensors.pop("audio_projector.boundary")
    save_file(tensors, file, metadata={"format": "pt"})
    found = results_of(folder)["weights"]
    assert found.result == DISAGREES and "audio_projector.boundary" in found.notes[0]
    with pytest.raises(InputError, match="audio_projector.boundary"):
        record(folder)


def test_weights_that_are_unknown_alone(folder):
    file = folder / "model.safetensors"
    save_file({**load_file(file), "something.else": torch.zeros(2)}, file, metadata={"format": "pt"})
    found = results_of(folder)
    assert found["weights"].notes == ("1 weights are not those of this model, something.else among them.",)
    assert found["weights"].result == DISAGREES and {found[name].result for name in LOGITS} == {AGREES}


def test_a_sharded_folder(folder):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and disagreeing(folder) == []
    kept = shards[1].read_bytes()
    shards[1].write_bytes(kept[:-100])
    assert f"{shards[1]} is cut off or altered" in results_of(folder)["format"].notes[0]
    shards[1].unlink()
    assert f"{shards[1]} is cut off or altered, or not there" in results_of(folder)["format"].notes[0]
    shutil.copy(shards[0], shards[1])
    assert "weights that no file holds" in results_of(folder)["format"].notes[0]
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda v: v["weight_map"].update({"audio_projector.boundary": "../other.safetensors"}))
    assert "other.safetensors'; only safetensors files of the folder" in results_of(folder)["format"].notes[0]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda v: v.update(format=3), "has format 3; this release knows format 2"),
        (lambda v: v.pop("cases"), "verification.json lists no cases"),
        (lambda v: v.update(cases=[]), "verification.json lists no cases"),
        (lambda v: v.update(tensors_sha256="0" * 64), "is not the file that verification.json describes"),
    ],
)
def test_a_recording_that_cannot_be_used(folder, change, note):
    change_json(folder / verification.JSON_FILE, change)
    found = results_of(folder)
    assert note in found["recording"].notes[0] and found["recording"].result == DISAGREES
    assert found["weights"].result == AGREES and not set(LOGITS) & found.keys()


def test_a_model_that_gives_no_numbers_is_not_recorded(folder):
    change_weight(folder, "vlm.model.norm.weight", lambda weight: weight.fill_(float("nan")))
    before = (folder / verification.JSON_FILE).read_bytes()
    with pytest.raises(InputError, match="not finite.* for the input 'text'"):
        record(folder)
    assert (folder / verification.JSON_FILE).read_bytes() == before


def test_the_models_own_code_never_runs(folder):
    sign = folder.parent / "it_ran"
    code = folder / "modeling_vaemotionllm.py"
    code.write_text(code.read_text() + f"\nopen({str(sign)!r}, 'w').close()\n")
    assert disagreeing(folder) == [] and not sign.exists()


def test_what_is_not_a_number_counts_as_a_difference():
    nan, inf = float("nan"), float("inf")

    def compared(*values, was=(1.0, nan), scale=1.0):
        return verification._compared("a", {"a": torch.tensor(was)}, {"a": torch.tensor(values)}, 0.3, scale)

    assert (compared(1.5, nan, scale=2.0).result, compared(1.5, nan, scale=2.0).difference) == (AGREES, 0.25)
    for check in (compared(1.5, nan), compared(1.0, 1.0), compared(inf, nan), compared(-inf, was=(inf,)),
                  compared(1.0)):  # fmt: skip
        assert check.result == DISAGREES and check.notes
    assert verification._compared("a", {"a": torch.zeros(1)}, {}, 0.3).result == DISAGREES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int4"], "--dtype is 'int4'; allowed are float32, float16, bfloat16"),
        (["--device", "abacus"], "the device 'abacus' is not of this machine; allowed are cpu"),
        (["--revision", "v1"], "--revision is of models on the Hub"),
    ],
)
def test_bad_arguments(recorded, words, message, capsys):
    assert main(["verify", str(recorded), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_model(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bert" / "processor_config.json").write_text("{}")
    for name, message in (("none", "does not exist"), ("empty", "no config.json"), ("bert", "of type 'bert'")):
        assert main(["verify", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_name_that_is_not_in_the_cache_while_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="fetching org/none failed "):
        download("org/none")


def test_json_holds_every_check(recorded, capsys):
    assert main(["verify", str(recorded), "--device", "cpu", "--dtype", "bfloat16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["agrees"] is True and printed["dtype"] == "bfloat16" and printed["recorded"]["dtype"] == "float32"
    text = next(check for check in printed["checks"] if check["name"] == "logits: text")
    assert text["result"] == AGREES and 0 < text["difference"] < text["tolerance"]


def test_recording_by_the_command(folder, capsys):
    (folder / verification.JSON_FILE).unlink()
    (folder / verification.TENSOR_FILE).unlink()
    assert main(["verify", str(folder), "--record"]) == 0
    assert read_recording(folder) is not None and "recorded" in capsys.readouterr().out


# ---- by a name on the Hub


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


def test_a_pickle_in_the_repository_is_told(pushed, capsys):
    add_commit(pushed, "org/name", pytorch_model__bin=b"anything")
    code, found = verified(capsys, "org/name")
    assert code == 1 and results(found)["files"] == "disagrees" and results(found)["weights"] == "not checked"
    assert "pytorch_model.bin is not of this model" in found["checks"][0]["notes"][0]


@pytest.mark.parametrize(
    ("words", "failure", "message"),
    [
        (["org/none"], None, "fetching org/none failed (RepositoryNotFoundError"),
        (["org/name", "--revision", "v9"], None, "fetching org/name failed (RevisionNotFoundError"),
        (["org/name"], {"status": 500}, "500"),
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
    assert code == 2 and "holds no config.json" in found["error"]


def test_no_connection(pushed, tmp_path, monkeypatch, capsys):
    hub_server.connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "other")
    code, found = verified(capsys, "org/name")
    assert code == 2 and "fetching org/name failed (ConnectError" in found["error"]


def logits_of(name):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    model = in_own_memory(model)  # the files differ, and so do the places of the weights in them
    with torch.no_grad():
        return model(**processor(text="What?", return_tensors="pt")).logits


def test_what_was_pushed_agrees_by_its_name(saved, hub, capsys):
    folder = saved[0]
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


def test_a_model_without_its_backbone_is_small_and_loads_by_name(saved, hub, tmp_path, capsys):
    """The backbone is fetched from the Hub by its name and commit."""
    from huggingface_hub import HfApi

    folder = saved[0]
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
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    api.upload_folder(repo_id="org/backbone", folder_path=other, commit_message="another")
    asked = len(hub.requests)
    assert main([*words, "--backbone-revision", "main"]) == 2
    assert "tensors of the backbone are not those of 'org/backbone'" in capsys.readouterr().err
    assert not any(method == "PUT" for method, *_ in hub.requests[asked:])
