"""JEPA-SCORE as a score of sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from probjepa.scores.base import Features, Score, no_likelihood

if TYPE_CHECKING:
    from probjepa.scores.base import Values


class Jepa(Score):
    """Log-volume of the encoder's Jacobian, with the latent term if there is a reference set."""

    name = "jepa"
    summary = "JEPA-SCORE: log-volume of the encoder's Jacobian; any encoder, no reference set"
    paper = "https://arxiv.org/abs/2510.05949"
    needs = frozenset({"gradients"})
    latent: Any = None

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """Say that the model cannot be differentiated, if it is no module or callable."""
        return None if callable(model) else no_likelihood(model, cls.name)

    def fit(self, reference: Features) -> Self:
        """Fit the latent term to the embeddings of a reference set."""
        self.latent = reference["h"]
        return self

    def score(self, features: Features) -> Values:
        """Return the score (N,)."""
        return self.with_parts(features)[0]

    def parts(self, features: Features) -> dict[str, Values]:
        """Return "log_volume" and "latent", the two terms, and "sigma_max" and "sigma_min"."""
        return self.with_parts(features)[1]

    def with_parts(self, features: Features) -> tuple[Values, dict[str, Values]]:
        """Return ``score`` and ``parts``, of one pass."""
        from probjepa.jacobian import jepa_score_details

        found = jepa_score_details(self.model, features["inputs"], latent=self.latent, progress=self.progress)
        parts = ("log_volume", "latent", "sigma_max", "sigma_min")
        return found.score.numpy(), {name: getattr(found, name).numpy() for name in parts}

    def columns(self, features: Features) -> dict[str, Values]:
        """Return the paper's form, and the score with the latent term where a reference set gave one."""
        score, parts = self.with_parts(features)
        return {"jepa": parts["log_volume"]} | ({} if self.latent is None else {"jepa + latent": score})
