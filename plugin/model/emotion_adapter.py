"""EmoAdapter: the Emotion Enhancer and the Emotion Supervisor of VAEmotionLLM (arXiv 2511.12077).

The paper names the two parts and their purpose; their inner form is our choice.
"""

from typing import NamedTuple

import torch
from torch import nn

from .inputs import MODALITIES


class ZeroLinear(nn.Linear):
    """A linear layer whose weight and bias start at zero: what it feeds starts as if the layer were not there."""


class MediaTokens(NamedTuple):
    """The media tokens of a batch, row by row: N tokens of B samples."""

    is_audio: torch.Tensor  # (N,) bool; the others are visual
    sample: torch.Tensor  # (N,) int64, the row of each
    samples: int  # B

    @classmethod
    def of(cls, audio_mask: torch.Tensor, visual_mask: torch.Tensor, device: torch.device) -> "MediaTokens":
        """From two masks (B, T); nothing waits for masks on the CPU."""
        mask = audio_mask | visual_mask
        is_audio, sample = audio_mask[mask], mask.nonzero()[:, 0]
        return cls(is_audio.to(device, non_blocking=True), sample.to(device, non_blocking=True), mask.shape[0])


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `states` (B, T, D) over the positions of `mask` (B, T); zeros where a row has none. Returns (B, D)."""
    weights = mask.to(states.dtype).unsqueeze(-1)  # (B, T, 1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class EmotionEnhancer(nn.Module):
    """A position-wise, gated low-rank residual on audio and visual tokens, which share its weights.

    Each token is taken with the mean of the other modality's tokens, where the sample has any, so that visual can
    colour audio and audio can colour visual. `up` starts at zero: the module is the identity until it is trained.
    """

    def __init__(self, config):
        super().__init__()
        width, rank = config.vlm_config.get_text_config().hidden_size, config.enhancer_rank
        self.down = nn.Linear(width, rank)
        self.context = nn.Linear(width, rank, bias=False) if config.enhancer_context else None
        self.modality = nn.Embedding(2, rank)  # row 0 visual, row 1 audio
        self.gate = nn.Linear(rank, 1) if config.enhancer_gate else None
        self.up = ZeroLinear(rank, width, bias=False)

    def forward(self, tokens: torch.Tensor, media: MediaTokens) -> torch.Tensor:
        """Adds the residual.

        Args:
            tokens: (N, D) states of the media tokens.
            media: what they are.

        Returns:
            (N, D), the dtype of `tokens`.
        """
        given, tokens = tokens, tokens.to(self.modality.weight.dtype)  # float32 in a model of float16
        normed = nn.functional.rms_norm(tokens, tokens.shape[-1:])
        hidden = self.down(normed) + self.modality(media.is_audio.long())  # (N, rank)
        if self.context is not None:
            pooled = nn.functional.rms_norm(self._means(tokens, media), tokens.shape[-1:])  # (2 B, D)
            other = 2 * media.sample + ~media.is_audio  # the row of the other modality's mean
            hidden = hidden + self.context(pooled)[other]
        hidden = nn.functional.gelu(hidden)
        residual = self.up(hidden)
        return given + (residual if self.gate is None else residual * torch.sigmoid(self.gate(hidden))).to(given.dtype)

    @staticmethod
    def _means(tokens: torch.Tensor, media: MediaTokens) -> torch.Tensor:
        """Mean of each sample's visual tokens (row 2 b) and audio tokens (row 2 b + 1), zeros where it has none."""
        row = 2 * media.sample + media.is_audio  # (N,)
        # As a product, since on a GPU index_add adds in another order each time; the weights keep it in the range of
        # half precision, which autocast may choose.
        members = nn.functional.one_hot(row, 2 * media.samples).T.float()  # (2 B, N)
        return ((members / members.sum(1, keepdim=True).clamp(min=1)) @ tokens.float()).to(tokens.dtype)


class EmotionSupervisor(nn.Module):
    """Emotion on the audio, the visual and the audio-visual modality, predicted from the LLM's last hidden states.

    Each modality has heads of its own over the mean of its media tokens' states: one for valence and arousal, and one
    with a logit for each of `config.emotion_labels` where there are any.
    """

    def __init__(self, config):
        super().__init__()
        width, hidden = config.vlm_config.get_text_config().hidden_size, config.supervisor_hidden_size
        self.trunks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU()) for _ in MODALITIES
        )
        self.planes = nn.ModuleList(ZeroLinear(hidden, 2) for _ in MODALITIES)  # words: a name of saved weights
        # Apart, so that a model without labels, or with others, shares all the rest.
        labels = len(config.emotion_labels or ())
        self.labels = nn.ModuleList(ZeroLinear(hidden, labels) for _ in MODALITIES) if labels else None

    def forward(
        self, hidden_states: torch.Tensor, audio_mask: torch.Tensor, visual_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Predicts for every modality that a sample carries.

        The attention is causal: in an audio-visual sample whose image comes first, the states of the audio depend on
        the image. For a prediction that is of one modality alone, give that modality alone.

        Args:
            hidden_states: (B, T, D), the LLM's last hidden states.
            audio_mask: (B, T) bool.
            visual_mask: (B, T) bool.

        Returns:
            valence and arousal, each (B, 3) float32 in [-1, 1], and logits of the labels, (B, 3, K) float32 or None
            without labels; columns in the order of `MODALITIES`, NaN where the sample does not carry the modality
            (audio-visual needs both modalities).
        """
        has_audio, has_visual = audio_mask.any(1), visual_mask.any(1)  # (B,)
        masks = (audio_mask, visual_mask, audio_mask | visual_mask)
        present = torch.stack([has_audio, has_visual, has_audio & has_visual], dim=1)  # (B, 3)
        hidden_states = hidden_states.to(self.trunks[0][0].weight.dtype)  # float32 in a model of float16
        pooled = [trunk(masked_mean(hidden_states, mask)) for trunk, mask in zip(self.trunks, masks, strict=True)]

        def apply(heads: nn.ModuleList) -> torch.Tensor:
            return torch.stack([head(states) for head, states in zip(heads, pooled, strict=True)], dim=1).float()

        absent = ~present.unsqueeze(-1)
        point = apply(self.planes).tanh().masked_fill(absent, torch.nan)  # (B, 3, 2)  # words: a name of saved weights
        logits = None if self.labels is None else apply(self.labels).masked_fill(absent, torch.nan)
        return point[..., 0], point[..., 1], logits


class EmotionAdapter(nn.Module):
    """Holds the Supervisor, and an Enhancer for each of `config.enhancer_layers`."""

    def __init__(self, config):
        super().__init__()
        self.enhancers = nn.ModuleDict({str(layer): EmotionEnhancer(config) for layer in config.enhancer_layers})
        self.supervisor = EmotionSupervisor(config)
