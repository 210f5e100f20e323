"""What the conformity tests share: tiny models whose answers depend on what they see and hear, inputs, references."""

from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

RNG = np.random.default_rng(0)
IMAGE = {"type": "image", "image": Image.fromarray(RNG.integers(0, 255, (56, 56, 3), dtype=np.uint8))}
AUDIO, OTHER_AUDIO = (
    {"type": "audio", "audio": (RNG.standard_normal(samples) * 0.1).astype(np.float32)} for samples in (40_000, 9_000)
)


def user(*content) -> dict:
    """A turn of words (str) and media."""
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


# Audio of two windows, visual, both, neither.
MIXED = [[user(AUDIO, "What?")], [user(IMAGE, "What is it?")], [user(IMAGE, OTHER_AUDIO, "And?")], [user("No media.")]]


def make(folder: Path, family: str = "qwen2_5_vl", **config_fields) -> Path:
    """Saves a tiny model with strong random layers and a random EmoAdapter: visual and audio move its answers."""
    path = tiny.make_vaemotionllm(folder, family, **config_fields)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "norm" in name:
                continue
            if "emotion_adapter" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif any(part in name for part in ("layers", "blocks", "conv", "audio_projector.linear")):
                parameter.mul_(20 if "audio" in name else 8)
    model.save_pretrained(path)
    return path


def load(path: Path, **options) -> tuple[VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor]:
    """Model, in eval mode, and processor of a folder."""
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path, **options).eval()
    return model, VAEmotionLLMProcessor.from_pretrained(path)


def encode(processor, *conversations, generation_prompt: bool = True) -> dict:
    """Inputs of a batch, padded on the left."""
    return dict(processor.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, add_generation_prompt=generation_prompt,
        return_tensors="pt", processor_kwargs={"padding": True},
    ))  # fmt: skip


def extended(inputs: dict, tokens: torch.Tensor) -> dict:
    """The inputs with text tokens (B, n) added at the end of each row."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.full_like(tokens, value)], dim=1)
    return longer


@torch.no_grad()
def next_logits(model, inputs: dict, tokens: torch.Tensor, **options) -> torch.Tensor:
    """(B, V) float32 logits of what comes after the inputs and tokens (B, n): one whole pass, no cache.

    As `generate` does with `steps`, it leaves out the end of the turn and the media's placeholders.
    """
    logits = model(**extended(inputs, tokens), use_cache=False, **options).logits[:, -1].float()
    logits[:, [2, *model.config.visual_token_ids, model.config.audio_token_id]] = -torch.inf
    return logits


def steps(model, count: int) -> dict:
    """Options of `generate` for this many tokens of text."""
    text_only = [*model.config.visual_token_ids, model.config.audio_token_id]
    return {"max_new_tokens": count, "min_new_tokens": count, "suppress_tokens": text_only}


def greedy(model, inputs: dict, count: int, **options) -> torch.Tensor:
    """(B, count) likeliest tokens, each found by a whole pass."""
    tokens = inputs["input_ids"].new_zeros(len(inputs["input_ids"]), 0)
    for _ in range(count):
        best = next_logits(model, inputs, tokens, **options).argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens


def new_tokens(generated, inputs: dict) -> torch.Tensor:
    """(B, n) what `generate` added to the inputs, whose ids it must give back as they were."""
    sequences = generated if isinstance(generated, torch.Tensor) else generated.sequences
    prompt = inputs["input_ids"]
    copies = len(sequences) // len(prompt)
    assert torch.equal(sequences[:, : prompt.shape[1]], prompt.repeat_interleave(copies, dim=0))
    return sequences[:, prompt.shape[1] :]
