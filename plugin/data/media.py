"""Media decoding for training and evaluation.

The code is in `model/media.py` (edit it there): the processor decodes files as well, and `save_pretrained` copies to
the Hub only what lies beside it.
"""

from ..model.media import MAX_AUDIO_S, SAMPLING_RATE_HZ, VideoMetadata, load_audio, load_image, load_video

__all__ = ["MAX_AUDIO_S", "SAMPLING_RATE_HZ", "VideoMetadata", "load_audio", "load_image", "load_video"]
