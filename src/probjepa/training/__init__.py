"""The parts of one training loop, and :func:`fit`, which trains any method with them.

Optimiser, schedule, checkpoint, progress bar, interruption and random state are plain parts: methods of
images are trained with them by Lightning (``fit``, ``Module``), tables by a loop of their own. Lightning is
imported only when ``fit`` or ``Module`` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import lazy

_LAZY = {
    "EpochLoader": "loader",
    "FitSettings": "settings",
    "Interrupted": "interrupt",
    "Module": "module",
    "fit": "runs",
}

__all__ = ["EpochLoader", "FitSettings", "Interrupted", "Module", "fit"]

if TYPE_CHECKING:
    from probjepa.training.interrupt import Interrupted
    from probjepa.training.loader import EpochLoader
    from probjepa.training.module import Module
    from probjepa.training.runs import fit
    from probjepa.training.settings import FitSettings

__getattr__ = lazy(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
