"""Recordings as a reader knows them: an ECG on its paper, key frames with what the decoder looked at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stence_dist.ecg import LEADS
from stence_dist.evaluate.figures.drawing import COLORS, Drawing, encoded_png, ink

_COLUMNS, _ROWS, _SECONDS = 4, 3, 2.5  # of the paper: leads beside and below each other, seconds of each
_PAPER, _TRACE = "#fffaf8", "#14202b"


def ecg(signal: NDArray[np.floating], sampling_rate: float, title: str = "") -> Drawing:
    """A 12-lead ECG on paper, 25 mm/s and 10 mm/mV: 3 rows of 4 leads of 2.5 s, and 10 s of lead II.

    signal (12, T) in mV in the order of LEADS, NaN where missing (not drawn). Of one below 10 s every lead begins where
    its column does.
    """
    row_mm, top_mm, millimeter = 26.0, 8.0, 1 / 25.4
    width, height = _COLUMNS * _SECONDS * 25 + 10, (_ROWS + 1) * row_mm + top_mm
    placed = _placed(signal, sampling_rate)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        for step, color, line in ((1, "#f7dcd6", 0.35), (5, "#ecb4a8", 0.6)):
            axes.vlines(np.arange(0, width + 1e-6, step), 0, height, color=color, linewidth=line)
            axes.hlines(np.arange(0, height + 1e-6, step), 0, width, color=color, linewidth=line)

        def trace(lead: int, start: float, length: float, left: float, base: float) -> None:
            part = placed[lead, round(start * sampling_rate) : round((start + length) * sampling_rate)]
            level = np.nanmedian(part) if np.isfinite(part).any() else 0.0
            x = left + np.arange(len(part)) / sampling_rate * 25
            axes.plot(x, base + (part - level) * 10, color=_TRACE, linewidth=0.7, solid_joinstyle="round")
            axes.text(left + 1, base + row_mm * 0.36, LEADS[lead], fontsize=7, color=_TRACE, weight="bold")

        for row in range(_ROWS):
            for column in range(_COLUMNS):
                base = height - row_mm * (row + 0.5) - top_mm
                trace(column * _ROWS + row, column * _SECONDS, _SECONDS, 5 + column * _SECONDS * 25, base)
        trace(LEADS.index("II"), 0, _COLUMNS * _SECONDS, 5, row_mm / 2)
        axes.text(width - 2, 1.2, "25 mm/s   10 mm/mV", fontsize=6, color="#7a4a40", ha="right")
        axes.text(5, height - 5, title, fontsize=7.5, color=_TRACE)

    return Drawing("12-lead ECG", (width * millimeter, height * millimeter), paint, paper=_PAPER, dpi=150)


def _placed(signal: NDArray[np.floating], sampling_rate: float) -> NDArray[np.floating]:
    """Signal (12, T) where the paper looks for it: of a short one each lead begins where its column does."""
    quarter = round(_SECONDS * sampling_rate)
    if signal.shape[1] >= _COLUMNS * quarter:
        return signal
    moved = np.full((len(signal), _COLUMNS * quarter), np.nan, dtype=np.float32)
    for lead, row in enumerate(signal):
        start = lead // _ROWS * quarter
        part = row if LEADS[lead] == "II" else row[:quarter]
        moved[lead, start : start + len(part)] = part
    return moved


def ecg_png(signal: NDArray[np.floating], sampling_rate: float) -> str:
    """`ecg` as a base64 PNG."""
    return ecg(signal, sampling_rate).png()


def frame_png(frame: NDArray[np.uint8], largest: int | None = None) -> str:
    """Base64 PNG of one gray frame (H, W), as stored, or smaller: at most `largest` pixels wide and high."""
    if largest is None or max(frame.shape) <= largest:
        return encoded_png(frame)
    smaller = Image.fromarray(frame)
    smaller.thumbnail((largest, largest))
    return encoded_png(np.asarray(smaller))


class AttendedView(NamedTuple):
    """One view of a study and how the contrastive query reads it."""

    angles: str
    frames: NDArray[np.uint8] | None  # (F, H, W); None: features are stored, and their grid is shown instead
    shares: NDArray[np.floating]  # (F, N), of the study's whole attention


def attended_studies(studies: Sequence[tuple[str, Sequence[AttendedView]]]) -> Drawing:
    """Studies (title, views), a row each: every frame with its share of the contrastive query's attention.

    The bar below a frame is that share. Of stored features the grid of their tokens is shown, brighter = more.
    """
    cells = [[(view, frame) for view in views for frame in range(len(view.shares))] for _, views in studies]
    most = max(len(row) for row in cells)
    largest = max(float(view.shares[frame].sum()) for row in cells for view, frame in row)

    cell, step = 1.5, 2.2  # inches: width of a view, height of a study
    width, height = max(cell * most, 4.0), step * len(studies)

    def paint(figure: Figure) -> None:
        def place(left: float, top: float, wide: float, high: float) -> Axes:
            """Axes at inches from the top left: a layout engine takes four times as long for the same."""
            axes = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
            axes.set_axis_off()
            return axes

        for number, ((title, _), row) in enumerate(zip(studies, cells, strict=True)):
            top = number * step
            figure.text(0.05 / width, 1 - (top + 0.2) / height, title, fontsize=9)
            for column, (view, frame) in enumerate(row):
                left = column * cell + 0.05
                share = float(view.shares[frame].sum())
                above = place(left, top + 0.6, cell - 0.1, cell - 0.1)
                above.imshow(_picture(view, frame), cmap="gray" if view.frames is not None else "inferno")
                above.set_title(f"{view.angles}\n{100 * share:.0f} %", fontsize=8, pad=2)
                below = place(left, top + 2.03, cell - 0.1, 0.08)
                below.barh([0], [share], color=COLORS[1])
                below.axhline(0, color=ink(), linewidth=0.4, zorder=0)
                below.set(xlim=(0, largest), ylim=(-0.5, 0.5))

    return Drawing("attention of the contrastive query over key frames", (width, height), paint)


def _picture(view: AttendedView, frame: int) -> NDArray[Any]:
    """What stands for one frame: itself, or the attention over its tokens, square where they are."""
    picture = (view.shares if view.frames is None else view.frames)[frame]
    if view.frames is None:
        side = int(len(picture) ** 0.5)
        picture = picture.reshape((side, side) if side * side == len(picture) else (1, -1))
    return np.asarray(picture)


def angles_text(angulation: NDArray[np.floating]) -> str:
    """C-arm angles (2,) in a cath lab's words."""
    if np.isnan(angulation).any():
        return "angles not known"
    primary, secondary = (float(value) for value in angulation)
    return (
        f"{'LAO' if primary >= 0 else 'RAO'} {abs(primary):.0f}°, {'CRA' if secondary >= 0 else 'CAU'} "
        f"{abs(secondary):.0f}°"
    )
