"""An equal-weight mixture of polar Student-t likelihoods: the density of an embedding under a set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from probjepa._arrays import fingerprints
from probjepa.distributions.base import SubDensity
from probjepa.distributions.student_t import (
    _MIN_SINE,
    _kernel_of_distance,
    log_normalizer,
    safe_norm,
    unit_direction,
)

# Elements that are held at once, in float64: 160 MB of centers and points, and of their pairs so many that a
# block stays in a core's own cache.
_BLOCK = 1_000_000  # of centers
_POINTS = 8_000_000
_PAIRS = 250_000
_LARGEST_SQUARED = 1e150  # of lengths that are squared as they are
_LOG10_SCALES = tuple(x / 4 for x in range(-24, 5))  # 1e-6 … 10, four to a decade


class PolarStudentTMixture(SubDensity):
    r"""log p(h) = log (1/M) Σᵢ p(h | cᵢ, τσᵢ², ν): the mean of M polar Student-t densities.

    Pairs are never expanded to (N, M, D): with u = h/‖h‖ and s = c/‖c‖ the log-map v = (θ/sin θ)(u − cos θ·s)
    differs from (θ/sin θ)·u by a multiple of s, which the tangent projection removes, so

    δ² = (θ/sin θ)²·[uᵀΛu − (uᵀΛs)²/(sᵀΛs)],

    three matrix products, in float64 (which the subtraction needs), over blocks of bounded memory: nothing of
    the size of the centers is made of them, which may be mapped from a file.

    Parameters
    ----------
    centers
        c (M, D), D ≥ 2, float32 or float64
    variance
        σ² > 0 (M, D)
    df
        ν > 0, finite
    scale
        τ > 0, on the directional variance; see ``fit_scale``
    skip
        leave each point's ``skip`` largest components out of its mean: a lone center near a group of points
        then does not make them typical. 0 is the plain density
    rotation
        R (D, D), orthogonal: σ² are the variances of the features of hR; None: of h's own

    Raises
    ------
    ValueError
        for shapes that do not fit, centers that are not finite, or σ², ν or τ not positive or not finite
    """

    arg_constraints = {"centers": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    lost = "that of each of its polar Student-t densities is"
    shown = ("centers", "scale_squared", "df", "scale", "skip")

    def __init__(
        self,
        centers: Tensor,
        variance: Tensor,
        df: float = 1.0,
        scale: float = 1.0,
        skip: int = 0,
        rotation: Tensor | None = None,
    ) -> None:
        if centers.ndim != 2 or centers.shape != variance.shape or centers.shape[1] < 2:
            raise ValueError(
                f"centers and variance must share a shape (M, D), D ≥ 2: "
                f"got {tuple(centers.shape)} and {tuple(variance.shape)}"
            )
        if not (0 < df < math.inf and 0 < scale < math.inf):
            raise ValueError(f"df and scale must be positive and finite, got {df} and {scale}")
        if not 0 <= skip < len(centers):
            raise ValueError(f"skip must leave a component: got {skip} of {len(centers)}")
        if rotation is not None and rotation.shape != (centers.shape[1],) * 2:
            raise ValueError(f"rotation must be {(centers.shape[1],) * 2}, got {tuple(rotation.shape)}")
        _check_finite(centers)
        low, high = (float(x) for x in _one_if_shared(variance).aminmax())
        if not (low > 0 and high < math.inf):
            raise ValueError(f"variance must be positive and finite, got values from {low} to {high}")
        self.skip = skip
        self.rotation = None if rotation is None else rotation.to(centers.device).double()
        self.centers = centers
        self.df = df
        self.scale = scale
        self.scale_squared = variance
        super().__init__(torch.Size(), centers.shape[1:], validate_args=False)

    @classmethod
    def of_neighbours(
        cls, centers: Tensor, df: float = 1.0, *, neighbours: int = 10, skip: int = 0, seed: int = 0
    ) -> PolarStudentTMixture:
        r"""Return the density whose scale is the spread of the centers' directions around one another.

        With sᵢ = cᵢ/‖cᵢ‖ and N(i) the k nearest other directions, the scale is one matrix for all components,

        C = mean over i, j ∈ N(i) of ½(sᵢ − sⱼ)(sᵢ − sⱼ)ᵀ, with its mean eigenvalue added,

        in C's own axes (``rotation``), and τ by ``fit_scale``. What varies between neighbours counts little
        and what does not vary counts much, as in a Mahalanobis distance, but no cluster need be known.

        Parameters
        ----------
        centers
            c (M, D), M ≥ 2, D ≥ 2
        neighbours
            k ≥ 1, fewer where there are fewer centers; exact copies are no neighbours

        Raises
        ------
        ValueError
            for ``neighbours`` below 1, centers that are not finite, or unless two directions differ
        """
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}: use at least 1")
        _check_finite(centers)
        covariance = neighbour_covariance(centers, neighbours)
        values, axes = torch.linalg.eigh(covariance)
        variance = values.clamp_min(0) + values.clamp_min(0).mean()
        mixture = cls(centers, variance.expand(centers.shape), df, skip=skip, rotation=axes)
        return mixture.fit_scale(seed=seed)

    def _rotated(self, h: Tensor) -> Tensor:
        return h if self.rotation is None else h @ self.rotation

    @property
    def _half_dim(self) -> float:
        return (self._event_shape[0] - 1) / 2

    def _pairs(self, points: _Points, of: _Components) -> tuple[Tensor, Tensor]:
        """Of every pair with some components, (n, m): δ² at τ = 1, and the log-density's part without τ."""
        dim, df, u = self._event_shape[0], self.df, points.direction
        cosine = (u @ of.direction.T).clamp(-1, 1)
        sine = (1 - cosine.square()).clamp_min(1e-16).sqrt()
        theta = torch.atan2(sine, cosine)
        ratio = theta / sine
        cross = u @ of.weighted.T
        delta2 = (u.square() @ of.precision.T - cross.square() / of.curvature) * ratio.square()
        # the subtraction cancels where u ∥ s; with ‖v‖ = θ, δ² lies between θ²·min Λ and θ²·max Λ
        delta2 = delta2.clamp(*(theta.square() * bound for bound in of.precision.aminmax(dim=-1)))
        # the Jacobian diverges at the antipode, and is held constant there as in ``log_map``
        ratio = torch.where(cosine < 0, theta / sine.clamp_min(_MIN_SINE), ratio)
        r = points.norm - of.norm
        if all(bool((x < _LARGEST_SQUARED).all()) for x in (points.norm, of.norm)):
            radial = log_normalizer(df, 1) - 0.5 * (df + 1) * torch.log1p(r.square() / df)
        else:
            radial = log_normalizer(df, 1) - _kernel_of_distance(r, df, 1)
        rest = log_normalizer(df, dim - 1) - 0.5 * of.log_det + (dim - 2) * ratio.log() + radial
        return delta2, rest

    def _combine(self, delta2: Tensor, rest: Tensor, scale: float) -> Tensor:
        half = self._half_dim
        return (
            rest
            - (self.df / 2 + half) * torch.log1p(delta2 / (scale * self.df))
            - half * math.log(scale)
        )  # fmt: skip

    def _components(self) -> Iterator[_Components]:
        """Yield all components, a block at a time."""
        size = max(_BLOCK // self.centers.shape[1], 1)
        for start in range(0, len(self.centers), size):
            of = slice(start, start + size)
            centers, variance = self.centers[of].double(), self._variance(of).double()
            direction, precision = unit_direction(self._rotated(centers)), 1 / variance
            weighted = direction * precision
            curvature = (direction * weighted).sum(-1)
            log_det = variance.log().sum(-1) + curvature.log()
            norm = safe_norm(centers).squeeze(-1)
            yield _Components(start, norm, direction, precision, weighted, curvature, log_det)

    def _variance(self, of: slice) -> Tensor:
        """Return σ² of a block of components, (m, D), or (1, D) where all components share one."""
        shared = _one_if_shared(self.scale_squared)
        return shared if len(shared) == 1 else shared[of]

    def _points(self, h: Tensor) -> _Points:
        h = h.to(self.centers.device, torch.float64)
        return _Points(unit_direction(self._rotated(h)), safe_norm(h))

    def log_prob(self, h: Tensor) -> Tensor:
        """Log-density (...) float64 at embeddings h (..., D), surface measure × length.

        Raises ValueError for embeddings of another width.
        """
        if h.shape[-1:] != self._event_shape:
            raise ValueError(
                f"h must be (..., {self._event_shape[0]}), as the centers are: got {tuple(h.shape)}"
            )
        return self._log_mean(h.reshape(-1, h.shape[-1])).reshape(h.shape[:-1])

    def leave_one_out(self) -> Tensor:
        """Log-density (M,) float64 of each center under the mixture of the others.

        Raises ValueError if ``skip`` leaves no other.
        """
        if self.skip + 1 >= len(self.centers):
            raise ValueError(f"no center is left but itself: {len(self.centers)} centers, skip {self.skip}")
        return self._log_mean(self.centers, others=True)

    def _log_mean(self, h: Tensor, others: bool = False) -> Tensor:
        """Log of the mean over the components; of a center's, with ``others``, over all but its own."""
        total, first = [], 0
        for part in torch.split(h, max(_POINTS // h.shape[1], 1)):
            points = self._points(part)
            largest = torch.empty(len(part), 0, dtype=torch.float64, device=self.centers.device)
            sums = []
            for of in self._components():
                found, grown = [], []
                for start, block in points.blocks(len(of.norm)):
                    pairs = self._combine(*self._pairs(block, of), self.scale)
                    if others:
                        own = torch.arange(len(pairs), device=pairs.device) + first + start
                        pairs = pairs.masked_fill(own[:, None] == of.numbers, -math.inf)
                    if self.skip:
                        if largest.shape[1]:
                            pairs = torch.cat([largest[start : start + len(pairs)], pairs], 1)
                        values, known = pairs.topk(min(self.skip, pairs.shape[1]))
                        grown.append(values)
                        pairs = pairs.scatter(1, known, -math.inf)
                    found.append(torch.logsumexp(pairs, 1))
                largest = torch.cat(grown) if grown else largest
                sums.append(torch.cat(found))
            first += len(part)
            total.append(sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), 0))
        return torch.cat(total) - math.log(len(self.centers) - self.skip - others)

    def fit_scale(self, max_rows: int = 1024, seed: int = 0) -> PolarStudentTMixture:
        """Set τ to the maximiser of the leave-one-out mean log-density of the centers; returns self.

        A kernel density's bandwidth rule: each of ``max_rows`` seeded centers is scored by the others; τ is
        the best of 29 values between 1e-6 and 10. A center's exact copies are left out with it: they would
        drive τ to 0. Raises ValueError unless two centers differ.
        """
        count = len(self.centers)
        group = _row_groups(self.centers)
        if count < 2 or not bool((group != group[0]).any()):
            raise ValueError("the scale is chosen by leaving one center out: give at least 2 that differ")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:max_rows]
        order = order.to(self.centers.device)
        points = self._points(self.centers[order])
        logs = order.new_full((len(order), len(_LOG10_SCALES)), -math.inf, dtype=torch.float64)
        for of in self._components():
            for start, block in points.blocks(len(of.norm)):
                rows = slice(start, start + len(block.norm))
                delta2, rest = self._pairs(block, of)
                copies = group[of.start : of.start + len(of.norm)] == group[order[rows], None]
                rest[copies] = -math.inf
                for i, exponent in enumerate(_LOG10_SCALES):
                    found = torch.logsumexp(self._combine(delta2, rest, 10**exponent), 1)
                    logs[rows, i] = torch.logaddexp(logs[rows, i], found)
        totals = logs.sum(0).tolist()
        best = max(range(len(totals)), key=totals.__getitem__)
        self.scale = 10 ** _LOG10_SCALES[best]
        return self


class _Points(NamedTuple):
    """What pairs need of points: the direction (n, D), turned, and the length (n, 1)."""

    direction: Tensor
    norm: Tensor

    def blocks(self, components: int) -> Iterator[tuple[int, _Points]]:
        """Yield points, so many at a time that their pairs with the components are a block."""
        size = max(_PAIRS // components, 1)
        for start in range(0, max(len(self.norm), 1), size):
            yield start, _Points(*(x[start : start + size] for x in self))


class _Components(NamedTuple):
    """What pairs need of a block of components (m, …), from the number ``start`` on."""

    start: int
    norm: Tensor
    direction: Tensor
    precision: Tensor
    weighted: Tensor  # Λs
    curvature: Tensor  # sᵀΛs
    log_det: Tensor

    @property
    def numbers(self) -> Tensor:
        """The numbers of the components (m,)."""
        return torch.arange(self.start, self.start + len(self.norm), device=self.norm.device)


def _check_finite(centers: Tensor) -> None:
    # without anything of the size of the centers, which may be mapped from a file
    if len(centers) and not all(map(math.isfinite, (float(x) for x in centers.aminmax()))):
        raise ValueError("the centers must be finite")


def _one_if_shared(variance: Tensor) -> Tensor:
    """Return σ² (M, D), or (1, D) where all components share one, as ``expand`` makes it."""
    return variance[:1] if variance.stride(0) == 0 else variance


def _row_groups(rows: Tensor, prepare: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
    """Return a hash (M,) of each row, as ``prepare`` makes it from a block: equal rows have equal ones."""
    blocks = torch.split(rows, max(_BLOCK // rows.shape[1], 1))
    hashes = [fingerprints((prepare(block) + 0.0).cpu().numpy()) for block in blocks]  # no -0.0
    return torch.from_numpy(np.concatenate(hashes).view(np.int64)).to(rows.device)


def _directions(rows: Tensor) -> Tensor:
    return unit_direction(rows.double())


def neighbour_covariance(centers: Tensor, neighbours: int) -> Tensor:
    """Return the mean of ½(sᵢ − sⱼ)(sᵢ − sⱼ)ᵀ (D, D) over the nearest other directions j of each center's.

    Raises
    ------
    ValueError
        unless two of them differ
    """
    hashes = _row_groups(centers, _directions).cpu().numpy()
    different = torch.from_numpy(np.unique(hashes, return_index=True)[1]).sort().values.to(centers.device)
    count, dim = len(different), centers.shape[1]
    near = min(neighbours, count - 1)
    if near < 1:
        raise ValueError("a density is the spread of directions: give at least 2 that differ")
    total = torch.zeros(dim, dim, dtype=torch.float64, device=centers.device)
    width = max(_BLOCK // dim, 1)
    for rows in torch.split(different, max(_BLOCK // max(min(count, width), near * dim), 1)):
        block = _directions(centers[rows])
        best, which = block.new_empty(len(rows), 0), rows.new_empty(len(rows), 0)
        for others in torch.split(different, width):
            cosine = block @ _directions(centers[others]).T
            cosine[rows[:, None] == others] = -math.inf
            best = torch.cat([best, cosine], 1)
            which = torch.cat([which, others.expand(len(rows), -1)], 1)
            best, at = best.topk(min(near, best.shape[1]))
            which = which.gather(1, at)
        apart = (block[:, None] - _directions(centers[which.flatten()]).view(*which.shape, dim)).reshape(
            -1, dim
        )
        total += apart.T @ apart
    mean: Tensor = total / (2 * count * near)
    return mean
