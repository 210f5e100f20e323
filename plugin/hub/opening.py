"""Opens a model folder to look at it closely: the weights that are missing or unknown are told, not made up."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..utils import InputError

PROCESSOR_CODE = "processing_vaemotionllm.VAEmotionLLMProcessor"
MODEL_CODE = "modeling_vaemotionllm.VAEmotionLLMForConditionalGeneration"


CPU = torch.device("cpu")


class Unusable(InputError):
    """A model folder that is there, but cannot be loaded as it is."""


def open_model(
    folder: Path,
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    device: torch.device = CPU,
    trust_remote_code: bool = False,
):
    """The model of a folder in evaluation mode.

    Args:
        dtype: of the weights; "auto" is what the checkpoint says.
        attn_implementation: attention backend; the library's choice if not given.
        trust_remote_code: run the folder's own modelling files in place of this package's.

    Raises:
        Unusable: a file that cannot be read, a weight that is missing, unknown or of another shape.
        InputError: an attention backend that is not there.
    """
    from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration

    model_class = VAEmotionLLMForConditionalGeneration
    if trust_remote_code:
        model_class = _code_of(folder, MODEL_CODE)
    arguments = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        model, found = model_class.from_pretrained(str(folder), dtype=dtype, output_loading_info=True, **arguments)
    except ImportError as error:
        raise InputError(f"{attn_implementation or 'the attention backend'} is not installed: {error}") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        if attn_implementation is not None and "attention implementation" in str(error):
            raise InputError(
                f"this backbone has no attention backend {attn_implementation!r}; give another, such as eager or sdpa."
            ) from error
        raise Unusable(f"the model cannot be loaded ({_words(error)}).") from error
    names = {word: sorted(found.get(f"{word}_keys") or ()) for word in ("missing", "unexpected", "mismatched")}
    told = [f"{word} {', '.join(map(str, of[:3]))}" + (" ..." if of[3:] else "") for word, of in names.items() if of]
    if told:
        raise Unusable(f"the weights are not those of this model: {'; '.join(told)}.")
    return model.to(device).eval()


def usable_device(name: str | None) -> torch.device:
    """The device of a name; the first GPU, or the CPU where there is none, if no name is given.

    Raises:
        InputError: it is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"the device {name!r} cannot be used here ({reason}); give another.") from error
    return device


def open_processor(folder: Path, trust_remote_code: bool = False):
    """The processor of a folder.

    Raises:
        Unusable: it cannot be loaded.
    """
    from ..model.processing_vaemotionllm import VAEmotionLLMProcessor

    processor_class = _code_of(folder, PROCESSOR_CODE) if trust_remote_code else VAEmotionLLMProcessor
    try:
        # Said, since the library asks on the terminal where a part of it names code of its own.
        return processor_class.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, InputError) as error:
        raise Unusable(f"the processor cannot be loaded ({_words(error)}).") from error
    except Exception as error:
        # The tokenizers library raises nothing more special for a file that it cannot read.
        if type(error) is Exception:
            raise Unusable(f"the processor cannot be loaded ({_words(error)}).") from error
        raise


def _code_of(folder: Path, reference: str):
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
    except (OSError, ImportError, AttributeError, SyntaxError) as error:
        raise Unusable(f"the folder's own code cannot be loaded ({_words(error)}).") from error


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """float32 stays float32: by default cuDNN rounds the factors of its convolutions to ten bits (TF32)."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        yield


def read_json_object(path: Path) -> dict:
    """A JSON file that holds an object.

    Raises:
        Unusable: there is none, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unusable(f"{path.name} is missing.") from error
    except (OSError, ValueError) as error:
        raise Unusable(f"{path.name} is no JSON file ({_words(error)}).") from error
    if not isinstance(value, dict):
        raise Unusable(f"{path.name} holds no JSON object but {type(value).__name__}.")
    return value


def _words(error: Exception) -> str:
    """An error on one line: our own message, or type and message of another library's."""
    if isinstance(error, InputError):
        return str(error).rstrip(".")
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400].rstrip(".")
