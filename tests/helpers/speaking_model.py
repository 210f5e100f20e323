"""A tiny VAEmotionLLM with random weights whose answers are letters that depend on what it sees and hears."""

from pathlib import Path

import tiny
import torch

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor


def make(folder: Path) -> Path:
    """Saves the model under `folder`; its answers are made of A, B, C, D and the end of the turn."""
    path = tiny.make_vaemotionllm(folder)
    processor = VAEmotionLLMProcessor.from_pretrained(path)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path)
    letters = processor.tokenizer.convert_tokens_to_ids(["A", "B", "C", "D", "<|im_end|>"])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # Embeddings are tied to the head: large rows for these tokens, so that one of them always has the top logit.
        weight = model.get_input_embeddings().weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        weight[letters] = torch.randn((len(letters), weight.shape[1]), generator=generator)
        for name, parameter in model.named_parameters():
            # Strong layers: visual and audio must move the answer of a random model.
            # So must the way in for audio, or any two audios are the same to it.
            strong = any(part in name for part in ("layers", "conv", "audio_projector.linear"))
            if strong and parameter.ndim >= 2:
                parameter.mul_(20)
    model.save_pretrained(path)
    return path
