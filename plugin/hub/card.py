"""The model card: README.md of a model on the Hub, made from what its run, its config and its evaluation say.

What none of them says is left out, or named as not known. What holds for every model stands in `model_card.jinja`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils import InputError
from .places import is_hub_name, without_place

STAGES = {1: "Stage 1, VG-Align", 2: "Stage 2, EmoAdapter"}
# Of a run's settings those that a reader asks for first; reproducibility.json has all.
SETTINGS = (
    "model", "vlm", "audio", "prompts", "instructions", "general", "general_share", "divergence", "temperature",
    "responses_per_clip", "student_modalities", "paths", "lora", "train_audio_tower", "train_audio_projector",
    "train_emotion_adapter", "learning_rate", "audio_tower_lr", "lr_scheduler_type", "warmup_steps", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16",
    "optim", "weight_decay", "max_grad_norm", "num_frames", "max_audio_s", "seed",
)  # fmt: skip
METRICS = {
    "circular_accuracy": "accuracy under every rotation of the options",
    "follows_sight": "share of answers that follow sight",
    "ccc": "CCC of valence and arousal",
}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
MODEL_TAGS = ["vaemotionllm", "audio", "image", "video", "music", "art", "emotion", "valence-arousal"]


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
        stages: the runs that made the model, see `train.record.stages_of`; may be empty.
        results: of its evaluation, see `hub.results.read`; may be empty.
        license: what `--license` says; else that of the backbone's own card, where one is at hand.
        parts: what the model was made from, see `parts_of`.
    """
    from huggingface_hub import ModelCard

    from ..model.configuration_vaemotionllm import VAEmotionLLMConfig

    config = VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    licences = {part: licence_of(name) for part, name in parts.items()}
    data = metadata(repo, parts, results, license or licences["backbone"])
    text = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.jinja")),
        repo=repo,
        name=repo.partition("/")[2],
        model=_model(config, parts, folder),
        training=_training(stages),
        data=_data(stages),
        evaluation=_evaluation(results),
        limits=_limits(stages, results),
        licence=_licence(license, licences, parts, stages),
        recorded=(folder / "verification.json").is_file(),
    )
    return f"{text}\n"


def metadata(repo: str, parts: Mapping[str, str], results: Mapping[str, Any], license: str | None):
    """The Hub's metadata; evaluation results in its model-index format."""
    from huggingface_hub import EvalResult, ModelCardData

    bases = [name for name in parts.values() if is_hub_name(name)]
    benchmark = results.get("benchmark", {})
    evaluated = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="art emotion and content",
            dataset_type="artemo",
            dataset_name=_benchmark_name(benchmark),
            dataset_config=task,
            dataset_split="test",
            dataset_revision=benchmark.get("sha256"),
            metric_type=of["metric"],
            metric_name=METRICS.get(of["metric"], of["metric"]),
            metric_value=round(of["value"], 6),
        )
        for task, of in results.get("tasks", {}).items()
        if not of["control"]
    ]
    for path, of in results.get("supervisor", {}).items():
        for name in ("valence", "arousal"):
            evaluated.append(
                EvalResult(
                    task_type="other",
                    task_name="valence and arousal by the Emotion Supervisor",
                    dataset_type="artemo",
                    dataset_name=_benchmark_name(benchmark),
                    dataset_config=f"supervisor_{path}",
                    dataset_split="test",
                    dataset_revision=benchmark.get("sha256"),
                    metric_type=f"{name}_ccc",
                    metric_name=f"CCC of {name}",
                    metric_value=round(of[f"{name}_ccc"], 6),
                )
            )
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=MODEL_TAGS,
        base_model=bases or None,
        # Of several the Hub would say that they were merged.
        base_model_relation="finetune" if bases else None,
        model_name=repo.partition("/")[2],
        eval_results=evaluated or None,
    )


def parts_of(folder: Path, near: Path) -> dict[str, str]:
    """ "backbone" and "audio encoder" -> the name on the Hub or the folder that each was loaded by; "" where it is not
    known.

    Args:
        folder: holds the model's config.
        near: where the model lay, see `places.is_hub_name`.
    """
    from ..model.configuration_vaemotionllm import VAEmotionLLMConfig

    config = VAEmotionLLMConfig.from_pretrained(folder, local_files_only=True)
    backbone = config.backbone_name or getattr(config.vlm_config, "_name_or_path", "")
    found = {"backbone": backbone or "", "audio encoder": getattr(config.audio_config, "_name_or_path", "") or ""}
    # A folder is made absolute, so that no relative path is taken for a name on the Hub.
    return {
        part: name if not name or is_hub_name(name, near) else str(Path(name).absolute())
        for part, name in found.items()
    }


def licence_of(name: str) -> str | None:
    """The licence in the model card of a part, in its folder or in the cache of the Hub; nothing is downloaded."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    file = Path(name) / "README.md" if name else None
    if is_hub_name(name):
        cached = try_to_load_from_cache(name, "README.md")
        file = Path(cached) if isinstance(cached, str) else None
    if file is None or not file.is_file():
        return None
    try:
        found = ModelCard.load(file, ignore_metadata_errors=True).data.license
    except (ValueError, OSError):
        return None
    # Some cards have a list, or words of their own, which the Hub takes no more.
    return found if isinstance(found, str) and _LICENCE.fullmatch(found) else None


def check_license(license: str | None) -> None:
    """Raises an InputError unless `license` is written as the Hub writes identifiers of licences."""
    if license is not None and not _LICENCE.fullmatch(license):
        raise InputError(
            f"--license is {license!r}; give an identifier of the Hub such as apache-2.0, cc-by-4.0, other."
        )


def _model(config, parts: Mapping[str, str], folder: Path) -> str:
    labels = ", ".join(config.emotion_labels) if config.emotion_labels else "none; valence and arousal alone"
    rows = {
        "backbone": f"{config.vlm_config.model_type}, {_named(parts['backbone'])}",
        "audio encoder": f"{config.audio_config.model_type}, {_named(parts['audio encoder'])}",
        "audio projector": f"one token for {config.projector_stride} positions of the encoder",
        "Emotion Enhancer": f"rank {config.enhancer_rank}, at layers {config.enhancer_layers}"
        + (", with the other modality as context" if config.enhancer_context else "")
        if config.enhancer_layers
        else "left out",
        "labels of the Emotion Supervisor": labels,
        "calibrated": "yes" if config.emotion_calibration else "no",
        "dtype of the weights": str(config.dtype).removeprefix("torch."),
    }
    if (folder / "adapter").is_dir():
        rows["LoRA"] = "merged into the weights; alone, for PEFT, in `adapter/`"
    if not getattr(config, "backbone_included", True):
        rows["weights of the backbone"] = "not in this repository: they are fetched by the name above"
    return "\n".join(["| part | what it is |", "| --- | --- |", *_rows(rows)])


def _training(stages: list[dict[str, Any]]) -> str:
    if not stages:
        return "Not known: the folder holds no record of a training run."
    lines = []
    for stage in stages:
        settings = stage["settings"]
        lines += [
            f"**{STAGES.get(settings.get('stage'), 'A run')}**",
            "",
            "| setting | value |",
            "| --- | --- |",
        ]
        shown = {name: settings[name] for name in SETTINGS if settings.get(name) not in (None, {}, [], "")}
        if (settings.get("max_steps") or 0) > 0:  # which overrules epochs
            shown.pop("num_train_epochs", None)
        shown |= {"steps": stage["steps"]} if stage.get("steps") else {}
        shown |= {f"teacher's {name.replace('_', ' ')}": n for name, n in (stage.get("quality") or {}).items()}
        shown |= {"settings, SHA-256": stage["settings_sha256"]}
        lines += [*_rows({name: _value(value) for name, value in shown.items()}), ""]
    return "\n".join(lines).rstrip()


def _data(stages: list[dict[str, Any]]) -> str:
    if not stages:
        return "Not known: the folder holds no record of a training run."
    lines = []
    for stage in stages:
        settings, data = stage["settings"], stage.get("data")
        lines += [f"**{STAGES.get(settings.get('stage'), 'A run')}**", ""]
        lines.append(
            f"- Manifest: `{Path(str(settings.get('manifest'))).name}`, SHA-256 `{settings.get('manifest_sha256')}`"
        )
        if data is None:
            lines += ["- What it lists is not recorded, and the manifest is not at hand.", ""]
            continue
        lines.append(f"- Clips: {data['clips']:,}, split `{data.get('split')}`")
        for name, title in (("sources", "Sources"), ("licenses", "Licences"), ("art_forms", "Art forms")):
            if data.get(name):
                lines.append(f"- {title}: {_counts(data[name])}")
        lines.append(f"- Media: {_counts(data['media'])}")
        lines += [f"- Labels that it was given: {_counts(data['labels']) or 'none'}", ""]
    return "\n".join(lines).rstrip()


def _evaluation(results: Mapping[str, Any]) -> str:
    if not results:
        return "No results were given when this card was made."
    benchmark = results["benchmark"]
    lines = [
        f"On {_benchmark_name(benchmark)} with lmms-eval, as `{results['model']}`; each figure was computed anew from "
        "the logged answers. A control replaces the sound, leaves out all media or sets sight against sound."
    ]
    if benchmark.get("notice"):
        lines += ["", f"> {_line(benchmark['notice'])}"]
    lines += ["", "| task | metric | value | 95% interval | items |", "| --- | --- | ---: | --- | ---: |"]
    for task, of in results["tasks"].items():
        metric = METRICS.get(of["metric"], of["metric"]) + " (control)" * of["control"]
        lines.append(_scored(task, metric, of["value"], of["ci95"], of["n"]))
    if of_paths := results.get("supervisor"):
        lines += ["", "What the Emotion Supervisor reads (`vaemotionllm evaluate-emotion`):", ""]
        lines += ["| path | metric | value | 95% interval | clips |", "| --- | --- | ---: | --- | ---: |"]
        for path, of in of_paths.items():
            for name in ("valence", "arousal"):
                key = f"{name}_ccc"
                lines.append(_scored(path, f"CCC of {name}", of[key], of[f"{key}_ci95"], of["n"]))
    if run := results.get("run"):
        facts = {name: value for name, value in run.items() if name != "versions"} | run.get("versions", {})
        lines += ["", "Run with: " + ", ".join(f"{name} {_line(str(value))}" for name, value in facts.items()) + "."]
    return "\n".join(lines)


def _limits(stages: list[dict[str, Any]], results: Mapping[str, Any]) -> list[str]:
    """Limits of this model beside those of all."""
    found = []
    if not any(stage["settings"].get("stage") == 2 for stage in stages):
        found.append("No stage-2 run is recorded: what the Emotion Supervisor gives may be untrained.")
    if not results:
        found.append("It was not evaluated, or its results were not given.")
    return found


def _licence(
    license: str | None, licences: Mapping[str, str | None], parts: Mapping[str, str], stages: list[dict[str, Any]]
) -> str:
    lines = ["- Code in this repository: Apache-2.0."]
    if license:
        lines.append(f"- Stated by who uploaded it: {license}.")
    else:
        of_backbone = "; the metadata name that of the backbone" if licences["backbone"] else ""
        lines.append(f"- Whoever uploaded it stated none{of_backbone}.")
    for part, name in parts.items():
        known = licences[part] or "not known here; see its own card"
        lines.append(f"- Of the {part} ({_named(name)}), which holds for its weights too: {known}.")
    listed = any((stage.get("data") or {}).get("licenses") for stage in stages)
    clips = "see the licences of its clips above" if listed else "its licences are not known here"
    return "\n".join([*lines, f"- Training data: {clips}."])


def _benchmark_name(benchmark: Mapping[str, Any]) -> str:
    name, version = benchmark.get("name") or "a benchmark without a name", benchmark.get("version")
    return _line(f"{name}, version {version}" if version else str(name))


def _named(name: str) -> str:
    """A Hub name; of a folder nothing but its last part, which is no place on a machine."""
    if not name:
        return "of no known name"
    return f"`{name}`" if is_hub_name(name) else f"from a folder `{Path(name).name}`"


def _rows(rows: Mapping[str, Any]) -> list[str]:
    return [f"| {_cell(name)} | {_cell(str(value))} |" for name, value in rows.items()]


def _scored(name: str, metric: str, value: float, interval: list[float], items: int) -> str:
    low, high = interval
    return f"| {_cell(name)} | {metric} | {value:.3f} | {low:.3f} to {high:.3f} | {items:,} |"


def _value(value: Any) -> str:
    value = without_place(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(of)}" for name, of in value.items())
    if isinstance(value, list):
        shown = ", ".join(_value(of) for of in value[:12])
        return shown + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counts(counts: Mapping[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{_line(name)} {n:,}" for name, n in list(counts.items())[:most])
    return shown + (f", and {len(counts) - most} more" if len(counts) > most else "")


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """On one line, and no markup of its own."""
    return " ".join(text.split()).replace("<", "&lt;").replace("![", "!\\[")
