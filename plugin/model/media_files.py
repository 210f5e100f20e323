"""Media files before they are decoded: their format by their content, limits, and errors that name a file.

FFmpeg probes for some 300 formats, among them playlists that open other files and hosts, and PIL starts another
program for PostScript. Here each admitted format is named; all else is refused by the name of what it is.
"""

import contextlib
import io
import os
import re
import struct
import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

import av

from .inputs import InputError

# What of a file is looked at; an MP3 may begin with that much that is no audio.
HEAD_BYTES = 1 << 16
# Formats of images as PIL names them. Of these it starts no other program.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
ALLOWED = "images (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, ...), audio and video in the usual containers"

# First bytes -> the demuxer of FFmpeg.
_CONTAINERS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"fLaC": "flac",
    b"FLV": "flv",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
    b"RF64": "wav",
    b"BW64": "wav",
    b"riff.\x91\xcf\x11": "w64",
    b"caff": "caf",
    b".snd": "au",
    b"#!AMR": "amr",
    b".RMF": "rm",
    b"wvpk": "wv",
    b"MAC ": "ape",
    b"TTA1": "tta",
    b"DKIF": "ivf",
    b"\x06\x0e+4\x02\x05\x01\x01": "mxf",
    b"\x0bw": "ac3",
}
_CHUNKED = {  # RIFF and IFF files: (first bytes, kind of content)
    (b"RIFF", b"WAVE"): "wav",
    (b"RIFF", b"AVI "): "avi",
    (b"RIFF", b"WEBP"): "image",
    (b"FORM", b"AIFF"): "aiff",
    (b"FORM", b"AIFC"): "aiff",
}
_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx")
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
# First bytes, without blanks and in small letters -> what it is.
_REFUSED = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"#extm3u": "a playlist (m3u8)",
    b"ffconcat": "a playlist (ffconcat)",
    b"[playlist]": "a playlist (pls)",
    b"v=0": "a session description (SDP)",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself (run `git lfs pull`)",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93numpy": "a NumPy array",
    b"rifx": "a WAV file of big-endian samples, which FFmpeg takes for little-endian ones",
}
_KBIT_S = {  # of MPEG audio: (version 1?, layer) -> by the header's index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBIT_S[False, 3] = _KBIT_S[False, 2]
# Sizes of a WAV file's data that recorders leave which write to a pipe.
_UNKNOWN_SIZE = 0x7FFF0000
# First bytes -> where chunks begin, bytes of an id and of a size, their order, and what chunks are filled up to.
_CHUNKS: dict[bytes, tuple[int, int, int, Literal["little", "big"], int]] = {
    b"RIFF": (12, 4, 4, "little", 2),
    b"RF64": (12, 4, 4, "little", 2),
    b"BW64": (12, 4, 4, "little", 2),
    b"caff": (8, 4, 8, "big", 1),
    b"riff": (40, 16, 8, "little", 8),  # W64
}


def demuxer_of(source, name: str) -> str:
    """The demuxer of FFmpeg for a file of audio or video, and "image" for an image.

    Args:
        source: a path, or the bytes of a file.
        name: what errors call the file.

    Raises:
        InputError: the file is of no admitted format; the error says what it is, where that is known.
    """
    head = head_of(source)
    if (demuxer := _CHUNKED.get((head[:4], head[8:12]))) is not None:
        return demuxer
    if head[4:8] in _MP4_ATOMS:
        if b"avif" not in head[8:64] and re.match(rb"ftyp.{0,52}hei[cx]", head[4:64], re.DOTALL):
            raise InputError(f"{name}: this is a HEIC image (convert it to JPEG); allowed are {ALLOWED}.")
        return "image" if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS else "mov"
    for start, demuxer in _CONTAINERS.items():
        if head.startswith(start):
            return "eac3" if demuxer == "ac3" and head[5:6] >= b"\x58" else demuxer  # its version is 11 and more
    if head.startswith(_IMAGES) or re.match(rb"P[1-7]\s", head):
        return "image"
    if (refused := _refused(head)) is not None:
        raise InputError(f"{name}: this is {refused}; allowed are {ALLOWED}.")
    if (demuxer := _raw_stream(head)) is not None:
        return demuxer
    raise InputError(f"{name}: this is of no known media format (or corrupt); allowed are {ALLOWED}.")


def _refused(head: bytes) -> str | None:
    text = head[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in _REFUSED.items():
        if text.startswith(start):
            return kind
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")):
        return "an SVG drawing" if b"<svg" in text else "an XML file"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return "a text file"
    return None


def _raw_stream(head: bytes) -> str | None:
    """The demuxer of what has no header: transport streams, MP3, ADTS; behind what is no audio."""
    for size in (188, 192, 204):
        for begin in range(min(size, len(head) - 4 * size)):
            if head[begin : begin + 4 * size + 1 : size] == b"\x47" * 5:
                return "mpegts"
    for start in range(len(head) - 4):
        if head[start] == 0xFF and head[start + 1] >= 0xE0:
            for demuxer, frame_of in (("aac", _adts_frame), ("mp3", mpeg_audio_frame)):
                if (frame := frame_of(head[start : start + 7])) is not None:
                    after = head[start + frame[0] : start + frame[0] + 7]
                    if len(after) < 7 or frame_of(after) is not None:
                        return demuxer
    return None


def _adts_frame(header: bytes) -> tuple[int] | None:
    if header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    length = int.from_bytes(header[3:6], "big") >> 5 & 0x1FFF
    return (length,) if length > 7 else None


def mpeg_audio_frame(header: bytes) -> tuple[int, int, int] | None:
    """Bytes, samples and Hz of the frame of MPEG audio that these four bytes begin; None where they begin none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version: 0 is 2.5, 2 is 2, 3 is 1
    bits, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot_bytes = 4 if layer == 1 else 1
    slots = samples // 8 * 1000 * _KBIT_S[version == 3, layer][bits] // (rate_hz * slot_bytes) + (header[2] >> 1 & 1)
    return slots * slot_bytes, samples, rate_hz


def check_data_size(source, name: str) -> None:
    """FFmpeg silently shortens cut WAV, W64, CAF and AVI, so compare the size that they promise with what is there."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        if (chunks := _CHUNKS.get(file.read(4))) is None:
            return
        begin, id_bytes, size_bytes, order, step = chunks
        actual, size_of_large = file.seek(0, io.SEEK_END), 0
        file.seek(begin)
        while len(head := file.read(id_bytes + size_bytes)) == id_bytes + size_bytes:
            size, at = int.from_bytes(head[id_bytes:], order) - (len(head) if id_bytes == 16 else 0), file.tell()
            if head[:4] == b"ds64":
                size_of_large = int.from_bytes(file.read(16)[8:], order)
            elif head[:4] == b"data" or (head[:4] == b"LIST" and file.read(4) == b"movi"):
                size = size_of_large if size == 0xFFFFFFFF and size_of_large else size
                there = actual - at
                # Programs that write to a pipe leave 0 or nearly the largest size, which says nothing.
                if there < size < (_UNKNOWN_SIZE if size_bytes == 4 and not size_of_large else 1 << 62):
                    raise InputError(
                        f"{name}: truncated, the header promises {size} bytes and {there} are there. Copy it again."
                    )
                return
            file.seek(at + max(size, 0) + -size % step)


# ---- errors


# What FFmpeg and PIL raise for damaged files; of Python's own PIL raises nearly all.
_OF_DECODERS = (
    av.error.FFmpegError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


@contextlib.contextmanager
def decoding(kind: str, name: str):
    """Turns what the decoders raise for a damaged file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except _OF_DECODERS as error:
        raise InputError(f"{name}: cannot decode the {kind} ({error}). The file is corrupt or truncated.") from error


@dataclass(frozen=True)
class Limits:
    """What decoding may take of one file, or of one clip.

    max_pixels: of an image or a frame. max_bytes: of all its decoded frames. max_s: seconds of work, None for any.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 4 << 30
    max_s: float | None = None


_limits: ContextVar[tuple[Limits, float]] = ContextVar("limits", default=(Limits(), 0.0))


@contextlib.contextmanager
def limits(**changed):
    """In its context the named fields of `Limits` have other values; the time counts from where `max_s` was given."""
    found, begin = _limits.get()
    token = _limits.set((replace(found, **changed), time.monotonic() if "max_s" in changed else begin))
    try:
        yield
    finally:
        _limits.reset(token)


def check_deadline(name: str) -> None:
    found, begin = _limits.get()
    if found.max_s is not None and time.monotonic() - begin > found.max_s:
        raise InputError(f"{name}: decoding took longer than the limit of {found.max_s:g} s. Cut or convert the file.")


def check_pixels(width: int, height: int, name: str, frames: int = 1) -> None:
    found, _ = _limits.get()
    if width * height > found.max_pixels:
        raise InputError(
            f"{name}: {width} x {height} pixels, more than max_pixels = {found.max_pixels}. Scale it down."
        )
    if (size := 3 * width * height * frames) > found.max_bytes:
        raise InputError(
            f"{name}: {frames} frames of {width} x {height} pixels take {size} bytes, more than max_clip_bytes = "
            f"{found.max_bytes}. Take fewer frames, or scale the video down."
        )


def checked(source, name: str | None) -> str:
    """What errors call a source, which is there and not empty."""
    embedded = isinstance(source, bytes)
    name = name or (f"<{len(source)} embedded bytes>" if embedded else os.fspath(source))
    if not embedded and not os.path.isfile(source):
        there = "this is no file but a folder, a pipe or a device" if os.path.exists(source) else "file not found"
        raise InputError(f"{name}: {there}.")
    if (len(source) if embedded else os.path.getsize(source)) == 0:
        raise InputError(f"{name}: the file is empty.")
    return name


def head_of(source) -> bytes:
    """The first `HEAD_BYTES` behind ID3 tags, which FFmpeg passes over: one with an image may be of any size."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        at, head = 0, file.read(HEAD_BYTES)
        while head.startswith(b"ID3") and len(head) > 10:
            at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
            file.seek(at)
            head = file.read(HEAD_BYTES)
        return head
