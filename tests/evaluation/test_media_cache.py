"""Media that are encoded once and used again give what the whole model gives; the threads that decode ahead."""

import threading
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.evaluation.media_cache import EncodedMedia, MediaEncoder, MediaPipeline
from vaemotionllm.evaluation.requests import Medium, Request, batches
from vaemotionllm.model.processing_vaemotionllm import MediaFeatures

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 255, (size, 56, 3), dtype=np.uint8)) for size in (56, 28)]
FILM = RNG.integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)
LONG, SHORT = ((RNG.standard_normal(n) * 0.1).astype(np.float32) for n in (40_000, 9_000))  # two windows, one


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp(family), family)


def loud(model):
    """Weights with which what is seen and heard moves the states far beyond rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return model


def test_encoded_media_are_what_the_towers_give(family, folder):
    model = loud(VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval())
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    image, other = (processor.encode_image(image) for image in IMAGES)
    film, long, short = processor.encode_video(FILM, 8.0, range(4)), *map(processor.encode_audio, (LONG, SHORT))
    turns = [[long], [image, other], [film, short], [image, film, long], []]
    texts = processor.apply_chat_template(
        [
            [{"role": "user", "content": [*({"type": medium.kind} for medium in turn), {"type": "text", "text": "?"}]}]
            for turn in turns
        ],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    arguments = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def logits(media, **more):
        inputs = encoder.generation_inputs(processor.assemble(texts, media, padding_side="left"))
        return torch.stack(model.generate(**inputs, **arguments, **more).logits), inputs

    encoder = MediaEncoder(model)
    given = [medium for turn in turns for medium in turn]
    expected, _ = logits(given)
    # Each medium once, in another order and in two parts, as the batches of an evaluation come to them.
    once = {id(medium): medium for medium in (short, film, other)}
    encoded = dict(zip(once, encoder.encode(list(once.values()))))
    encoded |= dict(zip((id(image), id(long)), encoder.encode([image, long])))
    found, inputs = logits([encoded[id(medium)] for medium in given])
    assert {"audio_states", "mm_encoder_outputs"} <= set(inputs)
    assert not {"input_features", "pixel_values", "pixel_values_videos"} & set(inputs)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    # Beams and several answers repeat each question with its own media; after the first step beams part.
    several = {"num_beams": 3, "num_return_sequences": 2}
    found, expected_of_beams = (logits(m, **several)[0][0] for m in ([encoded[id(m)] for m in given], given))
    assert len(found) == 3 * len(turns)
    torch.testing.assert_close(found, expected_of_beams, atol=2e-4, rtol=1e-4)
    # The test can fail: the other picture's states give other logits.
    encoded[id(image)] = encoded[id(other)]
    if family == "llava_onevision":  # whose pictures all have as many tokens
        assert (logits([encoded[id(medium)] for medium in given])[0] - expected).abs().max() > 1e-2
    assert all(value.device.type == "cpu" for medium in encoded.values() for value in medium.inputs.values())


def test_pictures_of_several_shapes_stand_in_one_batch(tmp_path):
    """LLaVA-OneVision cuts pictures into tiles, and its tower takes pictures of equally many alone."""
    folder = tiny.make_vaemotionllm(tmp_path, "llava_onevision")
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    grids = [[28, 28], [28, 56], [56, 28], [56, 56]]
    processor.image_processor.image_grid_pinpoints = grids
    for config in (model.vlm.config, model.vlm.model.config):
        config.image_grid_pinpoints = grids
    pictures = [RNG.integers(0, 255, (height, width, 3), dtype=np.uint8) for height, width in grids]
    media = [processor.encode_image(Image.fromarray(picture)) for picture in pictures]
    assert len({medium.inputs["pixel_values"].shape for medium in media}) > 1
    encoder = MediaEncoder(model)
    for alone, medium in zip(media, encoder.encode(media)):
        (expected,) = encoder.encode([alone])
        torch.testing.assert_close(medium.inputs["image_states"], expected.inputs["image_states"])


def test_a_backbone_without_known_states_gets_pixels(folder, monkeypatch):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    image = processor.encode_image(IMAGES[0])
    encoder = MediaEncoder(model)
    original = model.vlm.base_model.get_image_features

    def unknown(pixel_values, image_grid_thw=None, image_sizes=None, return_dict=True):
        arguments = {"image_grid_thw": image_grid_thw, "image_sizes": image_sizes}
        output = original(pixel_values, **{name: v for name, v in arguments.items() if v is not None})
        output.pooler_output = [torch.cat(list(output.pooler_output))[:-1]]
        return output

    encoder._visual["image"] = unknown
    assert encoder.encode([image]) == [image] and "image" not in encoder._visual
    monkeypatch.setattr(type(model.vlm), "forward", lambda self, input_ids=None: None)
    assert MediaEncoder(model).encode([image]) == [image]


def features(size: int) -> MediaFeatures:
    return MediaFeatures("audio", "<a>", "<a>", {"audio_states": torch.zeros(size, dtype=torch.uint8)})


def test_media_are_kept_up_to_a_number_of_bytes():
    kept = EncodedMedia(100)
    for key in "abc":
        kept.add(key, features(40))
    kept.add("b", kept["b"])  # used again
    assert "a" not in kept and kept.num_bytes == 80
    kept.add("d", features(40))  # c was used longest ago
    assert "c" not in kept and "b" in kept
    kept.add("e", features(101))
    assert kept.num_bytes == 0 and not any(key in kept for key in "abcde")


class Unchanged:
    def encode(self, media):
        return list(media)


def request(position: int, *media: Medium, clip: object = None, **fields) -> Request:
    return Request(position, f"item {position}", clip, [{"role": "user", "content": []}], media, {}, **fields)


def test_decoding_is_ahead_and_bounded_and_happens_once():
    decoded, lock = [], threading.Lock()

    def decode(medium):
        with lock:
            decoded.append(medium.source)
        if medium.source == "bad":
            raise InputError("cannot decode")
        return features(10)

    media = [Medium("audio", name) for name in ("a", "b", "c", "bad", "d", "e")]
    plan = [[request(2 * i, medium), request(2 * i + 1, medium)] for i, medium in enumerate(media)] * 2
    pipeline = MediaPipeline(decode, Unchanged(), workers=2, max_bytes=1000)
    for number, found in enumerate(pipeline.run(plan)):
        expected = plan[number][0].media[0]
        error = isinstance(found[expected], InputError)
        assert list(found) == [expected] and error == (expected.source == "bad")
        time.sleep(0.05)  # whatever the threads might still do
        assert len(decoded) <= number + 3  # two questions a thread: two batches
    # What cannot be read is tried again; all else is decoded once.
    assert sorted(decoded) == ["a", "b", "bad", "bad", "c", "d", "e"]


def test_what_had_to_go_is_decoded_again():
    decoded = []

    def sources(pipeline, names):
        decoded.clear()
        for found in pipeline.run([[request(i, Medium("audio", name))] for i, name in enumerate(names)]):
            assert [medium.inputs["audio_states"].numel() for medium in found.values()] == [10]
        return sorted(decoded)

    def pipeline(max_bytes):
        decode = lambda medium: decoded.append(medium.source) or features(10)
        return MediaPipeline(decode, Unchanged(), workers=1, max_bytes=max_bytes)

    nothing = pipeline(0)
    assert sources(nothing, "abcabc") == list("aabbcc")
    assert not nothing.kept.num_bytes
    one = pipeline(10)
    assert sources(one, "a") == ["a"] and sources(one, "a") == []
    # It is there when the first batch is started, and has to go when that is done.
    assert sources(one, "ba") == ["a", "b"]


def test_batches_of_one_clip_follow_each_other(tmp_path):
    """Six questions about each of eight clips, four kinds: the longest first, no kind mixed, a clip's batches near."""
    requests = []
    for cell in ("audio", "visual", "av") * 2:
        for clip in (3, 7, 1, 0, 6, 2, 5, 4):
            paths = {kind: tmp_path / f"{clip}.{kind}" for kind in ("audio", "image")}
            for path in paths.values():
                path.write_bytes(bytes(100 * clip + 1))
            kinds = {"audio": ["audio"], "visual": ["image"], "av": ["image", "audio"]}[cell]
            media = [Medium(kind, str(paths[kind])) for kind in kinds]
            requests.append(request(len(requests), *media, clip=clip))
    plan = batches(requests, 4)
    clips = [sorted({medium.source.rpartition("/")[2][0] for p in batch for medium in p.media}) for batch in plan]
    assert clips == [["6", "7"]] * 3 + [["4", "5"]] * 3 + [["2", "3"]] * 3 + [["0", "1"]] * 3
    assert all(len({tuple(m.kind for m in p.media) for p in batch}) == 1 and len(batch) == 4 for batch in plan)
    assert sorted(p.position for batch in plan for p in batch) == list(range(48))
