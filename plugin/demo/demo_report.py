"""The report of a demo, which is that of three models and of what made them: examples, curves, checks and costs; and
means over demos of several seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark.intervals import accuracy_interval, paired
from ..benchmark.schema import ASPECTS
from ..evaluation import plots, results
from ..evaluation import report as page
from ..evaluation.results import DIMENSIONS, BenchmarkItems, Evaluation
from ..evaluation.scores import (
    CELL_TASKS,
    CONTROL_TASKS,
    over_seeds,
    pick,
    row_of,
    rows_of,
    scores_of,
    supervisor_scores,
    table_of,
)
from ..model.inputs import MODALITIES
from ..utils import InputError, read_json, read_json_lines
from .demo import CONTROL_STAGES, STAGES
from .steps import RUN_FILE, marker_of, refuse_unlike

KIND = "demo"
LABELS = {"backbone": "backbone", "stage1": "stage 1", "stage2": "stage 2"}
FIRST, MIDDLE, LAST = LABELS.values()
TINY = "Made with --scale tiny: these numbers mean nothing."
NANO = (
    "These numbers come from the nano set, procedural clips and {backbone}, to show that the whole way works. They "
    "are not a public leaderboard result and say nothing about how well a full-size model understands art."
)
OWN_BACKBONE = "a backbone of one to two million parameters, made by this package"
# What the project wants of a nano run. The thresholds are ours, not the paper's.
CEILING_SHARE, CCC_FLOOR, AUROC_FLOOR, FORGOTTEN = 0.85, 0.80, 0.85, 0.01
REPLACED = ("silence", "noise", "mismatch")
# Cells that are compared with chance, by kind: one wrong verdict among a kind's cells has a chance of 5% at most.
BEFORE_FAMILY = len(ASPECTS)
CONTROLS_FAMILY = len(CONTROL_STAGES) * len(REPLACED) * len(ASPECTS)
CHECKS_NOTE = (
    "A row about chance is met where its interval holds chance, or for replaced audio reaches down to it; the "
    f"interval there is the one that was tested, widened by Bonferroni for {BEFORE_FAMILY} cells before stage 1 and "
    f"for {CONTROLS_FAMILY} with replaced audio. Every other row compares the measured value itself and shows its 95% "
    "interval."
)
# Examples: the first clips of each art form in the benchmark's order, so that a rule chooses and no eye.
PER_ART_FORM, MOST = 2, 6


def read_stages(out: Path, items: BenchmarkItems) -> dict[str, Evaluation]:
    """The evaluations of a demo's stages.

    Raises:
        InputError: one is missing or incomplete, or of another benchmark.
    """
    found = {label: results.read_evaluation(out / "eval" / stage / "lmms_eval") for stage, label in LABELS.items()}
    results.refuse_other_benchmark(items, list(found.values()))
    return found


def read_log(path: Path) -> pd.DataFrame:
    """The rows of a `metrics.jsonl` by step; of a step that a resumed training wrote twice the later values count."""
    rows = pd.DataFrame([row for _, row in read_json_lines(path, "row")] if path.is_file() else [])
    if rows.empty:
        raise InputError(f"{path} is missing or holds no row; train again")
    return rows.groupby("step", as_index=False).last()


def demo_scores(evaluations: Mapping[str, Evaluation], out: Path) -> pd.DataFrame:
    """The table of scores of all stages, with what compares them, paired by clip: audio as a share of the visual
    ceiling (`audio_share`), the loss of visual accuracy (`visual_change`), and audio-visual accuracy above that of the
    better modality alone (`av_gain`), which is chosen once, on all clips: the interval does not cover that choice."""
    rows = [{"model": label, **row} for label, evaluation in evaluations.items() for row in scores_of(evaluation)]
    # The Supervisor is trained in stage 2.
    rows += [{"model": LAST, **row} for row in supervisor_scores(out / "eval" / STAGES[-1] / "emotion.json")]
    for aspect in ASPECTS:
        tasks = {modality: CELL_TASKS[f"{aspect}_{modality}"] for modality in MODALITIES}
        last = {modality: evaluations[LAST].tasks[task].cell for modality, task in tasks.items()}
        audio, ceiling = evaluations[MIDDLE].tasks[tasks["audio"]].cell, evaluations[FIRST].tasks[tasks["visual"]].cell
        better = max(("audio", "visual"), key=lambda modality: np.mean(last[modality][1]))
        for measure, label, combine, one, other, note in (
            ("audio_share", MIDDLE, np.divide, audio, ceiling, None),
            ("visual_change", LAST, np.subtract, last["visual"], ceiling, None),
            ("av_gain", LAST, np.subtract, last["av"], last[better], better),
        ):
            with np.errstate(invalid="ignore", divide="ignore"):
                value = float(combine(np.mean(one[1]), np.mean(other[1])))
            row = row_of(measure, value if np.isfinite(value) else np.nan, paired(one, other, combine))
            rows.append({"model": label, "aspect": aspect, "note": note, **row})
    return table_of(rows)


def checks(scores: pd.DataFrame, evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """What the project wants of a nano run, each with what was measured; see `CHECKS_NOTE`."""
    found: list[dict[str, Any]] = []

    def add(name: str, passed: bool, measured: str, wanted: str) -> None:
        found.append({"name": name, "passed": bool(passed), "measured": measured.replace("\n", " "), "wanted": wanted})

    def add_chance(name: str, label: str, task: str, family: int, below: bool) -> None:
        answers = evaluations[label].tasks[task].rows
        low, high = accuracy_interval(answers.clip_id.tolist(), answers.value.tolist(), 1 - 0.05 / family)[1]
        chance = (1 / answers.options.str.len()).mean()
        words = f"{'back to ' if below else ''}chance, {page.number(chance)}"
        measured = f"{page.number(answers.value.mean())} {page.interval(low, high)}"
        add(name, low <= chance and (below or chance <= high), measured, words)

    def add_floor(name: str, floor: float, wanted: str = "", **keys: str) -> None:
        row = pick(scores, **keys)
        add(name, row["value"] >= floor, page.shown(row), wanted or f"at least {page.number(floor, keys['measure'])}")

    for aspect in ASPECTS:
        add_chance(f"{aspect} from audio before stage 1", FIRST, f"artemo_{aspect}_audio", BEFORE_FAMILY, below=False)
    for aspect in ASPECTS:
        name = f"{aspect} from audio after stage 1, share of the visual ceiling"
        add_floor(name, CEILING_SHARE, model=MIDDLE, measure="audio_share", aspect=aspect)
    row = pick(scores, model=LAST, measure="av_gain", aspect="emotion")
    name = f"emotion, audio-visual minus {row['note']} alone, after stage 2, points"
    add(name, row["value"] > 0, page.shown(row), "above 0")
    of_last = {"model": LAST, "condition": "supervisor"}
    for name in DIMENSIONS:
        key = {"measure": f"{name}_ccc", "modality": "av", **of_last}
        add_floor(f"{name} CCC, audio-visual, after stage 2", CCC_FLOOR, **key)
    name = "conflict score of mismatched against own audio, AUROC, after stage 2"
    add_floor(name, AUROC_FLOOR, measure="auroc", **of_last)
    for aspect in ASPECTS:
        name, wanted = f"{aspect}, visual, after stage 2 minus backbone, points", f"at most {100 * FORGOTTEN:.1f} lost"
        add_floor(name, -FORGOTTEN, wanted, model=LAST, measure="visual_change", aspect=aspect)
    for stage in CONTROL_STAGES:
        for kind in REPLACED:
            for aspect in ASPECTS:
                name = f"{aspect} with {page.AUDIO_LABELS[kind]}, after {LABELS[stage]}"
                add_chance(name, LABELS[stage], CONTROL_TASKS[kind][aspect], CONTROLS_FAMILY, below=True)
    return found


def statement(arguments: Mapping[str, Any], nano: bool) -> str:
    """What the numbers must not be taken for."""
    given = arguments.get("backbone")
    words = NANO.format(backbone=f"a backbone that was given as --backbone {given}" if given else OWN_BACKBONE)
    return " ".join([TINY] * (arguments.get("scale") == "tiny") + [words] * nano)


def examples(evaluations: Mapping[str, Evaluation], items: BenchmarkItems, out: Path) -> list[page.Figure]:
    """Clips that can be played, with what each stage answered from audio alone."""
    answers = {
        (label, aspect): of.tasks[f"artemo_{aspect}_audio"].rows.drop_duplicates("clip_id").set_index("clip_id")
        for label, of in evaluations.items()
        for aspect in ASPECTS
    }
    rows = pd.DataFrame(items.rows.values(), dtype=object)
    rows = rows[rows.modality == "av"].drop_duplicates("clip_id")
    forms = rows.get("art_form", pd.Series("clip", rows.index)).fillna("clip")
    # Two of each art form, in the order in which the forms come.
    rows = rows.assign(form=forms, order=pd.factorize(forms)[0]).groupby("form").head(PER_ART_FORM)
    found = []
    for item in rows.sort_values("order", kind="stable").head(MOST).to_dict("records"):
        table = {}
        for aspect in ASPECTS:
            column = {}
            for label in evaluations:
                row = answers[label, aspect].loc[item["clip_id"]]
                column[label] = f"{'✓' if row.value else '✗'} {row.predicted or plots.NO_OPTION}"
            table[aspect] = {**column, "right": row.answer}
        frame = pd.DataFrame(table, dtype=object).rename_axis("")
        name, caption = f"example_{len(found) + 1}", item["form"].replace("_", " ")
        found.append(page.example(items, items.rows[item["id"]], name, caption, frame, out))
    return found


def score_parts(scores: pd.DataFrame, commands: str = "", questions: bool = True) -> page.Parts:
    """The parts that come from the table alone, so that means over seeds have them too."""
    columns = {
        "audio after stage 1, share of the visual ceiling": {"model": MIDDLE, "measure": "audio_share"},
        "audio-visual after stage 2 minus the better modality alone": {"model": LAST, "measure": "av_gain"},
        "visual after stage 2 minus backbone": {"model": LAST, "measure": "visual_change"},
    }
    stages = page.grid(scores[scores.aspect.isin(ASPECTS)], columns, "stages", by=("aspect",))
    return {**page.score_parts(scores, commands, questions), "stages": stages}


def write_demo(out: Path) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `report.html` into a demo's folder.

    Returns:
        What `report.json` holds: "scores" (the table, see `evaluation/scores.py`), "checks", "statement",
        "cost", "commands" and the run's metadata.

    Raises:
        InputError: naming the file that is missing or does not hold what it should; nothing is written then.
    """
    plots.require_matplotlib()
    about = read_json(out / RUN_FILE, "the arguments of a `vaemotionllm demo`")
    items = results.read_items(out / "world" / "benchmark")
    benchmark = read_json(items.folder / "benchmark.json", "the benchmark's description")
    evaluations = read_stages(out, items)
    scores = demo_scores(evaluations, out)
    folders = ("nano_backbone", "stage1", "stage2")
    logs = {label: read_log(out / folder / "metrics.jsonl") for label, folder in zip(LABELS.values(), folders)}
    markers = {name: marker_of(out, name) for name in about["commands"] if name != "report"}
    commands = {name: marker["command"] for name, marker in markers.items() if marker}
    arguments = about["arguments"]
    report = {
        "format": page.FORMAT, "kind": KIND, "seed": arguments["seed"],
        "arguments": {name: value for name, value in arguments.items() if name not in ("seed", "batch_size")},
        **{name: about[name] for name in ("versions", "machine", "arithmetic")},
        "benchmark": benchmark, "intervals": page.INTERVALS,
        "statement": statement(arguments, bool(benchmark.get("nano"))), "scores": rows_of(scores),
        "checks": checks(scores, evaluations), "commands": commands,
        "cost": {name: {key: marker[key] for key in ("wall_s", "peak_rss_mb")} for name, marker in markers.items()
                 if marker},
    }  # fmt: skip
    parts = score_parts(scores, "\n".join(commands[f"eval_{stage}"] for stage in STAGES))
    parts["examples"] = examples(evaluations, items, out)
    points = results.read_emotion(out / "eval" / STAGES[-1] / "emotion.json")["av"]
    predict = commands["emotion_stage2"]
    parts["figure_va"] = [page.va_figure("valence_arousal", LAST, "av", points, scores, "supervisor", predict)]
    parts["figure_confusion"] = []
    for stage, aspect, modality in (("stage2", "emotion", "av"), ("stage1", "content", "audio")):
        counts = plots.confusion(evaluations[LABELS[stage]].tasks[f"artemo_{aspect}_{modality}"].rows)
        words, name = f"{aspect}, {modality}, after {LABELS[stage]}", f"confusion_{aspect}_{modality}"
        drawn = plots.draw_confusion(counts, modality)
        parts["figure_confusion"].append(page.figure(name, drawn, words, commands[f"eval_{stage}"]))
    caption = "Every logged loss term of the backbone and of both stages, against the optimiser step."
    trainings = "\n".join(commands[stage] for stage in STAGES)
    parts["figure_curves"] = [page.figure("learning_curves", plots.draw_curves(logs), caption, trainings)]
    table = pd.DataFrame(report["checks"]).set_index("passed").rename(index={True: "✓ met", False: "✗ not met"})
    parts["checks"] = table.rename_axis("check")
    cost = pd.DataFrame(report["cost"], dtype=float).T
    cost.loc["sum"] = [cost.wall_s.sum(), cost.peak_rss_mb.max()]
    cost = cost.map("{:.1f}".format).assign(command=[*commands.values(), ""])
    parts["cost"] = cost.set_axis(["wall time, s", "peak memory, MB", "command"], axis=1).rename_axis("step")
    settings = {**report["versions"], **report["machine"], **report["arithmetic"]}
    parts["settings"] = page.settings_table({"value": settings}, "versions and machine")
    title = f"VAEmotionLLM, {benchmark.get('name', 'benchmark')}, seed {report['seed']}"
    words = {"title": title, "notes": [report["statement"]], "intervals": page.INTERVALS, "checks_note": CHECKS_NOTE}
    page.write(out, "report", report, parts, **words)
    return report


# ---- several seeds


def read_reports(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The `report.json` of each demo.

    Raises:
        InputError: one has none, two have one seed, or their arguments or the benchmarks' sizes differ.
    """
    reports, compared = [], {}
    for folder in folders:
        report = read_json(folder / "report.json", "the report of a finished demo")
        if report.get("kind") != KIND or report.get("format") != page.FORMAT:
            raise InputError(f"{folder / 'report.json'} is no report of a demo of this release; write it again with "
                             f"`vaemotionllm report {folder}`")  # fmt: skip
        questions = [row.get("n") for row in report["scores"] if row["measure"] == "accuracy"]
        compared[folder] = {**report["arguments"], "seed": report["seed"], "questions": questions}
        reports.append(report)
    refuse_unlike(compared)
    return reports


def seeds_report(folders: Sequence[Path], out: Path | None) -> str:
    """Means over the seeds of finished demos as Markdown, and with `out` as a report in that folder."""
    reports = read_reports(folders)
    scores, seeds = over_seeds([table_of(report["scores"]) for report in reports]), [of["seed"] for of in reports]
    parts = score_parts(scores[scores.group == ""], questions=False)  # a single emotion has too few clips in a seed
    words = {"title": f"Means over seeds {', '.join(map(str, seeds))}", "intervals": page.SEED_INTERVALS}
    if out is not None:
        report = {"format": page.FORMAT, "kind": "seeds", "seeds": seeds, "arguments": reports[0]["arguments"],
                  "intervals": page.SEED_INTERVALS, "scores": rows_of(scores)}  # fmt: skip
        page.write(out, "report", report, parts, **words)
    return page.rendered("md", {name: part for name, part in parts.items() if isinstance(part, pd.DataFrame)}, **words)
