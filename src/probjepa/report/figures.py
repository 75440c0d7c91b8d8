"""A matplotlib drawing as a figure of the page: SVG that follows light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from probjepa.errors import counted
from probjepa.plots.style import DARK, DARK_NEUTRALS, INK, LIGHT, MUTED, PAPER, RC, RULE, label
from probjepa.report.page import Figure, Width

# in page units; the page stretches all of them by the same factor, about 1.2 on a desktop
_WIDTHS: Mapping[Width, int] = {"full": 820, "half": 402, "third": 264}
_HEIGHTS: Mapping[Width, int] = {"full": 300, "half": 250, "third": 176}
_LEAST_TITLE, _MOST_TITLE = 7, 40  # characters
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif"
_SWAPS = dict(zip((INK, MUTED, RULE, PAPER, *LIGHT), (*DARK_NEUTRALS, *DARK), strict=True))


def picture(
    title: str,
    draw: Callable[[Any], str],
    caption: str = "",
    *,
    width: Width = "full",
    height: float | None = None,
    panels: int = 1,
    **options: Any,
) -> Figure:
    """Return a drawing as a figure of the page, under the house style and off pyplot's global state.

    Parameters
    ----------
    title
        stands above the axes, and, with the words that ``draw`` returns, in for the picture
    draw
        ``lambda axis: plots.roc(axis, inside, outside)``; of several panels, it is given all
    caption
        how to read it
    width, height
        share of the page, and height in page units (a full figure is 820 wide and, by default, 300 high)
    panels
        axes side by side, with one vertical scale
    options
        of the axes: ``xlabel="score"``, ``projection="3d"``
    """
    with mpl.rc_context(RC), warnings.catch_warnings():
        # a glyph that matplotlib's own font lacks is still drawn by the browser's
        warnings.filterwarnings("ignore", message="Glyph")
        size = (_WIDTHS[width] / 72, (height or _HEIGHTS[width]) / 72)
        layout = ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=6 / 72, wspace=0.04, hspace=0.05)
        figure = Canvas(figsize=size, dpi=72, layout=layout)
        axes = figure.subplots(1, panels, sharey=panels > 1, squeeze=False, subplot_kw=options)[0]
        heading = axes[0].set_title(title) if panels == 1 else None
        words = draw(axes if panels > 1 else axes[0])
        if heading is not None:
            _fit(figure, layout, heading)
        return Figure(_svg(figure).encode("utf-8"), "image/svg+xml", caption, f"{title}: {words}", width)


def _fit(figure: Canvas, layout: ConstrainedLayoutEngine, heading: Any) -> None:
    """Cut the title above the axes in its middle where it would leave the picture on the right."""
    title = heading.get_text()
    heading.set_text(label(title, _MOST_TITLE))
    if heading.get_window_extent().width <= figure.bbox.width / 4:
        return  # it fits wherever the axes begin: to find that takes a third of the time
    heading.set_text(label(title, _LEAST_TITLE))  # a long one would push the axes aside
    for _ in range(2):  # square axes are moved by the second
        layout.execute(figure)
        heading.axes.apply_aspect()
    figure.set_layout_engine("none")  # they stay where the title fits
    for limit in range(_MOST_TITLE, _LEAST_TITLE - 1, -1):
        heading.set_text(label(title, limit))
        if heading.get_window_extent().x1 <= figure.bbox.x1:
            break


def left_out(*arrays: ArrayLike) -> str:
    """Return the words on values that a picture leaves out because they are not finite, if there are any."""
    count = sum(int((~np.isfinite(np.asarray(x, np.float64))).sum()) for x in arrays)
    return f" Left out: {counted(count, 'value')} not finite." if count else ""


def _svg(figure: Any) -> str:
    """SVG whose text stays text, and whose colours are CSS variables with a light and a dark value."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, dpi=160)
    names = {light: f"--c{i}" for i, light in enumerate(_SWAPS)}

    def follow(style: re.Match[str]) -> str:
        # an older matplotlib writes "font: 12px 'DejaVu Sans'"
        css = re.sub(r"(font: [^';]*?px|font-family:) [^;\"]*", rf"\1 {_FONTS}", style[0])
        return re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var({names[m[0]]})" if m[0] in names else m[0], css)

    svg = re.sub(r'style="[^"]*"', follow, buffer.getvalue().decode("utf-8"))
    light = ";".join(f"{names[a]}:{a}" for a in _SWAPS)
    dark = ";".join(f"{names[a]}:{b}" for a, b in _SWAPS.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{style}<defs>", 1)
