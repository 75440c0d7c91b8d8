"""Networks on top of an embedding or a context: the inference network and the predictive heads.

Reading the table of names loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.heads.names import CLASSES, HEADS
from probjepa.registry import lazy

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

# name → module it lives in
_LAZY = {
    **{name: home.rpartition(".")[2] for home, name in (of.split(":") for of in CLASSES.values())},
    "Head": "base",
    "InferenceNetwork": "inference",
    "NoDensityError": "base",
    "Prediction": "base",
    "projector": "projectors",
}

__all__ = ["HEADS", *_LAZY]

__getattr__ = lazy(__name__, _LAZY)
