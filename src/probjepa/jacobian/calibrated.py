"""Estimate log-volumes from a few Jacobian rows, by a regression on inputs measured exactly.

On p random output directions Q (K, p) the Jacobian has the Gram matrix QᵀJJᵀQ. Its log-spectrum says how
large the whole log-volume is, as far as the spectra of one encoder are alike: a ridge regression from one to
the other is fitted to inputs that were measured exactly, and each of these, left out in its turn, says how
far off it is. Their exact Gram matrices hold those of every p, so that the cheapest p that is good enough is
found without a further pass.

Nothing is estimated of rows that are zero throughout: how many there are is known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.jacobian.encoders import Encoder
from probjepa.jacobian.estimators import Settings, Volumes, from_spectrum, live_order
from probjepa.jacobian.plan import Plan
from probjepa.jacobian.rows import JacobianRows, Passes, singular_values

TEACHERS = 32  # inputs measured exactly
_SHARES = (32, 24, 16, 12, 8, 6, 4, 3, 2)  # of K: the p that are tried are K/32 … K/2
_RIDGE = 0.01  # of the features' mean square: chosen on a ViT-S, where 0.001 to 0.03 differ by little


def split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows to measure exactly, drawn by ``seed``, and the others, both rising."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:TEACHERS].sort().values, order[TEACHERS:].sort().values


def possible(plan: Plan, count: int) -> bool:
    """Whether there are enough inputs to spare some, and rows to leave out."""
    return count > 2 * TEACHERS and plan.estimator in ("exact", "folded") and not plan.few_columns


def _live(encoder: Encoder, x: Tensor, passes: Passes, dim: int) -> tuple[Tensor, Tensor]:
    if passes.skip_zero_rows:
        return live_order(encoder, x)
    every = torch.arange(dim, device=x.device).expand(len(x), dim)
    return torch.full_like(every[:, 0], dim), every


def _basis(order: Tensor, dim: int, count: int, seed: int) -> Tensor:
    """Return Q (rows, count), orthonormal, on the rows of J in ``order``: a seed's, whatever the batch."""
    normal = torch.randn(dim, dim // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(normal[:, :count].to(order.device)[order])[0]
    return basis


def _zero_rows(how: Settings, dim: int, live: Tensor) -> Tensor:
    """What the rows that are zero throughout add to the log-volume (B,)."""
    return (dim - live) * (math.log(how.eps) if how.rank is None else 0.0)


@dataclass
class Teachers:
    """Measures inputs exactly, and keeps what can be learned from them."""

    how: Settings
    passes: Passes
    found: list[Volumes] = field(default_factory=list)
    live: list[Tensor] = field(default_factory=list)
    spectra: dict[int, list[Tensor]] = field(default_factory=dict)

    def measure(self, encoder: Encoder, x: Tensor) -> Volumes:
        """Return the exact volumes of a batch."""
        rows = JacobianRows(encoder, x, self.passes)
        dim = rows.embeddings.shape[1]
        live, order = _live(encoder, x, self.passes, dim)
        square = rows.gram(order)
        sigma = singular_values(square)
        sigma = F.pad(sigma, (0, dim - sigma.shape[1]))
        found = from_spectrum(sigma, self.how.rank, self.how.eps, rows.embeddings)
        spectra: dict[int, list[Tensor]] = {dim // share: [] for share in _SHARES if dim >= share}
        for one, some, count in zip(square, order, live.tolist(), strict=True):
            for p, of_p in spectra.items():
                if count < p:  # nothing is learned from p directions
                    of_p.append(one.new_full((p,), math.nan))
                    continue
                q = _basis(some[:count], dim, p, self.how.seed)
                of_p.append(_log_spectrum(q.T @ one[:count, :count] @ q, self.how.eps))
        for p, of_p in spectra.items():  # last: a batch that runs out of memory is measured again
            self.spectra.setdefault(p, []).extend(of_p)
        self.live.append(live)
        self.found.append(found)
        return found

    def fit(self) -> tuple[Calibration | None, str]:
        """Return the calibration of the fewest directions that is good enough, or None, and half a sentence.

        Good enough is a root mean square error, each input left out in its turn, of at most ``tolerance``
        times the standard deviation of the exact volumes.
        """
        volumes = torch.cat([one.log_volume for one in self.found])
        live = torch.cat(self.live)
        dim = self.found[0].embeddings.shape[1]
        spread = max(float(volumes.std()), 1e-300)
        each = (volumes - _zero_rows(self.how, dim, live)) / live
        best = math.inf
        for p in sorted(self.spectra):
            features = _features(torch.stack(self.spectra[p]), live)
            if not bool(torch.isfinite(features).all()):
                continue
            line = Ridge.fit(features, each, live.double())
            best = min(best, line.error)
            if line.error <= self.how.tolerance * spread:
                reason = (
                    f"{p} of {dim} directions: {line.error:.3g} nats from the exact volumes of "
                    f"{len(volumes)} inputs, {line.error / spread:.2%} of their spread"
                )
                used = torch.cat([one.used for one in self.found])
                return Calibration(self.how, self.passes, p, line, int(used.median())), reason
        if best == math.inf:
            return None, "some inputs have too few rows of their Jacobian to leave any out"
        return None, f"half of the directions are {best / spread:.1%} of the spread off, above the tolerance"


@dataclass(frozen=True)
class Calibration:
    """Measures inputs by ``directions`` rows of their Jacobians."""

    how: Settings
    passes: Passes
    directions: int
    line: Ridge
    used: int  # directions that the exact volumes are of, their median

    def measure(self, encoder: Encoder, x: Tensor) -> Volumes:
        """Return the volumes of a batch and their standard errors; exact ones where there are fewer rows."""
        rows = JacobianRows(encoder, x, self.passes)
        dim, p = rows.embeddings.shape[1], self.directions
        live, order = _live(encoder, x, self.passes, dim)
        directions = torch.zeros(len(x), p, dim, dtype=torch.float64, device=x.device)
        for at, (some, count) in enumerate(zip(order, live.tolist(), strict=True)):
            if count < p:
                directions[at, range(count), some[:count]] = 1
            else:
                directions[at, :, some[:count]] = _basis(some[:count], dim, p, self.how.seed).T
        square = rows.gram(directions)
        sigma = singular_values(square)
        whole = from_spectrum(F.pad(sigma, (0, dim - p)), self.how.rank, self.how.eps, rows.embeddings)
        spectra = torch.stack([_log_spectrum(one, self.how.eps) for one in square])
        each, error = self.line.predict(_features(spectra, live))
        few = live < p
        return Volumes(
            log_volume=torch.where(few, whole.log_volume, _zero_rows(self.how, dim, live) + live * each),
            used=torch.where(few, whole.used, self.used),
            rank=torch.where(few, whole.rank, -1),
            sigma_max=sigma[:, 0],
            sigma_min=sigma[:, -1],
            standard_error=torch.where(few, 0.0, live * error),
            embeddings=rows.embeddings,
        )


def _log_spectrum(square: Tensor, eps: float) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(square)
    return values.clamp(min=0).log().clamp(min=2 * math.log(eps))  # eps² might be 0


def _features(spectra: Tensor, live: Tensor) -> Tensor:
    """Log-spectra (N, p) and, as weighty, how many rows they are drawn from: (N, p + 1), float64."""
    return torch.cat([spectra, math.sqrt(spectra.shape[1]) * live.double().log()[:, None]], 1)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of y (N,) on features (N, F), F ≥ N, with an intercept; ``error`` is leave-one-out."""

    centre: Tensor
    rows: Tensor
    inverse: Tensor  # of (N, N) inner products and the ridge
    ridge: float
    mean: Tensor
    weights: Tensor  # of the rows
    variance: float
    error: float

    @classmethod
    def fit(cls, features: Tensor, y: Tensor, scale: Tensor) -> Ridge:
        """Fit; ``scale`` (N,) turns errors of y into those that ``error`` is of."""
        centre, mean = features.mean(0), y.mean()
        rows = features - centre
        products = rows @ rows.T
        ridge = max(_RIDGE * float(products.diagonal().mean()), 1e-12)
        inverse = torch.linalg.inv(products + ridge * torch.eye(len(y), dtype=y.dtype, device=y.device))
        kept = 1 - (products * inverse).sum(1) - 1 / len(y)  # 1 − the leverage
        left_out = (y - mean - products @ inverse @ (y - mean)) / kept
        return cls(
            centre,
            rows,
            inverse,
            ridge,
            mean,
            inverse @ (y - mean),
            variance=float((left_out.square() * kept).mean()),
            error=float((left_out * scale).square().mean().sqrt()),
        )

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimates of y and their standard errors, larger away from what was fitted: (M,), (M,)."""
        x = features - self.centre
        products = x @ self.rows.T
        away = (x.square().sum(1) - (products @ self.inverse * products).sum(1)).clamp(min=0) / self.ridge
        error = (self.variance * (1 + 1 / len(self.rows) + away)).sqrt()
        return self.mean + products @ self.weights, error
