"""What a call of the processor may be told beside its media."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .input_error import InputError
from .media_sources import HEAR_FILM


class VAEmotionLLMAudioKwargs(TypedDict, total=False):
    """What may be said about the sound of a call, also as `audio_kwargs`.

    Args:
        sampling_rate: rate in Hz of the samples that do not say theirs; the tower's if not given.
        truncation: whether a sound longer than the processor's `max_audio_s` is cut instead of refused. It counts in
            `audio_kwargs` alone: beside it, `truncation` is the text's.
        return_tensors: "pt" or "np", for sound alone; where there is text, its `return_tensors` counts.
    """

    sampling_rate: int | None
    truncation: bool | None
    return_tensors: str | None


class VAEmotionLLMProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """What [`VAEmotionLLMProcessor`] can be told in a call, beside what all processors of transformers know.

    Args:
        audio_kwargs: see [`VAEmotionLLMAudioKwargs`].
        use_audio_in_video: whether films are heard as well: one answer for all, or one a film.
        load_audio_from_video: the same, by the newer name in transformers.
    """

    audio_kwargs: VAEmotionLLMAudioKwargs
    use_audio_in_video: bool | list[bool] | None
    load_audio_from_video: bool | list[bool] | None


def check_call(
    processor: ProcessorMixin, vlm: ProcessorMixin, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], bool | Sequence[bool]]:
    """The arguments of a call by modality, and which films are heard.

    transformers warns once of an argument that it does not know and goes on without it: a `sampling_rate` that was
    mistyped would change what is heard.

    Args:
        processor: the one that is called.
        vlm: the backbone's, which is called with what is not about sound.
        kwargs: the arguments beside the media.

    Raises:
        InputError: one that is not known, or has a value that is not allowed.
    """
    mine, theirs = processor.valid_processor_kwargs.__annotations__, vlm.valid_processor_kwargs.__annotations__
    modalities = {
        "text_kwargs": [mine["text_kwargs"], theirs["text_kwargs"]],
        "images_kwargs": [mine["images_kwargs"], theirs["images_kwargs"], vlm.image_processor.valid_kwargs],
        "videos_kwargs": [mine["videos_kwargs"], theirs["videos_kwargs"], vlm.video_processor.valid_kwargs],
        "audio_kwargs": [mine["audio_kwargs"]],
    }
    known = {"common_kwargs", *mine, *theirs}
    for modality, kinds in modalities.items():
        inner = set().union(*(kind.__annotations__ for kind in kinds))
        _check_names(f"{modality} of {type(processor).__name__}", kwargs.get(modality) or {}, inner)
        known |= inner
    _check_names(type(processor).__name__, kwargs, known)
    if kwargs.get("sampling_rate") and (kwargs.get("audio_kwargs") or {}).get("sampling_rate"):
        raise InputError("sampling_rate was given twice, in audio_kwargs and beside it; give it once.")
    try:
        merged = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs, **kwargs)
    except (StrictDataclassError, TypeError) as error:
        raise InputError(f"The arguments cannot be used: {' '.join(str(error).split())}") from error
    said = [kwargs[name] for name in HEAR_FILM if kwargs.get(name) is not None]
    return merged, said[0] if said else False


def _check_names(of: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            close = ["audio"] if name == "audios" else difflib.get_close_matches(name, sorted(known), 1)
            if hasattr(GenerationConfig(), name):
                hint = "it belongs to `generate`, in a pipeline to its `generate_kwargs`."
            elif close:
                hint = f"did you mean {close[0]!r}?"
            else:
                hint = f"neither it nor the chat template knows it. Known are {', '.join(sorted(known))}."
            raise InputError(f"{of}: there is no argument {name!r}; {hint}")


def one_each(answer: bool | Sequence[bool], films: int) -> list[bool]:
    """One answer for each of a number of films."""
    if not isinstance(answer, (list, tuple)):
        return [bool(answer)] * films
    if len(answer) != films:
        raise InputError(
            f"{HEAR_FILM[0]} has {len(answer)} answers for {films} films; give one a film, or one for all."
        )
    return [bool(each) for each in answer]
