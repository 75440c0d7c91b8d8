"""From cells to tokens, and from latents back to the distribution of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probjepa.tabular.elbo import balanced_nll, bounded_log_variance, gaussian_nll

_FLOOR = 0.1  # of a column's standard deviation


@dataclass(frozen=True)
class Layout:
    """Where a table's features stand, as the networks need to know.

    Attributes
    ----------
    numeric, categorical
        indices among the D features; together all of them
    cardinalities
        how many known categories each categorical feature has
    types
        a small integer for each feature: its column's type
    constant
        which of the numeric features are constant, or empty
    """

    numeric: tuple[int, ...]
    categorical: tuple[int, ...]
    cardinalities: tuple[int, ...]
    types: tuple[int, ...]
    constant: tuple[bool, ...] = ()

    @property
    def n_features(self) -> int:
        """D."""
        return len(self.types)

    def order(self) -> Tensor:
        """Return the index (D,) that puts [numeric features, categorical features] in the table's order."""
        return torch.tensor([*self.numeric, *self.categorical]).argsort()


class Rows(NamedTuple):
    """A batch of an ``EncodedTable``: numeric (B, Dn), missing (B, Dn), codes (B, Dc)."""

    numeric: Tensor
    missing: Tensor
    codes: Tensor

    def at(self, index: Tensor | slice, device: torch.device | None = None) -> Rows:
        """Return some of the rows, on a device; None: theirs."""
        return Rows(*(part[index].to(device or part.device, non_blocking=True) for part in self))

    def followed_by(self, others: Rows) -> Rows:
        """Return these rows and then others."""
        return Rows(*(torch.cat(parts) for parts in zip(self, others, strict=True)))

    def __len__(self) -> int:
        return len(self.numeric)


def normal_edges(n_bins: int) -> Tensor:
    """Return the edges (T − 1,) between T bins in which a normal number is as often."""
    levels = torch.linspace(0, 1, max(n_bins, 1) + 1)
    edges: Tensor = torch.special.ndtri(levels[1:-1])
    return edges


def by_bins(x: Tensor, edges: Tensor) -> Tensor:
    """Return what of the way from 0 to each number lies in each bin: (…) → (…, T), whose sum is the number.

    The piecewise linear encoding of Gorishniy et al. (2022, arXiv 2203.05556), measured from 0.
    """
    low, high = F.pad(edges, (1, 0), value=-math.inf), F.pad(edges, (0, 1), value=math.inf)
    return x.unsqueeze(-1).clamp(low, high) - torch.zeros_like(low).clamp(low, high)


class FeatureTokenizer(nn.Module):
    """Cells to tokens (B, D, d): value·weight + bias, or a category's embedding; + type + position.

    A missing cell has a learned token in place of its value, and a category that the fit did not know has
    another, which starts at 0 and learns where the fit's rare categories were cut off.

    With ``n_bins`` above 0 a value has a weight a bin, so that its token bends at the quantiles of the normal
    distribution (``by_bins``). It starts as the straight line. 0 is published.
    """

    def __init__(self, layout: Layout, dim: int, n_bins: int = 0) -> None:
        super().__init__()
        self.register_buffer("edges", normal_edges(n_bins), persistent=False)
        self.edges: Tensor
        n_types = max(layout.types) + 1
        n_categories = sum(layout.cardinalities)
        straight = torch.randn(len(layout.numeric), dim) / math.sqrt(dim)
        self.weight = nn.Parameter(straight.unsqueeze(1).repeat(1, n_bins, 1) if n_bins else straight)
        self.bias = nn.Parameter(torch.zeros(len(layout.numeric), dim))
        self.categories = nn.Parameter(torch.randn(n_categories, dim) / math.sqrt(dim))
        self.missing = nn.Parameter(torch.randn(1, dim) / math.sqrt(dim))
        self.unknown = nn.Parameter(torch.zeros(1, dim))
        self.kind = nn.Parameter(torch.randn(n_types, dim) / math.sqrt(dim))
        self.position = nn.Parameter(torch.randn(layout.n_features, dim) / math.sqrt(dim))
        sizes = torch.tensor([0, *layout.cardinalities[:-1]], dtype=torch.long)
        self.register_buffer("offsets", sizes.cumsum(0)[: len(layout.cardinalities)], persistent=False)
        self.register_buffer("order", layout.order(), persistent=False)
        self.register_buffer("types", torch.tensor(layout.types), persistent=False)
        self.offsets: Tensor
        self.order: Tensor
        self.types: Tensor

    def forward(self, rows: Rows) -> Tensor:
        """Return the tokens (B, D, d) in the table's order."""
        numeric = self._numbers(rows.numeric)
        numeric = torch.where(rows.missing.unsqueeze(-1), self.missing, numeric)
        table = torch.cat([self.missing, self.unknown, self.categories])
        index = torch.where(rows.codes < 2, rows.codes, rows.codes + self.offsets)
        tokens = torch.cat([numeric, F.embedding(index, table)], 1)[:, self.order]
        return tokens + (self.kind[self.types] + self.position)

    def _numbers(self, x: Tensor) -> Tensor:
        """Tokens (B, Dn, d) of numbers (B, Dn)."""
        if self.weight.ndim == 2:
            return x.unsqueeze(-1) * self.weight + self.bias
        return torch.einsum("bnt,ntd->bnd", by_bins(x, self.edges), self.weight) + self.bias

    def observed(self, rows: Rows) -> Tensor:
        """Return which cells (B, D) have a value."""
        return torch.cat([~rows.missing, rows.codes > 0], 1)[:, self.order]


class CellDistribution(NamedTuple):
    """Of B rows' cells: mean and variance (B, Dn) of the numeric, logits (B, 1 + C) of each categorical.

    The first logit is that of "unknown".
    """

    mean: Tensor
    variance: Tensor
    logits: list[Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the cells of all rows, part after part."""
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.variance for part in parts]),
            [torch.cat(of) for of in zip(*(part.logits for part in parts), strict=True)],
        )

    def at(self, index: Tensor) -> Self:
        """Return the cells of some of the rows."""
        return type(self)(self.mean[index], self.variance[index], [of[index] for of in self.logits])


def by_group(
    layout: Layout,
    folds: int,
    rows: Rows,
    predict: Callable[[Rows, Tensor], CellDistribution],
    hidden: Tensor | None = None,
) -> CellDistribution:
    """p(cell | the cells of the other groups) of each cell; feature i is in group i mod ``folds``.

    The ``hidden`` cells (B, D) are in no group's condition.

    ``predict``: rows, and which of their cells (B, D) are hidden → the distribution of these.
    """
    d = layout.n_features
    group = torch.arange(d, device=rows.codes.device) % folds
    numeric = group[list(layout.numeric)]
    mean, variance = torch.zeros_like(rows.numeric), torch.ones_like(rows.numeric)
    logits: list[Tensor] = [torch.empty(0)] * len(layout.categorical)
    for fold in range(min(folds, d)):
        asked = (group == fold).expand(len(rows), -1)
        cells = predict(rows, asked if hidden is None else asked | hidden)
        mean = torch.where(numeric == fold, cells.mean, mean)
        variance = torch.where(numeric == fold, cells.variance, variance)
        for k, i in enumerate(layout.categorical):
            if i % folds == fold:
                logits[k] = cells.logits[k]
    return CellDistribution(mean, variance, logits)


def twice(
    predict: Callable[[Rows], CellDistribution], rows: Rows, others: Rows
) -> tuple[CellDistribution, CellDistribution]:
    """Predict the cells of rows (B, …), and of ``others``, which are the same but for a few."""
    cells = predict(rows)
    differ = [(a != b).any(1) for a, b in zip(rows, others, strict=True)]
    new = torch.stack(differ).any(0).nonzero()[:, 0]
    if not len(new):
        return cells, cells
    index = torch.arange(len(rows), device=new.device)
    index[new] = len(rows) + torch.arange(len(new), device=new.device)
    return cells, CellDistribution.joined([cells, predict(others.at(new))]).at(index)


def resolution(rows: Rows) -> Tensor:
    """Return the least standard deviation (Dn,) that each numeric column's predictions may have.

    A tenth of the column's own, or the width of the gap that a cell stands in (to its nearest other value, in
    the mean over cells) as a uniform's deviation, if that is more. So numbers on a grid, or one value and few
    others, are not paid for the digits that they do not have.
    """
    floors = []
    for column, missing in zip(rows.numeric.unbind(1), rows.missing.unbind(1), strict=True):
        values, counts = column[~missing].double().unique(return_counts=True)  # type: ignore[no-untyped-call]
        if len(values) < 2:
            floors.append(1.0)  # nothing to tell apart
            continue
        gaps = F.pad(values.diff(), (1, 1), value=math.inf)
        share = counts / counts.sum()
        gap = float((torch.minimum(gaps[1:], gaps[:-1]) * share).sum())
        deviation = float((share * (values - (share * values).sum()).square()).sum().sqrt())
        floors.append(max(_FLOOR * deviation, gap / math.sqrt(12)))
    return torch.tensor(floors, dtype=torch.float32)


def _buckets(sizes: list[int]) -> list[list[int]]:
    """Features by their number of classes, to the next power of two."""
    by_size: dict[int, list[int]] = {}
    for k, size in enumerate(sizes):
        by_size.setdefault((size - 1).bit_length(), []).append(k)
    return list(by_size.values())


class FeatureDecoder(nn.Module):
    """p(cells | latents): one linear layer a feature; Gaussian with a learned variance, or softmax.

    Published: one variance for all numbers. With ``per_column`` each column has its own, above the square of
    its ``floor`` (see ``resolution``), and likelihoods are those of ``balanced_nll``.
    """

    def __init__(self, layout: Layout, dim: int, *, per_column: bool = False) -> None:
        super().__init__()
        # the first class is "unknown"
        self.sizes = [n + 1 for n in layout.cardinalities]
        self.weight = nn.Parameter(torch.randn(len(layout.numeric), dim) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(len(layout.numeric)))
        self.class_weight = nn.Parameter(torch.randn(sum(self.sizes), dim) / math.sqrt(dim))
        self.class_bias = nn.Parameter(torch.zeros(sum(self.sizes)))
        n_variances = (len(layout.numeric),) if per_column else ()
        self.raw_log_variance = nn.Parameter(torch.zeros(n_variances))
        self.register_buffer("floor", torch.full(n_variances, _FLOOR if per_column else 0.0), per_column)
        self.nll = balanced_nll if per_column else gaussian_nll
        self.register_buffer("numeric", torch.tensor(layout.numeric, dtype=torch.long), persistent=False)
        self.register_buffer("order", layout.order(), persistent=False)
        in_buckets = [layout.categorical[k] for members in _buckets(self.sizes) for k in members]
        order = torch.tensor([*layout.numeric, *in_buckets], dtype=torch.long).argsort()
        self.register_buffer("bucket_order", order, persistent=False)
        self.numeric: Tensor
        self.order: Tensor
        self.bucket_order: Tensor
        self.floor: Tensor
        self.categorical = layout.categorical
        self.buckets = _buckets(self.sizes)
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        for b, members in enumerate(self.buckets):
            width = max(self.sizes[k] for k in members)
            there = torch.tensor([[c < self.sizes[k] for c in range(width)] for k in members])
            first = torch.tensor([starts[k] for k in members]).unsqueeze(1)
            self.register_buffer(f"classes{b}", (first + torch.arange(width)) * there, persistent=False)
            self.register_buffer(f"absent{b}", ~there, persistent=False)

    def _logits(self, b: int, latent: Tensor, latent_variance: Tensor | None) -> Tensor:
        """Logits (B, m, C) of a bucket's m features, −inf beyond each one's classes."""
        features = [self.categorical[k] for k in self.buckets[b]]
        classes, absent = self.get_buffer(f"classes{b}"), self.get_buffer(f"absent{b}")
        weight = self.class_weight[classes]
        logits = torch.einsum("bmd,mcd->bmc", latent[:, features], weight) + self.class_bias[classes]
        if latent_variance is not None:
            variance = torch.einsum("bmd,mcd->bmc", latent_variance[:, features], weight.square())
            logits = logits / (1 + math.pi / 8 * variance).sqrt()
        return logits.masked_fill(absent, -math.inf)

    def _numbers(self, latent: Tensor, latent_variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, Dn) of the numeric cells."""
        mean = (latent[:, self.numeric] * self.weight).sum(-1) + self.bias
        # Adam moves a parameter by about its rate a step, and this one moves far: so its unit is ten
        variance = bounded_log_variance(10 * self.raw_log_variance).exp() + self.floor.square()
        variance = variance.expand_as(mean)
        if latent_variance is not None:
            variance = variance + (latent_variance[:, self.numeric] * self.weight.square()).sum(-1)
        return mean, variance

    def loss(self, rows: Rows, latent: Tensor, latent_variance: Tensor | None = None) -> Tensor:
        """Return the ``surprise`` (B, D) of rows given their latents, as the fit sees it; see ``forward``.

        Features of about as many categories are taken together: a batch's arithmetic is small, and its
        operations many.
        """
        mean, variance = self._numbers(latent, latent_variance)
        parts = [self.nll(rows.numeric, mean, variance).masked_fill(rows.missing, 0.0)]
        for b, members in enumerate(self.buckets):
            codes = rows.codes[:, members]
            log_p = self._logits(b, latent, latent_variance).log_softmax(2)
            nll = -log_p.gather(2, (codes - 1).clamp(min=0).unsqueeze(2)).squeeze(2)
            parts.append(nll.masked_fill(codes == 0, 0.0))
        return torch.cat(parts, 1)[:, self.bucket_order]

    def forward(self, latent: Tensor, latent_variance: Tensor | None = None) -> CellDistribution:
        r"""Return the distribution of all cells given their latents (B, D, d).

        With ``latent_variance`` (B, D, d) the latents are N(latent, diag variance) and are integrated out:
        for numbers exactly, N(w·μ + b, Σ w²σ² + σ₀²); for categories by softmax(m/√(1 + πv/8)) with the
        logits' own means m and variances v (MacKay 1992).
        """
        logits: list[Tensor] = [latent] * len(self.sizes)
        for b, members in enumerate(self.buckets):
            padded = self._logits(b, latent, latent_variance)
            for k, of in zip(members, padded.unbind(1), strict=True):
                logits[k] = of[:, : self.sizes[k]]
        return CellDistribution(*self._numbers(latent, latent_variance), logits)

    def blur(self, latent: Tensor, latent_variance: Tensor) -> Tensor:
        r"""Return how much latents N(latent, diag variance), (B, D, d), blur each cell (B, D), in nats.

        ½ tr(F Σ) with the Fisher information F of the cell's distribution at the mean: the expected KL of
        the cell's distribution there from that at a draw; exact for numbers (½ Σ w²σ²/σ₀²), to second order
        for categories (½ Σ σ² Var_p w). What the decoder ignores adds nothing.
        """
        cells = self(latent)
        parts = [(latent_variance[:, self.numeric] * self.weight.square()).sum(-1) / cells.variance]
        weights = torch.split(self.class_weight, self.sizes)
        for i, w, logits in zip(self.categorical, weights, cells.logits, strict=True):
            p = logits.softmax(1).unsqueeze(-1)
            centred = w - (p * w).sum(1, keepdim=True)
            of_classes = (p * centred.square()).sum(1)
            parts.append((of_classes * latent_variance[:, i]).sum(1, keepdim=True))
        return 0.5 * torch.cat(parts, 1)[:, self.order]

    def surprise(self, cells: CellDistribution, rows: Rows) -> Tensor:
        """Return −log p of each cell (B, D); 0 where it is missing."""
        numeric = self.nll(rows.numeric, cells.mean, cells.variance).masked_fill(rows.missing, 0.0)
        parts = [numeric]
        for codes, logits in zip(rows.codes.unbind(1), cells.logits, strict=True):
            nll = F.cross_entropy(logits, (codes - 1).clamp(min=0), reduction="none")
            parts.append(nll.masked_fill(codes == 0, 0.0).unsqueeze(1))
        return torch.cat(parts, 1)[:, self.order]

    def entropy(self, cells: CellDistribution) -> Tensor:
        """Return the expected surprise of each cell (B, D): the entropy of its distribution."""
        parts = [0.5 * (cells.variance.log() + math.log(2 * math.pi) + 1)]
        for logits in cells.logits:
            log_p = logits.log_softmax(1)
            parts.append(-(log_p.exp() * log_p).sum(1, keepdim=True))
        return torch.cat(parts, 1)[:, self.order]
