"""Where the media of a batch stand, and what is to be put there: the inputs of a call made ready for its passes."""

import contextlib
from typing import Any

import torch

from .configuration_vaemotionllm import MODALITIES
from .media_injection import MediaInjection


class MediaInputsMixin:
    """Of [`VAEmotionLLMForConditionalGeneration`], which has these parts."""

    config: Any
    vlm: Any
    emotion_adapter: Any
    get_audio_features: Any
    get_input_embeddings: Any

    def _entered(self, injection: MediaInjection | None):
        return contextlib.nullcontext() if injection is None else injection.entered(self.vlm.get_decoder())

    def _backbone_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor | None:
        """The ids that the backbone may look up: an audio placeholder beyond its vocabulary becomes id 0."""
        if input_ids is None or self.config.audio_token_id < self.config.get_text_config().vocab_size:
            return input_ids
        return input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)

    def _prepare_injection(
        self, input_ids, input_features, audio_num_tokens, use_adapter, audio_states=None, inputs_embeds=None
    ) -> MediaInjection | None:
        use_adapter = self.config.adapter_enabled if use_adapter is None else use_adapter
        silent = input_features is None and audio_states is None
        if silent and not use_adapter:
            # Placeholders without features must not pass as ordinary tokens.
            if input_ids is not None:
                _refuse((input_ids == self.config.audio_token_id).any())
            return None
        if input_ids is None and inputs_embeds is None:
            if silent:
                return None  # the backbone says what it lacks, or begins a text of its own
            raise ValueError("Audio needs input_ids, which hold its placeholders; none were given.")
        audio_mask, visual_mask = self._media_masks(input_ids, inputs_embeds)
        audio_embeds = None
        if not silent:
            if input_ids is None and self.config.audio_token_id >= self.config.get_text_config().vocab_size:
                raise ValueError(
                    f"Audio needs input_ids, which hold its placeholders; only inputs_embeds were given. The "
                    f"placeholder's id {self.config.audio_token_id} lies beyond the vocabulary of "
                    f"{self.config.get_text_config().vocab_size}, so no embedding marks where audio stands."
                )
            audio_embeds = self.get_audio_features(
                input_features, audio_num_tokens, audio_states, return_dict=True
            ).pooler_output
        found, given = int(audio_mask.sum()), 0 if audio_embeds is None else audio_embeds.shape[0]
        if found != given:
            raise ValueError(
                f"input_ids hold {found} audio placeholders, but the audio features give {given} embeddings. Make "
                "both with one call of the processor that was saved with this model; to go on from a cache, give the "
                "new audio alone."
            )
        enhancers = self.emotion_adapter.enhancers if use_adapter else None
        return MediaInjection(audio_mask, visual_mask, audio_embeds, enhancers)

    def _media_masks(self, input_ids, inputs_embeds) -> tuple[torch.Tensor, torch.Tensor]:
        """Where sound and where sight stand, (B, T) bool each; by the placeholders' embeddings where no ids are."""
        audio, visual = self.config.audio_token_id, self.config.visual_token_ids
        if input_ids is not None:
            return input_ids == audio, torch.isin(input_ids, torch.tensor(visual, device=input_ids.device))
        table = self.get_input_embeddings()
        nowhere = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)

        def places(token_ids: list[int]) -> torch.Tensor:
            known = [token_id for token_id in token_ids if token_id < self.config.get_text_config().vocab_size]
            rows = table(torch.tensor(known, dtype=torch.long, device=inputs_embeds.device))  # (n, D)
            return sum(((inputs_embeds == row).all(-1) for row in rows), start=nowhere)

        return places([audio]), places(visual)

    def _readings(self, injection: MediaInjection | None) -> dict[str, torch.Tensor | None]:
        """What the Supervisor reads after a call; nothing with the adapter off."""
        if injection is None or injection.enhancers is None:
            return {}
        states = injection.last_hidden_state
        copies = states.shape[0] // injection.audio_mask.shape[0]
        valence, arousal, logits = self.emotion_adapter.supervisor(
            states[::copies], injection.audio_mask, injection.visual_mask
        )
        return {"valence": valence, "arousal": arousal, "emotion_logits": logits}

    def _no_readings(self, states: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """What the Supervisor reads of samples without media: NaN."""
        labels = self.config.emotion_labels
        nothing = torch.full((states.shape[0], len(MODALITIES), len(labels or ())), torch.nan, device=states.device)
        plane = nothing.new_full(nothing.shape[:2], torch.nan)
        return {"valence": plane, "arousal": plane.clone(), "emotion_logits": nothing if labels else None}


def _refuse(placeholders: torch.Tensor) -> None:
    """Raises where a batch without sound holds (a bool scalar) placeholders of sound."""
    message = "input_ids hold audio placeholders but no input_features were given."
    if torch.compiler.is_compiling():
        torch._assert_async(~placeholders, message)
    elif bool(placeholders):
        raise ValueError(message)
