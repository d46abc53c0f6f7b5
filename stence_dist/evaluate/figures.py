"""The pictures of a report, as text that a page can hold: curves as SVG in the page's own colors, images as PNG.

SVG text and axes are drawn in placeholder colors that become CSS variables of the page, so that a figure follows its
light or dark scheme. An ECG is a PNG on its paper grid, 25 mm/s and 10 mm/mV.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stence_dist.ecg import LEADS
from stence_dist.evaluate.statistics import roc_curve

_INK, _LINE = "#010203", "#040506"  # become var(--ink) and var(--line)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.axisbelow": True,
}
_SIZE = (5.0, 3.3)  # inches
_COLORS = ("#2f7fd0", "#d9772e", "#3a9a6b", "#b0559c", "#8a8f98", "#c05252", "#a08a2c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Each arm keeps its color and marker in every figure.
ARM_NAMES = {
    "probe": "probe (pretrained, frozen)",
    "finetune": "fine-tuned",
    "scratch": "from scratch",
    "random": "random tower, frozen",
    "shuffled": "probe after shuffled pairs",
    "hand": "hand-made ST/T",
    "age_sex": "age + sex",
}


def _draw(axes_size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=axes_size, layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an inline `<svg>` element that scales with the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def curves_svg(
    name: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """Lines (label, x, y) over one x axis; `reference` is a dashed level with its label."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw()
        for number, (label, x, y) in enumerate(series):
            few = len(x) < 30
            axes.plot(
                x,
                y,
                color=_COLORS[number % len(_COLORS)],
                label=label,
                linewidth=1.6,
                marker=_MARKERS[number % len(_MARKERS)] if few else None,
                markersize=4,
            )
        if reference is not None:
            axes.axhline(reference[1], color=_INK, linewidth=1, linestyle=(0, (4, 3)), label=reference[0])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend()
        return _svg(figure, name)


def label_efficiency_svg(arms: Sequence[Mapping[str, Any]], level: float) -> str:
    """AUROC with its interval by number of labels, one line per arm and stenosis weight; arms as in summary.json."""
    counts = sorted({row["labels"] for row in arms}, key=_by_count)
    lines: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in arms:
        lines.setdefault((row["arm"], row["stenosis_weight"]), []).append(row)
    weights = {row["stenosis_weight"] for row in arms if row["arm"] in ("probe", "finetune")}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw((5.4, 4.7))
        for number, ((arm, weight), rows) in enumerate(lines.items()):
            shift = (number - (len(lines) - 1) / 2) * 0.07
            known = [row for row in rows if row["mean"] is not None and row["low"] is not None]
            x = [counts.index(row["labels"]) + shift for row in known]
            mean = [row["mean"] for row in known]
            bars = [[row["mean"] - row["low"] for row in known], [row["high"] - row["mean"] for row in known]]
            place = list(ARM_NAMES).index(arm)
            suffix = f", weight {weight:g}" if arm in ("probe", "finetune") and len(weights) > 1 else ""
            axes.errorbar(
                x,
                mean,
                yerr=np.maximum(bars, 0),
                color=_COLORS[place],
                marker=_MARKERS[place],
                markersize=5,
                capsize=2.5,
                linewidth=1.4,
                linestyle="--" if suffix and weight == 0 else "-",
                label=ARM_NAMES[arm] + suffix,
            )
        axes.axhline(0.5, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("labelled training patients")
        axes.set_ylabel(f"test AUROC, {level:.0%} interval")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return _svg(figure, "label efficiency")


def _by_count(labels: int | str) -> float:
    return float(labels) if isinstance(labels, int) else float("inf")


def roc_svg(curves: Sequence[tuple[str, str, NDArray[Any], NDArray[Any]]], title: str) -> str:
    """ROC curves of (arm, label, truth (n,), probability (n,)), each with both classes."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw((4.9, 4.7))
        for arm, label, truth, probability in curves:
            false_rate, true_rate = roc_curve(truth, probability)
            color = _COLORS[list(ARM_NAMES).index(arm)]
            axes.plot(false_rate, true_rate, color=color, linewidth=1.6, label=label)
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel("1 − specificity")
        axes.set_ylabel("sensitivity")
        axes.set_aspect("equal")
        axes.legend(loc="lower right", fontsize=8)
        return _svg(figure, title)


def ecg_png(signal: NDArray[np.floating], sampling_rate: float) -> str:
    """Base64 PNG of a 12-lead ECG on paper, 25 mm/s and 10 mm/mV: 3 rows of 4 leads of 2.5 s, and 10 s of lead II.

    signal (12, T) in mV in the order of LEADS, NaN where missing (not drawn).
    """
    columns, rows, seconds = 4, 3, 2.5
    row_mm, top_mm, millimeter = 26.0, 8.0, 1 / 25.4
    width, height = columns * seconds * 25 + 10, (rows + 1) * row_mm + top_mm
    figure = Figure(figsize=(width * millimeter, height * millimeter), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    figure.set_facecolor("#fffaf8")
    for step, color, line in ((1, "#f7dcd6", 0.35), (5, "#ecb4a8", 0.6)):
        axes.vlines(np.arange(0, width + 1e-6, step), 0, height, color=color, linewidth=line)
        axes.hlines(np.arange(0, height + 1e-6, step), 0, width, color=color, linewidth=line)

    def trace(lead: int, start: float, length: float, left: float, base: float) -> None:
        part = signal[lead, round(start * sampling_rate) : round((start + length) * sampling_rate)]
        level = np.nanmedian(part) if np.isfinite(part).any() else 0.0
        x = left + np.arange(len(part)) / sampling_rate * 25
        axes.plot(x, base + (part - level) * 10, color="#14202b", linewidth=0.7, solid_joinstyle="round")
        axes.text(left + 1, base + row_mm * 0.36, LEADS[lead], fontsize=7, color="#14202b", weight="bold")

    for row in range(rows):
        for column in range(columns):
            base = height - row_mm * (row + 0.5) - top_mm
            trace(column * rows + row, column * seconds, seconds, 5 + column * seconds * 25, base)
    trace(LEADS.index("II"), 0, columns * seconds, 5, row_mm / 2)
    axes.text(width - 2, 1.2, "25 mm/s   10 mm/mV", fontsize=6, color="#7a4a40", ha="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def frame_png(frame: NDArray[np.uint8]) -> str:
    """Base64 PNG of one gray frame (H, W), as stored."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
