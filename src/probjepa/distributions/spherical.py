"""Distributions on the unit sphere: Power Spherical, and the uniform one it is compared with.

Source: De Cao and Aziz, "The Power Spherical distribution", arXiv 2006.04437.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, register_kl

from probjepa.distributions._gamma import digamma_step, log_gamma_step
from probjepa.distributions.base import Likelihood, at_least_float32, full_precision
from probjepa.distributions.student_t import unit_direction

# Within this angle of the antipode, where the density falls to 0 and its logarithm diverges, log_prob is
# held constant: there ½(1 + μᵀx) = sin²(½·1e-4).
_MIN_HALF = (0.5e-4) ** 2


def log_sphere_area(dim: int) -> float:
    """Log of the surface area of the unit sphere in R^dim: log 2 + (dim/2)·log π − log Γ(dim/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"a direction needs at least 2 dimensions, got {dim}")


def _check_sample(distribution: PowerSpherical | HypersphericalUniform, value: Tensor) -> None:
    """Check what a log-density is asked of, as torch does, which fails on an empty batch."""
    if not distribution._validate_args:
        return
    if value.numel():
        distribution._validate_sample(value)
    elif value.shape[-1:] != distribution.event_shape:
        raise ValueError(f"directions have {distribution.dim} dimensions, got shape {tuple(value.shape)}")


class PowerSpherical(Likelihood):
    r"""Density ∝ (1 + μᵀx)^κ on the unit sphere of R^D.

    With β = (D−1)/2 and α = β + κ:

    log p(x) = κ·log(½(1 + μᵀx)) + log Γ(α+β) − log Γ(α) − β·log 4π,

    E[x] = κ/(κ+D−1)·μ, H = β·log 4π − log Γ(α+β) + log Γ(α) + κ(ψ(α+β) − ψ(α)). Same as the paper's
    (arXiv 2006.04437, eq. 5 and 6), with κ·log 2 taken out of both terms, where it only cancels.

    Values have the dtype of the arguments, float32 at least. The log-gammas alone are taken in float64: at
    κ = 1e6 each is 1e7, and float32 would keep none of the digits of their difference; from κ = 1e4 on it is
    Stirling's series, in which nothing cancels. ½(1 + μᵀx) comes
    from ‖x ∓ μ‖², which is exact near the mode. Within 1e-4 of the antipode log_prob is held constant (it
    tends to −∞ there), so it is finite everywhere, gradients included.

    Parameters
    ----------
    loc
        mean direction μ (..., D), D ≥ 2; normalised here. The zero vector stands for the first axis.
    concentration
        κ ≥ 0, a number or a tensor that broadcasts with loc's (...); 0 is the uniform distribution

    Raises
    ------
    ValueError
        if D < 2, or (with validation on) κ is negative or not finite, or loc not finite

    Examples
    --------
    >>> PowerSpherical(torch.tensor([3.0, 0.0]), 2.0).mean
    tensor([0.6667, 0.0000])
    """

    # the centre is checked below: torch's constraint of vectors cannot read an empty batch
    arg_constraints = {"concentration": constraints.nonnegative}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    has_rsample = True
    shown = ("loc", "concentration")

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        loc = at_least_float32(loc)
        if not isinstance(concentration, Tensor):
            concentration = torch.tensor(concentration, dtype=loc.dtype, device=loc.device)
        concentration = at_least_float32(concentration)
        dtype = torch.promote_types(loc.dtype, concentration.dtype)
        _check_dim(loc.shape[-1] if loc.ndim else 0)
        batch_shape = torch.broadcast_tensors(loc[..., 0], concentration)[0].shape  # type: ignore[no-untyped-call]
        self.loc = unit_direction(loc.to(dtype)).expand(*batch_shape, -1)
        self.concentration = concentration.to(dtype).expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)
        for name, given in (("the concentration κ", self.concentration), ("loc", loc)):
            if self._validate_args and not bool(torch.isfinite(given).all()):
                raise ValueError(f"{name} must be finite")

    @property
    def dim(self) -> int:
        """Dimension D of the space around the sphere."""
        return self._event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        """Return the distribution with its batch shape broadcast to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        return type(self)(
            self.loc.expand(shape + self._event_shape), self.concentration.expand(shape), validate_args=False
        )

    @property
    def mode(self) -> Tensor:
        """The normalised μ (..., D)."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """E[x] = κ/(κ+D−1)·μ (..., D): inside the sphere."""
        return (self.concentration / (self.concentration + (self.dim - 1))).unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Tensor:
        """Var[x] (..., D), a value a coordinate: Var[t]·μ² + E[1 − t²]/(D−1)·(1 − μ²), t = μᵀx.

        t = 2b − 1 with b ~ Beta(α, β), and what is left of x is uniform on the sphere around μ.
        """
        alpha, beta = self._shapes()
        total = alpha + beta
        across = 2 * alpha / (total * (total + 1))
        along = 2 * beta * across / total
        squares = self.loc.square()
        along, across = (x.to(self.loc.dtype).unsqueeze(-1) for x in (along, across))
        return along * squares + across * (1 - squares)

    def _shapes(self) -> tuple[Tensor, float]:
        """Return α (...), in float64, and β: ½(1 + μᵀx) ~ Beta(α, β)."""
        beta = (self.dim - 1) / 2
        return self.concentration.double() + beta, beta

    def _log_scale(self) -> Tensor:
        """Return log Γ(α+β) − log Γ(α) − β·log 4π (...), in float64."""
        alpha, beta = self._shapes()
        return log_gamma_step(alpha, beta) + beta * (alpha.log() - math.log(4 * math.pi))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density at x (..., D), with respect to the surface measure; x is normalised; returns (...)."""
        _check_sample(self, value)
        with full_precision(self.loc):
            x = unit_direction(at_least_float32(value))
            below = (x - self.loc).square().sum(-1) / 4  # ½(1 − μᵀx)
            above = (x + self.loc).square().sum(-1) / 4  # ½(1 + μᵀx)
            near = below < above
            log_half = torch.where(
                near,
                torch.log1p(-torch.where(near, below, 0.0)),
                torch.where(near, 1.0, above).clamp_min(_MIN_HALF).log(),
            )
            return self.concentration * log_half + self._log_scale().to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """Differential entropy (...) in nats, with respect to the surface measure."""
        return self._entropy().to(self.loc.dtype)

    def _entropy(self) -> Tensor:
        return self.concentration.double() * digamma_step(*self._shapes()) - self._log_scale()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x (sample_shape + (..., D)), differentiable in loc and concentration.

        μᵀx = 2b − 1 with b ~ Beta(α, β), as two gammas, so that 1 − b keeps its digits at any κ; the rest is
        a uniform tangent at the first axis, reflected to one at μ. Of the two reflections that do it, the
        one whose gradient is bounded by √2 is taken.
        """
        shape = torch.Size(sample_shape) + self._batch_shape
        alpha, beta = self._shapes()
        a = torch._standard_gamma(alpha.expand(shape))
        b = torch._standard_gamma(torch.full_like(a, beta))
        cosine = (a - b) / (a + b)
        sine = 2 * (a / (a + b) * (b / (a + b))).sqrt()
        dtype, device = self.loc.dtype, self.loc.device
        tangent = unit_direction(torch.randn(*shape, self.dim - 1, dtype=dtype, device=device))
        y = torch.cat([cosine.to(dtype).unsqueeze(-1), sine.to(dtype).unsqueeze(-1) * tangent], -1)
        # I − uuᵀ/(1 + |μ₁|), u = μ ± e₁ with the sign of μ₁, maps e₁ to ∓μ: no division by ‖μ − e₁‖ → 0
        sign = torch.where(self.loc[..., :1] < 0, -1.0, 1.0).to(dtype)
        u = torch.cat([self.loc[..., :1] + sign, self.loc[..., 1:]], -1)
        reflected = y - u * ((u * y).sum(-1, keepdim=True) / (1 + self.loc[..., :1].abs()))
        return -sign * reflected


class HypersphericalUniform(Likelihood):
    """The uniform distribution on the unit sphere of R^D: log p = −log(2·π^{D/2}/Γ(D/2)).

    Parameters
    ----------
    dim
        D ≥ 2
    batch_shape
        shape of a batch of them
    dtype, device
        of the samples; default: torch's

    Raises
    ------
    ValueError
        if D < 2
    """

    arg_constraints = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    has_rsample = True
    shown = ("dim",)

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_dim(dim)
        self.dim = dim
        self._like = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        """Return the distribution with its batch shape broadcast to ``batch_shape``."""
        self._like.expand(self._batch_shape).expand(batch_shape)  # torch's error where it does not broadcast
        return type(self)(
            self.dim, batch_shape, dtype=self._like.dtype, device=self._like.device, validate_args=False
        )

    @property
    def mean(self) -> Tensor:
        """The origin (..., D)."""
        return self._like.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """1/D (..., D), a value a coordinate."""
        return self.mean + 1 / self.dim

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density at x (..., D), with respect to the surface measure: the same for all; returns (...)."""
        _check_sample(self, value)
        like = self._like.to(torch.promote_types(value.dtype, self._like.dtype))
        both = (value[..., 0], like.expand(self._batch_shape))
        shape = torch.broadcast_tensors(*both)[0].shape  # type: ignore[no-untyped-call]
        return (like - log_sphere_area(self.dim)).expand(shape)

    def entropy(self) -> Tensor:
        """Log of the sphere's area (...) in nats: the most that a distribution on it can have."""
        return (self._like + log_sphere_area(self.dim)).expand(self._batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x (sample_shape + (..., D)): normalised Gaussians."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return unit_direction(torch.randn(shape, dtype=self._like.dtype, device=self._like.device))


@register_kl(PowerSpherical, HypersphericalUniform)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    """KL(p ‖ q) = log area − H(p), subtracted in float64: near κ = 0 the two agree in most digits."""
    if p.dim != q.dim:
        raise ValueError(f"the distributions have different dimensions, {p.dim} and {q.dim}")
    like = q._like.expand(q.batch_shape)
    shape = torch.broadcast_tensors(p.concentration, like)[0].shape  # type: ignore[no-untyped-call]
    return (log_sphere_area(p.dim) - p._entropy()).to(p.loc.dtype).expand(shape)
