"""Networks on top of an embedding or a context: the inference network and the predictive heads.

Reading the table of names loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probjepa.registry import Registry

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

HEADS = Registry(
    "head",
    {
        "deterministic": "probjepa.heads.deterministic:Deterministic",
        "gaussian": "probjepa.heads.gaussian:Gaussian",
        "mdn": "probjepa.heads.mixture:MixtureDensity",
        "autoregressive": "probjepa.heads.autoregressive:Autoregressive",
        "realnvp": "probjepa.heads.realnvp:RealNVP",
        "flow_matching": "probjepa.heads.flow_matching:FlowMatching",
        "diffusion": "probjepa.heads.diffusion:Diffusion",
    },
    group="probjepa.heads",
)

# name → module it lives in
_LAZY = {
    "Autoregressive": "autoregressive",
    "Deterministic": "deterministic",
    "Diffusion": "diffusion",
    "FlowMatching": "flow_matching",
    "Gaussian": "gaussian",
    "Head": "base",
    "InferenceNetwork": "inference",
    "MixtureDensity": "mixture",
    "NoDensityError": "base",
    "Prediction": "base",
    "RealNVP": "realnvp",
    "projector": "projectors",
}

__all__ = ["HEADS", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa.heads' has no attribute '{name}'")
    return getattr(import_module(f"probjepa.heads.{_LAZY[name]}"), name)
