"""The density of a mixture of Gaussians."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from probjepa.detectors.base import (
    Detector,
    Matrix,
    counted,
    in_blocks,
    in_unit,
    spaced,
    unit_of,
)
from probjepa.draws import sklearn_seed
from probjepa.errors import ConfigError, DataError, warn
from probjepa.metrics.moments import mixture_step
from probjepa.registry import importing
from probjepa.typed import check_plain

with importing():
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as SklearnGaussianMixture

_START_ROWS = 16384  # that k-means sees of mapped ones


class GaussianMixture(Detector):
    """Score = log-density under a mixture of Gaussians, fitted by scikit-learn's EM.

    The EM of mapped embeddings reads them a block at a time, once a step; k-means starts it from 16,384 of
    them, evenly spaced.

    Parameters
    ----------
    n_components
        at most the number of rows of the fit
    covariance_type
        "full", "tied", "diag" or "spherical"
    reg_covar
        added to the diagonal of every covariance; with few rows and many dimensions raise it, or use "diag"
    seed
        of the k-means start
    contamination
        share of the fit that ``predict`` calls outliers, in (0, 0.5]
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        reg_covar: float = 1e-6,
        seed: int = 0,
        contamination: float = 0.1,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.seed = seed
        self.contamination = contamination

    def _fit(self, rows: Matrix, codes: npt.NDArray[np.int64], labels: npt.NDArray[Any]) -> None:
        if len(rows) < 2:
            raise DataError("GaussianMixture needs at least 2 embeddings to fit and got 1 sample: give more")
        if not 1 <= self.n_components <= len(rows):
            raise ConfigError(
                f"GaussianMixture: n_components is {self.n_components} with {counted(len(rows))} to fit: "
                f"use 1 to {len(rows)}"
            )
        # below 1, reg_covar rules
        self._unit = unit = max(unit_of(rows), 1.0)
        mixture = SklearnGaussianMixture(
            self.n_components,
            covariance_type=self.covariance_type,
            reg_covar=self.reg_covar / unit / unit,
            random_state=sklearn_seed(check_plain("seed", self.seed, int)),
        )
        try:
            mapped = isinstance(rows, np.memmap)
            self._mixture = _em(mixture, rows, unit) if mapped else mixture.fit(in_unit(rows, unit))
        except ValueError as error:
            reason = str(error).splitlines()[0].removesuffix(".")
            raise ConfigError(
                f"GaussianMixture cannot be fitted: {reason}; try fewer components, a larger reg_covar, "
                "or covariance_type='diag'"
            ) from error

    def _score(self, rows: Matrix) -> npt.NDArray[np.float64]:
        scores: npt.NDArray[np.float64] = self._mixture.score_samples(in_unit(rows, self._unit))
        scores -= rows.shape[1] * math.log(self._unit)
        return scores


def _em(mixture: Any, rows: Matrix, unit: float) -> Any:
    """Fit a mixture to mapped rows, divided by ``unit``, as its own ``fit`` does, a block at a time."""
    steps = mixture.max_iter
    start = np.asarray(rows[spaced(len(rows), _START_ROWS)], dtype=np.float64) / unit
    mixture.set_params(max_iter=0).fit(start)  # k-means alone
    before = -np.inf
    for _ in range(steps):
        found = mixture_step(mixture, (in_unit(block, unit) for _, block in in_blocks(rows)), start.mean(0))
        if abs(found - before) < mixture.tol:
            return mixture
        before = found
    warn(
        f"GaussianMixture: EM did not converge in {steps} steps: use fewer components or a larger reg_covar",
        ConvergenceWarning,
    )
    return mixture
