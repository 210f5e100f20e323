"""Loading: formats, config fields and files that are wrong or not there; what a caller asks for."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vaemotionllm import InputError, VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main
from vaemotionllm.model.configuration_vaemotionllm import FORMAT_VERSION
from vaemotionllm.model.inputs import folder_or_hub_name
from vaemotionllm.model.loading import check_model_folder, load_model, load_processor

LABELS = ["calm", "joyful", "sad"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp("saved"), emotion_labels=LABELS)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def change_config(folder, *removed, **fields):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in removed}))


def change_weights(folder, change):
    """`change` gets the dict of tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_header(folder, name, shape):
    """Says another shape of a tensor, over the same bytes."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[name]["shape"] = shape
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def shard(folder):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")


@pytest.mark.parametrize("auto", [AutoConfig, AutoModel, VAEmotionLLMForConditionalGeneration])
def test_a_newer_format_says_what_to_upgrade(folder, auto):
    change_config(folder, format_version=FORMAT_VERSION + 1, field_of_the_future=3)
    text = (
        rf"format_version {FORMAT_VERSION + 1} and this code reads up to {FORMAT_VERSION}: .*pip install -U vaemotion"
    )
    with pytest.raises(ValueError, match=text):
        auto.from_pretrained(folder)


def test_a_folder_from_before_there_was_a_format_loads_and_is_saved_with_it(folder, tmp_path):
    assert json.loads((folder / "config.json").read_text())["format_version"] == FORMAT_VERSION
    change_config(folder, *(name for name in VAEmotionLLMConfig.__annotations__ if name.startswith("backbone_")))
    change_config(folder, "format_version")
    model = AutoModel.from_pretrained(folder)
    assert model.config.format_version == FORMAT_VERSION and model.config.backbone_included
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["format_version"] == FORMAT_VERSION


def test_commands_get_errors_of_the_config_as_one_line(folder):
    for fields, text in (
        ({"format_version": FORMAT_VERSION + 1}, "pip install -U vaemotionllm"),
        ({"projector_stride": "four"}, "'projector_stride' expected int, got str"),
    ):
        shutil.copy(folder / "config.json", folder / "good.json")
        change_config(folder, **fields)
        with pytest.raises(InputError, match=f"^the model '{folder}' cannot be loaded: [^\n]*{text}[^\n]*$"):
            load_model(str(folder))
        shutil.move(folder / "good.json", folder / "config.json")


def test_fields_of_the_library_are_none_of_ours_and_pass(folder):
    change_config(
        folder, use_cache=False, pad_token_id=0, output_hidden_states=True, torch_dtype="float32", num_labels=3
    )
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    assert config.output_hidden_states and config.num_labels == 3
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_arguments_of_the_config_classes_keep_their_meaning(folder):
    config, unused = AutoConfig.from_pretrained(folder, enhancer_rank=2, nothing=1, return_unused_kwargs=True)
    assert config.enhancer_rank == 2 and unused == {"nothing": 1}
    assert not hasattr(AutoConfig.from_pretrained(folder, nothing=1), "nothing")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_a_shard(folder):
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def cut_a_shard(folder):
    shard(folder)
    file = sorted(folder.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:100])


def garble_the_index(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')


UP = "vlm.model.layers.0.mlp.up_proj.weight"
DAMAGE = {
    "cut": (cut, r"the weight file .*model.safetensors is cut off or altered"),
    "garbage": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 1000),
        r"the weight file .*model.safetensors is cut off or altered",
    ),
    "sizes": (lambda folder: change_header(folder, UP, [3, 5]), "model.safetensors is cut off or altered"),
    "shard missing": (drop_a_shard, r"model-00002-of-0000\d.safetensors is cut off or altered, or not there"),
    "shard cut": (cut_a_shard, r"model-00002-of-0000\d.safetensors is cut off or altered"),
    "index": (garble_the_index, "model.safetensors.index.json is no index of weights"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_weights_that_are_damaged_are_named(folder, kind):
    change, text = DAMAGE[kind]
    change(folder)
    for load in (AutoModel.from_pretrained, lambda path: load_model(str(path))):
        with pytest.raises(InputError, match=f"the model '{folder}' cannot be loaded: .*{text}"):
            load(folder)


@pytest.mark.parametrize(
    "change",
    [lambda folder: change_header(folder, UP, [32, 48]), lambda folder: change_config(folder, enhancer_rank=8)],
    ids=["weights", "config"],
)
def test_weights_of_other_shapes_are_refused(folder, change):
    change(folder)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(InputError, match=f"'{folder}' cannot be loaded"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(InputError, match="safetensors alone"):
        AutoModel.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize(
    "name",
    [UP, "audio_tower.conv1.weight", "audio_projector.linear_1.bias", "emotion_adapter.supervisor.labels.0.bias"],
)
def test_a_weight_that_is_not_there_is_an_error_and_no_random_number(folder, name):
    change_weights(folder, lambda tensors: tensors.pop(name))
    key = name.replace("vlm.model.", "vlm.model.language_model.")
    for auto in (AutoModel, AutoModelForImageTextToText):
        with pytest.raises(InputError, match=rf"1 of its weights are not there, {key} among them, .* random numbers"):
            auto.from_pretrained(folder)
    model, info = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert info["missing_keys"] == {key} and model.get_parameter(key).isfinite().all()


def test_what_the_caller_gives_in_another_form_starts_again(saved, folder):
    whole = AutoModel.from_pretrained(saved)
    calls = {
        "emotion_adapter.supervisor.labels.": {"emotion_labels": None},
        "emotion_adapter.enhancers.1.": {"enhancer_layers": [0, 1]},
    }
    for new, fields in calls.items():
        model, info = AutoModel.from_pretrained(saved, output_loading_info=True, **fields)
        found = info["missing_keys"] | info["unexpected_keys"]
        assert found and all(key.startswith(new) for key in found)
        assert torch.equal(model.audio_projector.boundary, whole.audio_projector.boundary)
        VAEmotionLLMForConditionalGeneration.from_pretrained(saved, **fields)
    change_weights(folder, lambda tensors: tensors.pop("audio_projector.boundary"))
    with pytest.raises(InputError, match="1 of its weights are not there, audio_projector.boundary"):
        AutoModel.from_pretrained(folder, enhancer_layers=[0, 1])


def test_the_report_of_loading_is_the_librarys(saved):
    model, info = VAEmotionLLMForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, VAEmotionLLMForConditionalGeneration) and not model.training
    assert set(info) >= {"missing_keys", "unexpected_keys", "mismatched_keys"} and not any(info.values())
    state_dict = model.state_dict()
    loaded = VAEmotionLLMForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state_dict)
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    "file", ["processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_file_of_the_processor_that_is_not_there_is_named(folder, file):
    (folder / file).unlink()
    for load in (AutoProcessor.from_pretrained, VAEmotionLLMProcessor.from_pretrained, load_processor):
        with pytest.raises(InputError, match=f"{folder} holds no {file}"):
            load(str(folder))


@pytest.mark.parametrize(
    "command",
    [
        "verify {}",
        "predict a.wav --model {}",
        "evaluate-emotion --model {} --out out.json",
        "inspect --manifest m.jsonl --model {}",
        "init --vlm {} --audio openai/whisper-small --out new",
        "init --vlm Qwen/Qwen2.5-VL-3B-Instruct --audio {} --out new",
        "train --config stage2_nano output_dir=out manifest=m.jsonl model={}",
        "plan --config stage1_nano vlm={} audio=openai/whisper-small",
    ],
)
def test_a_folder_that_is_not_there_is_no_name_on_the_hub(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert main(command.format("runs/typo").split()) == 2
    error = capsys.readouterr().err
    assert "typo does not exist" in error and "OWNER/NAME" in error and "cannot" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("word", ["model=./typo", "manifest=typo.jsonl", "stage=typo"])
def test_a_mistyped_word_of_a_training_waits_for_no_torch(word):
    code = "import sys; from vaemotionllm.cli.main import main; code = main(sys.argv[1:])"
    code += "; sys.exit(9 if 'torch' in sys.modules else code)"
    words = ["train", "--config", "stage2_nano", word]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "typo" in done.stderr


def test_an_error_names_the_command_that_makes_what_is_not_there(folder, tmp_path):
    with pytest.raises(InputError, match="`vaemotionllm train`, `vaemotionllm init`"):
        check_model_folder(tmp_path)
    (tmp_path / "run/checkpoint-2").mkdir(parents=True)
    with pytest.raises(InputError, match=f"vaemotionllm export {tmp_path / 'run'} --out"):
        check_model_folder(tmp_path / "run")
    change_config(folder, model_type="qwen2_5_vl")
    with pytest.raises(InputError, match=f"vaemotionllm init --vlm {folder} --audio"):
        check_model_folder(folder)


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_or_hub_name("org/model") == "org/model"
    (tmp_path / "org/model").mkdir(parents=True)
    assert folder_or_hub_name("org/model") == "org/model"
    assert folder_or_hub_name("~/org/model") == str(tmp_path / "org/model")
    for name in ("typo", "org/typo", "./typo", "~/typo", "/typo", "org/a/typo", "other/a/typo"):
        with pytest.raises(InputError, match="typo does not exist; .* OWNER/NAME on the Hub"):
            folder_or_hub_name(name)
