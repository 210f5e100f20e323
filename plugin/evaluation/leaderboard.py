"""The report about models beside each other, from lmms-eval's results.

Models stand beside each other only where they were given the same items. Where these are of another revision of the
data, with other prompts or other decoding, the report says so above its first table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..utils import InputError
from . import plots
from . import report as page
from .plots import MODALITY_LABELS
from .results import (
    BenchmarkItems,
    Evaluation,
    command_of,
    find_items,
    metadata_of,
    read_evaluation,
    settings_of,
    task_settings,
)
from .scores import (
    CELL_TASKS,
    GAINS,
    KNOWN_TASKS,
    VA_TASKS,
    compare_task,
    refuse_missing_items,
    rows_of,
    scores_of,
    table_of,
)

# Where these settings differ, scores do not compare.
COMPARED = ("benchmark", "benchmark_version", "benchmark_sha256", "scoring", "system_instruction",
            "chat_template_sha256", "num_fewshot", "num_frames", "sampling_rate_hz", "max_audio_s",
            "use_adapter")  # fmt: skip
# A larger matrix cannot be read; `report.json` holds it.
MOST_LABELS = 20
KIND = "models"


def read_models(paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Evaluation]:
    """The evaluations by the names of their models.

    Args:
        paths: folders that `lmms-eval --output_path` was given, or `*_results.json` files in them.
        names: one a path; else what the results files call the models, as short as tells them apart.

    Raises:
        InputError: see `read_evaluation`; two names are equal, or their number is another; the models were given other
            items.
    """
    if names is not None and len(names) != len(paths):
        raise InputError(f"--names has {len(names)} names for {len(paths)} results; give one for each, in order.")
    evaluations = [read_evaluation(path) for path in paths]
    if names is None:
        names = [str(e.results.get("model_name") or e.model) for e in evaluations]
        short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
        names = short if len(set(short)) == len(short) else names
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"several results are of a model called {twice[0]!r}; name each by --names.")
    for number_, other in enumerate(evaluations):
        for first in evaluations[:number_]:
            for task in first.tasks.keys() & other.tasks.keys():
                refuse_missing_items(first, other, task)
    return dict(zip(names, evaluations, strict=True))


def models_scores(models: Mapping[str, Evaluation], items: BenchmarkItems | None) -> pd.DataFrame:
    """The scores of all models, and those of cells and stated valence and arousal minus the first model's
    (`accuracy_minus_first`, `ccc_minus_first`), paired by clip."""
    art_forms = {name: item.get("art_form") for name, item in items.rows.items()} if items else None
    first = next(iter(models.values()))
    rows = []
    for label, evaluation in models.items():
        rows += [{"model": label, **row} for row in scores_of(evaluation, art_forms)]
        for task in (*CELL_TASKS.values(), *VA_TASKS.values()):
            if evaluation is not first and task in first.tasks and task in evaluation.tasks:
                found = compare_task(first.tasks[task], evaluation.tasks[task])["difference"]
                aspect, modality = task.split("_")[1:]
                measure = "ccc_minus_first" if aspect == "va" else "accuracy_minus_first"
                key = {"model": label, "measure": measure, "aspect": "" if aspect == "va" else aspect}
                low, high = found["ci95"]
                rows.append({**key, "modality": modality, "value": found["value"], "low": low, "high": high})
    return table_of(rows)


def warnings_about(models: Mapping[str, Evaluation], about: Mapping[str, dict]) -> list[str]:
    """What a reader must know before the first score."""
    found = list(dict.fromkeys(n for e in models.values() if (n := metadata_of(e).get("notice"))))
    for name in COMPARED:
        stated = {label: of["settings"].get(name) for label, of in about.items()}
        if name == "scoring":
            stated = {label: value or "generate" for label, value in stated.items()}
        stated = {label: value for label, value in stated.items() if value is not None}
        if len(set(stated.values())) > 1:
            each = ", ".join(f"{label} {str(value)[: plots.LONGEST_NAME]}" for label, value in stated.items())
            found.append(f"The models differ in {name.replace('_', ' ')}, so their scores do not compare: {each}.")
    if unstated := [label for label, of in about.items() if not of["settings"]["benchmark_sha256"]]:
        found.append(f"The results of {', '.join(unstated)} do not state the revision of the data.")
    for name, words in (("prompt_sha256", "prompts"), ("generation", "decoding")):
        odd: dict[tuple[str, str], list[str]] = {}
        for task in dict.fromkeys(task for of in about.values() for task in of["tasks"]):
            of_task = {label: of["tasks"][task][name] for label, of in about.items() if task in of["tasks"]}
            first = next(iter(of_task))
            for label, value in of_task.items():
                if value != of_task[first]:
                    odd.setdefault((first, label), []).append(task)
        found += [f"{two} has other {words} than {one} in {', '.join(tasks)}." for (one, two), tasks in odd.items()]
    for label, evaluation in models.items():
        if missing := evaluation.missing:
            found.append(f'{missing} questions were not put to {label}, since their media could not be read: they are '
                         '"missing" and count as not right.')  # fmt: skip
        tasks = about[label]["tasks"]
        if cut := [task for task, of in tasks.items() if of["documents"] < of["documents_of_task"]]:
            of, more = tasks[cut[0]], f", and {len(cut) - 1} more tasks." if cut[1:] else "."
            found.append(f"{label} answered a part of the questions only (--limit): {of['documents']} of "
                         f"{of['documents_of_task']} in {cut[0]}{more}")  # fmt: skip
    return found


def write_models(models: Mapping[str, Evaluation], out: Path, benchmark: str | None = None) -> dict[str, Any]:
    """Write the report about models into a folder; see `write`.

    Args:
        models: label -> evaluation, see `read_models`.
        out: the folder, made if need be.
        benchmark: where the benchmark is, see `results.find_items`.

    Returns:
        What `report.json` holds: "scores" (the table, see `scores.py`), "models" (label -> settings, command and
        tasks), "warnings", "confusion", and "benchmark_missing", why examples and art forms are left out, or None.

    Raises:
        InputError: `benchmark` is another one, matplotlib is not installed, or the folder cannot be written.
    """
    plots.require_matplotlib()
    items, reason = find_items(list(models.values()), benchmark)
    scores = models_scores(models, items)
    about = {
        label: {
            "settings": settings_of(of), "command": command_of(of),
            "tasks": {task: task_settings(of, task) for task in of.tasks},
            "unknown_tasks": sorted(of.tasks.keys() - KNOWN_TASKS),
        }
        for label, of in models.items()
    }  # fmt: skip
    best = scores[scores.aspect == "all"].set_index("model").value
    order = sorted(models, key=lambda label: -best.get(label, -1))
    scores = pd.concat([scores[scores.model == label] for label in order], ignore_index=True)
    report = {
        "format": page.FORMAT, "kind": KIND, "intervals": page.INTERVALS, "warnings": warnings_about(models, about),
        "models": about, "scores": rows_of(scores), "benchmark_missing": None if items else reason,
        "confusion": {
            label: {cell: plots.confusion(put(of, task)).to_dict("split") for cell, task in CELL_TASKS.items()
                    if task in of.tasks} for label, of in models.items()
        },
    }  # fmt: skip
    settings = about[next(iter(models))]["settings"]
    name = f"{settings['benchmark'] or 'Benchmark'}, version {settings['benchmark_version'] or 'not stated'}"
    page.write(out, "report", name, models_blocks(name, report, scores, models, items, out), report)
    return report


def models_blocks(name: str, report: Mapping[str, Any], scores: pd.DataFrame, models: Mapping[str, Evaluation],
                  items: BenchmarkItems | None, out: Path) -> list[dict[str, Any]]:  # fmt: skip
    """The whole report; see `write_models`."""
    about, cells = report["models"], page.cells_of(scores)
    commands = "\n".join(of["command"] or f"# {label}: the command is not stated" for label, of in about.items())
    blocks = [page.heading(name, 1), *(page.text(warning, "note") for warning in report["warnings"])]
    accuracy: list[dict[str, Any]] = []
    if not cells.empty:
        columns = page.cell_keys()
        questions = ["questions", *page.reference(scores, "n", columns, "{:.0f}".format)]
        questions[1:1] = [""] * int((scores.aspect == "all").any())
        caption = "Accuracy from audio, from image or video, and from both, with 95% intervals. Dashed: chance."
        drawn = plots.draw_rows(cells, "aspect", "model", "modality")
        note = "An answer that names no option is wrong and unparsable. Models stand in the order of all six cells."
        accuracy = [
            page.accuracy_table(scores, [questions]),
            page.text(f"{note} {page.INTERVALS}", "small"),
            page.figures(plots.render("accuracy", drawn, caption, "Accuracy of each cell, as in the table", commands)),
        ]
        for measure, words in (("macro_f1", "macro-F1"), ("uar", "mean recall (UAR)")):
            rows = page.grid(scores[scores.measure == measure], page.cell_keys(measure), "plain")
            accuracy.append(page.table([words, *page.CELL_LABELS.values()], rows))
    controls = [*page.controls_section(scores, commands), *page.conflict_section(scores)]
    sections = {
        "Accuracy": accuracy,
        "Differences": differences_section(scores, next(iter(models))),
        "Gains of audio and visual input together": page.gains_section(scores),
        "Controls: does it use the audio?": controls,
        "Under every rotation of the options": page.circular_section(scores),
        "By art form": page.breakdown_section(scores, "art_form"),
        "By emotion (recall)": page.breakdown_section(scores, "emotion"),
        "Valence and arousal as stated": [*page.stated_section(scores), *stated_figures(models, scores)],
        "Mistakes": mistakes_section(models, items, out),
    }
    for title, section in sections.items():
        blocks += [page.heading(title), *(section or [page.text("Not run.")])]
    if items is None:
        words = f"The benchmark is not at hand, so art forms and examples are left out: {report['benchmark_missing']}."
        blocks.append(page.text(f"{words} Name its folder by --benchmark.", "note"))
    return [*blocks, *settings_section(about, commands)]


def differences_section(scores: pd.DataFrame, first: str) -> list[dict[str, Any]]:
    of = scores[scores.measure.isin(["accuracy_minus_first", "ccc_minus_first"])]
    stated = [{"measure": "ccc_minus_first", "modality": modality} for modality in MODALITY_LABELS]
    accuracies = page.grid(of, page.cell_keys("accuracy_minus_first"), "points")
    rows = [[*one, *two[1:]] for one, two in zip(accuracies, page.grid(of, stated, "signed"))]
    head = ["", *page.CELL_LABELS.values(), *(f"CCC, {label}" for label in MODALITY_LABELS.values())]
    kept = [i for i in range(len(head)) if any(row[i] != page.NOT_RUN for row in rows)]
    words = f"Each model minus {first} on the same questions: accuracy in points, CCC as it is."
    table = page.table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return [page.text(words, "small"), table] if rows else []


def stated_figures(models: Mapping[str, Evaluation], scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The valence-arousal space of each model, of the richest modality that was run with two answers."""
    found = []
    for number, (label, evaluation) in enumerate(models.items(), 1):
        tasks = evaluation.tasks
        run = [m for m, task in VA_TASKS.items() if task in tasks and len(tasks[task].points) > 1]
        for modality in run[-1:]:
            task, points = f"artemo_emotion_{modality}", tasks[VA_TASKS[modality]].points
            answers = evaluation.answers(task) if task in tasks else None
            name = f"valence_arousal_{number}"
            found.append(page.va_figure(name, label, modality, points, answers, scores, "stated"))
    return [page.figures(figure) for figure in found]


def mistakes_section(models: Mapping[str, Evaluation], items: BenchmarkItems | None, out: Path):
    """Confusion matrices and wrong answers of each model."""
    blocks: list[dict[str, Any]] = []
    for number, (label, evaluation) in enumerate(models.items(), 1):
        drawn = []
        for cell, task in CELL_TASKS.items():
            if task in evaluation.tasks:
                answers, words = put(evaluation, task), f"{label}: {page.CELL_LABELS[cell]}"
                counts, name = plots.confusion(answers), f"confusion_{number}_{cell}"
                if 0 < len(counts) <= MOST_LABELS:
                    figure = plots.draw_confusion(counts, cell.split("_")[1])
                    alt = f"{words}, {plots.most_frequent_mistake(answers)}"
                    drawn.append(plots.render(name, figure, words, alt))
        examples, lacking = page.wrong_answers(evaluation, items, f"wrong_{number}", out) if items else ([], [])
        blocks += [page.heading(label, 3), *([page.figures(*drawn)] if drawn else [page.text("Not run.")])]
        blocks += [page.cards(examples)] if examples else []
        if lacking:
            words = f"{len(lacking)} examples are left out, since their media cannot be read: {lacking[0]}"
            blocks.append(page.text(words, "note"))
    words = (
        "Rows are right answers, columns chosen options; the shade is the share of the row, and a label can be chosen "
        f"only where the question offers it. Matrices of more than {MOST_LABELS} labels are in report.json alone. "
        "Examples: of each cell the first wrong answer in the benchmark's order about a clip that is not shown yet."
    )
    return [*blocks, page.text(words, "small")]


def put(evaluation: Evaluation, task: str) -> pd.DataFrame:
    """The answers to a multiple-choice task, without the questions whose media could not be read."""
    answers = evaluation.answers(task)
    return answers[answers.missing == 0]


def settings_section(about: Mapping[str, dict], commands: str) -> list[dict[str, Any]]:
    """What is needed to evaluate the same again."""
    labels = list(about)

    def cell(value: Any) -> str:
        return "not stated" if value in (None, "", {}) else str(value)

    names = dict.fromkeys(name for of in about.values() for name in of["settings"])
    rows = [[name.replace("_", " "), *(cell(of["settings"].get(name)) for of in about.values())] for name in names]
    tasks = []
    for task in dict.fromkeys(task for of in about.values() for task in of["tasks"]):
        found = [of["tasks"].get(task) for of in about.values()]
        tasks.append([task, *(
            f"{of['prompt_sha256'][:16]}\n{of['documents']} documents\n"
            + cell(", ".join(f"{k} {v!r}" for k, v in (of["generation"] or {}).items())) if of else "not run"
            for of in found
        )])  # fmt: skip
    left = range(1, 1 + len(labels))
    unknown = dict.fromkeys(task for of in about.values() for task in of["unknown_tasks"])
    return [
        page.heading("To evaluate the same again"), page.table(["", *labels], rows, left=left),
        page.table(["task: prompts, documents, decoding", *labels], tasks, left=left),
        page.text('"Not stated" is what the results file does not hold. The hash of the benchmark is the SHA-256 of '
                  "its items; that of prompts is over each item's id, prompts and targets.", "small"),
        *([page.text(f"Tasks that this report does not know: {', '.join(unknown)}.", "note")] if unknown else []),
        page.code(commands),
    ]  # fmt: skip


def comparison_text(result: Mapping[str, Any]) -> str:
    """What `scores.compare` returned as lines for a terminal."""

    def cell(found: Mapping[str, Any], unit: str) -> str:
        low, high = found["ci95"]
        return page.shown(pd.Series({"value": found["value"], "low": low, "high": high}), unit).replace("\n", " ")

    lines = [f"{side.upper()}: {result[side]['path']} ({result[side]['model']})" for side in "ab"]
    lines += [f"{side.upper()} lacks {result[side]['missing']} answers: media could not be read."
              for side in "ab" if result[side]["missing"]]  # fmt: skip
    benchmark = result["benchmark"]
    lines += [
        f"Benchmark: {benchmark['name']}, version {benchmark['version']}. In brackets 95% intervals; those of the "
        "differences, B minus A, draw whole clips.",
        "",
    ]
    rows = [("task", "metric", "n", "A", "B", "B - A", "unparsable A, B")]
    for task, found in {**result["groups"], **result["tasks"]}.items():
        unparsable = ", ".join(f"{found[side]['unparsable']:.3f}" for side in "ab")
        unit, change = ("plain", "signed") if found["metric"] == "ccc" else ("percent", "points")
        scores = (cell(found["a"], unit), cell(found["b"], unit), cell(found["difference"], change))
        rows.append((task, found["metric"], str(found["n"]), *scores, unparsable))
    lines += page.plain_table(rows)
    if result["gains"]:
        rows = [("aspect", "gain", "A", "B", "B - A")]
        for aspect, of in result["gains"].items():
            for gain in GAINS:
                cells = [cell(of[side][gain], "points") for side in ("a", "b", "difference")]
                rows.append((aspect, gain.replace("_", " "), *cells))
        lines += [
            "",
            "Audio gain: av minus visual. Visual gain: av minus audio. Synergy: av minus the better of both.",
        ]
        lines += page.plain_table(rows)
    lines += [f"Only in {side.upper()}: {', '.join(result[f'only_in_{side}'])}" for side in "ab"
              if result[f"only_in_{side}"]]  # fmt: skip
    return "\n".join(lines)
