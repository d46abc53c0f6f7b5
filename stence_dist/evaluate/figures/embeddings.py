"""The joint space: who is near whom, and what lies where."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stence_dist.evaluate.figures.drawing import COLORS, MARKERS, UNKNOWN, Drawing, one_axes

MOST_PAIRS = 200  # of a heat map: more are thinner than a pixel
_MOST_POINTS = 3000
_SITES = len(COLORS) - 1


def similarity_order(percent: NDArray[np.floating]) -> NDArray[np.int64]:
    """At most MOST_PAIRS places (k,) of pairs in the order of their stenosis in percent (n,), evenly; unknown last."""
    order = np.argsort(percent, kind="stable")  # NaN goes last
    if len(order) <= MOST_PAIRS:
        return order
    return order[np.linspace(0, len(order) - 1, MOST_PAIRS).round().astype(np.int64)]


def similarity_map(ecg: NDArray[np.floating], image: NDArray[np.floating], percent: NDArray[np.floating]) -> Drawing:
    """Cosines of ECGs (n, E) down and angiograms (n, E) across, unit norm, both by stenosis in percent (n,)."""
    order = similarity_order(percent)
    cosines = ecg[order] @ image[order].T
    ticks = np.unique(np.linspace(0, len(order) - 1, 6).round().astype(np.int64))
    labels = ["?" if np.isnan(value) else f"{value:.0f} %" for value in percent[order[ticks]]]

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        axes.grid(False)
        shown = axes.imshow(cosines, cmap="viridis", interpolation="nearest")
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.set(xlabel="angiogram, by largest stenosis", ylabel="ECG, by its angiogram's largest stenosis")
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="cosine")
        bar.outline.set_visible(False)

    return Drawing("similarity of ECGs and angiograms", (5.6, 4.8), paint)


def principal_plane(embeddings: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, 2) on the first two principal components of embeddings (n, E), and their shares of variance (2,).

    n and E are at least 2. The largest entry of each component is positive, so that maps of one run can be compared.
    """
    centered = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    _, strengths, components = np.linalg.svd(centered, full_matrices=False)
    axes = components[:2]
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    total = (strengths**2).sum()
    return centered @ axes.T, strengths[:2] ** 2 / total if total > 0 else np.zeros(2)


def embedding_maps(
    embeddings: NDArray[np.floating],
    percent: NDArray[np.floating],
    age: NDArray[np.floating],
    site: NDArray[np.str_],
) -> list[Drawing]:
    """ECG embeddings (n, E) on their principal plane, by largest stenosis (n,), age (n,) and site (n,), "" unknown."""
    plane, shares = principal_plane(embeddings)
    if len(plane) > _MOST_POINTS:
        kept = np.linspace(0, len(plane) - 1, _MOST_POINTS).round().astype(np.int64)
        plane, percent, age, site = plane[kept], percent[kept], age[kept], site[kept]
    drawings = [
        _map(plane, shares, "largest stenosis, percent", percent, (0, 100)),
        _map(plane, shares, "age, years", age, None),
    ]
    return [*drawings, _site_map(plane, shares, site)]


def _map(
    plane: NDArray[np.floating],
    shares: NDArray[np.floating],
    label: str,
    values: NDArray[np.floating],
    limits: tuple[float, float] | None,
) -> Drawing:
    known = ~np.isnan(values)

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        raster = len(plane) > 1000
        axes.scatter(plane[~known, 0], plane[~known, 1], s=12, color=UNKNOWN, alpha=0.5, linewidth=0, rasterized=raster)
        low, high = limits or ((values[known].min(), values[known].max()) if known.any() else (0, 1))
        shown = axes.scatter(
            plane[known, 0],
            plane[known, 1],
            c=values[known],
            s=16,
            cmap="viridis",
            vmin=low,
            vmax=high,
            linewidth=0.4,
            edgecolor=UNKNOWN,  # the map's dark end is as dark as a dark page
            rasterized=raster,
        )
        bar = figure.colorbar(shown, ax=axes, shrink=0.85, label=label)
        bar.outline.set_visible(False)
        _name_axes(axes, shares)

    return Drawing(f"ECG embeddings by {label}", (4.6, 3.6), paint)


def _site_map(plane: NDArray[np.floating], shares: NDArray[np.floating], site: NDArray[np.str_]) -> Drawing:
    names, counts = np.unique(site[site != ""], return_counts=True)
    largest = [str(name) for name in names[np.argsort(-counts, kind="stable")][:_SITES]]
    groups = [(name, site == name, COLORS[place], MARKERS[place]) for place, name in enumerate(largest)]
    rest = ~np.isin(site, largest)
    if rest.any():
        groups.append(("other or unknown", rest, UNKNOWN, "."))

    def paint(figure: Figure) -> None:
        axes = one_axes(figure)
        for name, chosen, color, marker in groups:
            label = name if len(name) <= 24 else f"{name[:23]}…"
            axes.scatter(
                plane[chosen, 0],
                plane[chosen, 1],
                s=16,
                color=color,
                marker=marker,
                linewidth=0,
                alpha=0.8,
                label=label,
                rasterized=len(plane) > 1000,
            )
        figure.legend(loc="outside right upper", fontsize=8, title="site", title_fontsize=8)
        _name_axes(axes, shares)

    return Drawing("ECG embeddings by site", (4.6, 3.6), paint)


def _name_axes(axes: Axes, shares: NDArray[np.floating]) -> None:
    axes.set(
        xlabel=f"first component, {100 * shares[0]:.0f} % of variance",
        ylabel=f"second component, {100 * shares[1]:.0f} %",
    )
