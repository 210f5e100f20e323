"""LoRA on LLM and projector: the adapter folder in the hands of PEFT, against the start and the merged model."""

import copy
import json
import resource

import numpy as np
import pytest
import torch
from media_files import EMOTIONS
from peft import AutoPeftModel, PeftModel
from PIL import Image
from rounding import in_own_memory
from safetensors.torch import load_file
from tiny import FAMILIES, make_vaemotionllm
from training import make_setup, stage2_values, train
from transformers import AutoModel, AutoModelForImageTextToText

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.config_file import build_config
from vaemotionllm.train.config import Stage2Config
from vaemotionllm.train.lora import add_lora, merge_lora, save_adapter
from vaemotionllm.utils import RankError

PROJECTOR = {"lora": {"rank": 2, "projector": True}, "train_audio_projector": False, "train_audio_tower": False}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="module")
def runs(setup, tmp_path_factory):
    """name -> output_dir of a finished stage 2."""
    parts = setup[0].parent
    bolted = {
        "model": None, "vlm": str(parts / "qwen2_5_vl"), "audio": str(parts / "whisper"),
        "model_fields": {"projector_stride": 5}, "train_audio_projector": False, "train_audio_tower": False,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs")
    other_form = {"model_fields": {"enhancer_context": False, "enhancer_layers": [0, 1]}}
    for name, changes in {"whole": {}, "projector": PROJECTOR, "bolted": bolted, "formed": other_form}.items():
        train(stage2_values(*setup, folder / name, max_steps=4) | changes)
    return folder


def adapter_config(run):
    return json.loads((run / "adapter" / "adapter_config.json").read_text())


def start_of(run):
    """The model that a run started from, by what its adapter says."""
    config = adapter_config(run)
    if config["base_model_name_or_path"] is not None:
        fields = config["auto_mapping"]["from_pretrained"]
        return AutoModel.from_pretrained(config["base_model_name_or_path"], **fields).eval()
    return VAEmotionLLMForConditionalGeneration.from_backbone(**config["auto_mapping"]["from_backbone"]).eval()


def frozen(model):
    """The model, its weights frozen as PEFT freezes them: only then are its products the same, see rounding.py."""
    return model.requires_grad_(False)


def batch(processor):
    """Sound, picture, both and neither."""
    sound = {"type": "audio", "audio": np.random.default_rng(0).normal(0, 0.1, 16_000).astype("float32")}
    picture = {"type": "image", "image": Image.new("RGB", (56, 56), "red")}
    text = {"type": "text", "text": "Which emotion?"}
    turns = [[{"role": "user", "content": [*media, text]}] for media in ([sound], [picture], [picture, sound], [])]
    return processor.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )  # fmt: skip


@torch.no_grad()
def answers(model, inputs, **options):
    output = model(**inputs, **options)
    mask = inputs["attention_mask"].bool()
    found = {"logits": output.logits[mask], "valence": output.valence, "arousal": output.arousal}
    return found if output.emotion_logits is None else found | {"emotion_logits": output.emotion_logits}


def assert_close(found, expected, **tolerance):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# ---- the adapter folder


@pytest.mark.parametrize("name", ["whole", "projector", "bolted", "formed"])
def test_peft_makes_the_run_s_model_of_start_and_adapter(runs, name):
    run = runs / name
    inputs = batch(VAEmotionLLMProcessor.from_pretrained(run))
    start, merged = start_of(run), VAEmotionLLMForConditionalGeneration.from_pretrained(run).eval()
    expected = answers(merged, inputs)
    before = answers(frozen(copy.deepcopy(start)), inputs)
    assert (before["logits"] - expected["logits"]).abs().max() > 0.05, "nothing was learned, nothing to compare"
    model = PeftModel.from_pretrained(in_own_memory(start), run / "adapter").eval()
    assert_close(answers(model, inputs), expected, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        assert_close(answers(model, inputs), before, atol=0, rtol=0)
    assert_close(answers(model, inputs), expected, atol=1e-4, rtol=1e-4)  # and on again
    plain = model.merge_and_unload()
    assert type(plain) is VAEmotionLLMForConditionalGeneration
    found, wanted = plain.state_dict(), merged.state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@torch.no_grad()
def test_without_adapters_the_backbone_s_own_answers_are_bit_identical(setup, runs):
    start = in_own_memory(start_of(runs / "whole"))
    model = PeftModel.from_pretrained(start, runs / "whole" / "adapter").eval()
    backbone = AutoModelForImageTextToText.from_pretrained(setup[0].parent / "qwen2_5_vl").eval()
    # The tests' start is not the backbone that was bolted together, its weights were made to answer by what they see.
    backbone.load_state_dict(start_of(runs / "whole").vlm.state_dict())
    backbone = frozen(in_own_memory(backbone))
    processor = VAEmotionLLMProcessor.from_pretrained(runs / "whole")
    for content in ([], [{"type": "image", "image": Image.new("RGB", (56, 56), "blue")}]):
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}]
        inputs = processor.apply_chat_template(turn, tokenize=True, return_dict=True, return_tensors="pt")
        assert not torch.equal(model(**inputs, use_adapter=False).logits, backbone(**inputs).logits)
        with model.disable_adapter():
            assert torch.equal(model(**inputs, use_adapter=False).logits, backbone(**inputs).logits)


def test_the_folder_is_peft_s_and_says_what_it_starts_from(setup, runs):
    for name, parts in {
        "whole": ["audio_projector", "audio_tower", "emotion_adapter"],
        "projector": ["emotion_adapter"],
        "bolted": ["audio_projector", "emotion_adapter"],  # made anew, so no start holds it
    }.items():
        folder = runs / name / "adapter"
        assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        config = adapter_config(runs / name)
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
        assert config["modules_to_save"] == parts
        tensors = load_file(folder / "adapter_model.safetensors")
        assert {key.removeprefix("base_model.model.").split(".")[0] for key in tensors if "lora_" not in key} == {
            *parts
        }
    assert adapter_config(runs / "whole")["base_model_name_or_path"] == str(setup[0])
    config = adapter_config(runs / "bolted")
    assert config["base_model_name_or_path"] is None
    parts = setup[0].parent
    assert config["auto_mapping"]["from_backbone"] == {
        "vlm": str(parts / "qwen2_5_vl"), "audio": str(parts / "whisper"), "projector_stride": 5,
        "emotion_labels": sorted(EMOTIONS),
    }  # fmt: skip


def test_the_adapter_alone_loads_in_one_line(runs):
    run = runs / "projector"
    inputs = batch(VAEmotionLLMProcessor.from_pretrained(run))
    expected = answers(VAEmotionLLMForConditionalGeneration.from_pretrained(run).eval(), inputs)
    fields = adapter_config(run)["auto_mapping"]["from_pretrained"]
    for auto in (AutoPeftModel, AutoModel):
        found = answers(auto.from_pretrained(run / "adapter").eval(), inputs)
        assert_close(found, {name: expected[name] for name in found}, atol=1e-4, rtol=1e-4)
        assert set(expected) - set(found) == {"emotion_logits"}  # labels that its start does not have
    found = answers(AutoPeftModel.from_pretrained(run / "adapter", **fields).eval(), inputs)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_peft_goes_on_training_what_the_run_trained(runs, tmp_path):
    run = runs / "projector"
    model = PeftModel.from_pretrained(start_of(run), run / "adapter", is_trainable=True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".emotion_adapter.modules_to_save." in name for name in trained)
    assert any(".audio_projector.linear_1.lora_A." in name for name in trained)
    inputs = batch(VAEmotionLLMProcessor.from_pretrained(run))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels >= model.config.get_text_config().vocab_size] = -100  # the audio placeholder has no logit
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2), []
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(start_of(run), tmp_path).eval()
    assert_close(answers(frozen(again), inputs), answers(frozen(model).eval(), inputs), atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_takes_lora_on_llm_and_projector_alone(family, tmp_path):
    folder = make_vaemotionllm(tmp_path, vlm=family)
    model = frozen(VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval())
    inputs = batch(VAEmotionLLMProcessor.from_pretrained(folder))
    plain = answers(model, inputs)
    add_lora(model, {"rank": 3, "projector": True})
    assert_close(answers(model, inputs), plain, atol=0, rtol=0)  # the identity at first
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    layers = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert {layer for layer in layers if not layer.startswith(f"{decoder}.layers.")} == {
        "audio_projector.linear_1", "audio_projector.linear_2",
    }  # fmt: skip
    assert len(layers) == 2 * 7 + 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0), std=0.05)
    adapted = answers(frozen(model), inputs)
    assert (adapted["logits"] - plain["logits"]).abs().max() > 1e-2
    merged = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    merged.load_state_dict(merge_lora(model, model.state_dict()))
    assert_close(answers(merged, inputs), adapted, atol=1e-4, rtol=1e-4)
    config = build_config(Stage2Config, stage2_values(folder, tmp_path / "m.jsonl", tmp_path / "run"))
    save_adapter(model, model.state_dict(), tmp_path / "adapter", config, [])
    found = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "adapter").eval()
    assert_close(answers(frozen(found), inputs), adapted, atol=0, rtol=0)


# ---- training


def test_lora_on_the_projector_trains_it_and_leaves_its_own_weights(setup, runs):
    before, after = (load_file(folder / "model.safetensors") for folder in (setup[0], runs / "projector"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if name.startswith("audio_")} == {
        "audio_projector.linear_1.weight", "audio_projector.linear_2.weight",
    }  # fmt: skip
    # A checkpoint holds LoRA and the EmoAdapter, not the projector's weights.
    held = load_file(runs / "projector" / "checkpoint-4" / "trainable.safetensors")
    in_projector = [name for name in held if name.startswith("audio_projector.")]
    assert len(in_projector) == 4 and all(".lora_" in name for name in in_projector)
    assert all(".lora_" in name or name.startswith("emotion_adapter.") for name in held)
    # What is merged is W + alpha / rank * B A.
    a, b = (held[f"audio_projector.linear_2.lora_{half}.default.weight"] for half in "AB")
    expected = before["audio_projector.linear_2.weight"] + 2 * (b @ a)
    torch.testing.assert_close(after["audio_projector.linear_2.weight"], expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": {"projector": True}}, ["lora.projector", "train_audio_projector=false"]),
        ({"lora": {"projector": "maybe"}}, ["lora", "'maybe'", "valid boolean"]),
        (PROJECTOR | {"model": None, "vlm": "v", "audio": "a"}, ["`model` of a stage 1"]),
        ({"lora": {"rang": 2}}, ["lora", "rang: Extra inputs"]),
        ({"lora": {"rank": 0}}, ["lora", "rank: ", "greater than 0"]),
        ({"lora": {"alpha": -1}}, ["lora", "-1"]),
        ({"lora": {"dropout": 1}}, ["lora", "dropout: ", "less than 1"]),
        ({"lora": {"target_modules": "q_proj"}}, ["lora", "'q_proj'", "valid list"]),
        ({"lora": {"target_modules": []}}, ["lora", "target_modules: ", "at least 1"]),
        ({"lora": 8}, ["lora", "8", "valid dictionary"]),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, change, words):
    with pytest.raises(InputError) as error:
        build_config(Stage2Config, stage2_values("model", "manifest", tmp_path) | change)
    for word in words:
        assert word in str(error.value)


def test_a_layer_that_the_llm_lacks_is_refused_by_name(setup, tmp_path):
    # `out_proj` is a layer of the audio tower, and `proj` the end of other names.
    for names in (["q_proj", "out_proj"], ["proj"]):
        with pytest.raises(InputError, match="lora.target_modules.*layers of this LLM are ..down_proj', 'gate_proj"):
            train(stage2_values(*setup, tmp_path / "run", lora={"target_modules": names}))
        assert not (tmp_path / "run").exists()


def test_a_disk_too_full_for_the_adapter_is_told_and_nothing_half_written_stays(setup, runs, tmp_path):
    run, whole = tmp_path / "run", runs / "whole" / "adapter" / "adapter_model.safetensors"
    values = stage2_values(*setup, run, max_steps=4, save_strategy="no")  # no checkpoint, which would be larger
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 2, hard))
    try:
        with pytest.raises(RankError, match="cannot write final in .*GiB are free there.*run the same command"):
            train(values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in run.iterdir() if path.is_dir()]
    assert train(values) == "trained"
    assert (run / "adapter" / whole.name).read_bytes() == whole.read_bytes()
