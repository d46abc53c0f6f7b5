"""A figure before it has a place: as SVG in a page's own colors, or as pixels on paper of its own.

In SVG the ink and the lines have placeholder colors that become CSS variables of the page, so that a figure follows its
light or dark scheme.
"""

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

COLORS = ("#2f7fd0", "#d9772e", "#3a9a6b", "#b0559c", "#8a8f98", "#c05252", "#a08a2c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNKNOWN = "#8a8f98"  # of points whose value is not known
DASHES = (0, (4, 3))

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

_PAGE_INK, _PAGE_LINE = "#010203", "#040506"  # become var(--ink) and var(--line)
_PAPER, _INK, _LINE = "#ffffff", "#1b2430", "#d5dae1"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # texts are data: a dollar sign is one
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.axisbelow": True,
}


def arm_color(arm: str) -> str:
    """The color of one of ARM_NAMES."""
    return COLORS[list(ARM_NAMES).index(arm)]


def arm_marker(arm: str) -> str:
    """The marker of one of ARM_NAMES."""
    return MARKERS[list(ARM_NAMES).index(arm)]


def ink() -> str:
    """The color of text and reference lines where a figure is being painted."""
    return str(matplotlib.rcParams["text.color"])


def one_axes(figure: Figure) -> Axes:
    """The only axes of a figure whose labels and legends make room for themselves."""
    figure.set_layout_engine("constrained")
    return figure.add_subplot()


@dataclass(frozen=True)
class Drawing:
    """A figure that `paint` draws into an empty one, once for each place that it is shown in."""

    name: str  # what it shows, for those who cannot see it
    size: tuple[float, float]  # inches
    paint: Callable[[Figure], None]
    paper: str = _PAPER  # behind pixels
    dpi: int = 110

    def svg(self) -> str:
        """An inline `<svg>` element in the page's colors, which scales with the page."""
        buffer = io.StringIO()
        with matplotlib.rc_context({**_colors(_PAGE_INK, _PAGE_LINE), "svg.hashsalt": self.name}):
            figure = self._painted()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(_PAGE_INK, "var(--ink)").replace(_PAGE_LINE, "var(--line)")
        return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.name)}" ', 1)

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3), dark on `paper`."""
        with matplotlib.rc_context(_colors(_INK, _LINE)):
            figure = self._painted()
            figure.set_facecolor(self.paper)
            figure.set_dpi(self.dpi)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # type: ignore[no-untyped-call]
            return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]

    def png(self) -> str:
        """`pixels` as a base64 PNG."""
        return encoded_png(self.pixels())

    def _painted(self) -> Figure:
        figure = Figure(figsize=self.size)
        self.paint(figure)
        return figure


def _colors(text: str, line: str) -> Any:
    names = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return {**_STYLE, **dict.fromkeys(names, text), "axes.edgecolor": line, "grid.color": line}


def encoded_png(pixels: NDArray[np.uint8]) -> str:
    """Base64 PNG of pixels (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
