"""Tiny real models with random weights: one folder a backbone family, one an audio tower."""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<image>", "<video>",
)  # fmt: skip
VOCAB = 300

QWEN_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{%- for item in message.content -%}
{%- if item.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif item.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif item.type == 'text' -%}{{ item.text }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
LLAVA_TEMPLATE = (
    QWEN_TEMPLATE.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    .replace("<|image_pad|>", "<image>").replace("<|video_pad|>", "<video>")
)  # fmt: skip

TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, vocab_size=VOCAB, max_position_embeddings=2048, bos_token_id=None, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: any text can be written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=list(SPECIAL),
    )  # fmt: skip


def make_vlm(family: str, folder: Path) -> Path:
    """Saves a tiny backbone with its processor under `folder`."""
    torch.manual_seed(0)
    tok = tokenizer()
    ids = {token: tok.convert_tokens_to_ids(token) for token in SPECIAL}
    qwen_ids = dict(
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    images = dict(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28 * 28, max_pixels=56 * 56)
    if family == "qwen2_5_vl":
        vision = dict(
            depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, fullatt_block_indexes=[1], window_size=56,
        )  # fmt: skip
        config = Qwen2_5_VLConfig(
            text_config={**TEXT, "rope_parameters": MROPE}, vision_config=vision, tie_word_embeddings=True, **qwen_ids
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
        processor = Qwen2_5_VLProcessor(
            Qwen2VLImageProcessor(**images), tok, Qwen2VLVideoProcessor(**images), chat_template=QWEN_TEMPLATE
        )
    elif family == "qwen3_vl":
        vision = dict(
            depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, deepstack_visual_indexes=[0, 1], num_position_embeddings=16,
        )  # fmt: skip
        config = Qwen3VLConfig(
            text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
            vision_config=vision,
            **qwen_ids,
        )
        model = Qwen3VLForConditionalGeneration(config)
        processor = Qwen3VLProcessor(
            Qwen2VLImageProcessor(**images), tok, Qwen3VLVideoProcessor(**images), chat_template=QWEN_TEMPLATE
        )
    elif family == "llava_onevision":
        vision = dict(
            model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False,
        )  # fmt: skip
        config = LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **TEXT}, vision_config=vision, image_token_index=ids["<image>"],
            video_token_index=ids["<video>"], image_grid_pinpoints=[[28, 28]], vision_feature_layer=-1,
        )  # fmt: skip
        model = LlavaOnevisionForConditionalGeneration(config)
        size = {"height": 28, "width": 28}
        processor = LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28]]), tok,
            LlavaOnevisionVideoProcessor(size=size), num_image_tokens=4, vision_feature_select_strategy="full",
            chat_template=LLAVA_TEMPLATE,
        )  # fmt: skip
    else:
        raise ValueError(family)
    target = folder / family
    model.eval().save_pretrained(target)
    processor.save_pretrained(target)
    return target


def make_audio(family: str, folder: Path) -> Path:
    """Saves a tiny audio model with its feature extractor under `folder`: windows of 2 s at 16 kHz."""
    torch.manual_seed(1)
    if family == "whisper":
        config = WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=48, num_mel_bins=16, max_source_positions=100, vocab_size=20,
            max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        model, extractor = WhisperModel(config), WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    elif family == "ast":
        config = ASTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_length=200,
            num_mel_bins=32, patch_size=16, frequency_stride=10, time_stride=10,
        )  # fmt: skip
        model, extractor = ASTModel(config), ASTFeatureExtractor(num_mel_bins=32, max_length=200)
    else:
        raise ValueError(family)
    target = folder / family
    model.save_pretrained(target)
    extractor.save_pretrained(target)
    return target


def make_vaemotionllm(folder: Path, vlm: str = "qwen2_5_vl", audio: str = "whisper", **config_fields) -> Path:
    """Saves a tiny VAEmotionLLM with its processor under `folder`."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    config_fields = {"projector_stride": 10, "enhancer_rank": 4, "supervisor_hidden_size": 8, **config_fields}
    vlm_path, audio_path = make_vlm(vlm, folder), make_audio(audio, folder)
    torch.manual_seed(2)
    model = VAEmotionLLMForConditionalGeneration.from_backbone(vlm_path, audio_path, **config_fields)
    processor = VAEmotionLLMProcessor.from_backbone(
        vlm_path, audio_path, projector_stride=config_fields["projector_stride"], num_frames=4
    )
    target = folder / f"vaemotionllm_{vlm}_{audio}"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def make_backbone(folder: Path) -> Path:
    """Fills a folder as `nano backbone --out` leaves it, with random weights."""
    make_vlm("qwen2_5_vl", folder).rename(folder / "vlm")
    make_audio("whisper", folder).rename(folder / "audio")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    return folder


def write_audio_only(folder: Path, out: Path, **backbone) -> None:
    """A saved model without its backbone, as `push --audio-only` makes it, in a folder of its own."""
    from vaemotionllm.hub.push import leave_out_backbone

    files = [path for path in folder.iterdir() if path.is_file()]
    out.mkdir(exist_ok=True)
    for path in files:
        shutil.copyfile(path, out / path.name)
    leave_out_backbone(out, **backbone)
