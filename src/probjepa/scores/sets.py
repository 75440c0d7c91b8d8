"""Encode a set once, then score it: by the model's own densities or by a detector on its embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from probjepa.data import Images
from probjepa.data.overlap import refuse_fitted_rows, refuse_overlap
from probjepa.errors import ConfigError, unknown_name
from probjepa.methods import Method, ProbabilisticMethod
from probjepa.methods.vje import VJE

if TYPE_CHECKING:
    from probjepa.detectors import KNN, GaussianMixture, Mahalanobis

# name → what it is, for `probjepa list`
SCORES = {
    "likelihood": "log-density of h at its own latent; no reference set",
    "predictive": "log-density of h under a reference set",
    "jepa": "JEPA-SCORE: log-volume of the encoder's Jacobian; any encoder, no reference set",
    "knn": "negative distance to the k-th nearest reference embedding, k = 0.1 % of the set",
    "mahalanobis": "negative squared Mahalanobis distance, Ledoit-Wolf covariance",
    "gmm": "log-density under a Gaussian mixture of 10 diagonal components",
}
DETECTORS = ("knn", "mahalanobis", "gmm")

Parts = dict[str, npt.NDArray[np.float64]]


def encode(
    method: Method, images: Images, *, batch_size: int = 512, progress: bool = False, scored: bool = True
) -> dict[str, Tensor]:
    """Encode a set once: the method's ``features`` by name, (N, …) on the CPU.

    A set that is not ``scored`` by the method's own measures has its ``representations`` alone.
    """
    read = method.features if scored else method.representations
    batches: Iterable[tuple[Tensor, slice]] = images.batches(batch_size)
    if progress:
        total = -(-len(images) // batch_size)
        batches = track(
            batches,
            f"encoding {escape(images.name)}",
            total=total,
            transient=True,
            console=Console(stderr=True),
        )
    parts = [{k: v.cpu() for k, v in read(batch, batch_size).items()} for batch, _ in batches]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def knn_neighbour(count: int) -> int:
    """Return which neighbour the kNN detector takes for ``count`` rows: 0.1 % of them, at least 1.

    The share that Sun et al. (2022) use for CIFAR-10 (50 of 50,000) and ImageNet (1,000 of 1.28 million).
    """
    return max(1, round(count / 1000))


def make_detector(name: str, count: int, seed: int = 0) -> KNN | Mahalanobis | GaussianMixture:
    """Return an unfitted detector by name, with this library's settings for ``count`` reference rows."""
    from probjepa import detectors

    if name == "knn":
        return detectors.KNN(knn_neighbour(count))
    if name == "mahalanobis":
        return detectors.Mahalanobis(shrinkage="ledoit-wolf")
    if name == "gmm":
        return detectors.GaussianMixture(
            n_components=min(10, max(1, count // 10)), covariance_type="diag", seed=seed
        )
    raise unknown_name("detector", name, DETECTORS)


def _as_vje(method: Method, score: str) -> VJE:
    if not isinstance(method, VJE):
        raise _without_likelihood(method, score)
    return method


def _without_likelihood(method: Method, score: str) -> ConfigError:
    return ConfigError(
        f"{type(method).__name__} has no likelihood for the score '{score}': use {', '.join(DETECTORS)}"
    )


def _own_scores(
    method: Method, images: Images, score: str, reference: Images | None, progress: bool
) -> tuple[npt.NDArray[np.float64], Parts]:
    """Return one of the method's ``ood_scores``, and its measures of uncertainty as the parts."""
    if not isinstance(method, ProbabilisticMethod):
        if score in SCORES:
            raise _without_likelihood(method, score)
        raise unknown_name("score", score, SCORES)
    with torch.no_grad():
        own = method.ood_scores(method.features(images.get(slice(0, 1))))  # which there are, at little cost
        if score not in own:
            raise unknown_name("score", score, {*SCORES, *own})
        if reference is not None:
            raise ConfigError(f"the score '{score}' uses no reference set: leave --reference out")
        features = encode(method, images, progress=progress)
        parts = {k: v.cpu().numpy() for k, v in method.uncertainty_of_features(features).items()}
        return method.ood_scores(features)[score].cpu().numpy(), parts


def score_set(
    method: Method, images: Images, score: str, *, reference: Images | None = None, progress: bool = False
) -> tuple[npt.NDArray[np.float64], Parts]:
    """Score a set of N images: the score (N,), and its named parts, each (N,).

    ``score`` is one of ``SCORES`` or another of the method's own label-free scores (``ood_scores``: VJE's
    "radial" or "kl", say), whose parts are its measures of uncertainty.

    Raises
    ------
    ConfigError
        for an unknown score, one that the method does not have, or a missing (or needless) reference
    DataError
        if any image is in the reference set
    """
    if score == "likelihood" or score not in SCORES:
        return _own_scores(method, images, score, reference, progress)
    if score == "jepa":
        from probjepa.jacobian import jepa_score_details

        if reference is not None:
            refuse_overlap(images, reference)
        density = (
            None if reference is None else encode(method, reference, progress=progress, scored=False)["h"]
        )
        found = jepa_score_details(method, images, latent=density, progress=progress)
        return found.score.numpy(), {
            "log_volume": found.log_volume.numpy(),
            "latent": found.latent.numpy(),
            "sigma_max": found.sigma_max.numpy(),
            "sigma_min": found.sigma_min.numpy(),
        }
    if reference is None:
        raise ConfigError(f"the score '{score}' needs a reference set: pass --reference URI")
    vje = _as_vje(method, score) if score == "predictive" else None
    refuse_overlap(images, reference)
    known = encode(method, reference, progress=progress, scored=False)
    features = encode(method, images, progress=progress, scored=False)
    if vje is not None:
        h = features["h"]
        return vje.predictive(known).log_prob(h).numpy(), {"h_norm": h.double().norm(dim=1).numpy()}
    detector: Any = make_detector(score, len(reference)).fit(known["h"])
    refuse_fitted_rows(type(detector).__name__, known["h"], features["h"])
    return detector.score_samples(features["h"]), {}
