"""`report.html`: one file that needs no other, readable on a light and on a dark page, with no script."""

from collections.abc import Sequence
from html import escape

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from . import examples
from .examples import Example
from .figures import Figure
from .plots import MODALITY_LABELS, STAGE_LABELS
from .report_checks import CHECKS_NOTE
from .report_markdown import (
    CCC_NOTE,
    EXAMPLES_NOTE,
    MEMORY_NOTE,
    SURENESS_NOTE,
    comparison,
    sureness_rows,
    versions_line,
)
from .report_style import STYLE
from .report_words import CONTROL_WORDS, conflict_words, controls_key, percent, printable, scored, span, stage_word
from .results import CONTROL_STAGES, CONTROLS, STAGES


def render(report: dict, figures: Sequence[Figure], clips: list[Example]) -> str:
    """The whole page."""
    by_name = {figure.name: figure for figure in figures}

    def show(name: str, narrow: bool = False) -> str:
        return figure_html(by_name[name], f"Seed {report['seed']}, command", narrow)

    passed = sum(check["passed"] for check in report["checks"])
    body = [
        f"<h1>VAEmotionLLM, {escaped(str(report['benchmark'].get('name', 'benchmark')))}, seed {report['seed']}</h1>",
        f'<p class="headline">{escaped(report["headline"])}</p>',
        f'<p class="note">{escaped(report["statement"])}</p>' if report["statement"] else "",
        show("accuracy"),
        "<h2>Accuracy</h2>",
        cells_table(report),
        f"<p>{escaped(comparison(report))}</p>",
        f'<p class="small">{escaped(report["intervals"])}</p>',
        "<h2>Does it listen?</h2>",
        f"<p>{EXAMPLES_NOTE}</p>",
        examples.html(clips),
        show("controls"),
        controls_table(report),
        "<h2>Valence and arousal</h2>",
        show("valence_arousal"),
        f"<p>{CCC_NOTE}</p>",
        ccc_table(report),
        "<h2>How sure is it?</h2>",
        f"<p>{escaped(SURENESS_NOTE)}</p>",
        sureness_table(report),
        f"<p>{escaped(conflict_words(report['sureness']))}</p>",
        "<h2>Mistakes</h2>",
        f'<div class="pair">{show("confusion_emotion", True)}{show("confusion_content", True)}</div>',
        "<h2>Learning curves</h2>",
        show("learning_curves"),
        "<h2>What was asked of this run</h2>",
        f"<p>{passed} of {len(report['checks'])} met.</p>",
        checks_table(report),
        f'<p class="small">{CHECKS_NOTE}</p>',
        "<h2>Cost</h2>",
        cost_table(report),
        f'<p class="small">{MEMORY_NOTE}</p>',
        "<h2>Versions</h2>",
        f'<p class="small">{escaped(versions_line(report))}</p>',
    ]
    return page(f"VAEmotionLLM report, seed {report['seed']}", body)


def escaped(text: str) -> str:
    """Text that is no markup, whatever it holds."""
    return escape(printable(text))


def page(title: str, body: Sequence[str]) -> str:
    """The whole file; `body` holds ready HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def figure_html(figure: Figure, summary: str, narrow: bool) -> str:
    """A figure with its caption; its command unfolds under `summary`."""
    svg = figure.svg.replace('role="img"', f'role="img" aria-label="{escaped(figure.alt)}"', 1)
    return (
        f'<figure{" class=narrow" if narrow else ""} id="{figure.name}">{svg}'
        f"<figcaption>{escaped(figure.caption)}</figcaption>"
        f"<details><summary>{escaped(summary)}</summary><pre>{escaped(figure.command)}</pre></details></figure>"
    )


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], groups: Sequence[str] = ()) -> str:
    """A table of ready HTML cells.

    Args:
        header: one cell a column; one that starts with "<th" is taken as it is.
        rows: class of the row, its cells; a cell that starts with "<td" is taken as it is.
        groups: titles over equally many columns each, all but the first column.
    """
    head = _row(header, "th")
    if groups:
        width = (len(header) - 1) // len(groups)
        titles = "".join(f'<th class="group" colspan="{width}">{name}</th>' for name in groups)
        head = f"<tr><th></th>{titles}</tr>{head}"
    body = "".join(_row(cells, "td", kind) for kind, cells in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], tag: str, kind: str = "") -> str:
    ready = (cell if cell.startswith(f"<{tag}") else f"<{tag}>{cell}</{tag}>" for cell in cells)
    return f"<tr{f' class={kind}' if kind else ''}>{''.join(ready)}</tr>"


def _score(cell: dict) -> str:
    unclear = f"<span class=ci>no option: {percent(cell['unparsable'])}</span>" if cell["unparsable"] else ""
    return f"{percent(cell['accuracy'])}<span class=ci>{span(cell['ci95'])}</span>{unclear}"


def cells_table(report: dict) -> str:
    names = [(aspect, path) for aspect in ASPECTS for path in MODALITIES]
    first = report["stages"]["backbone"]["cells"]
    rows = [
        ("", [stage_word(stage), *(_score(report["stages"][stage]["cells"][f"{a}_{path}"]) for a, path in names)])
        for stage in STAGES
    ]
    rows += [
        ("reference", ["chance", *(percent(first[f"{aspect}_{path}"]["chance"]) for aspect, path in names)]),
        ("reference", ["visual ceiling", *(percent(report["ceiling"][aspect]) for aspect, _ in names)]),
        ("reference", ["questions", *(str(first[f"{aspect}_{path}"]["n"]) for aspect, path in names)]),
    ]
    return table(["accuracy", *(MODALITY_LABELS[path] for _, path in names)], rows, groups=ASPECTS)


def controls_table(report: dict) -> str:
    columns = [(stage, f"{aspect}_audio") for stage in CONTROL_STAGES for aspect in ASPECTS]
    own = [report["stages"][stage]["cells"][cell] for stage, cell in columns]
    rows = [("", ["the clip's own", *map(_score, own)])]
    for name in CONTROLS:
        cells = [_score(report[controls_key(stage)][name][cell]) for stage, cell in columns]
        rows.append(("", [escaped(CONTROL_WORDS[name]), *cells]))
    rows.append(("reference", ["chance", *(percent(cell["chance"]) for cell in own)]))
    groups = [STAGE_LABELS[stage] for stage in CONTROL_STAGES]
    return table(["sound", *ASPECTS * len(CONTROL_STAGES)], rows, groups=groups)


def ccc_table(report: dict) -> str:
    rows = []
    for stage in STAGES:
        cells = [stage_word(stage)]
        for name in ("valence", "arousal"):
            for path in MODALITIES:
                score, interval = scored(report["stages"][stage]["va"][path], name)
                cells.append(f"{score}<span class=ci>{interval}</span>")
        rows.append(("", cells))
    return table(["CCC", *(MODALITY_LABELS[path] for path in MODALITIES * 2)], rows, groups=("valence", "arousal"))


def sureness_table(report: dict) -> str:
    head, rows = sureness_rows(report)
    cells = [[f"{text}<span class=ci>{interval}</span>" if interval else text for text, interval in r] for r in rows]
    return table(head, [("", row) for row in cells])


def checks_table(report: dict) -> str:
    rows = [
        (
            "",
            [
                '<span class="met">✓ met</span>' if check["passed"] else '<span class="missed">✗ not met</span>',
                f'<td class="text">{escaped(check["name"])}</td>',
                escaped(check["measured"]),
                escaped(check["asked"]),
            ],
        )
        for check in report["checks"]
    ]
    return table(["", '<th class="text">what</th>', "measured", "asked"], rows)


def cost_table(report: dict) -> str:
    longest = max((cost["wall_s"] for cost in report["cost"].values()), default=0) or 1
    rows = []
    for name, cost in report["cost"].items():
        cached = ' <span class="small">from the cache</span>' if cost["from_cache"] else ""
        bar = f'<span class="bar" style="width:{100 * cost["wall_s"] / longest:.0f}%"></span>'
        cells = [
            escaped(name) + cached,
            f'<td class="share">{cost["wall_s"]:.1f} s{bar}</td>',
            f"{cost['peak_rss_mb']:.0f} MB",
            f'<td class="text"><code>{escaped(report["commands"][name])}</code></td>',
        ]
        rows.append(("", cells))
    total = sum(cost["wall_s"] for cost in report["cost"].values())
    rows.append(("reference", ["sum", f"{total:.1f} s", "", "<td></td>"]))
    return table(["step", "wall time", "peak memory", '<th class="text">command</th>'], rows)
