"""config.json folders with the public dimensions of the models that the shipped configs name; no weights, no network.

The sizes are those of the models' own config.json on the Hub; a test compares the parameters with the published
totals.
"""

from pathlib import Path

from transformers import ASTConfig, Qwen2_5_VLConfig, Qwen3VLConfig, WhisperConfig

# Parameters of the published weights: of Whisper-large-v3 those of its encoder, of AST without the classifier.
PUBLISHED = {
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "openai/whisper-large-v3": 636_968_960,
    "MIT/ast-finetuned-audioset-10-10-0.4593": 86_187_264,
}


def qwen2_5_vl(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool):
    text = dict(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=128_000, rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    vision = dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=hidden, patch_size=14,
        spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
    )  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, dtype="bfloat16")


def qwen3_vl_8b():
    text = dict(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151_936, max_position_embeddings=262_144, rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
        },
    )  # fmt: skip
    vision = dict(
        depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096, patch_size=16,
        spatial_merge_size=2, temporal_patch_size=2, deepstack_visual_indexes=[8, 16, 24],
        num_position_embeddings=2304,
    )  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, dtype="bfloat16")


def whisper_large_v3():
    return WhisperConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, decoder_layers=32,
        decoder_attention_heads=20, decoder_ffn_dim=5120, num_mel_bins=128, max_source_positions=1500,
        max_target_positions=448, vocab_size=51_866,
    )  # fmt: skip


MAKERS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: qwen2_5_vl(3584, 18_944, 28, 28, 4, 152_064, tied=False),
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda: qwen2_5_vl(2048, 11_008, 36, 16, 2, 151_936, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": qwen3_vl_8b,
    "openai/whisper-large-v3": whisper_large_v3,
    "MIT/ast-finetuned-audioset-10-10-0.4593": ASTConfig,  # the library's defaults are this model's
}


def write_config(name: str, folder: Path) -> Path:
    """The folder `folder/name` with the config.json of a model on the Hub."""
    target = folder / name
    MAKERS[name]().save_pretrained(target)
    return target
