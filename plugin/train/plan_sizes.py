"""What a plan of stage 1 assumes, and the sizes that follow: tokens, patches and audio windows of clip and batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from ..data.manifest import Clip, read_manifest
from ..model.audio_projector import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from ..utils import InputError
from . import flops
from .stage1_config import Stage1Config

# Feature extractors of both families of audio towers hear 16 kHz and make a frame each 10 ms.
FRAMES = SimpleNamespace(sampling_rate=16_000, hop_length=160)

# Up to how much memory, in GiB, which GPU is assumed where none is named.
GPU_OF_MEMORY = ((24, "RTX 4090"), (48, "L40S"), (80, "H100"), (math.inf, "H200"))

# Qwen3-VL writes "<0.5 seconds>" and two marks around each pair of frames.
TIME_TOKENS = 8


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes as given beside the config.

    Args:
        gpus: number of GPUs.
        gpu_memory_gib: memory of one GPU; what makers call GB is about this.
        reserve_gib: of it, kept free for fragmentation, CUDA's context and communication.
        peak_tflops: dense bf16 peak of one GPU.
        mfu: share of the peak that the model's FLOPs reach.
        clips: number of clips.
        audio_s: length of a clip's sound, seconds.
        media: "video" or "image".
        pixels_per_frame: height * width of a frame or picture as the backbone sees it; taken as a square.
        prompt_tokens: tokens of the prompt and the chat template, without media.
        response_tokens: tokens of a response.
    """

    gpus: int
    gpu_memory_gib: float
    reserve_gib: float
    peak_tflops: float
    mfu: float
    clips: int
    audio_s: float
    media: str
    pixels_per_frame: int
    prompt_tokens: int
    response_tokens: int

    def __post_init__(self):
        for name in (
            "gpus", "gpu_memory_gib", "peak_tflops", "mfu", "clips", "audio_s", "pixels_per_frame", "prompt_tokens",
            "response_tokens",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise InputError(f"{flag_of(name)} is {getattr(self, name)}; it must be above 0.")
        if self.mfu > 1:
            raise InputError(f"--mfu is {self.mfu}; it is a share of the peak, at most 1, such as 0.35.")
        if not 0 <= self.reserve_gib < self.gpu_memory_gib:
            raise InputError(
                f"--reserve-gb is {self.reserve_gib}; it must be at least 0 and below --gpu-memory-gb "
                f"({self.gpu_memory_gib})."
            )


def flag_of(name: str) -> str:
    """The command-line flag of an assumption."""
    return "--" + name.replace("_gib", "_gb").replace("_", "-")


def assumed_gpu(memory_gib: float) -> str:
    return next((name for limit, name in GPU_OF_MEMORY if memory_gib <= limit), GPU_OF_MEMORY[-1][1])


def read_clips(config: Stage1Config) -> list[Clip]:
    """The clips that the config's run would train on."""
    return read_manifest(config.manifest, config.split, ("audio", "visual"), config.max_clips)


def longest_clip_s(clips: Sequence[Clip]) -> float | None:
    """Length of the longest clip, where the manifest gives start and end of all."""
    if any(clip.start_s is None or clip.end_s is None for clip in clips):
        return None
    return max(clip.end_s - clip.start_s for clip in clips)


# ---- sizes


@dataclass(frozen=True)
class ClipSizes:
    """A clip in tokens, patches and audio windows."""

    audio_tokens: int
    audio_windows: int
    projector_tokens: int  # of them those that the projector makes, without the tokens around a window
    visual_tokens: int
    grids: tuple[tuple[int, int, int], ...]


def clip_sizes(config: VAEmotionLLMConfig, assumed: Assumptions, num_frames: int) -> ClipSizes:
    """Sizes of one clip, as processor and projector make them.

    Raises:
        InputError: an audio tower or a backbone whose sizes are not known here.
    """
    try:
        per_position = encoder_samples_per_position(config.audio_config, FRAMES)
    except ValueError as error:
        raise InputError(str(error)) from error
    per_token, window = per_position * config.projector_stride, window_samples(config.audio_config, FRAMES)
    samples = max(1, round(assumed.audio_s * FRAMES.sampling_rate))
    windows = split_into_windows(samples, window)
    visual_tokens, grids = visual_sizes(config.vlm_config, assumed.media, num_frames, assumed.pixels_per_frame)
    return ClipSizes(
        audio_tokens=num_placeholders(samples, window, per_token),
        audio_windows=len(windows),
        projector_tokens=sum(tokens_in_window(part, per_token) for part in windows),
        visual_tokens=visual_tokens,
        grids=grids,
    )


def visual_sizes(vlm_config, media: str, num_frames: int, pixels: int) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Tokens of a picture or film in the LLM (with its time stamps), and its grids of patches.

    Args:
        vlm_config: of Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision.
        media: "image" or "video".
        num_frames: frames of a film.
        pixels: of a frame, which is taken as a square. LLaVA-OneVision scales frames to its own size.

    Raises:
        InputError: a family whose pictures are not known here.
    """
    vision, side_px = vlm_config.vision_config, math.isqrt(pixels)
    if vlm_config.model_type in ("qwen2_5_vl", "qwen3_vl"):
        merge = vision.spatial_merge_size
        merged = max(1, round(side_px / (vision.patch_size * merge)))
        frames = math.ceil(num_frames / vision.temporal_patch_size) if media == "video" else 1
        times = frames * TIME_TOKENS if media == "video" and vlm_config.model_type == "qwen3_vl" else 0
        return frames * merged**2 + times, ((frames, merged * merge, merged * merge),)
    if vlm_config.model_type == "llava_onevision":
        side = vision.image_size // vision.patch_size
        if media == "video":  # halved by pooling; one token ends the film
            return num_frames * math.ceil(side / 2) ** 2 + 1, ((1, side, side),) * num_frames
        tiles = flops.tiles_of_image(vlm_config, side_px, side_px)
        # The whole picture, then its tiles (at most 9 times the whole) with a token at the end of each row.
        rows = min(math.isqrt(tiles - 1), 3) * side
        return side**2 + rows * (rows + 1), ((1, side, side),) * tiles
    raise InputError(
        f"pictures of {vlm_config.model_type!r} cannot be planned; known are qwen2_5_vl, qwen3_vl, llava_onevision."
    )


def batch_of(modality: str, clip: ClipSizes, assumed: Assumptions, batch: int, teacher: bool) -> flops.BatchSizes:
    """Sizes of a micro-batch of `batch` equal clips on a student modality, with or without the teacher."""
    text = assumed.prompt_tokens + assumed.response_tokens
    sees = modality == "av"
    student = flops.InputSizes(
        row_tokens=(text + clip.audio_tokens + (clip.visual_tokens if sees else 0),) * batch,
        grids=clip.grids * batch if sees else (),
        tower_windows=clip.audio_windows * batch,
        projector_tokens=clip.projector_tokens * batch,
    )
    seeing = flops.InputSizes((text + clip.visual_tokens,) * batch, clip.grids * batch)
    return flops.BatchSizes(student, seeing if teacher else None, assumed.response_tokens * batch)
