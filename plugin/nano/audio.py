"""The waveform of a clip: a musical bed that carries the emotion, and events in the timbre and rhythm of the content.

Valence is carried by register, mode, consonance against roughness, and brightness; arousal by tempo, loudness,
articulation and attack. The cues are strong on purpose: what limits a listener is the expression noise of the clip.
"""

from functools import lru_cache

import numpy as np

from .clips import CONTENTS, Clip, WorldConfig

_F32 = np.float32


@lru_cache(maxsize=4)
def _time(num_samples: int, rate: int) -> np.ndarray:
    return np.arange(num_samples, dtype=_F32) / _F32(rate)


@lru_cache(maxsize=32)
def _band(num_samples: int, rate: int, low_hz: float, high_hz: float, slope: float) -> np.ndarray:
    """Spectrum of a noise between two frequencies with soft edges and a power-law slope."""
    f = np.fft.rfftfreq(num_samples, 1 / rate)
    edge = 1 / (1 + (low_hz / np.maximum(f, 1)) ** 6) / (1 + (f / high_hz) ** 6)
    return edge * (np.maximum(f, 20) / 1000) ** slope


def _noise(rng, n, rate, low_hz, high_hz, slope=0.0) -> np.ndarray:
    spectrum = _band(n, rate, low_hz, high_hz, slope)
    phases = rng.standard_normal((2, spectrum.shape[0]), dtype=_F32)
    wave = np.fft.irfft((phases[0] + 1j * phases[1]) * spectrum, n).astype(_F32)
    return wave / (wave.std() + 1e-9)


def _placed(n: int, kernel: np.ndarray, starts) -> np.ndarray:
    out = np.zeros(n, _F32)
    for start in starts.astype(int):
        if 0 <= start < n:
            length = min(len(kernel), n - start)
            out[start : start + length] += kernel[:length]
    return out


def _beats(n, rate, beat_s, offset_s=0.02) -> np.ndarray:
    return np.arange(offset_s, n / rate, beat_s) * rate


def _scatter(rng, n, kernel, per_s, rate, spread) -> np.ndarray:
    """Many copies of one short kernel at random times, by one product of spectra."""
    count = max(3, rng.poisson(per_s * n / rate))
    impulses = np.zeros(n, _F32)
    np.add.at(impulses, rng.integers(0, n, count), rng.lognormal(0, spread, count).astype(_F32))
    return np.fft.irfft(np.fft.rfft(impulses) * np.fft.rfft(kernel, n), n).astype(_F32)


def _rain(rng, n, rate, arousal, beat_s):
    t = _time(400, rate)
    drop = np.exp(-t / 0.004) * np.sin(2 * np.pi * rng.uniform(3600, 4400) * t)
    drops = _scatter(rng, n, drop, 90 * 2 ** (0.6 * arousal), rate, 0.5)
    return 0.6 * drops / (drops.std() + 1e-9) + 0.5 * _noise(rng, n, rate, 2500, 7500)


def _waves(rng, n, rate, arousal, beat_s):
    t = _time(n, rate)
    period = 1.25 * 2 ** (-0.35 * arousal)
    swell = (0.5 - 0.5 * np.cos(2 * np.pi * (t / period + rng.random()))) ** 1.5
    return 1.5 * swell * _noise(rng, n, rate, 250, 1600, -0.6)


def _fire(rng, n, rate, arousal, beat_s):
    t = _time(320, rate)
    crack = np.exp(-t / 0.003) * rng.standard_normal(320).astype(_F32)
    cracks = _scatter(rng, n, crack, 14 * 2 ** (0.6 * arousal), rate, 0.8)
    return cracks / (cracks.std() + 1e-9) + 0.7 * _noise(rng, n, rate, 40, 160)


def _bell(rng, n, rate, arousal, beat_s):
    t = _time(n, rate)
    pitch = 620 * 2 ** (rng.uniform(-3, 3) / 12)
    ratios = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.74, 3.76], _F32)
    gains = np.array([0.5, 1.0, 0.7, 0.5, 0.7, 0.5, 0.35], _F32)
    partials = np.sin(2 * np.pi * pitch * np.outer(ratios, t)) * np.exp(-np.outer(ratios, t) / _F32(0.9))
    stroke = _mix(gains, partials)
    return _placed(n, _F32(1.1) * stroke, _beats(n, rate, 2 * beat_s))


def _drum(rng, n, rate, arousal, beat_s):
    t = _time(4000, rate)
    tune = rng.uniform(0.85, 1.2)
    kick = np.exp(-t / 0.09) * np.sin(2 * np.pi * tune * (58 * t + 5 * (1 - np.exp(-t / 0.03))))
    snare = np.exp(-t / 0.05) * rng.standard_normal(4000).astype(_F32)
    snare = snare + np.exp(-t / 0.06) * np.sin(2 * np.pi * 190 * t)
    on, off = _beats(n, rate, beat_s), _beats(n, rate, beat_s, 0.02 + beat_s / 2)
    return _placed(n, 3.2 * kick, on) + _placed(n, _F32(0.7) * snare, off)


def _bird(rng, n, rate, arousal, beat_s):
    t = _time(1500, rate)
    low = rng.uniform(2300, 2900)
    sweep = np.sin(2 * np.pi * (low * t + rng.uniform(7000, 10000) * t * t)) * np.abs(np.sin(np.pi * t / t[-1])) ** 0.7
    gap = 0.1 * rate
    starts = np.concatenate([_beats(n, rate, beat_s) + k * gap for k in range(3)]) + rng.normal(0, 0.01 * rate)
    return _placed(n, _F32(1.5) * sweep, starts)


def _clock(rng, n, rate, arousal, beat_s):
    t = _time(800, rate)
    tune = rng.uniform(0.92, 1.08)
    tick, tock = (np.exp(-t / 0.006) * np.sin(2 * np.pi * tune * f * t) for f in (2600.0, 1700.0))
    on, off = _beats(n, rate, beat_s), _beats(n, rate, beat_s, 0.02 + beat_s / 2)
    return _placed(n, 3 * tick, on) + _placed(n, 3 * tock, off)


def _flute(rng, n, rate, arousal, beat_s):
    t = _time(n, rate)
    step = (t / beat_s).astype(np.int64)
    degrees = rng.choice([0, 2, 4, 7, 9], size=int(step[-1]) + 1)
    pitch = 780 * 2 ** (rng.uniform(-2, 2) / 12) * 2.0 ** (degrees / 12)
    hz = pitch[step].astype(_F32) * (1 + _F32(0.012) * np.sin(2 * np.pi * 5.5 * t))
    phase = (2 * np.pi / rate) * np.cumsum(hz, dtype=np.float64)
    within = (t % _F32(beat_s)) / _F32(beat_s)
    envelope = np.minimum(within * 8, 1) * np.minimum((1 - within) * 6, 1)
    tone = np.sin(phase) + 0.35 * np.sin(2 * phase) + 0.12 * np.sin(3 * phase)
    return (envelope * (tone + 0.25 * _noise(rng, n, rate, 1200, 3500))).astype(_F32)


_EVENTS = dict(zip(CONTENTS, (_rain, _waves, _fire, _bell, _drum, _bird, _clock, _flute)))


def _veil(rng, n, rate):
    """A murmur that fits every class and none, where the content is hidden."""
    t = _time(n, rate)
    flutter = 0.6 + 0.4 * np.sin(2 * np.pi * (rng.uniform(1, 4) * t + rng.random()))
    return flutter * (0.6 * _noise(rng, n, rate, 150, 5000, -0.4) + 0.2 * _noise(rng, n, rate, 2000, 5000))


def _mix(gains: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """gains (P,) times waves (P, samples), summed. Not a BLAS call: its threads would fight the other workers'."""
    return np.einsum("p,pn->n", gains.astype(_F32), waves)


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _bed(rng, n: int, rate: int, clip: Clip) -> np.ndarray:
    """Chords in a register, mode, roughness and brightness set by valence; pulse and articulation set by arousal."""
    v, a = clip.audio.valence, clip.audio.arousal
    t = _time(n, rate)
    root_hz = 250 * 2 ** (1.15 * v) * 2 ** (rng.uniform(-1.2, 1.2) / 12)
    major = _sigmoid(6 * v)
    rough = _sigmoid(-5 * (v + 0.25))
    # (semitones above the root, gain): the third glides from minor to major, seconds and tritones enter below zero.
    notes = [(0, 1.0), (3, 0.8 * (1 - major)), (4, 0.8 * major), (7, 0.7), (12, 0.4)]
    notes += [(1, 0.5 * rough), (6, 0.5 * rough)]
    semitones, gains = np.array([note for note in notes if note[1] > 0.04]).T
    harmonics = np.arange(1, 5)
    slope = 1.5 - 0.9 * v
    hz = (root_hz * 2 ** (semitones / 12))[:, None] * harmonics  # (notes, harmonics)
    amp = gains[:, None] * harmonics ** -float(slope)
    phase0 = rng.uniform(0, 2 * np.pi, hz.size).astype(_F32)
    waves = np.sin(np.outer(2 * np.pi * hz.ravel(), t).astype(_F32) + phase0[:, None])  # (partials, samples)

    beat = t / _F32(clip.beat_s)
    within, step = beat % 1, beat.astype(np.int64)
    attack_s, hold = 0.05 * 2 ** (-1.5 * a), 0.75 * 2 ** (-1.3 * a)
    pulse = np.minimum(within * _F32(clip.beat_s / attack_s), 1) * np.exp(-within / _F32(hold))
    if clip.art_form == "painting":
        bed = _mix(amp.ravel(), waves) * (0.45 + 0.55 * pulse)
    elif clip.art_form == "animation":
        # An arpeggio in two hands: low notes on one beat, high notes on the next.
        upper = np.repeat(semitones >= 4, len(harmonics)).astype(_F32)
        low, high = (_mix(amp.ravel() * mask, waves) for mask in (1.3 - upper, 0.3 + upper))
        bed = np.where(step % 2 == 0, low, high) * (0.15 + 0.85 * pulse)
    else:
        hat = rng.standard_normal(n, dtype=_F32) * np.exp(-within * _F32(clip.beat_s / 0.02))
        bed = _mix(amp.ravel(), waves) * (0.2 + 0.8 * pulse) + 0.25 * hat
    beating = 1 + 0.85 * rough * np.sin(2 * np.pi * rng.uniform(8, 11) * t)
    return bed * beating / np.sqrt(np.sum(amp**2))


def synthesize(config: WorldConfig, clip: Clip) -> np.ndarray:
    """The waveform of a clip, float32 (samples,), mono, in [-1, 1]."""
    audio = clip.audio
    rng = np.random.default_rng(audio.seed)
    n, rate = round(config.clip_s * config.sampling_rate), config.sampling_rate
    bed = _bed(rng, n, rate, clip)
    if audio.hidden:
        events = _veil(rng, n, rate)
    else:
        args = (n, rate, audio.arousal, clip.beat_s)
        events = _EVENTS[audio.content](rng, *args)
        events = events / (events.std() + 1e-9)
        if audio.blend is not None:
            other = _EVENTS[audio.blend](rng, *args)
            events = 0.7 * events + 0.7 * other / (other.std() + 1e-9)
    mix = 0.6 * bed / (bed.std() + 1e-9) + 0.55 * events / (events.std() + 1e-9)
    mix = mix + 10 ** (rng.uniform(-34, -24) / 20) * _noise(rng, n, rate, 60, 7000, -0.5)
    loudness_db = -24 + 7 * audio.arousal + rng.uniform(-1, 1)
    mix = mix / (mix.std() + 1e-9) * 10 ** (loudness_db / 20)
    fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.01 * rate))
    return np.tanh(mix * fade).astype(_F32)
