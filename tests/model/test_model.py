"""The model: identity with its backbone, mixed batches, generation, saving and loading."""

import numpy as np
import pytest
import tiny
import torch
from chats import IMAGE, LONG_AUDIO, MIXED, SHORT_AUDIO, encode, text, trained_adapter, user
from rounding import in_own_memory
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.data.collator import ConversationRenderer, build_inputs
from vaemotionllm.train.model import freeze_all_but, set_modes


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def model(folder):
    return VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return VAEmotionLLMProcessor.from_pretrained(folder)


@pytest.mark.parametrize("index", [1, 3], ids=["visual", "text"])
def test_without_audio_and_adapter_the_logits_are_the_backbones_bit_for_bit(folder, family, processor, index):
    model = in_own_memory(VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval())
    trained_adapter(model)
    backbone = in_own_memory(AutoModelForImageTextToText.from_pretrained(folder.parent / family).eval())
    inputs = encode(processor, MIXED[index : index + 1])
    with torch.no_grad():
        expected = backbone(**inputs).logits
        assert torch.equal(model(**inputs, use_adapter=False).logits, expected)
        changed = model(**inputs, use_adapter=True).logits
        # Text alone has no token that the Enhancer touches; a picture has.
        assert torch.equal(changed, expected) == (index == 3)
        assert torch.equal(
            model.generate(**inputs, use_adapter=False, max_new_tokens=4),
            backbone.generate(**inputs, max_new_tokens=4),
        )


def test_a_loss_is_the_models_or_the_callers(model, processor):
    inputs = encode(processor, MIXED)
    mask = inputs["attention_mask"].bool()
    with pytest.raises(ValueError, match="labels are not given with one"):
        model(**inputs, labels=inputs["input_ids"], response_mask=mask)
    with pytest.raises(ValueError, match="response_fn needs a response_mask"):
        model(**inputs, response_fn=lambda states, head: {})


def test_the_adapter_is_the_identity_at_initialisation(model, processor):
    inputs = encode(processor, MIXED)
    with torch.no_grad():
        with_adapter, without = model(**inputs, use_adapter=True), model(**inputs, use_adapter=False)
    assert torch.equal(with_adapter.logits, without.logits)
    assert without.valence is None
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)  # paths of MIXED
    for reading in (with_adapter.valence, with_adapter.arousal):
        assert torch.equal(~reading.isnan(), expected)
        assert (reading[expected] == 0).all()


def test_a_mixed_left_padded_batch_gives_what_each_sample_alone_gives(folder, processor):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    trained_adapter(model)
    batch = encode(processor, MIXED)
    assert batch["attention_mask"][:, 0].min() == 0, "the batch must be padded for this test to say something"
    with torch.no_grad():
        together = model(**batch)
        generated = model.generate(**batch, max_new_tokens=6, do_sample=False)
        for row, conversation in enumerate(MIXED):
            single = encode(processor, [conversation])
            alone = model(**single)
            length = single["input_ids"].shape[1]
            torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.valence[row], alone.valence[0], rtol=1e-4, atol=1e-5, equal_nan=True)
            tokens = model.generate(**single, max_new_tokens=6, do_sample=False)[0, length:]
            assert generated[row, -6:][: len(tokens)].tolist() == tokens.tolist()


def test_the_model_hears(model, processor):
    """Other sound, other logits; the same sound, the same."""
    first, second = encode(processor, [user(SHORT_AUDIO, text("What?"))]), None
    other = {"type": "audio", "audio": np.sin(np.arange(9_000) * 0.3).astype(np.float32)}
    second = encode(processor, [user(other, text("What?"))])
    assert torch.equal(first["input_ids"], second["input_ids"])
    with torch.no_grad():
        assert not torch.allclose(model(**first).logits, model(**second).logits)


def test_response_mask_gives_the_logits_that_predict_the_marked_tokens(model, processor):
    inputs = encode(processor, MIXED)
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[0, -3:] = mask[2, -1] = True
    with torch.no_grad():
        logits = model(**inputs).logits
        picked = model(**inputs, response_mask=mask).logits
    expected = torch.cat([logits[0, -4:-1], logits[2, -2:-1]])
    torch.testing.assert_close(picked, expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_part_of_ours_and_labels_give_a_loss(folder, processor):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    trained_adapter(model)
    inputs = encode(processor, MIXED)
    output = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    (output.loss + output.valence.nansum() + output.arousal.nansum()).backward()
    parts = {"audio_tower": model.audio_tower, "projector": model.audio_projector, "adapter": model.emotion_adapter}
    for name, part in parts.items():
        without = [
            key for key, parameter in part.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        assert not without, f"{name}: no gradient reaches {without}"
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in part.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_keeps_frozen_towers_out_of_the_backward_pass(folder, processor, reentrant):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    freeze_all_but(model, ["audio_projector"])
    batch = encode(processor, [user(IMAGE, SHORT_AUDIO, text("What?"))])
    vision = getattr(model.vlm.model, "visual", None) or model.vlm.model.vision_tower
    outputs = []
    for tower in (model.audio_tower, vision):
        tower.register_forward_hook(lambda module, args, output: outputs.append(output.last_hidden_state))

    def gradients():
        model.zero_grad()
        set_modes(model, ["audio_projector"])
        model(**batch, use_adapter=False, use_cache=False).logits.sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(), expected)
    assert len(outputs) == 4 and not any(output.requires_grad for output in outputs)


def test_beams_and_several_sequences_carry_their_own_sound(model, processor):
    conversations = [user(LONG_AUDIO, text("What?")), user(SHORT_AUDIO, text("What?"))]
    batch = encode(processor, conversations)
    beams = model.generate(**batch, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    assert beams.shape[0] == 4
    single = encode(processor, conversations[1:])
    alone = model.generate(**single, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    assert beams[2:, -4:].tolist() == alone[:, -4:].tolist()


def test_mismatched_audio_raises_with_both_counts(model, processor):
    inputs = encode(processor, MIXED[:1])
    ids = inputs["input_ids"].clone()
    place = (ids[0] == processor.audio_token_id).nonzero()[0]
    ids[0, place] = 1
    with pytest.raises(ValueError, match=r"hold 16 audio placeholders, .* give 17 embeddings"):
        model(**{**inputs, "input_ids": ids})
    without = {key: value for key, value in inputs.items() if key not in ("input_features", "audio_num_tokens")}
    with pytest.raises(ValueError, match="audio placeholders"):
        model(**without, use_adapter=False)
    with pytest.raises(ValueError, match="audio placeholders"):
        model(**without, use_adapter=True)


def test_auto_classes_load_what_save_pretrained_wrote(folder, model, processor):
    assert isinstance(AutoConfig.from_pretrained(folder), type(model.config))
    inputs = encode(processor, MIXED)
    for auto in (AutoModel, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(folder).eval()
        assert type(loaded) is type(model)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    again = encode(AutoProcessor.from_pretrained(folder), MIXED)
    assert all(torch.equal(again[key], inputs[key]) for key in inputs)


def test_from_backbone_keeps_the_weights_of_both_halves(folder, family, model):
    backbone = AutoModelForImageTextToText.from_pretrained(folder.parent / family)
    audio = AutoModel.from_pretrained(folder.parent / "whisper").get_encoder()
    for ours, theirs in ((model.vlm, backbone), (model.audio_tower, audio)):
        theirs = theirs.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_from_backbone_keeps_the_attention_in_every_part(tmp_path, attention):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    model = VAEmotionLLMForConditionalGeneration.from_backbone(vlm, audio, attn_implementation=attention)
    layers = (model.get_decoder().layers[0].self_attn, model.vlm.model.visual.blocks[0].attn,
              model.audio_tower.layers[0].self_attn)  # fmt: skip
    assert [layer.config._attn_implementation for layer in layers] == [attention] * 3


def test_audio_spectrogram_transformer_is_an_audio_tower_too(tmp_path):
    folder = tiny.make_vaemotionllm(tmp_path, audio="ast")
    model = AutoModel.from_pretrained(folder).eval()
    inputs = encode(AutoProcessor.from_pretrained(folder), MIXED)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
def test_a_spectrogram_transformer_takes_sounds_of_any_length(tmp_path, stride):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("ast", tmp_path)
    processor = VAEmotionLLMProcessor.from_backbone(str(vlm), str(audio), projector_stride=stride)
    model = VAEmotionLLMForConditionalGeneration.from_backbone(str(vlm), str(audio), projector_stride=stride)
    window = processor.window_samples
    # A full window, one sample more (its own window, shorter than a frame of the filter bank), and very little.
    for samples in (window, window + 1, 10):
        encoded = processor.encode_audio(np.full(samples, 0.1, np.float32))
        with torch.no_grad():
            embeds = model.get_audio_features(**encoded.inputs).pooler_output
        assert encoded.replacement.count(processor.audio_token) == len(embeds)


def test_an_unsupported_audio_tower_is_named(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

    vlm = tiny.make_vlm("qwen2_5_vl", tmp_path)
    Wav2Vec2Config().save_pretrained(tmp_path / "wav2vec2")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "wav2vec2")
    with pytest.raises(ValueError, match="'wav2vec2' is not supported; supported are 'whisper'"):
        VAEmotionLLMProcessor.from_backbone(vlm, tmp_path / "wav2vec2")
    with pytest.raises(InputError, match="'wav2vec2' is not supported; .* 'audio-spectrogram-"):
        VAEmotionLLMForConditionalGeneration.from_backbone(vlm, tmp_path / "wav2vec2")


def test_a_loaded_backbone_is_taken_as_it_is(tmp_path):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    backbone = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]}
    model = VAEmotionLLMForConditionalGeneration.from_backbone(backbone, audio, enhancer_rank=4)
    assert model.vlm is backbone and model.config.backbone_name == str(vlm)
    after = {name: tensor for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]}
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
    for part in (model.audio_tower, model.audio_projector, model.emotion_adapter):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "saved")
    VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    # One that was quantized on its own has weights under names that could not be loaded again.
    backbone.is_quantized = True
    with pytest.raises(InputError, match="was quantized before"):
        model.save_pretrained(tmp_path / "quantized")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_packed_batch_gives_the_logits_and_gradients_of_the_padded_one(tmp_path, family, attention):
    path = tiny.make_vaemotionllm(tmp_path, family)
    processor = VAEmotionLLMProcessor.from_pretrained(path)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path, attn_implementation=attention).eval()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)
    renderer = ConversationRenderer(processor)
    media = [
        processor.encode_image(picture), processor.encode_audio(rng.normal(size=20_000).astype(np.float32) / 9),
        processor.encode_audio(rng.normal(size=9_000).astype(np.float32) / 9),
        processor.encode_video(np.stack([picture] * 4), 4.0, range(4)),
    ]  # fmt: skip
    kinds = (["image", "audio"], [], ["audio"], ["video"])
    texts = [renderer.prompt(kind, "What is it? " * (i + 1)) for i, kind in enumerate(kinds)]
    inputs = build_inputs(processor, texts, media, [[65] * 9, [66, 67], [68], [70] * 4])
    assert not inputs["attention_mask"].all()

    def run(**options):
        model.zero_grad()
        output = model(**inputs, use_adapter=False, **options)
        output.logits.float().square().mean().backward()
        return output.logits.detach(), torch.cat([p.grad.flatten() for p in model.audio_projector.parameters()])

    padded, packed = run(), run(packing=True)
    seen = []
    handle = model.get_decoder().layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    run(packing=True)
    handle.remove()
    assert seen == [(1, int(inputs["attention_mask"].sum()), 32)]  # no padding reaches the decoder
    torch.testing.assert_close(padded[0], packed[0], atol=1e-5, rtol=1e-4)
    assert padded[1].abs().max() > 1e-6
    torch.testing.assert_close(padded[1], packed[1], atol=1e-6, rtol=1e-3)


def test_flash_attention_is_given_the_boundaries(tmp_path):
    from types import SimpleNamespace

    from vaemotionllm.model.media_injection import pack_decoder_inputs

    keep = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    embeds = torch.arange(12.0).view(3, 4, 1)
    config = SimpleNamespace(_attn_implementation="flash_attention_2")
    packed = pack_decoder_inputs({"inputs_embeds": embeds, "attention_mask": keep}, keep, config)
    assert packed["attention_mask"] is None and packed["max_length_q"] == packed["max_length_k"] == 4
    assert packed["cu_seq_lens_q"].tolist() == packed["cu_seq_lens_k"].tolist() == [0, 3, 7, 8]
    assert packed["cu_seq_lens_q"].dtype == torch.int32
    assert packed["inputs_embeds"].flatten().tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    with pytest.raises(ValueError, match="sliding windows needs FlashAttention"):
        sliding = SimpleNamespace(_attn_implementation="sdpa", layer_types=["sliding_attention"])
        pack_decoder_inputs({"inputs_embeds": embeds}, keep, sliding)
    with pytest.raises(ValueError, match="packing needs a response_mask"):
        model = VAEmotionLLMForConditionalGeneration.from_pretrained(tiny.make_vaemotionllm(tmp_path))
        model(input_ids=torch.tensor([[70]]), packing=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_boundaries_reach_every_attention_layer(tmp_path, family):
    """With an attention that, as FlashAttention does, knows rows by `cu_seq_lens_q` alone."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    calls = []

    def by_rows(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
        assert attention_mask is None and kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
        calls.append(cu_seq_lens_q.tolist())
        lengths = cu_seq_lens_q.diff().tolist()
        rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
        out = [
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            for q, k, v in rows
        ]
        return torch.cat(out, dim=2).transpose(1, 2), None

    AttentionInterface.register("flash_by_rows", by_rows)
    AttentionMaskInterface.register("flash_by_rows", flash_attention_mask)
    path = tiny.make_vaemotionllm(tmp_path, family)
    processor = VAEmotionLLMProcessor.from_pretrained(path)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path).eval()
    sounds = [np.random.default_rng(i).normal(size=n).astype(np.float32) / 9 for i, n in enumerate((20_000, 9_000))]
    renderer = ConversationRenderer(processor)
    texts = [renderer.prompt(["audio"], "What is it?"), renderer.prompt(["audio"], "And this?" * 5)]
    inputs = build_inputs(processor, texts, [processor.encode_audio(sound) for sound in sounds], [[65] * 9, [66, 67]])
    with torch.no_grad():
        padded = model(**inputs, use_adapter=False).logits
        model.get_decoder().config._attn_implementation = "flash_by_rows"
        packed = model(**inputs, use_adapter=False, packing=True).logits
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert calls == [[0, lengths[0], sum(lengths)]] * model.config.get_text_config().num_hidden_layers
    torch.testing.assert_close(padded, packed, atol=1e-5, rtol=1e-4)
