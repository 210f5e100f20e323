"""Fingerprints of pictures and sounds by which copies are found although they were encoded anew.

Both are vectors of +1, -1 and 0: signs of differences that survive coding, scaling and gain, and 0 where a difference
is too small to survive. Two of them match where enough places are informative in both and nearly all of these agree.
Thresholds are ours; `tests/benchmark/test_benchmark_validate.py` has copies that must match, and others that must not.
"""

from collections.abc import Iterator

import numpy as np

# Pictures: signs of the low frequencies of the cosine transform (Zauner 2010, "pHash"), finer than its usual 8 x 8.
PICTURE_SIDE_PX = 64
PICTURE_FREQUENCIES = 16
# Grey levels in the orthonormal transform. Coding noise of 2 levels a pixel gives coefficients of about 2.
PICTURE_FLOOR = 8.0
PICTURE_PLACES = 24
# Sounds: signs of energy differences between bands and between times (Haitsma and Kalker 2002), over pieces that are
# a fixed share of the sound, so that sounds can be compared without aligning them.
SOUND_BANDS_HZ = (100.0, 4000.0)
SOUND_BANDS = 24
SOUND_PIECES = 64
SOUND_FLOOR_DB = 1.5
SOUND_PLACES = 200
# A copy may be cut by an encoder's delay, not by more.
SOUND_LENGTH_RATIO = 1.05
SOUND_LENGTH_S = 0.15
# (agreeing - differing) / informative places: 0.8 means that 90% of the signs agree.
PICTURE_AGREEMENT = 0.8
SOUND_AGREEMENT = 0.6
_BLOCK = 512


def picture_hash(pictures: np.ndarray) -> np.ndarray:
    """Signs of the low frequencies of pictures.

    Args:
        pictures: uint8 (frames, height, width, 3); a still picture is one frame.

    Returns:
        int8 (frames * 255,), each +1, -1 or 0. A flat picture gives zeros.
    """
    from PIL import Image
    from scipy.fft import dctn

    size = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    small = [Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BOX) for picture in pictures]
    levels = np.stack([np.asarray(image, np.float32) for image in small])  # (frames, side, side)
    low = dctn(levels, axes=(1, 2), norm="ortho")[:, :PICTURE_FREQUENCIES, :PICTURE_FREQUENCIES]
    waves = low.reshape(len(levels), -1)[:, 1:]  # the first is the mean, which brightness changes
    return (np.sign(waves) * (np.abs(waves) > PICTURE_FLOOR)).astype(np.int8).reshape(-1)


def sound_fingerprint(waveform: np.ndarray, rate_hz: int) -> np.ndarray:
    """Signs of how the difference of neighbouring bands changes from one piece of the sound to the next.

    Args:
        waveform: float32 (samples,).
        rate_hz: its sampling rate, at least 8,000 Hz.

    Returns:
        int8 (63 * 24,), each +1, -1 or 0. Silence, and sound that never changes, gives zeros.
    """
    zeros: np.ndarray = np.zeros((SOUND_PIECES - 1) * SOUND_BANDS, np.int8)
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))  # 40 dB below the peak
    if not loud.size:
        return zeros
    waveform = waveform[loud[0] : loud[-1] + 1]  # an encoder's delay is silent
    if len(waveform) < 4 * SOUND_PIECES:
        return zeros
    # Windows twice as long as the step between them: a small shift changes little.
    window = max(2 * len(waveform) // (SOUND_PIECES + 1), 1)
    edges = np.geomspace(*SOUND_BANDS_HZ, SOUND_BANDS + 2)
    starts = np.linspace(0, len(waveform) - window, SOUND_PIECES).astype(int)
    size = 1 << max(window - 1, 1).bit_length()
    shape: np.ndarray = np.hanning(window).astype(np.float32)
    limits = [int(np.searchsorted(np.fft.rfftfreq(size, 1 / rate_hz), edge)) for edge in edges]
    energy = np.empty((SOUND_PIECES, SOUND_BANDS + 1))
    for i, start in enumerate(starts):  # one at a time: a long sound's windows are large
        power = np.square(np.abs(np.fft.rfft(waveform[start : start + window] * shape, size)))
        energy[i] = [power[a : max(b, a + 1)].sum() for a, b in zip(limits, limits[1:])]
    level_db = 10 * np.log10(energy + 1e-6 * energy.max() + 1e-20)
    change_db = np.diff(np.diff(level_db, axis=1), axis=0)  # (pieces - 1, bands)
    return (np.sign(change_db) * (np.abs(change_db) > SOUND_FLOOR_DB)).astype(np.int8).reshape(-1)


def matching_pairs(
    first: np.ndarray, second: np.ndarray, least: float, places: int, blocks: int = _BLOCK
) -> Iterator[tuple[int, int, float]]:
    """Pairs of matching fingerprints, in bounded memory.

    Args:
        first, second: int8 (n, length) and (m, length).
        least: agreement from which two match.
        places: how many must be informative in both.
        blocks: rows that are compared at once.

    Yields:
        (row of `first`, row of `second`, agreement, from `least` to 1).
    """
    for a in range(0, len(first), blocks):
        left: np.ndarray = first[a : a + blocks].astype(np.float32)
        for b in range(0, len(second), blocks):
            right: np.ndarray = second[b : b + blocks].astype(np.float32)
            informative = np.abs(left) @ np.abs(right).T  # (rows of left, rows of right)
            agreement = (left @ right.T) / np.maximum(informative, 1)
            for i, j in zip(*np.nonzero((agreement >= least) & (informative >= places))):
                yield a + int(i), b + int(j), float(agreement[i, j])
