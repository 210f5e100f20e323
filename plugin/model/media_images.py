"""Images as PIL images in RGB; frames of those that move; which frames of a video are taken."""

import bisect
import contextlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile

from .inputs import InputError
from .media_files import IMAGE_FORMATS, check_deadline, check_pixels, checked, decoding, demuxer_of

# Time stamps are rounded, to a millisecond in Matroska.
ROUNDING_S = 5e-4

_pil_setting = threading.Lock()
# EXIF's orientation -> what turns the image upright.
_TURNS = {
    number: Image.Transpose[name]
    for number, name in enumerate(
        "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), start=2
    )
}


@dataclass(frozen=True)
class VideoMetadata:
    """fps: mean frames a second of the file. duration_s: of the chosen part. indices: of each returned frame in it,
    counted at `fps`."""

    fps: float
    duration_s: float
    indices: tuple[int, ...]


def spread_frames(
    times_s: Sequence[float],
    rate: float,
    low: float,
    high: float,
    num_frames: int | None,
    fps: float | None,
    name: str,
    size_px: tuple[int, int],
) -> tuple[list[int], VideoMetadata]:
    """Frames that are shown at times spread evenly from `low` to `high`: the last at or before each time.

    Args:
        times_s: from when on each frame is shown, in order.
        rate: mean frames a second of the file.
        low, high: the part, seconds.
        num_frames, fps, name: see `load_video`.
        size_px: width and height of the frames, which are bounded.

    Returns:
        Indices into `times_s`, and the metadata.
    """
    duration_s = high - low
    if duration_s <= ROUNDING_S:
        raise InputError(
            f"{name}: no frame between {low:g} s and {high:g} s (the last frame is at {times_s[-1]:.2f} s)."
        )
    if fps is not None:
        num_frames = max(1, round(duration_s * fps))
    first = max(bisect.bisect_right(times_s, low + ROUNDING_S) - 1, 0)
    shown = range(first, max(bisect.bisect_left(times_s, high - ROUNDING_S), first + 1))
    check_pixels(*size_px, name, len(shown) if num_frames is None else num_frames)
    if num_frames is None:
        wanted = list(shown)
        at_s = [max(times_s[index], low) for index in wanted]
    else:
        at_s = [low + (i + 0.5) * duration_s / num_frames for i in range(num_frames)]
        wanted = [max(bisect.bisect_right(times_s, time_s + ROUNDING_S) - 1, 0) for time_s in at_s]
    indices = tuple(int((time_s - low + ROUNDING_S) * rate) for time_s in at_s)
    return wanted, VideoMetadata(fps=rate, duration_s=duration_s, indices=indices)


def load_image(source, name: str | None = None):
    """Decode an image to a PIL image in RGB, upright as its EXIF says; of one that moves the first frame.

    What is transparent shows white. Grey levels of 16 bits, and floats from 0 to 1, are scaled to 8 bits.

    Args:
        source: a path, the bytes of a file, or a PIL image, which may be decoded in part.
        name: what errors call the source (default: its path).

    Raises:
        InputError: file missing, corrupt or truncated, of no admitted format, or too large.
    """
    given = isinstance(source, Image.Image)
    name = name or "the PIL image" if given else checked(source, name)
    with decoding("image", name):
        if not given and (demuxer := demuxer_of(source, name)) != "image":
            raise InputError(f"{name}: this is no image but audio or video ({demuxer}); give it as such.")
        with contextlib.nullcontext(source) if given else open_image(source) as image:
            check_pixels(image.width, image.height, name)
            with _pil_settings():
                image.load()
            return rgb_of(image, name)


def rgb_of(image, name: str):
    """A decoded PIL image in RGB, as `load_image` says."""
    # Not by ImageOps.exif_transpose, which writes all of the EXIF again and fails at tags that cameras write wrong.
    if (turn := _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        levels = np.asarray(image, np.float64)  # (H, W)
        full = 1.0 if image.mode == "F" else 65535.0
        if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > full:
            raise InputError(
                f"{name}: the levels of this image of mode {image.mode} go from {levels.min():g} to "
                f"{levels.max():g}; allowed is 0 to {full:g}. Scale it, or save it with 8 bits."
            )
        clear = image.info.get("transparency")  # the level that is transparent
        image = Image.fromarray(np.round(levels * (255 / full)).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextlib.contextmanager
def open_image(source):
    with _pil_settings():
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS)
    with image:
        yield image


@contextlib.contextmanager
def _pil_settings():
    """lmms_eval, among others, sets PIL for the whole process to fill what is missing with grey.

    The limit of pixels is `check_pixels`'.
    """
    with _pil_setting:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def is_moving(image) -> bool:
    """Whether an open image is an animation; the pages of a TIFF, and the images in an MPO of a phone, are none."""
    return getattr(image, "n_frames", 1) > 1 and image.format not in ("TIFF", "MPO")


def read_animation(source, name: str, num_frames, fps, start_s, end_s) -> tuple[np.ndarray, VideoMetadata]:
    with open_image(source) as image:
        if not is_moving(image):
            raise InputError(f"{name}: this is a still image; give it as `image`, or give a video.")
        check_pixels(image.width, image.height, name)
        times_s, end = [], 0.0
        first = int(image.info.get("default_image", False))  # of a PNG that shows another one where it cannot move
        with _pil_settings():
            for index in range(first, image.n_frames):
                check_deadline(name)
                image.seek(index)
                image.load()
                times_s.append(end)
                end += (image.info.get("duration") or 100) / 1000  # ms; without one browsers take a tenth of a second
        high = end if end_s is None else min(end, end_s)
        wanted, metadata = spread_frames(
            times_s, len(times_s) / end, start_s or 0.0, high, num_frames, fps, name, image.size
        )
        frames = []
        for index in wanted:
            with _pil_settings():
                image.seek(first + index)
                image.load()
            frames.append(np.asarray(rgb_of(image, name)))
    return np.stack(frames), metadata  # (num_frames, H, W, 3)
