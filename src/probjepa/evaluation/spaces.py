"""The features that an evaluation compares: embeddings, a random initialisation's, and raw pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa import metrics
from probjepa.data import Images, StreamedImages
from probjepa.data.bank import map_rows
from probjepa.data.labels import SharedLabels
from probjepa.data.records import UNLABELLED
from probjepa.errors import ConfigError
from probjepa.evaluation.decisions import TEST
from probjepa.evaluation.figures import balanced_accuracy, figure
from probjepa.evaluation.image_sets import TRAIN, Rows, unlike_held_out
from probjepa.evaluation.label_free import columns
from probjepa.methods import Method
from probjepa.scores import encode
from probjepa.scores.detectors import KNNScore

# A linear probe on raw pixels wider than this takes minutes, and kNN says as much.
_WIDEST_PROBE = 2048
_BATCH = 1024  # images whose pixels are prepared together
_LARGEST_PIXELS = 64  # of a side, that raw pixels are compared at
_NEIGHBOURS = 20  # of the kNN whose answers stand beside every image
_Figures = dict[str, dict[str, dict[str, float | None]]]  # space → probe → figure
Scores = dict[str, dict[str, npt.NDArray[np.float64]]]  # score → set → (N,)
Vote = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]  # of N rows: their labels, and the vote's share
Spaces = dict[str, dict[str, Any]]  # space → set, the reference among them → (N, D), or mapped pixels


def baseline_scores(spaces: Spaces, rows: Rows, seed: int) -> Scores:
    """The kNN detector on a random initialisation and on raw pixels, where these are among the spaces."""
    found: Scores = {}
    for space in ("random-init", "raw pixels"):
        if space not in spaces:
            continue
        sets = {name: {"h": of} for name, of in spaces[space].items()}
        bank, fitted = sets.pop(TRAIN)["h"], rows[unlike_held_out(spaces[space])[rows]]
        if len(fitted):
            bank = bank if len(fitted) == len(bank) else bank[fitted]
            found[f"knn, {space}"] = columns(KNNScore(seed=seed), {"h": bank}, sets)["knn"]
    return found


def votes_of(features: Mapping[str, Mapping[str, Tensor]], shared: SharedLabels) -> dict[str, Vote]:
    """Return what kNN (k = 20, majority) says of every set but the reference, and its share of the vote."""
    k = min(_NEIGHBOURS, int((shared.known != UNLABELLED).sum()))
    bank = features[TRAIN]["h"]
    return {
        name: metrics.knn_vote(bank, shared.known, of["h"], k=k)
        for name, of in features.items()
        if name != TRAIN
    }


def spaces_of(
    method: Method, sets: Mapping[str, Images], features: Mapping[str, Mapping[str, Tensor]], seed: int
) -> Spaces:
    """Return the features that accuracies and distances are read from, the baselines among them."""
    spaces: Spaces = {
        key: {name: of[key] for name, of in features.items()} for key in ("h", "mu") if key in features[TRAIN]
    }
    try:
        fresh = method.reinitialised(seed)
    except ConfigError:
        pass  # a backbone of the user's own cannot be built again
    else:
        spaces["random-init"] = {name: encode(fresh, of, scored=False)["h"] for name, of in sets.items()}
    spaces["raw pixels"] = {name: _all_pixels(method, of) for name, of in sets.items()}
    return spaces


def _all_pixels(method: Method, images: Images) -> Any:
    """``_pixels`` of a set; of a streamed one, which are four times as large as it, mapped from a file."""
    with torch.no_grad():
        batches = (_pixels(method, batch) for batch, _ in images.batches(_BATCH))
        if isinstance(images, StreamedImages):
            return map_rows(batch.numpy() for batch in batches)
        return torch.cat(list(batches))


def _pixels(method: Method, batch: Tensor) -> Tensor:
    """Prepared pixels (N, C·H·W), averaged to 32 × 32 where an image has more than 64 × 64."""
    pixels = method.preprocess(batch.to(method.device))
    large = pixels.shape[-1] > _LARGEST_PIXELS
    return (F.adaptive_avg_pool2d(pixels, 32) if large else pixels).flatten(1).cpu()


def accuracies(
    spaces: Spaces, shared: SharedLabels, answers: npt.NDArray[Any], seed: int
) -> tuple[_Figures, _Figures]:
    """Accuracy by space and probe over the labelled rows, with a Wilson interval, and class-balanced.

    ``answers`` are those of ``votes_of`` on the test set.
    """
    known, truth = shared.known, shared.asked.numpy()
    asked = truth != UNLABELLED
    truth = truth[asked]
    count = int((known != UNLABELLED).sum())
    accuracy: _Figures = {}
    balanced: _Figures = {}
    for space, of in spaces.items():
        bank, queries = of[TRAIN], of[TEST] if asked.all() else of[TEST][asked]
        found = {}
        for most, temperature in ((200, 0.1), (_NEIGHBOURS, None)):
            k = min(most, count)
            found[f"knn{k}"] = (
                answers[asked]
                if space == "h" and temperature is None
                else metrics.knn_predict(bank, known, queries, k=k, temperature=temperature)
            )
        found = dict(reversed(found.items()))
        if bank.shape[1] <= _WIDEST_PROBE:
            found["linear"] = metrics.linear_predict(bank, known, queries, seed=seed)
        accuracy[space] = {
            probe: asdict(metrics.accuracy_interval(answers == truth)) for probe, answers in found.items()
        }
        balanced[space] = {probe: figure(balanced_accuracy(truth, of)) for probe, of in found.items()}
    return accuracy, balanced
