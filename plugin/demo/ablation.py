"""The ablation: models trained with one part left out or changed, the commands of one seed, and the report of several.

Every model of one run shares its world, its backbone and its seed. Which variants are made is ours; the paper
(arXiv 2511.12077) reports an ablation of its parts without the numbers being known to us.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..config_file import read_config
from ..evaluation import plots
from ..evaluation import report as page
from ..evaluation.plots import MODALITY_LABELS
from ..evaluation.results import mean_ccc, read_emotion, read_evaluation
from ..evaluation.scores import CELL_TASKS, over_seeds, rows_of, supervisor_scores, table_of
from ..model.inputs import MODALITIES
from ..nano.language import CAPTION_PROMPTS
from ..nano.world import DEFAULT_SIZES
from ..utils import InputError, read_json
from .demo import Sizes, calibrate_step, evaluate_step, nano_steps, predict_step, steps_word, train_step
from .demo_report import TINY
from .steps import RUN_FILE, Step, marker_of, refuse_unlike

# Twice the demo's: differences of two points have to stand out from none.
BENCHMARK_CLIPS = 768
# Parts of the training clips, of both stages.
SHARES = (0.1, 0.3)
NO_SUPERVISOR = ("valence_weight=0", "arousal_weight=0", "emotion_weight=0")
NOTE = (
    "The nano model with and without each of its parts: the procedural art world, a backbone of one to two million "
    "parameters, {train} training clips, seeds {seeds}. Every row has its own training; a seed's models share its "
    "world, its backbone and all settings but the one that the row names. These numbers say which part does what in "
    "this small world. They are no leaderboard result, and none of them is the paper's."
)


@dataclass(frozen=True)
class Variant:
    """A model of the ablation.

    Args:
        name: of its folder.
        title: its row in the table.
        start: the model that its stage 2 starts from; None where `name` is itself such a start.
        words: `key=value` words of its stage 2, beside those of the full model.
        share: the part of the training clips that both its stages get.
        modalities: those that it is compared on; a baseline of one modality alone was trained on no other.
    """

    name: str
    title: str
    start: str | None = "stage1"
    words: tuple[str, ...] = ()
    share: float = 1.0
    modalities: tuple[str, ...] = MODALITIES

    @property
    def supervised(self) -> bool:
        """Whether its Supervisor was trained, so that it predicts valence and arousal."""
        return self.start is not None and self.words != NO_SUPERVISOR


FULL = Variant("full", "full model")
VARIANTS = (
    FULL,
    Variant("no_stage1", "without stage 1", start="backbone"),
    Variant("no_enhancer", "without Enhancer", words=("model_fields={enhancer_layers: []}",)),
    Variant("no_supervisor", "without Supervisor", words=NO_SUPERVISOR),
    Variant("no_context", "without cross-modal context", words=("model_fields={enhancer_context: false}",)),
    Variant("lora", "with LoRA", words=("lora={rank: 8, alpha: 16}",)),
    Variant("captions_full", "stage 1 by captions", start="captions"),
    *(
        Variant(f"{modality}_alone", f"trained on {label} alone", words=(f"modalities={{{modality}: 1}}",),
                modalities=(modality,))
        for modality, label in MODALITY_LABELS.items()
    ),
    *(
        Variant(f"full_{100 * share:.0f}", f"{share:.0%} of the clips", f"stage1_{100 * share:.0f}", share=share)
        for share in SHARES
    ),
    Variant("backbone", "backbone alone", start=None),
    Variant("stage1", "stage 1 alone", start=None),
    Variant("captions", "captions alone", start=None),
)  # fmt: skip


# ---- the commands of one seed


def plan(seed: int, sizes: Sizes) -> list[Step]:
    """The steps of one seed."""
    sizes = dataclasses.replace(sizes, benchmark_clips=sizes.benchmark_clips or BENCHMARK_CLIPS)
    steps = nano_steps(seed, sizes)
    starts = {variant.start: variant.share for variant in VARIANTS if variant.start not in (None, "backbone")}
    steps += [start_step(name, share, seed, sizes) for name, share in starts.items()]
    for variant in VARIANTS:
        if variant.start is not None:
            words = [*_clips_words(variant.share, sizes), *steps_word(sizes.stage2_steps)]
            words += [*variant.words, *sizes.stage2]
            title = f"stage 2, {variant.title}"
            steps.append(train_step(variant.name, title, "stage2_nano", variant.start, seed, words))
        if variant is FULL:
            steps.append(calibrate_step(variant.name, sizes))
        steps.append(evaluate_step(variant.name, sizes))
        if variant.supervised:
            steps.append(predict_step(variant.name, sizes))
    return steps


def start_step(name: str, share: float, seed: int, sizes: Sizes) -> Step:
    """The training of a model that stage 2 starts from."""
    words, steps = ["model_fields=null", *_clips_words(share, sizes)], steps_word(sizes.stage1_steps)
    if name == "captions":
        return train_step(name, "captions", "stage2_nano", "backbone", seed, [*caption_words(), *steps])
    return train_step(name, f"stage 1, {name}", "stage1_nano", "backbone", seed, [*words, *steps, *sizes.stage1])


def caption_words() -> list[str]:
    """What a user with labels would do in place of VG-Align: the audio pathway learns to write the clips' captions.

    All that does not belong to the task is as in stage 1: what is trained, on which media, for how long.
    """
    stage1 = read_config("stage1_nano")
    pairs = ", ".join(f'{{prompt: "{prompt}", answer: "{{caption}}"}}' for prompt in CAPTION_PROMPTS)
    modalities = ", ".join(f"{modality}: {share}" for modality, share in stage1["student_modalities"].items())
    return [
        f"instructions=[{pairs}]",
        f"modalities={{{modalities}}}",
        "train_emotion_adapter=false",
        "emotion_labels=null",
        *NO_SUPERVISOR,
        "audio_tower_lr=null",
        *(f"{name}={stage1[name]}" for name in ("learning_rate", "warmup_steps", "max_steps")),
    ]


def _clips_words(share: float, sizes: Sizes) -> Sequence[str]:
    clips = sizes.train_clips or DEFAULT_SIZES["train"]
    return () if share == 1 else (f"max_clips={max(1, round(share * clips))}",)


# ---- the report of several seeds


def read_runs(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Folder -> the `run.json` of its run, by seed.

    Raises:
        InputError: a folder without a finished run, two runs of one seed, or of other arguments or versions.
    """
    runs = {folder: read_json(folder / RUN_FILE, "the arguments of `vaemotionllm ablation run`") for folder in folders}
    for folder, about in runs.items():
        steps = {f"eval_{variant.name}" for variant in VARIANTS} | about["commands"].keys()
        if not all(marker_of(folder, name).get("done") for name in steps):
            raise InputError(f"{folder} holds no finished run of this ablation; run `vaemotionllm ablation run` on it")
    alike = {folder: {**of["arguments"], **of["versions"], **of["configs"]} for folder, of in runs.items()}
    refuse_unlike(alike)
    return dict(sorted(runs.items(), key=lambda run: run[1]["arguments"]["seed"]))


def run_scores(folder: Path) -> pd.DataFrame:
    """The scores of one seed: accuracies, mean CCC (measure "ccc"), and those of the full model minus each variant's
    ("accuracy_full_minus", "ccc_full_minus"); of the full model its calibration too."""
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        where = folder / "eval" / variant.name
        tasks = read_evaluation(where / "lmms_eval").tasks
        for cell, task in CELL_TASKS.items():
            key = {"model": variant.title, **dict(zip(("aspect", "modality"), cell.split("_")))}
            if key["modality"] in variant.modalities:
                answers = tasks[task].rows
                chance = (1 / answers.options.str.len()).mean()
                rows.append({**key, "measure": "accuracy", "value": answers.value.mean(), "chance": chance})
        predicted = read_emotion(where / "emotion.json") if variant.supervised else {}
        for modality in [modality for modality in variant.modalities if modality in predicted]:
            key = {"model": variant.title, "measure": "ccc", "modality": modality}
            rows.append({**key, "value": float(mean_ccc(predicted[modality]))})
    scores = table_of(rows)
    cell = ["measure", "aspect", "modality"]
    full = scores[scores.model == FULL.title].set_index(cell).value
    minus = scores[scores.model != FULL.title]
    minus = minus.assign(value=full.loc[pd.MultiIndex.from_frame(minus[cell])].to_numpy() - minus.value)
    minus["measure"] += "_full_minus"
    supervisor = table_of(supervisor_scores(folder / "eval" / FULL.name / "emotion.json")).assign(model=FULL.title)
    return pd.concat([scores, minus, supervisor], ignore_index=True)


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the report of finished runs into `out` as `ablation.md`, `.html` and `.json`; returns these files.

    Means over seeds with Student's t intervals; a difference stands in bold where its interval leaves 0 out.

    Raises:
        InputError: see `read_runs`.
    """
    plots.require_matplotlib()
    runs = read_runs(folders)
    tables = [run_scores(folder) for folder in runs]
    scores, about = over_seeds(tables), next(iter(runs.values()))
    seeds = [of["arguments"]["seed"] for of in runs.values()]
    train = about["arguments"].get("train_clips") or DEFAULT_SIZES["train"]
    commands = "\n".join(f"vaemotionllm ablation run --seed {seed}" for seed in seeds)
    parts = page.score_parts(scores, commands, questions=False)
    mean_ccc, full_minus = {}, page.columns_of("accuracy_full_minus")
    for modality, label in MODALITY_LABELS.items():
        mean_ccc[label] = {"measure": "ccc", "modality": modality}
        full_minus[f"CCC, {label}"] = {"measure": "ccc_full_minus", "modality": modality}
    parts["mean_ccc"] = page.grid(scores, mean_ccc, "mean of both")
    parts["full_minus"] = page.grid(scores, full_minus, "full model minus")
    drawn = scores[scores.model.str.startswith("without ") & scores.measure.str.endswith("_full_minus")]
    drawn = drawn.assign(panel=drawn.aspect.where(drawn.aspect != "", "CCC, hundredths"))
    caption = "The full model minus the model without the part, in points, with 95% intervals; right of 0 it helps."
    figure = plots.draw_rows(drawn, "panel", "model", "modality", differences=True)
    parts["figure_parts"] = [page.figure("ablation_parts", figure, caption, commands)]
    rows = {v.title: [v.start or "none", f"{v.share:.0%}", " ".join(v.words)] for v in VARIANTS}
    heads = ["stage 2 from", "clips", "beside the full model's settings"]
    parts["variants"] = pd.DataFrame.from_dict(rows, "index", dtype=object, columns=heads).rename_axis("model")
    arguments = {name: of for name, of in about["arguments"].items() if name not in ("seed", "backbone")}
    report = {
        "format": page.FORMAT, "kind": "ablation", "seeds": seeds, "train_clips": train,
        "intervals": page.SEED_INTERVALS, "arguments": arguments, "versions": about["versions"],
        "scores": rows_of(scores), "by_seed": {str(seed): rows_of(of) for seed, of in zip(seeds, tables)},
    }  # fmt: skip
    notes = [NOTE.format(train=train, seeds=", ".join(map(str, seeds)))]
    notes += [TINY] * (arguments["scale"] == "tiny")
    words = {"title": "What each part gives", "notes": notes, "intervals": page.SEED_INTERVALS, "commands": commands}
    return page.write(out, "ablation", report, parts, **words)
