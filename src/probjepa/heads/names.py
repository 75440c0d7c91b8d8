"""The table of heads: a new one is one line here. Reading it loads no torch."""

from __future__ import annotations

from probjepa.registry import Registry

# name → where its class is
CLASSES = {
    "deterministic": "probjepa.heads.deterministic:Deterministic",
    "gaussian": "probjepa.heads.gaussian:Gaussian",
    "mdn": "probjepa.heads.mixture:MixtureDensity",
    "autoregressive": "probjepa.heads.autoregressive:Autoregressive",
    "realnvp": "probjepa.heads.realnvp:RealNVP",
    "flow_matching": "probjepa.heads.flow_matching:FlowMatching",
    "diffusion": "probjepa.heads.diffusion:Diffusion",
}
HEADS = Registry("head", CLASSES, group="probjepa.heads")
