"""LeJEPA: views that agree on embeddings that are standard normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from probjepa.distributed import gather, shared_seed
from probjepa.errors import ConfigError
from probjepa.heads.base import at_least_float32, full_precision
from probjepa.heads.projectors import projector
from probjepa.methods.base import EncoderSettings, Method
from probjepa.methods.losses import encoded, views_of
from probjepa.methods.sigreg import sigreg


def lejepa_loss(
    z: Tensor, sigreg_weight: float = 0.02, n_directions: int = 256, seed: int = 0
) -> dict[str, Tensor]:
    r"""(1 − λ)·invariance + λ·SIGReg of V views' embeddings (V, N, D): "loss" and its two terms, unweighted.

    - invariance: Σ(z_v − z̄)²/(V·N·D), z̄ the mean of the views
    - sigreg: the mean over views of ``probjepa.methods.sigreg.sigreg``, of all N rows, along the same
      directions for every view, drawn from ``seed``
    """
    with full_precision(z):
        z = at_least_float32(z)
        invariance = (z - z.mean(0)).square().mean()
        regularity = torch.stack(
            [sigreg(view, n_directions, torch.Generator(z.device).manual_seed(seed)) for view in z]
        ).mean()
        loss = (1 - sigreg_weight) * invariance + sigreg_weight * regularity
    return {"loss": loss, "invariance": invariance, "sigreg": regularity}


class LeJEPA(Method, paper_url="https://arxiv.org/abs/2511.08544"):
    r"""Lean joint-embedding predictive architecture (Balestriero & LeCun, arXiv 2511.08544).

    h = f(x), projector z = g(h). For two or more views

    loss = (1 − λ)·invariance to the mean of the views + λ·SIGReg,  see ``lejepa_loss``

    No stop-gradient, no averaged network, no predictor. The statistic is that of the rows of all processes
    together, along directions that they share and that are new in every step. All views run through f and g
    as one batch.

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    projector_dim, hidden_dim
        width of the projections, and of the projector's two hidden layers
    sigreg_weight
        λ in [0, 1]
    n_directions
        random directions a step, at least 1 (the paper's 256 to 1024)

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    name = "lejepa"
    most_views = math.inf
    # the authors' minimal example (MINIMAL.md of their repository)
    recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 5e-2,
    }

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 128,
        hidden_dim: int = 2048,
        sigreg_weight: float = 0.02,
        n_directions: int = 256,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        if not 0 <= sigreg_weight <= 1:
            raise ConfigError(f"sigreg_weight must lie in [0, 1], got {sigreg_weight}")
        if n_directions < 1:
            raise ConfigError(f"n_directions must be a whole number ≥ 1, got {n_directions}")
        super().__init__(backbone, **encoder)
        self.sigreg_weight = sigreg_weight
        self.n_directions = n_directions
        self.projector = projector([self.embedding_dim, hidden_dim, hidden_dim, projector_dim])

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W): "loss" and its unweighted terms."""
        z = self.projector(encoded(self.encoder, views_of(self, batch)))
        joined = gather(at_least_float32(z).reshape(len(batch), -1, z.shape[1]), dim=1)
        return lejepa_loss(joined, self.sigreg_weight, self.n_directions, shared_seed(z.device))
