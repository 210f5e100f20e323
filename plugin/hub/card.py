"""The model card: README.md of a model on the Hub, made from what its run, its config and its evaluation hold.

What none of them holds is left out, or named as not known. All text stands in `model_card.jinja`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.results import metadata_of, read_emotion, read_evaluation
from ..evaluation.scores import CONFLICT_TASK, CONTROL_TASKS, modality_scores
from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from .model_folder import RECORDED, is_hub_name, without_local_path

STAGES = {1: "Stage 1, VG-Align", 2: "Stage 2, EmoAdapter"}
METRICS = {
    "circular_accuracy": "accuracy under every rotation of the options",
    "follows_sight": "share of answers that follow the visual",
    "ccc": "CCC of valence and arousal",
}
TAGS = ["vaemotionllm", "audio", "image", "video", "music", "art", "emotion", "valence-arousal"]
_MOST = 12  # entries of a list in one cell


# ---- the evaluation


def read_results(path: Path, model: str) -> dict[str, Any]:
    """Results of one model, each of them checked against the answers that lmms-eval logged.

    Args:
        path: what `lmms-eval --output_path` was given, a `*_results.json` in it, a folder that holds one and the
            `emotion.json` of `vaemotionllm evaluate-emotion`, or a demo's folder or its `report.json`.
        model: name of the model's folder, which tells which of a demo's evaluations is its own.

    Returns:
        "benchmark" (name, version, sha256, notice), "model" (the name under which it was evaluated), "run" (versions,
        attention, dtype, frames, ...), "tasks" (task -> metric, value, ci95, n, control), and "supervisor" (modality
        -> CCC of valence and arousal, n) where it was measured.

    Raises:
        InputError: no results, of several models, or scores that their samples do not give.
    """
    path = path.parent if path.name == "report.json" else path
    if (path / "eval" / model).is_dir():
        path = path / "eval" / model
    evaluation = read_evaluation(path)
    metadata = metadata_of(evaluation)
    benchmark = {"name": metadata.get("benchmark"), "version": metadata.get("version")}
    benchmark |= {"sha256": metadata.get("benchmark_sha256"), "notice": metadata.get("notice")}
    controls = {CONFLICT_TASK, *(task for of in CONTROL_TASKS.values() for task in of.values())}
    arguments = dict(part.strip().partition("=")[::2] for part in evaluation.model_args.split(","))
    tasks = {}
    for task, samples in evaluation.tasks.items():
        value, ci95 = samples.score()
        tasks[task] = {"metric": samples.metric, "value": value, "ci95": list(ci95), "n": len(samples.items)}
        tasks[task]["control"] = task in controls
    found = {
        "benchmark": {name: value for name, value in benchmark.items() if value},
        "model": arguments.get("pretrained", "").rstrip("/").rpartition("/")[2],
        "run": metadata.get("run") or {},
        "tasks": tasks,
    }
    if (path / "emotion.json").is_file():
        points = read_emotion(path / "emotion.json")
        found["supervisor"] = {modality: modality_scores(of) for modality, of in points.items()}
    return found


# ---- the card


def card(
    folder: Path,
    repo: str,
    stages: list[dict[str, Any]],
    results: Mapping[str, Any],
    license: str | None,
    parts: Mapping[str, str],
) -> str:
    """Text of the card, with the Hub's metadata in front.

    Args:
        folder: the model's folder, complete but for the card.
        repo: "owner/name".
        stages: the runs that made the model, see `train.checkpoint.stages_of`; may be empty.
        results: of its evaluation, see `read_results`; may be empty.
        license: identifier of the licence, where it is known.
        parts: what the model was made from, see `parts_of`.
    """
    config = VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    run = results.get("run") or {}
    text = ModelCard.from_template(
        metadata(repo, parts, results, license),
        template_path=str(Path(__file__).with_name("model_card.jinja")),
        repo=repo,
        name=repo.partition("/")[2],
        config=config,
        parts={part: _named(name) for part, name in parts.items()},
        dtype=str(config.dtype).removeprefix("torch."),
        has_adapter=(folder / "adapter").is_dir(),
        stages=[stage | {"title": STAGES.get(stage["settings"].get("stage"), "A run")} for stage in stages],
        trained_emotion=any(stage["settings"].get("stage") == 2 for stage in stages),
        results=results,
        benchmark=_benchmark_name(results),
        metrics=METRICS,
        run={name: value for name, value in run.items() if name != "versions"} | run.get("versions", {}),
        license=license,
        clip_licences=any((stage.get("data") or {}).get("licenses") for stage in stages),
        recorded=(folder / RECORDED[0]).is_file(),
        shown=_shown,
    )
    return f"{text}\n"


def metadata(repo: str, parts: Mapping[str, str], results: Mapping[str, Any], license: str | None) -> ModelCardData:
    """The Hub's metadata; evaluation results in its model-index format, without those of controls."""
    bases = [name for name in parts.values() if is_hub_name(name)]
    dataset = {
        "dataset_type": "artemo",
        "dataset_name": _benchmark_name(results),
        "dataset_split": "test",
        "dataset_revision": results.get("benchmark", {}).get("sha256"),
    }
    figures = [
        ("image-text-to-text", "art emotion and content", task, of["metric"], METRICS.get(of["metric"]), of["value"])
        for task, of in results.get("tasks", {}).items()
        if not of["control"]
    ]
    by_supervisor = ("other", "valence and arousal by the Emotion Supervisor")
    figures += [
        (*by_supervisor, f"supervisor_{modality}", f"{name}_ccc", f"CCC of {name}", of[f"{name}_ccc"])
        for modality, of in results.get("supervisor", {}).items()
        for name in ("valence", "arousal")
    ]
    evaluated = [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_config=config,
            metric_type=kind,
            metric_name=name or kind,
            metric_value=round(value, 6),
            **dataset,
        )
        for task_type, task_name, config, kind, name, value in figures
    ]
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=TAGS,
        base_model=bases or None,
        # Of several the Hub would say that they were merged.
        base_model_relation="finetune" if bases else None,
        model_name=repo.partition("/")[2],
        eval_results=evaluated or None,
    )


def parts_of(folder: Path) -> dict[str, str]:
    """ "backbone" and "audio encoder" -> the Hub name or the folder that each was loaded by; "" where not known."""
    config = VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    found = {
        "backbone": config.backbone_name or getattr(config.vlm_config, "_name_or_path", ""),
        "audio encoder": getattr(config.audio_config, "_name_or_path", ""),
    }
    # A folder is made absolute, so that no relative path is taken for a name on the Hub.
    return {
        part: str(Path(name).absolute()) if name and not is_hub_name(name) else name for part, name in found.items()
    }


def _benchmark_name(results: Mapping[str, Any]) -> str:
    benchmark = results.get("benchmark", {})
    name, version = benchmark.get("name") or "a benchmark without a name", benchmark.get("version")
    return _shown(f"{name}, version {version}" if version else str(name))


def _named(name: str) -> str:
    """A Hub name; of a folder its last part alone."""
    if not name:
        return "of no known name"
    return f"`{name}`" if is_hub_name(name) else f"from a folder `{Path(name).name}`"


def _shown(value: Any) -> str:
    """A value on one line, without markup of its own and without local paths."""
    value = without_local_path(value)
    if isinstance(value, dict):
        parts = [f"{_shown(name)} {_shown(of)}" for name, of in value.items()]
    elif isinstance(value, list):
        parts = [_shown(of) for of in value]
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return " ".join(text.split()).replace("<", "&lt;").replace("![", "!\\[").replace("|", "\\|")
    return ", ".join(parts[:_MOST]) + (f" and {len(parts) - _MOST} more" if len(parts) > _MOST else "")
