"""The parts of one training loop, and :func:`fit`, which trains any method with them.

Optimiser, schedule, checkpoint, progress bar, interruption and random state are plain parts: methods of
images are trained with them by Lightning (``fit``, ``Module``), tables by a loop of their own. Lightning is
imported only when ``fit`` or ``Module`` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "EpochLoader": "probjepa.training.loader",
    "FitSettings": "probjepa.training.settings",
    "Interrupted": "probjepa.training.interrupt",
    "Module": "probjepa.training.module",
    "fit": "probjepa.training.runs",
}

__all__ = ["EpochLoader", "FitSettings", "Interrupted", "Module", "fit"]

if TYPE_CHECKING:
    from probjepa.training.interrupt import Interrupted
    from probjepa.training.loader import EpochLoader
    from probjepa.training.module import Module
    from probjepa.training.runs import fit
    from probjepa.training.settings import FitSettings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa.training' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
