"""JEPA-SCORE as a score of sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from probjepa.scores.base import Features, Score
from probjepa.scores.table import no_likelihood

if TYPE_CHECKING:
    from probjepa.scores.base import Values


class Jepa(Score):
    """Log-volume of the encoder's Jacobian, with the latent term if there is a reference set."""

    name = "jepa"
    summary = "JEPA-SCORE: log-volume of the encoder's Jacobian; any encoder, no reference set"
    paper = "https://arxiv.org/abs/2510.05949"
    needs = frozenset({"gradients"})
    latent: Any = None
    _last: tuple[Any, Any] | None = None  # inputs, and what one pass found of them

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """Say that the model cannot be differentiated, if it is no module or callable."""
        return None if callable(model) else no_likelihood(model, cls.name)

    def fit(self, reference: Features) -> Self:
        """Fit the latent term to the embeddings of a reference set."""
        self.latent, self._last = reference["h"], None
        return self

    def _details(self, features: Features) -> Any:
        from probjepa.jacobian import jepa_score_details

        inputs = features["inputs"]
        if self._last is None or self._last[0] is not inputs:
            found = jepa_score_details(self.model, inputs, latent=self.latent, progress=self.progress)
            self._last = inputs, found
        return self._last[1]

    def score(self, features: Features) -> Values:
        """Return the score (N,)."""
        score: Values = self._details(features).score.numpy()
        return score

    def parts(self, features: Features) -> dict[str, Values]:
        """Return "log_volume" and "latent", the two terms, and "sigma_max" and "sigma_min"."""
        found = self._details(features)
        names = ("log_volume", "latent", "sigma_max", "sigma_min")
        return {name: getattr(found, name).numpy() for name in names}

    def columns(self, features: Features) -> dict[str, Values]:
        """Return the paper's form, and the score with the latent term where a reference set gave one."""
        volume = {"jepa": self.parts(features)["log_volume"]}
        return volume if self.latent is None else volume | {"jepa + latent": self.score(features)}
