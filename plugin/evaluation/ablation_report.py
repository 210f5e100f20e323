"""`ablation.md`, `ablation.json` and two plots, from the runs of several seeds."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from . import ablation_plots
from .ablation import BY_NAME, FULL, LORA, VARIANTS
from .ablation_results import ALL_CELLS, DRAWS, SURENESS, measure, read_runs
from .report_markdown import checks_table, table
from .report_words import MODALITY_WORDS, percent, points, span, two

FORMAT = 1
# What is asked; ours, as are all thresholds.
HARD, CONTENT_LOSS, FORGOTTEN = 0.999, 0.01, 0.01
AUROC_FLOOR, ECE_CEILING, COVERAGE = 0.85, 0.05, (0.88, 0.92)
# The parts that have to earn their place.
PARTS = ("no_stage1", "no_enhancer", "no_supervisor")
INTRODUCTION = """The nano model with and without each of its parts: the procedural art world, a backbone of one to two
million parameters, {train} training clips, {benchmark} held-out clips a seed, seeds {seeds}. Every row has its own
training; a seed's models share its world, its backbone and all settings but the one that the row names. These figures
say which part does what in this small world. They are no leaderboard result, and none of them is the paper's.

Rebuild everything with `make ablation`. The numbers, those of each seed too, are in [ablation.json](ablation.json)."""
INTERVALS = f"""Brackets are 95% intervals of the mean over the seeds: a bootstrap that draws seeds and then clips
within each ({DRAWS:,} draws), the same draw for both sides of a difference. They are not widened for the number of
cells: of twenty cells without any effect one is expected in bold. With few seeds the spread between trainings is known
poorly."""
ROWS = f"""What the rows are:

- without stage 1: stage 2 starts from an audio pathway that was never taught to hear.
- without Enhancer, Supervisor, context: `enhancer_layers: []`; the Supervisor's losses have weight 0;
  `enhancer_context: false`.
- with LoRA: the full model and `lora: {LORA}` on the LLM in stage 2.
- stage 1 by captions: the audio pathway is taught by cross entropy on the clips' captions, with the same media, steps
  and trained parts as stage 1, and then goes through stage 2. What one with labels would do; VG-Align reads none.
- trained on one input alone: stage 2 takes that path in all of its steps, and is compared on it alone.
- parts of the clips: both stages see only these.
- backbone, stage 1 and captions alone: before stage 2."""


def write_report(folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes the report of finished runs into `out`; returns its files.

    Raises:
        InputError: see `read_runs`.
    """
    found = {"format": FORMAT, **measure(read_runs(folders))}
    found["asked"] = asked(found)
    files = {
        out / "ablation.md": markdown(found).encode(),
        out / "ablation.json": (json.dumps(found, indent=1, allow_nan=False) + "\n").encode(),
        out / "ablation_parts.png": ablation_plots.png(ablation_plots.draw_parts, found),
        out / "ablation_clips.png": ablation_plots.png(ablation_plots.draw_clips, found),
    }
    out.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        file.write_bytes(content)
    return list(files)


def asked(found: dict) -> list[dict]:
    """What the project asks of the ablation, each with what was measured."""
    rows: list[dict] = []

    def add(name: str, passed: bool, measured: str, wanted: str) -> None:
        rows.append({"name": name, "passed": bool(passed), "measured": measured, "asked": wanted})

    variants, full = found["variants"], found["full_model"]
    highest = max(ALL_CELLS[:6], key=lambda cell: variants[FULL.name]["cells"][cell]["mean"])
    add(
        "the world is hard enough",
        variants[FULL.name]["cells"][highest]["mean"] < HARD,
        f"highest cell {percent(variants[FULL.name]['cells'][highest]['mean'])} ({cell_words(highest)})",
        "no cell at 100%",
    )
    above = [
        f"{row['title']}, {cell_words(cell)}: {change(difference, cell)}"
        for row in variants.values()
        for cell, difference in row["full_minus_it"].items()
        if difference["ci95"][1] < 0
    ]
    count = sum(len(row["full_minus_it"]) for row in variants.values())
    add(
        "the full model is best or tied in every cell",
        not above,
        "; ".join(above) or f"none of {count} differences is below 0 with its interval",
        "no interval of full minus another below 0",
    )
    for name in PARTS:
        gains, losses = earned(found, name), variants[name]["full_minus_it"]
        add(
            f"{BY_NAME[name].part} improves emotion accuracy or CCC",
            gains,
            "; ".join(f"{cell_words(cell)} {change(losses[cell], cell)}" for cell in gains) or "no interval above 0",
            "an interval above 0 on one path",
        )
        worst = min((f"content_{path}" for path in MODALITIES), key=lambda cell: losses[cell]["mean"])
        add(
            f"{BY_NAME[name].part} does not hurt content",
            losses[worst]["mean"] >= -CONTENT_LOSS,
            f"{cell_words(worst)} {change(losses[worst], worst)}",
            f"at most {points(CONTENT_LOSS)} lost",
        )
    gain = full["av_gain"]
    add(
        f"emotion by sound and picture above {MODALITY_WORDS[full['better_single']]} alone",
        gain["mean"] > 0,
        change(gain, "emotion_av"),
        "above 0",
    )
    auroc = full["conflict_auroc"]
    add(
        "the conflict score tells clips with another clip's sound",
        auroc["mean"] is not None and auroc["mean"] >= AUROC_FLOOR,
        f"AUROC {of_seeds(auroc, two)}",
        f"at least {AUROC_FLOOR:.2f}",
    )
    for path in MODALITIES:
        error = full["ece"][path]
        add(
            f"calibration error of the labels, {MODALITY_WORDS[path]}",
            error["mean"] is not None and error["mean"] <= ECE_CEILING,
            of_seeds(error, "{:.3f}".format),
            f"at most {ECE_CEILING:.2f}",
        )
    for name in SURENESS[1:]:
        means = [full[name][path]["mean"] for path in MODALITIES]
        whole = None if None in means else sum(means) / len(means)
        add(
            f"90% intervals of {name.removesuffix('_coverage')} hold the value",
            whole is not None and COVERAGE[0] <= whole <= COVERAGE[1],
            "n/a" if whole is None else percent(whole) + " (" + ", ".join(
                f"{MODALITY_WORDS[path]} {percent(mean)}" for path, mean in zip(MODALITIES, means)
            ) + ")",
            f"{percent(COVERAGE[0], 0)} to {percent(COVERAGE[1], 0)}, mean of the paths",
        )  # fmt: skip
    kept = found["kept"][FULL.name]
    for name, words in (("content_visual", "content by picture"), ("emotion_visual", "emotion by picture"),
                        ("words", "questions in words")):  # fmt: skip
        add(
            f"nothing is forgotten: {words}, full model minus backbone",
            kept[name]["mean"] >= -FORGOTTEN,
            change(kept[name], "content"),
            f"at most {points(FORGOTTEN)} lost",
        )
    return rows


def earned(found: dict, name: str) -> list[str]:
    """The cells of emotion in which the full model is above the variant with its whole interval."""
    differences = found["variants"][name]["full_minus_it"]
    return [cell for cell, value in differences.items() if not cell.startswith("content") and value["ci95"][0] > 0]


def markdown(found: dict) -> str:
    seeds = ", ".join(map(str, found["seeds"]))
    clips = "/".join(str(count) for count in dict.fromkeys(found["benchmark_clips"]))
    met = sum(row["passed"] for row in found["asked"])
    parts = [
        "# What each part gives",
        INTRODUCTION.format(train=found["train_clips"], benchmark=clips, seeds=seeds),
        *(["> Made with --scale tiny: these figures mean nothing."] if found["arguments"]["scale"] == "tiny" else []),
        "\n".join(f"- {sentence}" for sentence in verdicts(found)),
        "![What each part gives](ablation_parts.png)",
        "*The full model minus the model without the part, with 95% intervals; right of 0 the part helps.*",
        "## Accuracy and CCC",
        "Accuracy in percent, and the mean of valence's and arousal's concordance correlation (CCC) x 100 where the "
        "Supervisor was trained. " + INTERVALS,
        scores_table(found),
        "## The full model minus each",
        "In points, paired by clip; bold where the interval leaves 0 out. Above 0 the full model is better.",
        differences_table(found),
        ROWS,
        "## How many clips it takes",
        "![Accuracy against the number of clips](ablation_clips.png)",
        "## What is asked",
        f"{met} of {len(found['asked'])} met. Rows compare means; where a row speaks of an interval it is shown.",
        checks_table({"checks": found["asked"]}),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(found: dict) -> list[str]:
    """A sentence about each part: where it helps, where it hurts, or that nothing can be told."""
    sentences = []
    for variant in VARIANTS:
        if variant.part is None:
            continue
        differences = found["variants"][variant.name]["full_minus_it"]
        better = [cell for cell, value in differences.items() if value["ci95"][0] > 0]
        worse = [cell for cell, value in differences.items() if value["ci95"][1] < 0]
        name = variant.part[0].upper() + variant.part[1:]
        told = [
            f"{verb} {', '.join(f'{cell_words(cell)} ({change(differences[cell], cell)})' for cell in cells)}"
            for verb, cells in (("helps", better), ("hurts", worse))
            if cells
        ]
        if told:
            sentences.append(f"**{name}** {'; '.join(told)}.")
        else:
            sentences.append(f"**{name}**: no difference that these seeds and clips can tell from none.")
    return sentences


def scores_table(found: dict) -> str:
    rows = []
    for row in found["variants"].values():
        cells = [row["cells"].get(cell) for cell in ALL_CELLS]
        rows.append(
            [
                row["title"],
                *("" if cell is None else f"{100 * cell['mean']:.1f} {span(cell['ci95'])}" for cell in cells),
            ]
        )
    return table(["", *map(cell_words, ALL_CELLS)], rows)


def differences_table(found: dict) -> str:
    rows = []
    for name, row in found["variants"].items():
        if name == FULL.name:
            continue
        cells = []
        for cell in ALL_CELLS:
            value = row["full_minus_it"].get(cell)
            text = "" if value is None else f"{100 * value['mean']:+.1f} {span(value['ci95'], signed=True)}"
            cells.append(f"**{text}**" if value and (value["ci95"][0] > 0 or value["ci95"][1] < 0) else text)
        rows.append([row["title"], *cells])
    return table(["full model minus", *map(cell_words, ALL_CELLS)], rows)


def cell_words(cell: str) -> str:
    kind, path = cell.split("_")
    return f"{kind if kind in ASPECTS else kind.upper()}, {MODALITY_WORDS[path]}"


def change(value: dict, cell: str) -> str:
    """A difference with its interval, where it has one; a CCC in hundredths."""
    unit = "hundredths" if cell.startswith("ccc") else "points"
    text = f"{100 * value['mean']:+.1f} {unit}"
    return text if value["ci95"] is None else f"{text} {span(value['ci95'], signed=True)}"


def of_seeds(value: dict, words) -> str:
    """A mean with the lowest and highest seed."""
    if value["mean"] is None:
        return "n/a"
    return f"{words(value['mean'])} ({words(min(value['by_seed']))} to {words(max(value['by_seed']))})"
