"""The inference network g: an embedding h to the mean and variance of a diagonal Gaussian posterior."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from probjepa.distributions.base import FullPrecision, full_precision
from probjepa.errors import ConfigError
from probjepa.heads.base import far_scale

_VARIANCE_FLOOR = 1e-6


class InferenceNetwork(FullPrecision):
    """g(h) → μ, σ², both (N, D): two bias-free Linear–LayerNorm–GELU blocks, then a head each.

    σ² = softplus(·) + 1e-6. Weights are Xavier-uniform. Runs in float32 (or, made ``double``, in float64),
    whatever the autocast around it. arXiv 2602.05639; GELU and the floor are ours.

    Parameters
    ----------
    dim
        embedding dimension D
    hidden_dim
        width H ≥ 2; default D/4 (128 for ResNet-18, 512 for ResNet-50), at least 8
    variance
        "diagonal", or "isotropic": one σ² an input, spread over the D features

    Raises
    ------
    ConfigError
        for an unknown ``variance`` or a hidden width below 2
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        variance: Literal["diagonal", "isotropic"] = "diagonal",
    ) -> None:
        super().__init__()
        if variance not in ("diagonal", "isotropic"):
            raise ConfigError(f"variance must be 'diagonal' or 'isotropic', got '{variance}'")
        hidden = max(dim // 4, 8) if hidden_dim is None else hidden_dim
        if not isinstance(hidden, int) or hidden < 2:  # a LayerNorm of one unit is constant
            raise ConfigError(f"hidden_dim must be a whole number, at least 2, got {hidden}")
        self.dim = dim
        self.trunk = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.LayerNorm(hidden),
            nn.GELU(),
        )
        self.mean = nn.Linear(hidden, dim)
        self.raw_variance = nn.Linear(hidden, dim if variance == "diagonal" else 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Map h (N, D) to μ and σ², both (N, D), in the parameters' type."""
        with full_precision(h):
            h = h.to(self.mean.weight.dtype)
            # the first layer norm takes the scale away, and its squares would overflow
            hidden = self.trunk(h / far_scale(h))
            variance = F.softplus(self.raw_variance(hidden)) + _VARIANCE_FLOOR
            return self.mean(hidden), variance.expand(-1, self.dim)
