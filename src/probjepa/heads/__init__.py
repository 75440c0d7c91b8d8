"""Networks on top of an embedding or a context: the inference network and the predictive heads.

Reading the table of names loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probjepa.heads.names import CLASSES, HEADS

if TYPE_CHECKING:
    from probjepa.heads.autoregressive import Autoregressive as Autoregressive
    from probjepa.heads.base import Head as Head
    from probjepa.heads.base import NoDensityError as NoDensityError
    from probjepa.heads.base import Prediction as Prediction
    from probjepa.heads.deterministic import Deterministic as Deterministic
    from probjepa.heads.diffusion import Diffusion as Diffusion
    from probjepa.heads.flow_matching import FlowMatching as FlowMatching
    from probjepa.heads.gaussian import Gaussian as Gaussian
    from probjepa.heads.inference import InferenceNetwork as InferenceNetwork
    from probjepa.heads.mixture import MixtureDensity as MixtureDensity
    from probjepa.heads.projectors import projector as projector
    from probjepa.heads.realnvp import RealNVP as RealNVP

_LAZY = {entry.partition(":")[2]: entry for entry in CLASSES.values()} | {
    "Head": "probjepa.heads.base:Head",
    "InferenceNetwork": "probjepa.heads.inference:InferenceNetwork",
    "NoDensityError": "probjepa.heads.base:NoDensityError",
    "Prediction": "probjepa.heads.base:Prediction",
    "projector": "probjepa.heads.projectors:projector",
}

__all__ = ["HEADS", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa.heads' has no attribute '{name}'")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)
