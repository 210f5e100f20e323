"""A model that `from_pretrained` loads, from a checkpoint of a run that need not be finished."""

import contextlib
import io
import json
from pathlib import Path

import torch

from ..config_file import build_config, own_fields
from ..utils import InputError, reported_writing
from . import checkpoint, record
from .freezing import freeze_all_but
from .lora import ADAPTER, add_lora, merge_lora, save_adapter
from .run import CONFIGS, keep_trained_in_float32, load_untrained, trained_parts


def export(run: Path, out: Path, step: int | None = None) -> Path:
    """Write model and processor as the run would have saved them had it ended at a checkpoint.

    The model that the run started from is loaded as training loads it, and what was trained is put into it; LoRA is
    merged, and written alone into the folder `adapter`. DeepSpeed's checkpoints are read by its own utility, which
    unpickles: export only runs of your own.

    Args:
        run: output_dir of a training run.
        out: folder to write into, as it is.
        step: of the checkpoint; the last complete one if not given.

    Returns:
        The checkpoint that was taken.

    Raises:
        InputError: no such run or checkpoint, or one that does not fit the model it names.
    """
    settings = read_settings(run)
    folder = find_checkpoint(run, step)
    cls = CONFIGS[settings["stage"]]
    names = {field.name for field in own_fields(cls)} | {"seed"}
    values = {name: value for name, value in settings.items() if name in names}
    if settings["stage"] == 2:
        values.setdefault("emotion_labels", None)  # a run from before there were labels
    config = build_config(cls, values | {"output_dir": str(run), "use_cpu": True})
    model, processor = load_untrained(config)
    lora = getattr(config, "lora", None)
    if lora is not None:
        add_lora(model, lora)
    freeze_all_but(model, trained_parts(config))
    if (folder / checkpoint.TRAINABLE).is_file():
        keep_trained_in_float32(model)
        checkpoint.load_trainable(model, folder)
    else:
        load_sharded(model, folder)
    state_dict = model.state_dict()
    with reported_writing(out):
        if lora is not None:
            save_adapter(model, state_dict, out / ADAPTER, config, trained_parts(config))
            state_dict = merge_lora(model, state_dict)
        model.save_pretrained(out, state_dict=state_dict)
        processor.save_pretrained(out)
        record.write_exported(run, out)
    return folder


def read_settings(run: Path) -> dict:
    """What a run wrote about itself when it began."""
    file = run / checkpoint.RUN_CONFIG
    if not file.is_file():
        raise InputError(f"{run} holds no {checkpoint.RUN_CONFIG}: name the output_dir of a training run.")
    return json.loads(file.read_text())


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The complete checkpoint of a step, or the last complete one.

    Raises:
        InputError: naming the steps that there are.
    """
    complete = {int(f.name.split("-")[1]): f for f in checkpoint.checkpoints(run) if checkpoint.is_complete(f)}
    if not complete:
        raise InputError(f"{run} holds no complete checkpoint yet; the first is written after `save_steps` steps.")
    if step is not None and step not in complete:
        steps = ", ".join(map(str, complete))
        raise InputError(f"{run} holds no complete checkpoint of step {step}; there are those of {steps}.")
    return complete[max(complete) if step is None else step]


def load_sharded(model: torch.nn.Module, folder: Path) -> None:
    """Put a DeepSpeed checkpoint's trained weights, of any ZeRO stage and number of ranks, into a whole model."""
    checkpoint.check_trainable_shapes(model, folder)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # the utility prints its progress
        tensors = get_fp32_state_dict_from_zero_checkpoint(str(folder), exclude_frozen_parameters=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])
