"""How many tokens a waveform becomes: the one place that says so, for processor, model and collator."""

import math

# Tokens that the projector puts around the audio tokens of a window: one learned begin, one learned end.
BOUNDARY_TOKENS = 2


def split_into_windows(num_samples: int, window_samples: int) -> list[int]:
    """Sample counts of the windows that the audio tower sees one by one.

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
        ValueError: the tower's family is not supported.
    """
    if audio_config.model_type == "whisper":
        return feature_extractor.hop_length * 2
    if audio_config.model_type == "audio-spectrogram-transformer":
        # Kaldi filter banks with a frame shift of 10 ms, fixed in the feature extractor.
        return feature_extractor.sampling_rate // 100 * audio_config.time_stride
    raise ValueError(
        f"Audio towers of type {audio_config.model_type!r} are not supported; supported are 'whisper' and "
        "'audio-spectrogram-transformer'. Pass the path of such a model."
    )


def window_samples(audio_config, feature_extractor) -> int:
    """Longest waveform, in samples, that the tower takes at once."""
    samples_per_position = encoder_samples_per_position(audio_config, feature_extractor)
    if audio_config.model_type == "whisper":
        return audio_config.max_source_positions * samples_per_position
    # Patches overlap: the last ones that fit give fewer positions than the frames alone would.
    positions = (audio_config.max_length - audio_config.patch_size) // audio_config.time_stride + 1
    return positions * samples_per_position
