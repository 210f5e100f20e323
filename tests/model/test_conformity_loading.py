"""Saving and loading: shards, tied weights, dtypes, device maps, other vocabularies, quantisation."""

import json

import pytest
import torch
from conformity import MIXED, encode, greedy, load, make, new_tokens, steps
from rounding import in_own_memory
from safetensors import safe_open
from transformers import AutoModel
from transformers.quantizers.base import HfQuantizer

from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration

OURS = ("audio_projector", "emotion_adapter")  # what is neither the backbone nor the audio tower
TIED = {"qwen2_5_vl": True, "qwen3_vl": False, "llava_onevision": False}  # tests/helpers/tiny.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("qwen"), enhancer_layers=[0, 1])


@pytest.fixture(scope="module", params=TIED)
def of_family(request, tmp_path_factory):
    """A folder of each backbone family, and the family."""
    return make(tmp_path_factory.mktemp(request.param), request.param), request.param


def model_of(path, **options):
    return VAEmotionLLMForConditionalGeneration.from_pretrained(path, **options).eval()


@torch.no_grad()
def logits_of(model, inputs: dict) -> torch.Tensor:
    """(tokens, V) without padding."""
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def stored(path) -> dict[str, str]:
    """Name of each stored tensor and its file."""
    names: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            assert not names.keys() & set(tensors.keys())
            names.update(dict.fromkeys(tensors.keys(), file.name))
    return names


@pytest.mark.parametrize("shard_size", ["100KB", "5GB"])
def test_shards_and_tied_weights(of_family, tmp_path, shard_size):
    path, family = of_family
    model, processor = load(path)
    target = tmp_path / "saved"
    model.save_pretrained(target, max_shard_size=shard_size)
    names = stored(target)
    if shard_size == "5GB":
        assert set(names.values()) == {"model.safetensors"}
    else:
        assert len(set(names.values())) > 2
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == names
    # One copy of what is tied, and nothing left out. (Some names are those of older releases of transformers.)
    state = model.state_dict()
    assert len(names) == len(state) - TIED[family]
    assert any(name.endswith("lm_head.weight") for name in names) != TIED[family]
    again, info = type(model).from_pretrained(target, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    embeddings, head = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (embeddings is head) == TIED[family] == again.config.tie_word_embeddings
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    inputs = encode(processor, *MIXED)
    assert torch.equal(logits_of(in_own_memory(again.eval()), inputs), logits_of(in_own_memory(model), inputs))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_may_be_tied_or_untied_by_the_config(of_family, tmp_path, tied):
    config = VAEmotionLLMConfig.from_pretrained(of_family[0])
    config.tie_word_embeddings = tied
    model = VAEmotionLLMForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    for each in (model, model_of(tmp_path)):
        embeddings, head = each.get_input_embeddings().weight, each.get_output_embeddings().weight
        assert (embeddings is head) == torch.equal(embeddings, head) == tied
        assert torch.equal(head, model.get_output_embeddings().weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto", torch.bfloat16, None])
def test_the_dtype_is_the_one_that_was_asked_for(folder, tmp_path, dtype):
    model, processor = load(folder)
    inputs = encode(processor, *MIXED)
    reference = logits_of(model, inputs)
    if dtype == "auto":
        folder, expected = tmp_path / "saved", torch.bfloat16
        model.to(expected).save_pretrained(folder)
    else:
        expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    other = model_of(folder, **({} if dtype is None else {"dtype": dtype}))
    for name, parameter in other.named_parameters():
        # The small parts of ours are never rounded to float16.
        small = expected == torch.float16 and name.startswith(OURS)
        assert parameter.dtype == (torch.float32 if small else expected), name
    assert other.dtype == other.config.dtype == expected
    output = logits_of(other, inputs)
    assert output.dtype == expected
    tolerance = {torch.float32: 0.0, torch.float16: 0.02, torch.bfloat16: 0.15}[expected]
    assert (output.float() - reference).abs().max() <= tolerance * reference.abs().max()
    generated = other.generate(**inputs, max_new_tokens=2, min_new_tokens=2, return_dict_in_generate=True)
    assert generated.sequences.shape[1] == inputs["input_ids"].shape[1] + 2
    readings = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    assert torch.equal(generated.valence.isfinite(), readings) and generated.valence.dtype == torch.float32


@pytest.mark.parametrize("options", [
    {"device_map": "cpu"},
    {"device_map": "auto"},
    {"device_map": {"": "cpu"}},
    {"device_map": {"vlm": "cpu", "audio_tower": "cpu", "audio_projector": "cpu", "emotion_adapter": "cpu"}},
    {"device_map": "auto", "max_memory": {"cpu": "1GB"}},
    {"low_cpu_mem_usage": True},
], ids=["cpu", "auto", "all on one", "by part", "with a limit", "low_cpu_mem_usage"])  # fmt: skip
def test_device_maps(folder, options):
    model, processor = load(folder)
    inputs = encode(processor, *MIXED)
    other = model_of(folder, **options)
    assert torch.equal(logits_of(other, inputs), logits_of(model, inputs))
    assert torch.equal(other.generate(**inputs, max_new_tokens=3), model.generate(**inputs, max_new_tokens=3))


def test_parts_on_disk(folder, tmp_path):
    """accelerate reads them when their turn comes."""
    model, processor = load(folder)
    parts = {
        "vlm.model.visual": "cpu", "vlm.model.language_model": "disk", "vlm.lm_head": "disk", "audio_tower": "disk",
        "audio_projector": "disk", "emotion_adapter": "disk",
    }  # fmt: skip
    other = model_of(folder, device_map=parts, offload_folder=tmp_path / "offload")
    assert {parameter.device.type for parameter in other.parameters()} == {"cpu", "meta"}
    inputs = encode(processor, *MIXED)
    torch.testing.assert_close(logits_of(other, inputs), logits_of(model, inputs))
    generated = new_tokens(other.generate(**inputs, **steps(model, 4)), inputs)
    assert torch.equal(generated, greedy(model, inputs, 4))


def test_weights_that_a_folder_lacks_are_made_as_in_a_new_model(folder):
    config = VAEmotionLLMConfig.from_pretrained(folder)
    new = VAEmotionLLMForConditionalGeneration(config)
    filled = VAEmotionLLMForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    assert torch.equal(filled.audio_tower.embed_positions.weight, new.audio_tower.embed_positions.weight)
    for (name, made), other in zip(filled.named_parameters(), new.parameters()):
        assert bool(made.any()) == bool(other.any()), name
        if other.numel() > 500:
            torch.testing.assert_close(made.std(), other.std(), rtol=0.3, atol=1e-6)


def test_no_layer_is_split_over_devices(folder):
    model, _ = load(folder)
    layers = {type(layer).__name__ for layer in (model.get_decoder().layers[0], model.audio_tower.layers[0])}
    assert layers <= set(model._no_split_modules)


@pytest.mark.parametrize("size", [400, 266, 265, 200])
def test_another_size_of_vocabulary(of_family, tmp_path, size):
    """The placeholder of sound, 265, may lie within or beyond; nothing of it is read."""
    path, family = of_family
    model, processor = load(path)
    inputs = encode(processor, MIXED[0], MIXED[3])
    inputs = {name: value.clone() for name, value in inputs.items()}
    words = inputs["input_ids"] != processor.audio_token_id
    inputs["input_ids"][words] = inputs["input_ids"][words].clamp(max=199)
    before = logits_of(model, inputs)
    embeddings = model.resize_token_embeddings(size)
    assert embeddings is model.get_input_embeddings() and len(embeddings.weight) == size
    assert model.config.get_text_config().vocab_size == model.vlm.config.get_text_config().vocab_size == size
    after = logits_of(model, inputs)
    assert after.shape[-1] == size
    both = min(size, before.shape[-1])
    torch.testing.assert_close(after[:, :both], before[:, :both])
    assert (embeddings.weight is model.get_output_embeddings().weight) == TIED[family]
    generated = model.generate(**inputs, max_new_tokens=3)
    assert torch.equal(generated[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    model.save_pretrained(tmp_path / "resized")
    again = in_own_memory(model_of(tmp_path / "resized"))
    assert torch.equal(logits_of(again, inputs), logits_of(in_own_memory(model), inputs))


def test_quantizers_leave_the_head_and_the_small_parts_alone(folder):
    model, _ = load(folder)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    assert {"vlm.lm_head", *OURS} <= set(kept)


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_quantised_loading(folder, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(load_in_8bit=True)
    model, processor = load(folder)
    other = AutoModel.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()
    inputs = encode(processor, *MIXED)
    kinds = {name: type(parameter).__name__ for name, parameter in other.named_parameters()}
    changed = {name for name, kind in kinds.items() if kind != "Parameter"}
    assert any(name.startswith("vlm.model.language_model.layers") for name in changed)
    assert not any(name.startswith((*OURS, "vlm.lm_head")) for name in changed)
    reference, output = logits_of(model, inputs), logits_of(other, inputs).float()
    assert (output - reference).abs().max() < 0.1 * reference.abs().max()
    assert other.generate(**inputs, max_new_tokens=2).shape[0] == len(MIXED)
