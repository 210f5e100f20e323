"""EmoAdapter: the Emotion Enhancer and the Emotion Supervisor of VAEmotionLLM (arXiv 2511.12077).

The paper names the two parts and their purpose; their inner form is our choice.
"""

import torch
from torch import nn

# The order of the columns of every reading, (B, 3).
PATHS = ("audio", "visual", "av")


class ZeroLinear(nn.Linear):
    """A linear layer whose weight and bias start at zero: what it feeds starts as if the layer were not there."""


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `states` (B, T, D) over the positions of `mask` (B, T); zeros where a row has none. Returns (B, D)."""
    weights = mask.to(states.dtype).unsqueeze(-1)  # (B, T, 1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class EmotionEnhancer(nn.Module):
    """A shared, position-wise, gated low-rank residual on the audio and visual tokens before the LLM.

    Each token is seen with the mean of the other modality's tokens, where the sample has any, so that sight can colour
    sound and sound can colour sight. `up` starts at zero: the module is the identity until it is trained.
    """

    def __init__(self, config):
        super().__init__()
        width, rank = config.vlm_config.get_text_config().hidden_size, config.enhancer_rank
        self.down = nn.Linear(width, rank)
        self.context = nn.Linear(width, rank, bias=False) if config.enhancer_context else None
        self.modality = nn.Embedding(2, rank)  # row 0 visual, row 1 audio
        self.gate = nn.Linear(rank, 1)
        self.up = ZeroLinear(rank, width, bias=False)

    def forward(self, embeds: torch.Tensor, audio_mask: torch.Tensor, visual_mask: torch.Tensor) -> torch.Tensor:
        """Adds the residual to modality tokens; text tokens come out as they went in, bit for bit.

        Args:
            embeds: (B, T, D) input embeddings of the LLM, media already in place.
            audio_mask: (B, T) bool, audio tokens.
            visual_mask: (B, T) bool, image and video tokens.

        Returns:
            (B, T, D), the dtype of `embeds`.
        """
        mask = audio_mask | visual_mask
        tokens = embeds[mask]  # (N, D)
        is_audio = audio_mask[mask]  # (N,)
        normed = nn.functional.rms_norm(tokens, tokens.shape[-1:])
        hidden = self.down(normed) + self.modality(is_audio.long())  # (N, rank)
        if self.context is not None:
            pooled = torch.stack([masked_mean(embeds, audio_mask), masked_mean(embeds, visual_mask)])  # (2, B, D)
            pooled = nn.functional.rms_norm(pooled, pooled.shape[-1:])
            sample = mask.nonzero()[:, 0]  # (N,)
            hidden = hidden + self.context(pooled[is_audio.long(), sample])  # the other modality's mean
        hidden = nn.functional.gelu(hidden)
        residual = self.up(hidden) * torch.sigmoid(self.gate(hidden))  # (N, D)
        return embeds.masked_scatter(mask.unsqueeze(-1), tokens + residual)


class EmotionSupervisor(nn.Module):
    """Valence and arousal read from the LLM's last hidden states on the audio, the visual and the audio-visual path.

    Each path has a head of its own over the mean of its media tokens' states.
    """

    def __init__(self, config):
        super().__init__()
        width, hidden = config.vlm_config.get_text_config().hidden_size, config.supervisor_hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), ZeroLinear(hidden, 2))
            for _ in PATHS
        )

    def forward(
        self, hidden_states: torch.Tensor, audio_mask: torch.Tensor, visual_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads valence and arousal on every path that a sample carries.

        The attention is causal: in an audio-visual sample whose picture comes first, the audio path has seen the
        picture. For a reading that is of one modality alone, give that modality alone.

        Args:
            hidden_states: (B, T, D), the LLM's last hidden states.
            audio_mask: (B, T) bool.
            visual_mask: (B, T) bool.

        Returns:
            valence and arousal, each (B, 3) float32 in [-1, 1], columns in the order of `PATHS`; NaN where the sample
            does not carry the path (audio-visual needs both modalities).
        """
        has_audio, has_visual = audio_mask.any(1), visual_mask.any(1)  # (B,)
        masks = (audio_mask, visual_mask, audio_mask | visual_mask)
        present = torch.stack([has_audio, has_visual, has_audio & has_visual], dim=1)  # (B, 3)
        readings = [head(masked_mean(hidden_states, mask)) for head, mask in zip(self.heads, masks, strict=True)]
        readings = torch.stack(readings, dim=1).float().tanh()  # (B, 3, 2)
        readings = torch.where(present.unsqueeze(-1), readings, torch.nan)
        return readings[..., 0], readings[..., 1]


class EmotionAdapter(nn.Module):
    """Holds the Enhancer and the Supervisor."""

    def __init__(self, config):
        super().__init__()
        self.enhancer = EmotionEnhancer(config)
        self.supervisor = EmotionSupervisor(config)
