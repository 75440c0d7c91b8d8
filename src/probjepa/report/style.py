"""One look for every figure: palette, type, and SVG that follows light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from probjepa.report.page import Figure, Width

# Okabe and Ito's hues, darkened or lightened until their text reads on white or on near-black. The first is
# the in-distribution set everywhere. Each light colour is also the placeholder that the SVG swaps for a CSS
# variable.
_LIGHT = ("#0067a5", "#c44e00", "#00805f", "#a63d7e", "#946400", "#4b97c9", "#7a5fb0", "#6b7280")
_DARK = ("#5ab0f0", "#ff9257", "#36c99c", "#e68cc3", "#e3b54a", "#a9d8f7", "#b9a2ea", "#9aa3ad")
INK, MUTED, RULE, PAPER = "#1d2126", "#626b76", "#d5dae0", "#fdfdfe"
_DARK_NEUTRALS = ("#e7eaee", "#9fa8b3", "#3a424c", "#171b20")
_SWAPS = dict(zip((INK, MUTED, RULE, PAPER, *_LIGHT), (*_DARK_NEUTRALS, *_DARK), strict=True))

# Petroff's ten-colour cycle: legible on light and dark alike, for points that are drawn as pixels
CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#9a4fc4",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#5fc4c8",
)  # fmt: skip

# widths of a figure in page units; the page stretches all of them by the same factor, about 1.2 on a desktop
FULL, HALF, THIRD = 820, 402, 264
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif"
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "probjepa",
    "text.parse_math": False,  # a data set may be called $x$
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlecolor": INK,
    "axes.labelsize": 11.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


def palette(names: Iterable[str]) -> dict[str, str]:
    """Give every name a colour, in order: the in-distribution set first, one call for all figures."""
    return {name: _LIGHT[i % len(_LIGHT)] for i, name in enumerate(names)}


def label(name: object, limit: int = 28) -> str:
    """Return a name that is safe and short enough to draw: control characters out, the middle cut."""
    text = "".join(c if c.isprintable() else "�" for c in str(name))
    return text if len(text) <= limit else f"{text[: limit - 6]}…{text[-5:]}"


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function under the house style and leave matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def canvas(width: float, height: float, row_gap: float = 0.05) -> Any:
    """Return an empty matplotlib figure of ``width`` by ``height`` page units, off pyplot's global state."""
    layout = ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=6 / 72, wspace=0.04, hspace=row_gap)
    return Canvas(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def finish(figure: Any, caption: str, alt: str, width: Width = "full") -> Figure:
    """Return the figure as SVG: text stays text, colours are CSS variables with a light and a dark value."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a glyph that matplotlib's own font lacks is still drawn by the browser's
        warnings.filterwarnings("ignore", message="Glyph")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, dpi=160)
    svg = buffer.getvalue().decode("utf-8")
    svg = re.sub(r"(font: [^\"';]*?px) [^;\"]*", rf"\1 {_FONTS}", svg)
    names = {light: f"--c{i}" for i, light in enumerate(_SWAPS)}
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var({names[m[0]]})" if m[0] in names else m[0], svg)
    light = ";".join(f"{names[a]}:{a}" for a in _SWAPS)
    dark = ";".join(f"{names[a]}:{b}" for a, b in _SWAPS.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = svg.replace("<defs>", f"{style}<defs>", 1)
    return Figure(svg.encode("utf-8"), "image/svg+xml", caption, alt, width)


def empty(title: str, reason: str) -> Figure:
    """Return a placeholder that says why there is nothing to see."""
    figure = canvas(FULL, 90)
    figure.text(0.5, 0.5, f"{title}: {reason}", ha="center", va="center", color=MUTED)
    return finish(figure, f"{title}: {reason}.", f"{title}: {reason}")
