"""The demo: which commands it runs, in which order, and where each writes.

Every step is a command that a user can type, so that the report can name it beside each figure.
"""

import hashlib
import importlib.metadata
import importlib.resources
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..benchmark.intervals import fewest_clips
from ..utils import FIXED_ARITHMETIC, InputError, fixed_environment
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
        if self.validation_clips is not None and self.validation_clips < fewest_clips():
            raise InputError(
                f"--validation-clips is {self.validation_clips}; give at least {fewest_clips()}: intervals are "
                "fitted on them"
            )


def layout() -> dict:
    """Where the report finds the files of a run, relative to its folder."""
    return {
        "benchmark": "world/benchmark",
        "evaluations": {stage: f"eval/{stage}" for stage in STAGES},
        "curves": {"backbone": "nano_backbone/metrics.jsonl", **{s: f"{s}/metrics.jsonl" for s in STAGES[1:]}},
    }


def plan(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """The steps of a demo in `out`, the report being the last."""
    steps = [*nano_steps(out, seed, sizes), *evaluate("backbone", out, sizes)]
    steps.append(
        train_step(
            "stage1",
            "teach it to hear: VG-Align, no label is read",
            "stage1_nano",
            out / "backbone",
            out,
            seed,
            # `init --like` has shaped the model with the config's fields.
            ("model_fields=null", *_setting(max_steps=sizes.stage1_steps), *sizes.stage1),
        )
    )
    steps += evaluate("stage1", out, sizes)
    steps.append(
        train_step(
            "stage2",
            "teach it emotion: EmoAdapter, valence and arousal",
            "stage2_nano",
            out / "stage1",
            out,
            seed,
            (*_setting(max_steps=sizes.stage2_steps), *sizes.stage2),
        )
    )
    steps.append(calibrate_step("stage2", out, sizes))
    steps += evaluate("stage2", out, sizes)
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


def nano_steps(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """World, backbone and the model that cannot hear yet: `world`, `nano_backbone` and `backbone` in `out`."""
    world, nano = out / "world", out / "nano_backbone"
    return [
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


def train_step(name: str, title: str, config: str, model: Path, out: Path, seed: int, words: Sequence[str]) -> Step:
    """A training of the model in the folder `model` on the world of `out`, written to `out / name`."""
    return Step(
        name,
        title,
        _words(
            "vaemotionllm train --config",
            config,
            f"model={model}",
            f"manifest={out / 'world' / 'manifest.jsonl'}",
            f"output_dir={out / name}",
            f"seed={seed}",
            *words,
        ),
        makes=(out / name / "config.json", out / name / "metrics.jsonl"),
        owns=(out / name,),
        resumes=True,
    )


def calibrate_step(name: str, out: Path, sizes: Sizes) -> Step:
    """Fits how sure the model `out / name` is, on clips that it was not trained on; written into its config.json."""
    manifest = out / "world" / "manifest.jsonl"
    return Step(
        f"calibrate_{name}",
        f"fit how sure the {name} model is, on the validation split",
        _words("vaemotionllm calibrate --model", out / name, "--manifest", manifest, "--batch-size", sizes.batch_size),
        makes=(out / name / "config.json",),
    )


def evaluate(name: str, out: Path, sizes: Sizes, controls: bool | None = None) -> list[Step]:
    """lmms-eval on the model `out / name`, and what its Supervisor reads.

    Args:
        controls: whether the sound is replaced as well; if not given, for the stages of the demo that can hear.
    """
    folder, benchmark = out / "eval" / name, out / "world" / "benchmark"
    tasks = "artemo,artemo_controls" if (name in CONTROL_STAGES if controls is None else controls) else "artemo"
    return [
        Step(
            f"eval_{name}",
            f"ask the {name} model every question of the benchmark",
            _words(
                "lmms-eval --model vaemotionllm --model_args",
                f"pretrained={out / name}",
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
            f"emotion_{name}",
            f"read the emotion off the {name} model",
            _words(
                "vaemotionllm evaluate-emotion --model",
                out / name,
                "--benchmark",
                benchmark,
                "--out",
                folder / "emotion.json",
                "--batch-size",
                sizes.batch_size,
            ),
            makes=(folder / "emotion.json",),
            owns=(folder / "emotion.json",),
        ),
    ]


def facts(seed: int) -> dict:
    """What the state file says about a run beside its steps."""
    return {
        "seed": seed,
        "layout": layout(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "configs": config_hashes(),
        "arithmetic": FIXED_ARITHMETIC,
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


def _setting(**values: object) -> list[str]:
    return [f"{name}={value}" for name, value in values.items() if value is not None]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of every step: fixed arithmetic, nothing is fetched, and Python writes progress at once."""
    return {
        **fixed_environment(base),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
