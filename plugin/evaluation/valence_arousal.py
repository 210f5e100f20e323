"""Valence and arousal of the Supervisor's heads on the audio, the visual and the audio-visual path.

Each clip goes through the model three times, once under each modality, with one fixed prompt; the audio path is read
from the pass that has nothing but sound, and so on. Prompt and protocol are our choice: the paper names neither.
"""

import math
from pathlib import Path

import torch
from tqdm import tqdm

from ..benchmark import schema
from ..errors import InputError
from ..model.emotion_adapter import PATHS
from ..model.emotion_prediction import PROMPT, read_path
from .intervals import ccc
from .loading import check_model_folder, load_model, load_processor


def evaluate(
    model_dir: str | Path,
    benchmark_dir: str | Path,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = False,
) -> dict:
    """Predicts valence and arousal of every labelled clip of a benchmark, on each path.

    Args:
        model_dir: a VAEmotionLLM checkpoint.
        benchmark_dir: a benchmark folder; clips without valence and arousal are left out.
        batch_size: clips a batch.
        device: device of the model; the first GPU, or the CPU where there is none.
        progress: whether to show a bar.

    Returns:
        For each path `{"valence_ccc", "arousal_ccc", "n", "clip_ids", "predicted", "true"}`; `predicted` and `true`
        are lists of [valence, arousal] in the order of `clip_ids`. A CCC is None where it is not defined: fewer than
        two clips, or predictions and labels that are the same constant. Beside them `prompt` and `benchmark`.

    Raises:
        InputError: no labelled clip, a medium that cannot be decoded (the item is named), a model without its adapter.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give an integer of at least 1.")
    benchmark = schema.load(benchmark_dir)
    clips = {path: _labelled_clips(benchmark, path) for path in PATHS}
    if not any(clips.values()):
        raise InputError(f"{benchmark.folder} has no item with valence and arousal; there is nothing to compare with.")
    check_model_folder(model_dir)
    model, processor = load_model(str(model_dir), device), load_processor(str(model_dir))
    result: dict = {"prompt": PROMPT, "benchmark": benchmark.name, "benchmark_folder": str(benchmark.folder)}
    with tqdm(
        total=sum(map(len, clips.values())), desc="valence and arousal", unit="clip", disable=not progress
    ) as bar:
        for path in PATHS:
            predicted: list[list[float]] = []
            for start in range(0, len(clips[path]), batch_size):
                batch = clips[path][start : start + batch_size]
                predicted += _predict(model, processor, batch, path)
                bar.update(len(batch))
            result[path] = _summary(clips[path], predicted)
    return result


def _labelled_clips(benchmark: schema.Benchmark, path: str) -> list[schema.Item]:
    """One item for each clip under a modality: content and emotion questions show the same media."""
    items: dict[str, schema.Item] = {}
    for item in benchmark.select(modality=path):
        if item.valence is not None and item.arousal is not None:
            items.setdefault(item.clip_id, item)
    return list(items.values())


def _predict(model, processor, items: list[schema.Item], path: str) -> list[list[float]]:
    """[valence, arousal] of each item on a path."""
    media = []
    for item in items:
        try:
            kinds = [kind for kind in ("image", "video", "audio") if getattr(item, kind)]
            media.append([processor.encode_media(kind, getattr(item, kind)) for kind in kinds])
        except InputError as error:
            raise InputError(f"item {item.id!r}: {error}") from error
    valence, arousal, _ = read_path(model, processor, path, media)
    return torch.stack([valence, arousal], dim=1).tolist()


def _summary(items: list[schema.Item], predicted: list[list[float]]) -> dict:
    true = [[float(item.valence or 0.0), float(item.arousal or 0.0)] for item in items]
    values = [_ccc([row[i] for row in predicted], [row[i] for row in true]) for i in range(2)]
    return {
        "valence_ccc": values[0],
        "arousal_ccc": values[1],
        "n": len(items),
        "clip_ids": [item.clip_id for item in items],
        "predicted": predicted,
        "true": true,
    }


def _ccc(predicted: list[float], true: list[float]) -> float | None:
    if len(predicted) < 2:
        return None
    value = float(ccc(predicted, true))  # type: ignore[arg-type]
    return value if math.isfinite(value) else None
