"""Sums over blocks of rows that say all that a covariance or a mixture's step needs, and add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from probjepa._arrays import power_of_two

_Matrix = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Rows around their class means, in float64.

    Attributes
    ----------
    labels, counts, means
        the classes (C,), of any type and ascending; their rows (C,) and means (C, D)
    scatter
        Σ(x − μ)(x − μ)ᵀ (D, D), over all classes
    largest
        max |x|
    third, fourth
        Σ‖x − μ‖²(x − μ) (D,) and Σ‖x − μ‖⁴. The sum of two ``Moments`` of classes has None
    unit
        a power of two that the rows were divided by, so that the powers above neither overflow nor vanish
    """

    labels: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    means: _Matrix
    scatter: _Matrix
    largest: float
    third: _Matrix | None
    fourth: float | None
    unit: float = 1.0

    @classmethod
    def of(cls, blocks: Any, labels: npt.NDArray[Any], dim: int) -> Self:
        """Return those of blocks (x (n, D), class numbers (n,)), which ``blocks()`` gives again each time."""
        counts, means, largest = np.zeros(len(labels), dtype=np.int64), np.zeros((len(labels), dim)), 0.0
        with np.errstate(over="ignore"):  # those of too large a scale are taken again
            for rows, codes in blocks():
                counts += np.bincount(codes, minlength=len(labels))
                np.add.at(means, codes, rows)
                largest = max(largest, float(np.abs(rows).max(initial=0.0)))
        if (unit := float(power_of_two(largest))) != 1:
            found = cls.of(lambda: ((rows / unit, codes) for rows, codes in blocks()), labels, dim)
            return replace(found, unit=unit)
        means /= counts[:, None]
        scatter, third, fourth = np.zeros((dim, dim)), np.zeros(dim), 0.0
        for rows, codes in blocks():
            residuals = rows - means[codes]
            squares = np.square(residuals).sum(1)
            scatter += residuals.T @ residuals
            third += squares @ residuals
            fourth += float(squares @ squares)
        return cls(labels, counts, means, scatter, largest, third, fourth)

    def __add__(self, other: Self) -> Self:
        """Return those of the rows of both; Chan, Golub & LeVeque, "Updating Formulae", 1979."""
        unit = max(self.unit, other.unit)
        parts = self._in(unit), other._in(unit)
        labels = np.union1d(self.labels, other.labels)
        counts, means = np.zeros((2, len(labels))), np.zeros((2, len(labels), self.means.shape[1]))
        for part, of in enumerate(parts):
            at = np.searchsorted(labels, of.labels)
            counts[part, at], means[part, at] = of.counts, of.means
        total = counts.sum(0)
        apart = means[1] - means[0]
        mean = means[0] + apart * (counts[1] / total)[:, None]
        scatter = parts[0].scatter + parts[1].scatter + (apart.T * (counts.prod(0) / total)) @ apart
        third = fourth = None
        if len(labels) == 1 and self.third is not None and other.third is not None:
            moved = [of._around(mean[0]) for of in parts]
            third, fourth = moved[0][0] + moved[1][0], moved[0][1] + moved[1][1]
        largest = max(of.largest for of in parts)
        return type(self)(labels, total.astype(np.int64), mean, scatter, largest, third, fourth, unit)

    def _in(self, unit: float) -> Self:
        """Return those of the same rows divided by another power of two, no smaller than the present one."""
        by = self.unit / unit
        return replace(
            self,
            means=self.means * by,
            scatter=self.scatter * by * by,
            largest=self.largest * by,
            third=None if self.third is None else self.third * by * by * by,
            fourth=None if self.fourth is None else self.fourth * by * by * by * by,
            unit=unit,
        )

    def _around(self, mean: _Matrix) -> tuple[_Matrix, float]:
        """Return ``third`` and ``fourth`` of one class's rows around another mean."""
        assert self.third is not None
        assert self.fourth is not None
        step, n, trace = mean - self.means[0], int(self.counts[0]), float(np.trace(self.scatter))
        turned, length = self.scatter @ step, float(step @ step)
        third = self.third - step * (trace + n * length) - 2 * turned
        fourth = self.fourth - 4 * step @ self.third + 4 * step @ turned + 2 * length * trace + n * length**2
        return third, float(fourth)

    def ledoit_wolf(self) -> float:
        """Return the shrinkage α of Ledoit & Wolf 2004 towards (tr Σ/D)·I; ``fourth`` has to be known."""
        assert self.fourth is not None
        n, dim = int(self.counts.sum()), len(self.scatter)
        sample = self.scatter / n
        squared, scale = float(np.square(sample).sum()), float(np.trace(sample)) / dim
        away = squared / dim - scale**2
        noise = min((self.fourth / n - squared) / (dim * n), away)
        return noise / away if dim > 1 and noise > 0 else 0.0


def mixture_step(mixture: Any, blocks: Iterable[_Matrix], origin: _Matrix) -> float:
    """Take one step of EM, in place, of scikit-learn's ``GaussianMixture`` over blocks (n, D) of its rows.

    Returns the mean log-density of all rows before the step. Squares are summed around ``origin`` (D,).

    Raises
    ------
    ValueError
        if a covariance is not positive definite
    """
    kind, (components, dim) = mixture.covariance_type, mixture.means_.shape
    shape = {"full": (components, dim, dim), "tied": (dim, dim)}.get(kind, (components, dim))
    weight, first, second = np.zeros(components), np.zeros((components, dim)), np.zeros(shape)
    count, total = 0, 0.0
    for rows in blocks:
        density, log_share = mixture._estimate_log_prob_resp(rows)
        share, x = np.exp(log_share), rows - origin
        count, total = count + len(rows), total + float(density.sum())
        weight += share.sum(0)
        first += share.T @ x
        if kind == "full":
            for component, of in enumerate(share.T):
                second[component] += (x.T * of) @ x
        else:
            second += x.T @ x if kind == "tied" else share.T @ np.square(x)
    weight += 10 * np.finfo(np.float64).eps
    means = first / weight[:, None]
    if kind == "tied":
        covariance = (second - (means.T * weight) @ means) / weight.sum()
    elif kind == "full":
        covariance = second / weight[:, None, None] - means[:, :, None] * means[:, None]
    else:
        covariance = second / weight[:, None] - np.square(means)
    if kind in ("full", "tied"):
        covariance = covariance + mixture.reg_covar * np.eye(dim)
        try:
            factor = np.linalg.inv(np.linalg.cholesky(covariance)).swapaxes(-1, -2)
        except np.linalg.LinAlgError as error:
            raise ValueError("a component's covariance is not positive definite") from error
    else:
        covariance = covariance + mixture.reg_covar
        covariance = covariance.mean(1) if kind == "spherical" else covariance
        if (covariance <= 0).any():
            raise ValueError("a component's covariance is not positive definite")
        factor = 1 / np.sqrt(covariance)
    mixture.weights_, mixture.means_ = weight / weight.sum(), means + origin
    mixture.covariances_, mixture.precisions_cholesky_ = covariance, factor
    return total / count
