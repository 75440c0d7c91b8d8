"""Drawing on a canvas and finishing it in two steps; `figures.picture` does both in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib as mpl

from probjepa.plots.style import INK, MUTED, PAPER, RC, label, palette
from probjepa.report.figures import FULL, HALF, THIRD, canvas, finish
from probjepa.report.page import Figure

__all__ = ["FULL", "HALF", "INK", "MUTED", "PAPER", "THIRD", "canvas", "finish", "label", "palette", "styled"]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function under the house style and leave matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper
