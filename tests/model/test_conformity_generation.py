"""`generate` in its modes, each against a plain loop over whole passes without a cache."""

import copy

import pytest
import tiny
import torch
from conformity import (
    AUDIO,
    IMAGE,
    MIXED,
    OTHER_AUDIO,
    encode,
    greedy,
    load,
    make,
    new_tokens,
    next_logits,
    steps,
    user,
)
from transformers import DynamicCache, StaticCache

from vaemotionllm.model.transformers_api import CACHE

STEPS = 6


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def loaded(request, tmp_path_factory):
    """Of each backbone family."""
    return load(make(tmp_path_factory.mktemp(request.param), request.param, enhancer_layers=[0, 1]))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load(make(tmp_path_factory.mktemp("qwen"), enhancer_layers=[0, 1]))


def test_greedy_on_a_left_padded_batch_of_mixed_modality(loaded):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    expected = greedy(model, inputs, STEPS)
    assert inputs["attention_mask"].min() == 0 and len(set(map(tuple, expected.tolist()))) > 1
    assert torch.equal(new_tokens(model.generate(**inputs, **steps(model, STEPS)), inputs), expected)
    # The first argument is the ids, by either name.
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    for given in ({"inputs": inputs["input_ids"]}, {"input_ids": inputs["input_ids"]}):
        assert torch.equal(new_tokens(model.generate(**given, **rest, **steps(model, STEPS)), inputs), expected)


def test_what_is_heard_moves_the_answer(loaded):
    model, processor = loaded
    inputs = encode(processor, [user(AUDIO, "What?")])
    silence = {**inputs, "input_features": torch.zeros_like(inputs["input_features"])}
    first, second = (model.generate(**each, **steps(model, STEPS)) for each in (inputs, silence))
    assert not torch.equal(first, second)
    nothing = inputs["input_ids"][:, :0]
    with_adapter, without = (next_logits(model, inputs, nothing, use_adapter=on)[0, 100:200] for on in (True, False))
    assert (with_adapter - without).abs().max() > 0.01


@pytest.mark.parametrize("cache", [
    "no cache", "dynamic", "static", "offloaded", "offloaded_static", DynamicCache, StaticCache,
])  # fmt: skip
def test_every_cache_gives_the_same_tokens(loaded, cache):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    if isinstance(cache, str) and cache.startswith("offloaded") and not torch.cuda.is_available():
        pytest.skip("offloaded caches copy on streams of an accelerator")
    if cache == "no cache":
        options = {"use_cache": False}
    elif isinstance(cache, str):
        options = {"cache_implementation": cache}
    else:
        text = model.config.get_text_config()
        options = {CACHE: cache(config=text, **({"max_cache_len": 256} if cache is StaticCache else {}))}
    generated = new_tokens(model.generate(**inputs, **steps(model, STEPS), **options), inputs)
    assert torch.equal(generated, greedy(model, inputs, STEPS))


def test_a_quantized_cache(loaded):
    """It rounds, but not before the first token."""
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 4}
    generated = model.generate(**inputs, **steps(model, STEPS), cache_implementation="quantized", cache_config=config)
    assert new_tokens(generated, inputs).shape == (4, STEPS)
    assert torch.equal(new_tokens(generated, inputs)[:, :1], greedy(model, inputs, 1))


def test_a_decoder_with_sliding_windows(tmp_path):
    path = make(tmp_path)
    model, processor = load(path)
    text = model.config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.max_window_layers = True, 16, 1
    text.layer_types = ["full_attention", "sliding_attention"]
    model.save_pretrained(path)
    model, _ = load(path)
    inputs = encode(processor, *MIXED)
    expected = greedy(model, inputs, STEPS)
    assert inputs["input_ids"].shape[1] > 16
    for options in ({}, {"cache_implementation": "static"}):
        assert torch.equal(new_tokens(model.generate(**inputs, **steps(model, STEPS), **options), inputs), expected)


def test_sampling_draws_as_a_plain_loop_does(qwen):
    model, processor = qwen
    inputs = encode(processor, *MIXED)

    def plain(seed):
        torch.manual_seed(seed)
        tokens = inputs["input_ids"].new_zeros(len(MIXED), 0)
        for _ in range(STEPS):
            logits = next_logits(model, inputs, tokens) / 1.5
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return tokens

    for seed in (0, 1):
        torch.manual_seed(seed)
        sampled = model.generate(**inputs, **steps(model, STEPS), do_sample=True, temperature=1.5, top_k=0)
        assert torch.equal(new_tokens(sampled, inputs), plain(seed))
    assert not torch.equal(plain(0), plain(1))


def plain_beams(model, inputs: dict, beams: int, count: int) -> torch.Tensor:
    """(beams, count) the best continuations of one row by beam search, the best first."""
    tokens, scores = inputs["input_ids"].new_zeros(1, 0), torch.zeros(1)
    for _ in range(count):
        logits = torch.cat([next_logits(model, inputs, row[None]) for row in tokens])
        logits = logits.log_softmax(-1)
        scores, best = (scores[:, None] + logits).flatten().topk(beams)
        rows, token = best // logits.shape[1], best % logits.shape[1]
        tokens = torch.cat([tokens[rows], token[:, None]], dim=1)
    return tokens


def test_beams_are_those_of_a_plain_search(qwen):
    model, processor = qwen
    conversations = [MIXED[0], MIXED[2]]
    inputs = encode(processor, *conversations)
    options = {"num_beams": 3, "num_return_sequences": 2, **steps(model, STEPS)}
    for uses_cache in (True, False):
        generated = new_tokens(model.generate(**inputs, **options, use_cache=uses_cache), inputs)
        for row, conversation in enumerate(conversations):
            expected = plain_beams(model, encode(processor, conversation), beams=3, count=STEPS)[:2]
            assert torch.equal(generated[2 * row : 2 * row + 2], expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_several_samples_a_prompt(qwen, beams):
    model, processor = qwen
    inputs = encode(processor, *MIXED)

    def sample(seed):
        torch.manual_seed(seed)
        options = {"do_sample": True, "num_return_sequences": 3, "num_beams": beams, "return_dict_in_generate": True}
        return model.generate(**inputs, **steps(model, STEPS), **options)

    first, again, other = sample(0), sample(0), sample(1)
    assert torch.equal(first.sequences, again.sequences) and not torch.equal(first.sequences, other.sequences)
    assert new_tokens(first, inputs).shape == (12, STEPS)
    assert first.valence.shape == (4, 3)  # one reading a prompt
    torch.testing.assert_close(first.valence, model(**inputs).valence, equal_nan=True)


@pytest.mark.parametrize("conversation", [MIXED[0], MIXED[2]], ids=["sound", "both"])
@pytest.mark.parametrize("way", ["assistant", "assistant that hears", "prompt lookup"])
def test_proposed_tokens_do_not_change_what_is_decided(loaded, conversation, way):
    model, processor = loaded
    inputs = encode(processor, conversation)
    options = {"prompt_lookup_num_tokens": 3}
    if way != "prompt lookup":
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_output_embeddings().weight[100:200] *= -1  # it is right at times
        options = {"assistant_model": other if way.endswith("hears") else other.vlm}
    generated = model.generate(**inputs, **steps(model, STEPS), **options, return_dict_in_generate=True)
    assert torch.equal(new_tokens(generated, inputs), greedy(model, inputs, STEPS))
    torch.testing.assert_close(generated.valence, model(**inputs).valence, equal_nan=True)


def test_the_model_is_no_assistant_of_its_own(qwen):
    model, processor = qwen
    for options in ({"assistant_model": model}, {"assistant_model": model.vlm}, {"assistant_early_exit": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} was given, .* use_adapter=False"):
            model.generate(**encode(processor, MIXED[0]), **options, max_new_tokens=2)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_prefill_in_chunks(loaded, size):
    model, processor = loaded
    inputs, options = encode(processor, MIXED[1], MIXED[3]), {"prefill_chunk_size": size, **steps(model, STEPS)}
    with pytest.raises(ValueError, match="prefill_chunk_size was given"):
        model.generate(**inputs, **options)
    generated = model.generate(**inputs, **options, use_adapter=False)
    assert torch.equal(new_tokens(generated, inputs), greedy(model, inputs, STEPS, use_adapter=False))


def conversation_of(model, processor, adapter: bool):
    """Two turns with audio, the first with an image: inputs of the first, of both, and what is new in the second."""
    first = [user(IMAGE, AUDIO, "What?")]
    turn = encode(processor, first)
    spoken = new_tokens(model.generate(**turn, **steps(model, STEPS), use_adapter=adapter), turn)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "It is so."}]}
    whole = encode(processor, [*first, answer, user(OTHER_AUDIO, "And now?")])
    assert torch.equal(whole["input_ids"][:, : turn["input_ids"].shape[1]], turn["input_ids"])
    windows = len(turn["audio_num_tokens"])
    new = {name: whole[name][windows:] for name in ("input_features", "audio_num_tokens")}
    return turn, whole, new, spoken


@pytest.mark.parametrize("ids", ["all", "new"])
def test_a_second_turn_with_new_sound_goes_on_from_the_cache(loaded, ids):
    model, processor = loaded
    turn, whole, new, _ = conversation_of(model, processor, adapter=False)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**turn, **{CACHE: cache}, use_adapter=False)
    length = turn["input_ids"].shape[1]
    given = whole["input_ids"] if ids == "all" else whole["input_ids"][:, length:]
    generated = model.generate(
        given,
        attention_mask=whole["attention_mask"],
        **{CACHE: cache},
        use_adapter=False,
        **new,
        **steps(model, STEPS),
    )
    expected = greedy(model, whole, STEPS, use_adapter=False)
    assert torch.equal(generated[:, -STEPS:], expected)
    assert torch.equal(generated[:, :-STEPS], given)


def test_the_old_sound_is_refused_in_a_second_turn(qwen):
    model, processor = qwen
    turn, whole, _, _ = conversation_of(model, processor, adapter=True)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**turn, **{CACHE: cache})
    audio = {name: whole[name] for name in ("input_ids", "attention_mask", "input_features", "audio_num_tokens")}
    with pytest.raises(ValueError, match="to resume from a cache, give the new audio alone"):
        model.generate(**audio, **{CACHE: cache}, **steps(model, STEPS))


def test_the_enhancer_sees_a_second_turns_media_alone(loaded):
    model, processor = loaded
    turn, whole, new, _ = conversation_of(model, processor, adapter=True)
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    length = turn["input_ids"].shape[1]
    with torch.no_grad():
        for cache in caches:
            model(**turn, **{CACHE: cache})
        logits = model(whole["input_ids"][:, length:], **{CACHE: caches[0]}, **new).logits[:, -1]
        generated = model.generate(
            whole["input_ids"], **new, **{CACHE: caches[1]}, max_new_tokens=1,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    torch.testing.assert_close(generated.logits[0], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(~generated.valence.isnan(), torch.tensor([[True, False, False]]))


def test_generation_returns_scores_states_attentions_and_readings(qwen):
    model, processor = qwen
    model.set_attn_implementation("eager")
    inputs = encode(processor, *MIXED)
    generated = model.generate(
        **inputs, **steps(model, STEPS), return_dict_in_generate=True, output_scores=True, output_hidden_states=True,
        output_attentions=True,
    )  # fmt: skip
    batch, prompt = inputs["input_ids"].shape
    assert [score.shape for score in generated.scores] == [(batch, model.config.get_text_config().vocab_size)] * STEPS
    assert [states[-1].shape[1] for states in generated.hidden_states] == [prompt] + [1] * (STEPS - 1)
    assert [layers[0].shape[-1] for layers in generated.attentions] == [prompt + step for step in range(STEPS)]
    output = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(generated.hidden_states[0][-1], output.hidden_states[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(generated.arousal, output.arousal, equal_nan=True)
    model.set_attn_implementation("sdpa")


def test_nothing_of_a_call_stays_on_the_backbone(qwen):
    model, processor = qwen
    decoder = model.get_decoder()
    before = list(decoder.layers)
    for options in ({}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        model.generate(**encode(processor, MIXED[2]), **steps(model, STEPS), **options)
        assert not decoder._forward_hooks and not decoder._forward_pre_hooks
        assert all(layer is other for layer, other in zip(decoder.layers, before))
    with pytest.raises(ZeroDivisionError):
        model.generate(
            **encode(processor, MIXED[2]), **steps(model, STEPS), logits_processor=[lambda ids, scores: 1 / 0]
        )
    assert not decoder._forward_hooks and not decoder._forward_pre_hooks and list(decoder.layers) == before


@pytest.mark.parametrize("ids_too", [False, True])
def test_a_prompt_of_embeddings(loaded, ids_too):
    model, processor = loaded
    inputs = encode(processor, *MIXED)
    assert processor.audio_token_id < model.config.get_text_config().vocab_size
    ids = inputs.pop("input_ids")
    given = {**inputs, "inputs_embeds": model.get_input_embeddings()(ids), **({"input_ids": ids} if ids_too else {})}
    # Without ids the backbones cannot say where a picture's rows and columns lie, so positions are given.
    if not ids_too and model.config.vlm_config.model_type != "llava_onevision":
        given["position_ids"] = model.vlm._prepare_position_ids_for_generation(ids, inputs)
        model.vlm.model.rope_deltas = None
    generated = model.generate(**given, **steps(model, STEPS))
    assert torch.equal(generated[:, -STEPS:], greedy(model, {"input_ids": ids, **inputs}, STEPS))
    assert generated.shape[1] == STEPS + (ids.shape[1] if ids_too else 0)
    options = {"num_beams": 2, **steps(model, STEPS)}
    beams = model.generate(**given, **options)[:, -STEPS:]
    assert torch.equal(beams, model.generate(**inputs, input_ids=ids, **options)[:, -STEPS:])


def test_a_prompt_of_embeddings_goes_on_from_the_cache(qwen):
    model, processor = qwen
    turn, whole, new, _ = conversation_of(model, processor, adapter=False)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**turn, **{CACHE: cache}, use_adapter=False)
    embeds = model.get_input_embeddings()(whole["input_ids"])
    generated = model.generate(inputs_embeds=embeds, **{CACHE: cache}, use_adapter=False, **new, **steps(model, STEPS))
    assert torch.equal(generated, greedy(model, whole, STEPS, use_adapter=False))
