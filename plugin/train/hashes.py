"""Hashes of what a cache depends on: weights, processor, what is seen and heard of a clip."""

import hashlib
import json
import os
from typing import Any

from torch import nn

from ..data.manifest import Clip

_BLOCK_BYTES = 65_536


def header_of(depends_on: dict[str, Any]) -> dict[str, Any]:
    """Header of a row file: two files with equal hashes are interchangeable."""
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return {"hash": digest, "depends_on": depends_on}


def weights_hash(module: nn.Module, config) -> str:
    """Hash of a config and of a sample of every weight: a fine-tuned copy has another hash.

    Args:
        module: backbone or audio tower, whole (not sharded by an engine).
        config: its config.
    """
    digest = hashlib.sha256(json.dumps(_essential(config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(flat.numel() // 64, 1)].float().cpu()
        digest.update(name.encode())
        digest.update(str(parameter.dtype).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _essential(value: Any) -> Any:
    """A config without where it was loaded from, by what, and how attention is computed."""
    if isinstance(value, dict):
        left_out = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation")
        return {key: _essential(item) for key, item in value.items() if key not in left_out}
    return value


def processor_hash(processor) -> str:
    """Hash of what makes a clip and a prompt into the teacher's inputs: settings, vocabulary, chat template."""
    parts = {
        "image": processor.image_processor.to_dict(),
        "video": processor.video_processor.to_dict(),
        "vlm": processor.vlm_processor_kwargs,
        "template": processor.chat_template,
        "vocabulary": sorted(processor.tokenizer.get_vocab().items()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def clip_hash(clip: Clip, source: str | bytes | None) -> str:
    """Hash of the part of a file that a clip takes: the file's size, and its first, middle and last bytes.

    A whole film would take longer to read than to hash; embedded bytes are in memory and hashed whole.
    """
    digest = hashlib.sha256(f"{clip.start_s}\n{clip.end_s}\n".encode())
    if isinstance(source, bytes):
        digest.update(source)
    elif source is not None:
        size = os.path.getsize(source)
        digest.update(str(size).encode())
        with open(source, "rb") as file:
            for begin in (0, size // 2, size - _BLOCK_BYTES):
                file.seek(max(begin, 0))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


def seen_hash(clip: Clip) -> str:
    """`clip_hash` of what the teacher sees."""
    return clip_hash(clip, clip.video if clip.video is not None else clip.image)


def heard_hash(clip: Clip) -> str:
    """`clip_hash` of what the student hears."""
    return clip_hash(clip, clip.audio)
