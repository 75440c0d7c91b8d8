"""Heavy-tailed likelihoods of an embedding: directional on the sphere, polar, and multivariate.

Source: "Joint Embedding Variational Bayes", arXiv 2602.05639. All densities are computed in float32
at least (float64 where the arguments are), outside autocast, and stay free of NaN, gradients included,
for every vector whose norm is finite: zero vectors and antipodes too.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Chi2, Distribution, constraints

from probjepa.distributions._gamma import log_gamma_step
from probjepa.distributions.base import Likelihood, SubDensity, at_least_float32, full_precision

Df: TypeAlias = float | Tensor

# Below this sine, on the far side of the sphere, the log-map's Jacobian is held constant: the
# antipode is its cut locus, where it diverges.
_MIN_SINE = 1e-4
_MIN_VARIANCE = 1e-30  # σ² counts as no smaller in a distance of directions, which have 16 digits at most


def _rescaled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y = x/scale, whose squares neither overflow nor underflow, ‖y‖ and scale: (..., D), (..., 1)."""
    tiny = torch.finfo(x.dtype).tiny
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(tiny, torch.finfo(x.dtype).max)
    y = x / scale
    # the floor is far below any non-zero x's ‖y‖²; it only gives the zero vector a gradient (of zero)
    return y, y.square().sum(-1, keepdim=True).clamp_min(tiny).sqrt(), scale


def safe_norm(x: Tensor) -> Tensor:
    """Return ‖x‖ over the last axis, (..., D) → (..., 1), without overflow or underflow."""
    _, norm, scale = _rescaled(x)
    return scale * norm


def unit_direction(x: Tensor) -> Tensor:
    """Return x/‖x‖ over the last axis; the zero vector, which has no direction, maps to the first axis."""
    y, norm, _ = _rescaled(x)
    axis = torch.zeros_like(x)
    axis[..., 0] = 1
    return torch.where((y == 0).all(-1, keepdim=True), axis, y / norm)


def log_map(u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Riemannian logarithm on the unit sphere, and the log of its Jacobian's base.

    v = (θ/sin θ)(u − cos θ·s), θ = atan2(‖u − cos θ·s‖, cos θ), which tends to u − cos θ·s as θ → 0.
    At the antipode, where every direction leads, v has norm π and an arbitrary direction.

    Parameters
    ----------
    u, s
        unit vectors (..., D), broadcast against each other

    Returns
    -------
    tuple
        v (..., D), tangent at s with norm θ, and log(sin θ/θ) (...), ≤ 0
    """
    cosine = (u * s).sum(-1, keepdim=True)
    w = u - cosine * s
    # at the antipode w is rounding noise, parallel to s if anything: projected out, it would pass for θ = 0
    floor = 8 * torch.finfo(w.dtype).eps
    axis = torch.zeros_like(s).scatter(-1, s.abs().argmin(-1, keepdim=True), 1.0)
    tangent = (axis - (axis * s).sum(-1, keepdim=True) * s).detach()
    lost = (cosine < 0) & (w.square().sum(-1, keepdim=True) < floor**2)
    w = torch.where(lost, floor * tangent, w)
    sine2 = w.square().sum(-1, keepdim=True)
    # arcsin(√q)/√q is smooth in q = sin²θ: no square root of zero, so no infinite gradient at θ = 0
    near = (sine2 < 1e-3) & (cosine > 0)
    q = torch.where(near, sine2, 0.0)
    ratio_near = 1 + q * (1 / 6 + q * (3 / 40 + q * (5 / 112 + q * (35 / 1152))))
    sine = torch.where(near, 0.5, sine2).sqrt()
    theta = torch.atan2(sine, cosine)
    ratio = torch.where(near, ratio_near, theta / sine)
    ratio_bounded = torch.where(near, ratio_near, theta / sine.clamp_min(_MIN_SINE))
    return ratio * w, -ratio_bounded.log().squeeze(-1)


def _kernel(distance2: Tensor, df: Df, dim: int) -> Tensor:
    """½(ν+dim)·log(1 + distance²/ν); ½·distance² at ν = ∞."""
    if isinstance(df, Tensor):
        finite = torch.isfinite(df)
        nu = torch.where(finite, df, 1.0)
        return torch.where(finite, 0.5 * (nu + dim) * torch.log1p(distance2 / nu), 0.5 * distance2)
    if df > torch.finfo(distance2.dtype).max:  # inf, too
        return 0.5 * distance2
    return 0.5 * (df + dim) * torch.log1p(distance2 / df)


def _kernel_of_distance(r: Tensor, df: Df, dim: int) -> Tensor:
    """As ``_kernel``, for a distance r whose square may overflow (at ν = ∞ it is held just below that)."""
    limit = 0.5 * math.sqrt(torch.finfo(r.dtype).max)
    gaussian = 0.5 * r.clamp(-limit, limit).square()
    if not isinstance(df, Tensor) and math.isinf(df):
        return gaussian
    nu = torch.as_tensor(df, dtype=r.dtype, device=r.device)
    finite = torch.isfinite(nu)
    nu = torch.where(finite, nu, 1.0)
    root = nu.sqrt()
    far = r.abs() > root
    x = torch.where(far, 0.0, r) / root  # not its absolute value, whose second derivative at 0 is lost
    unit = root.detach().clamp_max(1)  # of lengths: for a small ν r/√ν may overflow
    length = torch.hypot(unit, torch.where(far, r, root) / (root / unit))
    heavy = torch.where(far, 2 * (length.log() - unit.log()), torch.log1p(x.square()))
    return torch.where(finite, 0.5 * (nu + dim) * heavy, gaussian)


def _kernel_of_vector(x: Tensor, df: Df, dim: int) -> Tensor:
    """As ``_kernel`` of ‖x‖², for x (..., D) whose squares may overflow."""
    squared = x.square().sum(-1)
    near = squared <= 1  # where no root is taken, which has no second derivative at 0
    far = torch.where(near.unsqueeze(-1), 1.0, x)
    return torch.where(
        near, _kernel(torch.where(near, squared, 0.0), df, dim),
        _kernel_of_distance(safe_norm(far).squeeze(-1), df, dim),
    )  # fmt: skip


def log_normalizer(df: Df, dim: int) -> Df:
    """log Γ((ν+dim)/2) − log Γ(ν/2) − (dim/2)·log(νπ), in float64; −(dim/2)·log 2π at ν = ∞."""
    nu = torch.as_tensor(df, dtype=torch.float64)
    found = log_gamma_step(nu / 2, dim / 2) - dim / 2 * math.log(2 * math.pi)
    return found if isinstance(df, Tensor) else found.item()


class _StudentT(Likelihood):
    """Shared shape handling: a centre (..., D), a diagonal σ² (..., D) and degrees of freedom ν.

    ``scale_squared`` is the σ² that was given as ``variance``: the variance only at ν = ∞.
    """

    # checked below, where the message can name the arguments as the constructors do
    arg_constraints = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    shown: ClassVar[tuple[str, ...]] = ("loc", "scale_squared", "df")

    def __init__(self, center: Tensor, variance: Tensor, df: Df, validate_args: bool | None = None) -> None:
        center, variance = at_least_float32(center), at_least_float32(variance)
        dtype = torch.promote_types(center.dtype, variance.dtype)
        shape = torch.broadcast_tensors(center, variance)[0].shape  # type: ignore[no-untyped-call]
        if not shape or shape[-1] < 2:
            raise ValueError(f"an embedding needs at least 2 dimensions, got shape {tuple(shape)}")
        if isinstance(df, Tensor):
            df = df.to(dtype=dtype, device=center.device)
            of_both = torch.broadcast_shapes(shape[:-1], df.shape)  # type: ignore[no-untyped-call]
            shape = of_both + shape[-1:]
            if validate_args is not False and not bool((df > 0).all()):
                raise ValueError("df must be positive (inf for the Gaussian limit)")
        elif not df > 0:
            raise ValueError(f"df must be positive (inf for the Gaussian limit), got {df}")
        self.scale_squared = variance.to(dtype).expand(shape)
        self._center = center.to(dtype).expand(shape)
        self.df = df
        if Distribution._validate_args if validate_args is None else validate_args:
            wrong = int((~(variance > 0)).sum())
            if wrong:
                raise ValueError(f"variance (σ²) must be positive: {wrong} of {variance.numel()} are not")
            for name, given in (("the centre", center), ("variance (σ²)", variance)):
                if wrong := int((~torch.isfinite(given)).sum()):
                    raise ValueError(f"{name} must be finite: {wrong} of {given.numel()} are not")
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @property
    def dim(self) -> int:
        """Dimension D of the embedding."""
        return self._event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the distribution with its batch shape broadcast to ``batch_shape``."""
        shape = torch.Size(batch_shape) + self._event_shape
        return type(self)(
            self._center.expand(shape), self.scale_squared.expand(shape), self.df, validate_args=False,
            **self._options(),
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        return {}

    def _value(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self._event_shape:  # one number would be broadcast to all coordinates
            raise ValueError(
                f"the right-most size of value must be {self.dim}, that of event_shape, got shape "
                f"{tuple(value.shape)}"
            )
        value = at_least_float32(value)
        return value.to(torch.promote_types(value.dtype, self.scale_squared.dtype))


def _directional_nll(h: Tensor, s: Tensor, variance: Tensor, df: Df) -> Tensor:
    dim = s.shape[-1]
    v, log_sine_ratio = log_map(unit_direction(h), s)
    # a product with one 1/σ: of two quotients, the gradients of a small σ are Inf and −Inf
    inverse = 1 / variance.clamp_min(_MIN_VARIANCE).sqrt()
    a, b = v * inverse, s * inverse
    b2 = b.square().sum(-1, keepdim=True)
    # the tangent part of Λ as a squared norm: never negative, nothing cancels
    delta2 = (a - b * ((a * b).sum(-1, keepdim=True) / b2)).square().sum(-1)
    log_det = variance.log().sum(-1) + b2.squeeze(-1).log()
    return _kernel(delta2, df, dim - 1) + 0.5 * log_det + (dim - 2) * log_sine_ratio


class TangentStudentT(_StudentT, SubDensity):
    r"""Student-t sub-density on the unit sphere, through the tangent space at ``loc``.

    With v = log_s(u), d = D−1, Λ = diag(1/σ²), δ² = vᵀΛv − (sᵀΛv)²/(sᵀΛs) and
    log|Σ_T| = Σ log σ² + log sᵀΛs:

    −log p(u) = ½(ν+d)·log(1+δ²/ν) + ½·log|Σ_T| + (D−2)·log(sin θ/θ) − log Z,
    log Z = log Γ((ν+d)/2) − log Γ(ν/2) − (d/2)·log(νπ).

    The tangent density's mass beyond ‖v‖ = π has no place on the sphere and is lost: p integrates to at
    most 1, and to 1 as σ → 0. It therefore has no samples, mean or variance. Within 1e-4 of the antipode, its
    cut locus, the Jacobian term is held constant.
    arXiv 2602.05639.

    Parameters
    ----------
    loc
        direction s (..., D), D ≥ 2; normalised here. The zero vector stands for the first axis.
    variance
        σ² > 0 (..., D), the diagonal of the ambient scale
    df
        ν > 0, ``math.inf`` for the Gaussian limit; a number, or a tensor that broadcasts to (...)

    Raises
    ------
    ValueError
        if D < 2, df ≤ 0, or (with validation on) a centre is not finite, or a variance not positive or finite
    """

    lost = "tangent vectors longer than π have no place on the sphere"

    def __init__(
        self, loc: Tensor, variance: Tensor, df: Df = 1.0, validate_args: bool | None = None
    ) -> None:
        super().__init__(loc, variance, df, validate_args)
        self.loc = unit_direction(self._center)

    def nll(self, u: Tensor) -> Tensor:
        """Negative log-density without the constant log Z; u (..., D) is normalised; returns (...)."""
        with full_precision(self.loc):
            return _directional_nll(self._value(u), self.loc, self.scale_squared, self.df)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density at u (..., D) with respect to the sphere's surface measure; returns (...)."""
        nll = self.nll(u)
        return (log_normalizer(self.df, self.dim - 1) - nll).to(nll.dtype)


class PolarStudentT(_StudentT, SubDensity):
    """Likelihood of an embedding h given a latent z: a directional and a radial Student-t.

    The direction h/‖h‖ follows ``TangentStudentT(z/‖z‖, σ², ν)`` and the norm ‖h‖ a one-dimensional
    Student-t at ‖z‖ with scale 1: −log p(h|z) = directional + ½(ν+1)·log(1+r²/ν) + const, r = ‖h‖ − ‖z‖.
    The density is with respect to surface measure × length (no r^{D−1} Jacobian). arXiv 2602.05639.

    Two parts of the mass are lost: the directional one's beyond ‖v‖ = π, and the radial one's below 0. So p
    integrates to less than 1, and has no samples, mean or variance.

    Parameters
    ----------
    z
        latent (..., D), D ≥ 2
    variance
        σ² > 0 (..., D), the directional scale
    df
        ν > 0, ``math.inf`` for the Gaussian limit
    center_log_variance
        use σ²/exp(mean log σ²) in the directional term (for D ≥ 2048)

    Raises
    ------
    ValueError
        if D < 2, df ≤ 0, or (with validation on) a centre is not finite, or a variance not positive or finite
    """

    lost = "tangent vectors longer than π, and norms below 0, belong to no embedding"
    shown = ("z", "scale_squared", "df", "center_log_variance")

    def __init__(
        self,
        z: Tensor,
        variance: Tensor,
        df: Df = 1.0,
        *,
        center_log_variance: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(z, variance, df, validate_args)
        self.z = self._center
        self.center_log_variance = center_log_variance

    def _options(self) -> dict[str, Any]:
        return {"center_log_variance": self.center_log_variance}

    @property
    def directional(self) -> TangentStudentT:
        """The distribution of h/‖h‖."""
        variance = self.scale_squared
        if self.center_log_variance:
            log_variance = variance.log()
            variance = (log_variance - log_variance.mean(-1, keepdim=True)).exp()
        return TangentStudentT(self.z, variance, self.df, validate_args=False)

    def directional_nll(self, h: Tensor) -> Tensor:
        """Directional term without its constant; h (..., D) → (...)."""
        return self.directional.nll(h)

    def radial_nll(self, h: Tensor) -> Tensor:
        """Radial term ½(ν+1)·log(1+r²/ν) without its constant; h (..., D) → (...)."""
        with full_precision(self.z):
            r = safe_norm(self._value(h)) - safe_norm(self.z)
            return _kernel_of_distance(r.squeeze(-1), self.df, 1)

    def nll(self, h: Tensor) -> Tensor:
        """Both terms without constants: what training minimises; h (..., D) → (...)."""
        return self.directional_nll(h) + self.radial_nll(h)

    def log_prob(self, h: Tensor) -> Tensor:
        """Log-density with constants; h (..., D) → (...)."""
        constant = log_normalizer(self.df, self.dim - 1) + log_normalizer(self.df, 1)
        nll = self.nll(h)
        return (constant - nll).to(nll.dtype)


class MultivariateStudentT(_StudentT):
    """Student-t with a diagonal scale: the "standard" (unfactorised) likelihood of the ablation.

    −log p(h) = ½(ν+D)·log(1 + Σ(h−z)²/σ²/ν) + ½Σ log σ² − log Z, log Z as in ``TangentStudentT`` with d = D.

    Parameters
    ----------
    loc, variance, df
        z (..., D), σ² > 0 (..., D) and ν > 0 (``math.inf``: Gaussian). σ² is the squared scale, kept as
        ``scale_squared``; the property ``variance`` is σ²·ν/(ν−2), as torch's ``StudentT`` has it

    Examples
    --------
    >>> MultivariateStudentT(torch.zeros(2), torch.tensor([1.0, 2.0]), df=4.0).variance
    tensor([2., 4.])
    """

    has_rsample = True

    def __init__(
        self, loc: Tensor, variance: Tensor, df: Df = 1.0, validate_args: bool | None = None
    ) -> None:
        super().__init__(loc, variance, df, validate_args)
        self.loc = self._center

    @property
    def mean(self) -> Tensor:
        """E[h] = z (..., D); NaN for ν ≤ 1, where there is none."""
        return torch.where(self._nu() > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Var[h] = σ²·ν/(ν−2) (..., D), a value a coordinate; inf for 1 < ν ≤ 2, NaN for ν ≤ 1."""
        nu = self._nu()
        finite = torch.where(torch.isfinite(nu) & (nu > 2), nu, 3.0)
        factor = torch.where(torch.isfinite(nu), finite / (finite - 2), 1.0)
        factor = torch.where(nu > 2, factor, torch.where(nu > 1, math.inf, math.nan))
        return factor * self.scale_squared

    def _nu(self) -> Tensor:
        """ν as a tensor (..., 1), beside the coordinates."""
        return torch.as_tensor(self.df, dtype=self.loc.dtype, device=self.loc.device).unsqueeze(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw h = z + σ·ε·√(ν/χ²_ν) (sample_shape + (..., D)), differentiable in z, σ² and ν."""
        shape = self._extended_shape(torch.Size(sample_shape))
        nu = self._nu().expand(*shape[:-1], 1)
        finite = torch.isfinite(nu)
        nu = torch.where(finite, nu, 1.0)
        chi2 = Chi2(nu, validate_args=False).rsample()
        stretch = torch.where(finite, (nu / chi2).sqrt(), 1.0)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale_squared.sqrt() * noise * stretch

    def nll(self, h: Tensor) -> Tensor:
        """Negative log-density without the constant log Z; h (..., D) → (...)."""
        with full_precision(self.loc):
            # a product with 1/σ, as in the directional term, held where its norm would be Inf
            distance = (self._value(h) - self.loc) * (
                1 / self.scale_squared.clamp_min(torch.finfo(self.loc.dtype).tiny).sqrt()
            )
            farthest = torch.finfo(distance.dtype).max / self.dim
            log_det = self.scale_squared.log().sum(-1)
            return _kernel_of_vector(distance.clamp(-farthest, farthest), self.df, self.dim) + 0.5 * log_det

    def log_prob(self, h: Tensor) -> Tensor:
        """Log-density with constants; h (..., D) → (...)."""
        nll = self.nll(h)
        return (log_normalizer(self.df, self.dim) - nll).to(nll.dtype)
