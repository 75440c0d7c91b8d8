"""What predicted cells turned out to be: a correction of their distributions, fitted to held-out rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probjepa.tabular.tokens import CellDistribution, Layout, Rows

# fewer observed cells of a feature than this leave its predictions as they are
_FEWEST_CELLS = 50
_RIDGE = 1.0  # of the categories' two numbers, towards no correction, in nats


class Calibration(nn.Module):
    r"""Predicted cells → calibrated ones: a few numbers a feature, of highest likelihood on held-out rows.

    The latents' Gaussians are diagonal, so where their errors go together a cell's variance comes out too
    small, and a cell that the others do not determine is predicted too confidently. A number predicted as
    N(m, v) is N(a + b·m, c·v); a category with logits l has a·l + b·log π, with π its frequencies:
    temperature scaling (Guo et al. 2017, arXiv 1706.04599) with a way back to the frequencies. Before
    ``fit`` all is unchanged.
    """

    slope: Tensor
    shift: Tensor
    spread: Tensor
    sharpness: Tensor
    prior_weight: Tensor
    log_prior: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        n, k = len(layout.numeric), len(layout.categorical)
        self.sizes = [size + 1 for size in layout.cardinalities]  # the first class is "unknown"
        for name, value in (
            ("slope", torch.ones(n)),
            ("shift", torch.zeros(n)),
            ("spread", torch.ones(n)),
            ("sharpness", torch.ones(k)),
            ("prior_weight", torch.zeros(k)),
            ("log_prior", torch.zeros(sum(self.sizes))),
        ):
            self.register_buffer(name, value)

    def forward(self, cells: CellDistribution) -> CellDistribution:
        """Correct predictions (B, …)."""
        priors = torch.split(self.log_prior, self.sizes)
        logits = [
            a * logit + b * prior
            for a, b, logit, prior in zip(
                self.sharpness, self.prior_weight, cells.logits, priors, strict=True
            )
        ]
        return CellDistribution(self.shift + self.slope * cells.mean, self.spread * cells.variance, logits)

    @torch.no_grad()
    def fit(self, cells: CellDistribution, rows: Rows, frequencies: list[Tensor]) -> None:
        """Fit to uncorrected predictions of held-out rows (B, …) and what stood there.

        ``frequencies``: counts (1 + C) of each categorical feature's classes in the rows of the fit.
        """
        for i in range(cells.mean.shape[1]):
            seen = ~rows.missing[:, i]
            if int(seen.sum()) >= _FEWEST_CELLS:
                self.shift[i], self.slope[i], self.spread[i] = _fit_number(
                    rows.numeric[seen, i], cells.mean[seen, i], cells.variance[seen, i]
                )
        offset = 0
        for i, (logits, counts) in enumerate(zip(cells.logits, frequencies, strict=True)):
            prior = ((counts + 0.5) / (counts + 0.5).sum()).log()
            self.log_prior[offset : offset + len(prior)] = prior
            offset += len(prior)
            seen = rows.codes[:, i] > 0
            if int(seen.sum()) >= _FEWEST_CELLS:
                self.sharpness[i], self.prior_weight[i] = _fit_category(
                    rows.codes[seen, i] - 1, logits[seen], prior
                )


def _fit_number(value: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c of N(a + b·m, c·v) by maximum likelihood: weighted least squares; c unbiased; b not below 0."""
    x, m, v = value.double(), mean.double(), variance.double()
    w = (1 / v) / (1 / v).sum()
    x_mean, m_mean = (w * x).sum(), (w * m).sum()
    of_mean = (w * (m - m_mean).square()).sum()
    slope = (w * (m - m_mean) * (x - x_mean)).sum() / of_mean.clamp(min=1e-12)
    slope = slope.clamp(min=0.0)
    shift = x_mean - slope * m_mean
    spread = ((x - shift - slope * m).square() / v).sum() / (len(x) - 2)
    return shift, slope, spread.clamp(1e-3, 1e6)


def _fit_category(target: Tensor, logits: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """a, b of softmax(a·logits + b·log π) by penalised maximum likelihood, which is convex; a not below 0."""
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    logits, prior, target = logits.double().cpu(), prior.double().cpu(), target.cpu()
    with torch.enable_grad():
        both = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([both], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            nll = F.cross_entropy(both[0].clamp(min=0) * logits + both[1] * prior, target, reduction="sum")
            total: Tensor = (nll + 0.5 * _RIDGE * (both - start).square().sum()) / len(target)
            torch.autograd.backward(total)
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
    found = both.detach()
    return found[0].clamp(min=0), found[1]
