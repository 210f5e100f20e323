"""`report.md`: the report as Markdown, with the figures as PNG files beside it."""

import re
import shlex
from collections.abc import Sequence

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from . import examples
from .examples import Example
from .figures import Figure
from .report_checks import CHECKS_NOTE
from .report_words import (
    CONTROL_WORDS,
    MODALITY_WORDS,
    conflict_words,
    controls_key,
    interval_words,
    percent,
    points,
    printable,
    scored,
    share_of,
    span,
    stage_word,
)
from .results import CONTROL_STAGES, CONTROLS, STAGES

CCC_NOTE = "Concordance correlation coefficient (CCC) of the Supervisor's heads. Before stage 2 they are untrained."
EXAMPLES_NOTE = (
    "What each stage answered from the sound alone, without the picture, for the first clips of each art form in the "
    "benchmark's order."
)
SURENESS_NOTE = (
    "After stage 2. Accuracy of the Supervisor's label, chosen among all; its expected calibration error (ECE, 15 "
    "bins) with the temperature, and how often the intervals hold the annotated value. Both were fitted on the "
    "validation split."
)
MEMORY_NOTE = (
    "Peak memory is that of the command and all processes it starts, summed; pages that they share count for each."
)


def render(report: dict, figures: Sequence[Figure], clips: list[Example]) -> str:
    """The whole text; figures are linked as `figures/<name>.png`."""
    parts = [
        "# What the model hears, sees and feels",
        f"**{report['headline']}**",
        *([f"> {report['statement']}"] if report["statement"] else []),
        f"Seed {report['seed']}. {report['intervals']}",
        "## Accuracy",
        cells_table(report),
        comparison(report),
        figure_block(figures, "accuracy", report["seed"]),
        "## Does it listen?",
        EXAMPLES_NOTE,
        examples.markdown(clips),
        "Accuracy by sound alone, with the clip's sound replaced.",
        controls_table(report),
        figure_block(figures, "controls", report["seed"]),
        "## Valence and arousal",
        CCC_NOTE,
        ccc_table(report),
        figure_block(figures, "valence_arousal", report["seed"]),
        "## How sure is it?",
        SURENESS_NOTE,
        sureness_table(report),
        conflict_words(report["sureness"]),
        "## Mistakes",
        figure_block(figures, "confusion_emotion", report["seed"]),
        figure_block(figures, "confusion_content", report["seed"]),
        "## Learning curves",
        figure_block(figures, "learning_curves", report["seed"]),
        "## What was asked of this run",
        checks_table(report),
        CHECKS_NOTE,
        "## Cost",
        cost_table(report),
        MEMORY_NOTE,
        "## Versions",
        versions_line(report),
    ]
    return "\n\n".join(parts) + "\n"


# Not the brackets of an interval: nothing of that form is a link.
_MARKUP = re.compile(r"[\\`*_<>|#~&$]|\[(?![+-]?\d)|\](?=[(\[:])")


def escaped(text: str) -> str:
    """One line in which Markdown finds no table, link, emphasis, formula or tag; models and files wrote it."""
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str | None = None) -> str:
    rule = [{"l": "---", "r": "---:"}[side] for side in (align or "l" + "r" * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def cells_table(report: dict) -> str:
    first = report["stages"]["backbone"]["cells"]
    names = [(aspect, path) for aspect in ASPECTS for path in MODALITIES]
    rows = []
    for stage in STAGES:
        cells = report["stages"][stage]["cells"]
        row = [stage_word(stage)]
        for aspect, path in names:
            cell = cells[f"{aspect}_{path}"]
            unclear = f" ({percent(cell['unparsable'])} no option)" if cell["unparsable"] else ""
            row.append(f"{percent(cell['accuracy'])} {span(cell['ci95'])}{unclear}")
        rows.append(row)
    rows.append(["chance", *(percent(first[f"{aspect}_{path}"]["chance"]) for aspect, path in names)])
    rows.append(["visual ceiling", *(percent(report["ceiling"][aspect]) for aspect, _ in names)])
    rows.append(["questions", *(str(first[f"{aspect}_{path}"]["n"]) for aspect, path in names)])
    return table(["", *(f"{aspect}, {MODALITY_WORDS[path]}" for aspect, path in names)], rows)


def comparison(report: dict) -> str:
    """Hearing against seeing, and both against the better one, as sentences."""
    shares = " and ".join(
        f"{percent(found['ratio'])} {span(found['ci95'])} in {aspect}"
        if found["ratio"] is not None
        else f"an undefined share in {aspect}"
        for aspect, found in report["hearing"].items()
    )
    gains = " and ".join(
        f"{points(gain['difference'], signed=True)} {span(gain['ci95'], signed=True)} in {aspect} "
        f"(against {MODALITY_WORDS[gain['better_single']]})"
        for aspect, gain in report["av_gain"].items()
    )
    return (
        f"After stage 1, hearing reaches {shares} of the visual ceiling. After stage 2, sound and picture together "
        f"differ from the better one alone by {gains}."
    )


def controls_table(report: dict) -> str:
    columns = [(stage, f"{aspect}_audio") for stage in CONTROL_STAGES for aspect in ASPECTS]
    own = [report["stages"][stage]["cells"][cell] for stage, cell in columns]
    rows = [["the clip's own", *map(_cell, own)]]
    rows += [
        [CONTROL_WORDS[name], *(_cell(report[controls_key(stage)][name][cell]) for stage, cell in columns)]
        for name in CONTROLS
    ]
    rows.append(["chance", *(percent(cell["chance"]) for cell in own)])
    return table(["sound", *(f"{a}, after {stage_word(s)}" for s in CONTROL_STAGES for a in ASPECTS)], rows)


def _cell(cell: dict) -> str:
    return f"{percent(cell['accuracy'])} {span(cell['ci95'])}"


def ccc_table(report: dict) -> str:
    rows = []
    for stage in STAGES:
        row = [stage_word(stage)]
        for name in ("valence", "arousal"):
            for path in MODALITIES:
                row.append(" ".join(scored(report["stages"][stage]["va"][path], name)))
        rows.append(row)
    return table(
        ["", *(f"{name}, {MODALITY_WORDS[path]}" for name in ("valence", "arousal") for path in MODALITIES)], rows
    )


def sureness_rows(report: dict) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Head and rows of the table of `sureness`; a cell is a figure and its interval."""
    sureness = report["sureness"]
    head = ["", "label", "ECE", *(f"{interval_words(sureness)} of {name}" for name in ("valence", "arousal"))]
    rows = []
    for path in MODALITIES:
        found = sureness[path]
        error = "n/a" if found["ece"] is None else f"{found['ece']:.3f}"
        coverage = [share_of(found, f"{name}_coverage") for name in ("valence", "arousal")]
        rows.append([(MODALITY_WORDS[path], ""), share_of(found, "accuracy"), (error, ""), *coverage])
    return head, rows


def sureness_table(report: dict) -> str:
    head, rows = sureness_rows(report)
    return table(head, [[" ".join(filter(None, cell)) for cell in row] for row in rows])


def checks_table(report: dict) -> str:
    rows = [["met" if c["passed"] else "**not met**", c["name"], c["measured"], c["asked"]] for c in report["checks"]]
    return table(["", "asked", "measured", "wanted"], rows, "llrr")


def cost_table(report: dict) -> str:
    rows = [
        [
            name + (" (from the cache)" if cost["from_cache"] else ""),
            f"{cost['wall_s']:.1f} s",
            f"{cost['peak_rss_mb']:.0f} MB",
            f"`{report['commands'][name]}`",
        ]
        for name, cost in report["cost"].items()
    ]
    total = sum(cost["wall_s"] for cost in report["cost"].values())
    rows.append(["sum", f"{total:.1f} s", "", ""])
    return table(["step", "wall time", "peak memory", "command"], rows, "lrrl")


def figure_block(figures: Sequence[Figure], name: str, seed: int) -> str:
    return figure_markdown(next(figure for figure in figures if figure.name == name), f"Seed {seed}, from:")


def figure_markdown(figure: Figure, summary: str) -> str:
    """A link to the figure's file, its caption, and its command under `summary`."""
    commands = "\n".join(f"    {line}" for line in figure.command.splitlines())
    return f"![{figure.alt}](figures/{figure.name}.png)\n\n*{figure.caption}* {summary}\n\n{commands}"


def versions_line(report: dict) -> str:
    machine = report["machine"]
    place = f"; {machine['cpus']} CPU cores, {machine['platform']}" if machine else ""
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in report["arithmetic"].items())
    ran = f". The commands ran with {settings}" if settings else ""
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + place + ran
