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

from ..benchmark.schema import ASPECTS
from ..config_file import read_config
from ..evaluation import plots
from ..evaluation import report as page
from ..evaluation.plots import MODALITY_LABELS
from ..evaluation.results import mean_ccc, read_emotion, read_evaluation
from ..evaluation.scores import CELL_TASKS, over_seeds, pick, rows_of, supervisor_scores, table_of
from ..model.inputs import MODALITIES
from ..nano.language import CAPTION_PROMPTS
from ..nano.world import DEFAULT_SIZES
from ..utils import InputError, read_json
from .demo import Sizes, calibrate_step, evaluate_steps, nano_steps, train_step
from .steps import RUN_FILE, Step, marker_of

# Twice the demo's: differences of two points have to stand out from none.
BENCHMARK_CLIPS = 768
# Parts of the training clips, of both stages.
SHARES = (0.1, 0.3)
LORA = "{rank: 8, alpha: 16}"
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
        part: what it lacks, where that is a part of the method that has to earn its keep.
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
        """Whether its Supervisor was trained, so that it predicts valence and arousal."""
        return self.start is not None and self.words != NO_SUPERVISOR


FULL = Variant("full", "full model")
VARIANTS = (
    FULL,
    Variant("no_stage1", "without stage 1", start="backbone", part="stage 1"),
    Variant("no_enhancer", "without Enhancer", words=("model_fields={enhancer_layers: []}",), part="Enhancer"),
    Variant("no_supervisor", "without Supervisor", words=NO_SUPERVISOR, part="Supervisor"),
    Variant("no_context", "without cross-modal context", words=("model_fields={enhancer_context: false}",),
            part="cross-modal context"),
    Variant("lora", "with LoRA", words=(f"lora={LORA}",)),
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
BY_NAME = {variant.name: variant for variant in VARIANTS}


# ---- the commands of one seed


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
        evaluate, predict = evaluate_steps(variant.name, out, sizes, controls=False)
        steps += [evaluate, predict] if variant.supervised else [evaluate]
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


def read_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The `run.json` of each run, by seed, with "folder".

    Raises:
        InputError: a folder without a finished run, two runs of one seed, or of other arguments or versions.
    """
    runs = []
    for folder in folders:
        about = read_json(folder / RUN_FILE, "the arguments of `vaemotionllm ablation run`")
        lacking = {f"eval_{variant.name}" for variant in VARIANTS} - about.get("commands", {}).keys()
        if lacking or not all(marker_of(folder, name).get("done") for name in about["commands"]):
            raise InputError(f"{folder} holds no finished run of this ablation; run `vaemotionllm ablation run` on it")
        runs.append({**about, "folder": folder})
    runs.sort(key=lambda run: run["arguments"]["seed"])
    for one, other in zip(runs, runs[1:]):
        if one["arguments"]["seed"] == other["arguments"]["seed"]:
            raise InputError(f"{one['folder']} and {other['folder']} have the same seed; name each seed once")
        for name in ("arguments", "versions", "configs"):
            # Each seed may have its own backbone; that one was given counts.
            own = {"seed": None}
            ours, theirs = ({**r[name], **own, "backbone": bool(r[name].get("backbone"))} for r in (one, other))
            if ours != theirs:
                raise InputError(f"{one['folder']} and {other['folder']} differ in {name}: {ours} and {theirs}; make "
                                 "them alike with `vaemotionllm ablation run --overwrite`")  # fmt: skip
    return runs


def run_scores(folder: Path) -> pd.DataFrame:
    """The scores of one seed: accuracies, mean CCC (measure "ccc"), and those of the full model minus each variant's
    ("accuracy_full_minus", "ccc_full_minus"); of the full model its calibration too."""
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        where = folder / "eval" / variant.name
        evaluation = read_evaluation(where / "lmms_eval")
        for cell, task in CELL_TASKS.items():
            aspect, modality = cell.split("_")
            if modality in variant.modalities:
                if task not in evaluation.tasks:
                    raise InputError(f"{evaluation.path} has no task {task}; run lmms-eval with --tasks artemo")
                answers = evaluation.answers(task)
                chance = (1 / answers.options.str.len()).mean()
                rows.append({"model": variant.title, "measure": "accuracy", "aspect": aspect, "modality": modality,
                             "value": answers.value.mean(), "chance": chance})  # fmt: skip
        if variant.supervised:
            for modality, points in read_emotion(where / "emotion.json").items():
                if modality in variant.modalities:
                    rows.append({"model": variant.title, "measure": "ccc", "modality": modality,
                                 "value": float(mean_ccc(points))})  # fmt: skip
    full = {(row["measure"], row.get("aspect"), row["modality"]): row["value"] for row in rows
            if row["model"] == FULL.title}  # fmt: skip
    rows += [
        {**row, "measure": f"{row['measure']}_full_minus",
         "value": full[row["measure"], row.get("aspect"), row["modality"]] - row["value"]}
        for row in rows if row["model"] != FULL.title
    ]  # fmt: skip
    rows += [{"model": FULL.title, **row} for row in supervisor_scores(folder / "eval" / FULL.name / "emotion.json")]
    return table_of(rows)


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the report of finished runs into `out` as `ablation.md`, `.html` and `.json`; returns these files.

    Means over seeds with Student's t intervals; a difference stands in bold where its interval leaves 0 out.

    Raises:
        InputError: see `read_runs`.
    """
    plots.require_matplotlib()
    runs = read_runs(folders)
    tables = [run_scores(run["folder"]) for run in runs]
    scores = over_seeds(tables)
    seeds = [run["arguments"]["seed"] for run in runs]
    train = runs[0]["arguments"].get("train_clips") or DEFAULT_SIZES["train"]
    columns = [*page.cell_keys(), *({"measure": "ccc", "modality": modality} for modality in MODALITIES)]
    head = [*page.CELL_LABELS.values(), *(f"CCC, {label}" for label in MODALITY_LABELS.values())]
    own = scores[scores.condition == ""]
    values = [[cell if cell != "not run" else "" for cell in row] for row in page.grid(own, columns[6:], "plain")]
    minus = own[own.measure.str.endswith("_full_minus")]
    rows = []
    for title in dict.fromkeys(minus["model"]):
        found = [pick(minus, model=title, **{**keys, "measure": f"{keys['measure']}_full_minus"}) for keys in columns]
        rows.append([title, *("" if row is None else _difference(row) for row in found)])
    parts = {variant.title: variant.part for variant in VARIANTS if variant.part is not None}
    drawn = minus[minus.model.isin(parts)]
    drawn = drawn.assign(panel=drawn.aspect.where(drawn.aspect != "", "CCC, hundredths"))
    shares = {v.title: v.share * train for v in sorted(VARIANTS, key=lambda v: v.share) if v.name.startswith("full")}
    clips = [f"{count:.0f}" for count in shares.values()]
    chance = {aspect: own[own.aspect == aspect].chance.mean() for aspect in ASPECTS}
    by_clips = plots.draw_lines(page.cells_of(scores), shares, clips, log=True, references={"chance": chance})
    note = NOTE.format(train=train, seeds=", ".join(map(str, seeds)))
    calibration = scores[(scores["model"] == FULL.title) & (scores.condition == "supervisor")]
    commands = "\n".join(f"vaemotionllm ablation run --seed {seed}" for seed in seeds)
    tiny = [page.text("Made with --scale tiny: these numbers mean nothing.", "note")]
    blocks = [
        page.heading("What each part gives", 1), page.text(note),
        *(tiny if runs[0]["arguments"]["scale"] == "tiny" else []),
        page.figures(plots.render(
            "ablation_parts", plots.draw_rows(drawn, "panel", "model", "modality", parts, differences=True),
            "The full model minus the model without the part, in points, with 95% intervals; right of 0 the part "
            "helps.", "see the table of differences", commands)),
        page.heading("Accuracy"), page.text(page.SEED_INTERVALS), page.accuracy_table(own),
        page.heading("Valence and arousal"), page.text("Mean CCC of both, where the Supervisor was trained."),
        page.table(["CCC", *head[6:]], [row for row in values if any(row[1:])]),
        page.heading("The full model minus each"),
        page.text("In points (CCC: hundredths), paired by seed; bold where the interval leaves 0 out. Above 0 the "
                  "full model is better. Intervals are not widened for the number of cells: of twenty cells without "
                  "any effect one is expected in bold."),
        page.table(["full model minus", *head], rows),
        page.heading("How many clips it takes"),
        page.figures(plots.render(
            "ablation_clips", by_clips, "Accuracy of the full model against the number of clips in both trainings, "
            "with 95% intervals.", "see the table of accuracies", commands)),
        page.heading("Calibration of the full model"),
        page.table(["", "value"], [[f"{row.measure.replace('_', ' ')} {row.modality}".strip(),
                               page.shown(pd.Series(row._asdict()), "plain")] for row in calibration.itertuples()]),
        page.heading("What the rows are"),
        page.table(["", "stage 2 from", "clips", "beside the full model's settings"], [
            [v.title, v.start or "none", f"{v.share:.0%}", " ".join(v.words)] for v in VARIANTS], left=[1, 3]),
        page.code(commands),
    ]  # fmt: skip
    report = {
        "format": page.FORMAT, "kind": "ablation", "seeds": seeds, "train_clips": train,
        "intervals": page.SEED_INTERVALS,
        "arguments": {name: value for name, value in runs[0]["arguments"].items() if name not in ("seed", "backbone")},
        "versions": runs[0]["versions"], "scores": rows_of(scores),
        "by_seed": {str(seed): rows_of(of) for seed, of in zip(seeds, tables)},
    }  # fmt: skip
    return page.write(out, "ablation", "What each part gives", blocks, report)


def _difference(row: pd.Series) -> str:
    words = page.shown(row, "points")
    return page.Bold(words) if row["low"] > 0 or row["high"] < 0 else words
