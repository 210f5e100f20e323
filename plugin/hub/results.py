"""The results of a model's evaluation for its card, each of them checked against the answers that lmms-eval logged."""

from pathlib import Path
from typing import Any

from ..utils import InputError

EMOTION = "emotion.json"


def read(path: Path, folder: Path) -> dict[str, Any]:
    """Results of one model.

    Args:
        path: what `lmms-eval --output_path` was given, a `*_results.json` in it, a folder that holds one and the
            `emotion.json` of `vaemotionllm evaluate-emotion`, or a demo's folder or its `report.json`.
        folder: the model's, whose name tells which of a demo's evaluations is its own.

    Returns:
        "benchmark" (name, version, sha256, notice), "model" (the name under which it was evaluated), "run" (versions,
        attention, dtype, frames, ...), "tasks" (task -> metric, value, ci95, n, control), and "supervisor" (path ->
        CCC of valence and arousal, n) where it was measured.

    Raises:
        InputError: no results, of several models, or scores that their samples do not give.
    """
    from ..evaluation.leaderboard_pins import metadata_of
    from ..evaluation.leaderboard_scores import CONFLICT_TASK, CONTROL_TASKS
    from ..evaluation.task_samples import read_evaluation

    path = place_of(path, folder)
    evaluation = read_evaluation(path)
    metadata = metadata_of(evaluation)
    benchmark = {"name": metadata.get("benchmark"), "version": metadata.get("version")}
    benchmark |= {"sha256": metadata.get("benchmark_sha256"), "notice": metadata.get("notice")}
    controls = {CONFLICT_TASK, *(task for of in CONTROL_TASKS.values() for task in of.values())}
    tasks = {}
    for name, samples in evaluation.tasks.items():
        value, (low, high) = samples.score()
        tasks[name] = {
            "metric": samples.metric,
            "value": value,
            "ci95": [low, high],
            "n": len(samples.items),
            "control": name in controls,
        }
    found = {
        "benchmark": {name: value for name, value in benchmark.items() if value},
        "model": _name_of(evaluation.model_args),
        "run": metadata.get("run") or {},
        "tasks": tasks,
    }
    if path.is_dir() and (path / EMOTION).is_file():
        found["supervisor"] = _supervisor(path / EMOTION)
    return found


def place_of(path: Path, folder: Path) -> Path:
    """The evaluation itself, of what a user may name, see `read`.

    Raises:
        InputError: it is not there.
    """
    if not path.exists():
        raise InputError(f"--results {path} does not exist; name what `lmms-eval --output_path` was given.")
    if path.name == "report.json":
        path = path.parent
    of_demo = path / "eval" / folder.resolve().name
    return of_demo if of_demo.is_dir() else path


def beside(folder: Path) -> Path | None:
    """Where a demo has put the evaluation of the model in `folder`; None where there is none that is newer than it."""
    found = folder.resolve().parent / "eval" / folder.resolve().name
    files = sorted(found.glob("lmms_eval/**/*_results.json"))
    if not files:
        return None
    weights = [path.stat().st_mtime for path in folder.glob("*.safetensors")]
    # Of a model that was trained anew since, the results are another's.
    return found if weights and files[-1].stat().st_mtime >= max(weights) else None


def _name_of(model_args: str) -> str:
    """The last part of `pretrained=` in lmms-eval's arguments."""
    for part in model_args.split(","):
        name, _, value = part.partition("=")
        if name.strip() == "pretrained":
            return value.strip().rstrip("/").rpartition("/")[2]
    return ""


def _supervisor(file: Path) -> dict[str, Any]:
    """The CCC on each path with its interval, computed anew from the readings."""
    from ..evaluation.report import modality_scores
    from ..evaluation.results import read_emotion

    return {path: modality_scores(points) for path, points in read_emotion(file).items()}
