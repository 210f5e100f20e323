"""The nano backbone's networks, made from configs, and the forward pass of a packed training batch."""

import functools
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from .seeing_batches import MERGE, PATCH_PX, TOKENS_PER_SECOND, PackedBatch


def build_vlm(tokenizer, hidden: int, layers: int, vision_layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights; heads have 32 dimensions."""
    ids = tokenizer.convert_tokens_to_ids
    heads = hidden // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "initializer_range": hidden**-0.5 / 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_heads": heads,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": list(range(vision_layers)),
            "tokens_per_second": TOKENS_PER_SECOND,
            "initializer_range": hidden**-0.5 / 2,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    # Words that stand out from what the untrained layers add are told apart sooner; so are neighbouring positions with
    # a `rope_theta` that fits sequences of some hundred tokens. Both make letters mean their options sooner.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_audio(hidden: int) -> tuple[WhisperModel, WhisperFeatureExtractor]:
    """A Whisper with random weights whose window is 3 s: 150 log-mel frames of 20 ms become 75 positions."""
    extractor = WhisperFeatureExtractor(
        feature_size=64, sampling_rate=16000, hop_length=320, chunk_length=3, n_fft=640, padding_value=0.0
    )
    config = WhisperConfig(
        vocab_size=16,
        num_mel_bins=64,
        d_model=hidden,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=2 * hidden,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=hidden,
        max_source_positions=75,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        dropout=0.0,
        init_std=hidden**-0.5 / 2,
    )
    return WhisperModel(config), extractor


def _equal_length_attention(attention, length, hidden_states, cu_seqlens=None, position_embeddings=None, **kwargs):
    n = hidden_states.shape[0]
    qkv = attention.qkv(hidden_states).view(n, 3, attention.num_heads, -1)
    q, k, v = qkv.unbind(1)  # (N, heads, head_dim)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.view(n // length, length, attention.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)  # (slabs, heads, length, head_dim)
    return attention.proj(mixed.transpose(1, 2).reshape(n, -1))


@contextmanager
def equal_length_attention(visual, length: int):
    """Vision attention as one batched call; transformers calls it once a slab, which costs more than the sums."""
    for block in visual.blocks:
        block.attn.forward = functools.partial(_equal_length_attention, block.attn, length)
    try:
        yield
    finally:
        for block in visual.blocks:
            del block.attn.forward


def packed_logits(model: Qwen2_5_VLForConditionalGeneration, batch: PackedBatch) -> torch.Tensor:
    """Logits (N, V) that predict the answer tokens of a packed batch."""
    inner = model.model
    embeds = inner.get_input_embeddings()(batch.input_ids)  # (B, T, D)
    if batch.num_slabs:
        per_slab = len(batch.patches) // batch.num_slabs
        side = int(per_slab**0.5)
        # Attention stays inside a slab, so that all slabs of all media are one long video.
        grid = torch.tensor([[batch.num_slabs, side, side]])
        with equal_length_attention(inner.visual, per_slab):
            features = inner.visual(batch.patches, grid_thw=grid).pooler_output
        embeds = embeds.masked_scatter(batch.vision_mask[..., None], features)
    hidden = inner.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.rows, batch.columns])
