"""What a reader needs to evaluate the same again, read from lmms-eval's results file and the logged samples.

What neither holds is None and shown as "not stated".
"""

import hashlib
import json
import shlex
from typing import Any

from .task_samples import Evaluation, Samples

SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
# lmms-eval's defaults that are not None, False or "" (0.7): such arguments need no word in the command.
_DEFAULTS: dict[str, Any] = {
    "batch_size": "1", "offset": 0, "seed": [0, 1234, 1234, 1234], "repeats": 1,
    "reasoning_tags": '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]',
}  # fmt: skip
# Arguments that change no answer: where and what is logged, caches, and statistics that are made afterwards.
_LEFT_OUT = {
    "agentic_trace_mode", "alpha", "baseline", "cache_requests", "check_integrity", "config", "correlation",
    "effect_size", "hf_hub_log_args", "log_samples_suffix", "power", "power_analysis", "process_docs_parallel",
    "show_config", "std_a", "std_b", "swanlab_args", "swanlab_log_samples", "timezone", "tui", "use_cache",
    "verbosity", "wandb_args", "wandb_log_samples", "write_out",
}  # fmt: skip
# These first, in this order; the others in that of the file.
_FIRST = ("model", "model_args", "tasks", "batch_size", "gen_kwargs", "limit")


def pins_of(evaluation: Evaluation) -> dict[str, Any]:
    """The facts of one evaluation, see the module's docstring."""
    results = evaluation.results
    config, first = results["config"], metadata_of(evaluation)
    run = first.get("run") or {}
    shots = results.get("n-shot") or {}
    return {
        "model": evaluation.model,
        "model_args": evaluation.model_args,
        "adapter": run.get("adapter") or config.get("model_backend"),
        "model_revision": run.get("revision"),
        "versions": run.get("versions") or {},
        "benchmark": {
            "name": first.get("benchmark"),
            "version": first.get("version"),
            "folder": first.get("benchmark_folder"),
            "sha256": first.get("benchmark_sha256"),
            "build_key": first.get("build_key"),
        },
        "attention": run.get("attention"),
        "dtype": run.get("dtype"),
        "device": run.get("device") or config.get("device"),
        "num_frames": run.get("num_frames"),
        "sampling_rate_hz": run.get("sampling_rate_hz"),
        "max_audio_s": run.get("max_audio_s"),
        "use_adapter": run.get("use_adapter"),
        "scoring": run.get("scoring"),
        "batch_size": config.get("batch_size"),
        "limit": config.get("limit"),
        "seeds": {name: config.get(name) for name in SEEDS},
        # lmms-eval states both always, as null where there is none.
        **{
            name: results.get(key) or ("none" if key in results else None)
            for name, key in (
                ("system_instruction", "system_instruction"),
                ("chat_template_sha256", "chat_template_sha"),
            )
        },
        "num_fewshot": ", ".join(str(n) for n in sorted({shots[task] for task in evaluation.tasks if task in shots}))
        or None,
        "date": results.get("date"),
        "results_files": [str(path) for path in evaluation.runs],
        "command": command_of(evaluation),
        "tasks": {task: task_pins(evaluation, task) for task in evaluation.tasks},
    }


def metadata_of(evaluation: Evaluation) -> dict:
    """The metadata of the evaluation's first task of artemo: the same benchmark and model stand in all of them."""
    return dict(evaluation.results["configs"][next(iter(evaluation.tasks))]["metadata"])


def task_pins(evaluation: Evaluation, task: str) -> dict:
    """Decoding, numbers of documents and the hash of the prompts of one task."""
    counts = evaluation.results["n-samples"][task]
    return {
        "generation": evaluation.results["configs"][task].get("generation_kwargs"),
        "documents": counts["effective"],
        "documents_of_task": counts.get("original", counts["effective"]),
        "prompt_sha256": prompt_hash(evaluation.tasks[task]),
    }


def prompt_hash(samples: Samples) -> str:
    """SHA-256 of what was asked: each item's id with its prompts and targets, in the order of the ids."""
    asked = [[item, samples.prompts[item]] for item in sorted(samples.prompts)]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def command_of(evaluation: Evaluation) -> str | None:
    """The commands that were run, one a line, the oldest first; None where a results file does not hold them."""
    folder = metadata_of(evaluation).get("benchmark_folder")
    place = f"ARTEMO_DATASET={shlex.quote(str(folder))} " if folder else ""
    lines = []
    for results in reversed(evaluation.runs.values()):
        given = results["config"].get("resolved_cli_args")
        if not isinstance(given, dict):
            return None
        lines.append(place + shlex.join(["lmms-eval", *words_of(given)]))
    return "\n".join(lines)


def words_of(given: dict[str, Any]) -> list[str]:
    """The words of a command that gives these arguments, without those that are defaults or change no answer."""
    words = []
    for name in dict.fromkeys((*_FIRST, *given)):
        value = given.get(name)
        # 0 is a value: `--num_fewshot 0` is not the default.
        if name in _LEFT_OUT or value is None or value is False or value == "":
            continue
        if name in _DEFAULTS and _word(value) == _word(_DEFAULTS[name]):
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", _word(value)]
    return words


def _word(value: Any) -> str:
    if isinstance(value, list):
        nested = any(isinstance(part, list) for part in value)
        return json.dumps(value) if nested else ",".join(map(str, value))
    # `--limit` is a float, of which a whole one is a number of questions.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
