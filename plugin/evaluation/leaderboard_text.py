"""What the report about models says, block by block, and its tables of scores."""

from collections.abc import Iterable, Mapping

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from . import leaderboard_plots
from .benchmark_rows import BenchmarkRows
from .figures import make_figure
from .gains import GAINS
from .leaderboard_answers import examples, mistakes, valence_arousal
from .leaderboard_reproduction import reproduction
from .leaderboard_scores import CELL_TASKS, CONTROL_TASKS, FOLLOWS, VA_TASKS
from .leaderboard_words import (
    FOLLOW_WORDS,
    NOT_RUN,
    NOT_STATED,
    SHORT_WORDS,
    SOUND_WORDS,
    commands,
    counted,
    difference,
    score,
    score_parts,
)
from .plots import MODALITY_LABELS
from .report_blocks import Block, Cell, Heading, Pictures, Table, Text
from .report_words import MODALITY_WORDS, percent, small_share, span, two
from .results import CELLS
from .task_samples import Evaluation

LEADERBOARD_NOTE = (
    'Accuracy. An answer that names no option is wrong, and its share stands as "no option" where there is one. '
    "Models are in the order of their accuracy over the six cells together, those that did not run all of them last."
)
CLASSES_NOTE = "Mean F1 and mean recall (UAR) of the classes that occur among the right answers."
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
    "prefers a letter loses here. The same one of n options each time, whatever its letter, is right in 1/n of the "
    "questions; a letter drawn anew each time in 1/n^n."
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
             **{VA_TASKS[path]: f"CCC, {MODALITY_LABELS[path]}" for path in MODALITIES}}  # fmt: skip
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
        f"{label}, {aspect}: {reason.rstrip('.')}."
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
            cells = [(small_share(of[name]["value"]), span(of[name]["ci95"])) if of else NOT_RUN for name in FOLLOWS]
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
            cells.append((*score_parts(of), f"single: {percent(of['single'])}") if of else NOT_RUN)
        rows.append(cells)
    first = [next(e["circular"][cell] for e in entries.values() if cell in e["circular"]) for cell in shown]
    references: list[list[Cell]] = [
        ["the same option each time", *(percent(of["chance"]) for of in first)],
        ["questions", *(str(of["n"]) for of in first)]
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
    found += breakdown(entries, "by_emotion", "right answer", MODALITY_WORDS)
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


def terminal_table(report: dict) -> str:
    """Accuracy in percent with intervals: a row a model and cell, for a terminal of 80 columns."""
    lines = []
    for label in ranked(report["models"]):
        entry = report["models"][label]
        lines.append(label)
        for name, cell in (("six cells", entry["all"]), *((cell, entry["cells"].get(cell)) for cell in CELLS)):
            main, interval, unclear = score_parts(cell) if cell else (NOT_RUN, "", "")
            parts = [f"{name.replace('_', ' '):<16}", f"{main:>7}", interval, unclear]
            lines.append("  " + "  ".join(filter(None, parts)))
    return "\n".join(lines)
