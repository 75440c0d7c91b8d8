"""Training objectives: one file a method, one line here. Reading the table of names loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import Registry, lazy

if TYPE_CHECKING:
    from probjepa.methods.base import Method
    from probjepa.methods.probabilistic import ProbabilisticMethod

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

# saved and loaded alike, but trained by a loop of one's own, or elsewhere
MODELS = Registry(
    "model",
    {"var-jepa": "probjepa.methods.var_jepa:VarJEPA", "encoder": "probjepa.methods.opened:OpenedEncoder"},
)

__all__ = ["METHODS", "MODELS", "Method", "ProbabilisticMethod"]

__getattr__ = lazy(__name__, {"Method": "base", "ProbabilisticMethod": "probabilistic"})
