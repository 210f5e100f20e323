"""The report's figures: drawn once as SVG whose colours follow the page's theme, and once as PNG for Markdown.

matplotlib comes with the `demo` extra. In the SVG each colour of the palette is a code that is replaced by a CSS
variable, so that one picture is readable on a light and on a dark page.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..benchmark.schema import ASPECTS
from ..utils import InputError
from . import plots
from .report_words import controls_key
from .results import CONTROL_STAGES, CONTROLS, STAGES, Outcome, Run

# Names of the page's CSS variables and the light theme's colours, which the PNG files have.
LIGHT = {
    "ink": "#1b2027",
    "muted": "#5c6672",
    "grid": "#dce1e7",
    "paper": "#ffffff",
    "audio": "#b8480b",
    "visual": "#1f67ad",
    "av": "#0b7157",
    "other": "#7a4a9e",
}
# Codes that stand for the variables in the SVG until they are replaced.
CODES = {name: f"#0000{index:02x}" for index, name in enumerate(LIGHT, 1)}


@dataclass(frozen=True)
class Figure:
    """One figure: what it shows in a sentence, the commands that gave its data, SVG text and PNG bytes."""

    name: str
    title: str
    caption: str
    alt: str
    command: str
    svg: str
    png: bytes


def require_matplotlib() -> None:
    """Raises `InputError` if the report could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the report draws with matplotlib, which is not installed: `pip install vaemotionllm[demo]`"
        ) from error


def draw_all(run: Run, report: dict) -> list[Figure]:
    """The report's figures in the order in which they are shown.

    Raises:
        InputError: if matplotlib is not installed.
    """
    require_matplotlib()
    makers = (accuracy, controls, valence_arousal, confusion_emotion, confusion_content, learning_curves)
    return [make(run, report) for make in makers]


def accuracy(run: Run, report: dict) -> Figure:
    cells = {stage: report["stages"][stage]["cells"] for stage in STAGES}
    ways = [
        f"{aspect} by sound goes from {_pct(cells['backbone'][f'{aspect}_audio'])} to "
        f"{_pct(cells['stage1'][f'{aspect}_audio'])} after stage 1"
        for aspect in ASPECTS
    ]
    return make_figure(
        "accuracy",
        "Accuracy by stage",
        lambda c: plots.draw_accuracy(cells, c),
        "Accuracy by what the model was given. Whiskers are 95% intervals. Dashed: chance. Dotted: the visual "
        "ceiling, which is what the untouched backbone reaches by seeing.",
        "; ".join(ways),
        run.command(*(f"eval_{stage}" for stage in STAGES)),
    )


def controls(run: Run, report: dict) -> Figure:
    stages = {
        stage: {"own": report["stages"][stage]["cells"], **report[controls_key(stage)]} for stage in CONTROL_STAGES
    }
    ways = [
        f"{control} {plots.STAGE_LABELS[stage]}: "
        + ", ".join(f"{aspect} {_pct(found[control][f'{aspect}_audio'])}" for aspect in ASPECTS)
        for stage, found in stages.items()
        for control in CONTROLS
    ]
    return make_figure(
        "controls",
        "Does it listen?",
        lambda c: plots.draw_controls(stages, c),
        "Accuracy by sound alone after stage 1 (ring) and after stage 2 (dot), with the clip's own sound and with it "
        "replaced. Dashed: chance. The other clip is one with other answers, so a model that trusts its ears "
        "lands below chance there.",
        "; ".join(ways),
        run.command(*(f"eval_{stage}" for stage in CONTROL_STAGES)),
    )


def valence_arousal(run: Run, report: dict) -> Figure:
    scores = report["stages"]["stage2"]["va"]["av"]
    return make_figure(
        "valence_arousal",
        "Valence and arousal, predicted against true",
        lambda c: plots.draw_plane(run.va["stage2"]["av"], run.cells["stage2"]["emotion_av"], scores, c),
        f"Audio-visual path after stage 2, {scores['n']} held-out clips. Left: each line leads from the true point "
        "(ring) to the predicted one (dot). Middle and right: predicted against true; on the diagonal they agree.",
        f"valence CCC {scores['valence_ccc']:.2f}, arousal CCC {scores['arousal_ccc']:.2f}",
        run.command("emotion_stage2"),
    )


def confusion_emotion(run: Run, report: dict) -> Figure:
    outcomes = run.cells["stage2"]["emotion_av"]
    return make_figure(
        "confusion_emotion",
        "Which emotions are taken for which",
        lambda c: plots.draw_confusion(outcomes, "av", c),
        "Emotion by sound and picture, after stage 2. Numbers are clips, the shade is the share of the row. An "
        "emotion can be chosen only where the question offers it.",
        most_frequent_mistake(outcomes),
        run.command("eval_stage2"),
    )


def confusion_content(run: Run, report: dict) -> Figure:
    outcomes = run.cells["stage1"]["content_audio"]
    return make_figure(
        "confusion_content",
        "What is heard as what",
        lambda c: plots.draw_confusion(outcomes, "audio", c),
        "Content by sound alone, after stage 1. Numbers are clips, the shade is the share of the row.",
        most_frequent_mistake(outcomes),
        run.command("eval_stage1"),
    )


def learning_curves(run: Run, report: dict) -> Figure:
    return make_figure(
        "learning_curves",
        "Learning curves",
        lambda c: plots.draw_curves(run.curves, c),
        "The backbone's accuracies while it learns its language and then to see, and every logged loss term of both "
        "stages (orange: sound, blue: picture, green: both), against the optimiser step.",
        "; ".join(f"{stage}: {len(rows)} logged steps" for stage, rows in run.curves.items()),
        run.command(*STAGES),
    )


def make_figure(name: str, title: str, draw: Callable, caption: str, alt: str, command: str) -> Figure:
    """Draws once for each theme; `draw` takes a palette and returns a matplotlib figure. `name` is a file's name.

    Raises:
        InputError: if matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    # Names of models and options are no formulas, whatever dollar signs they hold.
    looks = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans", "text.parse_math": False}
    with matplotlib.rc_context(looks):
        text, image = io.StringIO(), io.BytesIO()
        draw(CODES).savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        draw(LIGHT).savefig(image, format="png", dpi=144, facecolor=LIGHT["paper"], metadata={"Software": None})
    return Figure(name, title, caption, f"{title}: {alt}.", command, themed(text.getvalue(), name), image.getvalue())


def themed(svg: str, name: str) -> str:
    """The `<svg>` element alone: colours as CSS variables, scaled to its container, ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for variable, code in CODES.items():
        svg = svg.replace(code, f"var(--{variable})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    svg = re.sub(r'\b(id|xlink:href|href)="(#?)', rf'\1="\2{name}-', svg).replace("url(#", f"url(#{name}-")
    # The size goes from the opening tag only; the view box keeps the proportions.
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(width|height|version|xmlns(:xlink)?)="[^"]*"', "", opening)
    return f'{opening} role="img">{rest}'.replace("xlink:href", "href").strip()


def _pct(cell: dict) -> str:
    return f"{100 * cell['accuracy']:.0f}%"


def most_frequent_mistake(outcomes: list[Outcome]) -> str:
    """The most frequent mistake in words."""
    labels, columns, counts = plots.confusion(outcomes)
    wrong = [(counts[i, j], i, j) for i in range(len(labels)) for j in range(len(columns)) if i != j]
    # Of equal ones the last in the alphabet.
    count, i, j = max(wrong, key=lambda of: (of[0], labels[of[1]], columns[of[2]]), default=(0, 0, 0))
    if not count:
        return "no mistake"
    mistake = (
        f"{labels[i]} taken for {columns[j]}" if j < len(labels) else f"no option chosen where {labels[i]} is right"
    )
    return f"the most frequent mistake is {mistake}, {count} time{'s' if count > 1 else ''}"
