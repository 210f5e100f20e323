"""The demo: which commands it runs, in which order, and where each writes.

Every step is a command that a user can type, so that the report can name it beside each figure.
"""

import hashlib
import importlib.metadata
import importlib.resources
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .results import CONTROL_STAGES, STAGES
from .steps import Step

PACKAGES = (
    "vaemotionllm",
    "torch",
    "torchaudio",
    "transformers",
    "lmms-eval",
    "peft",
    "accelerate",
    "datasets",
    "av",
    "numpy",
)
# Files that `nano world` leaves beside its folder while it works.
WORLD_LEFTOVERS = (".world.lock", ".world.*.partial")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; None leaves a command's own default.

    Args:
        train_clips, validation_clips, benchmark_clips: clips in each split of the nano world.
        stage1_steps, stage2_steps: optimiser steps.
        batch_size: questions a batch in the evaluations.
        backbone: folder with `vlm/`, `audio/` and `metrics.jsonl` in place of the nano backbone.
        stage1, stage2: further `key=value` words of the two trainings.
    """

    train_clips: int | None = None
    validation_clips: int | None = None
    benchmark_clips: int | None = None
    stage1_steps: int | None = None
    stage2_steps: int | None = None
    batch_size: int = 64
    backbone: str | None = None
    stage1: tuple[str, ...] = field(default=())
    stage2: tuple[str, ...] = field(default=())

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; give a whole number from 1")


def layout() -> dict:
    """Where the report finds the files of a run, relative to its folder."""
    return {
        "benchmark": "world/benchmark",
        "evaluations": {stage: f"eval/{stage}" for stage in STAGES},
        "curves": {"backbone": "nano_backbone/metrics.jsonl", **{s: f"{s}/metrics.jsonl" for s in STAGES[1:]}},
    }


def plan(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """The steps of a demo in `out`, the report being the last."""
    world, nano = out / "world", out / "nano_backbone"
    steps = [
        Step(
            "world",
            "write the procedural art world as media files",
            _words(
                "vaemotionllm nano world --out",
                world,
                "--seed",
                seed,
                *_options(train=sizes.train_clips, validation=sizes.validation_clips, benchmark=sizes.benchmark_clips),
            ),
            makes=(world / "manifest.jsonl", world / "benchmark" / "test.jsonl"),
            owns=(world, *(out / pattern for pattern in WORLD_LEFTOVERS)),
            resumes=True,
        ),
        backbone_step(nano, seed, sizes),
        Step(
            "assemble",
            "bolt an untrained audio pathway onto the backbone",
            _words(
                "vaemotionllm init --vlm",
                nano / "vlm",
                "--audio",
                nano / "audio",
                "--out",
                out / "backbone",
                "--like",
                "stage1_nano",
                "--seed",
                seed,
            ),
            makes=(out / "backbone" / "config.json",),
            owns=(out / "backbone",),
        ),
    ]
    steps += evaluate("backbone", out, sizes)
    for number, (stage, before) in enumerate((("stage1", "backbone"), ("stage2", "stage1")), 1):
        steps.append(train_step(number, stage, before, out, seed, sizes))
        steps += evaluate(stage, out, sizes)
    steps.append(
        Step(
            "report",
            "make the report",
            _words("vaemotionllm report", out),
            makes=tuple(out / f"report.{kind}" for kind in ("json", "md", "html")),
            owns=(*(out / f"report.{kind}" for kind in ("json", "md", "html")), out / "figures"),
        )
    )
    return steps


def backbone_step(nano: Path, seed: int, sizes: Sizes) -> Step:
    if sizes.backbone is not None:
        source = Path(sizes.backbone)
        for name in ("vlm", "audio", "metrics.jsonl"):
            if not (source / name).exists():
                raise InputError(
                    f"--backbone {source} has no {name}; a folder with vlm/, audio/ and metrics.jsonl is needed"
                )
        command = ("cp", "-R", str(source), str(nano))
    else:
        command = _words("vaemotionllm nano backbone --seed", seed, "--out", nano)
    return Step(
        "backbone",
        "teach a small vision-language model to see, or take it from the cache",
        command,
        makes=(nano / "vlm" / "config.json", nano / "audio" / "config.json", nano / "metrics.jsonl"),
        owns=(nano,),
        resumes=sizes.backbone is None,
        cache=None if sizes.backbone is not None else nano_cache(seed),
    )


def nano_cache(seed: int) -> Path:
    """Folder in the user's cache that holds the nano backbone of a seed once it is built."""
    from ..nano.backbone import cached_path

    return cached_path(seed)


def train_step(number: int, stage: str, before: str, out: Path, seed: int, sizes: Sizes) -> Step:
    steps = (sizes.stage1_steps, sizes.stage2_steps)[number - 1]
    titles = ("teach it to hear: VG-Align, no label is read", "teach it emotion: EmoAdapter, valence and arousal")
    words = [
        f"model={out / before}",
        f"manifest={out / 'world' / 'manifest.jsonl'}",
        f"output_dir={out / stage}",
        f"seed={seed}",
    ]
    if number == 1:
        words.append("model_fields=null")  # `init --like` has shaped the model with them
    if steps is not None:
        words.append(f"max_steps={steps}")
    words += (sizes.stage1, sizes.stage2)[number - 1]
    return Step(
        stage,
        titles[number - 1],
        _words("vaemotionllm train --config", f"{stage}_nano", *words),
        makes=(out / stage / "config.json", out / stage / "metrics.jsonl"),
        owns=(out / stage,),
        resumes=True,
    )


def evaluate(stage: str, out: Path, sizes: Sizes) -> list[Step]:
    """lmms-eval on one stage's model, with the controls where it can hear, and its valence and arousal."""
    folder, benchmark = out / "eval" / stage, out / "world" / "benchmark"
    tasks = "artemo,artemo_controls" if stage in CONTROL_STAGES else "artemo"
    return [
        Step(
            f"eval_{stage}",
            f"ask the {stage} model every question of the benchmark",
            _words(
                "lmms-eval --model vaemotionllm --model_args",
                f"pretrained={out / stage}",
                "--tasks",
                tasks,
                "--batch_size",
                sizes.batch_size,
                "--output_path",
                folder / "lmms_eval",
                "--log_samples",
            ),
            makes=(folder / "lmms_eval",),
            owns=(folder / "lmms_eval",),
            env={"ARTEMO_DATASET": str(benchmark)},
        ),
        Step(
            f"va_{stage}",
            f"read valence and arousal off the {stage} model",
            _words(
                "vaemotionllm evaluate-va --model",
                out / stage,
                "--benchmark",
                benchmark,
                "--out",
                folder / "valence_arousal.json",
                "--batch-size",
                sizes.batch_size,
            ),
            makes=(folder / "valence_arousal.json",),
            owns=(folder / "valence_arousal.json",),
        ),
    ]


def facts(seed: int) -> dict:
    """What the state file says about a run beside its steps."""
    return {
        "seed": seed,
        "layout": layout(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "configs": config_hashes(),
        "machine": {
            "cpus": cpu_count(),
            "platform": platform.platform(terse=True),
            "python": platform.python_version(),
        },
    }


def config_hashes() -> dict[str, str]:
    """SHA-256 of each training configuration of the demo: a release may change them without a word in a command."""
    folder = importlib.resources.files("vaemotionllm.configs") / "train"
    names = [f"{stage}_nano" for stage in STAGES[1:]]
    return {name: hashlib.sha256((folder / f"{name}.yaml").read_bytes()).hexdigest() for name in names}


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(*parts: object) -> tuple[str, ...]:
    """A command; the first part is split at blanks, the others are one word each."""
    first, *rest = parts
    return (*str(first).split(), *(str(part) for part in rest))


def _options(**values: object) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of every step: nothing is fetched, and Python writes progress at once."""
    return {
        **base,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
