"""Diagonal Gaussians given by mean and log-variance: their divergence."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_diagonal_gaussians(
    mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor | float = 0.0, log_var_p: Tensor | float = 0.0
) -> Tensor:
    r"""Return KL(q ‖ p) in nats of diagonal Gaussians, summed over the last axis: (…, D) → (…).

    .. math::
        \mathrm{KL} = \tfrac12 \sum_d \Bigl[\log\frac{\tau_d^2}{\sigma_d^2} - 1
            + \frac{\sigma_d^2 + (\mu_d - \nu_d)^2}{\tau_d^2}\Bigr],
        \quad q = N(\mu, \operatorname{diag} \sigma^2),\; p = N(\nu, \operatorname{diag} \tau^2)

    Parameters
    ----------
    mean_q, log_var_q
        μ and log σ², (…, D)
    mean_p, log_var_p
        ν and log τ², of shapes that broadcast with them; the default is N(0, I)
    """
    log_ratio = log_var_q - log_var_p
    # expm1: exp(r) − r − 1 would lose its digits where the two variances agree
    spread = torch.expm1(log_ratio) - log_ratio
    inverse = torch.exp(-torch.as_tensor(log_var_p, dtype=log_ratio.dtype, device=log_ratio.device))
    return 0.5 * (spread + (mean_q - mean_p).square() * inverse).sum(-1)
