"""The ablation's two plots."""

import io
from collections.abc import Callable, Sequence

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from .ablation import VARIANTS, Variant
from .figures import LIGHT
from .plots import MARKERS, MODALITY_LABELS, axes_of, spread

KINDS = (*ASPECTS, "ccc")
TICKS = (-50, -5, -2, 0, 2, 5, 50)
KIND_TITLES = {"content": "content, points", "emotion": "emotion, points", "ccc": "CCC, hundredths"}


def png(draw: Callable, found: dict) -> bytes:
    """A plot as PNG bytes, the same for the same results."""
    image = io.BytesIO()
    draw(found, LIGHT).savefig(image, format="png", dpi=144, facecolor=LIGHT["paper"], metadata={"Software": None})
    return image.getvalue()


def draw_parts(found: dict, c: dict):
    """A panel each for content, emotion and CCC; a row a part, in it the difference on each path with its interval."""
    rows = [variant for variant in VARIANTS if variant.part is not None]
    figure, axes = axes_of(1, len(KINDS), 9.0, 0.9 + 0.62 * len(rows), c, sharey=True)
    limits = {kind: limits_of(found, rows, kind) for kind in KINDS}
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.axvline(0, color=c["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        for row, variant in enumerate(rows):
            for place, path in enumerate(MODALITIES):
                value = found["variants"][variant.name]["full_minus_it"].get(f"{kind}_{path}")
                if value is None:
                    continue
                y, (low, high) = row + 0.24 * (place - 1), (100 * end for end in value["ci95"])
                axis.plot([low, high], [y, y], color=c[path], lw=1.5, solid_capstyle="butt", zorder=2)
                axis.plot(
                    [100 * value["mean"]], [y], color=c[path], marker=MARKERS[path], ms=6, mec=c["paper"], mew=0.8,
                    ls="", zorder=3, label=MODALITY_LABELS[path] if row == 0 else None,
                )  # fmt: skip
        axis.set_yticks(range(len(rows)), [variant.part for variant in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=c["grid"], lw=0.8)
        # A part without which the model is lost would push all others together.
        axis.set_xscale("symlog", linthresh=5, linscale=2)
        axis.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
        axis.minorticks_off()
        axis.set_xlim(*limits[kind])
        axis.set_title(KIND_TITLES[kind], loc="left", fontsize=11, weight="bold", color=c["ink"])
    axes[0].legend(fontsize=8, frameon=False, labelcolor=c["muted"])
    return figure


def limits_of(found: dict, rows: Sequence[Variant], kind: str) -> tuple[float, float]:
    """Ends of the axis that hold every interval of a kind."""
    differences = [found["variants"][variant.name]["full_minus_it"] for variant in rows]
    ends = [100 * end for cells in differences for cell, value in cells.items() if cell.startswith(kind)
            for end in value["ci95"]]  # fmt: skip
    return 1.2 * min([*ends, -2.5]), 1.2 * max([*ends, 2.5])


def draw_clips(found: dict, c: dict):
    """Two panels, content and emotion: accuracy of the full model against the number of training clips."""
    import numpy as np

    figure, axes = axes_of(1, len(ASPECTS), 9.0, 3.5, c, sharey=True)
    rows = sorted(
        (row for name, row in found["variants"].items() if name.startswith("full")), key=lambda row: row["share"]
    )
    clips = np.array([row["share"] * found["train_clips"] for row in rows])
    for axis, aspect in zip(axes, ASPECTS, strict=True):
        ends = []
        for shift, path in zip((0.97, 1.0, 1.03), MODALITIES, strict=True):
            cells = [row["cells"][f"{aspect}_{path}"] for row in rows]
            y = np.array([100 * cell["mean"] for cell in cells])
            low, high = (np.array([100 * cell["ci95"][i] for cell in cells]) for i in (0, 1))
            axis.errorbar(
                clips * shift, y, yerr=np.maximum([y - low, high - y], 0), color=c[path], marker=MARKERS[path], ms=6,
                lw=1.8, elinewidth=1.2, capsize=2.5, mec=c["paper"], mew=0.8, zorder=3,
            )  # fmt: skip
            ends.append((y[-1], path))
        for height, (value, path) in zip(spread([end[0] for end in ends], 4.5), ends, strict=True):
            axis.text(
                clips[-1] * 1.12, height, f"{MODALITY_LABELS[path]} {value:.0f}", color=c[path], fontsize=9,
                va="center", weight="bold",
            )  # fmt: skip
        axis.axhline(25, color=c["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        axis.set_xscale("log")
        axis.set_xticks(clips, [f"{count:.0f}" for count in clips])
        axis.minorticks_off()
        axis.set_xlim(clips[0] * 0.8, clips[-1] * 1.9)
        axis.set_ylim(20, 103)
        axis.set_xlabel("clips in both trainings")
        axis.set_title(aspect, loc="left", fontsize=11, weight="bold", color=c["ink"])
    axes[0].set_ylabel("accuracy, %")
    return figure
