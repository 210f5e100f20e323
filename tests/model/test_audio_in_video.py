"""Films that are heard: the same as an audio item with the film's file, and nothing where a film is silent."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from chats import IMAGE, SHORT_AUDIO, encode, text, trained_adapter, user
from media_files import write_video, write_wav

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.evaluation.requests import read_request
from vaemotionllm.model.media import end_of_track_s


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request, tmp_path_factory):
    return tiny.make_vaemotionllm(tmp_path_factory.mktemp(request.param), request.param, enhancer_layers=[0, 1])


@pytest.fixture(scope="module")
def processor(folder):
    return VAEmotionLLMProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    place = tmp_path_factory.mktemp("films")
    return {
        "film": write_video(place / "film.mp4", 2.5),
        "other": write_video(place / "other.mkv", 1.0, pitch_hz=900.0),
        "silent": write_video(place / "silent.mp4", 1.0, sound=False),
    }


def video(path, **fields):
    return {"type": "video", "path": str(path), **fields}


def sound(path):
    return {"type": "audio", "path": str(path)}


HEARD = {"use_audio_in_video": True}


def encode_heard(processor, conversations):
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        load_audio_from_video=True, processor_kwargs={"padding": True},
    )  # fmt: skip


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_a_film_that_is_heard_is_a_film_and_its_sound(processor, films):
    film, other, silent = films.values()
    expected = encode(
        processor,
        [
            user(video(film), sound(film), text("One?")),
            user(video(silent), text("Two?")),
            user(video(film), text("Three?")),
            user(SHORT_AUDIO, video(other), sound(other), IMAGE, video(film), sound(film), SHORT_AUDIO, text("Four?")),
        ],
    )
    by_item = [
        user(video(film, **HEARD), text("One?")),
        user(video(silent, **HEARD), text("Two?")),
        user(video(film), text("Three?")),
        user(SHORT_AUDIO, video(other, **HEARD), IMAGE, video(film, **HEARD), SHORT_AUDIO, text("Four?")),
    ]
    assert_equal(encode(processor, by_item), expected)
    audio = (expected["input_ids"] == processor.audio_token_id).sum(1).tolist()
    assert audio[0] > 0 and audio[1] == audio[2] == 0 and audio[3] > audio[0]
    # For all of a call, but where an item says otherwise.
    by_call = [
        user(video(film), text("One?")),
        user(video(silent), text("Two?")),
        user(video(film, use_audio_in_video=False), text("Three?")),
        user(SHORT_AUDIO, video(other), IMAGE, video(film), SHORT_AUDIO, text("Four?")),
    ]
    assert_equal(encode_heard(processor, by_call), expected)
    assert [item.get("use_audio_in_video") for item in by_call[2][0]["content"]] == [False, None], "input was changed"


def test_an_empty_audio_item_is_the_place_of_a_film_s_sound(processor, films):
    """As transformers asks for it with `load_audio_from_video`."""
    film, _, silent = films.values()
    marked = [
        user(video(film), {"type": "audio"}, text("?")),
        user(video(silent), {"type": "audio"}, text("?")),
        user(video(film), {"type": "audio"}, sound(film), text("?")),
    ]
    plain = [user(video(film), text("?")), user(video(silent), text("?")), user(video(film), sound(film), text("?"))]
    assert_equal(encode_heard(processor, marked), encode_heard(processor, plain))


def test_rendered_text_holds_a_placeholder_for_each_film_that_is_heard(processor, films):
    film, _, silent = films.values()

    def rendered(*content, **kwargs):
        return processor.apply_chat_template(user(*content), **kwargs)

    assert rendered(video(film, **HEARD)) == rendered(video(film), sound(film))
    assert rendered(video(silent, **HEARD)) == rendered(video(silent))
    assert rendered({"type": "video"}, load_audio_from_video=True) == rendered({"type": "video"}, {"type": "audio"})


def test_a_call_with_text_takes_the_audio_of_videos_as_audio(processor, films):
    film, other, silent = films.values()
    conversations = [
        user(SHORT_AUDIO, video(film), sound(film), SHORT_AUDIO, text("?")),
        user(video(silent), video(other), text("?")),
    ]
    expected = encode(processor, conversations)
    unsaid = {"type": "video"}
    turns = [user({"type": "audio"}, unsaid, {"type": "audio"}, text("?")), user(unsaid, unsaid, text("?"))]
    texts = processor.apply_chat_template(turns, add_generation_prompt=True)
    audio, paths = [SHORT_AUDIO["audio"]] * 2, [[str(film)], [str(silent), other.read_bytes()]]
    texts = processor.apply_chat_template(conversations, add_generation_prompt=True)
    found = processor(
        text=texts, videos=paths, audio=[audio[0], str(film), audio[1]], padding=True, return_tensors="pt"
    )
    assert_equal(found, expected)


def test_what_cannot_be_heard_is_no_error_and_no_silence(processor, films, tmp_path):
    frames = np.zeros((4, 56, 56, 3), np.uint8)
    for content in (video(films["silent"]), {"type": "video", "video": frames}):
        turns = [user(content, text("?"))]
        assert_equal(encode_heard(processor, turns), encode(processor, turns))
    # A track without anything in it is none.
    empty = write_video(tmp_path / "empty.mkv", 1.0, sound_s=0.0)
    assert end_of_track_s(empty, "audio") is None
    assert "input_features" not in encode(processor, [user(video(empty, **HEARD), text("?"))])
    assert end_of_track_s(films["film"], "audio") == pytest.approx(2.5, abs=0.2)
    assert end_of_track_s(films["other"].read_bytes(), "audio") == pytest.approx(1.0, abs=0.2)
    assert end_of_track_s(write_wav(tmp_path / "a.wav", 1.5), "audio") == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "video", "path": "/no.mp4", **HEARD}, "/no.mp4.*not found"),
        ({"type": "video", "path": "https://a.org/a.mp4", **HEARD}, "Download the file"),
        ({"type": "video", "path": "a.mp4", "use_audio_in_video": "yes"}, "is 'yes'; allowed are True and False"),
    ],
)  # fmt: skip
def test_films_that_cannot_be_used_are_named(processor, item, words):
    with pytest.raises(InputError, match=words):
        encode(processor, [user(text("?")), user(item, text("?"))])


def test_a_film_s_long_sound_is_refused_or_cut_as_any_other(folder, films):
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    processor.max_audio_s = 1.0
    conversation = [user(video(films["film"], **HEARD), text("?"))]
    with pytest.raises(InputError, match=r"audio 0 \(.*film.mp4\): .*2\.\d s long"):
        encode(processor, conversation)
    inputs = encode(processor, conversation, audio_kwargs={"truncation": True})
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == 16_000 // processor.samples_per_token + 2


@torch.no_grad()
def test_left_and_right_padding_give_the_same_logits(folder, processor, films):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()
    trained_adapter(model)
    conversations = [
        user(video(films["film"], **HEARD), text("What is heard, and what is seen?")),
        user(video(films["silent"], **HEARD), text("?")),
        user(SHORT_AUDIO, text("?")),
        user(IMAGE, SHORT_AUDIO, text("Which one?")),
        user(text("?")),
    ]
    outputs = {}
    for side in ("left", "right"):
        inputs = encode(processor, conversations, padding_side=side)
        edge = 0 if side == "left" else -1
        assert inputs["attention_mask"][:, edge].min() == 0, "the batch must be padded for this test to say something"
        output = model(**inputs)
        mask = inputs["attention_mask"].bool()
        outputs[side] = [rows[where] for rows, where in zip(output.logits, mask)], output.valence
    for left, right in zip(*(outputs[side][0] for side in ("left", "right")), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["left"][1], outputs["right"][1], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_evaluation_hears_a_film_whose_message_says_so(films):
    part = {"type": "video", "url": str(films["film"]), "start_time": 0.5, "end_time": 1.5, **HEARD}
    silent = {"type": "video", "url": str(films["silent"]), **HEARD}
    arguments = ("", lambda document: user(part, silent, text("?")), {}, 0, "task", "test")
    prompt = read_request(0, SimpleNamespace(args=arguments), {"task": {"test": [{"id": "x"}]}})
    assert [(medium.kind, medium.start_s, medium.end_s) for medium in prompt.media] == [
        ("video", 0.5, 1.5), ("audio", 0.5, 1.5), ("video", None, None)
    ]  # fmt: skip
    assert [item["type"] for item in prompt.conversation[0]["content"]] == ["video", "audio", "video", "text"]


def test_a_part_of_another_type_is_named_with_its_item(films):
    for part, words in (
        ({"type": "film"}, "'film'.*text, image, video and audio"),
        ({"type": "image", "video": "a"}, ""),
    ):
        arguments = ("", lambda document, part=part: user(text("?"), part), {}, 0, "task", "test")
        with pytest.raises(InputError, match=f"task, item 'x': .*item 1: .*{words}"):
            read_request(0, SimpleNamespace(args=arguments), {"task": {"test": [{"id": "x"}]}})
