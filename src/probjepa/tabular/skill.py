"""What a fit learned of each column: its held-out cells, beside what its own distribution says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from probjepa.tabular.elbo import gaussian_nll
from probjepa.tabular.tokens import CellDistribution, Layout, Rows

_FEWEST_CELLS = 100  # held out, of a column: with fewer, nothing is said of it
SURE = 2.0  # standard errors
LITTLE = 0.05  # of the variance, or the errors


class Skill(NamedTuple):
    """Of one feature; None where there are fewer than 100 held-out cells, or nothing varies.

    Attributes
    ----------
    feature
        its name
    cells
        how many were held out
    nats
        gained a cell over the feature's own distribution in the rows of the fit: mean, and its ``error``
    explained
        the share of the variance (a number) or of the most frequent category's errors that is explained
    """

    feature: str
    cells: int
    nats: float | None = None
    error: float | None = None
    explained: float | None = None

    @property
    def none(self) -> bool:
        """Whether the feature's cells are predicted no better than by its own distribution.

        The gain is within two standard errors of 0, and less than a twentieth is explained: of few cells, the
        errors alone would say it of columns of which much is known.
        """
        if self.nats is None or self.error is None:
            return False
        return self.nats <= SURE * self.error and (self.explained or 0.0) < LITTLE


def measure(
    layout: Layout, names: Sequence[str], said: CellDistribution, rows: Rows, fit: Rows, counts: list[Tensor]
) -> list[Skill]:
    """Return the skill of each feature, in the table's order.

    ``said`` is what was predicted of the held-out ``rows``, as of new ones (``cross_calibrated``). A
    feature's own distribution is that of the rows of the ``fit`` (a Gaussian for numbers; for categories
    their ``counts``).
    """
    found: dict[int, Skill] = {}
    for k, i in enumerate(layout.numeric):
        seen, known = ~rows.missing[:, k], fit.numeric[~fit.missing[:, k], k].double()
        x, mean, variance = (of[seen, k].double() for of in (rows.numeric, said.mean, said.variance))
        if len(x) < _FEWEST_CELLS or not known.var() > 0:
            found[i] = Skill(names[i], len(x))
            continue
        centre, spread = known.mean().to(x), known.var().to(x)
        gain = gaussian_nll(x, centre, spread) - gaussian_nll(x, mean, variance)
        found[i] = _skill(names[i], gain, (x - mean).square().sum(), (x - centre).square().sum())
    for k, i in enumerate(layout.categorical):
        seen = rows.codes[:, k] > 0
        target, log_p = rows.codes[seen, k] - 1, said.logits[k][seen].double().log_softmax(1)
        if len(target) < _FEWEST_CELLS or int((counts[k] > 0).sum()) < 2:
            found[i] = Skill(names[i], len(target))
            continue
        prior = ((counts[k] + 0.5) / (counts[k] + 0.5).sum()).log().to(log_p)
        gain = log_p.gather(1, target.unsqueeze(1)).squeeze(1) - prior[target]
        errors = (log_p.argmax(1) != target).sum(), (prior.argmax() != target).sum()
        found[i] = _skill(names[i], gain, *errors)
    return [found[i] for i in range(layout.n_features)]


def _skill(name: str, gain: Tensor, left: Tensor, of: Tensor) -> Skill:
    error = float(gain.std()) / len(gain) ** 0.5
    explained = 1 - float(left) / float(of) if float(of) > 0 else None
    return Skill(name, len(gain), float(gain.mean()), error, explained)
