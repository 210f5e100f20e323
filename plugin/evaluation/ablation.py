"""The ablation: which models are trained with one part left out or changed, by which commands, and where each writes.

Every model of one run shares its world, its backbone and its seed. Which variants are made is ours; the paper
(arXiv 2511.12077) reports an ablation of its parts without the numbers being known to us.
"""

import dataclasses
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.configuration_vaemotionllm import MODALITIES
from ..nano.language import CAPTION_PROMPTS
from ..nano.world import DEFAULT_SIZES
from .demo import Sizes, calibrate_step, evaluate, facts, nano_steps, train_step
from .steps import Step

# Twice the demo's: differences of two points are to be told from none.
BENCHMARK_CLIPS = 768
# Parts of the training clips, of both stages.
SHARES = (0.1, 0.3)
LORA = "{rank: 8, alpha: 16}"
NO_SUPERVISOR = ("valence_weight=0", "arousal_weight=0", "emotion_weight=0")


@dataclass(frozen=True)
class Variant:
    """A model of the ablation.

    Args:
        name: of its folder.
        title: its row in the table.
        start: the model that its stage 2 starts from; None where `name` is itself such a start.
        words: `key=value` words of its stage 2, beside those of the full model.
        share: the part of the training clips that both its stages see.
        modalities: those that it is compared on; a baseline of one modality alone was taught nothing on the others.
        part: what it lacks, where that is a part of the method that has to earn its place.
    """

    name: str
    title: str
    start: str | None = "stage1"
    words: tuple[str, ...] = ()
    share: float = 1.0
    modalities: tuple[str, ...] = MODALITIES
    part: str | None = None

    @property
    def supervised(self) -> bool:
        """Whether its Supervisor was trained, so that valence and arousal can be read."""
        return self.start is not None and self.words != NO_SUPERVISOR


FULL = Variant("full", "full model")
VARIANTS = (
    FULL,
    Variant("no_stage1", "without stage 1", start="backbone", part="stage 1"),
    Variant("no_enhancer", "without Enhancer", words=("model_fields={enhancer_layers: []}",), part="Enhancer"),
    Variant("no_supervisor", "without Supervisor", words=NO_SUPERVISOR, part="Supervisor"),
    Variant(
        "no_context",
        "without cross-modal context",
        words=("model_fields={enhancer_context: false}",),
        part="cross-modal context",
    ),
    Variant("lora", "with LoRA", words=(f"lora={LORA}",)),
    Variant("captions_full", "stage 1 by captions", start="captions"),
    Variant("audio_alone", "trained on sound alone", words=("modalities={audio: 1}",), modalities=("audio",)),
    Variant("visual_alone", "trained on pictures alone", words=("modalities={visual: 1}",), modalities=("visual",)),
    Variant("av_alone", "trained on sound with picture alone", words=("modalities={av: 1}",), modalities=("av",)),
    *(
        Variant(f"full_{100 * share:.0f}", f"{share:.0%} of the clips", f"stage1_{100 * share:.0f}", share=share)
        for share in SHARES
    ),
    Variant("backbone", "backbone alone", start=None),
    Variant("stage1", "stage 1 alone", start=None),
    Variant("captions", "captions alone", start=None),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
# Asked in words what the backbone was taught in words.
RECALLED = ("backbone", "full", "lora")


def layout() -> dict:
    """Where the report finds the files of a run, relative to its folder."""
    return {
        "benchmark": "world/benchmark",
        "evaluations": {variant.name: f"eval/{variant.name}" for variant in VARIANTS},
        "recall": {name: f"eval/{name}/recall.json" for name in RECALLED},
    }


def run_facts(seed: int, sizes: Sizes) -> dict:
    """What the state file says about a run beside its steps."""
    clips = sizes.train_clips or DEFAULT_SIZES["train"]
    return facts(seed) | {"layout": layout(), "train_clips": clips}


def plan(out: Path, seed: int, sizes: Sizes) -> list[Step]:
    """The steps of one seed in `out`."""
    sizes = dataclasses.replace(sizes, benchmark_clips=sizes.benchmark_clips or BENCHMARK_CLIPS)
    steps = nano_steps(out, seed, sizes)
    starts = {variant.start: variant.share for variant in VARIANTS if variant.start not in (None, "backbone")}
    steps += [start_step(name, share, out, seed, sizes) for name, share in starts.items()]
    for variant in VARIANTS:
        if variant.start is not None:
            fewer = () if sizes.stage2_steps is None else (f"max_steps={sizes.stage2_steps}",)
            words = (*_clips_words(variant.share, sizes), *fewer, *variant.words, *sizes.stage2)
            title = f"stage 2, {variant.title}"
            steps.append(train_step(variant.name, title, "stage2_nano", out / variant.start, out, seed, words))
        if variant is FULL:
            steps.append(calibrate_step(variant.name, out, sizes))
        asked, read = evaluate(variant.name, out, sizes, controls=False)
        steps += [asked, read] if variant.supervised else [asked]
        if variant.name in RECALLED:
            steps.append(recall_step(variant.name, out, seed, sizes))
    return steps


def start_step(name: str, share: float, out: Path, seed: int, sizes: Sizes) -> Step:
    """The training of a model that stage 2 starts from."""
    steps = () if sizes.stage1_steps is None else (f"max_steps={sizes.stage1_steps}",)
    if name == "captions":
        words = (*caption_words(), *steps)
        return train_step(name, "captions in place of stage 1", "stage2_nano", out / "backbone", out, seed, words)
    words = ("model_fields=null", *_clips_words(share, sizes), *steps, *sizes.stage1)
    return train_step(name, f"stage 1, {name}", "stage1_nano", out / "backbone", out, seed, words)


def caption_words() -> list[str]:
    """What a user with labels would do in place of VG-Align: the audio pathway learns to write the clips' captions.

    All that does not belong to the task is as in stage 1: what is trained, on which media, for how long.
    """
    import yaml

    folder = importlib.resources.files("vaemotionllm.configs") / "train"
    stage1 = yaml.safe_load((folder / "stage1_nano.yaml").read_text(encoding="utf-8"))
    asked = ", ".join(f'{{prompt: "{prompt}", answer: "{{caption}}"}}' for prompt in CAPTION_PROMPTS)
    modalities = ", ".join(f"{modality}: {share}" for modality, share in stage1["student_modalities"].items())
    return [
        f"instructions=[{asked}]",
        f"modalities={{{modalities}}}",
        "train_emotion_adapter=false",
        "emotion_labels=null",
        *NO_SUPERVISOR,
        "audio_tower_lr=null",
        *(f"{name}={stage1[name]}" for name in ("learning_rate", "warmup_steps", "max_steps")),
    ]


def recall_step(name: str, out: Path, seed: int, sizes: Sizes) -> Step:
    file = out / "eval" / name / "recall.json"
    return Step(
        f"recall_{name}",
        f"ask the {name} model in words what its backbone was taught in words",
        ("vaemotionllm", "nano", "recall", "--model", str(out / name), "--out", str(file), "--seed", str(seed)),
        makes=(file,),
        owns=(file,),
    )


def _clips_words(share: float, sizes: Sizes) -> Sequence[str]:
    clips = sizes.train_clips or DEFAULT_SIZES["train"]
    return () if share == 1 else (f"max_clips={max(1, round(share * clips))}",)
