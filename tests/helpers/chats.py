"""Conversations with media, their inputs, and an EmoAdapter that does something."""

import numpy as np
import torch
from PIL import Image


def user(*content):
    return [{"role": "user", "content": list(content)}]


def text(words):
    return {"type": "text", "text": words}


RNG = np.random.default_rng(0)


IMAGE = {"type": "image", "image": Image.fromarray(RNG.integers(0, 255, (56, 56, 3), dtype=np.uint8))}


VIDEO = {"type": "video", "video": RNG.integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)}


LONG_AUDIO = {"type": "audio", "audio": (RNG.standard_normal(40_000) * 0.1).astype(np.float32)}  # two windows


SHORT_AUDIO = {"type": "audio", "audio": (RNG.standard_normal(9_000) * 0.1).astype(np.float32)}


MIXED = [
    user(LONG_AUDIO, text("What?")),
    user(IMAGE, text("What is it?")),
    user(VIDEO, SHORT_AUDIO, text("And this?")),
    user(text("No media.")),
]


def encode(processor, conversations, **kwargs):
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs={"padding": True, **kwargs},
    )  # fmt: skip


def trained_adapter(model):
    """Gives the adapter weights that do something, as training would."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for module in model.emotion_adapter.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.3)
