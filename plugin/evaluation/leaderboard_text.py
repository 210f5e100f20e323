"""What the report about models says, block by block: leaderboard, breakdowns, controls, plane, mistakes, pins."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import leaderboard_plots, plots
from .benchmark_rows import BenchmarkRows
from .failures import failures_of
from .figures import Figure, make_figure, most_frequent_mistake
from .gains import GAINS
from .leaderboard_scores import CELL_TASKS, CONTROL_TASKS, FOLLOWS, VA_TASKS, outcomes_of, points_of
from .report_blocks import Block, Cell, Commands, Failures, Heading, Pictures, Table, Text
from .report_words import CONTROL_WORDS, PATH_WORDS, percent, span, two
from .results import ASPECTS, CELLS, PATHS
from .task_samples import Evaluation

NOT_RUN, NOT_STATED = "not run", "not stated"
# A larger matrix cannot be read; `report.json` holds it.
MOST_LABELS = 20
SOUND_WORDS = {"own": "the clip's own sound", **CONTROL_WORDS, "blind": "nothing at all"}
FOLLOW_WORDS = {
    "follows_sight": "follows sight", "follows_sound": "follows sound", "neither": "another option",
    "unparsable": "no option",
}  # fmt: skip
CELL_WORDS = {f"{aspect}_{path}": f"{aspect}, {PATH_WORDS[path]}" for aspect in ASPECTS for path in PATHS}
SHORT_WORDS = {f"{aspect}_{path}": f"{aspect}, {plots.PATH_LABELS[path]}" for aspect in ASPECTS for path in PATHS}

LEADERBOARD_NOTE = (
    'Accuracy. An answer that names no option is wrong, and its share stands as "no option" where there is one. '
    "Models are in the order of their accuracy over the six cells together, those that did not run all of them last."
)
GAINS_NOTE = (
    "Audio gain is sound and picture minus picture alone, visual gain minus sound alone, synergy minus the better of "
    "the two, in points of accuracy."
)
CONTROLS_NOTE = (
    "Accuracy with the clip's sound replaced, and of the questions alone. A model that uses only what it is given is "
    "at chance there; with another clip's sound it is at or below chance, since that clip's answer may be an option."
)
CONFLICT_NOTE = (
    "The picture of one clip with the sound of another of opposite emotion: shares of the answers that follow either. "
    "None of them is right."
)
CIRCULAR_NOTE = (
    "Right under every rotation of the options, and below it the accuracy of the single rotations. A model that "
    "prefers a letter loses here."
)
VA_NOTE = (
    "Two numbers that the answer states. CCC (concordance correlation), Pearson correlation and RMSE (root of the "
    "mean squared error) are pooled over the answers that state both; read them beside the share that does not."
)
CLASSES_NOTE = "Mean F1 and mean recall (UAR) of the classes that occur among the right answers."
CONFUSION_NOTE = (
    "Rows are right answers, columns chosen options, numbers questions; the shade is the share of the row. A label "
    "can be chosen only where the question offers it."
)
FAILURES_NOTE = "Of each cell the first wrong answer in the benchmark's order about a clip that is not shown yet."
PINS_NOTE = (
    '"Not stated" is what the results file does not hold. The hash of the items is the SHA-256 of the benchmark\'s '
    "test.jsonl; a prompt hash is over each item's id with what was asked and its target."
)


def title(report: dict) -> str:
    benchmark = report["benchmark"]
    return f"{benchmark['name'] or 'Benchmark'}, version {benchmark['version'] or NOT_STATED}"


def blocks_of(report: dict, models: Mapping[str, Evaluation], rows: BenchmarkRows | None) -> list[Block]:
    """The whole report; see the module's docstring."""
    entries = report["models"]
    several = len(entries) > 1
    return [
        Heading(title(report), 1),
        *(Text(notice, "note") for notice in report["notices"]),
        *leaderboard(entries, report["intervals"]),
        *(differences(entries) if several else []),
        *gains(entries),
        *controls(entries),
        *circular(entries),
        *breakdowns(report),
        *valence_arousal(entries, models),
        *mistakes(entries, models),
        *examples(report, models, rows),
        *reproduction(entries),
    ]


def ranked(entries: Mapping[str, dict]) -> list[str]:
    """Labels in the order of the leaderboard; equal ones stay as they were given."""
    return sorted(entries, key=lambda label: -(entries[label]["all"] or {"accuracy": -1})["accuracy"])


def score(cell: dict | None) -> Cell:
    """An accuracy with its interval and the share of answers without an option."""
    if cell is None:
        return NOT_RUN
    unclear = f"no option: {percent(cell['unparsable'])}" if cell["unparsable"] else ""
    return percent(cell["accuracy"]), span(cell["ci95"]), unclear


def leaderboard(entries: Mapping[str, dict], intervals: str) -> list[Block]:
    head = ["accuracy", "six cells", *SHORT_WORDS.values()]
    order = ranked(entries)
    rows = [
        [label, score(entries[label]["all"]), *(score(entries[label]["cells"].get(c)) for c in CELLS)]
        for label in order
    ]
    found: list[Block] = [Heading("Leaderboard")]
    if not any(entry["cells"] for entry in entries.values()):
        return [*found, Text("None of the six cells was run.")]
    reference: list[list[Cell]] = []
    for name, words in (("chance", percent), ("n", str)):
        lines = [(entry["all"], *(entry["cells"].get(cell) for cell in CELLS)) for entry in entries.values()]
        # All models were asked the same items, so the first that ran a cell stands for all.
        cells = [next((cell for cell in column if cell), None) for column in zip(*lines)]
        reference.append([{"n": "questions"}.get(name, name), *(words(cell[name]) if cell else "" for cell in cells)])
    figure = make_figure(
        "cells",
        "Accuracy by what the model was given",
        lambda c: leaderboard_plots.draw_cells({label: entries[label]["cells"] for label in order}, c),
        "Accuracy by sound, by picture and by both, with 95% intervals. Dashed: chance.",
        "; ".join(f"{label} {percent(entries[label]['all']['accuracy'])}" for label in order if entries[label]["all"])
        or "see the table",
        commands(entries),
    )
    classes = [
        [label, *((two(cell["macro_f1"]), f"UAR {two(cell['uar'])}") if cell else NOT_RUN for cell in of)]
        for label in order
        for of in [[entries[label]["cells"].get(cell) for cell in CELLS]]
    ]
    return [
        *found,
        Table(head, rows, reference),
        Text(LEADERBOARD_NOTE, "small"),
        Text(intervals, "small"),
        Pictures([figure]),
        Table(["macro-F1", *SHORT_WORDS.values()], classes),
        Text(CLASSES_NOTE, "small"),
    ]


def differences(entries: Mapping[str, dict]) -> list[Block]:
    first, *others = entries
    tasks = {**{CELL_TASKS[cell]: SHORT_WORDS[cell] for cell in CELLS},
             **{VA_TASKS[path]: f"CCC, {plots.PATH_LABELS[path]}" for path in PATHS}}  # fmt: skip
    shown = [task for task in tasks if any(task in entries[label]["minus_first"] for label in others)]
    if not shown:
        return []
    rows = []
    for label in others:
        cells: list[Cell] = [label]
        for task in shown:
            found = entries[label]["minus_first"].get(task)
            cells.append(difference(found, task in VA_TASKS.values()) if found else NOT_RUN)
        rows.append(cells)
    return [
        Heading(f"Differences from {first}"),
        Text(f"Each model minus {first} on the same questions: accuracy in points, CCC as it is.", "small"),
        Table(["", *(tasks[task] for task in shown)], rows),
    ]


def difference(found: dict, plain: bool = False) -> Cell:
    """A difference and its interval, of shares in points, or `plain` as it is."""
    if math.isnan(found["value"]):
        return "not defined"
    if plain:
        low, high = found["ci95"]
        return f"{found['value']:+.2f}", f"[{low:+.2f}, {high:+.2f}]"
    return f"{100 * found['value']:+.1f}", span(found["ci95"], signed=True)


def gains(entries: Mapping[str, dict]) -> list[Block]:
    if not any(entry["gains"] or entry["gains_undefined"] for entry in entries.values()):
        return [Heading("What the second sense adds"), Text("Not run: the three cells of one aspect are needed.")]
    rows = []
    for label, entry in entries.items():
        cells: list[Cell] = [label]
        for aspect in ASPECTS:
            for gain in GAINS:
                found = entry["gains"].get(aspect, {}).get(gain)
                empty = "not defined" if aspect in entry["gains_undefined"] else NOT_RUN
                cells.append(difference(found) if found else empty)
        rows.append(cells)
    reasons = dict.fromkeys(
        f"{label}, {aspect}: {reason}."
        for label, entry in entries.items()
        for aspect, reason in entry["gains_undefined"].items()
    )
    head = ["", *(f"{aspect}: {gain.replace('_', ' ')}" for aspect in ASPECTS for gain in GAINS)]
    return [
        Heading("What the second sense adds"),
        Table(head, rows),
        *(Text(reason, "small") for reason in reasons),
        Text(GAINS_NOTE, "small"),
    ]


def controls(entries: Mapping[str, dict]) -> list[Block]:
    found: list[Block] = [Heading("Controls: does it listen?")]
    sounds = {
        label: {"own": {a: entry["cells"][f"{a}_audio"] for a in ASPECTS if f"{a}_audio" in entry["cells"]},
                **entry["controls"]}
        for label, entry in entries.items()
    }  # fmt: skip
    if any(entry["controls"] for entry in entries.values()):
        for aspect in ASPECTS:
            rows = [[label, *(score(of.get(n, {}).get(aspect)) for n in SOUND_WORDS)] for label, of in sounds.items()]
            chances = [
                next((percent(of[n][aspect]["chance"]) for of in sounds.values() if aspect in of.get(n, {})), "")
                for n in SOUND_WORDS
            ]
            found.append(Table([f"{aspect} by", *SOUND_WORDS.values()], rows, [["chance", *chances]]))
        ways = [
            f"{label}: "
            + ", ".join(
                f"{aspect} with {SOUND_WORDS[name]} {percent(of[name][aspect]['accuracy'], 0)}"
                for name in CONTROL_TASKS if name in of for aspect in ASPECTS if aspect in of[name]
            )
            for label, of in sounds.items()
        ]  # fmt: skip
        found.append(Text(CONTROLS_NOTE, "small"))
        found.append(
            Pictures(
                [
                    make_figure(
                        "controls",
                        "Controls",
                        lambda c: leaderboard_plots.draw_controls(sounds, c),
                        "Accuracy by sound alone and with the sound replaced or left out. Dashed: chance.",
                        "; ".join(ways),
                        commands(entries),
                    )
                ]
            )
        )
    else:
        found.append(Text("Silence, noise, another clip's sound, blind: not run."))
    found.append(Heading("Sight against sound", 3))
    if any(entry["conflict"] for entry in entries.values()):
        rows = []
        for label, entry in entries.items():
            of = entry["conflict"]
            cells = [(percent(of[name]["value"]), span(of[name]["ci95"])) if of else NOT_RUN for name in FOLLOWS]
            rows.append([label, *cells, str(of["n"]) if of else ""])
        found += [Table(["", *FOLLOW_WORDS.values(), "questions"], rows), Text(CONFLICT_NOTE, "small")]
    else:
        found.append(Text("Not run."))
    return found


def circular(entries: Mapping[str, dict]) -> list[Block]:
    found: list[Block] = [Heading("Under every rotation of the options")]
    shown = [cell for cell in CELLS if any(cell in entry["circular"] for entry in entries.values())]
    if not shown:
        return [*found, Text("Not run.")]
    rows = []
    for label, entry in entries.items():
        cells: list[Cell] = [label]
        for cell in shown:
            of = entry["circular"].get(cell)
            main, interval, unclear = score(of) if of else (NOT_RUN, "", "")
            cells.append((main, interval, f"single: {percent(of['single'])}", unclear) if of else NOT_RUN)
        rows.append(cells)
    first = [next(e["circular"][cell] for e in entries.values() if cell in e["circular"]) for cell in shown]
    references: list[list[Cell]] = [
        ["chance", *(percent(of["chance"]) for of in first)], ["questions", *(str(of["n"]) for of in first)]
    ]  # fmt: skip
    return [
        *found,
        Table(["circular accuracy", *(SHORT_WORDS[cell] for cell in shown)], rows, references),
        Text(CIRCULAR_NOTE, "small"),
    ]


def breakdowns(report: dict) -> list[Block]:
    entries = report["models"]
    found: list[Block] = [Heading("By art form")]
    if report["benchmark_missing"] is not None:
        found.append(Text(f"Left out, since the benchmark's items are not at hand: {report['benchmark_missing']}."))
        found.append(Text("Name its folder by --benchmark.", "small"))
    else:
        found += breakdown(entries, "by_art_form", "art form", SHORT_WORDS)
    found.append(Heading("By emotion"))
    found += breakdown(entries, "by_emotion", "right answer", PATH_WORDS)
    found.append(Text("Share of the questions with this right answer that were answered right (recall).", "small"))
    return found


def breakdown(entries: Mapping[str, dict], name: str, head: str, columns: Mapping[str, str]) -> Iterable[Block]:
    """A table a model: a row a group, a column a cell or path."""
    if not any(entry[name] for entry in entries.values()):
        yield Text("Not run.")
        return
    for label, entry in entries.items():
        if len(entries) > 1:
            yield Heading(label, 3)
        if not entry[name]:
            yield Text("Not run.")
            continue
        shown = [column for column in columns if any(column in group for group in entry[name].values())]
        rows = [
            [group.replace("_", " "), *(counted(cells.get(column)) for column in shown)]
            for group, cells in entry[name].items()
        ]
        yield Table([head, *(columns[column] for column in shown)], rows)


def counted(cell: dict | None) -> Cell:
    """An accuracy with its interval and the number of questions, where some are in this group."""
    if cell is None:
        return "none"
    main, interval, unclear = score(cell)
    return main, f"{interval} of {cell['n']}", unclear


def valence_arousal(entries: Mapping[str, dict], models: Mapping[str, Evaluation]) -> list[Block]:
    found: list[Block] = [Heading("Valence and arousal")]
    if not any(entry["va"] for entry in entries.values()):
        return [*found, Text("Not run.")]
    rows: list[list[Cell]] = []
    for label, entry in entries.items():
        for path in PATHS:
            of = entry["va"].get(path)
            name = f"{label}, {PATH_WORDS[path]}"
            rows.append([name, *va_cells(of)] if of else [name, *[NOT_RUN] * 8])
    head = ["", "CCC", *(f"{m} {d}" for d in ("valence", "arousal") for m in ("CCC", "Pearson", "RMSE")), "unparsable"]
    found += [Table(head, rows), Text(VA_NOTE, "small")]
    for number, (label, evaluation) in enumerate(models.items(), 1):
        # With both senses where that was asked: the plane of each path would say little more.
        path = next((p for p in reversed(PATHS) if entries[label]["va"].get(p, {}).get("answered", 0) > 1), None)
        if path is not None:
            found += [
                *([Heading(label, 3)] if len(models) > 1 else []),
                Pictures([plane(number, label, path, evaluation, entries[label])]),
            ]
        elif entries[label]["va"]:
            found.append(Text(f"{label}: no plane, since fewer than two answers state both numbers."))
    return found


def va_cells(of: dict) -> list[Cell]:
    def number(name: str) -> Cell:
        if math.isnan(of[name]):
            return "not defined"
        interval = of.get(f"{name}_ci95")
        # The CCC of a dimension has its interval under the name of the dimension.
        if name.startswith("ccc_"):
            interval = of.get(f"{name.removeprefix('ccc_')}_ccc_ci95")
        shown = interval is not None and not any(math.isnan(end) for end in interval)
        return two(of[name]), f"[{two(interval[0])}, {two(interval[1])}]" if shown else ""

    names = [f"{metric}_{dimension}" for dimension in ("valence", "arousal") for metric in ("ccc", "pearson", "rmse")]
    return [number("ccc"), *map(number, names), (percent(of["unparsable"]), f"of {of['n']}")]


def plane(number: int, label: str, path: str, evaluation: Evaluation, entry: dict) -> Figure:
    of, task = entry["va"][path], f"artemo_emotion_{path}"
    outcomes = outcomes_of(evaluation, task) if task in evaluation.tasks else []
    scores: dict[str, Any] = {
        **{f"{name}_ccc": of[f"ccc_{name}"] for name in ("valence", "arousal")},
        **{f"{name}_ccc_ci95": of[f"{name}_ccc_ci95"] for name in ("valence", "arousal")},
    }
    return make_figure(
        f"plane_{number}",
        f"Valence and arousal, stated against true, {label}",
        lambda c: plots.draw_plane(points_of(evaluation.tasks[VA_TASKS[path]]), outcomes, scores, c),
        f"{label} by {PATH_WORDS[path]}, {of['answered']} of {of['n']} clips. Left: each line leads from the true "
        "point (ring) to the stated one (dot). Middle and right: stated against true; on the diagonal they agree.",
        f"valence CCC {two(scores['valence_ccc'])}, arousal CCC {two(scores['arousal_ccc'])}",
        entry["pins"]["command"] or "",
    )


def mistakes(entries: Mapping[str, dict], models: Mapping[str, Evaluation]) -> list[Block]:
    found: list[Block] = [Heading("What is taken for what"), Text(CONFUSION_NOTE, "small")]
    for number, (label, evaluation) in enumerate(models.items(), 1):
        figures, wide = [], []
        for cell in sorted(entries[label]["cells"], key=lambda cell: (cell.startswith("content"), CELLS.index(cell))):
            if len(entries[label]["confusion"][cell]["labels"]) > MOST_LABELS:
                wide.append(CELL_WORDS[cell])
            else:
                figures.append(confusion(number, label, cell, evaluation, entries[label]))
        if len(models) > 1:
            found.append(Heading(label, 3))
        if figures:
            found.append(Pictures(figures))
        if wide:
            found.append(Text(f"More than {MOST_LABELS} labels, so only in report.json: {'; '.join(wide)}.", "small"))
        if not figures and not wide:
            found.append(Text("Not run."))
    return found


def confusion(number: int, label: str, cell: str, evaluation: Evaluation, entry: dict) -> Figure:
    outcomes = outcomes_of(evaluation, CELL_TASKS[cell])
    return make_figure(
        f"confusion_{number}_{cell}",
        f"{CELL_WORDS[cell]}, {label}",
        lambda c: plots.draw_confusion(outcomes, cell.split("_")[1], c),
        f"{label}: {CELL_WORDS[cell]}.",
        most_frequent_mistake(outcomes),
        entry["pins"]["command"] or "",
    )


def examples(report: dict, models: Mapping[str, Evaluation], rows: BenchmarkRows | None) -> list[Block]:
    found: list[Block] = [Heading("Examples of wrong answers")]
    if rows is None:
        return [*found, Text(f"Left out, since the media are not at hand: {report['benchmark_missing']}.")]
    found.append(Text(FAILURES_NOTE, "small"))
    for number, (label, evaluation) in enumerate(models.items(), 1):
        if len(models) > 1:
            found.append(Heading(label, 3))
        failures, lacking = failures_of(evaluation, rows, f"wrong_{number}")
        if failures:
            found.append(Failures(failures))
        if lacking:
            found.append(
                Text(f"{len(lacking)} left out, since their media cannot be read; the first is {lacking[0]}.", "note")
            )
        if not failures and not lacking:
            right = any(task in evaluation.tasks for task in CELL_TASKS.values())
            found.append(Text("No wrong answer in the cells that were run." if right else "No cell was run."))
    return found


def reproduction(entries: Mapping[str, dict]) -> list[Block]:
    labels = list(entries)
    pins = [entry["pins"] for entry in entries.values()]

    def row(name: str, values: Sequence[object]) -> list[Cell]:
        return [name, *(NOT_STATED if value in (None, "", {}) else str(value) for value in values)]

    packages = dict.fromkeys(package for of in pins for package in of["versions"])
    rows = [
        row("model", [of["model_args"] for of in pins]),
        row("model revision", [of["model_revision"] for of in pins]),
        row("adapter", [of["adapter"] for of in pins]),
        *(row(package, [of["versions"].get(package) for of in pins]) for package in packages),
        *([] if packages else [row("versions", [None for _ in pins])]),
        row("benchmark", [of["benchmark"]["name"] for of in pins]),
        row("benchmark version", [of["benchmark"]["version"] for of in pins]),
        row("hash of the items", [(of["benchmark"]["sha256"] or "")[:16] for of in pins]),
        row("build key", [of["benchmark"]["build_key"] for of in pins]),
        *(
            row(words, [of[name] for of in pins])
            for name, words in (
                ("attention", "attention backend"), ("dtype", "dtype"), ("device", "device"),
                ("num_frames", "frames of a film, at most"), ("sampling_rate_hz", "sampling rate, Hz"),
                ("max_audio_s", "longest sound, s"), ("use_adapter", "use_adapter"), ("batch_size", "batch size"),
                ("system_instruction", "system instruction"), ("date", "date"),
            )
        ),
        row("seeds", [", ".join(f"{k.removesuffix('_seed')} {v}" for k, v in of["seeds"].items()) for of in pins]),
    ]  # fmt: skip
    tasks = dict.fromkeys(task for of in pins for task in of["tasks"])
    asked = []
    for task in tasks:
        line: list[Cell] = [task]
        for of in pins:
            found = of["tasks"].get(task)
            if found is None:
                line.append(NOT_RUN)
                continue
            decoding = ", ".join(f"{name} {value!r}" for name, value in (found["generation"] or {}).items())
            line.append((found["prompt_sha256"][:16], f"{found['documents']} documents", decoding or NOT_STATED))
        asked.append(line)
    left = range(1, 1 + len(labels))
    other = dict.fromkeys(task for entry in entries.values() for task in entry["other"])
    return [
        Heading("To evaluate the same again"),
        Table(["", *labels], rows, left=left),
        Table(["task: prompts, documents, decoding", *labels], asked, left=left),
        Text(PINS_NOTE, "small"),
        *([Text(f"Tasks that this report does not know: {', '.join(other)}.", "note")] if other else []),
        Commands(commands(entries)),
    ]


def commands(entries: Mapping[str, dict]) -> str:
    """The commands of all models, one a line."""
    return "\n".join(
        entry["pins"]["command"] or f"# {label}: the command is {NOT_STATED}" for label, entry in entries.items()
    )


def terminal_table(report: dict) -> str:
    """Accuracy in percent with intervals: a row a model and cell, for a terminal of 80 columns."""
    lines = []
    for label in ranked(report["models"]):
        entry = report["models"][label]
        lines.append(label)
        for name, cell in (("six cells", entry["all"]), *((cell, entry["cells"].get(cell)) for cell in CELLS)):
            main, *small = score(cell) if cell else (NOT_RUN,)
            lines.append("  " + "  ".join([f"{name.replace('_', ' '):<16}", f"{main:>7}", *filter(None, small)]))
    return "\n".join(lines)
