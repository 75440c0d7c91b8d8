"""BYOL: predict an averaged network's projection of the other view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from probjepa.heads.projectors import projector
from probjepa.methods.base import EncoderSettings, Method
from probjepa.methods.ema import EMA
from probjepa.methods.losses import encoded, views_of
from probjepa.methods.simsiam import direction_spread, simsiam_loss


def byol_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Twice the mean of 2 − 2cos(pᵢ, sg tⱼ) over rows and ordered pairs of V views' (N, D): in [0, 8].

    Of two views that is [2 − 2cos(p₁, sg t₂)] + [2 − 2cos(p₂, sg t₁)].
    """
    return 4 + 4 * simsiam_loss(predictions, targets)


class BYOL(Method, paper_url="https://arxiv.org/abs/2006.07733"):
    r"""Bootstrap your own latent (Grill et al., arXiv 2006.07733).

    h = f(x), projector z = g(h), predictor p = q(z). The targets t = g'(f'(x)) come from an exponential
    moving average of f and g, whose momentum goes τ₀ → 1 on a cosine, a step after each optimiser step:

    loss = ‖p̄₁ − t̄₂‖² + ‖p̄₂ − t̄₁‖² = [2 − 2cos(p₁, t₂)] + [2 − 2cos(p₂, t₁)],  x̄ = x/‖x‖

    Of more views, twice the mean over their ordered pairs.

    The averaged network normalises by the statistics of its own batch, as in the paper's code. All views run
    as one batch, and share its statistics.

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    projector_dim
        width of the projections
    hidden_dim
        width of the one hidden layer of projector and predictor
    ema_momentum
        τ₀ of the averaged network; the paper's 0.99 for runs of 100 epochs

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    name = "byol"
    most_views = math.inf
    # lightly's benchmark on CIFAR-10 has 0.12 at this batch size with a loss of a quarter of ours
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.03, "sgd_momentum": 0.9, "weight_decay": 5e-4}

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        projector_dim: int = 256,
        hidden_dim: int = 4096,
        ema_momentum: float = 0.996,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        super().__init__(backbone, **encoder)
        self.projector = projector([self.embedding_dim, hidden_dim, projector_dim], last_bias=False)
        self.predictor = projector([projector_dim, hidden_dim, projector_dim], last_bias=False)
        self.target = EMA(self._online(), ema_momentum, statistics="batch")

    def _online(self) -> nn.Sequential:
        """What is averaged; made again, so that the state holds its weights once."""
        return nn.Sequential(self.encoder, self.projector)

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W); "spread" is ``direction_spread`` of z."""
        images, views = views_of(self, batch), len(batch)
        z = self.projector(encoded(self.encoder, images))
        loss = byol_loss(self.predictor(z).chunk(views), encoded(self.target, images).chunk(views))
        return {"loss": loss, "spread": direction_spread(z)}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the averaged network."""
        self.target.update(self._online(), step, total_steps)
