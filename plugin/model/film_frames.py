"""Which frames of a film are taken, and what the backbone's processor is told about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .input_error import InputError
from .media import load_video
from .media_sources import FRAMES_ALLOWED, called, is_file, local_source, read_image

# What a call may say about it; the backbone's processor gets frames that are chosen, and their places.
_CHOICE = ("num_frames", "fps", "do_sample_frames", "video_metadata")


def frames_to_take(film: Any, asked: Mapping[str, Any], num_frames: int) -> int | None:
    """How many frames of a film are taken; None means all of them.

    Args:
        film: a file, or frames.
        asked: what a call says: `num_frames`, `do_sample_frames`.
        num_frames: how many of a file where the call does not say.
    """
    if asked.get("do_sample_frames") is False:
        return None
    if asked.get("num_frames") is not None:
        return asked["num_frames"]
    return num_frames if is_file(film) or asked.get("do_sample_frames") else None


def read_film(
    film: Any, name: str, num_frames: int | None, fps: float | None = None, metadata: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, float, list[int]]:
    """Frames of a film, chosen evenly, their rate and their places.

    Args:
        film: a file, or frames (F, H, W, 3) or (F, 3, H, W), or a list of pictures.
        name: what errors call it.
        num_frames: how many frames to choose; None takes all.
        fps: frames to choose a second, in place of `num_frames`.
        metadata: of decoded frames: `fps` (24 if not said) and `frames_indices`.
    """
    film = local_source(film, name)
    if is_file(film):
        frames, found = load_video(film, num_frames, name=called(name, film), fps=fps)
        return frames, found.fps, list(found.indices)
    if isinstance(film, (list, tuple)):
        film = np.stack([np.asarray(read_image(frame, f"{name}, frame {i}")) for i, frame in enumerate(film)])
    film = film.detach().cpu().numpy() if isinstance(film, torch.Tensor) else np.asarray(film)
    if film.ndim != 4 or not len(film):
        raise InputError(f"{name}: frames of shape {film.shape} were given; {FRAMES_ALLOWED}")
    metadata = metadata or {}
    rate = metadata.get("fps") or 24.0
    indices = metadata.get("frames_indices")
    indices = list(range(len(film)) if indices is None else indices)
    if fps is not None:
        num_frames = max(1, round(len(film) / rate * fps))
    if num_frames is not None:
        chosen = [int((i + 0.5) * len(film) / num_frames) for i in range(num_frames)]
        film, indices = film[chosen], [indices[i] for i in chosen]
    return film, rate, indices


def choose_frames(
    arguments: Mapping[str, Any], films: Sequence[Any], names: Sequence[str], num_frames: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A call's arguments for the backbone's processor, and its films as chosen frames.

    Args:
        arguments: of the call, flat or under `videos_kwargs`.
        films: files or frames.
        names: what errors call each.
        num_frames: see `frames_to_take`.
    """
    nested = arguments.get("videos_kwargs") or {}
    asked = {name: {**nested, **arguments}.get(name) for name in _CHOICE}
    about = asked["video_metadata"]
    rows = about if isinstance(about, (list, tuple)) else [about] * len(films)
    about = [one for row in rows for one in (row if isinstance(row, (list, tuple)) else [row])]
    if len(about) != len(films):
        raise InputError(f"video_metadata has {len(about)} entries for {len(films)} films; give one for each.")
    chosen = [
        read_film(film, name, frames_to_take(film, asked, num_frames), asked["fps"], _as_mapping(metadata))
        for film, name, metadata in zip(films, names, about, strict=True)
    ]
    rest = {name: value for name, value in arguments.items() if name not in _CHOICE}
    if nested:
        rest["videos_kwargs"] = {name: value for name, value in nested.items() if name not in _CHOICE}
    return {**rest, **video_arguments(chosen)}, [frames for frames, _, _ in chosen]


def video_arguments(videos: Sequence[tuple[np.ndarray, float, Sequence[int]]]) -> dict:
    """Arguments that tell a processor about videos whose frames are already chosen: frames, fps, indices of each."""
    metadata = [
        {"fps": fps, "total_num_frames": int(max(indices)) + 1, "frames_indices": list(indices)}
        for _, fps, indices in videos
    ]
    return {"video_metadata": metadata, "do_sample_frames": False}


def _as_mapping(metadata: Any) -> Mapping[str, Any] | None:
    return metadata if metadata is None or isinstance(metadata, Mapping) else vars(metadata)
