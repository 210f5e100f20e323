"""The demo: its commands in their order, and where each writes.

Every step is a command that a user can type, so that the report can name it beside each figure. This module plans and
imports no torch: where a step's memory is less than this process's own, it is not known.
"""

import importlib.metadata
import importlib.resources
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..benchmark.intervals import fewest_clips
from ..utils import FIXED_ARITHMETIC, InputError, fixed_environment, sha256_of_file
from .steps import Step

PACKAGES = ("vaemotionllm", "torch", "torchaudio", "transformers", "lmms-eval", "peft", "accelerate", "datasets", "av",
            "numpy")  # fmt: skip
CONFIGS = ("stage1_nano", "stage2_nano")
STAGES = ("backbone", "stage1", "stage2")
# The stages whose audio is replaced in the controls: after stage 1 the audio pathway is measured, stage 2 is kept.
CONTROL_STAGES = ("stage1", "stage2")
# Files that `nano world` leaves beside its folder while it works.
WORLD_LEFTOVERS = (".world.lock", ".world.*.partial")
REPORTS = ("report.json", "report.md", "report.html")


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
        if self.validation_clips is not None and self.validation_clips < fewest_clips():
            raise InputError(
                f"--validation-clips is {self.validation_clips}; give at least {fewest_clips()}: intervals are "
                "fitted on them"
            )


def plan(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """The steps of a demo in `out`, the report being the last."""
    stage1_words = ("model_fields=null", *_setting(max_steps=sizes.stage1_steps), *sizes.stage1)  # `init` has set them
    stage2_words = (*_setting(max_steps=sizes.stage2_steps), *sizes.stage2)
    stage1 = "stage 1, VG-Align: audio is aligned with the visual pathway; no label is read"
    stage2 = "stage 2, EmoAdapter: emotion, valence and arousal"
    reports = tuple(out / name for name in REPORTS)
    return [
        *nano_steps(out, seed, sizes),
        evaluate_steps("backbone", out, sizes)[0],  # its Supervisor is untrained, as that of stage 1
        train_step("stage1", stage1, "stage1_nano", out / "backbone", out, seed, stage1_words),
        evaluate_steps("stage1", out, sizes)[0],
        train_step("stage2", stage2, "stage2_nano", out / "stage1", out, seed, stage2_words),
        calibrate_step("stage2", out, sizes),
        *evaluate_steps("stage2", out, sizes),
        Step("report", "write the report", _words("vaemotionllm report", out), reports, (*reports, out / "figures")),
    ]


def nano_steps(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """World, backbone and the model without a trained audio pathway: `world`, `nano_backbone`, `backbone` in `out`."""
    world, nano = out / "world", out / "nano_backbone"
    counts = {"train": sizes.train_clips, "validation": sizes.validation_clips, "benchmark": sizes.benchmark_clips}
    options = [word for name, n in counts.items() if n is not None for word in (f"--{name}", n)]
    return [
        Step(
            "world",
            "write the procedural art world as media files",
            _words("vaemotionllm nano world --out", world, "--seed", seed, *options),
            makes=(world / "manifest.jsonl", world / "benchmark" / "test.jsonl"),
            owns=(world, *(out / pattern for pattern in WORLD_LEFTOVERS)),
            resumes=True,
        ),
        backbone_step(nano, seed, sizes),
        Step(
            "assemble",
            "add an untrained audio encoder to the backbone",
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
            ),  # fmt: skip
            makes=(out / "backbone" / "config.json",),
            owns=(out / "backbone",),
        ),
    ]


def backbone_step(nano: Path, seed: int, sizes: Sizes) -> Step:
    if sizes.backbone is not None:
        for name in ("vlm", "audio", "metrics.jsonl"):
            if not Path(sizes.backbone, name).exists():
                raise InputError(
                    f"--backbone {sizes.backbone} has no {name}; name a folder with vlm/, audio/ and metrics.jsonl"
                )
    return Step(
        "backbone",
        "train a small vision-language model, or take it from the cache",
        ("cp", "-R", sizes.backbone, str(nano)) if sizes.backbone is not None
        else _words("vaemotionllm nano backbone --seed", seed, "--out", nano),
        makes=(nano / "vlm" / "config.json", nano / "audio" / "config.json", nano / "metrics.jsonl"),
        owns=(nano,),
        resumes=sizes.backbone is None,
    )  # fmt: skip


def train_step(name: str, title: str, config: str, model: Path, out: Path, seed: int, words: Sequence[str]) -> Step:
    """A training of the model in the folder `model` on the world of `out`, written to `out / name`."""
    manifest = out / "world" / "manifest.jsonl"
    return Step(
        name,
        title,
        _words(
            "vaemotionllm train --config",
            config,
            f"model={model}",
            f"manifest={manifest}",
            f"output_dir={out / name}",
            f"seed={seed}",
            *words,
        ),  # fmt: skip
        makes=(out / name / "config.json", out / name / "metrics.jsonl"),
        owns=(out / name,),
        resumes=True,
    )


def calibrate_step(name: str, out: Path, sizes: Sizes) -> Step:
    """Calibrates the model `out / name` on clips that it was not trained on; written into its config.json."""
    manifest = out / "world" / "manifest.jsonl"
    return Step(
        f"calibrate_{name}",
        f"calibrate the {name} model on the validation split",
        _words("vaemotionllm calibrate --model", out / name, "--manifest", manifest, "--batch-size", sizes.batch_size),
        makes=(out / name / "config.json",),
    )


def evaluate_steps(name: str, out: Path, sizes: Sizes, controls: bool | None = None) -> list[Step]:
    """lmms-eval on the model `out / name`, and the predictions of its Supervisor.

    Args:
        controls: whether the audio is replaced as well; if not given, for the stages with a trained audio pathway.
    """
    folder, benchmark = out / "eval" / name, out / "world" / "benchmark"
    tasks = "artemo,artemo_controls" if (name in CONTROL_STAGES if controls is None else controls) else "artemo"
    return [
        Step(
            f"eval_{name}",
            f"put every question of the benchmark to the {name} model",
            _words("lmms-eval --model vaemotionllm --model_args", f"pretrained={out / name}", "--tasks", tasks,
                   "--batch_size", sizes.batch_size, "--output_path", folder / "lmms_eval", "--log_samples"),
            makes=(folder / "lmms_eval",),
            owns=(folder / "lmms_eval",),
            env={"ARTEMO_DATASET": str(benchmark)},
        ),
        Step(
            f"emotion_{name}",
            f"predict emotion, valence and arousal with the {name} model",
            _words("vaemotionllm evaluate-emotion --model", out / name, "--benchmark", benchmark, "--out",
                   folder / "emotion.json", "--batch-size", sizes.batch_size),
            makes=(folder / "emotion.json",),
            owns=(folder / "emotion.json",),
        ),
    ]  # fmt: skip


def metadata(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` holds of a run with these arguments, beside its commands."""
    folder = importlib.resources.files("vaemotionllm.configs") / "train"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "arguments": dict(arguments),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        # A release may change a training configuration without a word in a command.
        "configs": {
            name: sha256_of_file(Path(str(folder / f"{name}.yaml"))) for name in ("stage1_nano", "stage2_nano")
        },
        "arithmetic": FIXED_ARITHMETIC,
        "machine": {"cpus": cpus, "platform": platform.platform(terse=True), "python": platform.python_version()},
    }


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of every step: fixed arithmetic, nothing is fetched, and Python writes progress at once."""
    return {
        **fixed_environment(base),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _words(*parts: object) -> tuple[str, ...]:
    """A command; the first part is split at blanks, the others are one word each."""
    first, *rest = parts
    return (*str(first).split(), *(str(part) for part in rest))


def _setting(**values: object) -> list[str]:
    return [f"{name}={value}" for name, value in values.items() if value is not None]
