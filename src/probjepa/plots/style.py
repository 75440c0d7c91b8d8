"""The look of every picture: colours, type, and names that are safe to draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Axis = Any  # a matplotlib Axes, which is untyped here

# Okabe and Ito's hues, darkened or lightened until their text reads on white or on near-black. The first is
# the in-distribution set everywhere. A page swaps each light colour for its dark one.
LIGHT = ("#0067a5", "#c44e00", "#00805f", "#a63d7e", "#946400", "#4b97c9", "#7a5fb0", "#6b7280")
DARK = ("#5ab0f0", "#ff9257", "#36c99c", "#e68cc3", "#e3b54a", "#a9d8f7", "#b9a2ea", "#9aa3ad")
INK, MUTED, RULE, PAPER = "#1d2126", "#626b76", "#d5dae0", "#fdfdfe"
DARK_NEUTRALS = ("#e7eaee", "#9fa8b3", "#3a424c", "#171b20")
BLUE, ORANGE = LIGHT[:2]
DASHES = (0, (4, 3))

# Petroff's ten-colour cycle: legible on light and dark alike, for points that are drawn as pixels
CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#9a4fc4",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#5fc4c8",
)  # fmt: skip

#: matplotlib's settings, for ``matplotlib.rc_context``
RC = {
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
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


def palette(names: Iterable[str]) -> dict[str, str]:
    """Give every name a colour, in order: the in-distribution set first, one call for all pictures."""
    return {name: LIGHT[i % len(LIGHT)] for i, name in enumerate(names)}


def label(name: object, limit: int = 28) -> str:
    """Return a name that is safe and short enough to draw: control characters out, the middle cut."""
    text = "".join(c if c.isprintable() else "�" for c in str(name))
    if text.startswith("_"):  # matplotlib leaves such a name out of a legend
        text = " " + text
    return text if len(text) <= limit else f"{text[: limit - 6]}…{text[-5:]}"


def finite(x: ArrayLike) -> Array:
    """Return the finite values of ``x`` as a flat float64 array."""
    flat = np.asarray(x, np.float64).ravel()
    return flat[np.isfinite(flat)]


def finite_rows(x: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """Return the rows of ``x`` (N, D) that are finite, and the mask (N,) that picks them."""
    rows = np.atleast_2d(np.asarray(x, np.float64))
    kept = np.asarray(np.isfinite(rows).all(axis=1))
    return rows[kept], kept


def nothing(axis: Axis, reason: str) -> str:
    """Say in an empty picture why there is nothing to see, and return it."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, reason, ha="center", va="center", color=MUTED, transform=axis.transAxes)
    return reason


def number(x: float, form: str) -> str:
    """Return a number as pictures and pages have it: with a minus sign, and none at zero.

    Examples
    --------
    >>> number(-1.26, ".1f"), number(-0.01, ".1f")
    ('−1.3', '0.0')
    """
    return f"{x:z{form}}".replace("-", "−")


def three_digits(x: float) -> str:
    """Return a number with its three leading digits, or whole from 1,000 on.

    Examples
    --------
    >>> three_digits(0.12345), three_digits(999.7), three_digits(1023.7)
    ('0.123', '1,000', '1,024')
    """
    return f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:.3g}"


def listed(values: Mapping[str, float], form: str = ".3g") -> str:
    """Return names with their values, in words for who does not see the picture."""
    return ", ".join(f"{name} {number(x, form)}" for name, x in values.items())
