"""Estimators of the log-volume Σ_k log σ_k of a Jacobian J (K, P), each for a batch of B inputs.

A *pass* is one vector–Jacobian or Jacobian–vector product, about one to two forward passes.

=========== ================== ================================== ==================================
name        passes             bias                               variance
=========== ================== ================================== ==================================
exact       rows not all zero  none                               none
folded      the same           none                               none
sketch      K                  none, where no σ is clipped        ¼ Σᵢ ψ′((m − i + 1)/2), i = 1 … K
slq         2·probes·steps     of ``steps``-point quadrature      of Hutchinson's trace, ∝ 1/probes
subspace    p                  upwards: it sees the large σ only  over the choice of the sub-space
calibrated  p                  none where inputs are alike        of left-out inputs, stated
=========== ================== ================================== ==================================

Where P ≤ K/2 the exact ones take P forward derivatives. "calibrated" is what "auto" does with a tolerance:
see ``probjepa.jacobian.calibrated``.

The random draws (sketch, probes, sub-space) are the same for every input of a call: what they add is then
largely common to all scores and leaves their order alone, and a score does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.errors import ConfigError, unknown_name
from probjepa.jacobian.encoders import Encoder
from probjepa.jacobian.rows import (
    JacobianRows,
    Passes,
    derivatives,
    forward_columns,
    gram,
    live_rows,
    refuse_infinite,
    singular_values,
)
from probjepa.typed import check_plain

Rank = int | Literal["auto"] | None
ESTIMATORS = ("exact", "folded", "sketch", "slq", "subspace", "auto")

# σ ≤ 1e-4·σ_max is null for rank="auto": a thousand float32 roundings, and above the relative size 1e-5 that
# a LayerNorm's eps (1e-5 or 1e-6) leaves of the direction it normalises away.
RANK_TOLERANCE = 1e-4
SKETCH_ROW_BLOCKS = 8  # the sketch holds an eighth of J at a time
# "auto" may come to a sketch
_SETTING_OF = {
    "sketch_size": ("sketch", "auto"), "probes": ("slq",), "steps": ("slq",), "directions": ("subspace",)
}  # fmt: skip
_SKETCH_COLUMNS = 4096  # of the input, drawn at a time: part of what a seed means


def check_count(name: str, value: int | None) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least 1, or None."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name} is {value!r}: use a whole number of at least 1")


@dataclass(frozen=True)
class Settings:
    """What an estimator is told, checked; ``jepa_score`` says what each of them is.

    Raises
    ------
    ConfigError
        for an unknown estimator, or a setting out of its range
    """

    estimator: str = "exact"
    rank: Rank = None
    eps: float = 1e-6
    sketch_size: int | None = None
    probes: int = 4
    steps: int = 10
    directions: int | None = None
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ESTIMATORS)
        for name in ("sketch_size", "probes", "steps", "directions"):
            check_count(name, getattr(self, name))
        check_plain("seed", self.seed, int)
        if not isinstance(self.eps, Real) or not 0 < self.eps < math.inf:
            raise ConfigError(f"eps is {self.eps}: use a small positive number")
        rank = self.rank
        if rank not in (None, "auto") and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ConfigError(f"rank is {rank!r}: use None, 'auto' or a whole number of at least 1")
        if not isinstance(self.tolerance, Real) or not 0 <= self.tolerance < 1:
            raise ConfigError(f"tolerance is {self.tolerance}: use a share of the scores' spread, as 0.02")
        if self.tolerance > 0 and self.estimator != "auto":
            raise ConfigError(f"tolerance goes with estimator='auto': '{self.estimator}' has no choice")
        for name, of in _SETTING_OF.items():
            if self.estimator not in of and getattr(self, name) != getattr(Settings, name):
                raise ConfigError(
                    f"{name} goes with estimator='{of[0]}': '{self.estimator}' has no use for it"
                )
        if self.estimator in ("slq", "subspace") and rank is not None:
            raise ConfigError(
                f"estimator='{self.estimator}' sees no single direction: use rank=None, or 'exact'"
            )


@dataclass(frozen=True)
class Volumes:
    """What an estimator finds for B inputs.

    Attributes
    ----------
    log_volume
        (B,) float64, Σ log σ
    used
        (B,) directions in the sum
    rank
        (B,) numerical rank, the number of σ > 1e-4·σ_max; −1 where the estimator does not see it
    sigma_max, sigma_min
        (B,) the extreme singular values among those in the sum, before clipping (of the sketch, sub-space or
        Ritz values for those estimators)
    standard_error
        (B,) of the log-volume's estimate: 0 if exact, NaN if not known
    embeddings
        (B, K) as the encoder gave them
    """

    log_volume: Tensor
    used: Tensor
    rank: Tensor
    sigma_max: Tensor
    sigma_min: Tensor
    standard_error: Tensor
    embeddings: Tensor


def numerical_rank(sigma: Tensor) -> Tensor:
    """Count σ > 1e-4·σ_max: (B, R) falling → (B,)."""
    return (sigma > RANK_TOLERANCE * sigma[:, :1]).sum(1)


def clipped_log_volume(sigma: Tensor, rank: Rank, eps: float) -> tuple[Tensor, Tensor]:
    """Σ log max(σ, eps) over the directions that ``rank`` keeps, and their number: (B, R) → (B,), (B,).

    None keeps all R; an int the largest ones; "auto" the numerical rank. An all but zero Jacobian
    (σ_max ≤ eps) keeps all R under "auto" too: an empty sum, 0, would make it typical.
    """
    used = torch.full_like(sigma[:, 0], sigma.shape[1], dtype=torch.int64)
    if isinstance(rank, int):
        used = used.clamp(max=rank)
    elif rank == "auto":
        used = torch.where(sigma[:, 0] > eps, numerical_rank(sigma), used)
    kept = torch.arange(sigma.shape[1], device=sigma.device) < used[:, None]
    return torch.where(kept, sigma.clamp(min=eps).log(), 0.0).sum(1), used


def from_spectrum(sigma: Tensor, rank: Rank, eps: float, out: Tensor) -> Volumes:
    """Return what a whole spectrum (B, R), falling, says, of inputs embedded as ``out`` (B, K)."""
    volume, used = clipped_log_volume(sigma, rank, eps)
    return Volumes(
        log_volume=volume,
        used=used,
        rank=numerical_rank(sigma),
        sigma_max=sigma[:, 0],
        sigma_min=sigma.gather(1, used[:, None] - 1)[:, 0],
        standard_error=torch.zeros_like(volume),
        embeddings=out,
    )


def live_order(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many rows of each input's Jacobian are not zero (B,), and the rows (B, R), those first."""
    live = live_rows(encoder, x)
    count = live.sum(1)
    most = max(1, int(count.max()))
    return count, live.long().argsort(descending=True, stable=True)[:, :most]


def exact_spectrum(encoder: Encoder, x: Tensor, passes: Passes) -> tuple[Tensor, Tensor]:
    """Singular values (B, min(K, P)), falling, float64, and the embeddings (B, K).

    A pass for each row of J that is not zero throughout, or for each column.
    """
    if passes.forward:
        columns, out = forward_columns(encoder, x)
        return _of_live_rows(singular_values(gram(columns)), (columns != 0).any(1).sum(1)), out
    rows = JacobianRows(encoder, x, passes)
    dim = rows.embeddings.shape[1]
    directions = torch.arange(dim, device=x.device).expand(len(x), dim)
    live = torch.full_like(directions[:, 0], dim)
    if passes.skip_zero_rows:
        live, directions = live_order(encoder, x)
    sigma = _of_live_rows(singular_values(rows.gram(directions)), live)
    least = min(dim, x[0].numel())
    return F.pad(sigma, (0, least - sigma.shape[1])), rows.embeddings  # folded ones may be too many


def _of_live_rows(sigma: Tensor, live: Tensor) -> Tensor:
    """Return σ (B, R), falling, 0 beyond the number of rows of J that are not zero (B,).

    Where P < K the Gram matrix is over the columns, and the values of zero rows are rounding there.
    """
    return torch.where(torch.arange(sigma.shape[1], device=sigma.device) < live[:, None], sigma, 0.0)


def exact(encoder: Encoder, x: Tensor, how: Settings, passes: Passes) -> Volumes:
    """Sum over the exact spectrum; see ``exact_spectrum``."""
    sigma, out = exact_spectrum(encoder, x, passes)
    return from_spectrum(sigma, how.rank, how.eps, out)


def sketch(encoder: Encoder, x: Tensor, how: Settings, passes: Passes) -> Volumes:
    r"""Estimate from J·S, S (P, m) Gaussian: unbiased up to a constant that is known and taken off.

    (JS)(JS)ᵀ is Wishart with scale JJᵀ and m degrees of freedom, so that on r directions
    E log det (JS)(JS)ᵀ = log det JJᵀ + Σᵢ₌₁ʳ [ψ((m − i + 1)/2) + log 2], with variance Σᵢ ψ′((m − i + 1)/2):
    a standard deviation of the score of 0.59, 0.38, 0.26 nats at m = 2K, 4K, 8K. K passes; an eighth of J is
    held at a time, and S is drawn again in blocks (a seed each), so that neither J nor S is ever held.

    Raises
    ------
    ConfigError
        for m below the number of directions, or an int rank (the largest σ of a sketch are biased)
    """
    if isinstance(how.rank, int):
        raise ConfigError(
            "estimator='sketch' takes rank=None or 'auto': use 'exact' for the largest singular values"
        )
    rows = JacobianRows(encoder, x, replace(passes, least_batch=1))  # copies would cost what this saves
    dim, width = rows.embeddings.shape[1], x[0].numel()
    directions = min(dim, width)
    m = 2 * dim if how.sketch_size is None else how.sketch_size
    if m < directions:
        raise ConfigError(
            f"sketch_size is {m} for {directions} directions: use at least as many, 2 to 8 times better"
        )
    sketched = torch.zeros(len(x), dim, m, dtype=torch.float64, device=x.device)
    generator = torch.Generator(x.device)
    # the same S for every block of rows: its stream starts over
    height = -(-dim // SKETCH_ROW_BLOCKS)
    for part in torch.split(torch.eye(dim, device=x.device), height):
        first = int(part[0].argmax())
        block = rows(part)
        generator.manual_seed(how.seed)
        for start in range(0, width, _SKETCH_COLUMNS):
            columns = block[:, :, start : start + _SKETCH_COLUMNS]
            normal = torch.randn(columns.shape[2], m, generator=generator, device=x.device, dtype=block.dtype)
            sketched[:, first : first + len(part)] += columns @ normal
    sigma = singular_values(gram(sketched))[:, :directions] / math.sqrt(m)
    found = from_spectrum(sigma, how.rank, how.eps, rows.embeddings)
    # entry r is for r directions; a clipped one is a constant already
    unclipped = torch.minimum(found.used, (sigma > how.eps).sum(1))
    halves = (m - torch.arange(directions, dtype=torch.float64, device=x.device)) / 2
    bias = F.pad(0.5 * (torch.digamma(halves) - math.log(m / 2)).cumsum(0), (1, 0))
    deviation = F.pad(0.5 * torch.polygamma(1, halves).cumsum(0).sqrt(), (1, 0))
    return replace(found, log_volume=found.log_volume - bias[unclipped], standard_error=deviation[unclipped])


def subspace(encoder: Encoder, x: Tensor, how: Settings, passes: Passes) -> Volumes:
    """K/p times the log-volume of p random output directions, QᵀJ with Q (K, p) orthonormal; p passes.

    Biased upwards, and not consistent before p = K: the σ of QᵀJ are averages of J's, which the large ones
    rule. For ranking inputs of one encoder, cheaply. Default p = 64.

    Raises
    ------
    ConfigError
        for p outside 1 … K
    """
    rows = JacobianRows(encoder, x, passes)
    dim = rows.embeddings.shape[1]
    p = min(64, dim) if how.directions is None else how.directions
    if not 1 <= p <= dim:
        raise ConfigError(f"directions is {p}: use 1 to {dim}, the encoder's dimensions")
    normal = torch.randn(dim, p, generator=torch.Generator().manual_seed(how.seed), dtype=torch.float64)
    basis = torch.linalg.qr(normal)[0].T.to(x.device)
    sigma = singular_values(rows.gram(basis))
    found = from_spectrum(sigma, None, how.eps, rows.embeddings)
    return replace(
        found,
        log_volume=found.log_volume * (min(dim, x[0].numel()) / sigma.shape[1]),
        rank=torch.full_like(found.rank, -1),
        standard_error=torch.full_like(found.log_volume, math.nan),
    )


def slq(encoder: Encoder, x: Tensor, how: Settings) -> Volumes:
    """Stochastic Lanczos quadrature of ½ tr log max(JJᵀ, eps²): 2·probes·steps passes, whatever K.

    Each Rademacher probe runs ``steps`` Lanczos iterations with full re-orthogonalisation on v ↦ J(Jᵀv); a
    vector–Jacobian product, then a Jacobian–vector product by differentiating the first one's graph, so that
    f runs forward once. The quadrature's bias is upwards (log is concave and its small end is resolved last),
    and falls with ``steps``: 8 nats of a random encoder with 10 steps, but 270 of a trained ViT-S, where it
    differs from input to input. In float32 a σ below some thousandth of the largest (√(10 ε), with ε of the
    type) is not resolved and counts as eps: with steps enough to meet such, the estimate falls below the
    truth (float64 has them). The trace's variance falls with ``probes``. ``standard_error`` is over the
    probes alone (NaN with one), without the bias; σ_max and σ_min are of the Ritz values.

    Reference: Ubaru, Chen & Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017.

    Raises
    ------
    ConfigError
        for fewer inputs than output dimensions (P < K: "exact" is cheap there)
    DataError
        for derivatives that are not finite, or whose fourth powers are not
    """
    out, back, forth = derivatives(encoder, x)
    batch, dim = out.shape
    if x[0].numel() < dim:
        raise ConfigError(
            f"estimator='slq' is for encoders with more inputs ({x[0].numel()}) than output dimensions "
            f"({dim}): use 'exact'"
        )

    def multiply(v: Tensor) -> Tensor:
        product = forth(back(v.to(out.dtype))).double()
        refuse_infinite(product.square().sum(1, keepdim=True))
        return product

    generator = torch.Generator().manual_seed(how.seed)
    estimates, largest, smallest = [], [], []
    for _ in range(how.probes):
        signs = torch.randint(2, (dim,), generator=generator).double() * 2 - 1
        start = (signs / math.sqrt(dim)).to(x.device).expand(batch, dim)
        values, weights = _lanczos(multiply, start, min(how.steps, dim), torch.finfo(out.dtype).eps)
        logs = (0.5 * values.clamp(min=0).log()).clamp(min=math.log(how.eps))  # eps² might be 0
        estimates.append(dim * (weights * logs).sum(1))
        largest.append(values[:, -1])
        smallest.append(values[:, 0])
    each = torch.stack(estimates)
    return Volumes(
        log_volume=each.mean(0),
        used=torch.full_like(each[0], dim, dtype=torch.int64),
        rank=torch.full_like(each[0], -1, dtype=torch.int64),
        sigma_max=torch.stack(largest).amax(0).clamp(min=0).sqrt(),
        sigma_min=torch.stack(smallest).amin(0).clamp(min=0).sqrt(),
        standard_error=(
            each.std(0) / math.sqrt(len(each)) if len(each) > 1 else torch.full_like(each[0], math.nan)
        ),
        embeddings=out,
    )


def _lanczos(
    multiply: Callable[[Tensor], Tensor], start: Tensor, steps: int, rounding: float
) -> tuple[Tensor, Tensor]:
    """Ritz values (B, S), rising, and their weights in the quadrature, of a symmetric operator on (B, K).

    Values within ten times the operator's relative ``rounding`` of 0 are 0: they would depend on the batch.
    """
    basis = [start]
    tridiagonal = start.new_zeros(len(start), steps, steps)
    largest = torch.zeros_like(start[:, 0])  # a bound from below of the operator's norm
    for step in range(steps):
        product = multiply(basis[step])
        largest = torch.maximum(largest, product.norm(dim=1))
        tridiagonal[:, step, step] = (product * basis[step]).sum(1)
        if step + 1 == steps:
            break
        known = torch.stack(basis, 1)
        scale = product.norm(dim=1)
        for _ in range(2):  # once more takes off what rounding left of the first
            product = product - torch.einsum("bsk,bs->bk", known, torch.einsum("bsk,bk->bs", known, product))
        beta = product.norm(dim=1)
        # an invariant sub-space is exhausted: nothing couples to what follows, which then has no weight
        beta = torch.where(beta > 1e-10 * scale, beta, 0.0)
        tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta
        basis.append(torch.where(beta[:, None] > 0, product / beta.clamp(min=1e-300)[:, None], 0.0))
    values, vectors = torch.linalg.eigh(tridiagonal)
    values = torch.where(values > 10 * rounding * largest[:, None], values, 0.0)
    return values, vectors[:, 0].square()
