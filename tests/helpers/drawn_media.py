"""Audio and images that a seed draws, no two alike, for tests."""

import numpy as np

RATE_HZ = 16_000


def melody(seed: int, seconds: float = 2.0) -> np.ndarray:
    """float32 (samples,): plucked notes."""
    rng = np.random.default_rng(seed)
    note = np.arange(RATE_HZ // 8) / RATE_HZ
    pitches_hz = 220 * 2 ** (rng.integers(0, 24, round(seconds * 8)) / 12)
    plucked = [sum(np.sin(2 * np.pi * p * h * note) / h for h in (1, 2, 3)) * np.exp(-8 * note) for p in pitches_hz]
    waveform = 0.2 * np.concatenate(plucked)
    return (waveform + 0.001 * rng.standard_normal(len(waveform))).astype(np.float32)


def scene(seed: int, size_px: int = 96) -> np.ndarray:
    """uint8 (size_px, size_px, 3): coloured rectangles."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size_px, size_px, 3), rng.integers(40, 220, 3), np.uint8)
    for _ in range(12):
        (top, left), (height, width) = rng.integers(0, size_px - 8, 2), rng.integers(8, size_px // 2, 2)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return pixels
