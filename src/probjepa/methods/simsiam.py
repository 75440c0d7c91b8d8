"""SimSiam: two views, a predictor, a stop-gradient, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probjepa.distributed import standard_deviation
from probjepa.heads.base import at_least_float32, far_scale, full_precision
from probjepa.heads.projectors import equal_widths, projector
from probjepa.methods.base import EncoderSettings, Method
from probjepa.methods.losses import encoded, mean_of, views_of

_NEAR = 1e-4  # far above PyTorch's floors of a norm, 1e-8 and 1e-12


def in_range(x: Tensor) -> Tensor:
    """Return vectors (..., D) of the same directions that have a norm; those of 1e-4 to 1e15 as they are."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    up = (largest / _NEAR).clamp_min(torch.finfo(x.dtype).tiny)
    return x / torch.where(largest < _NEAR, up, far_scale(largest))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of −cos(p, z) over the rows (N, D), a scalar in [−1, 1]; the target is held constant."""
    with full_precision(prediction):
        prediction, target = at_least_float32(prediction), at_least_float32(target.detach())
        cosine: Tensor = F.cosine_similarity(in_range(prediction), in_range(target), dim=-1)
        return -cosine.mean()


def simsiam_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """−cos(pᵢ, sg zⱼ), a mean over the rows of V predictions and targets (N, D), and over the pairs i ≠ j."""
    pairs = permutations(range(len(targets)), 2)
    return mean_of([negative_cosine(predictions[i], targets[j]) for i, j in pairs])


def direction_spread(z: Tensor) -> Tensor:
    """√D times the mean standard deviation of the features of z/‖z‖, z (N, D), without gradients.

    1 where the directions are spread evenly, 0 after a collapse to one point (SimSiam, figure 2).
    """
    directions = F.normalize(in_range(z.detach().float()), dim=-1)
    return standard_deviation(directions).mean() * math.sqrt(z.shape[-1])


class SimSiam(Method, paper_url="https://arxiv.org/abs/2011.10566"):
    r"""Simple Siamese representation learning (Chen & He, arXiv 2011.10566).

    h = f(x), projector z = g(h), predictor p = q(z), each view's z held constant as the other's target:

    loss = ½[−cos(p₁, sg z₂) − cos(p₂, sg z₁)],  of more views the mean over their ordered pairs

    Projector of 2 layers (CIFAR; 3 for ImageNet) with a BatchNorm without scale and shift at its end;
    predictor 2048 → 512 → 2048. All views run as one batch, and share its batch statistics.

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    projector_dim, projector_layers
        width of all the projector's layers, and how many
    predictor_dim
        width of the predictor's hidden layer

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    name = "simsiam"
    most_views = math.inf
    # the paper's for CIFAR-10, which it does not scale with the batch
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.06, "sgd_momentum": 0.9, "weight_decay": 5e-4}

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 2048,
        projector_layers: int = 2,
        predictor_dim: int = 512,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        super().__init__(backbone, **encoder)
        widths = equal_widths(self.embedding_dim, projector_dim, projector_layers)
        self.projector = projector(widths, last_norm="plain")
        self.predictor = projector([projector_dim, predictor_dim, projector_dim])

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W); "spread" is ``direction_spread`` of z."""
        z = self.projector(encoded(self.encoder, views_of(self, batch)))
        loss = simsiam_loss(self.predictor(z).chunk(len(batch)), z.chunk(len(batch)))
        return {"loss": loss, "spread": direction_spread(z)}
