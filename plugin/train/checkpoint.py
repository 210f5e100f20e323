"""Files of a run: its checkpoints and which are complete, its settings and history, a model from a checkpoint.

A checkpoint counts only when its last file, `complete.json`, is there and every file that it lists has its size: a
process killed while it writes leaves none. A run resumes from the last of them whose content can be read.
"""

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .. import __version__
from ..config_file import build_config, own_fields
from ..data.manifest import LABEL_FIELDS, MEDIA_FIELDS, Clip
from ..utils import OWNER_FILES, InputError, read_json, reported_writing, sha256_of_json, write_json
from .config import CONFIGS, StageConfig
from .distributed import sharded_like, whole
from .lora import ADAPTER, merge_lora, save_adapter
from .model import freeze_all_but, keep_trained_in_float32, load_untrained, trained_parts

logger = logging.getLogger(__name__)

CHECKSUM = "crc32"
COMPLETE = "complete.json"
FINISHED = "finished.json"
METRICS = "metrics.jsonl"
QUALITY = "quality.json"
RECORD = "training.json"
REPRODUCIBILITY = "reproducibility.json"  # of a model that `vaemotionllm push` has uploaded
RUN_CONFIG = "run.json"
TRAINABLE = "trainable.safetensors"
TRAINABLE_SHAPES = "trainable.json"
# Settings that may be raised on a run, finished or not, which then resumes and trains longer.
RAISABLE = ("max_steps", "num_train_epochs")
PACKAGES = ("vaemotionllm", "torch", "torchaudio", "transformers", "accelerate", "peft", "deepspeed", "numpy", "av")


# ---- which checkpoints there are


def mark_complete(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, as its last file."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    files.pop(COMPLETE, None)
    write_json(folder / COMPLETE, files)


def is_complete(folder: Path) -> bool:
    try:
        files = read_json(folder / COMPLETE, "the list of a checkpoint's files")
    except InputError:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def checkpoints(output_dir: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, complete or not, by step."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def last_complete(output_dir: Path) -> Path | None:
    """The last complete checkpoint. Incomplete ones are named in the log and skipped."""
    for folder in reversed(checkpoints(output_dir).values()):
        if is_complete(folder):
            return folder
        logger.warning("%s was not written to its end and is skipped.", folder)
    return None


def resume_step(output_dir: Path) -> int:
    """The step of the last complete checkpoint that can be read, 0 without one. Only one rank may call it.

    Those behind it that cannot are renamed: the run comes to their steps again.
    """
    for step, folder in reversed(checkpoints(output_dir).items()):
        if not is_complete(folder):
            continue
        damage = damage_of(folder)
        if damage is None:
            return step
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        logger.warning("%s cannot be read (%s); it is kept as %s, and skipped.", folder, damage, aside.name)
    return 0


def damage_of(folder: Path) -> str | None:
    """What is wrong with the content of a checkpoint whose files have their sizes; None where all can be read."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_bytes())
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    written = (opened.metadata() or {}).get(CHECKSUM)
                    if written not in (None, _checksum({name: opened.get_tensor(name) for name in opened.keys()})):
                        return f"{file.name} holds other values than were written"
            elif file.suffix in (".pt", ".pth", ".bin"):  # torch.save writes zip archives, with checksums
                with zipfile.ZipFile(file) as archive:
                    if broken := archive.testzip():
                        return f"{file.name}: {broken} is broken"
        except Exception as error:  # a damaged file makes its reader raise anything
            return f"{file.name}: {error}"
    return None


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of the values of tensors in the CPU's memory, as text."""
    found = 0
    for _, tensor in sorted(tensors.items()):
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def rotate(output_dir: Path, keep: int | None) -> None:
    """Delete all but the last `keep` complete checkpoints (None keeps all)."""
    if keep is None:
        return
    complete = [folder for folder in checkpoints(output_dir).values() if is_complete(folder)]
    for folder in complete[: -max(keep, 1)]:
        # Without its marker first, so that a kill in the middle of the deletion leaves no checkpoint that looks whole.
        (folder / COMPLETE).unlink()
        shutil.rmtree(folder)


# ---- what a checkpoint holds


def save_trainable(model: torch.nn.Module, folder: Path, main: bool = True) -> None:
    """Write the parameters that are trained, and no frozen one; every rank must call it, and the main one writes."""
    tensors = {name: whole(p.detach()) for name, p in model.named_parameters() if p.requires_grad}
    if not main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(tensors, folder / TRAINABLE, metadata={CHECKSUM: _checksum(tensors)})


def load_trainable(model: torch.nn.Module, folder: Path) -> None:
    """Put a checkpoint's trained weights, by `save_trainable` or by DeepSpeed at any ZeRO stage, into a whole model.

    Raises:
        InputError: see `check_shapes`.
    """
    if (folder / TRAINABLE).is_file():
        tensors = load_file(folder / TRAINABLE)
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()):  # the utility prints its progress
            tensors = get_fp32_state_dict_from_zero_checkpoint(str(folder), exclude_frozen_parameters=True)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in dict(model.named_buffers())}
    found = sorted([name, list(tensor.shape)] for name, tensor in tensors.items())
    check_shapes(folder, found, sorted(trainable_shapes(model)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(sharded_like(tensors[name], parameter))


def trainable_shapes(model: torch.nn.Module) -> list[list]:
    """[name, whole shape] of each trained parameter, also of those that ZeRO-3 has sharded.

    An engine stores flat shards, in which the order of the parameters decides their positions.
    """
    return [
        [name, list(getattr(parameter, "ds_shape", parameter.shape))]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def check_engine_checkpoint(model: torch.nn.Module, folder: Path) -> None:
    """Check what `TRAINABLE_SHAPES` says of an engine's checkpoint: the same parameters, shapes and order.

    Raises:
        InputError: see `check_shapes`.
    """
    check_shapes(folder, json.loads((folder / TRAINABLE_SHAPES).read_text()), trainable_shapes(model))


def check_shapes(folder: Path, found: list[list], wanted: list[list]) -> None:
    """Raise an InputError unless a checkpoint holds exactly the wanted parameters, in their shapes and order."""
    if found == wanted:
        return
    there, here = dict(found), dict(wanted)
    names = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    changes = [f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here" for name in names]
    raise InputError(
        f"{folder} does not fit this run: {'; '.join(changes[:3]) or 'its parameters have another order'}. Take "
        "another output_dir, or overwrite=true to start again."
    )


# ---- the folder of a run


def inspect_output(output_dir: Path, settings: dict[str, Any], overwrite: bool) -> str:
    """What an output folder is to a run: "new", "overwrite", "resume" or "finished". Changes nothing.

    A run that has taken no step yet, for one that failed at a setting, may resume with other settings.

    Args:
        output_dir: the folder of the run.
        settings: what decides the run's result; compared with what the folder was made with.
        overwrite: an earlier run's files may be deleted.

    Raises:
        InputError: the folder holds a run with other settings, or files of another kind.
    """
    record = output_dir / RUN_CONFIG
    if not record.is_file():
        if output_dir.is_dir() and {path.name for path in output_dir.iterdir()} - {*OWNER_FILES}:
            raise InputError(
                f"output_dir {output_dir} holds files that are not of a training run. Take another folder."
            )
        return "new"
    if overwrite:
        return "overwrite"
    finished = (output_dir / FINISHED).is_file()
    if not (finished or checkpoints(output_dir) or complete_rows(output_dir / METRICS)):
        return "resume"
    old, new = read_json(record, "a run's settings"), json.loads(json.dumps(settings))
    changed = [name for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
    for name in changed:
        raised = name in RAISABLE and 0 < (old.get(name) or 0) < new[name]
        if not raised:
            raise InputError(
                f"output_dir {output_dir} holds a run with {name} = {old.get(name)!r}, this one {new.get(name)!r}"
                f"{', and it can only be raised' if name in RAISABLE else ''}. Take another output_dir, or "
                "overwrite=true to start again."
            )
    return "finished" if finished and not changed else "resume"


def open_output(output_dir: Path, settings: dict[str, Any], state: str) -> None:
    """Make the folder ready for the run, by what `inspect_output` found. Only one rank may call it."""
    if state == "overwrite":
        for path in (path for path in output_dir.iterdir() if path.name not in OWNER_FILES):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in checkpoints(output_dir).values():
        if not is_complete(folder):
            shutil.rmtree(folder)
    (output_dir / FINISHED).unlink(missing_ok=True)  # of a run that is made longer
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


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file that grows; a last line that a kill cut short is left out, and a missing file is empty."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


# ---- the history of a run, `training.json`: for the model card and `reproducibility.json`. A run's settings are in
# `run.json`; this adds versions, the manifest's metadata of the clips, and the history of the model that it started
# from, so that a folder is complete without the others.


def write_record(output_dir: Path, config: StageConfig, clips: Sequence[Clip]) -> None:
    """Writes `training.json` of a run that begins or resumes."""
    before = stages_of(Path(config.model)) if config.model is not None else []
    data = describe(clips) | {"split": config.split}
    write_json(output_dir / RECORD, {"format": 1, "before": before, "data": data, "versions": versions()})


def versions() -> dict[str, str]:
    """Package -> version, of those that decide a run's result."""
    found = {"vaemotionllm": __version__}  # of a checkout as well, which is not installed
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe(clips: Sequence[Clip]) -> dict[str, Any]:
    """Counts of clips by source, licence and art form, and of the media and labels that the run was given."""
    forms = Counter(clip.art_form for clip in clips if clip.art_form)
    return {
        "clips": len(clips),
        "sources": dict(Counter(clip.source for clip in clips).most_common()),
        "licenses": dict(Counter(clip.license for clip in clips).most_common()),
        "art_forms": dict(forms.most_common()),
        "media": {name: n for name in MEDIA_FIELDS if (n := sum(getattr(c, name) is not None for c in clips))},
        "labels": {name: n for name in LABEL_FIELDS if (n := sum(getattr(c, name) is not None for c in clips))},
    }


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """The runs that made the model in a folder, the first one first; none where the folder records none.

    Returns:
        For each run "settings" (of run.json), "settings_sha256", and where they are known "data" (see `describe`),
        "versions", "steps", "quality" (of stage 1's filter) and "last" (the last row of metrics.jsonl).
    """
    record = _read(folder / RECORD)
    if "stages" in record:
        return record["stages"]
    settings = _read(folder / RUN_CONFIG)
    if not settings:
        return _read(folder / REPRODUCIBILITY).get("stages", [])
    stage: dict[str, Any] = {"settings": settings, "settings_sha256": sha256_of_json(settings)}
    stage |= {name: record[name] for name in ("data", "versions") if name in record}
    if finished := _read(folder / FINISHED):
        stage["steps"] = finished.get("steps")
    if quality := _read(folder / QUALITY):
        stage["quality"] = {name: quality[name] for name in ("responses", "responses_dropped") if name in quality}
    if rows := complete_rows(folder / METRICS):
        stage["last"] = rows[-1]
    return [*record.get("before", []), stage]


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, "copy it again from the run, or remove it") if file.is_file() else {}


# ---- a model from a checkpoint


def export(run: Path, out: Path, step: int | None = None) -> Path:
    """Write model and processor as the run would have saved them had it ended at a checkpoint.

    The model that the run started from is loaded as training loads it, and what was trained is put into it; LoRA is
    merged, and written alone into the folder `adapter`. DeepSpeed's checkpoints are read by its own utility, which
    unpickles: export only runs of your own.

    Args:
        run: output_dir of a training run, which need not be finished.
        out: folder to write into, as it is.
        step: of the checkpoint; the last complete one if not given.

    Returns:
        The checkpoint that was taken.

    Raises:
        InputError: no such run or checkpoint, or one that does not fit the model it names.
    """
    if not (run / RUN_CONFIG).is_file():
        raise InputError(f"{run} holds no {RUN_CONFIG}: name the output_dir of a training run.")
    settings = read_json(run / RUN_CONFIG, "a run's settings")
    folder = find_checkpoint(run, step)
    cls = CONFIGS[settings["stage"]]
    names = {field.name for field in own_fields(cls)} | {"seed"}
    values = {name: value for name, value in settings.items() if name in names}
    config = build_config(cls, values | {"output_dir": str(run), "use_cpu": True})
    model, processor = load_untrained(config)
    freeze_all_but(model, trained_parts(config))
    if (folder / TRAINABLE).is_file():  # a run without an engine
        keep_trained_in_float32(model)
    load_trainable(model, folder)
    with reported_writing(out):
        save_model(model, processor, model.state_dict(), out, config)
        write_json(out / RECORD, {"format": 1, "stages": stages_of(run)})
    return folder


def save_model(model, processor, state_dict: dict[str, torch.Tensor], out: Path, config: StageConfig) -> None:
    """Write a run's model and processor; LoRA is merged into the model, and written alone into `out/adapter`.

    Args:
        model, processor: of the run.
        state_dict: the model's full state dict, gathered where the parameters are sharded.
        out: folder to write into.
        config: of the run.
    """
    if getattr(config, "lora", None) is not None:
        save_adapter(model, state_dict, out / ADAPTER, config, trained_parts(config))
        state_dict = merge_lora(model, state_dict)
    model.save_pretrained(out, state_dict=state_dict)
    processor.save_pretrained(out)


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The complete checkpoint of a step, or the last one that can be read.

    Raises:
        InputError: naming the steps that there are.
    """
    complete = {number: folder for number, folder in checkpoints(run).items() if is_complete(folder)}
    for number in [*reversed(complete)] if step is None else [step]:
        if folder := complete.pop(number, None):
            if (damage := damage_of(folder)) is None:
                return folder
            logger.warning("%s cannot be read (%s) and is skipped.", folder, damage)
    steps, wanted = ", ".join(map(str, complete)) or "none", "" if step is None else f" of step {step}"
    raise InputError(f"{run} holds no complete checkpoint{wanted}; complete: {steps}.")
