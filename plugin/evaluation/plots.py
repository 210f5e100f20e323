"""Plots of the report and of `vaemotionllm predict`, drawn with matplotlib, which comes with the `demo` extra.

Every `draw_*` returns a matplotlib figure; `render` makes a `Figure` of the report of it.
"""

import importlib.util
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..benchmark.schema import ASPECTS
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
# Of a wide letter in the legend.
LETTER_IN = 0.085
# Of a longer name a part is shown, where the whole would leave no room.
LONGEST_NAME = 40
# The column of the answers that name none of the labels.
NO_OPTION = "no option"
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))
# Logged by every trainer, but no loss.
_NO_LOSS = {"step", "epoch", "learning_rate", "wall_s", "grad_norm"}


@dataclass(frozen=True)
class Figure:
    """A figure of the report: file name, what it shows in a sentence and for those who cannot see it, the commands
    that gave its data, PNG bytes."""

    name: str
    caption: str
    alt: str
    command: str
    png: bytes


def require_matplotlib() -> None:
    """Raise an `InputError` where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib draws the figures and is not installed: `pip install vaemotionllm[demo]`")


def render(name: str, drawn: Any, caption: str, alt: str, command: str = "") -> Figure:
    """A `Figure` of what a `draw_*` returned; equal data give equal bytes."""
    from matplotlib.text import Text

    for words in drawn.findobj(Text):
        words.set_parse_math(False)  # names are no formulas, whatever dollar signs they hold
    target = io.BytesIO()
    drawn.savefig(target, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
    return Figure(name, caption, alt, command, target.getvalue())


def axes_of(columns: int, width: float, height: float, **options):
    """A figure of `width` by `height` inches with a row of axes in the style of the report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(GRID)
        axis.tick_params(which="both", colors=MUTED, labelsize=8.5, length=0)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(color=MUTED, fontsize=9)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=GRID, lw=0.8)
    return figure, axes


def title(axis, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=11, weight="bold", color=INK)


# ---- accuracies


def draw_lines(cells: pd.DataFrame, x: Mapping[str, float], x_labels: Sequence[str], log: bool = False,
               references: Mapping[str, Mapping[str, float]] | None = None):  # fmt: skip
    """Accuracy against something ordered: a panel an aspect, a line a modality, the last value beside its end.

    Args:
        cells: rows of the table of scores, see `scores.py`.
        x: model -> where it stands.
        x_labels: of the models, in the order of `x`.
        log: whether the axis is logarithmic.
        references: name -> aspect -> height of a horizontal line, a share.
    """
    figure, axes = axes_of(len(ASPECTS), WIDTH_IN, 3.5, sharey=True)
    positions = np.array(list(x.values()), dtype=float)
    # Modalities stand a little apart, so that their intervals do not lie on each other.
    step = 0.06 * (math.log(positions[-1] / positions[0]) if log else np.ptp(positions)) / 2
    for axis, aspect in zip(axes, ASPECTS, strict=True):
        for number, (name, heights) in enumerate((references or {}).items()):
            height = 100 * heights[aspect]
            axis.axhline(height, color=MUTED, lw=1, ls=(DASHED, DOTTED)[number % 2], zorder=1)
            look = {"color": MUTED, "fontsize": 8, "va": "center", "bbox": {"fc": PAPER, "ec": "none", "pad": 1}}
            axis.text(0, height, name, transform=axis.get_yaxis_transform(), **look)
        ends = []
        for number, modality in enumerate(MODALITIES):
            of = cells[(cells.aspect == aspect) & (cells.modality == modality)].set_index("model").reindex(list(x))
            shift = (number - 1) * step
            axis.errorbar(
                positions * math.exp(shift) if log else positions + shift, 100 * of.value,
                yerr=100 * np.maximum([of.value - of.low, of.high - of.value], 0), color=COLOURS[modality],
                marker=MARKERS[modality], ms=6, lw=1.8, elinewidth=1.2, capsize=2.5, mec=PAPER, mew=0.8, zorder=3,
            )  # fmt: skip
            ends.append((100 * of.value.iloc[-1], modality))
        for height, (value, modality) in zip(spread([end[0] for end in ends], 6.0), ends, strict=True):
            axis.annotate(f"{MODALITY_LABELS[modality]} {value:.0f}", (1.01, height), color=COLOURS[modality],
                          xycoords=axis.get_yaxis_transform(), fontsize=9, va="center", weight="bold")  # fmt: skip
        title(axis, aspect)
        if log:
            axis.set_xscale("log")
            axis.minorticks_off()
        # Room on the left for the names of the references.
        axis.set_xlim(left=positions[0] / 1.6 if log else positions[0] - 0.35 * np.ptp(positions))
        axis.set_xticks(positions, x_labels)
        axis.set_ylim(0, 106)
        axis.set_yticks(range(0, 101, 25))
    axes[0].set_ylabel("accuracy, %")
    return figure


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near `values`, at least `gap` apart, for labels that would lie on each other."""
    order = np.argsort(values)
    positions = np.array(values, dtype=float)[order]
    for _ in range(100):
        for i in range(len(positions) - 1):
            lack = gap - (positions[i + 1] - positions[i])
            if lack > 1e-6:
                positions[i : i + 2] += -lack / 2, lack / 2
    result = np.empty(len(positions))
    result[order] = positions
    return result.tolist()


def short_names(names: Iterable[str]) -> list[str]:
    """Names for figures: of long ones the middle is left out; those that would then be equal are numbered there."""
    found: list[str] = []
    half = (LONGEST_NAME - 3) // 2
    for name in names:
        short = name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"
        number = 1
        while short in found:
            number += 1
            short = f"{name[: half - 2]}..{number}..{name[-half + 2 :]}"
        found.append(short)
    return found


def draw_rows(cells: pd.DataFrame, panel: str, row: str, series: str, labels: Mapping[str, str] | None = None,
              differences: bool = False):  # fmt: skip
    """A panel for each value of a column, in it a row for each of another, and a marker with its interval a series.

    Args:
        cells: rows of the table of scores, see `scores.py`.
        panel, row, series: columns of `cells`; their values stand in the order in which they come.
        labels: values of `row` -> what is shown; else the value itself.
        differences: whether the values are differences in hundredths, right and left of 0, and not shares.
    """
    panels, rows, names = (list(dict.fromkeys(cells[name])) for name in (panel, row, series))
    if series == "modality":
        styles = [(MODALITY_LABELS[name], COLOURS[name], MARKERS[name]) for name in names]
    else:
        many = len(MODEL_COLOURS)
        styles = [
            (name, MODEL_COLOURS[i % many], MODEL_MARKERS[i // many % len(MODEL_MARKERS)])
            for i, name in enumerate(short_names(names))
        ]
    # As many columns of the legend as its longest name allows, and a higher figure for its rows.
    columns = min(3, max(1, int(WIDTH_IN / (0.6 + LETTER_IN * max(len(name) for name, *_ in styles)))))
    height = 1.1 + 0.2 * math.ceil(len(names) / columns) + len(rows) * (0.16 + 0.17 * len(names))
    figure, axes = axes_of(len(panels), WIDTH_IN, height, sharey=True)
    handles = {}
    for axis, of_panel in zip(axes, panels, strict=True):
        of = cells[cells[panel] == of_panel]
        for _, cell in of.iterrows():
            number, line = names.index(cell[series]), rows.index(cell[row])
            name, colour, marker = styles[number]
            y, value = line + 0.72 * ((number + 0.5) / len(names) - 0.5), 100 * cell.value
            low, high = (100 * cell.low, 100 * cell.high) if math.isfinite(cell.low) else (value, value)
            axis.plot([low, high], [y, y], color=colour, lw=1.5, solid_capstyle="butt", zorder=2)
            look = {"color": colour, "marker": marker, "ms": 6, "mec": PAPER, "mew": 0.8, "ls": "", "zorder": 3}
            handles[name] = axis.plot([value], [y], **look)[0]
            if not differences:
                # On paper of its own, where it may lie on a line; chance differs with the number of options.
                ground = {"fc": PAPER, "ec": "none", "pad": 0.8}
                axis.text(
                    min(high, 104) + 1.8, y, f"{value:.0f}", color=colour, fontsize=7.5, va="center", bbox=ground
                )
                ends = [line - 0.45, line + 0.45]
                axis.plot([100 * cell.chance] * 2, ends, color=MUTED, lw=1, ls=DASHED, zorder=1)
        axis.set_yticks(range(len(rows)), [labels[name] for name in rows] if labels else short_names(rows))
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=GRID, lw=0.8)
        title(axis, of_panel)
        if differences:
            # A part without which the model is lost would push all others together.
            axis.axvline(0, color=MUTED, lw=1, ls=DASHED, zorder=1)
            axis.set_xscale("symlog", linthresh=5, linscale=2)
            ticks = (-50, -5, -2, 0, 2, 5, 50)
            axis.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
            axis.minorticks_off()
            ends = [*of.low, *of.value, *of.high]
            axis.set_xlim(120 * np.nanmin([*ends, -0.025]), 120 * np.nanmax([*ends, 0.025]))
        else:
            axis.set_xlim(0, 108)
            axis.set_xticks(range(0, 101, 25))
            axis.set_xlabel("accuracy, %")
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=columns, fontsize=8, frameon=False,
        labelcolor=MUTED, handlelength=1,
    )  # fmt: skip
    return figure


# ---- valence and arousal


def draw_valence_arousal(points: pd.DataFrame, answers: pd.DataFrame | None, titles: Mapping[str, str]):
    """The valence-arousal space, and each dimension's predicted against true.

    Args:
        points: `valence`, `arousal`, `true_valence` and `true_arousal` by `clip_id`.
        answers: to an emotion question about the same clips; their labels name the directions of the space.
        titles: of the panels of "valence" and "arousal".
    """
    from matplotlib.collections import LineCollection

    figure, axes = axes_of(3, WIDTH_IN, 3.3)
    space = axes[0]
    # (clips, 2 ends, 2 coordinates)
    lines = points[["true_valence", "true_arousal", "valence", "arousal"]].to_numpy().reshape(-1, 2, 2)
    space.add_collection(LineCollection(list(lines), colors=MUTED, linewidths=0.6, alpha=0.5, zorder=2))
    space.scatter(*lines[:, 0].T, s=13, facecolor="none", edgecolor=MUTED, lw=0.8, zorder=3)
    space.scatter(*lines[:, 1].T, s=11, color=COLOURS["av"], alpha=0.85, lw=0, zorder=4)
    for line in (space.axhline, space.axvline):
        line(0, color=GRID, lw=1, zorder=1)
    for name, (x, y) in emotion_directions(points, answers).items():
        # Outwards from where it stands, so that no point lies under it.
        across, up = ("left" if x > 0 else "right"), ("bottom" if y > 0 else "top")
        look = {"ha": across, "va": "center"} if abs(x) >= abs(y) else {"ha": "center", "va": up}
        space.text(x, y, name, color=INK, fontsize=7.5, zorder=5, **look)
    space.set(xlabel="valence")
    space.set_ylabel("arousal", labelpad=0)
    space.set_title("ring: true, dot: predicted", loc="left", fontsize=9, color=MUTED)
    space.grid(visible=False)
    for axis, name in zip(axes[1:], titles, strict=True):
        axis.axline((-1, -1), (1, 1), color=MUTED, lw=1, ls=DASHED, zorder=1)
        axis.scatter(points[f"true_{name}"], points[name], s=11, color=COLOURS["av"], alpha=0.7, lw=0, zorder=2)
        axis.set_title(titles[name], loc="left", fontsize=9, color=INK)
        axis.set_xlabel(f"true {name}")
        axis.set_ylabel(f"predicted {name}", labelpad=0)
        axis.grid(axis="x", color=GRID, lw=0.8)
    for axis in axes:
        end = 1.6 if axis is space else 1.15
        axis.set(aspect="equal", xlim=(-end, end), ylim=(-end, end), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return figure


def emotion_directions(points: pd.DataFrame, answers: pd.DataFrame | None, edge: float = 1.1) -> dict[str, np.ndarray]:
    """Emotion -> a point on the edge of a square around the space, in the mean direction of its clips' true points."""
    if answers is None:
        return {}
    true = answers.merge(points, on="clip_id").groupby("answer")[["true_valence", "true_arousal"]].mean()
    true = true[true.abs().max(axis=1) > 0]
    return {name: edge * row.to_numpy() / np.abs(row).max() for name, row in true.iterrows()}


def draw_predictions(predictions):
    """The valence-arousal space with each source on each of its modalities, and below it the curves of what has time.

    Args:
        predictions: see `emotion.predict_files`.
    """
    from matplotlib.figure import Figure as Canvas

    curves = [found for found in predictions if found.curve]
    figure = Canvas(figsize=(6.0, 6.0 + 2.6 * len(curves)))
    grid = {"height_ratios": [6.0] + [2.0] * len(curves), "hspace": 0.5}
    axes = figure.subplots(1 + len(curves), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    space = axes[0]
    space.axhline(0, color="0.8", lw=0.8, zorder=0)
    space.axvline(0, color="0.8", lw=0.8, zorder=0)
    for number, prediction in enumerate(predictions):
        colour = f"C{number % 10}"
        points = [(m, found) for m in MODALITIES if (found := getattr(prediction.whole, m)) is not None]
        space.plot([p.valence for _, p in points], [p.arousal for _, p in points], color=colour, lw=0.8, zorder=1)
        for modality, found in points:
            spans = {}
            for side, axis in (("xerr", "valence"), ("yerr", "arousal")):
                interval, value = getattr(found, f"{axis}_interval"), getattr(found, axis)
                if interval is not None:
                    spans[side] = [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
            name = f"{prediction.source.title}, {MODALITY_LABELS[modality]}" + (
                f": {found.label}" if found.label else ""
            )
            look = {"color": colour, "marker": MARKERS[modality], "ls": "", "elinewidth": 0.6}
            space.errorbar(found.valence, found.arousal, label=name, **look, **spans)
    space.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", ylabel="arousal", aspect="equal")
    for axis, prediction in zip(axes[1:], curves):
        for colour, modality in zip(("C0", "C1", "C2"), MODALITIES):
            found = [(b, e, of) for b, e, p in prediction.curve if (of := getattr(p, modality)) is not None]
            for name, style in (("valence", "-"), ("arousal", "--")):
                if found:
                    look = {"color": colour, "marker": MARKERS[modality], "ms": 4}
                    axis.plot([(b + e) / 2 for b, e, _ in found], [getattr(of, name) for _, _, of in found], style,
                              label=f"{name}, {MODALITY_LABELS[modality]}", **look)  # fmt: skip
        axis.set(xlabel="time, s", ylim=(-1.05, 1.05), title=prediction.source.title)
    for axis in axes:
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


def most_frequent_mistake(answers: pd.DataFrame) -> str:
    """The most frequent mistake as text; of equal ones the last in the alphabet."""
    wrong = answers[answers.answer != answers.predicted]
    if wrong.empty:
        return "no mistake"
    pairs = wrong.assign(predicted=wrong.predicted.fillna(NO_OPTION)).groupby(["answer", "predicted"]).size()
    (answer, predicted), count = pairs[pairs == pairs.max()].index[-1], pairs.max()
    return f"most frequent: {predicted} for {answer}, {count} time{'s' if count > 1 else ''}"


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
        text = str(values[row, column])
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=INK, weight=weight)
    axis.set_xticks(range(counts.shape[1]), counts.columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(counts)), counts.index)
    axis.set(xlabel="chosen", ylabel="true")
    axis.grid(visible=False)
    return figure


# ---- training


def curve_terms(log: pd.DataFrame) -> dict[str, pd.Series]:
    """Loss terms and accuracies of a training log by step, in the order of its columns."""
    names = [
        name for name in log.select_dtypes("number")
        if name not in _NO_LOSS and any(word in name for word in ("loss", "acc", "ccc")) or name in ("kl", "ce", "mse")
    ]  # fmt: skip
    return {name: log.set_index("step")[name].dropna() for name in names}


def draw_curves(logs: Mapping[str, pd.DataFrame]):
    """One panel a training: its accuracies where it logs some, else its losses, logarithmic if above zero.

    Of a loss the colour is the modality and the style the kind.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = axes_of(len(logs), WIDTH_IN, 2.9)
    for axis, (name, log) in zip(axes, logs.items(), strict=True):
        terms = curve_terms(log)
        accuracies = {term: values for term, values in terms.items() if term.startswith("accuracy_")}
        kinds: list[str] = []
        for index, (term, values) in enumerate((accuracies or terms).items()):
            kind, _, modality = term.removesuffix("_loss").rpartition("_")
            colour, style = MODEL_COLOURS[index % len(MODEL_COLOURS)] if accuracies else INK, "-"
            if not accuracies and modality in MODALITIES:
                kinds += [kind] if kind not in kinds else []
                colour, style = COLOURS[modality], ("-", "--", ":", "-.")[kinds.index(kind) % 4]
            label = term.removeprefix("accuracy_").removesuffix("_loss").replace("_", " ")
            marker = "o" if len(values) == 1 else None
            axis.plot(values.index, 100 * values if accuracies else values, lw=1.4, color=colour, ls=style,
                      marker=marker, ms=3, label=label)  # fmt: skip
        axis.set_ylabel("accuracy, %" if accuracies else "loss")
        if accuracies:
            axis.set_ylim(0, 106)
            parts = log["part"] if "part" in log else pd.Series(dtype=object)
            for number in np.flatnonzero((parts != parts.shift())[1:]):
                step = log["step"].iloc[number]
                axis.axvline(step, color=MUTED, lw=1, ls=DOTTED)
                axis.text(step, 104, f" {parts.iloc[number + 1]} begins", color=MUTED, fontsize=7, va="top")
        elif terms and all((values > 0).all() for values in terms.values()):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        title(axis, name)
        axis.set_xlabel("step")
        axis.margins(x=0.02)
        if terms:
            axis.legend(fontsize=7, frameon=False, labelcolor=MUTED, ncols=1 + (len(terms) > 5), handlelength=1.8)
    return figure
