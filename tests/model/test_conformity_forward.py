"""One pass of the model: attention backends, outputs, gradients, embeddings as inputs."""

import copy

import pytest
import tiny
import torch
from conformity import AUDIO, MIXED, encode, load, make, user
from torch.nn import functional as F


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def loaded(request, tmp_path_factory):
    """Of each backbone family."""
    return load(make(tmp_path_factory.mktemp(request.param), request.param, enhancer_layers=[0, 1]))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load(make(tmp_path_factory.mktemp("qwen"), enhancer_layers=[0, 1], emotion_labels=["calm", "sad"]))


def attentions_of(model) -> dict[str, str]:
    vision = getattr(model.vlm.model, "visual", None) or model.vlm.model.vision_tower
    parts = {"text": model.get_decoder(), "vision": vision, "audio": model.audio_tower}
    return {name: part.config._attn_implementation for name, part in parts.items()}


@torch.no_grad()
def logits_of(model, inputs: dict) -> torch.Tensor:
    """(tokens, V) without padding."""
    return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_backends_are_equal(loaded, attention):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    assert set(attentions_of(model).values()) == {"sdpa"}
    other = copy.deepcopy(model)
    if attention == "flex_attention" and not model.vlm._supports_flex_attn:
        with pytest.raises(ValueError, match="does not support .*flex_attention"):
            other.set_attn_implementation(attention)
        pytest.skip(f"transformers' {type(model.vlm).__name__} does not support flex attention")
    other.set_attn_implementation(attention)
    assert set(attentions_of(other).values()) == {attention}
    with torch.compiler.set_stance("force_eager"):  # transformers compiles flex attention, which takes a minute
        logits = logits_of(other, inputs)
    torch.testing.assert_close(logits, logits_of(model, inputs), rtol=1e-4, atol=1e-4)


def test_each_part_may_have_its_own_attention(tmp_path):
    path = make(tmp_path)
    model, processor = load(path)
    inputs = encode(processor, *MIXED)
    chosen = {"vlm_config": "eager", "audio_config": "sdpa"}
    later = copy.deepcopy(model)
    later.set_attn_implementation(chosen)
    for other in (load(path, attn_implementation=chosen)[0], later):
        assert attentions_of(other) == {"text": "eager", "vision": "eager", "audio": "sdpa"}
        torch.testing.assert_close(logits_of(other, inputs), logits_of(model, inputs), rtol=1e-4, atol=1e-4)
    deeper = {"vlm_config": {"text_config": "sdpa", "vision_config": "eager"}, "audio_config": "sdpa"}
    other, _ = load(path, attn_implementation=deeper)
    assert attentions_of(other) == {"text": "sdpa", "vision": "eager", "audio": "sdpa"}


def test_hidden_states_and_attentions(loaded):
    model, processor = loaded
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = encode(processor, *MIXED)
    with torch.no_grad():
        output = eager(**inputs, output_hidden_states=True, output_attentions=True)
        sound = eager.get_audio_features(
            inputs["input_features"], inputs["audio_num_tokens"], output_hidden_states=True, output_attentions=True
        )
        features = eager(**inputs, output_hidden_states=True, use_adapter=False).hidden_states[0]
    layers, heads = eager.config.get_text_config().num_hidden_layers, 4
    batch, length = inputs["input_ids"].shape
    assert [states.shape for states in output.hidden_states] == [(batch, length, 32)] * (layers + 1)
    assert [weights.shape for weights in output.attentions] == [(batch, heads, length, length)] * layers
    torch.testing.assert_close(eager.get_output_embeddings()(output.hidden_states[-1]), output.logits)
    # Sound enters where its placeholders are, as it left the projector.
    at_sound = inputs["input_ids"] == processor.audio_token_id
    torch.testing.assert_close(features[at_sound], sound.pooler_output)
    assert len(sound.hidden_states) == 3 and len(sound.attentions) == 2
    # Nobody looks ahead, or at padding.
    seen = torch.ones(length, length).tril().bool() & inputs["attention_mask"].bool()[:, None]  # (B, T, T)
    rows = inputs["attention_mask"].bool()
    for weights in output.attentions:
        of_tokens = weights.transpose(1, 2)[rows]  # (tokens, heads, T)
        torch.testing.assert_close(of_tokens.sum(-1), torch.ones(len(of_tokens), heads))
        assert of_tokens[~seen[rows].unsqueeze(1).expand_as(of_tokens)].abs().max() == 0
    with torch.no_grad():
        some = eager(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert some[1] is None and torch.equal(some[-1], output.hidden_states[-1])


def test_a_tuple_is_the_output_without_its_names(qwen):
    model, processor = qwen
    inputs = encode(processor, *MIXED)
    with torch.no_grad():
        named, plain = (
            model(**inputs, labels=inputs["input_ids"]),
            model(**inputs, labels=inputs["input_ids"], return_dict=False),
        )
    assert isinstance(plain, tuple) and list(named) == [
        "loss", "logits", "cache", "valence", "arousal", "emotion_logits",
    ]  # fmt: skip
    for name, value, other in zip(named, named.values(), plain):
        if name != "cache":
            torch.testing.assert_close(value, other, equal_nan=True)


def test_the_loss_is_the_mean_cross_entropy_of_what_follows(loaded):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :10] = -100
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    logits, targets = output.logits[:, :-1].reshape(-1, output.logits.shape[-1]), labels[:, 1:].reshape(-1)
    kept = targets != -100
    torch.testing.assert_close(output.loss, F.cross_entropy(logits[kept], targets[kept]))


def test_training_learns_what_only_the_sound_tells(tmp_path):
    model, processor = load(make(tmp_path))
    inputs = encode(processor, [user(AUDIO, "What?")], [user(AUDIO, "What?")])
    windows = len(inputs["input_features"]) // 2
    inputs["input_features"][windows:] = 0  # the second is silence
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -1] = torch.tensor([100, 150])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    # Without hearing, half of the guesses would be wrong.
    assert loss < 0.5 * torch.log(torch.tensor(2.0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(loaded, reentrant):
    model = copy.deepcopy(loaded[0]).train()
    inputs = encode(loaded[1], *MIXED)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    def gradients():
        model.zero_grad()
        output = model(**inputs, labels=labels, use_cache=False)
        (output.loss + output.valence.nansum()).backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    expected = gradients()
    assert {name.split(".")[0] for name in expected} == {"vlm", "audio_tower", "audio_projector", "emotion_adapter"}
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    model.enable_input_require_grads()
    again = gradients()
    assert again.keys() == expected.keys()
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("ids_too", [False, True])
def test_embeddings_as_inputs(loaded, ids_too):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    expected = logits_of(model, inputs)
    ids = inputs.pop("input_ids")
    given = {**inputs, "inputs_embeds": model.get_input_embeddings()(ids), **({"input_ids": ids} if ids_too else {})}
    family = model.config.vlm_config.model_type
    if ids_too and family != "qwen2_5_vl":
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            logits_of(model, given)
        return
    if not ids_too and family != "llava_onevision":  # the backbones find a picture's rows and columns by its ids
        given["position_ids"] = model.vlm.model.get_rope_index(ids, **{
            name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw", "attention_mask")
        })[0]  # fmt: skip
    torch.testing.assert_close(logits_of(model, given), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_cannot_say_where_a_placeholder_beyond_the_vocabulary_stands(tmp_path):
    model, processor = load(make(tmp_path))
    inputs = encode(processor, MIXED[0])
    with torch.no_grad():
        expected = model(**inputs).logits
        model.resize_token_embeddings(processor.audio_token_id)  # ids end before it
        torch.testing.assert_close(model(**inputs).logits, expected[..., : processor.audio_token_id])
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(model._backbone_ids(ids))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="hold 0 audio placeholders"):
            call(**inputs, inputs_embeds=embeds)
