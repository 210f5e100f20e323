"""Waveforms: from frames and integers to one channel of floats in [-1, 1], at another rate, and checked."""

import logging
import math
from typing import Any

import av
import numpy as np

from .inputs import InputError

logger = logging.getLogger(__name__)

# Audio in floats may go over 1 a little, 40 dB never: it is integers that were converted and not scaled.
LOUDEST = 100.0
# The mean of two channels this much quieter than they are, in power, has lost what they hold: -40 dB.
_CANCELLED = 1e-4
# Shares of a channel in the mean of all, by its name: ITU-R BS.775, without the channel of low frequencies.
_SHARES = {"FL": 1.0, "FR": 1.0, "FC": 2**0.5, "LFE": 0.0, "LFE2": 0.0}
_SHARE_OF_OTHERS = 0.5**0.5
# Samples that are mixed and resampled at once: they stay in a processor's cache and its allocator's.
AT_ONCE = 1 << 15


def samples_of(frame) -> np.ndarray:
    """One decoded audio frame as float32 (channels, samples); of more than two channels their mean."""
    block = frame.to_ndarray()  # planar: (channels, samples); packed: (1, samples * channels)
    if not frame.format.is_planar:
        block = block.reshape(-1, frame.layout.nb_channels).T
    block = scaled(block)
    if len(block) <= 2:
        return block
    shares = np.array([_SHARES.get(channel.name, _SHARE_OF_OTHERS) for channel in frame.layout.channels], np.float32)
    return (shares / max(shares.sum(), 1e-6) @ block)[None]


def scaled(samples: np.ndarray) -> np.ndarray:
    """Samples of floats, or of integers scaled to [-1, 1) by their type, as float32."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:  # the only unsigned sample format
        return (samples.astype(np.float32) - 128.0) / 128.0
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def mix(samples: np.ndarray, name: str) -> np.ndarray:
    """The mean of the channels, float32 (channels, samples) -> (samples,); half the difference of two that cancel."""
    mean = mean_of(samples)
    if len(samples) == 2 and cancel(mean @ mean, samples[0] @ samples[0], name):
        return mean_of(samples, sign=-1)
    return mean


def mean_of(samples: np.ndarray, sign: int = 1) -> np.ndarray:
    """float32 (channels, samples) -> (samples,); `sign` is that of the second of two channels."""
    if len(samples) == 2:
        return (samples[0] + samples[1] if sign > 0 else samples[0] - samples[1]) * np.float32(0.5)
    return samples[0] if len(samples) == 1 else samples.mean(0)


def cancel(mean_power: float, power: float, name: str) -> bool:
    """Whether two channels cancel, by the power of their mean and that of the first."""
    if found := bool(mean_power < _CANCELLED * power):
        logger.warning(
            "%s: the two channels cancel each other (one is the other with its sign turned); half their difference is "
            "used in place of their mean.",
            name,
        )
    return found


def check_samples(waveform: np.ndarray, name: str) -> np.ndarray:
    """A waveform (samples,) as it is.

    Raises:
        InputError: samples that are no audio.
    """
    check_peak(float(np.abs(waveform).max()), name)
    return waveform


def check_peak(peak: float, name: str) -> None:
    if not math.isfinite(peak):
        raise InputError(f"{name}: the audio holds NaN or infinite samples. Export the file again.")
    if peak > LOUDEST:
        raise InputError(
            f"{name}: samples reach {peak:.0f}, and floats lie in [-1, 1]; divide what was read as 16-bit integers by "
            "32768, or give the integers."
        )


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """A waveform, float32 (samples,) or (channels, samples), at another rate."""
    if from_hz == to_hz:
        return waveform
    if waveform.ndim == 2:
        return np.stack([resample(channel, from_hz, to_hz) for channel in waveform])
    resampler = Resampler(from_hz, to_hz)
    resampler.add(waveform)
    return resampler.end()


class Resampler:
    """A waveform that comes in parts, at another rate.

    By FFmpeg's libswresample, whose filter bank is bounded: torchaudio's grows with the product of the reduced rates,
    to 22 GB for 44,099 Hz to 16 kHz.
    """

    def __init__(self, from_hz: int, to_hz: int):
        self.from_hz, self.samples = from_hz, 0  # how many were given
        self.resampler: Any = None if from_hz == to_hz else av.AudioResampler(format="flt", layout="mono", rate=to_hz)
        self.parts: list[np.ndarray] = [np.zeros(0, np.float32)]

    def add(self, waveform: np.ndarray) -> None:
        """float32 (samples,)"""
        for begin in range(0, len(waveform), AT_ONCE):
            part = waveform[begin : begin + AT_ONCE]
            if self.resampler is None:
                self.parts.append(part)
            else:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part[None]), format="flt", layout="mono")
                frame.sample_rate, frame.pts = self.from_hz, self.samples
                self._take(frame)
            self.samples += len(part)

    def _take(self, frame) -> None:
        self.parts += [found.to_ndarray()[0] for found in self.resampler.resample(frame)]

    def end(self) -> np.ndarray:
        """float32 (samples,)"""
        if self.resampler is not None:
            self._take(None)
        return np.concatenate(self.parts)
