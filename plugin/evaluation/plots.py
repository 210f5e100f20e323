"""Figures of the report and of `vaemotionllm predict`, drawn with matplotlib, which comes with the `demo` extra.

Every `draw_*` returns a matplotlib figure; `png_of` makes bytes of it.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..model.inputs import MODALITIES
from ..utils import InputError

INK, MUTED, GRID, PAPER = "#1b2027", "#5c6672", "#dce1e7", "#ffffff"
COLOURS = {"audio": "#b8480b", "visual": "#1f67ad", "av": "#0b7157"}
MARKERS = {"audio": "o", "visual": "s", "av": "D"}
MODALITY_LABELS = {"audio": "audio", "visual": "visual", "av": "audio-visual"}
# Of models, in their order: six colours, then the next shape.
MODEL_COLOURS = (*COLOURS.values(), "#7a4a9e", INK, MUTED)
MODEL_MARKERS = ("o", "s", "D", "^")
WIDTH_IN = 9.0
# Of a longer name a part is shown, where the whole would leave no room.
LONGEST_NAME = 40
# The column of the answers that name none of the labels.
NO_OPTION = "no option"
DASHED = (0, (4, 3))


def require_matplotlib() -> None:
    """Raise an `InputError` where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib draws the figures and is not installed: `pip install vaemotionllm[demo]`")


def png_of(drawn: Any) -> bytes:
    """PNG bytes of what a `draw_*` returned; equal data give equal bytes."""
    from matplotlib.text import Text

    for words in drawn.findobj(Text):
        words.set_parse_math(False)  # names are no formulas, whatever dollar signs they hold
    target = io.BytesIO()
    drawn.savefig(target, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
    return target.getvalue()


def axes_of(columns: int, width: float, height: float, **options):
    """A figure of `width` by `height` inches with a row of axes in the style of the report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(GRID)
        axis.tick_params(which="both", colors=MUTED, labelsize=8.5, length=0)
        axis.set_axisbelow(True)
        axis.grid(color=GRID, lw=0.8)
    return figure, axes


def short_name(name: str) -> str:
    """A name for a figure: of a long one the middle is left out."""
    half = (LONGEST_NAME - 3) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


def draw_rows(cells: pd.DataFrame, panel: str, row: str, series: str, differences: bool = False):
    """A panel for each value of a column, in it a row for each of another, and a marker with its interval a series.

    Args:
        cells: rows of the table of scores, see `scores.py`.
        panel, row, series: columns of `cells`; their values stand in the order in which they come.
        differences: whether the values are differences in hundredths, right and left of 0, and not shares.
    """
    panels, rows, names = (list(dict.fromkeys(cells[name])) for name in (panel, row, series))
    height = 1.3 + 0.07 * len(names) + len(rows) * (0.16 + 0.17 * len(names))
    figure, axes = axes_of(len(panels), WIDTH_IN, height, sharey=True)
    handles = {}
    for axis, of_panel in zip(axes, panels, strict=True):
        for number, name in enumerate(names):
            of = cells[(cells[panel] == of_panel) & (cells[series] == name)]
            y = of[row].map(rows.index) + 0.72 * ((number + 0.5) / len(names) - 0.5)
            colour = COLOURS.get(name, MODEL_COLOURS[number % len(MODEL_COLOURS)])
            marker = MARKERS.get(name, MODEL_MARKERS[number // len(MODEL_COLOURS) % len(MODEL_MARKERS)])
            errors = 100 * np.maximum(np.nan_to_num([of.value - of.low, of.high - of.value]), 0)
            look = {"color": colour, "marker": marker, "ms": 6, "mec": PAPER, "mew": 0.8, "ls": "", "elinewidth": 1.5}
            handles[MODALITY_LABELS.get(name, short_name(name))] = axis.errorbar(
                100 * of.value, y, xerr=errors, **look
            )
            if not differences:
                axis.plot(100 * of.chance, y, color=MUTED, marker="|", ms=9, ls="", zorder=1)
                for value, end, at in zip(100 * of.value, 100 * of.high.fillna(of.value), y):
                    axis.text(min(end, 104) + 2, at, f"{value:.0f}", color=colour, fontsize=7.5, va="center")
        axis.set_yticks(range(len(rows)), [short_name(name) for name in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_title(of_panel, loc="left", weight="bold")
        if differences:
            axis.axvline(0, color=MUTED, lw=1, ls=DASHED, zorder=1)
        else:
            axis.set(xlim=(0, 112), xticks=range(0, 101, 25), xlabel="accuracy, %")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(names) > 3 else 3, fontsize=8,
        frameon=False, labelcolor=MUTED,
    )  # fmt: skip
    return figure


# ---- valence and arousal


def draw_valence_arousal(points: pd.DataFrame, scores: Mapping[str, str]):
    """The valence-arousal space, and each dimension's predicted against true.

    Args:
        points: `valence`, `arousal`, `true_valence` and `true_arousal` by `clip_id`.
        scores: the CCC of "valence" and "arousal" as text.
    """
    figure, axes = axes_of(3, WIDTH_IN, 3.3)
    space = axes[0]
    ends = points[["true_valence", "valence"]].to_numpy().T, points[["true_arousal", "arousal"]].to_numpy().T
    space.plot(*ends, color=MUTED, lw=0.6, alpha=0.5)  # a line a clip
    space.scatter(ends[0][0], ends[1][0], s=13, facecolor="none", edgecolor=MUTED, lw=0.8, zorder=3)
    space.scatter(ends[0][1], ends[1][1], s=11, color=COLOURS["av"], alpha=0.85, lw=0, zorder=4)
    space.set(xlabel="valence", ylabel="arousal")
    space.set_title("ring: true, dot: predicted", loc="left", fontsize=9, color=MUTED)
    for axis, (name, score) in zip(axes[1:], scores.items(), strict=True):
        axis.axline((-1, -1), (1, 1), color=MUTED, lw=1, ls=DASHED, zorder=1)
        axis.scatter(points[f"true_{name}"], points[name], s=11, color=COLOURS["av"], alpha=0.7, lw=0, zorder=2)
        axis.set_title(f"{name}: CCC {score}", loc="left", fontsize=9, color=INK)
        axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    for axis in axes:
        axis.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return figure


def draw_predictions(predictions: Sequence):
    """The valence-arousal space with each source on each of its modalities, and below it the curves of what has time.

    Args:
        predictions: see `emotion.predict_files`.
    """
    from matplotlib.figure import Figure

    curves = [found for found in predictions if found.curve]
    figure = Figure(figsize=(6.0, 6.0 + 2.6 * len(curves)))
    grid = {"height_ratios": [6.0] + [2.0] * len(curves), "hspace": 0.5}
    axes = figure.subplots(1 + len(curves), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    for number, prediction in enumerate(predictions):
        for modality in MODALITIES:
            if (found := getattr(prediction.whole, modality)) is None:
                continue
            spans = {}
            for side, axis in (("xerr", "valence"), ("yerr", "arousal")):
                interval, value = getattr(found, f"{axis}_interval"), getattr(found, axis)
                if interval is not None:
                    spans[side] = [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
            name = ", ".join(filter(None, (prediction.source.title, MODALITY_LABELS[modality], found.label)))
            look = {"color": f"C{number % 10}", "marker": MARKERS[modality], "ls": "", "elinewidth": 0.6}
            axes[0].errorbar(found.valence, found.arousal, label=name, **look, **spans)
    axes[0].set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", ylabel="arousal", aspect="equal")
    for axis, prediction in zip(axes[1:], curves):
        for modality in MODALITIES:
            windows = [(begin, end, getattr(of, modality)) for begin, end, of in prediction.curve]
            windows = [window for window in windows if window[2] is not None]
            times = [(begin + end) / 2 for begin, end, _ in windows]
            for name, style in (("valence", "-"), ("arousal", "--")) if windows else ():
                values = [getattr(found, name) for _, _, found in windows]
                look = {"color": COLOURS[modality], "marker": MARKERS[modality], "ms": 4, "ls": style}
                axis.plot(times, values, label=f"{name}, {MODALITY_LABELS[modality]}", **look)
        axis.set(xlabel="time, s", ylim=(-1.05, 1.05), title=prediction.source.title)
    for axis in axes:
        axis.grid(color=GRID)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


# ---- mistakes


def confusion(answers: pd.DataFrame) -> pd.DataFrame:
    """Counts of (answer, chosen option), and a last column `NO_OPTION` where an answer chose none."""
    labels = sorted({label for options in answers.options for label in options})
    counts = pd.crosstab(answers.answer, answers.predicted).reindex(index=labels, columns=labels, fill_value=0)
    if len(none := answers.answer[answers.predicted.isna()]):
        # An option can have any name, this column's too.
        counts.insert(len(labels), NO_OPTION, none.value_counts().reindex(labels, fill_value=0), allow_duplicates=True)
    return counts


def draw_confusion(counts: pd.DataFrame, modality: str):
    """A matrix: the number of questions, shaded by its share of the row."""
    from matplotlib.colors import LinearSegmentedColormap

    side = max(2.8, 0.42 * counts.shape[1] + 1.2)
    figure, (axis,) = axes_of(1, side + 0.6, side)
    values = counts.to_numpy()
    shares = np.where(values, 0.08 + 0.72 * values / np.maximum(values.sum(1, keepdims=True), 1), 0)
    axis.imshow(shares, cmap=LinearSegmentedColormap.from_list("", [PAPER, COLOURS[modality]]), vmin=0, vmax=1)
    for row, column in np.argwhere(values):
        weight = "bold" if row == column else "normal"
        axis.text(column, row, values[row, column], ha="center", va="center", fontsize=8.5, color=INK, weight=weight)
    axis.set_xticks(range(counts.shape[1]), counts.columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(counts)), counts.index)
    axis.set(xlabel="chosen", ylabel="true")
    axis.grid(visible=False)
    return figure


# ---- training


def curve_terms(log: pd.DataFrame) -> pd.DataFrame:
    """Loss terms and accuracies of a training log by step, in the order of its columns."""
    return log.set_index("step").select_dtypes("number").filter(regex="loss|^accuracy_|ccc|^(kl|ce|mse)$")


def draw_curves(logs: Mapping[str, pd.DataFrame]):
    """One panel a training with its losses and accuracies, logarithmic where all are above zero."""
    figure, axes = axes_of(len(logs), WIDTH_IN, 4.2)
    for axis, (name, log) in zip(axes, logs.items(), strict=True):
        terms = curve_terms(log)
        for number, term in enumerate(terms):
            label, style = term.removesuffix("_loss").replace("_", " "), ("-", "--", ":")[number // 10 % 3]
            terms[term].dropna().plot(ax=axis, lw=1.4, ls=style, label=label)
        if (terms.isna() | (terms > 0)).all(axis=None):
            axis.set_yscale("log", subs=(2, 5))  # few enough for each to have its label
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        axis.set_title(name, loc="left", weight="bold")
        axis.legend(fontsize=6.5, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure
