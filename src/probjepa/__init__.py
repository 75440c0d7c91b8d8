"""probjepa: joint embeddings that know what they don't know.

Probabilistic joint-embedding self-supervised learning. Names are imported on first use, so that
``import probjepa`` loads neither Lightning nor kornia nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name → module it lives in; None: the name is itself a sub-package
_LAZY: dict[str, str | None] = {
    "VJE": "probjepa.methods.vje",
    "load": "probjepa.artifacts",
    "fit": "probjepa.training",
    "open_images": "probjepa.data",
    "backbones": None,
    "data": None,
    "detectors": None,
    "distributions": None,
    "metrics": None,
    "methods": None,
    "training": None,
}

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604

if TYPE_CHECKING:
    from probjepa import backbones, data, detectors, distributions, methods, metrics, training
    from probjepa.artifacts import load
    from probjepa.data import open_images
    from probjepa.methods.vje import VJE
    from probjepa.training import fit


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa' has no attribute '{name}'")
    home = _LAZY[name]
    value = import_module(f"probjepa.{name}") if home is None else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
