"""The processor: files and arrays in, placeholders and features out."""

import numpy as np
import pytest
import soundfile
import tiny
import torch
from chats import IMAGE, LONG_AUDIO, MIXED, SHORT_AUDIO, VIDEO, encode, text, user
from PIL import Image

from vaemotionllm import InputError, VAEmotionLLMProcessor


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def processor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    vlm, audio = tiny.make_vlm(request.param, folder), tiny.make_audio("whisper", folder)
    return VAEmotionLLMProcessor.from_backbone(vlm, audio, projector_stride=10, num_frames=4, max_audio_s=20)


@pytest.mark.parametrize("samples", [1, 3_199, 3_200, 3_201, 32_000, 32_001, 70_000])
def test_placeholders_features_and_model_agree_on_every_length(processor, samples):
    inputs = encode(processor, [user({"type": "audio", "audio": np.ones(samples, np.float32)}, text("?"))])
    placeholders = int((inputs["input_ids"] == processor.audio_token_id).sum())
    windows = -(-samples // 32_000)
    assert inputs["input_features"].shape[0] == len(inputs["audio_num_tokens"]) == windows
    # 3,200 samples a token, each window rounded up on its own and framed by two boundary tokens.
    naive = sum(-(-min(32_000, samples - start) // 3_200) + 2 for start in range(0, samples, 32_000))
    assert placeholders == naive == int(inputs["audio_num_tokens"].sum()) + 2 * windows


def test_assembled_batches_equal_processed_ones(processor):
    texts = processor.apply_chat_template(MIXED, tokenize=False, add_generation_prompt=True)
    media = [
        processor.encode_audio(LONG_AUDIO["audio"]),
        processor.encode_image(IMAGE["image"]),
        processor.encode_video(VIDEO["video"], 24.0, range(4)),
        processor.encode_audio(SHORT_AUDIO["audio"]),
    ]
    assembled, processed = processor.assemble(texts, media, padding_side="left"), encode(processor, MIXED)
    assert set(assembled) == set(processed)
    assert all(torch.equal(assembled[key], processed[key]) for key in processed)
    with pytest.raises(InputError, match="2 audio placeholders .* and 1 audio inputs"):
        processor.assemble(texts, media[:3])


def test_files_arrays_and_bytes_give_the_same(processor, tmp_path):
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    waveform = (rng.standard_normal(16_000) * 0.1).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", waveform, 16_000, subtype="FLOAT")
    sources = {
        "arrays": (picture, waveform),
        "paths": (str(tmp_path / "picture.png"), tmp_path / "sound.wav"),
        "bytes": ((tmp_path / "picture.png").read_bytes(), (tmp_path / "sound.wav").read_bytes()),
    }
    encoded = [
        encode(processor, [user({"type": "image", "image": image}, {"type": "audio", "audio": audio}, text("Both?"))])
        for image, audio in sources.values()
    ]
    for other in encoded[1:]:
        assert all(torch.equal(other[key], encoded[0][key]) for key in encoded[0])


def test_audio_of_another_rate_and_stereo_is_made_mono_at_the_towers_rate(processor):
    time = np.arange(48_000) / 48_000
    stereo = np.stack([np.sin(2 * np.pi * 440 * time)] * 2).astype(np.float32)
    prompt = processor.apply_chat_template(user({"type": "audio"}, text("?")), tokenize=False)
    inputs = processor(text=prompt, audio=[stereo], sampling_rate=48_000, return_tensors="pt")
    native = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    expected = processor(text=prompt, audio=[native], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert (inputs["input_features"] - expected["input_features"]).abs().mean() < 0.02


@pytest.mark.parametrize(
    "waveform, message",
    [
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.zeros((9, 9), np.float32), r"shape \(9, 9\)"),
        (np.zeros(16_000 * 21, np.float32), "21.0 s long, but max_audio_s is 20"),
    ],
)
def test_unusable_audio_is_refused(processor, waveform, message):
    with pytest.raises(InputError, match=message):
        processor.encode_audio(waveform)


def test_missing_file_is_named(processor, tmp_path):
    with pytest.raises(InputError, match="nothing.wav"):
        encode(processor, [user({"type": "audio", "audio": str(tmp_path / "nothing.wav")}, text("?"))])


def test_rendered_prompt_of_a_turn_with_everything(tmp_path):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    processor = VAEmotionLLMProcessor.from_backbone(vlm, audio)
    conversation = [
        {"role": "system", "content": "Be short."},
        *user(IMAGE, VIDEO, SHORT_AUDIO, text("What is this?")),
    ]
    assert processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
        "<|audio_pad|>What is this?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_save_and_load_give_the_same_inputs(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = VAEmotionLLMProcessor.from_pretrained(tmp_path)
    assert (loaded.num_frames, loaded.max_audio_s, loaded.samples_per_token) == (4, 20, 3_200)
    first, second = encode(processor, MIXED), encode(loaded, MIXED)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_backbone_that_takes_no_videos_is_named(tmp_path, monkeypatch):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    from vaemotionllm.model import processing_vaemotionllm

    class Pictures:
        chat_template = "x"

    monkeypatch.setattr(processing_vaemotionllm.AutoProcessor, "from_pretrained", lambda *_, **__: Pictures())
    with pytest.raises(InputError, match="Pictures, takes no videos"):
        VAEmotionLLMProcessor.from_backbone(str(vlm), str(audio))
