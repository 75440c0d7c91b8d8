"""SIGReg: pulls a batch of embeddings towards N(0, I), one random direction at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.distributions.base import at_least_float32, full_precision
from probjepa.errors import ConfigError, DataError

_WIDEST_STEP = 9 / 16  # between frequencies; beyond, the points repeat themselves within the data's range


def sigreg(
    embeddings: Tensor,
    n_directions: int = 256,
    generator: torch.Generator | None = None,
    *,
    resolution: float = 1.0,
    points: int = 17,
    largest_frequency: float | None = None,
) -> Tensor:
    r"""Return the sketched Epps–Pulley statistic of embeddings against N(0, I): smaller is more Gaussian.

    For a unit direction a, with φ the empirical characteristic function of the N projections aᵀz,

    .. math::
        T(a) = N \int \bigl|\varphi_a(t) - e^{-t^2/2}\bigr|^2 e^{-t^2/2s^2} \, dt,

    by the trapezoid rule on points of [0, 3s], doubled by symmetry; the result is the mean over random
    directions. For N(0, I) itself its expectation is Σ_j w_j (1 − e^{−t_j²}) whatever N and K are (1.05 for
    s = 1); for anything else it grows like N. By Cramér and Wold all projections are standard normal only for
    N(0, I).

    Balestriero & LeCun, "LeJEPA", arXiv 2511.08544; Epps & Pulley, "A test for normality", Biometrika 1983.

    Parameters
    ----------
    embeddings
        (N, K), N ≥ 1
    n_directions
        how many unit directions, drawn again in every call; N × n_directions × points numbers are held
    generator
        of the directions, on the device of ``embeddings``; None: torch's global one
    resolution
        s: 1 is the published statistic, all but blind to structure finer than about half a standard
        deviation; a larger one sees structure s times finer; ``math.inf``: no window, all frequencies alike
    points
        how many frequencies, at least 2; 17 allow s ≤ 3
    largest_frequency
        the end of the range; None: 3s

    Returns
    -------
    Tensor
        a scalar, differentiable; in float32 at least, whatever the autocast around it

    Raises
    ------
    DataError
        for another shape
    ConfigError
        for no direction, no resolution, or frequencies further apart than 9/16
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise DataError(f"SIGReg: embeddings have shape {tuple(embeddings.shape)}: give (N, K), N ≥ 1")
    if n_directions < 1:
        raise ConfigError(f"SIGReg: n_directions is {n_directions}: use at least 1")
    largest = 3 * resolution if largest_frequency is None else largest_frequency
    if points < 2 or not (resolution > 0 and 0 < largest <= _WIDEST_STEP * (points - 1)):
        raise ConfigError(
            f"SIGReg: resolution is {resolution} with {points} frequencies to {largest}: use a positive "
            f"resolution, and at least 2 frequencies at most {_WIDEST_STEP} apart"
        )
    embeddings = at_least_float32(embeddings)
    device, dtype = embeddings.device, embeddings.dtype
    normal = torch.randn(n_directions, embeddings.shape[1], generator=generator, device=device, dtype=dtype)
    t = torch.linspace(0, largest, points, device=device, dtype=dtype)
    target = torch.exp(-0.5 * t.square())
    weight = 2 * t[1] * torch.exp(-0.5 * (t / resolution).square())  # the doubled half-line
    weight[[0, -1]] *= 0.5  # the ends of the trapezoid rule
    with full_precision(embeddings):
        angles = (embeddings @ F.normalize(normal, dim=1).T)[..., None] * t  # (N, directions, points)
        distance = (angles.cos().mean(0) - target).square() + angles.sin().mean(0).square()
        statistic: Tensor = len(embeddings) * (distance @ weight).mean()
    return statistic
