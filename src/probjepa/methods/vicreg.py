"""VICReg: views that agree, features that vary, features that are uncorrelated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from probjepa.distributed import gather
from probjepa.heads.base import at_least_float32, full_precision
from probjepa.heads.deterministic import variances_and_off_diagonal
from probjepa.heads.projectors import equal_widths, projector
from probjepa.methods.base import EncoderSettings, Method
from probjepa.methods.losses import check_pairs, check_weights, encoded, mean_of, views_of


def vicreg_loss(
    views: Sequence[Tensor],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> dict[str, Tensor]:
    r"""Variance–invariance–covariance loss of V views' embeddings: "loss" and its three terms, unweighted.

    For two views, and as the mean over all pairs of more,

    - invariance: Σ(z₁ − z₂)²/(N·D)
    - variance: ½[v(z₁) + v(z₂)], v(z) = mean over features of max(0, 1 − √(var + 1e-4)), var over N − 1
    - covariance: c(z₁) + c(z₂), c(z) = Σ_{i≠j} C_{ij}²/D, C the covariance over N − 1

    That is the authors' code. The paper (arXiv 2105.04906, eq. 6) sums the two hinges, twice our variance
    term, and so do some libraries; others halve the covariance term too.

    Parameters
    ----------
    views
        V ≥ 2 of (N, D), N ≥ 2, of the same images in the same order
    invariance_weight, variance_weight, covariance_weight
        of the three terms in "loss"

    Raises
    ------
    DataError
        for fewer than two rows, which have no variance
    """
    check_pairs(views[0], "VICReg")
    with full_precision(views[0]):
        views = [at_least_float32(z) for z in views]
        invariance = mean_of([F.mse_loss(first, second) for first, second in combinations(views, 2)])
        variance = mean_of([_hinge(z) for z in views])
        covariance = 2 * mean_of([variances_and_off_diagonal(z)[1] for z in views])
        loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


def _hinge(z: Tensor) -> Tensor:
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


class VICReg(Method, paper_url="https://arxiv.org/abs/2105.04906"):
    r"""Variance–invariance–covariance regularisation (Bardes et al., arXiv 2105.04906).

    h = f(x), expander z = g(h), loss = 25·invariance + 25·variance + 1·covariance: see ``vicreg_loss`` for
    the terms and their normalisation. The statistics are those of the batches of all processes together. All
    views run through f and g as one batch.

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    projector_dim, projector_layers
        width of all the expander's layers (CIFAR; 8192 for ImageNet), and how many
    invariance_weight, variance_weight, covariance_weight
        weights ≥ 0 of the three terms

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    name = "vicreg"
    most_views = math.inf
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.03, "sgd_momentum": 0.9, "weight_decay": 5e-4}

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        projector_layers: int = 3,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        weights = {
            "invariance_weight": invariance_weight,
            "variance_weight": variance_weight,
            "covariance_weight": covariance_weight,
        }
        check_weights(weights)
        super().__init__(backbone, **encoder)
        self.weights = weights
        widths = equal_widths(self.embedding_dim, projector_dim, projector_layers)
        self.projector = projector(widths, last_bias=False)

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W): "loss" and its unweighted terms."""
        z = self.projector(encoded(self.encoder, views_of(self, batch)))
        views = gather(at_least_float32(z).reshape(len(batch), -1, z.shape[1]), dim=1)
        return vicreg_loss(views.unbind(), **self.weights)
