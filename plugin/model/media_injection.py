"""Inputs of the LLM beside text: audio, the Enhancer's residual, and batches packed without their padding.

All of it lives for one call of the model.
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .emotion_adapter import EmotionEnhancer, MediaTokens
from .transformers_api import given_cache


@dataclass(frozen=True)
class HostInputs:
    """CPU copies of what the host reads of a batch; to read the device's own, it would wait for the device.

    Not a mapping of tensors, since DistributedDataParallel moves those to its device.
    """

    input_ids: torch.Tensor | None  # (B, T) int64
    attention_mask: torch.Tensor | None = None  # (B, T)
    response_mask: torch.Tensor | None = None  # (B, T) bool
    audio_num_tokens: torch.Tensor | None = None  # (W,) int64


def flat_positions(mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Positions (n,) int64 of what is True in a flattened mask, on a device; nothing waits for a mask on the CPU."""
    return mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)


def scatter_states(states: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The states (B, L, D) with `values` (n, D) at flat positions (n,)."""
    length = states.shape[1]
    return states.index_put((positions // length, positions % length), values.to(states))


class EnhancedLayer(nn.Module):
    """Stands in for a layer of the LLM during one call: the residual enters before it.

    A hook on the layer would do, were it not that gradient checkpointing runs the layer again in the backward pass,
    when the call and its hooks are gone.
    """

    def __init__(self, layer: nn.Module, enhance: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        # Registered, so that transformers finds it when it looks for the layers whose states it is to return.
        self.layer, self.enhance = layer, enhance

    def __getattr__(self, name):
        if name in self._modules:
            return self._modules[name]
        return getattr(self._modules["layer"], name)

    def forward(self, hidden_states, *args, **kwargs):
        return self.layer(self.enhance(hidden_states), *args, **kwargs)


@dataclass
class MediaInjection:
    """What the hooks on the decoder put into, and take out of, one call of the backbone.

    A call may be several passes of the decoder: `generate` cuts a long prompt into chunks, adds candidates to it, or,
    without a cache, runs it again for each token. What a pass holds of the prompt is found by its place.

    Masks are on the CPU where the caller has them there, see `HostInputs`; positions go to the device of the states
    that they are for, which may be another for each layer.
    """

    audio_mask: torch.Tensor  # (B, T) bool; T tokens of the prompt, without those that a given cache holds
    visual_mask: torch.Tensor  # (B, T) bool
    audio_embeds: torch.Tensor | None  # (N, D)
    enhancers: Mapping[str, EmotionEnhancer] | None  # by layer; None with the adapter off
    packed: torch.Tensor | None = None  # (B, T) bool, False on padding that the decoder is to be spared

    def __post_init__(self):
        self.begin = self.end = 0  # the prompt's tokens in the pass that runs; none after the prompt
        self._states: list[torch.Tensor] = []  # (B, tokens, D) of each pass over the prompt, after the final norm

    @property
    def last_hidden_state(self) -> torch.Tensor:
        """States of the prompt (B, T, D) after the final norm, once the decoder has run."""
        return self._states[0] if len(self._states) == 1 else torch.cat(self._states, dim=1)

    def before_decoder(self, module, args, kwargs):
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            raise TypeError(
                f"{type(module).__name__} was called without inputs_embeds; this backbone cannot be given audio."
            )
        prompt = self.audio_mask.shape[1]
        # With a cache a pass begins where the last one ended; without one at the start.
        self.begin = 0 if given_cache(kwargs) is None else self.end
        self.end = min(self.begin + embeds.shape[1], prompt)
        if self.begin == self.end:
            return None  # a decoding step: the media are in the cache
        audio_mask, visual_mask = self._masks(embeds)
        if self.audio_embeds is not None:
            embeds = scatter_states(embeds, flat_positions(audio_mask, embeds.device), self._audio_of(embeds))
        arguments = {**kwargs, "inputs_embeds": self._enhanced("0", embeds, audio_mask, visual_mask)}
        if self.packed is not None:
            arguments = pack_decoder_inputs(arguments, self.packed, module.config)
        return args, arguments

    def _masks(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio and visual mask (B, L) of the pass that runs, for its states (B, L, D); beams have their own rows."""
        copies = states.shape[0] // self.audio_mask.shape[0]
        beyond = states.shape[1] - (self.end - self.begin)  # candidates, or what was generated
        return tuple(
            nn.functional.pad(mask[:, self.begin : self.end], (0, beyond)).repeat_interleave(copies, dim=0)
            for mask in (self.audio_mask, self.visual_mask)
        )

    def _audio_of(self, states: torch.Tensor) -> torch.Tensor:
        """The embeddings (n, D) of the pass's audio tokens, row by row."""
        assert self.audio_embeds is not None
        copies = states.shape[0] // self.audio_mask.shape[0]
        if copies == 1 and self.end - self.begin == self.audio_mask.shape[1]:
            return self.audio_embeds
        order = self.audio_mask.flatten().cumsum(0).view_as(self.audio_mask) - 1  # (B, T), the token's embedding
        part = slice(self.begin, self.end)
        order, mask = (each[:, part].repeat_interleave(copies, dim=0) for each in (order, self.audio_mask))
        return self.audio_embeds[order[mask].to(self.audio_embeds.device, non_blocking=True)]

    def before_layer(self, layer: str, states: torch.Tensor) -> torch.Tensor:
        """The states (B, L, D) that enter a layer, or (1, tokens, D) where the decoder is packed."""
        if self.packed is not None:
            return self._enhanced(layer, states, self.audio_mask, self.visual_mask)
        if self.begin == self.end:
            return states  # a decoding step
        return self._enhanced(layer, states, *self._masks(states))

    def _enhanced(self, layer: str, states, audio_mask, visual_mask) -> torch.Tensor:
        """Adds a place's residual to the media tokens; text tokens come out as they went in, bit for bit."""
        if self.enhancers is None or layer not in self.enhancers:
            return states
        mask = audio_mask | visual_mask
        positions = flat_positions(mask if states.shape[:2] == mask.shape else mask[self.packed], states.device)
        media = MediaTokens.of(audio_mask, visual_mask, states.device)
        return scatter_states(states, positions, self.enhancers[layer](states.flatten(0, 1)[positions], media))

    def after_decoder(self, module, args, kwargs, output):
        if self.packed is not None:
            output.last_hidden_state = unpack_states(output.last_hidden_state, self.packed)
        if sum(states.shape[1] for states in self._states) == self.begin < self.end:  # not kept yet
            self._states.append(output[0][:, : self.end - self.begin])
        if self.end == self.audio_mask.shape[1] and given_cache(kwargs) is not None:
            self._leave()  # the cache holds the media: what follows is the backbone's alone
        return output

    @contextlib.contextmanager
    def entered(self, decoder: nn.Module):
        """Runs the body with the media at the decoder's input. Hooks live for one call; no state stays."""
        with contextlib.ExitStack() as stack:
            self._leave = stack.close
            for name in self.enhancers or ():
                if name != "0":
                    layer = decoder.layers[int(name)]
                    stack.callback(decoder.layers.__setitem__, int(name), layer)
                    decoder.layers[int(name)] = EnhancedLayer(layer, partial(self.before_layer, name))
            for handle in (
                decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True),
                decoder.register_forward_hook(self.after_decoder, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            yield


def pack_decoder_inputs(arguments: dict, keep: torch.Tensor, config) -> dict:
    """Arguments of a decoder's call with the padding taken out.

    FlashAttention is given the boundaries (`cu_seq_lens_q`, ...); other backends get a mask that is causal within each
    row and closed between rows, which costs memory that grows with the square of the tokens. Nothing is inferred from
    positions, which may repeat within a row of images.

    Args:
        arguments: keyword arguments, with `inputs_embeds` (B, T, D) and perhaps `position_ids` (B, T) or (P, B, T) and
            `visual_pos_masks` (B, T).
        keep: (B, T) bool, False on padding, on the CPU where nothing is to wait. N of them are True.
        config: the decoder's config.

    Returns:
        arguments with `inputs_embeds` (1, N, D), `position_ids` (1, N) or (4, 1, N), and what says where rows begin.

    Raises:
        ValueError: a decoder with sliding windows, and no FlashAttention.
    """
    embeds = arguments["inputs_embeds"]
    device, lengths = embeds.device, keep.sum(1).tolist()  # B
    tokens = flat_positions(keep, device)  # (N,)
    # Position of each token in its row.
    within = torch.cat([torch.arange(length) for length in lengths]).to(device, non_blocking=True)  # (N,)
    packed = {**arguments, "inputs_embeds": embeds.flatten(0, 1)[tokens].unsqueeze(0), "attention_mask": None}
    packed["use_cache"] = False
    positions = arguments.get("position_ids")
    if positions is None or positions.ndim == 2:
        packed["position_ids"] = (within if positions is None else positions.flatten()[tokens]).unsqueeze(0)
    else:
        # (P, B, T) -> (P, 1, N); the row in front tells transformers that positions in the text are given as well.
        rows = positions.flatten(1)[:, tokens].unsqueeze(1)
        packed["position_ids"] = rows if rows.shape[0] == 4 else torch.cat([within.view(1, 1, -1), rows])
    if arguments.get("visual_pos_masks") is not None:
        packed["visual_pos_masks"] = arguments["visual_pos_masks"].flatten()[tokens].unsqueeze(0)
    attention = config._attn_implementation
    if "flash" in attention:
        boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        longest = max(lengths)
        packed |= {
            "cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip
        return packed
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise ValueError("packing a decoder with sliding windows needs FlashAttention: set packing to false.")
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device, non_blocking=True)  # (N,)
    order = torch.arange(len(row), device=device)
    visible = (row.unsqueeze(1) == row) & (order.unsqueeze(1) >= order)  # (N, N)
    mask = visible[None, None]  # (1, 1, N, N)
    if attention == "eager":
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    packed["attention_mask"] = mask
    return packed


def unpack_states(states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """States (1, N, D) of a packed call in their rows again: (B, T, D), zero on padding."""
    rows = states.new_zeros(*keep.shape, states.shape[-1])
    return scatter_states(rows, flat_positions(keep, states.device), states[0])
