"""Training objectives: one file a method, one line here. Reading the table of names loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probjepa.registry import Registry

if TYPE_CHECKING:
    from probjepa.methods.base import Method, ProbabilisticMethod

METHODS = Registry(
    "method",
    {
        "i-jepa": "probjepa.methods.ijepa:IJEPA",
        "vje": "probjepa.methods.vje:VJE",
        "vi-simsiam": "probjepa.methods.vi_simsiam:VISimSiam",
        "simsiam": "probjepa.methods.simsiam:SimSiam",
        "byol": "probjepa.methods.byol:BYOL",
        "vicreg": "probjepa.methods.vicreg:VICReg",
        "barlow-twins": "probjepa.methods.barlow_twins:BarlowTwins",
        "lejepa": "probjepa.methods.lejepa:LeJEPA",
    },
    group="probjepa.methods",
)

# models of other data: saved and loaded alike, but trained by a loop of one's own
MODELS = Registry("model", {"var-jepa": "probjepa.methods.var_jepa:VarJEPA"})

__all__ = ["METHODS", "MODELS", "Method", "ProbabilisticMethod"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'probjepa.methods' has no attribute '{name}'")
    return getattr(import_module("probjepa.methods.base"), name)
