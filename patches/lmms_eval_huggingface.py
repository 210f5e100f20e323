"""Lets lmms-eval's generic adapter `huggingface` load and call models of transformers 5, with their audio.

It looks a model's type up among config classes, never finds it, and loads every model without its head, which cannot
generate. It names the audio `audios`, which processors refuse since transformers 5 even where there is none, and
hands over paths: feature extractors read none, and video processors need torchcodec and a system FFmpeg for them.
"""

import functools
import inspect
import sys
import warnings
from typing import Any

MARK = "_vaemotionllm_huggingface"


class Model:
    """Stands for the adapter's `AutoModel`: a class with a head where transformers has one for the config."""

    @staticmethod
    def from_pretrained(pretrained: str, **kwargs):
        import transformers

        config = transformers.AutoConfig.from_pretrained(
            pretrained, trust_remote_code=kwargs.get("trust_remote_code", False)
        )
        for name in ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM"):
            auto = getattr(transformers, name, None)
            if auto is not None and type(config) in auto._model_mapping:
                return auto.from_pretrained(pretrained, **kwargs)
        return transformers.AutoModel.from_pretrained(pretrained, **kwargs)


class Processor:
    """A processor that takes the adapter's `audios`, and the file paths of audio and videos.

    Args:
        processor: the model's own; everything but the call goes to it.
        num_frames: frames taken from a video, evenly spread; the adapter's `max_num_frames`.
    """

    def __init__(self, processor: Any, num_frames: int):
        self._processor, self._num_frames = processor, num_frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args, audios=None, **kwargs):
        if audios:
            kwargs["audio"] = [self._waveform(audio) for audio in audios]
        videos = kwargs.get("videos")
        if videos and all(isinstance(video, (str, bytes)) for video in videos):
            kwargs.update(self._frames(videos))
        # A list without an element is no input; some processors take it for one.
        kwargs = {name: value for name, value in kwargs.items() if not isinstance(value, list) or value}
        return self._processor(*args, **kwargs)

    def _frames(self, videos: list) -> dict[str, Any]:
        from vaemotionllm.model.media import load_video
        from vaemotionllm.model.processing_vaemotionllm import video_arguments

        decoded = [load_video(video, self._num_frames) for video in videos]
        arguments = video_arguments([(frames, metadata.fps, metadata.indices) for frames, metadata in decoded])
        return {"videos": [frames for frames, _ in decoded], **arguments}

    def _waveform(self, audio: Any) -> Any:
        from vaemotionllm.model.media import SAMPLING_RATE_HZ, load_audio

        rate_hz = getattr(getattr(self._processor, "feature_extractor", None), "sampling_rate", SAMPLING_RATE_HZ)
        return load_audio(audio, sampling_rate=rate_hz) if isinstance(audio, (str, bytes)) else audio


def apply(loaded: str | None = None) -> bool:
    """Wraps `Huggingface.__init__` and replaces its module's `AutoModel`.

    Returns False, after a warning, where it does not fit.
    """
    module: Any = sys.modules.get("lmms_eval.models.chat.huggingface")
    adapter: Any = getattr(module, "Huggingface", None)
    original: Any = getattr(adapter, "__init__", None)
    if getattr(original, MARK, False):
        return True
    source = inspect.getsource(adapter.generate_until) if adapter is not None else ""
    if '"audios": audios' not in source:
        # The adapter was changed: it may name the audio rightly, and then nothing is to be done.
        if adapter is None or '"audio": audio' not in source:
            warnings.warn(
                "vaemotionllm: lmms_eval.models.chat.huggingface.Huggingface hands audio to its processor in a way "
                "that is not known, so it is left as it is. If `--model huggingface` fails at `audios`, install "
                "lmms-eval>=0.7.3,<0.8.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        return True

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.processor = Processor(self.processor, self.max_num_frames)

    setattr(__init__, MARK, True)
    adapter.__init__ = __init__
    module.AutoModel = Model
    return True
