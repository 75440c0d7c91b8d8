"""What a probabilistic method adds: a posterior, a likelihood, measures of uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from probjepa.methods.base import Method


class ProbabilisticMethod(Method):
    """A method with a posterior over embeddings and a likelihood of its own.

    A subclass writes ``posterior_of_features``, ``score_features`` and ``uncertainty_of_features``; what they
    read is ``features``, so that a set is encoded once for all of them. Images are given as to ``open``.

    Attributes
    ----------
    main_uncertainty
        the name of the measure of ``uncertainty_of_features`` to rank inputs by, higher = less certain; "":
        none
    """

    main_uncertainty: ClassVar[str] = ""

    def posterior(self, x: Any) -> Distribution:
        """Posterior over the latent of each of N images: batch shape (N,), event shape (D,)."""
        return self.posterior_of_features(self.features(x))

    def posterior_of_features(self, features: Mapping[str, Tensor]) -> Distribution:
        """Posterior over the latent of each encoded image."""
        raise NotImplementedError

    def outputs(self, pixels: Tensor, what: str) -> tuple[Tensor, ...]:
        """Return what ``probjepa.export`` traces, see ``Method``."""
        if what == "embed":
            return super().outputs(pixels, what)
        features = self.features_of(self(pixels).float())
        if what == "likelihood":
            return (self.score_features(features),)
        posterior = self.posterior_of_features(features)
        return posterior.mean, posterior.variance

    def score_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """Score (N,) float64 of encoded images: higher = more typical of the training data."""
        raise NotImplementedError

    def uncertainty_of_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named measures of uncertainty of encoded images, each (N,) float64."""
        raise NotImplementedError

    def ood_scores(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every label-free score of encoded images by name, each (N,) float64, higher = more typical."""
        return {"likelihood": self.score_features(features)}

    def score_names(self) -> list[str]:
        """Names of ``ood_scores``, read off one blank image."""
        size, channels = self.preprocess.size, self.preprocess.channels
        with torch.no_grad(), self._encoding_in("float32"):
            return list(self.ood_scores(self.features(torch.zeros(1, channels, size, size).byte())))

    def score_samples(self, x: Any) -> Tensor:
        """Score (N,) float64 of N images: higher = more typical of the training data."""
        return self.score_features(self.features(x))

    def uncertainty(self, x: Any) -> dict[str, Tensor]:
        """Named measures of uncertainty, each (N,) float64, of N images."""
        return self.uncertainty_of_features(self.features(x))
