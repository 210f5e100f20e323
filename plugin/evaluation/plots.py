"""Draws the figures of the report with matplotlib; colours come from a palette, so that a theme can replace them.

Every `draw_*` returns a matplotlib figure; those of the report take the palette `c` (name -> colour) as last argument.
"""

from collections.abc import Iterable

import numpy as np

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from .results import CONTROLS, STAGES, ModalityPredictions, Outcome

MARKERS = {"audio": "o", "visual": "s", "av": "D"}
STAGE_LABELS = {"backbone": "backbone", "stage1": "after stage 1", "stage2": "after stage 2"}
MODALITY_LABELS = {"audio": "sound", "visual": "picture", "av": "both"}
# The column of the answers that name none of the labels.
NO_OPTION = "no option"


def draw_accuracy(cells: dict, c: dict):
    """Two panels, content and emotion; x is the stage, one line for each input."""
    figure, axes = axes_of(1, 2, 9.0, 3.5, c, sharey=True)
    for axis, aspect in zip(axes, ASPECTS, strict=True):
        ceiling = cells["backbone"][f"{aspect}_visual"]["accuracy"]
        chance = cells["backbone"][f"{aspect}_audio"]["chance"]
        for height, name, colour, dashes in (
            (chance, "chance", c["muted"], (0, (4, 3))),
            (ceiling, "visual\nceiling", c["visual"], (0, (1, 2))),
        ):
            axis.plot([-0.22, 2.12], [100 * height] * 2, color=colour, lw=1, ls=dashes, zorder=1)
            axis.text(-0.27, 100 * height, name, color=colour, fontsize=8, va="center", ha="right", linespacing=0.95)
        ends = []
        for shift, path in zip((-0.06, 0.0, 0.06), MODALITIES, strict=True):
            rows = [cells[stage][f"{aspect}_{path}"] for stage in STAGES]
            y = np.array([100 * row["accuracy"] for row in rows])
            low, high = (np.array([100 * row["ci95"][i] for row in rows]) for i in (0, 1))
            x = np.arange(len(STAGES)) + shift
            error = np.maximum([y - low, high - y], 0)
            axis.errorbar(
                x,
                y,
                yerr=error,
                color=c[path],
                marker=MARKERS[path],
                ms=6,
                lw=1.8,
                elinewidth=1.2,
                capsize=2.5,
                mec=c["paper"],
                mew=0.8,
                zorder=3,
            )
            ends.append((y[-1], path))
        for height, (value, path) in zip(spread([end[0] for end in ends], 6.0), ends, strict=True):
            text = f"{MODALITY_LABELS[path]} {value:.0f}"
            axis.text(2.18, height, text, color=c[path], fontsize=9, va="center", weight="bold")
        axis.set_title(aspect, loc="left", fontsize=11, weight="bold", color=c["ink"])
        axis.set_xticks(range(len(STAGES)), [STAGE_LABELS[stage] for stage in STAGES])
        axis.set_xlim(-0.75, 2.75)
        axis.set_ylim(0, 106)
        axis.set_yticks(range(0, 101, 25))
    axes[0].set_ylabel("accuracy, %")
    return figure


def spread(values: list[float], gap: float) -> list[float]:
    """Positions near `values`, at least `gap` apart, for labels that would lie on each other."""
    order = np.argsort(values)
    places = np.array(values, dtype=float)[order]
    for _ in range(100):
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 1e-6:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
    result = np.empty(len(places))
    result[order] = places
    return result.tolist()


def draw_controls(stages: dict, c: dict):
    """Two panels, content and emotion; a row a sound, in it a ring or dot for each stage of `stages`."""
    figure, axes = axes_of(1, 2, 9.0, 3.0, c, sharey=True)
    labels = {
        "own": "the clip's own sound",
        "silence": "silence",
        "noise": "noise",
        "mismatch": "another clip's sound",
    }
    for axis, aspect in zip(axes, ASPECTS, strict=True):
        cells = {stage: found["own"][f"{aspect}_audio"] for stage, found in stages.items()}
        axis.axvline(100 * next(iter(cells.values()))["chance"], color=c["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        for row, name in enumerate(("own", *CONTROLS)):
            colour = c["audio"] if name == "own" else c["muted"]
            for place, found in enumerate(stages.values()):
                y, last = row + 0.36 * (place - (len(stages) - 1) / 2), place == len(stages) - 1
                cell = found[name][f"{aspect}_audio"]
                value, (low, high) = 100 * cell["accuracy"], (100 * end for end in cell["ci95"])
                axis.plot([low, high], [y, y], color=colour, lw=1.5, solid_capstyle="butt", zorder=2)
                fill, edge = (colour, c["paper"]) if last else (c["paper"], colour)
                axis.plot([value], [y], color=colour, marker="o", ms=7, mfc=fill, mec=edge, mew=1.2, zorder=3)
                weight = "bold" if last else "normal"
                axis.text(high + 2, y, f"{value:.0f}", color=colour, fontsize=8, va="center", weight=weight)
        axis.set_yticks(range(1 + len(CONTROLS)), [labels[name] for name in ("own", *CONTROLS)])
        axis.set_ylim(len(CONTROLS) + 0.5, -0.6)
        axis.set_xlim(0, 107)
        axis.set_xticks(range(0, 101, 25))
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=c["grid"], lw=0.8)
        axis.set_title(aspect, loc="left", fontsize=11, weight="bold", color=c["ink"])
        axis.set_xlabel("accuracy by sound alone, %")
    return figure


def draw_plane(p: ModalityPredictions, outcomes: Iterable[Outcome], scores: dict, c: dict):
    """The valence-arousal plane, and each dimension's predicted against true.

    Args:
        p: predicted and true points.
        outcomes: answers to an emotion question about the same clips; their labels name the directions of the plane.
        scores: `valence_ccc`, `arousal_ccc` and their `_ci95`.
        c: the palette.
    """
    from matplotlib.collections import LineCollection

    figure, axes = axes_of(1, 3, 9.0, 3.3, c)
    plane = axes[0]
    # (clips, 2 ends, 2 coordinates)
    lines = np.stack([[p.true_valence, p.true_arousal], [p.valence, p.arousal]]).transpose(2, 0, 1)
    plane.add_collection(LineCollection(lines, colors=c["muted"], linewidths=0.6, alpha=0.5, zorder=2))
    plane.scatter(p.true_valence, p.true_arousal, s=13, facecolor="none", edgecolor=c["muted"], lw=0.8, zorder=3)
    plane.scatter(p.valence, p.arousal, s=11, color=c["av"], alpha=0.85, lw=0, zorder=4)
    for line in (plane.axhline, plane.axvline):
        line(0, color=c["grid"], lw=1, zorder=1)
    for name, (x, y) in emotion_places(p, outcomes).items():
        # Outwards from where it stands, so that no point lies under it.
        sideways = abs(x) >= abs(y)
        across, up = ("left" if x > 0 else "right"), ("bottom" if y > 0 else "top")
        look = {"ha": across, "va": "center"} if sideways else {"ha": "center", "va": up}
        plane.text(x, y, name, color=c["ink"], fontsize=7.5, zorder=5, **look)
    plane.set_xlabel("valence")
    plane.set_ylabel("arousal", labelpad=0)
    plane.set_title("ring: true, dot: predicted", loc="left", fontsize=9, color=c["muted"])
    plane.grid(visible=False)
    for axis, name in zip(axes[1:], ("valence", "arousal"), strict=True):
        axis.plot([-1.1, 1.1], [-1.1, 1.1], color=c["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        axis.scatter(getattr(p, f"true_{name}"), getattr(p, name), s=11, color=c["av"], alpha=0.7, lw=0, zorder=2)
        low, high = scores[f"{name}_ccc_ci95"]
        axis.set_title(
            f"{name}: CCC {scores[f'{name}_ccc']:.2f} [{low:.2f}, {high:.2f}]", loc="left", fontsize=9, color=c["ink"]
        )
        axis.set_xlabel(f"true {name}")
        axis.set_ylabel(f"predicted {name}", labelpad=0)
        axis.grid(axis="x", color=c["grid"], lw=0.8)
    for axis in axes:
        axis.set_aspect("equal")
        end = 1.6 if axis is plane else 1.15
        axis.set_xlim(-end, end)
        axis.set_ylim(-end, end)
        axis.set_xticks([-1, 0, 1])
        axis.set_yticks([-1, 0, 1])
    return figure


def emotion_places(
    p: ModalityPredictions, outcomes: Iterable[Outcome], edge: float = 1.1
) -> dict[str, tuple[float, float]]:
    """Where on the edge of a square around the plane each emotion's name stands: in the mean direction of its clips'
    true points."""
    points = {clip: (v, a) for clip, v, a in zip(p.clip_ids, p.true_valence, p.true_arousal, strict=True)}
    sums: dict[str, np.ndarray] = {}
    for outcome in outcomes:
        if outcome.clip_id in points:
            sums[outcome.answer] = sums.get(outcome.answer, np.zeros(2)) + points[outcome.clip_id]
    return {
        name: (edge * total[0] / size, edge * total[1] / size)
        for name, total in sums.items()
        if (size := float(np.abs(total).max())) > 0
    }


def confusion(outcomes: Iterable[Outcome]) -> tuple[list[str], list[str], np.ndarray]:
    """Counts of (answer, chosen option), shape (labels, labels), and a last column if an answer chose no option."""
    outcomes = list(outcomes)
    labels = list(dict.fromkeys(sorted(label for outcome in outcomes for label in outcome.options)))
    columns = [*labels, NO_OPTION] if any(outcome.predicted is None for outcome in outcomes) else labels
    counts = np.zeros((len(labels), len(columns)), dtype=int)
    for outcome in outcomes:
        # By its place: an option can have any name, this column's too.
        column = len(labels) if outcome.predicted is None else labels.index(outcome.predicted)
        counts[labels.index(outcome.answer), column] += 1
    return labels, columns, counts


def draw_confusion(outcomes: list[Outcome], colour: str, c: dict):
    labels, columns, counts = confusion(outcomes)
    side = max(2.8, 0.42 * len(columns) + 1.2)
    figure, (axis,) = axes_of(1, 1, side + 0.6, side, c)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            # Opacity rather than a colour map: the shade then follows the page's theme.
            axis.add_patch(_square(column, row, c[colour], 0.08 + 0.72 * shares[row, column]))
            axis.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8.5,
                color=c["ink"],
                weight="bold" if row == column else "normal",
            )
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.set_xlabel("chosen")
    axis.set_ylabel("true")
    return figure


def _square(x: float, y: float, colour: str, alpha: float):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=colour, alpha=alpha, lw=0)


# Logged by every trainer, but no loss.
_NOT_A_LOSS = {"step", "epoch", "learning_rate", "wall_s", "grad_norm"}


def curve_terms(rows: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loss terms and accuracies of a training log: name -> (steps, values)."""
    names = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_curve(key)
    )
    return {
        name: (
            np.array([row["step"] for row in rows if name in row]),
            np.array([row[name] for row in rows if name in row]),
        )
        for name in names
    }


def _is_curve(key: str) -> bool:
    return key not in _NOT_A_LOSS and ("loss" in key or "acc" in key or "ccc" in key or key in ("kl", "ce", "mse"))


def curve_style(name: str, kinds: list[str], c: dict) -> tuple[str, str]:
    """(colour, line style) of a loss term: the colour tells the path, the style tells the kind of loss."""
    kind, _, path = name.removesuffix("_loss").rpartition("_")
    if path not in MODALITIES:
        return c["ink"], "-"
    if kind not in kinds:
        kinds.append(kind)
    return c[path], ("-", "--", ":", "-.")[kinds.index(kind) % 4]


def draw_curves(curves: dict[str, list[dict]], c: dict):
    """One panel a training: its accuracies where it logs some, else its losses, logarithmic if above zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = axes_of(1, len(STAGES), 9.0, 2.9, c)
    colours = [c["visual"], c["audio"], c["av"], c["other"], c["muted"], c["ink"]]
    for axis, stage in zip(axes, STAGES, strict=True):
        terms = curve_terms(curves[stage])
        accuracies = {name: term for name, term in terms.items() if name.startswith("accuracy_")}
        kinds: list[str] = []
        for index, (name, (steps, values)) in enumerate((accuracies or terms).items()):
            colour, style = (colours[index % len(colours)], "-") if accuracies else curve_style(name, kinds, c)
            axis.plot(
                steps,
                100 * values if accuracies else values,
                lw=1.4,
                color=colour,
                ls=style,
                marker="o" if len(steps) == 1 else None,
                ms=3,
                label=name.removeprefix("accuracy_").removesuffix("_loss").replace("_", " "),
            )
        if accuracies:
            axis.set_ylim(0, 106)
            axis.set_ylabel("accuracy, %")
            for before, after in zip(curves[stage], curves[stage][1:]):
                if before.get("part") != after.get("part"):
                    axis.axvline(before["step"], color=c["muted"], lw=1, ls=(0, (1, 2)))
                    axis.text(before["step"], 104, f" {after['part']} begins", color=c["muted"], fontsize=7, va="top")
        else:
            axis.set_ylabel("loss")
        if not accuracies and terms and all((values > 0).all() for _, values in terms.values()):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(stage.replace("stage", "stage "), loc="left", fontsize=11, weight="bold", color=c["ink"])
        axis.set_xlabel("step")
        axis.margins(x=0.02)
        if terms:
            axis.legend(fontsize=7, frameon=False, labelcolor=c["muted"], ncols=1 + (len(terms) > 5), handlelength=1.8)
    return figure


def axes_of(rows: int, columns: int, width: float, height: float, c: dict, **kwargs):
    """A figure of `width` by `height` inches, and its axes in the style of the report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)[0]
    for axis in axes:
        axis.set_facecolor("none")
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color(c["grid"])
        axis.tick_params(which="both", colors=c["muted"], labelsize=8.5, length=0)
        axis.xaxis.label.set_color(c["muted"])
        axis.yaxis.label.set_color(c["muted"])
        axis.xaxis.label.set_fontsize(9)
        axis.yaxis.label.set_fontsize(9)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=c["grid"], lw=0.8)
    return figure, axes


def draw_predictions(readings):
    """The valence-arousal plane with each source on each of its paths, and below it the curves of what has time.

    Args:
        readings: `prediction.Reading`s.
    """
    from matplotlib.figure import Figure

    curves = [reading for reading in readings if reading.curve]
    figure = Figure(figsize=(6.0, 6.0 + 2.6 * len(curves)))
    grid = {"height_ratios": [6.0] + [2.0] * len(curves), "hspace": 0.5}
    axes = figure.subplots(1 + len(curves), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    plane = axes[0]
    plane.axhline(0, color="0.8", lw=0.8, zorder=0)
    plane.axvline(0, color="0.8", lw=0.8, zorder=0)
    for number, reading in enumerate(readings):
        colour = f"C{number % 10}"
        points = [(path, found) for path in MODALITIES if (found := getattr(reading.whole, path)) is not None]
        plane.plot([p.valence for _, p in points], [p.arousal for _, p in points], color=colour, lw=0.8, zorder=1)
        for path, found in points:
            spans = {}
            for side, axis in (("xerr", "valence"), ("yerr", "arousal")):
                interval, value = getattr(found, f"{axis}_interval"), getattr(found, axis)
                if interval is not None:
                    spans[side] = [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
            name = f"{reading.source.title}, {MODALITY_LABELS[path]}" + (f": {found.label}" if found.label else "")
            look = {"color": colour, "marker": MARKERS[path], "ls": "", "elinewidth": 0.6}
            plane.errorbar(found.valence, found.arousal, label=name, **look, **spans)
    plane.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", ylabel="arousal")
    plane.set_aspect("equal")
    plane.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for axis, reading in zip(axes[1:], curves):
        for colour, path in zip(("C0", "C1", "C2"), MODALITIES):
            found = [(b, e, getattr(p, path)) for b, e, p in reading.curve if getattr(p, path) is not None]
            for name, style in (("valence", "-"), ("arousal", "--")):
                if found:
                    middles = [(b + e) / 2 for b, e, _ in found]
                    values = [getattr(p, name) for _, _, p in found]
                    look = {"color": colour, "marker": MARKERS[path], "ms": 4}
                    axis.plot(middles, values, style, label=f"{name}, {MODALITY_LABELS[path]}", **look)
        axis.set(xlabel="time, s", ylim=(-1.05, 1.05), title=reading.source.title)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
