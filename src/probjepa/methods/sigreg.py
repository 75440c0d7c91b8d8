"""SIGReg: pulls a batch of embeddings towards N(0, I), one random direction at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa.errors import ConfigError

_LARGEST_FREQUENCY = 3.0
_POINTS = 17


def sigreg(
    embeddings: Tensor,
    n_directions: int = 256,
    generator: torch.Generator | None = None,
    *,
    resolution: float = 1.0,
) -> Tensor:
    r"""Return the sketched Epps–Pulley statistic of embeddings against N(0, I): smaller is more Gaussian.

    For a unit direction a, with φ the empirical characteristic function of the N projections aᵀz,

    .. math::
        T(a) = N \int \bigl|\varphi_a(t) - e^{-t^2/2}\bigr|^2 e^{-t^2/2s^2} \, dt,

    by the trapezoid rule on 17 points of [0, 3s], doubled by symmetry; the result is the mean over random
    directions. For N(0, I) itself its expectation is Σ_j w_j (1 − e^{−t_j²}) whatever N and K are (1.06 for
    s = 1); for anything else it grows like N. By Cramér and Wold all projections are standard normal only for
    N(0, I).

    Balestriero & LeCun, "LeJEPA", arXiv 2511.08544; Epps & Pulley, "A test for normality", Biometrika 1983.

    Parameters
    ----------
    embeddings
        (N, K), N ≥ 1
    n_directions
        how many unit directions, drawn afresh in every call; N × n_directions × 17 numbers are held
    generator
        of the directions, on the device of ``embeddings``; None: torch's global one
    resolution
        s, at most 3: 1 is the published statistic, all but blind to structure finer than about half a
        standard deviation; a larger one sees structure s times finer

    Returns
    -------
    Tensor
        a scalar, differentiable

    Raises
    ------
    ConfigError
        for another shape, no direction, or a resolution out of (0, 3]
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ConfigError(f"SIGReg: embeddings have shape {tuple(embeddings.shape)}: give (N, K), N ≥ 1")
    if n_directions < 1:
        raise ConfigError(f"SIGReg: n_directions is {n_directions}: use at least 1")
    if not 0 < resolution <= 3:  # beyond, the 17 points repeat themselves within the data's range
        raise ConfigError(f"SIGReg: resolution is {resolution}: use a number in (0, 3]")
    device, dtype = embeddings.device, embeddings.dtype
    normal = torch.randn(n_directions, embeddings.shape[1], generator=generator, device=device, dtype=dtype)
    t = torch.linspace(0, _LARGEST_FREQUENCY * resolution, _POINTS, device=device, dtype=dtype)
    target = torch.exp(-0.5 * t.square())
    weight = 2 * t[1] * torch.exp(-0.5 * (t / resolution).square())  # the doubled half-line
    weight[[0, -1]] *= 0.5  # the ends of the trapezoid rule
    angles = (embeddings @ F.normalize(normal, dim=1).T)[..., None] * t  # (N, directions, 17)
    distance = (angles.cos().mean(0) - target).square() + angles.sin().mean(0).square()
    statistic: Tensor = len(embeddings) * (distance @ weight).mean()
    return statistic
