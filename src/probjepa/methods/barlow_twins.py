"""Barlow Twins: the cross-correlation of two views' features, pulled to the identity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from probjepa.distributed import gather
from probjepa.heads.base import at_least_float32, far_scale, full_precision
from probjepa.heads.projectors import equal_widths, projector
from probjepa.methods.base import EncoderSettings, Method
from probjepa.methods.losses import check_pairs, check_weights, encoded, mean_of, views_of

_VARIANCE_FLOOR = 1e-5  # BatchNorm's, with which the authors' code standardises


def barlow_twins_loss(views: Sequence[Tensor], redundancy_weight: float = 5e-3) -> dict[str, Tensor]:
    r"""Cross-correlation loss of V views' embeddings (N, D): "loss" and its two terms, unweighted.

    With each feature standardised over its view's batch (variance over N, floor 1e-5), C = z₁ᵀz₂/N of two
    views, and the mean over all pairs of more:

    loss = Σᵢ(1 − Cᵢᵢ)² + λ·Σ_{i≠j} C_{ij}²,  "invariance" and "redundancy"

    Raises
    ------
    DataError
        for fewer than two rows, which have no correlation
    """
    check_pairs(views[0], "Barlow Twins")
    with full_precision(views[0]):
        views = [_standardised(at_least_float32(z)) for z in views]
        correlations = [first.T @ second / len(first) for first, second in combinations(views, 2)]
        invariance = mean_of([(1 - of.diagonal()).square().sum() for of in correlations])
        redundancy = mean_of([(of - torch.diag(of.diagonal())).square().sum() for of in correlations])
        loss = invariance + redundancy_weight * redundancy
    return {"loss": loss, "invariance": invariance, "redundancy": redundancy}


def _standardised(z: Tensor) -> Tensor:
    z = z / far_scale(z, 0)
    return (z - z.mean(0)) * (z.var(0, correction=0) + _VARIANCE_FLOOR).rsqrt()


class BarlowTwins(Method, paper_url="https://arxiv.org/abs/2103.03230"):
    r"""Barlow Twins (Zbontar et al., arXiv 2103.03230).

    h = f(x), projector z = g(h), and of the cross-correlation C of the two views' z

    loss = Σᵢ(1 − Cᵢᵢ)² + λ·Σ_{i≠j} C_{ij}²,  see ``barlow_twins_loss``

    The statistics are those of the batches of all processes together. All views run through f and g as one
    batch.

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    projector_dim, projector_layers
        width of all the projector's layers (CIFAR; 8192 for ImageNet), and how many
    redundancy_weight
        λ ≥ 0

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    name = "barlow-twins"
    most_views = math.inf
    # lightly's benchmark on CIFAR-10: 0.06 at batch 128, scaled with the batch
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.12, "sgd_momentum": 0.9, "weight_decay": 5e-4}

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        projector_layers: int = 3,
        redundancy_weight: float = 5e-3,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        check_weights({"redundancy_weight": redundancy_weight})
        super().__init__(backbone, **encoder)
        self.redundancy_weight = redundancy_weight
        widths = equal_widths(self.embedding_dim, projector_dim, projector_layers)
        self.projector = projector(widths, last_bias=False)

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W): "loss" and its unweighted terms."""
        z = self.projector(encoded(self.encoder, views_of(self, batch)))
        views = gather(at_least_float32(z).reshape(len(batch), -1, z.shape[1]), dim=1)
        return barlow_twins_loss(views.unbind(), self.redundancy_weight)
