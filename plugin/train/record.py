"""What a run has learned from, kept beside its model: `training.json`, for the model card and `reproducibility.json`.

A run's settings are in `run.json`. This adds versions, what the manifest says of the clips, and the same of the run
that its start came from, so that a folder tells its whole history where the others are not at hand.
"""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.manifest import LABEL_FIELDS, MEDIA_FIELDS, Clip, read_manifest
from ..utils import InputError, write_json
from .base_config import StageConfig
from .checkpoint import FINISHED, RUN_CONFIG
from .metrics import read_metrics

RECORD = "training.json"
PACKAGES = ("vaemotionllm", "torch", "torchaudio", "transformers", "accelerate", "peft", "deepspeed", "numpy", "av")


def write(output_dir: Path, config: StageConfig, clips: Sequence[Clip]) -> None:
    """Writes `training.json` of a run that begins or goes on."""
    before = stages_of(Path(config.model)) if config.model is not None else []
    data = describe(clips) | {"split": config.split}
    write_json(output_dir / RECORD, {"format": 1, "before": before, "data": data, "versions": versions()})


def write_exported(run: Path, out: Path) -> None:
    """Writes the history of a run into a folder that was exported from it."""
    write_json(out / RECORD, {"format": 1, "stages": stages_of(run)})


def versions() -> dict[str, str]:
    """Package -> version, of those that decide a run's result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "vaemotionllm" not in found:  # run from a checkout
        from .. import __version__

        found["vaemotionllm"] = __version__
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
    """The runs that made the model in a folder, the first one first; none where the folder tells of none.

    Returns:
        For each run "settings" (of run.json), "settings_sha256", and where they are known "data" (see `describe`),
        "versions", "steps", "quality" (stage 1's gate) and "last" (the last row of metrics.jsonl).
    """
    record = _read(folder / RECORD)
    if "stages" in record:
        return record["stages"]
    settings = _read(folder / RUN_CONFIG)
    if not settings:
        return []
    before = record["before"] if record else _of_start(folder, settings)
    stage: dict[str, Any] = {"settings": settings, "settings_sha256": hash_of(settings)}
    stage |= {name: record[name] for name in ("data", "versions") if name in record}
    if "data" not in stage and (data := _from_manifest(folder, settings)):
        stage["data"] = data
    if finished := _read(folder / FINISHED):
        stage["steps"] = finished.get("steps")
    if quality := _read(folder / "quality.json"):
        stage["quality"] = {name: quality[name] for name in ("responses", "responses_dropped") if name in quality}
    if rows := read_metrics(folder / "metrics.jsonl"):
        stage["last"] = rows[-1]
    return [*before, stage]


def hash_of(settings: dict[str, Any]) -> str:
    """SHA-256 of a run's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _of_start(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of the model that a run without a record started from, where it still lies at its path."""
    start = _found(folder, settings.get("model"))
    return stages_of(start) if start is not None and start.resolve() != folder.resolve() else []


def _from_manifest(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What the manifest of a run without a record says, if it is there and unchanged."""
    file = _found(folder, settings.get("manifest"))
    if file is None or not file.is_file():
        return None
    if hashlib.sha256(file.read_bytes()).hexdigest() != settings.get("manifest_sha256"):
        return None
    try:
        clips = read_manifest(file, settings.get("split"), limit=settings.get("max_clips"))
    except InputError:
        return None
    if settings.get("stage") == 1:
        clips = [clip.without_labels() for clip in clips]  # as the run read them
    return describe(clips) | {"split": settings.get("split")}


def _found(folder: Path, path: str | None) -> Path | None:
    """A path of run.json, seen from here or from a folder above: runs are started from a project's root."""
    if not path:
        return None
    for base in (Path(), *folder.resolve().parents):
        if (base / path).exists():
            return base / path
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable JSON ({error}); remove it, or copy it anew from the run.") from error
    return found if isinstance(found, dict) else {}
