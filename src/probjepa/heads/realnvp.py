"""A normalising flow of affine couplings: exact density and one-pass samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from probjepa.errors import ConfigError
from probjepa.heads.base import (
    FARTHEST,
    DensityPrediction,
    Head,
    check_counts,
    check_widths,
    full_precision,
    gaussian_log_density,
)
from probjepa.heads.networks import ActNorm, mlp

_LOG_SCALE_BOUND = 2.0


class Coupling(nn.Module):
    """One half of the coordinates stays, the other becomes y·exp(s) + t, with s = 2·tanh(·).

    s and t are functions of the half that stays and of the context. The last layer starts at zero: an
    untrained coupling is the identity.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target and of the context
    hidden
        hidden widths of the network of s and t
    parity
        0: the even coordinates stay, 1: the odd ones
    """

    kept: Tensor
    moved: Tensor
    order: Tensor

    def __init__(self, dim: int, context_dim: int, hidden: Sequence[int], parity: int) -> None:
        super().__init__()
        kept = torch.arange(parity, dim, 2)
        moved = torch.arange(1 - parity, dim, 2)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("order", torch.cat([kept, moved]).argsort(), persistent=False)
        # a linear layer of [half, context], in two: the context's part serves all draws of a context
        self.entry = nn.Linear(len(kept), hidden[0], bias=False)
        self.context = nn.Linear(context_dim, hidden[0])
        self.rest = mlp([*hidden, 2 * len(moved)])
        nn.init.zeros_(self.rest[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.rest[-1].bias)  # type: ignore[arg-type]

    def _terms(self, kept: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.rest(F.gelu(self.entry(kept) + code)).to(kept.dtype).chunk(2, -1)
        return _LOG_SCALE_BOUND * torch.tanh(raw), shift

    def forward(self, y: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Transform y (..., D), given the context's part ``context(c)``; also log|det| (...)."""
        kept, moved = y[..., self.kept], y[..., self.moved]
        log_scale, shift = self._terms(kept, code)
        moved = moved * log_scale.exp() + shift
        return torch.cat([kept, moved], -1)[..., self.order], log_scale.sum(-1)

    def inverse(self, y: Tensor, code: Tensor) -> Tensor:
        """Undo ``forward``."""
        kept, moved = y[..., self.kept], y[..., self.moved]
        log_scale, shift = self._terms(kept, code)
        moved = (moved - shift) * (-log_scale).exp()
        return torch.cat([kept, moved], -1)[..., self.order]


class RealNVP(Head):
    """Target → noise by ActNorm and a coupling, in turn; log p(y|c) = log N(z; 0, I) + log|det ∂z/∂y|.

    Couplings alternate which half stays (even or odd coordinates) and see the context. Each ActNorm is set by
    the first training batch. Source: arXiv 1605.08803. The mean is one of draws.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target (≥ 2) and of the context
    couplings
        number of couplings ≥ 1
    hidden
        hidden widths of each coupling's network, GELU between. About 5.3 MFLOP a target at the sizes of
        I-JEPA tokens (192 → 384), forward

    Raises
    ------
    ConfigError
        for dim = 1, which a coupling cannot split, a count below 1 or no hidden layer
    """

    name = "realnvp"
    exported = ("likelihood",)

    def __init__(
        self, dim: int, context_dim: int, *, couplings: int = 6, hidden: Sequence[int] = (384, 384)
    ) -> None:
        super().__init__(dim, context_dim)
        check_counts(self, couplings=couplings)
        if dim < 2 or not check_widths(self, hidden):
            raise ConfigError(
                f"head 'realnvp': give dim ≥ 2 and a hidden layer, got dim = {dim}, hidden = {list(hidden)}"
            )
        self.norms = nn.ModuleList(ActNorm(dim) for _ in range(couplings))
        self.couplings = nn.ModuleList(Coupling(dim, context_dim, hidden, i % 2) for i in range(couplings))

    @property
    def stages(self) -> list[tuple[ActNorm, Coupling]]:
        """What carries a target to noise, in order."""
        return cast(list[tuple[ActNorm, Coupling]], list(zip(self.norms, self.couplings, strict=True)))

    def forward(self, context: Tensor) -> FlowPrediction:
        """Predict from a context (..., C)."""
        context = self.checked(context)
        return FlowPrediction(self, [coupling.context(context) for _, coupling in self.stages])


class FlowPrediction(DensityPrediction):
    """The distribution of the flow's inverse at N(0, I)."""

    head: RealNVP
    has_rsample = True

    def __init__(self, head: RealNVP, codes: Sequence[Tensor]) -> None:
        super().__init__(head, codes[0].shape[:-1])
        self._codes = codes

    def to_noise(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., D) of targets (..., D), held to ±1e30, and log|det ∂z/∂y| (...)."""
        z = self.checked(target).clamp(-FARTHEST, FARTHEST)
        total = z.new_zeros(z.shape[:-1])
        for (norm, coupling), code in zip(self.head.stages, self._codes, strict=True):
            with full_precision(z):
                z, log_det = norm(z)
            total = total + log_det
            z, log_det = coupling(z, code)
            total = total + log_det
        return z, total

    def from_noise(self, z: Tensor) -> Tensor:
        """Target (..., D) of z (..., D): the inverse of ``to_noise``."""
        y = self.checked(z)
        for (norm, coupling), code in reversed(list(zip(self.head.stages, self._codes, strict=True))):
            y = coupling.inverse(y, code)
            with full_precision(y):
                y = norm.inverse(y)
        return y

    def log_abs_det(self, target: Tensor) -> Tensor:
        """log|det ∂z/∂y| (...) at targets (..., D)."""
        return self.to_noise(target)[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) in nats at targets (..., D)."""
        z, log_det = self.to_noise(value)
        with full_precision(z):
            return gaussian_log_density(z, z.new_zeros(()), z.new_ones(())).sum(-1) + log_det

    def rsample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw targets (*sample_shape, ..., D), differentiable in the flow's parameters."""
        return self.from_noise(self.standard_normal(sample_shape, generator))
