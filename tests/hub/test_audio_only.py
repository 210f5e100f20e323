"""A model saved without its backbone: what is written, what is fetched, and every way in which the two do not fit."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.hub.push import leave_out_backbone
from vaemotionllm.model.checkpoint import Backbone, Weights, fingerprint
from vaemotionllm.model.loading import load_model

COMMITS = ["0123456789abcdef0123456789abcdef01234567", "76543210fedcba9876543210fedcba9876543210"]
FIELDS = dict(projector_stride=10, enhancer_rank=4, supervisor_hidden_size=8)
Model = VAEmotionLLMForConditionalGeneration


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def whole(parts):
    return tiny.make_vaemotionllm(parts)


@pytest.fixture(scope="module")
def alone(whole, parts):
    tiny.write_audio_only(whole, parts / "alone")
    return parts / "alone"


@pytest.fixture
def hub(parts, whole, tmp_path, monkeypatch):
    """The cache of a Hub with the backbone `org/vlm`: at its first commit as it was, at its second trained on."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    add_to_cache(tmp_path / "hub", parts / "qwen2_5_vl", COMMITS[0])
    second = add_to_cache(tmp_path / "hub", parts / "qwen2_5_vl", COMMITS[1])
    change(second, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].add_(1e-3))
    return tmp_path / "hub"


def add_to_cache(cache: Path, folder: Path, commit: str) -> Path:
    """As the client leaves a repository in its cache; `main` is the commit that was added last."""
    repository = cache / "models--org--vlm"
    snapshot = shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def change(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_whole(model, processor, folder, **kwargs):
    model.save_pretrained(folder, **kwargs)
    AutoProcessor.from_pretrained(processor).save_pretrained(folder)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_equal(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_saved_alone_and_its_backbone_are_the_whole_model(family, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "_renamed", lambda self: pytest.fail("names are the same: nothing is to be loaded"))
    folder = tiny.make_vaemotionllm(tmp_path, family)
    model = Model.from_pretrained(folder)
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.save_pretrained(folder)
    model.save_pretrained(tmp_path / "saved", audio_only=True)
    assert model.config.backbone_included and model.config.backbone_fingerprint is None
    save_whole(model, folder, tmp_path / "sharded", max_shard_size="100KB")
    tiny.write_audio_only(folder, tmp_path / "written")
    tiny.write_audio_only(tmp_path / "sharded", tmp_path / "of_shards")
    for name in ("saved", "written", "of_shards"):
        names = set(safe_open(tmp_path / name / "model.safetensors", "pt").keys())
        assert names == {key for key in model.state_dict() if not key.startswith("vlm.")}
        config = config_of(tmp_path / name)
        assert config["backbone_included"] is False and config["backbone_name"] == str(tmp_path / family)
        assert config == {**config_of(tmp_path / "saved"), "auto_map": config["auto_map"]}
        loaded, info = AutoModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values())
        assert_equal(loaded, model)
        assert loaded.generation_config.repetition_penalty == 1.5 and not loaded.training
        assert loaded.config.backbone_included and loaded.name_or_path == str(tmp_path / name)


def test_all_files_but_the_weights_stay(whole, alone):
    names = {file.name for file in whole.iterdir()}
    assert {file.name for file in alone.iterdir()} == names
    for name in names - {"model.safetensors", "config.json"}:
        assert (alone / name).read_bytes() == (whole / name).read_bytes()
    assert isinstance(AutoProcessor.from_pretrained(alone), VAEmotionLLMProcessor)


def test_links_are_replaced_and_what_they_lead_to_stays(whole, tmp_path):
    """As `push` has them: weights may be gigabytes."""
    folder, weights = Path(shutil.copytree(whole, tmp_path / "linked")), (whole / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(whole / "model.safetensors")
    leave_out_backbone(folder)
    assert (whole / "model.safetensors").read_bytes() == weights
    assert not any(name.startswith("vlm.") for name in load_file(folder / "model.safetensors"))


def test_dtype_attention_and_device_map_hold_for_the_whole(whole, alone):
    arguments = dict(dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu", emotion_labels=None)
    torch.manual_seed(0)
    loaded = AutoModel.from_pretrained(alone, **arguments)
    torch.manual_seed(0)
    assert_equal(loaded, AutoModel.from_pretrained(whole, **arguments))
    assert loaded.dtype == torch.bfloat16
    layers = loaded.get_decoder().layers[0].self_attn, loaded.audio_tower.layers[0].self_attn
    assert [layer.config._attn_implementation for layer in layers] == ["eager", "eager"]
    embedding = loaded.get_input_embeddings().weight
    assert loaded.get_output_embeddings().weight is embedding, "tied weights stay tied"


def test_an_adapter_of_peft_finds_its_model_whole(alone, tmp_path):
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    tuned = get_peft_model(AutoModel.from_pretrained(alone), lora).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[20, 30, 40]])
    expected = tuned(input_ids=ids).logits
    for model in (
        AutoModel.from_pretrained(tmp_path / "adapter"),
        PeftModel.from_pretrained(AutoModel.from_pretrained(alone), tmp_path / "adapter"),
    ):
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
    with pytest.raises(InputError, match="was saved without its backbone: load it by AutoModel"):
        Model.from_pretrained(tmp_path / "adapter")


def test_offloading_to_the_disk(tmp_path):
    places = {"vlm": "disk", "audio_tower": "cpu", "audio_projector": "cpu", "emotion_adapter": "cpu"}
    untied = tiny.make_vaemotionllm(tmp_path, "qwen3_vl")
    tiny.write_audio_only(untied, tmp_path / "alone")
    model = AutoModel.from_pretrained(tmp_path / "alone", device_map=places, offload_folder=tmp_path / "offload")
    ids = torch.tensor([[20, 30, 40]])
    torch.testing.assert_close(model(input_ids=ids).logits, AutoModel.from_pretrained(untied)(input_ids=ids).logits)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        model.save_pretrained(tmp_path / "out", audio_only=True)


def test_a_model_loaded_this_way_is_saved_whole(whole, alone, tmp_path):
    model = AutoModel.from_pretrained(alone)
    model.save_pretrained(tmp_path / "whole")
    assert config_of(tmp_path / "whole")["backbone_included"]
    assert_equal(Model.from_pretrained(tmp_path / "whole"), Model.from_pretrained(whole))
    assert {n: t.tolist() for n, t in load_file(tmp_path / "whole" / "model.safetensors").items()} == {
        n: t.tolist() for n, t in load_file(whole / "model.safetensors").items()
    }


def test_our_own_weights_must_all_be_there(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "alone")
    change(folder, lambda tensors: tensors.pop("audio_projector.boundary"))
    with pytest.raises(InputError, match="1 of its weights are not there, audio_projector.boundary among them"):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"model.safetensors is cut off or altered"):
        AutoModel.from_pretrained(folder)


def test_a_backbone_that_was_trained_is_not_left_out(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "trained")
    change(folder, lambda tensors: tensors["vlm.model.layers.0.self_attn.q_proj.weight"].view(-1)[7:8].add_(1e-3))
    text = r"1 of 56 tensors of the backbone are not those of .*, vlm.model.layers.0.self_attn.q_proj.weight .*LoRA"
    with pytest.raises(InputError, match=text):
        tiny.write_audio_only(folder, tmp_path / "out")
    with pytest.raises(InputError, match="1 of 56 tensors .*model.layers.0.self_attn.q_proj.weight among"):
        Model.from_pretrained(folder).save_pretrained(tmp_path / "out", audio_only=True)
    assert "vlm.model.norm.weight" in load_file(tmp_path / "out" / "model.safetensors"), "nothing was changed"


def test_what_cannot_be_written_alone_is_told(whole, alone, tmp_path):
    with pytest.raises(InputError, match="holds no weights of its backbone already"):
        tiny.write_audio_only(alone, tmp_path / "out")
    nameless = shutil.copytree(whole, tmp_path / "nameless")
    (nameless / "config.json").write_text(json.dumps(config_of(whole) | {"backbone_name": None}))
    with pytest.raises(InputError, match="names no backbone"):
        tiny.write_audio_only(nameless, tmp_path / "out")
    tiny.write_audio_only(nameless, tmp_path / "out", backbone=config_of(whole)["backbone_name"])
    assert_equal(AutoModel.from_pretrained(tmp_path / "out"), Model.from_pretrained(whole))


def test_a_backbone_that_is_gone_or_another_is_told(alone, parts, tmp_path):
    other = shutil.copytree(parts / "qwen2_5_vl", tmp_path / "other")
    change(other, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].add_(1e-3))
    with pytest.raises(InputError, match=f"the weights of '{other}' are not those that it was trained with"):
        AutoModel.from_pretrained(alone, backbone_name=str(other))
    loaded = AutoModel.from_pretrained(alone, backbone_name=str(other), backbone_fingerprint=None)
    trained = loaded.get_decoder().layers[1].mlp.up_proj.weight
    assert torch.equal(trained, load_file(other / "model.safetensors")["model.layers.1.mlp.up_proj.weight"])
    smaller = tiny.make_vlm("qwen2_5_vl", tmp_path)
    change(smaller, lambda tensors: tensors.update({"model.norm.weight": torch.ones(16)}))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(alone, backbone_name=str(smaller), backbone_fingerprint=None)
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"the backbone '{other}' cannot be read: .* cut off or altered"):
        AutoModel.from_pretrained(alone, backbone_name=str(other))
    (other / "model.safetensors").unlink()
    folder = shutil.copytree(alone, tmp_path / "alone")
    (folder / "config.json").write_text(json.dumps(config_of(alone) | {"backbone_name": str(other)}))
    with pytest.raises(InputError, match=f"the backbone '{other}' cannot be read: .* holds no model.safetensors"):
        load_model(str(folder))


def test_a_backbone_on_the_hub_is_fetched_at_its_commit(hub, parts, whole, tmp_path, monkeypatch):
    (hub / "models--org--vlm" / "refs" / "main").write_text(COMMITS[0])
    torch.manual_seed(2)
    model = Model.from_backbone("org/vlm", parts / "whisper", **FIELDS)
    assert (model.config.backbone_name, model.config.backbone_revision) == ("org/vlm", COMMITS[0])
    model.save_pretrained(tmp_path / "alone", audio_only=True)
    (hub / "models--org--vlm" / "refs" / "main").write_text(COMMITS[1])  # the backbone is trained on
    assert_equal(AutoModel.from_pretrained(tmp_path / "alone"), model)
    with pytest.raises(InputError, match=rf"'org/vlm' at revision '{COMMITS[1]}' are not those that it was trained"):
        AutoModel.from_pretrained(tmp_path / "alone", backbone_revision=COMMITS[1])
    with pytest.raises(InputError, match="'org/vlm' at revision 'v9' cannot be read: .* backbone_revision"):
        AutoModel.from_pretrained(tmp_path / "alone", backbone_revision="v9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=f"'org/vlm' at revision '{COMMITS[0]}' cannot be read"):
        AutoModel.from_pretrained(tmp_path / "alone")
    assert_equal(AutoModel.from_pretrained(tmp_path / "alone", cache_dir=hub, local_files_only=True), model)


def test_a_folder_is_written_against_a_backbone_on_the_hub(hub, whole, tmp_path):
    with pytest.raises(InputError, match="1 of 56 tensors .* 'org/vlm'"):
        tiny.write_audio_only(whole, tmp_path / "out", backbone="org/vlm")
    tiny.write_audio_only(whole, tmp_path / "out", backbone="org/vlm", revision=COMMITS[0])
    config = config_of(tmp_path / "out")
    assert (config["backbone_name"], config["backbone_revision"]) == ("org/vlm", COMMITS[0])
    assert_equal(AutoModel.from_pretrained(tmp_path / "out"), Model.from_pretrained(whole))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_backbone_under_other_names_or_of_another_dtype_is_the_same_backbone(family, tmp_path):
    """Files on the Hub have the names of the release that wrote them; a model in bfloat16 may come from float32."""
    vlm, audio = tiny.make_vlm(family, tmp_path), tiny.make_audio("whisper", tmp_path)
    renamed = AutoModelForImageTextToText.from_pretrained(vlm)
    before = set(Weights([vlm / "model.safetensors"]))
    renamed.save_pretrained(vlm, save_original_format=False)
    assert before != set(Weights([vlm / "model.safetensors"]))
    model = Model.from_backbone(vlm, audio, dtype=torch.bfloat16, **FIELDS)
    processor = VAEmotionLLMProcessor.from_backbone(str(vlm), str(audio), projector_stride=10)
    processor.save_pretrained(tmp_path / "processor")
    save_whole(model, tmp_path / "processor", tmp_path / "whole")
    tiny.write_audio_only(tmp_path / "whole", tmp_path / "alone")
    model.save_pretrained(tmp_path / "saved", audio_only=True)
    for name in ("alone", "saved"):
        assert_equal(AutoModel.from_pretrained(tmp_path / name), model)


def test_the_fingerprint_is_of_the_tensors_and_not_of_the_files(parts, whole, tmp_path):
    tensors = load_file(parts / "qwen2_5_vl" / "model.safetensors")
    reference = fingerprint(Weights([parts / "qwen2_5_vl" / "model.safetensors"]))
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, tmp_path / f"{number}.safetensors")
    assert fingerprint(Weights(sorted(tmp_path.iterdir()))) == reference == fingerprint(tensors)
    name = "model.layers.0.mlp.up_proj.weight"
    for other in (tensors[name].half(), tensors[name].T.contiguous(), tensors[name] * 1.01):
        assert fingerprint({**tensors, name: other}) != reference
