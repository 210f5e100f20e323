"""The processor's calls: media in any form, sound of any rate, limits, arguments and what errors say."""

import base64
import itertools
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
import torch
from chats import IMAGE, MIXED, SHORT_AUDIO, VIDEO, encode, text, user
from media_files import picture, tone, write_png, write_video, write_wav
from PIL import Image

from vaemotionllm import InputError, VAEmotionLLMProcessor

RATE = 16_000


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    vlm, audio = tiny.make_vlm("qwen2_5_vl", folder), tiny.make_audio("whisper", folder)
    return VAEmotionLLMProcessor.from_backbone(vlm, audio, projector_stride=10, num_frames=4, max_audio_s=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("media")
    return {
        "image": write_png(place / "a picture.png"),
        "audio": write_wav(place / "a sound.wav"),
        "video": write_video(place / "a film.mp4", 1.0),
    }


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def one(processor, kind, source, **fields):
    return encode(processor, [user({"type": kind, kind: source, **fields}, text("?"))])


# ---- what a medium may be given as


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_paths_urls_and_bytes_of_a_file_give_the_same(processor, files, kind):
    path = files[kind]
    expected = one(processor, kind, str(path))
    content = path.read_bytes()
    data = base64.b64encode(content).decode()
    sources = {
        "path object": path, "file url": path.as_uri(), "localhost": path.as_uri().replace("file://", "file://localhost"),
        "bytes": content,
        "data url": f"data:{kind}/x;base64,{data}", "datasets": {"bytes": content, "path": None},
        "datasets by path": {"bytes": None, "path": str(path)},
    }  # fmt: skip
    for name, source in sources.items():
        assert_equal(one(processor, kind, source), expected), name
    for key, value in {"url": path.as_uri(), "path": path, "bytes": content, "base64": data}.items():
        assert_equal(encode(processor, [user({"type": kind, key: value}, text("?"))]), expected)
    # The ways around a conversation agree with it.
    prompt = processor.apply_chat_template([user({"type": kind}, text("?"))], add_generation_prompt=True)
    assembled = processor.assemble(prompt, [processor.encode_media(kind, path.as_uri())])
    assert_equal(assembled, expected)
    name = {"image": "images", "video": "videos", "audio": "audio"}[kind]
    for given in (str(path), [path], [[content]]):
        assert_equal(processor(text=prompt, **{name: given}, padding=True, return_tensors="pt"), expected)


def test_the_parts_of_the_openai_api_are_understood(processor, files):
    data = {kind: base64.b64encode(path.read_bytes()).decode() for kind, path in files.items()}
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data['image']}"}},
        {"type": "video_url", "video_url": {"url": files["video"].as_uri()}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data['audio']}"}},
        {"type": "input_audio", "input_audio": {"data": data["audio"], "format": "wav"}},
        text("?"),
    ]
    plain = [{"type": kind, "path": files[kind]} for kind in ("image", "video", "audio", "audio")]
    assert_equal(encode(processor, [user(*content)]), encode(processor, [user(*plain, text("?"))]))


WHERE = "sample 1, message 0, item 1"


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize("kind", ["Image", "images", "image_ur", "video_frames", "tool_use", "", 3, ["audio"]])
def test_a_type_that_is_none_of_four_is_refused(processor, files, kind, tokenize):
    part = {"type": kind, "path": str(files["image"]), "audio": str(files["audio"])}
    with pytest.raises(InputError, match=f"{WHERE}: .*{re.escape(repr(kind))}.*text, image, video and audio"):
        processor.apply_chat_template([user(IMAGE), user(text("?"), part)], tokenize=tokenize, return_dict=tokenize)


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *itertools.permutations(("text", "image", "video", "audio"), 2),
        *(("text", key) for key in ("url", "path", "bytes", "base64")),
        ("image", "image_url"),
        ("audio", "input_audio"),
        ("text", "image_url"),
        ("video_url", "image"),
    ],
)
def test_a_key_that_does_not_fit_its_type_is_refused(processor, files, kind, key, tokenize):
    part = {"type": kind, kind: "?" if kind == "text" else str(files[kind.removesuffix("_url")]), key: "a.mp4"}
    with pytest.raises(InputError, match=f"{WHERE}: .*{kind.removesuffix('_url')!r}.*{key!r}"):
        processor.apply_chat_template([user(IMAGE), user(text("?"), part)], tokenize=tokenize, return_dict=tokenize)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"format": "wav"}},
        {"type": "audio_url", "audio_url": {}},
        {"type": "video_url", "video_url": {"url": None}},
        {"type": "image_url"},
        "a text",
    ],
)
def test_a_part_without_its_medium_is_refused(processor, part):
    with pytest.raises(InputError, match=f"{WHERE}: "):
        processor.apply_chat_template([user(IMAGE), user(text("?"), part)], tokenize=False)


def test_what_an_item_says_beside_its_medium_and_empty_columns_are_allowed(processor, files):
    # As a table of items has them: every key in every row.
    none = dict.fromkeys(("text", "image", "video", "audio", "url", "base64"))
    plain = encode(processor, [user({"type": "image", "path": files["image"]}, text("?"))])
    image = {
        **none,
        "type": "image",
        "path": str(files["image"]),
        "min_pixels": 3136,
        "max_pixels": 10**6,
        "detail": "low",
    }
    assert_equal(encode(processor, [user(image, {**none, **text("?"), "path": ""})]), plain)
    fields = {"fps": 2.0, "nframes": 4, "start_time": 0.0, "min_pixels": 3136, "use_audio_in_video": False}
    video = {"type": "video", "path": str(files["video"])}
    assert_equal(encode(processor, [user(video | fields, text("?"))]), encode(processor, [user(video, text("?"))]))


def test_arrays_tensors_and_pictures_give_the_same(processor):
    frames = np.stack([picture(56, seed) for seed in range(4)])
    pictures = [Image.fromarray(frame) for frame in frames]
    expected = one(processor, "video", frames)
    assert_equal(one(processor, "video", torch.from_numpy(frames)), expected)
    assert_equal(one(processor, "video", pictures), expected)
    expected = one(processor, "image", pictures[0])
    assert_equal(one(processor, "image", frames[0]), expected)
    assert_equal(one(processor, "image", torch.from_numpy(frames[0]).permute(2, 0, 1)), expected)
    sound = tone(0.5)
    expected = one(processor, "audio", sound)
    for same in (torch.from_numpy(sound), torch.from_numpy(sound).double(), sound.tolist(), sound.astype(np.float64)):
        assert_equal(one(processor, "audio", same), expected)
    assert_equal(one(processor, "audio", torch.from_numpy(sound).requires_grad_()), expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "https://me:secret@example.org/a.wav?key=secret",
            "item 0: https://example.org/a.wav is not .*Download the file",
        ),
        ("http://169.254.169.254/latest", "read from this machine alone"),
        ("s3://bucket/a.wav", "Download the file"),
        ("file://elsewhere/a.wav", "from this machine alone"),
        ("data:audio/wav;base64,%%%", "no base64"),
        ("data:audio/wav,abc", "no data URL with base64"),
        ("/nowhere/a.wav", r"audio 0 \(/nowhere/a.wav\): file not found"),
        (b"no sound", "audio 0 .*8 bytes.*a text file"),
        ({"sampling_rate": 3}, "no `bytes`, `path` or `array`"),
    ],
)
def test_what_cannot_be_opened_is_named(processor, source, words):
    with pytest.raises(InputError, match=words) as error:
        encode(processor, [user(text("?")), user({"type": "audio", "audio": source}, text("?"))])
    assert "secret" not in str(error.value)


def test_bad_pictures_and_films_are_named_by_their_place(processor, files):
    with pytest.raises(InputError, match=r"the image \(.*a sound.wav\): this is no image"):
        encode(processor, [user(IMAGE), user({"type": "image", "path": files["audio"]})])
    with pytest.raises(InputError, match=r"video 1 \(.*a sound.wav\): .*no video track"):
        encode(processor, [user(VIDEO, {"type": "video", "path": files["audio"]})])
    with pytest.raises(InputError, match=r"sample 0, message 0, item 0: frames of shape \(4, 56, 56\)"):
        one(processor, "video", np.zeros((4, 56, 56), np.uint8))
    with pytest.raises(InputError, match=r"sample 0, message 0, item 0: it has \['image'\] and no `type`"):
        encode(processor, [user({"image": "a.png"})])


# ---- sound of any rate and number of channels


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_decoded_sound_is_heard_as_its_file_is(processor, tmp_path, rate_hz, channels):
    samples = tone(0.5, rate_hz, 300.0, channels)  # (samples,) or (samples, channels)
    soundfile.write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    expected = one(processor, "audio", tmp_path / "a.wav")
    found = [
        one(processor, "audio", samples, sampling_rate=rate_hz),
        one(processor, "audio", samples.T, sampling_rate=rate_hz),
        one(processor, "audio", {"array": torch.from_numpy(samples), "sampling_rate": rate_hz}),
    ]
    prompt = processor.apply_chat_template([user({"type": "audio"}, text("?"))], add_generation_prompt=True)
    for arguments in ({"sampling_rate": rate_hz}, {"audio_kwargs": {"sampling_rate": rate_hz}}):
        found.append(processor(text=prompt, audio=samples, **arguments, padding=True, return_tensors="pt"))
    for inputs in found:
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        torch.testing.assert_close(inputs["input_features"], expected["input_features"], atol=2e-2, rtol=0)
    assert expected["audio_num_tokens"].tolist() == [-(-len(tone(0.5)) // 3_200)]


def test_each_sound_of_a_batch_may_have_its_own_rate(processor):
    slow, fast = tone(0.5, 8_000), tone(0.5, 48_000, channels=2)
    batch = encode(
        processor,
        [
            user({"type": "audio", "audio": slow, "sampling_rate": 8_000}, text("?")),
            user({"type": "audio", "audio": fast, "sampling_rate": 48_000}, SHORT_AUDIO, text("?")),
        ],
    )
    alone = [one(processor, "audio", slow, sampling_rate=8_000), one(processor, "audio", fast, sampling_rate=48_000)]
    for row, inputs in enumerate(alone):
        assert torch.equal(batch["input_features"][row], inputs["input_features"][0])
    assert torch.equal(batch["input_features"][2], encode(processor, [user(SHORT_AUDIO)])["input_features"][0])


def test_a_sound_of_a_data_set_is_taken_as_it_comes(processor):
    """Decoded by the datasets library: an object that gives samples and rate."""
    samples = SimpleNamespace(data=torch.from_numpy(tone(0.5, 8_000, channels=2).T.copy()), sample_rate=8_000)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    assert_equal(one(processor, "audio", decoder), one(processor, "audio", samples.data, sampling_rate=8_000))


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31), (np.uint8, 2**7)])
def test_whole_numbers_are_scaled_by_their_type(processor, dtype, scale):
    sound = np.round(tone(0.5) * 100) / 128
    whole = np.round(sound * scale + (128 if dtype == np.uint8 else 0)).astype(dtype)
    found, expected = one(processor, "audio", whole), one(processor, "audio", sound)
    torch.testing.assert_close(found["input_features"], expected["input_features"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros((2, 3, 100), np.float32), None, r"audio 0: .*shape \(2, 3, 100\)"),
        (np.zeros(0, np.float32), None, r"shape \(0,\)"),
        (np.zeros(100, np.int64), None, "samples of type int64"),
        (np.full(100, np.nan, np.float32), None, "NaN"),
        (np.full(100, -3000.0, np.float32), None, "samples reach 3000, and floats lie in"),
        ([[0.0, 1.0], [0.0]], None, "no array"),
        (np.zeros(100, np.float32), 0, "sampling rate is 0"),
        (np.zeros(100, np.float32), 44_100.5, "sampling rate is 44100.5"),
    ],
)
def test_samples_that_cannot_be_heard_are_refused(processor, samples, rate, words):
    item = {"type": "audio", "audio": samples} | ({} if rate is None else {"sampling_rate": rate})
    with pytest.raises(InputError, match=words):
        encode(processor, [user(text("?")), user(item, text("?"))])


# ---- sound that is too long


def test_long_sound_is_refused_and_cut_only_when_that_is_asked_for(processor, tmp_path, caplog):
    logging.Logger.warning_once.cache_clear()
    sound = tone(7.5)
    soundfile.write(tmp_path / "long.wav", sound, RATE, subtype="FLOAT")
    expected = one(processor, "audio", sound[: 5 * RATE])
    for source, words in ((sound, "audio 0: .*7.5 s long"), (str(tmp_path / "long.wav"), "long.wav.*7.5 s")):
        with pytest.raises(InputError, match=words):
            one(processor, "audio", source)
        conversation = [user({"type": "audio", "audio": source}, text("?"))]
        # Beside `audio_kwargs` it is the text's, as in all processors.
        with pytest.raises(InputError, match='audio_kwargs={"truncation": True}|max_audio_s'):
            encode(processor, conversation, truncation=True, max_length=200)
        for _ in range(2):
            assert_equal(encode(processor, conversation, audio_kwargs={"truncation": True}), expected)
    cuts = [record.getMessage() for record in caplog.records if "cut to max_audio_s, 5 s" in record.getMessage()]
    assert len(cuts) == 1


def test_stereo_sound_at_another_rate_is_cut_in_seconds(processor):
    sound = tone(6.0, 44_100, channels=2)
    found = encode(
        processor,
        [user({"type": "audio", "audio": sound, "sampling_rate": 44_100})],
        audio_kwargs={"truncation": True},
    )
    expected = processor.encode_audio(np.zeros(5 * RATE)).replacement
    assert (found["input_ids"] == processor.audio_token_id).sum() == expected.count(processor.audio_token)


# ---- text


def test_ids_become_text_again(processor):
    inputs = encode(processor, MIXED)
    ids = inputs["input_ids"]
    words = [f"user\n{turn}\nassistant\n" for turn in ("What?", "What is it?", "And this?", "No media.")]
    assert processor.batch_decode(ids, skip_special_tokens=True) == words
    assert processor.post_process_image_text_to_text(ids) == words
    assert processor.post_process_multimodal_output(ids) == words
    assert processor.decode(ids[3], skip_special_tokens=True) == words[3]


def test_where_each_placeholder_went_is_told(processor):
    """Sound and pictures are put in by different hands; what they say must fit the text before and after both."""
    prompts = processor.apply_chat_template([user(SHORT_AUDIO, IMAGE, SHORT_AUDIO, VIDEO, text("?")), user(text("a"))])
    inputs = processor(
        text=prompts, images=[IMAGE["image"]], videos=[VIDEO["video"]], audio=[SHORT_AUDIO["audio"]] * 2,
        return_text_replacement_offsets=True,
    )  # fmt: skip
    whole = processor.tokenizer.batch_decode(inputs["input_ids"])
    first, second = inputs["text_replacement_offsets"]
    assert [change["type"] for change in first] == ["audio", "image", "audio", "video"] and not second
    for change in first:
        (begin, end), (new_begin, new_end) = change["span"], change["new_span"]
        assert prompts[0][begin:end] == change["text"]
        assert whole[0][new_begin:new_end] == change["replacement"]


def test_what_the_assistant_said_is_marked_behind_sound(processor):
    template = (
        "{%- for message in messages -%}"
        "{%- if message.role == 'assistant' -%}{% generation %}{{ message.content }}{% endgeneration %}"
        "{%- else -%}{%- for item in message.content -%}"
        "{{ audio_token if item.type == 'audio' else item.text }}"
        "{%- endfor -%}{%- endif -%}"
        "{%- endfor -%}"
    )
    turns = [*user(SHORT_AUDIO, text("What?")), {"role": "assistant", "content": "A bell."}]
    inputs = processor.apply_chat_template(
        [turns], chat_template=template, audio_token=processor.audio_token, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, return_tensors="pt",
    )  # fmt: skip
    marked = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    assert processor.decode(marked) == "A bell."


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"smapling_rate": 8_000}, "no argument 'smapling_rate'"),
        ({"temperature": 1.0}, "no argument 'temperature'"),
        ({"sampling_rate": 8_000, "audio_kwargs": {"sampling_rate": 16_000}}, "sampling_rate was given twice"),
        ({"use_audio_in_video": True}, "no argument 'use_audio_in_video'"),
    ],
)
def test_arguments_that_are_not_known_are_refused(processor, arguments, words):
    with pytest.raises(InputError, match=words):
        processor(text="Hello.", **arguments)
    with pytest.raises(InputError, match=words):
        processor.apply_chat_template([user(text("Hello."))], tokenize=True, processor_kwargs=arguments)


def test_unknown_arguments_of_a_part_are_refused(processor):
    for item, arguments in (
        (SHORT_AUDIO, {"audio_kwargs": {"max_length": 3}}),
        (IMAGE, {"images_kwargs": {"min_pixel": 3}}),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            encode(processor, [user(item)], **arguments)


def test_nested_arguments_reach_their_part(processor):
    conversation = [user(IMAGE, SHORT_AUDIO, text("?")), user(text("?"))]
    flat = encode(processor, conversation, padding_side="left", do_rescale=False)
    nested = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs={
            "text_kwargs": {"padding": True, "padding_side": "left"}, "images_kwargs": {"do_rescale": False},
        },
    )  # fmt: skip
    assert_equal(nested, flat)
    assert not torch.equal(flat["pixel_values"], encode(processor, conversation)["pixel_values"])
    arrays = encode(processor, conversation[:1], return_tensors="np")
    assert {type(value) for value in processor(text="a", audio=None, return_tensors="np").values()} == {np.ndarray}
    assert set(arrays) == set(flat)


def test_frames_are_taken_as_the_call_says(processor, files):
    def steps(source, **arguments):
        inputs = encode(processor, [user({"type": "video", "video": source}, text("?"))], **arguments)
        return int(inputs["video_grid_thw"][0, 0])  # of two frames each

    path, frames = str(files["video"]), np.zeros((12, 56, 56, 3), np.uint8)  # 10 frames in 1 s
    assert [steps(path), steps(frames)] == [2, 6]  # num_frames of the processor, and as they are
    assert [steps(path, num_frames=8), steps(frames, num_frames=8)] == [4, 4]
    assert [steps(path, fps=4), steps(frames, fps=4)] == [2, 1]  # decoded frames are taken for 24 a second
    assert steps(frames, fps=4, video_metadata={"fps": 6.0, "total_num_frames": 12}) == 4
    assert steps(path, do_sample_frames=False) == 5
    assert steps(path, videos_kwargs={"num_frames": 6}) == 3

    film, metadata = f"{processor.video_token}?", [[{"fps": 6.0}], [{"fps": 3.0}]]  # of 2 s and of 4 s
    inputs = processor(text=[film, film], videos=[[frames], [frames]], video_metadata=metadata, fps=2)
    assert [int(grid[0]) for grid in inputs["video_grid_thw"]] == [2, 4]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_are_counted_by_sample_and_kind(family, tmp_path):
    vlm, audio = tiny.make_vlm(family, tmp_path), tiny.make_audio("whisper", tmp_path)
    processor = VAEmotionLLMProcessor.from_backbone(vlm, audio, projector_stride=10)
    inputs = encode(processor, MIXED, padding_side="left")
    counts = processor.count_tokens(inputs)
    assert [sum(count.values()) for count in counts] == inputs["attention_mask"].sum(1).tolist()
    assert [{kind for kind, count in row.items() if count} - {"text"} for row in counts] == [
        {"audio"}, {"image"}, {"video", "audio"}, set()
    ]  # fmt: skip
    lengths = [len(item["audio"]) for item in (MIXED[0][0]["content"][0], SHORT_AUDIO)]
    found = processor._get_num_multimodal_tokens(image_sizes=[(56, 56)], audio_lengths=lengths)
    assert [counts[0]["audio"], counts[2]["audio"]] == found.num_audio_tokens
    assert [counts[1]["image"]] == found.num_image_tokens


def test_media_and_placeholders_that_do_not_match_are_named(processor):
    sound, prompt = SHORT_AUDIO["audio"], f"{processor.audio_token}?"
    with pytest.raises(ValueError, match="Found total 3 .* tokens and 1 audio"):
        processor(text=[prompt, "?", prompt * 2], audio=[sound])
    with pytest.raises(ValueError, match="Found total 0 .* tokens and 1 images"):
        processor(text="?", images=IMAGE["image"])
    # Media in a list for each text: the sum is right, the order is not.
    with pytest.raises(InputError, match="Text 0 holds 1 audio placeholders .* its list 2 audio inputs"):
        processor(text=[prompt, prompt], audio=[[sound, sound], []])
    with pytest.raises(ValueError, match="Found 1 .* but no audio inputs were passed"):
        encode(processor, [user({"type": "audio"}, text("?"))])
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(ValueError, match="list of strings"):
        processor(text=[1])


def test_text_that_is_cut_inside_sound_is_refused(processor):
    with pytest.raises(ValueError, match="Mismatch in `audio` token count"):
        encode(processor, [user(SHORT_AUDIO, text("?"))], truncation=True, max_length=4)


def test_a_user_s_words_are_no_placeholders_where_that_is_asked_for(processor):
    words = f"say {processor.audio_token} and {processor.image_token}"
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "sanitize_control_tokens": True}
    inputs = processor.apply_chat_template([user(SHORT_AUDIO, text(words))], **arguments)
    heard = (inputs["input_ids"] == processor.audio_token_id).sum()
    assert heard == int(inputs["audio_num_tokens"].sum()) + 2
    assert processor.vlm_processor.image_token_id not in inputs["input_ids"]
    assert words in processor.decode(inputs["input_ids"][0])


def test_saving_again_writes_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path / "first")
    loaded = VAEmotionLLMProcessor.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "again")
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert_equal(encode(loaded, MIXED[1:]), encode(processor, MIXED[1:]))
