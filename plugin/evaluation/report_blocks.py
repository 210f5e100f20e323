"""A report as a list of blocks, written once as Markdown and once as HTML, so that both say the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import failures, report_html, report_markdown
from .failures import Failure
from .figures import Figure

# The text of a cell, or a figure with what stands smaller below it: its interval, a remark.
Cell = str | tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `small` is a remark, `note` what nobody should overlook."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """`left` are the columns, beside the first, that hold text and not figures; `references` are rows in grey."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    references: Sequence[Sequence[Cell]] = ()
    left: Sequence[int] = ()


@dataclass(frozen=True)
class Pictures:
    """Figures, side by side where there is room."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Failures:
    failures: list[Failure]


@dataclass(frozen=True)
class Commands:
    text: str


Block = Heading | Text | Table | Pictures | Failures | Commands


def to_markdown(blocks: Sequence[Block]) -> str:
    """The text of `report.md`; pictures are linked as `figures/NAME.png`."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {report_markdown.escaped(block.text)}"
        case Text():
            return {"note": "> {}", "small": "*{}*"}.get(block.kind, "{}").format(report_markdown.escaped(block.text))
        case Table():
            rows = [[_markdown_cell(cell) for cell in row] for row in (*block.rows, *block.references)]
            align = "".join("l" if i == 0 or i in block.left else "r" for i in range(len(block.head)))
            return report_markdown.table([report_markdown.escaped(name) for name in block.head], rows, align)
        case Pictures():
            return "\n\n".join(
                f"![{report_markdown.escaped(f.alt)}](figures/{f.name}.png)\n\n*{report_markdown.escaped(f.caption)}*"
                for f in block.figures
            )
        case Failures():
            return failures.markdown(block.failures)
        case Commands():
            return "\n".join(f"    {line}" for line in block.text.splitlines())


def _markdown_cell(cell: Cell) -> str:
    return report_markdown.escaped(cell if isinstance(cell, str) else " ".join(filter(None, cell)))


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The text of `report.html`, which needs no other file."""
    return report_html.page(title, [_html(block) for block in blocks])


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{report_html.escaped(block.text)}</h{block.level}>"
        case Text():
            return f"<p{f' class={block.kind}' if block.kind else ''}>{report_html.escaped(block.text)}</p>"
        case Table():
            head = [
                f'<th class="text">{report_html.escaped(h)}</th>' if i in block.left else report_html.escaped(h)
                for i, h in enumerate(block.head)
            ]
            rows = [("", row) for row in block.rows] + [("reference", row) for row in block.references]
            cells = [(kind, [_html_cell(c, i in block.left) for i, c in enumerate(row)]) for kind, row in rows]
            return f'<div class="compact">{report_html.table(head, cells)}</div>'
        case Pictures():
            shown = "".join(report_html.figure_html(f, "Command", len(block.figures) > 1) for f in block.figures)
            return f'<div class="pair">{shown}</div>' if len(block.figures) > 1 else shown
        case Failures():
            return failures.html(block.failures)
        case Commands():
            return f"<pre>{report_html.escaped(block.text)}</pre>"


def _html_cell(cell: Cell, left: bool) -> str:
    value, *small = (cell,) if isinstance(cell, str) else cell
    text = report_html.escaped(value) + "".join(
        f"<span class=ci>{report_html.escaped(part)}</span>" for part in small if part
    )
    return f'<td class="text">{text}</td>' if left else f"<td>{text}</td>"


def files_of(blocks: Sequence[Block]) -> dict[str, bytes]:
    """The files that the Markdown links, by their names in the folder of figures."""
    found: dict[str, bytes] = {}
    for block in blocks:
        if isinstance(block, Pictures):
            found |= {f"{figure.name}.png": figure.png for figure in block.figures}
        if isinstance(block, Failures):
            for failure in block.failures:
                found |= failures.files_of(failure)
    return found
