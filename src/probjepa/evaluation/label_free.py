"""Every score that needs no label, of every set: the model's own, the detectors', the baselines'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa.data import Images
from probjepa.data.overlap import refuse_fitted_rows
from probjepa.errors import ConfigError
from probjepa.methods import Method, ProbabilisticMethod
from probjepa.methods.vje import VJE
from probjepa.scores import DETECTORS
from probjepa.scores.sets import make_detector

Scores = dict[str, npt.NDArray[np.float64]]  # set → (N,)
Space = tuple[Tensor, Mapping[str, Tensor]]  # the reference's features (M, D), and those of every set


def label_free_scores(
    method: Method,
    known: Mapping[str, Tensor],
    features: Mapping[str, Mapping[str, Tensor]],
    spaces: Mapping[str, Space],
    seed: int,
) -> dict[str, Scores]:
    """Return score → set → (N,), higher = more typical.

    The method's own come first (``ood_scores``, and VJE's predictive density behind its likelihood), then
    the detectors on h.

    Parameters
    ----------
    known, features
        the method's ``features`` of the reference, and of every set by name
    spaces
        "h" and the others
    seed
        of the detectors
    """
    table: dict[str, Scores] = {}
    if isinstance(method, ProbabilisticMethod):
        with torch.no_grad():
            own = {name: method.ood_scores(of) for name, of in features.items()}
            for score in next(iter(own.values())):
                table[score] = {name: own[name][score].cpu().numpy() for name in features}
                if score == "likelihood" and isinstance(method, VJE):
                    table |= _predictive(method, known, features)
    _refuse_reference(spaces["h"])
    for detector in DETECTORS:
        table[detector] = _detected(detector, spaces["h"], seed)
    return table


def baseline_scores(spaces: Mapping[str, Space], seed: int) -> dict[str, Scores]:
    """Return kNN on the spaces that the embedding must beat, as far as they are there."""
    table: dict[str, Scores] = {}
    for space in ("random-init", "raw pixels"):
        if space in spaces:
            _refuse_reference(spaces[space])
            table[f"knn, {space}"] = _detected("knn", spaces[space], seed)
    return table


def _refuse_reference(space: Space) -> None:
    """Images that differ may share an embedding: DataError if any set holds one of the reference's."""
    bank, queries = space
    for of in queries.values():
        refuse_fitted_rows("KNN", bank, of)


def _predictive(
    method: VJE, known: Mapping[str, Tensor], features: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Scores]:
    try:
        density = method.predictive(known)
    except ConfigError:
        return {}  # an ablation without a polar Student-t has no such density
    return {"predictive": {name: density.log_prob(of["h"]).cpu().numpy() for name, of in features.items()}}


def _detected(detector: str, space: Space, seed: int) -> Scores:
    bank, queries = space
    fitted: Any = make_detector(detector, len(bank), seed).fit(bank)
    return {name: fitted.score_samples(of) for name, of in queries.items()}


def jepa_scores(
    method: Method, sets: Mapping[str, Images], reference: Tensor, progress: bool
) -> dict[str, Scores]:
    """Return JEPA-SCORE of each set, from one pass: the paper's form, and with the latent term."""
    from probjepa.jacobian import jepa_score_details

    table: dict[str, Scores] = {"jepa": {}, "jepa + latent": {}}
    for name, images in sets.items():
        found = jepa_score_details(method, images, latent=reference, progress=progress)
        table["jepa"][name] = found.log_volume.numpy()
        table["jepa + latent"][name] = found.score.numpy()
    return table
