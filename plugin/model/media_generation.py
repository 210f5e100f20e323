"""`generate` with sound and EmoAdapter, in all modes of transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from .media_injection import MediaInjection
from .media_inputs import MediaInputsMixin
from .transformers_api import given_cache


class MediaGenerationMixin(MediaInputsMixin, GenerationMixin):
    """Of [`VAEmotionLLMForConditionalGeneration`]."""

    generation_config: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_num_tokens: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        use_adapter: bool | None = None,
        **kwargs,
    ):
        """`generate` of the backbone, with audio and the adapter; takes what `forward` and the backbone's take.

        The audio is encoded once and enters in the prefill. To go on from a `cache`, give the whole
        conversation's ids, or the new ones with the whole conversation's `attention_mask`, and the new media alone;
        the Enhancer sees those alone too. With `return_dict_in_generate=True` and the adapter on the
        result also has `valence`, `arousal` (B, 3) and `emotion_logits` (B, 3, K), as `forward` gives them for the
        prompt.
        """
        if self.generation_config is not None:
            self.vlm.generation_config = self.generation_config
        if kwargs.get("inputs") is not None:
            input_ids = kwargs.pop("inputs")
        if isinstance(assistant := kwargs.get("assistant_model"), MediaGenerationMixin):
            kwargs["assistant_model"] = assistant.vlm  # it proposes, and this model, which hears, decides
        cached = _cached_length(input_ids, given_cache(kwargs), **kwargs)
        injection = self._prepare_injection(
            None if input_ids is None else input_ids[:, cached:],
            input_features,
            audio_num_tokens,
            use_adapter,
            audio_states,
            None if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"][:, cached:],
        )
        if injection is not None:
            self._check_passes(injection, kwargs)
        backbone_ids = self._backbone_ids(input_ids)
        with self._entered(injection):
            generated = self.vlm.generate(input_ids=backbone_ids, **kwargs)
        if backbone_ids is not input_ids:
            sequences = generated if isinstance(generated, torch.Tensor) else generated.sequences
            assert input_ids is not None  # only ids can hold placeholders
            copies = sequences.shape[0] // input_ids.shape[0]
            sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(copies, dim=0)
        if isinstance(generated, ModelOutput):
            for name, reading in self._readings(injection).items():
                generated[name] = reading
        return generated

    def _check_passes(self, injection: MediaInjection, generate_options: Mapping) -> None:
        """Refuses ways to generate in which a pass over the prompt would lack what the media need."""
        config = generate_options.get("generation_config") or self.generation_config

        def option(name: str):
            return generate_options.get(name, getattr(config, name, None))

        if option("assistant_early_exit") is not None or option("assistant_model") is self.vlm:
            raise ValueError(
                "The model was given as its own assistant (assistant_model or assistant_early_exit), but its decoder "
                "takes sound and the adapter once. Give another model, or generate without audio and with "
                "use_adapter=False."
            )
        mixed = injection.audio_mask.any(1) & injection.visual_mask.any(1)
        if option("prefill_chunk_size") and injection.enhancers and self.config.enhancer_context and bool(mixed.any()):
            raise ValueError(
                f"prefill_chunk_size is {option('prefill_chunk_size')}, which cuts the prompt into passes of its own, "
                "but in a sample with sound and sight the Enhancer needs both at once. Leave it out, or give "
                "use_adapter=False."
            )


def _cached_length(input_ids, given, attention_mask=None, inputs_embeds=None, **_) -> int:
    """Tokens at the front of a prompt that a given cache holds, as `generate` of transformers understands it."""
    if given is None or given.get_seq_length() == 0:
        return 0
    if inputs_embeds is None and attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]:
        return 0  # the mask is that of the whole conversation: the ids are the new ones
    return int(given.get_seq_length())
