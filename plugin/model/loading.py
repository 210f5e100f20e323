"""Model and processor of a saved VAEmotionLLM for commands, with errors that name the folder."""

import json
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from .inputs import InputError, folder_or_hub_name
from .modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration
from .processing_vaemotionllm import VAEmotionLLMProcessor


def check_model_folder(pretrained: str | Path) -> str:
    """The folder or Hub name of a model as a loader takes it.

    Raises:
        InputError: a folder without a VAEmotionLLM and its processor, or a path where no folder is.
    """
    folder = Path(folder_or_hub_name(pretrained))
    if not folder.is_dir():
        return str(pretrained)
    made_by = "give the folder that `vaemotionllm train`, `vaemotionllm init` or save_pretrained wrote"
    if any(folder.glob("checkpoint-*")):
        made_by = f"of a run that is not finished, `vaemotionllm export {folder} --out DIR` makes a model"
    for name, remedy in (
        ("config.json", made_by),
        ("processor_config.json", "save the processor beside the model: processor.save_pretrained(DIR)"),
    ):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; {remedy}.")
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not valid JSON ({error}).") from error
    if model_type != "vaemotionllm":
        raise InputError(
            f"{folder} holds a model of type {model_type!r}, not 'vaemotionllm'; add an audio encoder first: "
            f"`vaemotionllm init --vlm {folder} --audio NAME --out DIR`."
        )
    return str(folder)


def device_of(name: str | None) -> torch.device:
    """The device of a name such as "cuda:0"; without a name the first GPU, or the CPU where there is none.

    Raises:
        InputError: this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        allowed += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in allowed and not re.fullmatch(r"cpu:\d+", name):  # as accelerate numbers the ranks of a CPU
        raise InputError(f"the device {name!r} is not of this machine; allowed are {', '.join(allowed)}.")
    return torch.device(name)


def load_model(
    pretrained: str | Path, device: str | None = None, dtype: str = "auto", attn_implementation: str | None = None
):
    """The model in evaluation mode on its device, see `device_of`; float32 on a CPU where `dtype` is "auto"."""
    pretrained, target = check_model_folder(pretrained), device_of(device)
    kind = torch.float32 if dtype == "auto" and target.type == "cpu" else dtype
    try:
        model = VAEmotionLLMForConditionalGeneration.from_pretrained(
            pretrained, dtype=kind, attn_implementation=attn_implementation
        )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        # Of the library's own errors a RuntimeError can be of several lines.
        where = "" if Path(pretrained).exists() else " (there is no such folder, so it was looked for on the Hub)"
        raise InputError(
            f"the model {pretrained!r} cannot be loaded{where}: {' '.join(str(error).split())}"
        ) from error
    return model.to(target).eval()


def load_processor(pretrained: str | Path, num_frames: int | None = None, max_audio_s: float | None = None):
    """The processor, with the caller's number of frames and longest audio where they are given."""
    for name, value in (("num_frames", num_frames), ("max_audio_s", max_audio_s)):
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise InputError(f"{name} is {value!r}; give a number above 0.")
    pretrained = folder_or_hub_name(pretrained)
    try:
        # None, the default, would let the library prompt on the terminal for running the folder's code.
        processor = VAEmotionLLMProcessor.from_pretrained(pretrained, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the processor of {pretrained} cannot be loaded: {' '.join(str(error).split())}") from error
    if num_frames is not None:
        processor.num_frames = int(num_frames)
    if max_audio_s is not None:
        processor.max_audio_s = float(max_audio_s)
    return processor
