"""One score of several: how odd a row is by each of them, as p-values, which are then combined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from probjepa.errors import DataError
from probjepa.registry import importing
from probjepa.scores.base import Features, Score
from probjepa.scores.own import Own
from probjepa.scores.table import available

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from probjepa.scores.base import Values

_MOST_HELD_OUT = 2000  # rows of a reference that p-values are read off
# log p-values (N, S) → (N,), lower for rows that look odd
_COMBINE: dict[str, Callable[[Values], Values]] = {
    "fisher": lambda log_p: log_p.sum(1),
    "bonferroni": lambda log_p: log_p.min(1),
    "harmonic": lambda log_p: _log_harmonic_mean(log_p),
}


class Combined(Score):
    """A combination of all scores that a model has, but those that need gradients.

    A fifth of the reference, 2,000 rows at most, is held out. Every other score is fitted to the rest, and
    turned into a p-value by its rank among the held-out rows. That is no p-value of the combination, since
    the scores depend on each other; its rank among calibration rows is, as of any score. Below the lowest of
    the held-out rows log p falls on in proportion, so that far rows keep their order.
    """

    needs = frozenset({"reference"})
    own = True
    _scores: dict[str, tuple[Score, Values]] | None = None  # each with its sorted scores of held-out rows
    _last: tuple[Features, Values, Values] | None  # what was scored last, and its p-values

    def fit(self, reference: Features) -> Self:
        """Fit every score to a part of the reference, and rank the rest.

        What a model says beside its embeddings is read again of the "inputs" that are held out, if given.

        Raises
        ------
        DataError
            for a reference of equal rows
        """
        import numpy as np

        from probjepa.data.overlap import FittedRows

        h = np.asarray(reference["h"])
        order = np.random.default_rng(self.seed).permutation(len(h))
        held = order[: min(-(-len(h) // 5), _MOST_HELD_OUT)]
        known = np.sort(order[len(held) :])
        if len(known):
            held = np.sort(held[~FittedRows(h[known]).among(h[held])])
        if not len(known) or not len(held):
            raise DataError(
                f"the score '{self.name}' holds out a part of its reference, and {len(h)} rows leave none "
                "that differs from the rest: give more"
            )
        kinds = available(self.model, but=Combined)
        rest, asked = _rows(reference, known), _rows(reference, held)
        if "inputs" in reference and any(issubclass(kind, Own) for kind in kinds.values()):
            inputs = reference["inputs"]
            of = inputs.iloc[held] if hasattr(inputs, "iloc") else inputs.subset(held)
            asked = {name: values.cpu() for name, values in self.model.features(of).items()}
        self._fitted_rows, self._scores, self._last = FittedRows(h), {}, None
        for name, kind in kinds.items():
            score = kind(self.model, seed=self.seed).fit(rest)
            self._scores[name] = score, np.sort(score.score(asked))
        return self

    def score(self, features: Features) -> Values:
        """Return the combination (N,) of the log p-values.

        Raises
        ------
        DataError
            if any input has the embedding of a reference row
        """
        return _COMBINE[self.name](self._log_p(features)[0])

    def parts(self, features: Features) -> dict[str, Values]:
        """Return the p-value of each score, "p_value.NAME"."""
        p = self._log_p(features)[1]
        return {f"p_value.{name}": p[:, i] for i, name in enumerate(self._scores or ())}

    def columns(self, features: Features) -> dict[str, Values]:
        """Return all combinations: they differ in little but the last step."""
        log_p = self._log_p(features)[0]
        return {name: _COMBINE[name](log_p) for name in dict.fromkeys((self.name, *_COMBINE))}

    def _log_p(self, features: Features) -> tuple[Values, Values]:
        """Log p-values (N, S) that fall on below the lowest held-out row, and plain p-values (N, S)."""
        import numpy as np

        if self._scores is None:
            raise self.unfitted()
        if self._last is None or self._last[0] is not features:
            self._fitted_rows.refuse(f"the score '{self.name}'", features["h"])
            columns = [_log_p(score.score(features), held) for score, held in self._scores.values()]
            log_p, p = (np.stack(of, 1) for of in zip(*columns, strict=True))
            self._last = features, log_p, p
        return self._last[1:]


def _log_p(scores: Values, held: Values) -> tuple[Values, Values]:
    import numpy as np

    p = (1 + np.searchsorted(held, scores, side="right")) / (len(held) + 1)
    low = scores < held[0]
    below = np.zeros_like(scores)
    with np.errstate(over="ignore", invalid="ignore"):  # scores may be infinite
        scale = np.median(held) - held[0]
        below[low] = (held[0] - scores[low]) / (scale if 0 < scale < np.inf else 1)
    return np.log(p) - below, p


def _rows(features: Features, rows: npt.NDArray[Any]) -> dict[str, Any]:
    return {name: values[rows] for name, values in features.items() if name != "inputs"}


def _log_harmonic_mean(log_p: Values) -> Values:
    with importing():
        from scipy.special import logsumexp

    mean: Values = -logsumexp(-log_p, axis=1, b=1 / log_p.shape[1])
    return mean


class Fisher(Combined):
    """Σ log p."""

    name = "fisher"
    summary = "p-values of all scores that need no gradients, combined by Fisher: Σ log p"
    paper = "https://arxiv.org/abs/2104.08279"


class Bonferroni(Combined):
    """The smallest p."""

    name = "bonferroni"
    summary = "the same by Bonferroni: the smallest p"


class Harmonic(Combined):
    """The harmonic mean of p."""

    name = "harmonic"
    summary = "the same by their harmonic mean"
    paper = "https://doi.org/10.1073/pnas.1814092116"
