"""Checkpoints of a run: which are complete, what they hold, what is left of an earlier run.

A checkpoint counts only when its last file, `complete.json`, is there and every file that it lists has its size: a
process killed while it writes leaves none.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..utils import InputError, write_json

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
FINISHED = "finished.json"
TRAINABLE = "trainable.safetensors"
TRAINABLE_SHAPES = "trainable.json"
RUN_CONFIG = "run.json"


def mark_complete(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, as its last file."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    files.pop(COMPLETE, None)
    write_json(folder / COMPLETE, files)


def is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / COMPLETE).read_text())
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, complete or not, by step."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _step_of(path))]
    return [path for _, path in sorted(found)]


def last_complete(output_dir: Path) -> Path | None:
    """The last complete checkpoint. Incomplete ones are named in the log and passed over."""
    for folder in reversed(checkpoints(output_dir)):
        if is_complete(folder):
            return folder
        logger.warning("%s was not written to its end and is passed over.", folder)
    return None


def remove_incomplete(output_dir: Path) -> None:
    for folder in checkpoints(output_dir):
        if not is_complete(folder):
            shutil.rmtree(folder)


def rotate(output_dir: Path, keep: int | None) -> None:
    """Delete all but the last `keep` complete checkpoints (None keeps all)."""
    if keep is None:
        return
    for folder in [folder for folder in checkpoints(output_dir) if is_complete(folder)][: -max(keep, 1)]:
        # Without its marker first, so that a kill in the middle of the deletion leaves no checkpoint that looks whole.
        (folder / COMPLETE).unlink()
        shutil.rmtree(folder)


def save_trainable(model: torch.nn.Module, folder: Path) -> None:
    """Write the parameters that are trained, and no frozen one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous().cpu() for name, p in model.named_parameters() if p.requires_grad}
    save_file(tensors, folder / TRAINABLE)


def load_trainable(model: torch.nn.Module, folder: Path) -> None:
    """Load what `save_trainable` wrote: every trainable parameter must be there in its shape, and nothing else.

    Raises:
        InputError: naming keys that are missing, unknown or of another shape.
    """
    if not (folder / TRAINABLE).is_file():
        raise InputError(
            f"{folder} holds no {TRAINABLE}: an engine wrote it. Go on with the same `deepspeed` config, or take "
            "another output_dir."
        )
    tensors = load_file(folder / TRAINABLE)
    compare_shapes(folder, {name: list(tensor.shape) for name, tensor in tensors.items()}, trainable_shapes(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def trainable_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Name -> whole shape of each trained parameter, also of those that ZeRO-3 has sharded."""
    return {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def record_trainable_shapes(model: torch.nn.Module, folder: Path) -> None:
    """Write beside an engine's own files what they hold: the engine stores flat shards, which have no names.

    A list keeps the order of the parameters, which decides their places in the shards.
    """
    write_json(folder / TRAINABLE_SHAPES, list(trainable_shapes(model).items()))


def check_trainable_shapes(model: torch.nn.Module, folder: Path) -> None:
    """Compare what `record_trainable_shapes` wrote with the model: the same parameters, shapes and order.

    Raises:
        InputError: naming what differs, or the file where it is missing.
    """
    file = folder / TRAINABLE_SHAPES
    if not file.is_file():
        raise InputError(f"{folder} has no {TRAINABLE_SHAPES}, so it is no engine's checkpoint of this package.")
    found = dict(json.loads(file.read_text()))
    wanted = trainable_shapes(model)
    compare_shapes(folder, found, wanted)
    if list(found) != list(wanted):
        raise InputError(
            f"{folder} holds the parameters of this run in another order, and an engine's checkpoint is read by "
            "order. Go on with the version that wrote it, or start again with overwrite=true."
        )


def compare_shapes(folder: Path, found: dict[str, list[int]], wanted: dict[str, list[int]]) -> None:
    """Raise an InputError unless a checkpoint holds exactly the wanted parameters in their shapes."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        raise InputError(
            f"{folder} does not fit this run: missing {missing[:3] or 'nothing'}, unknown {unknown[:3] or 'nothing'}. "
            "What is trained has changed; take another output_dir or overwrite=true."
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise InputError(
                f"{folder} does not fit this run: {name} is {found[name]} there and {shape} here. The model has "
                "changed; take another output_dir or overwrite=true."
            )


def inspect_output(output_dir: Path, settings: dict[str, Any], overwrite: bool) -> str:
    """What an output folder is to a run: "new", "overwrite", "resume" or "finished". Changes nothing.

    Args:
        output_dir: the folder of the run.
        settings: what decides the run's result; compared with what the folder was made with.
        overwrite: an earlier run's files may go.

    Raises:
        InputError: the folder holds a run with other settings, or files of another kind.
    """
    record = output_dir / RUN_CONFIG
    if not record.is_file():
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise InputError(
                f"output_dir {output_dir} holds files that are not of a training run. Take another folder."
            )
        return "new"
    if overwrite:
        return "overwrite"
    old, new = json.loads(record.read_text()), json.loads(json.dumps(settings))
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            raise InputError(
                f"output_dir {output_dir} holds a run with {name} = {old.get(name)!r}, this one {new.get(name)!r}. "
                "Take another output_dir, or overwrite=true to start again."
            )
    return "finished" if (output_dir / FINISHED).is_file() else "resume"


def open_output(output_dir: Path, settings: dict[str, Any], state: str) -> None:
    """Make the folder ready for the run, by what `inspect_output` found. Only one rank may call it."""
    if state == "overwrite":
        for path in output_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if state == "resume":
        remove_incomplete(output_dir)
    else:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / RUN_CONFIG, settings)


def publish(source: Path, target: Path) -> None:
    """Move every file of `source` into `target`, each at once, and remove `source`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            destination = target / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, destination)
    shutil.rmtree(source)


def _step_of(path: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)
