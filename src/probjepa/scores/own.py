"""Scores that a model has of its own: its density, the parts of that, and its density of a reference set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from probjepa.scores.base import Features, Score
from probjepa.scores.table import no_likelihood

if TYPE_CHECKING:
    from probjepa.scores.base import Values


def own_scores(model: Any, features: Features) -> dict[str, Values]:
    """Return a model's ``ood_scores`` of N inputs, its main one first, each (N,); empty if it has none."""
    return _read(model, "ood_scores", features)


def uncertainty(model: Any, features: Features) -> dict[str, Values]:
    """Return a model's measures of uncertainty of N inputs, each (N,); empty if it has none."""
    return _read(model, "uncertainty_of_features", features)


def _read(model: Any, method: str, features: Features) -> dict[str, Values]:
    import torch

    if not hasattr(model, method):
        return {}
    with torch.no_grad():
        return {name: values.cpu().numpy() for name, values in getattr(model, method)(features).items()}


class Own(Score):
    """One of the model's ``ood_scores``."""

    own = True

    @classmethod
    def named(cls, name: str) -> type[Own]:
        """Return the class of the score of a name."""
        return type("Own", (cls,), {"name": name, "summary": f"the model's own '{name}'"})

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """Say that the model has no such score, if it has none."""
        return None if cls.name in own_names(model) else no_likelihood(model, cls.name)

    def score(self, features: Features) -> Values:
        """Return the score (N,)."""
        return own_scores(self.model, features)[self.name]


def own_names(model: Any) -> list[str]:
    """Return the names of a model's ``ood_scores``, at little cost."""
    return list(model.score_names()) if hasattr(model, "score_names") else []


class Likelihood(Own):
    """Log-density of an input's embedding under the posterior of its own latent."""

    name = "likelihood"
    summary = "log-density of h at its own latent; no reference set"
    paper = "https://arxiv.org/abs/2602.05639"


class Predictive(Score):
    """Log-density of an embedding under a reference set: ``VJE.predictive``.

    Of an encoder without a density of its own, ``PolarStudentTMixture.of_neighbours`` with ν = 1, as VJE's is
    on a frozen encoder.
    """

    name = "predictive"
    summary = "log-density of h under a reference set"
    paper = "https://arxiv.org/abs/2602.05639"
    needs = frozenset({"reference"})
    own = True
    density: Any = None

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """Say that the model has no such density, if it has none."""
        if hasattr(model, "predictive"):
            why: str | None = model.without_predictive
            return why
        return None if hasattr(model, "embed") else no_likelihood(model, cls.name)

    def fit(self, reference: Features) -> Self:
        """Take the density from the features of a reference set.

        Raises
        ------
        DataError
            unless at least two of the reference's embeddings differ
        """
        from probjepa._arrays import as_features
        from probjepa.methods.vje import neighbours_density

        if hasattr(self.model, "predictive"):
            self.density = self.model.predictive(reference)
        else:
            self.density = neighbours_density(as_features(reference["h"], "the reference's embeddings"))
        return self

    def score(self, features: Features) -> Values:
        """Return the log-density (N,), in nats."""
        if self.density is None:
            raise self.unfitted()
        values: Values = self.density.log_prob(features["h"]).cpu().numpy()
        return values

    def left_out(self) -> Values:
        """Return the log-density of each row of the reference under the others."""
        values: Values = self.density.leave_one_out().cpu().numpy()
        return values

    def parts(self, features: Features) -> dict[str, Values]:
        """Return "h_norm", the length of the embedding."""
        return {"h_norm": features["h"].double().norm(dim=1).numpy()}
