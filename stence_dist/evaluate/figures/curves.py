"""Curves: of training, and of how well a prediction discriminates and is calibrated."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from stence_dist.evaluate.calibration import calibration_groups
from stence_dist.evaluate.figures.drawing import (
    ARM_NAMES,
    COLORS,
    DASHES,
    MARKERS,
    Drawing,
    arm_color,
    arm_marker,
    ink,
    one_axes,
)
from stence_dist.evaluate.statistics import precision_recall_curve, roc_curve

_SIZE = (5.0, 3.3)  # inches
_SQUARE = (4.9, 4.7)


class Prediction(NamedTuple):
    """One curve: its label and color, truth (n,) with both classes and probability (n,)."""

    label: str
    color: str
    truth: NDArray[Any]
    probability: NDArray[Any]


def lines(
    name: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    reference: tuple[str, float] | None = None,
) -> Drawing:
    """Lines (label, x, y) over one x axis of whole numbers from 0; `reference` is a dashed level with its label."""
    end = max(max(x) for _, x, _ in series)

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        for number, (label, x, y) in enumerate(series):
            few = len(x) < 30
            axes.plot(
                x,
                y,
                color=COLORS[number % len(COLORS)],
                label=label,
                linewidth=1.6,
                marker=MARKERS[number % len(MARKERS)] if few else None,
                markersize=4,
            )
        if reference is not None:
            axes.axhline(reference[1], color=ink(), linewidth=1, linestyle=DASHES, label=reference[0])
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.03 * end))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    return Drawing(name, _SIZE, paint)


def label_efficiency(arms: Sequence[Mapping[str, Any]], counts: Sequence[int | str], level: float) -> Drawing:
    """AUROC with its interval by number of labels, one line per arm and stenosis weight; arms as in summary.json.

    counts: the numbers of labels there, from the smallest on.
    """
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in arms:
        found.setdefault((row["arm"], row["stenosis_weight"]), []).append(row)
    weights = {row["stenosis_weight"] for row in arms if row["arm"] in ("probe", "finetune")}

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        for number, ((arm, weight), rows) in enumerate(found.items()):
            shift = (number - (len(found) - 1) / 2) * 0.07
            known = [row for row in rows if row["mean"] is not None and row["low"] is not None]
            known.sort(key=lambda row: counts.index(row["labels"]))
            bars = [[row["mean"] - row["low"] for row in known], [row["high"] - row["mean"] for row in known]]
            suffix = f", weight {weight:g}" if arm in ("probe", "finetune") and len(weights) > 1 else ""
            axes.errorbar(
                [counts.index(row["labels"]) + shift for row in known],
                [row["mean"] for row in known],
                yerr=np.maximum(bars, 0),
                color=arm_color(arm),
                marker=arm_marker(arm),
                markersize=5,
                capsize=2.5,
                linewidth=1.4,
                linestyle="--" if suffix and weight == 0 else "-",
                label=ARM_NAMES[arm] + suffix,
            )
        axes.axhline(0.5, color=ink(), linewidth=1, linestyle=DASHES)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("labelled training patients")
        axes.set_ylabel(f"test AUROC, {level:.0%} interval")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)

    return Drawing("label efficiency", (5.4, 4.7), paint)


def roc(curves: Sequence[Prediction], name: str) -> Drawing:
    """Sensitivity over 1 - specificity."""

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        for label, color, truth, probability in curves:
            axes.plot(*roc_curve(truth, probability), color=color, linewidth=1.6, label=label)
        axes.plot([0, 1], [0, 1], color=ink(), linewidth=1, linestyle=DASHES)
        axes.set_xlabel("1 − specificity")
        axes.set_ylabel("sensitivity")
        axes.set_aspect("equal")
        axes.legend(loc="lower right", fontsize=8)

    return Drawing(name, _SQUARE, paint)


def precision_recall(curves: Sequence[Prediction], name: str) -> Drawing:
    """Precision over recall, in the steps that average precision adds up; dashed the prevalence of each."""

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        for label, color, truth, probability in curves:
            recall, precision = precision_recall_curve(truth, probability)
            steps = np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
            axes.plot(*steps, color=color, linewidth=1.6, label=label, drawstyle="steps-pre")
            axes.axhline(float(np.mean(truth)), color=color, linewidth=1, linestyle=DASHES)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)", ylim=(0, 1.03))
        axes.set_aspect("equal")
        axes.legend(loc="lower left", fontsize=8)

    return Drawing(name, _SQUARE, paint)


def calibration(curve: Prediction, name: str) -> Drawing:
    """Observed share over predicted probability in groups of equal size, with their counts and Wilson intervals.

    The strip below counts rows by predicted probability.
    """
    groups = calibration_groups(curve.truth, curve.probability)
    apart = len(groups.size) < 2 or np.diff(groups.predicted).min() > 0.025  # else the counts overprint each other
    smallest, largest = groups.size.min(), groups.size.max()
    sizes = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        above.plot([0, 1], [0, 1], color=ink(), linewidth=1, linestyle=DASHES)
        above.errorbar(
            groups.predicted,
            groups.observed,
            yerr=np.maximum([groups.observed - groups.low, groups.high - groups.observed], 0),
            color=curve.color,
            marker="o",
            markersize=5,
            capsize=2.5,
            linewidth=1.2,
            label=f"{curve.label}: {len(groups.size)} groups of {sizes} ECGs",
        )
        for count, x, y in zip(groups.size, groups.predicted, groups.high, strict=True):
            if apart:
                above.annotate(str(count), (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7)
        above.set(ylabel="observed share", xlim=(0, 1), ylim=(0, 1.06))
        above.legend(loc="upper left", fontsize=8)
        below.hist(curve.probability, bins=np.linspace(0, 1, 41), color=curve.color, alpha=0.7)
        below.set(xlabel="predicted probability", ylabel="ECGs")

    return Drawing(name, _SQUARE, paint)


def percent_against_probability(
    percent: NDArray[Any], probability: NDArray[Any], threshold: float | None, name: str
) -> Drawing:
    """Predicted probability (n,) over largest stenosis (n,) in percent, with `running_mean`; a threshold is dashed."""
    x, mean = running_mean(percent, probability)

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        axes.scatter(
            percent, probability, s=12, color=COLORS[0], alpha=0.45, linewidth=0, rasterized=len(percent) > 2000
        )
        axes.plot(x, mean, color=COLORS[1], linewidth=2, label=f"mean within {WINDOW:g} points")
        if threshold is not None:
            axes.axvline(threshold, color=ink(), linewidth=1, linestyle=DASHES)
        axes.set(
            xlabel="largest diameter stenosis, percent", ylabel="predicted probability", xlim=(-3, 103), ylim=(0, 1)
        )
        axes.legend(loc="upper left", fontsize=8)

    return Drawing(name, _SIZE, paint)


WINDOW = 10.0  # percent points on either side
_FEWEST = 5


def running_mean(percent: NDArray[Any], probability: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each whole percent x (101,) and the mean probability (101,) of rows within WINDOW; NaN for fewer than five."""
    x = np.arange(101.0)
    near = np.abs(percent[None, :] - x[:, None]) <= WINDOW
    count = near.sum(axis=1)
    total = np.where(near, probability[None, :], 0.0).sum(axis=1)
    return x, np.where(count >= _FEWEST, total / np.maximum(count, 1), np.nan)
