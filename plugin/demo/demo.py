"""The demo: its commands in their order, and where each writes.

Every step is a command that a user can type, so that the report can name it beside each figure. This module plans and
imports no torch: the memory that is recorded of a step is never below this process's own.
"""

import importlib.metadata
import importlib.resources
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark.intervals import fewest_clips
from ..utils import FIXED_ARITHMETIC, InputError, fixed_environment, sha256_of_file
from .steps import OUT, Step

PACKAGES = ("vaemotionllm", "torch", "torchaudio", "transformers", "lmms-eval", "peft", "accelerate", "datasets", "av",
            "numpy")  # fmt: skip
CONFIGS = ("stage1_nano", "stage2_nano")
STAGES = ("backbone", "stage1", "stage2")
# The stages whose audio is replaced in the controls: after stage 1 the audio pathway is measured, stage 2 is kept.
CONTROL_STAGES = ("stage1", "stage2")
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
    stage1: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; give a whole number from 1")
        if self.validation_clips is not None and self.validation_clips < fewest_clips():
            raise InputError(
                f"--validation-clips is {self.validation_clips}; give at least {fewest_clips()}: intervals are "
                "fitted on them"
            )


def plan(seed: int, sizes: Sizes) -> list[Step]:
    """The steps of a demo, the report being the last."""
    stage1_words = ["model_fields=null", *steps_word(sizes.stage1_steps), *sizes.stage1]  # `init` has set them
    stage2_words = [*steps_word(sizes.stage2_steps), *sizes.stage2]
    stage1 = "stage 1, VG-Align: audio is aligned with the visual pathway; no label is read"
    stage2 = "stage 2, EmoAdapter: emotion, valence and arousal"
    return [
        *nano_steps(seed, sizes),
        evaluate_step("backbone", sizes),
        train_step("stage1", stage1, "stage1_nano", "backbone", seed, stage1_words),
        evaluate_step("stage1", sizes, controls=True),
        train_step("stage2", stage2, "stage2_nano", "stage1", seed, stage2_words),
        calibrate_step("stage2", sizes),
        evaluate_step("stage2", sizes, controls=True),
        predict_step("stage2", sizes),  # the Supervisor is trained in stage 2
        Step("report", "write the report", f"vaemotionllm report {OUT}", REPORTS, (*REPORTS, "figures")),
    ]


def steps_word(count: int | None) -> list[str]:
    """The word that bounds a training; none leaves its configuration's own number of steps."""
    return [] if count is None else [f"max_steps={count}"]


def nano_steps(seed: int, sizes: Sizes) -> list[Step]:
    """World, backbone and the model without a trained audio pathway: `world`, `nano_backbone`, `backbone`."""
    parts, given = ("vlm", "audio", "metrics.jsonl"), sizes.backbone
    for name in parts if given is not None else ():
        if not Path(given, name).exists():
            raise InputError(f"--backbone {given} has no {name}; `vaemotionllm nano backbone --out DIR` makes it")
    counts = {"train": sizes.train_clips, "validation": sizes.validation_clips, "benchmark": sizes.benchmark_clips}
    world = f"vaemotionllm nano world --out {OUT}/world --seed {seed}"
    world += "".join(f" --{name} {count}" for name, count in counts.items() if count is not None)
    backbone = f"vaemotionllm nano backbone --seed {seed} --out {OUT}/nano_backbone"
    if given is not None:
        backbone = f"cp -R {shlex.quote(given)} {OUT}/nano_backbone"
    assemble = (
        f"vaemotionllm init --vlm {OUT}/nano_backbone/vlm --audio {OUT}/nano_backbone/audio --out {OUT}/backbone "
        f"--like stage1_nano --seed {seed}"
    )
    made = tuple(f"nano_backbone/{name}" for name in parts)
    return [
        Step("world", "write the procedural art world as media files", world,
             ("world/manifest.jsonl", "world/benchmark/test.jsonl"), ("world", ".world.*")),  # killed amid writing
        Step("backbone", "train a small vision-language model, or take it from the cache", backbone, made,
             ("nano_backbone",), resumes=given is None),
        Step("assemble", "add an untrained audio encoder to the backbone", assemble, ("backbone/config.json",),
             ("backbone",)),
    ]  # fmt: skip


def train_step(name: str, title: str, config: str, start: str, seed: int, words: Sequence[str]) -> Step:
    """A training of the model in the folder `start` on the world, written to the folder `name`."""
    command = (
        f"vaemotionllm train --config {config} model={OUT}/{start} manifest={OUT}/world/manifest.jsonl "
        f"output_dir={OUT}/{name} seed={seed} {shlex.join(words)}"
    )
    return Step(name, title, command, (f"{name}/config.json", f"{name}/metrics.jsonl"), (name,), resumes=True)


def calibrate_step(name: str, sizes: Sizes) -> Step:
    """Calibrates the model `name` on clips that it was not trained on; written into its config.json."""
    command = (
        f"vaemotionllm calibrate --model {OUT}/{name} --manifest {OUT}/world/manifest.jsonl "
        f"--batch-size {sizes.batch_size}"
    )
    title = f"calibrate the {name} model on the validation split"
    return Step(f"calibrate_{name}", title, command, (f"{name}/config.json",))


def evaluate_step(name: str, sizes: Sizes, controls: bool = False) -> Step:
    """lmms-eval on the model `name`; with `controls` the audio is replaced as well."""
    tasks = "artemo,artemo_controls" if controls else "artemo"
    command = (
        f"env ARTEMO_DATASET={OUT}/world/benchmark lmms-eval --model vaemotionllm --model_args pretrained={OUT}/{name}"
        f" --tasks {tasks} --batch_size {sizes.batch_size} --output_path {OUT}/eval/{name}/lmms_eval --log_samples"
    )
    made = (f"eval/{name}/lmms_eval",)
    return Step(f"eval_{name}", f"put every question of the benchmark to the {name} model", command, made, made)


def predict_step(name: str, sizes: Sizes) -> Step:
    """The predictions of the Supervisor of the model `name`."""
    command = (
        f"vaemotionllm evaluate-emotion --model {OUT}/{name} --benchmark {OUT}/world/benchmark "
        f"--out {OUT}/eval/{name}/emotion.json --batch-size {sizes.batch_size}"
    )
    made = (f"eval/{name}/emotion.json",)
    return Step(f"emotion_{name}", f"predict valence and arousal with the {name} model", command, made, made)


def metadata(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` holds of a run with these arguments, beside its commands."""
    folder = Path(str(importlib.resources.files("vaemotionllm.configs") / "train"))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "arguments": dict(arguments),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        # A release may change a training configuration without a word in a command.
        "configs": {name: sha256_of_file(folder / f"{name}.yaml") for name in CONFIGS},
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
