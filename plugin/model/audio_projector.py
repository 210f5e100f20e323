"""The bridge from the audio tower's states to the LLM's embeddings, and how many tokens a waveform becomes.

The counts are stated here alone, for processor, model and collator.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .inputs import InputError
from .media_injection import flat_positions

# Tokens that the projector puts around the audio tokens of a window: one learned begin, one learned end.
BOUNDARY_TOKENS = 2

AUDIO_TOWERS = ("whisper", "audio-spectrogram-transformer")
"""`model_type` of the audio encoders that a model can have."""


def check_audio_tower(audio_config) -> None:
    """Raises an InputError where the config is of an audio encoder that a model cannot have."""
    if audio_config.model_type not in AUDIO_TOWERS:
        raise InputError(
            f"an audio encoder of type {audio_config.model_type!r} is not supported; supported are "
            f"{' and '.join(map(repr, AUDIO_TOWERS))}. Give the name or the folder of such a model."
        )


def split_into_windows(num_samples: int, window_samples: int) -> list[int]:
    """Sample counts of the windows that the audio tower takes one by one.

    Args:
        num_samples: length of the waveform, at least 1.
        window_samples: longest waveform that the tower takes at once (30 s for Whisper).

    Raises:
        ValueError: the waveform is empty.
    """
    if num_samples < 1:
        raise ValueError("An audio clip of 0 samples was given; at least 1 sample is needed. Leave the clip out.")
    full, rest = divmod(num_samples, window_samples)
    return [window_samples] * full + ([rest] if rest else [])


def tokens_in_window(num_samples: int, samples_per_token: int) -> int:
    """Audio tokens of one window, without the boundary tokens: a token for each `samples_per_token`, rounded up."""
    return math.ceil(num_samples / samples_per_token)


def num_placeholders(num_samples: int, window_samples: int, samples_per_token: int) -> int:
    """Placeholder tokens that stand for one waveform in the text, boundary tokens of each window included."""
    windows = split_into_windows(num_samples, window_samples)
    return sum(tokens_in_window(samples, samples_per_token) + BOUNDARY_TOKENS for samples in windows)


def encoder_samples_per_position(audio_config, feature_extractor) -> int:
    """Waveform samples per time position of the audio tower's output.

    Args:
        audio_config: config of the tower. Whisper halves the frame rate in its second convolution; AST takes patches
            at `time_stride` frames.
        feature_extractor: the tower's feature extractor; its hop gives the frame rate.

    Raises:
        InputError: the tower's family is not supported.
    """
    check_audio_tower(audio_config)
    if audio_config.model_type == "whisper":
        return feature_extractor.hop_length * 2
    # Kaldi filter banks with a frame shift of 10 ms, fixed in the feature extractor.
    return feature_extractor.sampling_rate // 100 * audio_config.time_stride


def window_samples(audio_config, feature_extractor) -> int:
    """Longest waveform, in samples, that the tower takes at once."""
    samples_per_position = encoder_samples_per_position(audio_config, feature_extractor)
    if audio_config.model_type == "whisper":
        return audio_config.max_source_positions * samples_per_position
    # Patches overlap: the last ones that fit give fewer positions than the frames alone would.
    positions = (audio_config.max_length - audio_config.patch_size) // audio_config.time_stride + 1
    return positions * samples_per_position


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
        # Row 0 opens a window, row 1 closes it. They take the place of special tokens, so that the backbone's
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
            ValueError: a window is to have more tokens than its states give.
        """
        windows, length, width = states.shape
        padding = -length % self.stride
        states = nn.functional.pad(states, (0, 0, 0, padding))
        states = states.reshape(windows, -1, width * self.stride)  # (W, L / stride, D_audio * stride)
        available = states.shape[1]
        if int(num_tokens.max()) > available:
            raise ValueError(
                f"audio_num_tokens says {int(num_tokens.max())} tokens of a window, but the audio tower gives "
                f"{available}. Use the processor that was saved with this model."
            )
        kept = torch.arange(available, device=num_tokens.device) < num_tokens.unsqueeze(1)  # (W, L / stride)
        return states.flatten(0, 1)[flat_positions(kept, states.device)]  # (M, D_audio * stride)

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
