"""What enters the LLM beside text: sound, and the Enhancer's residual. All of it lives for one call of the model."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .emotion_adapter import EmotionEnhancer, MediaTokens
from .packing import pack_decoder_inputs, unpack_states


class EnhancedLayer(nn.Module):
    """Stands in for a layer of the LLM during one call: the residual enters before it.

    A hook on the layer would do, were it not that gradient checkpointing runs the layer again in the backward pass,
    when the call and its hooks are gone.
    """

    def __init__(self, layer: nn.Module, enhance: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        # Not registered: it stays a part of the LLM.
        self.__dict__["layer"], self.__dict__["enhance"] = layer, enhance

    def __getattr__(self, name):
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states, *args, **kwargs):
        return self.layer(self.enhance(hidden_states), *args, **kwargs)


@dataclass
class MediaInjection:
    """What the hooks on the decoder put into, and take out of, one call of the backbone."""

    audio_mask: torch.Tensor  # (B, T) bool
    visual_mask: torch.Tensor  # (B, T) bool
    audio_embeds: torch.Tensor | None  # (N, D)
    enhancers: Mapping[str, EmotionEnhancer] | None  # by layer; None with the adapter off
    packed: torch.Tensor | None = None  # (B, T) bool, False on padding that the decoder is to be spared
    last_hidden_state: torch.Tensor | None = None  # (B, T, D), after the final norm

    def before_decoder(self, module, args, kwargs):
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            raise TypeError(
                f"{type(module).__name__} was called without inputs_embeds; this backbone cannot be given audio."
            )
        if embeds.shape[1] != self.audio_mask.shape[1]:
            return None  # a decoding step of generate: the media are in the cache
        copies = embeds.shape[0] // self.audio_mask.shape[0]  # beams, or several sequences a prompt
        audio_mask = self.audio_mask.repeat_interleave(copies, dim=0)
        visual_mask = self.visual_mask.repeat_interleave(copies, dim=0)
        if self.audio_embeds is not None:
            audio_embeds = self.audio_embeds
            if copies > 1:
                per_sample = self.audio_mask.sum(1).tolist()
                audio_embeds = torch.cat([part.repeat(copies, 1) for part in audio_embeds.split(per_sample)])
            embeds = embeds.masked_scatter(audio_mask.unsqueeze(-1), audio_embeds.to(embeds))
        arguments = {**kwargs, "inputs_embeds": self._enhanced("0", embeds, audio_mask, visual_mask)}
        if self.packed is not None:
            arguments = pack_decoder_inputs(arguments, self.packed, module.config)
        return args, arguments

    def before_layer(self, layer: str, states: torch.Tensor) -> torch.Tensor:
        """The states (B, T, D) that enter a layer, or (1, tokens, D) where the decoder is packed."""
        audio_mask, visual_mask = self.audio_mask, self.visual_mask
        if self.packed is None:
            if states.shape[1] != audio_mask.shape[1]:
                return states  # a decoding step
            copies = states.shape[0] // audio_mask.shape[0]
            audio_mask = audio_mask.repeat_interleave(copies, dim=0)
            visual_mask = visual_mask.repeat_interleave(copies, dim=0)
        return self._enhanced(layer, states, audio_mask, visual_mask)

    def _enhanced(self, layer: str, states, audio_mask, visual_mask) -> torch.Tensor:
        """Adds a place's residual to the media tokens; text tokens come out as they went in, bit for bit."""
        if self.enhancers is None or layer not in self.enhancers:
            return states
        mask = audio_mask | visual_mask
        tokens = mask if states.shape[:2] == mask.shape else mask[self.packed].unsqueeze(0)
        enhanced = self.enhancers[layer](states[tokens], MediaTokens.of(audio_mask, visual_mask))
        return states.masked_scatter(tokens.unsqueeze(-1), enhanced.to(states.dtype))

    def after_decoder(self, module, args, output):
        if self.packed is not None:
            output.last_hidden_state = unpack_states(output.last_hidden_state, self.packed)
        if output[0].shape[1] == self.audio_mask.shape[1]:  # not a decoding step
            self.last_hidden_state = output[0]
        return output

    @contextlib.contextmanager
    def entered(self, decoder: nn.Module):
        """Runs the body with the media at the decoder's input. Hooks live for one call; no state stays."""
        layers = {name: decoder.layers[int(name)] for name in self.enhancers or () if name != "0"}
        before = decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        after = decoder.register_forward_hook(self.after_decoder)
        try:
            for name, layer in layers.items():
                decoder.layers[int(name)] = EnhancedLayer(layer, partial(self.before_layer, name))
            yield
        finally:
            for name, layer in layers.items():
                decoder.layers[int(name)] = layer
            before.remove()
            after.remove()
