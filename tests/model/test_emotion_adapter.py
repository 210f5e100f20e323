"""EmoAdapter: where the Enhancer enters, what the Supervisor reads, labels, and what comes out of generation."""

import pytest
import tiny
import torch
from chats import IMAGE, LONG_AUDIO, MIXED, SHORT_AUDIO, VIDEO, encode, text, trained_adapter, user
from huggingface_hub.errors import StrictDataclassError

from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.model.emotion_adapter import EmotionEnhancer, MediaTokens
from vaemotionllm.train.model import freeze_all_but, set_modes

LABELS = ["calm", "joy", "fear"]
EVERYWHERE = {"enhancer_layers": [0, 1], "emotion_labels": LABELS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"), **EVERYWHERE)


@pytest.fixture(scope="module")
def processor(folder):
    return VAEmotionLLMProcessor.from_pretrained(folder)


@pytest.fixture
def model(folder):
    return VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()


@torch.no_grad()
def test_the_enhancer_is_the_identity_until_it_is_trained_wherever_it_enters(model, processor):
    batch = encode(processor, MIXED)
    without = model(**batch, use_adapter=False).logits
    assert torch.equal(model(**batch).logits, without)
    trained_adapter(model)
    for layer in ("0", "1"):  # each place counts by itself
        up, other = (model.emotion_adapter.enhancers[name].up.weight for name in (layer, str(1 - int(layer))))
        kept = other.clone()
        other.zero_()
        changed = (model(**batch).logits - without).abs().amax((1, 2))  # (B,)
        assert (changed[:3] > 1e-4).all() and changed[3] < 1e-6  # a sample without media is left alone
        other.copy_(kept)
        assert up.abs().sum() > 0


@torch.no_grad()
def test_the_residual_sees_the_other_modality_of_its_own_sample_alone(model, processor):
    trained_adapter(model)
    one, two = user(IMAGE, SHORT_AUDIO, text("?")), user(VIDEO, LONG_AUDIO, text("?"))
    together, alone = model(**encode(processor, [one, two])), model(**encode(processor, [one]))
    length = alone.logits.shape[1]
    torch.testing.assert_close(together.logits[:1, -length:], alone.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.emotion_logits[:1], alone.emotion_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@torch.no_grad()
def test_the_enhancer_is_what_a_loop_over_tokens_gives(model, context, gate):
    config = VAEmotionLLMConfig(
        vlm_config=model.config.vlm_config, enhancer_rank=4, enhancer_context=context, enhancer_gate=gate
    )
    torch.manual_seed(0)
    enhancer = EmotionEnhancer(config).requires_grad_(False)
    enhancer.up.weight.normal_()
    width = enhancer.up.out_features
    tokens, is_audio = torch.randn(9, width), torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 1]).bool()
    sample = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])  # both, a picture, a sound
    for token, heard, row, found in zip(tokens, is_audio, sample, enhancer(tokens, MediaTokens(is_audio, sample, 3))):
        hidden = enhancer.down(torch.nn.functional.rms_norm(token, (width,))) + enhancer.modality.weight[int(heard)]
        others = tokens[(sample == row) & (is_audio != heard)]
        if context and len(others):
            hidden = hidden + enhancer.context(torch.nn.functional.rms_norm(others.mean(0), (width,)))
        hidden = torch.nn.functional.gelu(hidden)
        residual = enhancer.up(hidden) * (torch.sigmoid(enhancer.gate(hidden)) if gate else 1)
        torch.testing.assert_close(found, token + residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, processor, reentrant):
    trained_adapter(model)
    freeze_all_but(model, ["emotion_adapter"])
    batch = encode(processor, [user(IMAGE, SHORT_AUDIO, text("What?")), user(SHORT_AUDIO, text("And?"))])

    def gradients():
        model.zero_grad()
        set_modes(model, ["emotion_adapter"])
        output = model(**batch, use_cache=False)
        (output.logits.square().mean() + torch.nan_to_num(output.emotion_logits).sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert all(f"emotion_adapter.enhancers.{k}.up.weight" in expected for k in (0, 1))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(), expected)
    assert [type(layer).__name__ for layer in model.get_decoder().layers] == ["Qwen2_5_VLDecoderLayer"] * 2


@torch.no_grad()
def test_a_packed_batch_is_enhanced_as_a_padded_one(model, processor):
    trained_adapter(model)
    batch = encode(processor, MIXED)
    mask = batch["attention_mask"].bool()
    mask[:, 0] = False
    padded, packed = (model(**batch, response_mask=mask, packing=packing) for packing in (False, True))
    torch.testing.assert_close(packed.logits, padded.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed.emotion_logits, padded.emotion_logits, rtol=1e-4, atol=1e-4, equal_nan=True)


@torch.no_grad()
def test_each_modality_has_labels_where_the_sample_carries_it(model, processor):
    trained_adapter(model)
    output = model(**encode(processor, MIXED))
    assert output.emotion_logits.shape == (4, 3, 3) and output.emotion_logits.dtype == torch.float32
    present = ~torch.isnan(output.emotion_logits).any(-1)
    assert present.tolist() == [[True, False, False], [False, True, False], [True, True, True], [False] * 3]
    assert torch.equal(present, ~torch.isnan(output.valence))
    for column, modality in enumerate(("audio", "visual", "av")):
        found = output.of(modality)
        for values, every in zip(found, (output.valence, output.arousal, output.emotion_logits), strict=True):
            torch.testing.assert_close(values, every[:, column], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError):
        output.of("sound")
    off = model(**encode(processor, MIXED), use_adapter=False)
    assert off.emotion_logits is None
    with pytest.raises(ValueError, match="the adapter was off"):
        off.of("audio")
    model.set_emotion_labels(None)
    assert model(**encode(processor, MIXED)).of("av").emotion_logits is None
    model.set_emotion_labels(LABELS)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generate_returns_the_readings_of_the_prompt(model, processor, options):
    trained_adapter(model)
    batch = encode(processor, MIXED)
    expected = model(**batch)
    found = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **options)
    for name in ("valence", "arousal", "emotion_logits"):
        torch.testing.assert_close(found[name], getattr(expected, name), rtol=1e-4, atol=1e-5, equal_nan=True)
    plain = model.generate(**batch, max_new_tokens=3, do_sample=False, **options)
    assert torch.equal(plain, found.sequences)


def test_other_labels_keep_valence_and_arousal(model, processor, tmp_path):
    trained_adapter(model)
    batch = encode(processor, MIXED)
    with torch.no_grad():
        before = model(**batch)
        model.set_emotion_labels(LABELS)
        assert torch.equal(model(**batch).emotion_logits[0, 0], before.emotion_logits[0, 0])  # nothing to change
        model.set_emotion_labels(["one", "two"])
        after = model(**batch)
    torch.testing.assert_close(after.valence, before.valence, equal_nan=True)
    assert after.emotion_logits.shape == (4, 3, 2) and (after.emotion_logits[0, 0] == 0).all()
    model.set_emotion_labels(LABELS)
    trained_adapter(model)
    with torch.no_grad():
        before = model(**batch)
        model.set_emotion_labels(["new", "fear", "calm"])  # what stays keeps its heads
        after = model(**batch)
    torch.testing.assert_close(
        after.emotion_logits[0, 0], before.emotion_logits[0, 0][[0, 2, 0]] * torch.tensor([0, 1, 1])
    )
    model.set_emotion_labels(["one", "two"])
    model.save_pretrained(tmp_path)
    loaded = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.emotion_labels == ["one", "two"]
    model.set_emotion_labels(None)
    assert model(**batch).emotion_logits is None
    for wrong, words in ((["one", "one"], "emotion_labels is .*'one', 'one'"), ("manifest", "'emotion_labels'")):
        with pytest.raises((ValueError, StrictDataclassError), match=words):
            model.set_emotion_labels(wrong)


@pytest.mark.parametrize(
    "fields, words",
    [({"enhancer_layers": [-1]}, "enhancer_layers is"), ({"enhancer_layers": [0, 0]}, "allowed are different"),
     ({"emotion_labels": ["joy"]}, "at least two different")],
)  # fmt: skip
def test_fields_that_make_no_adapter_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        VAEmotionLLMConfig(**fields)


def test_a_layer_that_the_llm_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"enhancer_layers is \[2\].*from 0 \(before the LLM\) to 1"):
        tiny.make_vaemotionllm(tmp_path, enhancer_layers=[2])


def test_without_enhancer_the_supervisor_still_reads(tmp_path):
    folder = tiny.make_vaemotionllm(tmp_path, enhancer_layers=[], enhancer_gate=False)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    trained_adapter(model)
    batch = encode(VAEmotionLLMProcessor.from_pretrained(folder), MIXED)
    with torch.no_grad():
        output, off = model(**batch), model(**batch, use_adapter=False)
    assert torch.equal(output.logits, off.logits) and not torch.isnan(output.valence[2]).any()


def test_the_adapter_is_small_beside_a_full_size_backbone():
    from full_size import MAKERS, whisper_large_v3

    config = VAEmotionLLMConfig(vlm_config=MAKERS["Qwen/Qwen2.5-VL-7B-Instruct"](), audio_config=whisper_large_v3())
    with torch.device("meta"):
        model = VAEmotionLLMForConditionalGeneration(config)
    ours, backbone = (sum(p.numel() for p in part.parameters()) for part in (model.emotion_adapter, model.vlm))
    assert backbone > 8e9 and 0 < ours < 0.01 * backbone


@torch.no_grad()
def test_an_adapter_that_is_made_anew_has_the_form_of_its_fields(model, processor, tmp_path):
    trained_adapter(model)
    model.config.emotion_calibration = {"level": 0.9}
    batch = encode(processor, MIXED)
    backbone = model(**batch, use_adapter=False).logits
    model.reset_emotion_adapter(enhancer_layers=[1], enhancer_context=False, enhancer_rank=3)
    assert list(model.emotion_adapter.enhancers) == ["1"] and model.config.enhancer_rank == 3
    assert model.emotion_adapter.enhancers["1"].context is None and model.config.emotion_calibration is None
    assert model.config.emotion_labels == LABELS and model.config.supervisor_hidden_size == 8
    fresh = model(**batch)
    assert torch.equal(fresh.logits, backbone)  # untrained, it is the identity
    assert not fresh.valence.nan_to_num().any()
    model.save_pretrained(tmp_path)
    again = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.enhancer_layers == [1]
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    model.half().reset_emotion_adapter()
    assert {p.dtype for p in model.emotion_adapter.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"projector_stride": 2}, "'projector_stride' is no field to choose here; fields are enhancer_rank"),
        ({"enhancer_rank": 0}, "enhancer_rank is 0"),
        ({"enhancer_layers": [7]}, "enhancer_layers is"),
        ({"enhancer_context": "yes"}, "enhancer_context"),
    ],
)
def test_fields_that_no_adapter_can_take_leave_it_as_it_is(model, fields, words):
    before = {name: value.clone() for name, value in model.emotion_adapter.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        model.reset_emotion_adapter(**fields)
    assert before.keys() == model.emotion_adapter.state_dict().keys()
    assert model.config.enhancer_layers == [0, 1] and model.config.enhancer_rank == 4
