"""probjepa: joint embeddings that know what they don't know.

Probabilistic joint-embedding self-supervised learning. Names are imported on first use, so that
``import probjepa`` loads neither Lightning nor kornia nor scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probjepa.registry import imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from probjepa import backbones as backbones
    from probjepa import data as data
    from probjepa import detectors as detectors
    from probjepa import distributions as distributions
    from probjepa import errors as errors
    from probjepa import heads as heads
    from probjepa import jacobian as jacobian
    from probjepa import methods as methods
    from probjepa import metrics as metrics
    from probjepa import scores as scores
    from probjepa import training as training
    from probjepa.data import open_images as open_images
    from probjepa.evaluation import evaluate as evaluate
    from probjepa.exporting import export as export
    from probjepa.jacobian import jacobian_spectrum as jacobian_spectrum
    from probjepa.jacobian import jepa_score as jepa_score
    from probjepa.loading import load as load
    from probjepa.loading import open_encoder as open_encoder
    from probjepa.methods.barlow_twins import BarlowTwins as BarlowTwins
    from probjepa.methods.byol import BYOL as BYOL
    from probjepa.methods.ijepa import IJEPA as IJEPA
    from probjepa.methods.lejepa import LeJEPA as LeJEPA
    from probjepa.methods.simsiam import SimSiam as SimSiam
    from probjepa.methods.var_jepa import VarJEPA as VarJEPA
    from probjepa.methods.vi_simsiam import VISimSiam as VISimSiam
    from probjepa.methods.vicreg import VICReg as VICReg
    from probjepa.methods.vje import VJE as VJE
    from probjepa.metrics import conformal_p_values as conformal_p_values
    from probjepa.metrics import threshold as threshold
    from probjepa.tabular import TJEPA as TJEPA
    from probjepa.tabular import VarTJEPA as VarTJEPA
    from probjepa.training import fit as fit

# name → module it lives in; None: the name is itself a sub-package
_LAZY: dict[str, str | None] = {
    "BYOL": "probjepa.methods.byol",
    "BarlowTwins": "probjepa.methods.barlow_twins",
    "IJEPA": "probjepa.methods.ijepa",
    "LeJEPA": "probjepa.methods.lejepa",
    "SimSiam": "probjepa.methods.simsiam",
    "TJEPA": "probjepa.tabular",
    "VICReg": "probjepa.methods.vicreg",
    "VISimSiam": "probjepa.methods.vi_simsiam",
    "VJE": "probjepa.methods.vje",
    "VarJEPA": "probjepa.methods.var_jepa",
    "VarTJEPA": "probjepa.tabular",
    "backbones": None,
    "conformal_p_values": "probjepa.metrics",
    "data": None,
    "detectors": None,
    "distributions": None,
    "errors": None,
    "evaluate": "probjepa.evaluation",
    "export": "probjepa.exporting",
    "fit": "probjepa.training",
    "heads": None,
    "jacobian": None,
    "jacobian_spectrum": "probjepa.jacobian",
    "jepa_score": "probjepa.jacobian",
    "load": "probjepa.loading",
    "methods": None,
    "metrics": None,
    "open_encoder": "probjepa.loading",
    "open_images": "probjepa.data",
    "scores": None,
    "threshold": "probjepa.metrics",
    "training": None,
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa' has no attribute '{name}'")
    home = _LAZY[name]
    value = imported(f"probjepa.{name}") if home is None else getattr(imported(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
