"""The bridge from the audio tower's states to the LLM's embeddings."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .audio_lengths import BOUNDARY_TOKENS


class AudioProjector(nn.Module):
    """Stacks neighbouring states, maps them to the LLM's width and frames each window by learned boundary tokens.

    Ours; the paper does not say what its projector is.

    Args:
        config: a `VAEmotionLLMConfig`.
    """

    def __init__(self, config):
        super().__init__()
        self.stride = config.projector_stride
        audio_width, llm_width = config.audio_config.hidden_size, config.vlm_config.get_text_config().hidden_size
        hidden = config.projector_hidden_size or llm_width
        self.norm = nn.LayerNorm(audio_width * self.stride)
        self.linear_1 = nn.Linear(audio_width * self.stride, hidden)
        self.act = ACT2FN[config.projector_act]
        self.linear_2 = nn.Linear(hidden, llm_width)
        # Row 0 opens a window, row 1 closes it. They stand in place of special tokens, so that the backbone's
        # vocabulary, and with it its logits, keep their shape.
        self.boundary = nn.Parameter(torch.zeros(BOUNDARY_TOKENS, llm_width))

    def stack(self, states: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
        """Neighbouring states side by side, those of the waveform only; it has no parameters.

        Args:
            states: (W, L, D_audio), one row a window, as the tower gave them.
            num_tokens: (W,) integer, audio tokens of each window (`tokens_in_window`).

        Returns:
            (M, stride * D_audio), one row an audio token, windows in a row.

        Raises:
            ValueError: a window asks for more tokens than its states give.
        """
        windows, length, width = states.shape
        padding = -length % self.stride
        states = nn.functional.pad(states, (0, 0, 0, padding))
        states = states.reshape(windows, -1, width * self.stride)  # (W, L / stride, D_audio * stride)
        available = states.shape[1]
        if int(num_tokens.max()) > available:
            raise ValueError(
                f"audio_num_tokens asks for {int(num_tokens.max())} tokens of a window, but the audio tower gives "
                f"{available}. Use the processor that was saved with this model."
            )
        position = torch.arange(available, device=states.device)
        return states[position < num_tokens.to(states.device).unsqueeze(1)]  # (M, D_audio * stride)

    def forward(self, stacked: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
        """Projects the audio tokens of all windows and frames each window.

        Args:
            stacked: (M, stride * D_audio), what `stack` gives.
            num_tokens: (W,) integer, audio tokens of each window; they sum to M.

        Returns:
            (N, D_llm) embeddings of all windows in a row: begin, audio tokens, end, begin, ...
        """
        stacked = stacked.to(self.norm.weight.dtype)  # float32 in a model of float16
        tokens = self.linear_2(self.act(self.linear_1(self.norm(stacked))))  # (M, D_llm)
        begin, end = self.boundary.to(tokens.dtype).unsqueeze(1)  # 2 x (1, D_llm)
        return torch.cat([part for window in tokens.split(num_tokens.tolist()) for part in (begin, window, end)])
