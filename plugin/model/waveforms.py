"""Sound in any form as the waveform that the audio tower hears."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .input_error import InputError
from .media import load_audio, resample, sound_duration_s
from .media_sources import is_file, rate_is_said


class RoundedLog10(TorchFunctionMode):
    """In its context `log10` computes in float64 and rounds, so that log-mel features are the same on each processor.

    In float32 MKL's rests on the processor's approximate reciprocal, which vendors fill in differently: one value in
    some 70,000 has another last bit on an emulated Intel processor than on an AMD one.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.log10 and args[0].dtype == torch.float32:
            return args[0].double().log10().float()
        return function(*args, **(kwargs or {}))


# Sound in floats may go over 1 a little, 40 dB never: it is integers that were converted and not scaled.
_LOUDEST = 100.0


def to_waveform(
    audio: Any, sampling_rate: int | None, to_hz: int, max_s: float, truncation: bool = False, name: str = "the audio"
) -> tuple[np.ndarray, float]:
    """Mono float32 at the tower's rate, checked.

    Args:
        audio: a path or the bytes of a file, or samples: an array, tensor or list, (samples,) or, in either order,
            (channels, samples); or {"array": samples, "sampling_rate": Hz}. Integers are scaled to [-1, 1) by their
            type.
        sampling_rate: rate of samples that do not say theirs, Hz; `to_hz` if not given.
        to_hz: rate of the result.
        max_s: longest sound that is accepted.
        truncation: whether to cut what is longer.
        name: what errors call it.

    Returns:
        float32 (samples,), and the seconds that were cut off.

    Raises:
        InputError: a file that cannot be read, samples of another shape or type or that are not finite, a sound longer
            than `max_s` that is not to be cut.
    """
    if is_file(audio):
        total_s = sound_duration_s(audio, name) if truncation else None
        if total_s is None or total_s <= max_s:
            return load_audio(audio, to_hz, max_s=max_s, name=name), 0.0
        return load_audio(audio, to_hz, max_s=None, end_s=max_s, name=name), total_s - max_s
    if isinstance(audio, Mapping):
        sampling_rate = audio["sampling_rate"] if rate_is_said(audio) else sampling_rate
        audio = audio["array"]
    waveform = _mono(audio, name)
    rate = to_hz if sampling_rate is None else sampling_rate
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise InputError(f"{name}: the sampling rate is {rate!r}; a whole number of Hz, at least 1, is needed.")
    seconds = len(waveform) / rate
    dropped_s = max(0.0, seconds - max_s)
    if dropped_s and truncation:
        waveform = waveform[: int(max_s * rate)]
    elif dropped_s:
        raise InputError(
            f"{name}: the audio is {seconds:.1f} s long, but max_audio_s is {max_s:g}. Cut it, raise "
            '`processor.max_audio_s`, or ask for the cut with audio_kwargs={"truncation": True}.'
        )
    return (waveform if rate == to_hz else resample(waveform, int(rate), to_hz)), dropped_s


def _mono(audio: np.ndarray | torch.Tensor | Sequence, name: str) -> np.ndarray:
    """The mean of the channels, float32 (samples,)."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        samples = (audio.float() if audio.is_floating_point() else audio).numpy()
    else:
        try:
            samples = np.asarray(audio)
        except ValueError as error:  # channels of different lengths
            raise InputError(f"{name}: the samples are no array ({error}).") from error
    if (
        samples.ndim not in (1, 2)
        or samples.size == 0
        or (samples.ndim == 2 and 1 < samples.shape[0] == samples.shape[1])
    ):
        raise InputError(
            f"{name}: a waveform of shape {samples.shape} was given; allowed are (samples,), (channels, samples) and "
            "(samples, channels), with at least 1 sample and more samples than channels."
        )
    if samples.dtype == np.uint8:  # the one unsigned format of sound
        samples = (samples.astype(np.float32) - 128.0) / 128.0
    elif samples.dtype in (np.int8, np.int16, np.int32):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise InputError(
            f"{name}: samples of type {samples.dtype} were given; allowed are floats in [-1, 1] and integers of 8, 16 "
            "or 32 bits."
        )
    samples = samples.astype(np.float32, copy=False)
    if samples.ndim == 2:
        samples = samples.mean(0 if samples.shape[0] <= samples.shape[1] else 1)
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: the sound holds NaN or infinite samples. Export it again.")
    if (peak := float(np.abs(samples).max())) > _LOUDEST:
        raise InputError(
            f"{name}: samples reach {peak:.0f}, and floats lie in [-1, 1]; divide what was read as 16-bit integers by "
            "32768, or give the integers."
        )
    return samples
