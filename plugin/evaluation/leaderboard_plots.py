"""Draws the report's figures of several models; see `plots` for the palette and what is shared."""

import math
from collections.abc import Mapping, Sequence

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from .leaderboard_words import SOUND_WORDS, short_names
from .plots import MARKERS, MODALITY_LABELS, axes_of

COLOURS = ("visual", "audio", "av", "other", "ink", "muted")
WIDTH_IN = 9.0
# Of a wide letter in the legend.
LETTER_IN = 0.085
SHAPES = ("o", "s", "D", "^")


def draw_cells(models: Mapping[str, Mapping[str, dict]], c: dict):
    """Two panels, content and emotion: a row a model, in it a marker a path with its 95% interval.

    Args:
        models: label -> cell -> accuracy, ci95, chance; cells that were not run are absent.
        c: the palette.
    """
    return _rows(
        short_names(models),
        [
            (
                MODALITY_LABELS[path],
                c[path],
                MARKERS[path],
                {a: [m.get(f"{a}_{path}") for m in models.values()] for a in ASPECTS},
            )
            for path in MODALITIES
        ],
        c,
    )


def draw_controls(models: Mapping[str, Mapping[str, Mapping[str, dict]]], c: dict):
    """Two panels, content and emotion: a row a sound, in it a marker a model with its 95% interval.

    Args:
        models: label -> name in `SOUND_WORDS` -> aspect -> accuracy, ci95, chance; what was not run is absent.
        c: the palette.
    """
    series = []
    for number, (label, sounds) in enumerate(zip(short_names(models), models.values(), strict=True)):
        colour, shape = c[COLOURS[number % len(COLOURS)]], SHAPES[number // len(COLOURS) % len(SHAPES)]
        values = {aspect: [sounds.get(name, {}).get(aspect) for name in SOUND_WORDS] for aspect in ASPECTS}
        series.append((label, colour, shape, values))
    return _rows(list(SOUND_WORDS.values()), series, c)


def _rows(labels: Sequence[str], series: Sequence[tuple[str, str, str, dict]], c: dict):
    """A panel an aspect, a row a label, a marker for each of `series`: (name, colour, marker, aspect -> scores)."""
    # As many columns of the legend as its longest name allows, and a higher figure for its rows.
    columns = min(3, max(1, int(WIDTH_IN / (0.6 + LETTER_IN * max((len(name) for name, *_ in series), default=0)))))
    height = 1.1 + 0.2 * math.ceil(len(series) / columns) + len(labels) * (0.16 + 0.17 * len(series))
    figure, axes = axes_of(1, len(ASPECTS), WIDTH_IN, height, c, sharey=True)
    handles = {}
    for axis, aspect in zip(axes, ASPECTS, strict=True):
        for place, (name, colour, marker, values) in enumerate(series):
            for row, cell in enumerate(values[aspect]):
                if cell is None:
                    continue
                y = row + 0.72 * ((place + 0.5) / len(series) - 0.5)
                value, (low, high) = 100 * cell["accuracy"], (100 * end for end in cell["ci95"])
                axis.plot([low, high], [y, y], color=colour, lw=1.5, solid_capstyle="butt", zorder=2)
                handles[name] = axis.plot(
                    [value], [y], color=colour, marker=marker, ms=6, mec=c["paper"], mew=0.8, ls="", zorder=3
                )[0]
                # On paper of its own, where it may lie on a line.
                ground = {"fc": c["paper"], "ec": "none", "pad": 0.8}
                axis.text(high + 1.8, y, f"{value:.0f}", color=colour, fontsize=7.5, va="center", bbox=ground)
        for row in range(len(labels)):
            # A piece a row and not one line through all: chance differs with the number of options.
            cells = [values[aspect][row] for _, _, _, values in series]
            if asked := next((cell for cell in cells if cell is not None), None):
                x = 100 * asked["chance"]
                axis.plot([x, x], [row - 0.45, row + 0.45], color=c["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xlim(0, 108)
        axis.set_xticks(range(0, 101, 25))
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=c["grid"], lw=0.8)
        axis.set_title(aspect, loc="left", fontsize=11, weight="bold", color=c["ink"])
        axis.set_xlabel("accuracy, %")
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=columns, fontsize=8, frameon=False,
        labelcolor=c["muted"], handlelength=1,
    )  # fmt: skip
    return figure
