"""What predicted cells turned out to be: a correction of their distributions, fitted to held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from probjepa.metrics.conformal import threshold_rank
from probjepa.tabular.tokens import CellDistribution, Layout, Rows

# fewer observed cells of a feature than this leave its predictions as they are
_FEWEST_CELLS = 50
_FOLDS = 10  # of the rows whose calibrated predictions are looked at
_RIDGE = 1.0  # of the categories' numbers, towards no correction, in nats
_Enough = tuple[list[bool], list[bool]]
_MISSED, _NORMAL = 0.05, 1.959964  # by an interval, and its half-width in standard deviations
_SHARES = (0.5, 0.875, 1.0)  # of a row's cells, which are hidden together to see how intervals widen
_PATTERNS = 32  # of such cells
_SEED = 0  # of what is hidden


class Calibration(nn.Module):
    r"""Predicted cells → calibrated ones: a few numbers a feature, of highest likelihood on held-out rows.

    The latents' Gaussians are diagonal, so where their errors go together a cell's variance comes out too
    small, and a cell that the others do not determine is predicted too confidently. A number predicted as
    N(m, v) is N(a + b·m, c·v); a category with logits l has a·l + b·log π, with π its frequencies:
    temperature scaling (Guo et al. 2017, arXiv 1706.04599) with a way back to the frequencies. Before
    ``fit`` all is unchanged.

    There may be several sources of predictions, which are combined: a + Σ bₛ·mₛ, with the variances in the
    shares of bₛ, and Σ aₛ·lₛ + b·log π (linear and logarithmic pools). Before ``fit`` it is the first's.

    A constant number's is N(0, 1): a tighter one would make of another value there a surprise that hides all
    others.

    ``reach`` (4, Dn) is half an interval of 95 %, in standard deviations: the conformal quantile of held-out
    errors, each by a fit of the correction to the others; and of those where half, seven eighths or all of
    the row's cells are hidden together, of which the sources' own deviations may know too little.
    """

    slope: Tensor
    shift: Tensor
    spread: Tensor
    reach: Tensor
    sharpness: Tensor
    prior_weight: Tensor
    log_prior: Tensor
    constant: Tensor

    def __init__(self, layout: Layout, n_sources: int = 1) -> None:
        super().__init__()
        n, k = len(layout.numeric), len(layout.categorical)
        self.layout = layout
        self.sizes = [size + 1 for size in layout.cardinalities]  # the first class is "unknown"
        first = torch.zeros(n_sources, 1)
        first[0] = 1.0
        for name, value in (
            ("slope", first.repeat(1, n)),
            ("shift", torch.zeros(n)),
            ("spread", torch.ones(n)),
            ("reach", torch.full((1 + len(_SHARES), n), _NORMAL)),
            ("sharpness", first.repeat(1, k)),
            ("prior_weight", torch.zeros(k)),
            ("log_prior", torch.zeros(sum(self.sizes))),
            ("constant", torch.tensor(layout.constant or (False,) * n, dtype=torch.bool)),
        ):
            self.register_buffer(name, value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # models saved before it was there go by what was fitted to such columns too
        state_dict.setdefault(f"{prefix}constant", torch.zeros_like(self.constant))
        reach = state_dict.get(f"{prefix}reach")
        if reach is not None and reach.ndim == 1:  # of any number of hidden cells
            state_dict[f"{prefix}reach"] = reach.repeat(len(self.reach), 1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, sources: Sequence[CellDistribution]) -> CellDistribution:
        """Combine and correct each source's predictions (B, …)."""
        priors = torch.split(self.log_prior, self.sizes)
        means = torch.stack([of.mean for of in sources])
        logits = [
            b * prior + sum(a * logit for a, logit in zip(weights, said, strict=True))
            for weights, b, prior, said in zip(
                self.sharpness.unbind(1),
                self.prior_weight,
                priors,
                zip(*(of.logits for of in sources), strict=True),
                strict=True,
            )
        ]
        mean = self.shift + (self.slope.unsqueeze(1) * means).sum(0)
        variance = _pooled(torch.stack([of.variance for of in sources]), self.slope)
        mean = mean.masked_fill(self.constant, 0.0)
        variance = (self.spread * variance).masked_fill(self.constant, 1.0)
        return CellDistribution(mean, variance, logits)

    @torch.no_grad()
    def fit(
        self,
        sources: Sequence[CellDistribution],
        rows: Rows,
        frequencies: list[Tensor],
        enough: _Enough | None = None,
    ) -> None:
        """Fit to uncorrected predictions of held-out rows (B, …) and what stood there.

        ``frequencies``: counts (1 + C) of each categorical feature's classes in the rows of the fit.
        ``enough``: which features have enough cells; None: by these rows.
        """
        enough = enough or _enough(rows)
        for i in range(rows.numeric.shape[1]):
            seen = ~rows.missing[:, i]
            if not enough[0][i] or self.constant[i] or int(seen.sum()) < 2 + len(sources):
                continue
            x = rows.numeric[seen, i].double()
            means = torch.stack([of.mean[seen, i] for of in sources]).double()
            variances = torch.stack([of.variance[seen, i] for of in sources]).double()
            of_number = _fit_number(x, means, variances)
            self.shift[i], self.slope[:, i], self.spread[i], self.reach[:, i] = of_number
        offset = 0
        for i, counts in enumerate(frequencies):
            prior = ((counts + 0.5) / (counts + 0.5).sum()).log()
            self.log_prior[offset : offset + len(prior)] = prior
            offset += len(prior)
            seen = rows.codes[:, i] > 0
            if enough[1][i]:
                logits = torch.stack([of.logits[i][seen] for of in sources])
                found = _fit_category(rows.codes[seen, i] - 1, logits, prior, self.sharpness[:, i])
                self.sharpness[:, i], self.prior_weight[i] = found[:-1], found[-1]

    @torch.no_grad()
    def widen(
        self, sources: Sequence[Sequence[CellDistribution]], rows: Rows, hidden: Sequence[Tensor]
    ) -> None:
        """Fit ``reach`` where more cells are ``hidden`` (B, D): what ``hide_together`` returned.

        ``sources``: for each of these what each source, uncorrected, predicts of the rows (B, …). A feature
        with fewer than 20 such cells, or of which nothing was fitted, has the reach of the others.
        """
        enough, _ = _enough(rows)
        for k, (said, where) in enumerate(zip(sources, hidden, strict=True), 1):
            cells = self(said)
            errors = (rows.numeric - cells.mean).abs() / cells.variance.sqrt()
            asked = where[:, list(self.layout.numeric)] & ~rows.missing
            for i, of in enumerate(asked.unbind(1)):
                if enough[i] and not self.constant[i] and int(of.sum()) >= 1 / _MISSED:
                    in_order = errors[of, i].sort().values
                    self.reach[k, i] = in_order[-threshold_rank(len(in_order), _MISSED)]

    def reach_of(self, hidden: Tensor, folds: int) -> Tensor:
        """Return half an interval of each number (B, Dn), in deviations, where cells are ``hidden`` (B, D).

        Between the shares of a row's cells at which it is known, that of one of ``folds`` groups the first,
        it is on a straight line.
        """
        d = hidden.shape[1]
        known = [d / min(folds, d), *_together(d)]
        count, found = hidden.sum(1, keepdim=True), self.reach[0].expand(len(hidden), -1)
        for k, (low, high) in enumerate(pairwise(known)):
            way = ((count - low) / (high - low)).clamp(0, 1) if high > low else (count >= high).float()
            found = found + way * (self.reach[k + 1] - self.reach[k])
        return found


def _together(d: int) -> list[int]:
    """How many of a row's D cells are hidden together."""
    return [round(share * d) for share in _SHARES]


def hide_together(layout: Layout, rows: Rows) -> list[Tensor]:
    """Return cells to hide (B, D): half of each row's, seven eighths, all; always the same few patterns."""
    d, generator = layout.n_features, torch.Generator().manual_seed(_SEED)
    pattern = torch.arange(len(rows)) % _PATTERNS
    return [
        (torch.rand(_PATTERNS, d, generator=generator).argsort(1) < count)[pattern].to(rows.codes.device)
        for count in _together(d)
    ]


def cross_calibrated(
    layout: Layout,
    sources: Sequence[CellDistribution],
    rows: Rows,
    frequencies: list[Tensor],
    *others: Sequence[CellDistribution],
) -> list[CellDistribution]:
    """Calibrate predictions of held-out rows (B, …), each row's by a fit to the other nine tenths.

    What is seen of them is then as of new rows: a correction makes the rows that it was fitted to look more
    typical than others. Arguments as those of ``Calibration.fit``; ``others`` are further predictions of the
    same rows, which are calibrated alike.
    """
    fold = torch.arange(len(rows), device=rows.codes.device) % _FOLDS
    found, enough = [], _enough(rows)
    for own in (fold == k for k in range(min(_FOLDS, len(rows)))):
        calibration = Calibration(layout, len(sources)).to(rows.codes.device)
        calibration.fit([of.at(~own) for of in sources], rows.at(~own), frequencies, enough)
        found.append([calibration([of.at(own) for of in said]) for said in (sources, *others)])
    order = fold.argsort(stable=True).argsort()
    return [CellDistribution.joined(of).at(order) for of in zip(*found, strict=True)]


def _enough(rows: Rows) -> _Enough:
    """Whether there are enough cells of each number, and of each category."""
    numbers, categories = (~rows.missing).sum(0), (rows.codes > 0).sum(0)
    return (numbers >= _FEWEST_CELLS).tolist(), (categories >= _FEWEST_CELLS).tolist()


def _pooled(variances: Tensor, slope: Tensor) -> Tensor:
    """Variance (B, …) from each source's (S, B, …), in the shares of their slopes (S, …)."""
    total = slope.sum(0)
    share = torch.where(total > 0, slope / total.clamp(min=1e-30), 1 / len(slope))
    return (share.unsqueeze(1) * variances).sum(0)


def _fit_number(value: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, c of N(a + Σ b·m, c·v) by weighted least squares, and the reach; b (S,) not below 0; c unbiased.

    The reach is that of each cell's error by a fit to the others: its error over 1 − leverage.
    """
    x, v = value, variances.mean(0)
    w = (1 / v) / (1 / v).sum()
    centre = means @ w
    design, target = (means - centre[:, None]) * w.sqrt(), (x - w @ x) * w.sqrt()
    slope = _not_negative(design @ design.T, design @ target)
    shift = w @ x - slope @ centre
    v = _pooled(variances, slope)
    errors = x - shift - slope @ means
    _, sizes, basis = torch.linalg.svd(design[slope > 0], full_matrices=False)  # of S rows at most
    basis = basis[sizes > 1e-6 * means.abs().amax()]  # sources that say the same, or nothing, are fewer
    spread = ((errors.square() / v).sum() / (len(x) - 1 - len(basis))).clamp(1e-3, 1e6)
    leverage = (w + basis.square().sum(0)).clamp(max=0.5)
    errors = ((errors / (1 - leverage)).abs() / (spread * v).sqrt()).sort().values
    return shift, slope, spread, errors[-threshold_rank(len(x), _MISSED)]


def _not_negative(gram: Tensor, along: Tensor) -> Tensor:
    """Return b ≥ 0 (S,) of least ½ bᵀGb − bᵀh: the best of all sets of sources, which are few."""
    best, least = torch.zeros_like(along), 0.0
    for chosen in range(1, 2 ** len(along)):
        at = torch.tensor([s for s in range(len(along)) if chosen >> s & 1])
        own = gram[at][:, at] + 1e-12 * torch.eye(len(at), dtype=gram.dtype, device=gram.device)
        b = torch.linalg.lstsq(own, along[at, None]).solution[:, 0]
        loss = float(0.5 * b @ own @ b - b @ along[at])
        if bool((b >= 0).all()) and loss < least:
            best, least = torch.zeros_like(along).index_put((at,), b), loss
    return best


def _fit_category(target: Tensor, logits: Tensor, prior: Tensor, start: Tensor) -> Tensor:
    """a, b (S + 1,) of softmax(Σ a·logits + b·log π) by penalised maximum likelihood; a not below 0.

    Convex, by Newton's steps; a source whose weight falls below 0 has none.
    """
    prior = prior.double().expand(len(target), -1)
    features = torch.stack([*logits.double(), prior.to(logits.device)], -1)  # (N, C, S + 1)
    right = features.gather(1, target[:, None, None].expand(-1, -1, features.shape[2])).squeeze(1)
    start = torch.cat([start.double(), torch.zeros(1, dtype=torch.float64, device=start.device)])
    free = torch.ones_like(start, dtype=torch.bool)

    def loss(at: Tensor) -> Tensor:
        nll = (features @ at).logsumexp(1) - right @ at
        return nll.sum() + 0.5 * _RIDGE * (at - start).square().sum()

    found = start.clone()
    while True:
        for _ in range(50):
            p = (features @ found).softmax(1).unsqueeze(-1)
            expected = (p * features).sum(1)
            slope = (expected - right).sum(0) + _RIDGE * (found - start)
            curve = torch.einsum("ncs,nct->st", p * features, features) - expected.T @ expected
            curve = curve + _RIDGE * torch.eye(len(found)).to(curve)
            step = torch.zeros_like(found)
            step[free] = torch.linalg.solve(curve[free][:, free], slope[free])
            size, before = 1.0, loss(found)
            while size > 1e-6 and loss(found - size * step) > before:
                size /= 2
            found = found - size * step
            if float((slope * step).sum()) < 1e-8:
                break
        below = free & (found < 0)
        below[-1] = False
        if not bool(below.any()):
            return found
        free &= ~below
        found = torch.where(below, torch.zeros_like(found), found)
