"""A tiny Qwen2.5-Omni with random weights, without its talker: it sees, hears and writes."""

from pathlib import Path

import tiny
import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

TOKENS = {
    "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
TEMPLATE = (
    tiny.QWEN_TEMPLATE.replace("<|vision_start|>", "<|vision_bos|>").replace("<|vision_end|>", "<|vision_eos|>")
    .replace("<|image_pad|>", "<|IMAGE|>").replace("<|video_pad|>", "<|VIDEO|>")
    .replace("{%- elif item.type == 'text'", "{%- elif item.type == 'audio' -%}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
             "{%- elif item.type == 'text'")
)  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.add_special_tokens({"additional_special_tokens": [*tiny.SPECIAL, *TOKENS.values()]})
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        extra_special_tokens=TOKENS,
    )  # fmt: skip


def make(folder: Path) -> tuple[Path, Path]:
    """Saves a tiny model and its processor to two folders under `folder`, in that order."""
    torch.manual_seed(0)
    words = tokenizer()
    ids = {name: words.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    thinker = dict(
        text_config={**tiny.TEXT, "rope_parameters": tiny.MROPE},
        vision_config=dict(
            depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, fullatt_block_indexes=[1], window_size=56,
        ),
        audio_config=dict(
            num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32,
            max_source_positions=100, n_window=10, output_dim=32,
        ),
        image_token_index=ids["image_token"], video_token_index=ids["video_token"],
        audio_token_index=ids["audio_token"], audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"], vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
    )  # fmt: skip
    config = Qwen2_5OmniConfig(thinker_config=thinker, enable_audio_output=False)
    model = Qwen2_5OmniForConditionalGeneration(config)
    with torch.no_grad():
        # Strong layers: visual and audio must move the answer of a random model.
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "lm_head" not in name:
                parameter.mul_(10)
    images = dict(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(**images), Qwen2VLVideoProcessor(**images),
        WhisperFeatureExtractor(feature_size=16, chunk_length=2), words, chat_template=TEMPLATE,
    )  # fmt: skip
    model.eval().save_pretrained(folder / "omni")
    torch.save({"Chelsie": {}}, folder / "omni/spk_dict.pt")
    processor.save_pretrained(folder / "processor")
    return folder / "omni", folder / "processor"
