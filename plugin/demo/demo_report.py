"""The report of a demo: what each stage gives, checks, costs; and means over demos of several seeds."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark.intervals import accuracy_interval, paired
from ..benchmark.schema import ASPECTS
from ..evaluation import plots
from ..evaluation import report as page
from ..evaluation.plots import MODALITY_LABELS
from ..evaluation.results import (
    DIMENSIONS,
    BenchmarkItems,
    Evaluation,
    other_than,
    read_emotion,
    read_evaluation,
    read_items,
)
from ..evaluation.scores import (
    CELL_TASKS,
    CONTROL_TASKS,
    over_seeds,
    pick,
    rows_of,
    score_row,
    scores_of,
    supervisor_scores,
    table_of,
)
from ..model.inputs import MODALITIES
from ..utils import InputError, read_json, read_json_lines
from .demo import CONTROL_STAGES, STAGES
from .steps import RUN_FILE, marker_of

KIND = "demo"
LABELS = {"backbone": "backbone", "stage1": "stage 1", "stage2": "stage 2"}
FIRST, MIDDLE, LAST = LABELS.values()
TINY = "Made with --scale tiny: these numbers mean nothing."
NANO = (
    "These numbers come from the nano set: procedural clips {backbone}, to show that the whole way works. They are "
    "not a public leaderboard result and say nothing about how well a full-size model understands art."
)
OWN_BACKBONE = "and a backbone of one to two million parameters, made by this package"
# What the project wants of a nano run. The thresholds are ours, not the paper's.
CEILING_SHARE, CCC_FLOOR, AUROC_FLOOR, FORGOTTEN = 0.85, 0.80, 0.85, 0.01
REPLACED = ("silence", "noise", "mismatch")
REPLACED_LABELS = dict(zip(REPLACED, ("silence", "noise", "mismatched audio")))
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
    found = {label: read_evaluation(out / "eval" / stage / "lmms_eval") for stage, label in LABELS.items()}
    for label, evaluation in found.items():
        tasks = [*CELL_TASKS.values()]
        if label != FIRST:
            tasks += [task for kind in REPLACED for task in CONTROL_TASKS[kind].values()]
        if lacking := [task for task in tasks if task not in evaluation.tasks]:
            raise InputError(f"{evaluation.path} has no task {lacking[0]}; run lmms-eval with --tasks {lacking[0]}")
        counts = evaluation.results["n-samples"]
        if cut := [task for task in tasks if counts[task]["effective"] < counts[task].get("original", 0)]:
            of = counts[cut[0]]
            raise InputError(
                f"{evaluation.path} answers {of['effective']} of {of['original']} questions of {cut[0]}; run "
                "lmms-eval without --limit"
            )
    if reason := other_than(items, list(found.values())):
        raise InputError(f"{items.folder} is not the benchmark that was evaluated: {reason}; evaluate again")
    return found


def read_log(path: Path) -> pd.DataFrame:
    """The rows of a `metrics.jsonl` by step; of a step that a resumed training wrote twice the later values count."""
    if not path.is_file():
        raise InputError(f"{path} is missing: a training log")
    rows = pd.DataFrame([row for _, row in read_json_lines(path, "row")])
    if rows.empty:
        raise InputError(f"{path} holds no row; train again")
    return rows.groupby("step", as_index=False).last()


def demo_scores(evaluations: Mapping[str, Evaluation], out: Path) -> pd.DataFrame:
    """The table of scores of all stages, with what compares them, paired by clip: audio as a share of the visual
    ceiling (`audio_share`), the loss of visual accuracy (`visual_change`), and audio-visual accuracy above that of the
    better modality alone (`av_gain`), which is chosen once, on all clips: the interval does not cover that choice."""
    rows: list[dict[str, Any]] = []
    for stage, label in LABELS.items():
        scores, emotion = scores_of(evaluations[label]), out / "eval" / stage / "emotion.json"
        if label == LAST or emotion.is_file():  # the Supervisor is trained in stage 2
            scores += supervisor_scores(emotion)
        rows += [{"model": label, **row} for row in scores]

    def cell(label: str, aspect: str, modality: str):
        return evaluations[label].tasks[f"artemo_{aspect}_{modality}"].cell

    def mean(cell_) -> float:
        return float(np.mean(cell_[1]))

    for aspect in ASPECTS:
        audio, ceiling = cell(MIDDLE, aspect, "audio"), cell(FIRST, aspect, "visual")
        share = {"model": MIDDLE, "aspect": aspect, "measure": "audio_share"}
        if mean(ceiling):
            found = {"value": mean(audio) / mean(ceiling), "ci95": paired(audio, ceiling, np.divide)}
            share |= score_row("audio_share", found)
        kept = cell(LAST, aspect, "visual")
        cells = {modality: cell(LAST, aspect, modality) for modality in MODALITIES}
        better = max(("audio", "visual"), key=lambda modality: mean(cells[modality]))
        rows.append(share)
        for measure, one, other, note in (
            ("visual_change", kept, ceiling, None), ("av_gain", cells["av"], cells[better], better),
        ):  # fmt: skip
            found = {"value": mean(one) - mean(other), "ci95": paired(one, other, np.subtract)}
            rows.append({"model": LAST, "aspect": aspect, "note": note, **score_row(measure, found)})
    return table_of(rows)


def checks(scores: pd.DataFrame, evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """What the project wants of a nano run, each with what was measured; see `CHECKS_NOTE`."""
    found: list[dict[str, Any]] = []

    def add(name: str, passed: bool, measured: str, wanted: str) -> None:
        found.append({"name": name, "passed": bool(passed), "measured": measured.replace("\n", " "), "wanted": wanted})

    def add_chance(name: str, label: str, task: str, family: int, below: bool) -> None:
        answers = evaluations[label].answers(task)
        low, high = accuracy_interval(answers.clip_id.tolist(), answers.value.tolist(), 1 - 0.05 / family)[1]
        chance = float(np.mean([1 / len(options) for options in answers.options]))
        words = f"{'back to ' if below else ''}chance, {page.number(chance)}"
        add(name, low <= chance and (below or chance <= high),
            f"{page.number(answers.value.mean())} {page.interval(low, high)}", words)  # fmt: skip

    for aspect in ASPECTS:
        add_chance(f"{aspect} from audio before stage 1", FIRST, f"artemo_{aspect}_audio", BEFORE_FAMILY, below=False)
    for aspect in ASPECTS:
        row = pick(scores, model=MIDDLE, measure="audio_share", aspect=aspect)
        add(f"{aspect} from audio after stage 1, share of the visual ceiling", row["value"] >= CEILING_SHARE,
            page.shown(row), f"at least {page.number(CEILING_SHARE)}")  # fmt: skip
    row = pick(scores, model=LAST, measure="av_gain", aspect="emotion")
    add(f"emotion, audio-visual minus {row['note']} alone, after stage 2, points", row["value"] > 0,
        page.shown(row, "points"), "above 0")  # fmt: skip
    for name in DIMENSIONS:
        row = pick(scores, model=LAST, measure=f"{name}_ccc", modality="av", condition="supervisor")
        add(f"{name} CCC, audio-visual, after stage 2", row["value"] >= CCC_FLOOR, page.shown(row, "plain"),
            f"at least {CCC_FLOOR:.2f}")  # fmt: skip
    row = pick(scores, model=LAST, measure="auroc", condition="supervisor")
    add("conflict score of mismatched against own audio, AUROC, after stage 2", row["value"] >= AUROC_FLOOR,
        page.shown(row, "plain"), f"at least {AUROC_FLOOR:.2f}")  # fmt: skip
    for aspect in ASPECTS:
        row = pick(scores, model=LAST, measure="visual_change", aspect=aspect)
        add(f"{aspect}, visual, after stage 2 minus backbone, points", row["value"] >= -FORGOTTEN,
            page.shown(row, "points"), f"at most {100 * FORGOTTEN:.1f} lost")  # fmt: skip
    for stage in CONTROL_STAGES:
        for kind in REPLACED:
            for aspect in ASPECTS:
                add_chance(f"{aspect} with {REPLACED_LABELS[kind]}, after {LABELS[stage]}", LABELS[stage],
                           CONTROL_TASKS[kind][aspect], CONTROLS_FAMILY, below=True)  # fmt: skip
    return found


def headline(scores: pd.DataFrame) -> str:
    """Two or three sentences that say what came out, whatever it is."""

    def of(model: str, measure: str = "accuracy", **keys: str) -> pd.Series:
        row = pick(scores, model=model, measure=measure, **keys)
        assert row is not None
        return row

    audio = {
        label: " and ".join(page.number(of(label, aspect=aspect, modality="audio")["value"]) for aspect in ASPECTS)
        for label in (FIRST, MIDDLE)
    }
    shares = " and ".join(page.shown(of(MIDDLE, "audio_share", aspect=aspect)).split("\n")[0] for aspect in ASPECTS)
    gain = of(LAST, "av_gain", aspect="emotion")
    single, size = f"{gain['note']} alone", f"{100 * abs(gain['value']):.1f} points"
    against = f"not clearly different from {single} ({page.number(gain['value'], 'points')} points)"
    if gain["low"] > 0 or gain["high"] < 0:
        against = f"{size} {'above' if gain['value'] > 0 else 'below'} {single}"
    ccc = [page.shown(of(LAST, f"{n}_ccc", modality="av", condition="supervisor"), "plain") for n in DIMENSIONS]
    chance = of(FIRST, aspect="content", modality="audio")["chance"]
    return (
        f"From audio alone, after stage 1, the model names content and emotion at {audio[MIDDLE]}: {shares} of what "
        f"the backbone reaches from visual input. Before stage 1 it stood at {audio[FIRST]}, where chance is "
        f"{page.number(chance)}. After stage 2, audio-visual input gives emotion at "
        f"{page.number(of(LAST, aspect='emotion', modality='av')['value'])}, {against}, and valence and arousal agree "
        f"with the truth at a CCC of {' and '.join(words.split(chr(10))[0] for words in ccc)}."
    )


def statement(arguments: Mapping[str, Any], nano: bool) -> str:
    """What the numbers must not be taken for."""
    given = arguments.get("backbone")
    backbone = f"made by this package, with a backbone that was given as --backbone {given}" if given else OWN_BACKBONE
    parts = [TINY if arguments.get("scale") == "tiny" else "", NANO.format(backbone=backbone) if nano else ""]
    return " ".join(part for part in parts if part)


def examples(evaluations: Mapping[str, Evaluation], items: BenchmarkItems, out: Path) -> list[dict[str, Any]]:
    """Cards of clips with what each stage answered from audio alone."""
    answers = {
        (label, aspect): evaluation.answers(f"artemo_{aspect}_audio").drop_duplicates("clip_id").set_index("clip_id")
        for label, evaluation in evaluations.items()
        for aspect in ASPECTS
    }
    taken: dict[str, list[dict]] = {}
    for item in items.rows.values():
        of = taken.setdefault(item.get("art_form") or "clip", [])
        if item["modality"] == "av" and len(of) < PER_ART_FORM and item["clip_id"] not in [i["clip_id"] for i in of]:
            of.append(item)
    found = []
    for item in [item for of in taken.values() for item in of][:MOST]:
        rows = []
        for label in evaluations:
            of = [answers[label, aspect].loc[item["clip_id"]] for aspect in ASPECTS]
            marks = ["no option" if pd.isna(row.predicted) else row.predicted for row in of]
            rows.append([label, *(f"{'✓' if row.value else '✗'} {mark}" for row, mark in zip(of, marks))])
        truth = [answers[FIRST, aspect].loc[item["clip_id"]].answer for aspect in ASPECTS]
        words = str(item.get("art_form") or item["clip_id"]).replace("_", " ")
        name = f"example_{len(found) + 1}"
        found.append(page.card_of(items, item, name, words, ["", *ASPECTS], [*rows, ["right", *truth]], out))
    return found


def stage_blocks(scores: pd.DataFrame, commands: Mapping[str, str], references=()) -> dict[str, list[dict[str, Any]]]:
    """The sections that come from the table alone, so that means over seeds have them too."""
    evals = "\n".join(commands[f"eval_{stage}"] for stage in STAGES) if commands else ""
    cells, x = page.cells_of(scores), {label: float(i) for i, label in enumerate(LABELS.values())}
    ceiling, chance = (
        {a: pick(cells, model=FIRST, measure="accuracy", aspect=a, modality=m)[column] for a in ASPECTS}
        for m, column in (("visual", "value"), ("audio", "chance"))
    )
    drawn = plots.draw_lines(cells, x, list(x), references={"chance": chance, "visual ceiling": ceiling})
    caption = (
        "Accuracy by stage. Whiskers are 95% intervals. Dashed: chance. Dotted: the visual ceiling, which is what the "
        "untouched backbone reaches from visual input."
    )
    alt = "; ".join(
        f"{a} from audio: " + ", ".join(
            f"{label} {page.number(pick(cells, model=label, measure='accuracy', aspect=a, modality='audio')['value'])}"
            for label in LABELS.values()
        ) for a in ASPECTS
    )  # fmt: skip
    last = scores[scores.model == LAST]
    names = ("label_accuracy", "ece", "valence_coverage", "arousal_coverage")
    level = scores.level.dropna().iloc[0] if scores.level.notna().any() else None
    of_level = "interval" if level is None else f"{100 * level:.0f}% interval"
    calibration = [
        [MODALITY_LABELS[m], *(
            "n/a" if (row := pick(last, measure=name, modality=m, condition="supervisor")) is None
            else f"{row['value']:.3f}" + "\n" * bool(ends := page.interval(row["low"], row["high"], "plain")) + ends
            if name == "ece" else page.shown(row) for name in names
        )] for m in MODALITIES
    ]  # fmt: skip
    auroc = pick(last, measure="auroc", condition="supervisor")
    conflict = (
        f"AUROC {page.shown(auroc, 'plain')}" if auroc["value"] == auroc["value"] else f"not measured: {auroc['note']}"
    )
    derived = [
        [
            f"{aspect}: {words}",
            page.shown(pick(scores, model=label, measure=measure, aspect=aspect), unit).replace("\n", " "),
        ]
        for measure, label, unit, words in (
            ("audio_share", MIDDLE, "percent", "from audio after stage 1, share of the visual ceiling"),
            ("av_gain", LAST, "points", "audio-visual after stage 2 minus the better modality alone, points"),
            ("visual_change", LAST, "points", "visual after stage 2 minus backbone, points"),
        )
        for aspect in ASPECTS
    ]
    own = scores[scores.aspect != "all"]
    visual = [page.number(ceiling[keys["aspect"]]) for keys in page.cell_keys()]
    return {
        "figure": [page.figures(plots.render("accuracy", drawn, caption, alt, evals))],
        "Accuracy": [
            page.accuracy_table(own, [["visual ceiling", *visual], *references]), page.table(["", "value"], derived)
        ],
        "Gains of audio and visual input together": page.gains_section(scores),
        "Controls: does it use the audio?": [*page.controls_section(scores, evals), *page.conflict_section(scores)],
        "Valence and arousal": [
            page.text("Concordance correlation (CCC) of the Supervisor's heads, which stage 2 trains."),
            *page.va_section(scores, "supervisor"),
        ],
        "Calibration": [
            page.text("After stage 2: accuracy of the Supervisor's label among all, its expected calibration error "
                      "(ECE, 15 bins), and how often the intervals hold the annotated value. Fitted on the validation "
                      "split."),
            page.table(["", "label", "ECE", *(f"{of_level} of {name}" for name in DIMENSIONS)], calibration),
            page.text("The conflict score, the disagreement of the audio and visual predictions, of clips with "
                 f"mismatched audio against clips with their own: {conflict.replace(chr(10), ' ')}."),
        ],
    }  # fmt: skip


def write_demo(out: Path) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `report.html` into a demo's folder.

    Returns:
        What `report.json` holds: "scores" (the table, see `evaluation/scores.py`), "checks", "headline", "statement",
        "cost", "commands" and the run's metadata.

    Raises:
        InputError: naming the file that is missing or does not hold what it should; nothing is written then.
    """
    plots.require_matplotlib()
    about = read_json(out / RUN_FILE, "the arguments of a `vaemotionllm demo`")
    items = read_items(out / "world" / "benchmark")
    benchmark = read_json(items.folder / "benchmark.json", "the benchmark's description")
    evaluations = read_stages(out, items)
    scores = demo_scores(evaluations, out)
    logs = {label: read_log(out / (stage if stage != "backbone" else "nano_backbone") / "metrics.jsonl")
            for stage, label in LABELS.items()}  # fmt: skip
    markers = {name: marker_of(out, name) for name in about["commands"] if name != "report"}
    commands = {name: marker["command"] for name, marker in markers.items() if marker}
    arguments = about["arguments"]
    report = {
        "format": page.FORMAT, "kind": KIND, "seed": arguments["seed"],
        "arguments": {name: value for name, value in arguments.items() if name not in ("seed", "batch_size")},
        "benchmark": benchmark, "versions": about["versions"], "machine": about["machine"],
        "arithmetic": about["arithmetic"], "intervals": page.INTERVALS, "headline": headline(scores),
        "statement": statement(arguments, bool(benchmark.get("nano"))), "scores": rows_of(scores),
        "checks": checks(scores, evaluations), "commands": commands,
        "cost": {name: {key: marker[key] for key in ("wall_s", "peak_rss_mb")} for name, marker in markers.items()
                 if marker},
    }  # fmt: skip
    points = read_emotion(out / "eval" / STAGES[-1] / "emotion.json")["av"]
    answers = {name: evaluations[label].answers(task) for name, label, task in (
        ("emotion_av", LAST, "artemo_emotion_av"), ("content_audio", MIDDLE, "artemo_content_audio"))}  # fmt: skip
    drawn = page.va_figure("valence_arousal", LAST, "av", points, answers["emotion_av"], scores, "supervisor",
                      commands["emotion_stage2"])  # fmt: skip
    mistakes = [
        plots.render(f"confusion_{name}", plots.draw_confusion(plots.confusion(answers[name]), name.split("_")[1]),
                     f"{words}. Rows are right answers; numbers are clips, the shade is the share of the row. A label "
                     "can be chosen only where the question offers it.",
                     f"{words}, {plots.most_frequent_mistake(answers[name])}", commands[f"eval_{stage}"])
        for name, words, stage in (("emotion_av", "Emotion, audio-visual, after stage 2", "stage2"),
                                   ("content_audio", "Content, audio, after stage 1", "stage1"))
    ]  # fmt: skip
    curves = plots.render(
        "learning_curves", plots.draw_curves(logs),
        "The backbone's accuracies, and every logged loss term of both stages (orange: audio, blue: visual, green: "
        "audio-visual), against the optimiser step.",
        "; ".join(f"{label}: {len(log)} logged steps" for label, log in logs.items()),
        "\n".join(commands[stage] for stage in STAGES),
    )  # fmt: skip
    questions = ["questions", *page.reference(scores, "n", page.cell_keys(), "{:.0f}".format)]
    sections = stage_blocks(scores, commands, [questions])
    note = "What each stage answered from audio alone, for the first clips of each art form in the benchmark's order."
    sections["Accuracy"].append(page.text(page.INTERVALS, "small"))
    sections["Controls: does it use the audio?"][:0] = [page.text(note), page.cards(examples(evaluations, items, out))]
    sections["Valence and arousal"].insert(0, page.figures(drawn))
    name = f"VAEmotionLLM, {benchmark.get('name', 'benchmark')}, seed {report['seed']}"
    blocks = [page.heading(name, 1), page.text(report["headline"], "headline"), page.text(report["statement"], "note")]
    blocks += sections.pop("figure")
    sections |= {"Mistakes": [page.figures(*mistakes)], "Learning curves": [page.figures(curves)]}
    sections |= {
        "Checks": checks_blocks(report["checks"]),
        "Cost": cost_blocks(report),
        "Versions": [versions(report)],
    }
    for title, section in sections.items():
        blocks += [page.heading(title), *section]
    page.write(out, "report", name, [block for block in blocks if block.get("text") != ""], report)
    return report


def checks_blocks(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [["✓ met" if of["passed"] else "✗ not met", of["name"], of["measured"], of["wanted"]] for of in found]
    met = f"{sum(of['passed'] for of in found)} of {len(found)} met."
    return [
        page.text(met),
        page.table(["", "what", "measured", "wanted"], rows, left=[1]),
        page.text(CHECKS_NOTE, "small"),
    ]


def cost_blocks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        [name, f"{of['wall_s']:.1f} s", f"{of['peak_rss_mb']:.0f} MB",
         report["commands"][name]]
        for name, of in report["cost"].items()
    ]  # fmt: skip
    total = sum(of["wall_s"] for of in report["cost"].values())
    note = "Peak memory is that of the largest process of the command, and never below that of the demo's own process."
    head, last = ["step", "wall time", "peak memory", "command"], ["sum", f"{total:.1f} s", "", ""]
    return [page.table(head, rows, [last], left=[3]), page.text(note, "small")]


def versions(report: Mapping[str, Any]) -> dict[str, Any]:
    machine = report["machine"]
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in report["arithmetic"].items())
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    words = f"{packages}; {machine['cpus']} CPU cores, {machine['platform']}. The commands ran with {settings}"
    return page.text(words, "small")


# ---- several seeds


def read_reports(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The `report.json` of each demo.

    Raises:
        InputError: one has none, two have one seed, or their arguments or the benchmarks' sizes differ.
    """
    reports: list[dict] = []

    def alike(report: Mapping[str, Any]) -> dict[str, Any]:
        # Each seed may have its own backbone; that one was given counts.
        arguments = {**report["arguments"], "backbone": "given" if report["arguments"].get("backbone") else "nano"}
        counts = [
            row.get("n") for row in report["scores"] if row["measure"] == "accuracy" and not row.get("condition")
        ]
        return {**arguments, "questions": counts}

    for folder in folders:
        if not (folder / "report.json").is_file():
            raise InputError(f"{folder} holds no report.json; name the folders of finished demos")
        report = read_json(folder / "report.json", "the report of a demo")
        if report.get("kind") != KIND or report.get("format") != page.FORMAT:
            raise InputError(f"{folder / 'report.json'} is no report of a demo of this release; write it again with "
                             f"`vaemotionllm report {folder}`")  # fmt: skip
        for other, before in zip(reports, folders):
            if other["seed"] == report["seed"]:
                raise InputError(f"{before} and {folder} have the same seed, {report['seed']}; name each seed once")
            ours, theirs = alike(other), alike(report)
            if odd := [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]:
                words = "; ".join(f"{name} {ours.get(name)} and {theirs.get(name)}" for name in sorted(odd))
                raise InputError(f"{before} and {folder} differ ({words}); a mean needs the same arguments and sizes")
        reports.append(report)
    return reports


def seeds_report(reports: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Means over seeds: what `report.json` holds, and the sections of a demo's report that hold scores."""
    scores = over_seeds([table_of(report["scores"]) for report in reports])
    scores["note"] = scores["note"].astype(object).where(scores["value"].notna(), "a seed has none")
    seeds = [report["seed"] for report in reports]
    blocks = [page.heading(f"Means over seeds {', '.join(map(str, seeds))}", 1), page.text(page.SEED_INTERVALS)]
    for title, section in stage_blocks(scores, {}).items():
        blocks += [*([] if title == "figure" else [page.heading(title)]), *section]
    report = {"format": page.FORMAT, "kind": "seeds", "seeds": seeds, "arguments": reports[0]["arguments"]}
    return {**report, "intervals": page.SEED_INTERVALS, "scores": rows_of(scores)}, blocks
