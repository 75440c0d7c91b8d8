"""Lightning glue: one adapter, one loader and one :func:`fit` that train any method.

Lightning is imported only when ``fit`` or ``Module`` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "EpochLoader": "probjepa.training.loader",
    "Interrupted": "probjepa.training.interrupt",
    "Module": "probjepa.training.module",
    "fit": "probjepa.training.runs",
}

__all__ = ["EpochLoader", "Interrupted", "Module", "fit"]

if TYPE_CHECKING:
    from probjepa.training.interrupt import Interrupted
    from probjepa.training.loader import EpochLoader
    from probjepa.training.module import Module
    from probjepa.training.runs import fit


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa.training' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
