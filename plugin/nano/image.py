"""The frames of a clip: a subject drawn as shape, texture and motion, in a palette that carries the emotion.

Valence shows as brightness and as blue against yellow; arousal as green against red, contrast, saturation and speed.
Everything is a soft mask on a grid of all frames at once, so a clip costs well below a millisecond a frame.
"""

from functools import lru_cache

import numpy as np

from .clips import CONTENTS, Clip, WorldConfig

_F32 = np.float32


@lru_cache(maxsize=4)
def _grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size_px, dtype=_F32) + 0.5) / size_px * 2 - 1
    return axis[None, None, :], axis[None, :, None]  # x to the right (1, 1, S), y downwards (1, S, 1)


def _soft(distance: np.ndarray, edge: float = 0.06) -> np.ndarray:
    """1 inside (distance below 0), 0 outside, a ramp of width `edge` between."""
    return np.clip(0.5 - distance / _F32(edge), 0, 1)


def _turn(x, y, angle):
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


# Each subject gets local coordinates x, y (subject spans about -1 to 1), time t (F, 1, 1) in units of the motion
# speed, and random numbers r in [0, 1); it returns a mask (F, S, S).
def _rain(x, y, t, r):
    column = np.floor(x * 7 + 100 * r[0])
    phase = (column * _F32(0.618)) % 1
    lane = np.abs((x * 7 + 100 * r[0]) % 1 - _F32(0.5))
    fall = (y * _F32(1.1) - 1.2 * t + phase * 3 + r[1]) % 1
    return _soft(lane - 0.2, 0.25) * _soft(np.abs(fall - 0.5) - 0.22, 0.15)


def _waves(x, y, t, r):
    crest = 0.28 * np.sin(4.2 * x + 2.5 * t + 6 * r[0])
    band = np.abs(((y + crest) * _F32(1.25) + r[1]) % 1 - _F32(0.5))
    return _soft(band - 0.2, 0.15)


def _fire(x, y, t, r):
    height = _F32(0.5) - y * _F32(0.5)  # 0 at the bottom, 1 at the top
    sway = 0.25 * height * np.sin(5 * height - 4 * t + 6 * r[0])
    width = 0.75 * np.clip(1.02 - height, 0, 1) * (0.55 + 0.9 * height) * np.clip(height * 6 + 0.6, 0, 1)
    tongue = np.abs(np.sin(5.5 * (x - sway) + 6 * r[1])) * 0.3 * height
    hollow = np.hypot((x - sway) * 1.8, y - 0.75) - 0.38
    return np.clip(_soft(np.abs(x - sway) - width + tongue) - 0.5 * _soft(hollow, 0.15), 0, 1)


def _bell(x, y, t, r):
    x, y = _turn(x, y + 0.8, 0.45 * np.sin(3 * t + 6 * r[0]))
    y = y - _F32(0.8)
    height = np.clip((y + 0.75) / 1.2, 0, 1)
    body = np.abs(x) - (0.28 + 0.12 * np.sqrt(height) + 0.42 * height**4)
    mask = _soft(np.maximum(body, np.maximum(-0.75 - y, y - 0.45)))
    clapper = _soft(np.hypot(x - 0.1 * np.sin(3 * t + 6 * r[0]), y - 0.65) - 0.17)
    crown = _soft(np.abs(np.hypot(x, y + 0.85) - 0.14) - 0.05)
    return np.maximum(np.maximum(mask, clapper), crown)


def _drum(x, y, t, r):
    top = np.hypot(x * 1.15, (y + 0.4) * 2.6) - 0.85
    side = np.maximum(np.abs(x) - 0.74, np.maximum(-0.4 - y, y - 0.55 + 0.25 * x * x))
    lacing = np.abs(((x * 2.2 + np.abs((y * 2.1 + 0.1) % 2 - 1)) % 1) - _F32(0.5)) - 0.36
    body = _soft(side) * (0.35 + 0.65 * _soft(-lacing, 0.15))
    stick = np.abs(np.sin(3.2 * t + 3 * r[0]))
    beater = np.hypot(x - 0.25 + 0.5 * r[1], y + 0.55 + 0.4 * stick) - 0.14
    return np.maximum(np.maximum(body, _soft(top)), _soft(beater))


def _bird(x, y, t, r):
    x = x if r[0] < 0.5 else -x
    flap = 0.25 + 0.75 * np.sin(4 * t + 6 * r[1])
    body = np.hypot(x * 0.8, y * 2.4) - 0.38
    head = np.hypot(x - 0.5, y + 0.16) - 0.18
    beak = np.maximum(np.abs(y + 0.14) - 0.5 * (0.85 - x), np.maximum(0.6 - x, x - 0.85))
    wing_y = y + flap * (0.9 * np.abs(x + 0.1) - 0.05)
    wing = np.maximum(np.abs(wing_y) - 0.13, np.abs(np.abs(x + 0.1) - 0.45) - 0.5)
    tail = np.maximum(np.abs(y) - 0.35 * (-0.35 - x), -0.95 - x)
    return _soft(np.minimum(np.minimum(np.minimum(body, head), np.minimum(beak, wing)), tail))


def _clock(x, y, t, r):
    radius = np.hypot(x, y)
    ring = np.abs(radius - 0.82) - 0.09
    mask = _soft(ring)
    for speed, length, phase in ((2.2, 0.62, r[0]), (0.3, 0.4, r[1])):
        along, across = _turn(x, y, speed * t + 6.28 * phase)
        mask = np.maximum(mask, _soft(np.maximum(np.abs(across) - 0.08, np.abs(along - length / 2) - length / 2)))
    return np.maximum(mask, _soft(radius - 0.12))


def _flute(x, y, t, r):
    x, y = _turn(x, y, (0.5 + 0.4 * r[0]) * (1 if r[1] < 0.5 else -1) + 0.18 * np.sin(2.2 * t + 6 * r[1]))
    rod = np.maximum(np.abs(x) - 1.05, np.abs(y) - 0.17)
    holes = np.hypot(((x * 3.2) % 1 - 0.5) / 3.2, y) - 0.07
    mask = _soft(rod) * _soft(-holes * (np.abs(x) < 0.8) - 0.5 * (np.abs(x) >= 0.8), 0.06)
    return np.maximum(mask, _soft(np.maximum(np.abs(x + 0.95) - 0.07, np.abs(y) - 0.25)))


_SUBJECTS = dict(zip(CONTENTS, (_rain, _waves, _fire, _bell, _drum, _bird, _clock, _flute)))


def _fog(x, y, t, r):
    """Drifting haze without a shape, where the content is hidden."""
    drift = np.sin(2 * x + t + 6 * r[0]) + np.sin(2.3 * y - 0.7 * t + 6 * r[1]) + np.sin(1.5 * (x + y) + 6 * r[2])
    return _F32(0.4) + _F32(0.12) * drift


def _palette(rng, v: float, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Ground and figure colour, RGB in [0, 1], linear in (valence, arousal) along three opponent axes."""
    light = 0.42 + 0.16 * v + rng.uniform(-0.02, 0.02)
    yellow = 0.17 * v + rng.uniform(-0.015, 0.015)
    red = 0.17 * a + rng.uniform(-0.015, 0.015)
    ground = light + np.array([red + 0.35 * yellow, -0.5 * red + 0.35 * yellow, -0.2 * red - yellow])
    contrast = 0.26 * 2 ** (0.5 * a)
    figure = ground + contrast * np.array([1.0, 1.0, 0.9])
    return ground.astype(_F32), figure.astype(_F32)


@lru_cache(maxsize=4)
def _upsample(cells: int, size_px: int) -> np.ndarray:
    """Linear interpolation from a coarse row of cells to pixels, (S, cells)."""
    position = (np.arange(size_px) + 0.5) / size_px * (cells - 1)
    left = np.minimum(position.astype(int), cells - 2)
    weights = np.zeros((size_px, cells), _F32)
    weights[np.arange(size_px), left] = 1 - (position - left)
    weights[np.arange(size_px), left + 1] = position - left
    return weights


def render(config: WorldConfig, clip: Clip, times_s: np.ndarray | None = None) -> np.ndarray:
    """Frames of a clip at the given times (default: those of the written file), uint8 (F, S, S, 3), RGB."""
    visual, size = clip.visual, config.size_px
    rng = np.random.default_rng(visual.seed)
    if times_s is None:  # a painting is a single moment
        count = 1 if clip.art_form == "painting" else round(config.clip_s * config.fps)
        times_s = np.arange(count) / config.fps
    v, a = visual.valence, visual.arousal
    speed = 2.2 * 2 ** (1.1 * a)
    t = (times_s * speed).astype(_F32)[:, None, None] + _F32(rng.uniform(0, 10))  # (F, 1, 1)
    ground, figure = _palette(rng, v, a)
    r = rng.random(3).astype(_F32)
    shift, scale = rng.uniform(-0.12, 0.12, 2).astype(_F32), _F32(1 / rng.uniform(0.72, 0.95))

    x, y = _grid(size)
    x, y = (x - shift[0]) * scale, (y - shift[1]) * scale
    if clip.art_form == "music_video":
        # The subject jumps with the beat of the audio.
        phase = (times_s / clip.beat_s % 1).astype(_F32)[:, None, None]
        y = y + _F32(0.16) * np.exp(-4 * phase)
    if visual.hidden:
        mask = _fog(x, y, t, r)
    else:
        mask = _SUBJECTS[visual.content](x, y, t, r)
        if visual.blend is not None:
            mask = 0.5 * mask + 0.5 * _SUBJECTS[visual.blend](x, y, t, r[::-1])

    # Background texture: strong, fine strokes for high arousal, faint wash for low; painterly forms have more of it.
    amount = 0.045 * 2 ** (0.8 * a) * {"painting": 1.5, "animation": 0.5, "music_video": 1.0}[clip.art_form]
    rows, columns = _upsample(10, size), _upsample(5 if clip.art_form == "painting" else 10, size)
    texture = rows @ rng.standard_normal((10, columns.shape[1]), dtype=_F32) @ columns.T  # (S, S)
    shade = _F32(amount) * texture
    if clip.art_form == "music_video":
        shade = shade - _F32(0.08) * (_grid(size)[0] ** 2 + _grid(size)[1] ** 2)
        shade = shade + _F32(0.05) * np.exp(-4 * phase)
    mask = np.broadcast_to(mask, (len(times_s), size, size))
    grain = rng.standard_normal((len(times_s), size, size), dtype=_F32) * _F32(0.02)
    image = np.empty((len(times_s), size, size, 3), _F32)
    light = shade + grain
    for channel in range(3):
        image[..., channel] = ground[channel] + (figure - ground)[channel] * mask + light
    return (np.clip(image, 0, 1) * 255 + _F32(0.5)).astype(np.uint8)
