"""One evaluation of images: accuracy, detection, geometry and selection, beside what they must beat.

Every score is computed on one encoding of each set, with the same reference rows, and stands beside raw
pixels and a random-initialisation encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from probjepa import metrics
from probjepa.data import Images
from probjepa.data.labels import SharedLabels, labelled_rows
from probjepa.data.records import UNLABELLED
from probjepa.data.rows import as_column, identity
from probjepa.draws import sample_rows
from probjepa.errors import ConfigError
from probjepa.evaluation.decisions import CALIBRATION, TEST, flagged_rates
from probjepa.evaluation.figures import Evaluation, provenance
from probjepa.evaluation.image_sets import (
    TRAIN,
    check_names,
    fitted_rows,
    held_out_sets,
    sets_record,
    shared_classes,
    unlike_held_out,
)
from probjepa.evaluation.label_free import label_free_scores
from probjepa.evaluation.openood import openood_summary
from probjepa.evaluation.predictive import PredictsTokens, evaluate_predictions
from probjepa.evaluation.selective import selective_prediction
from probjepa.evaluation.spaces import Scores, Vote, accuracies, baseline_scores, spaces_of, votes_of
from probjepa.methods import Method
from probjepa.metrics.intervals import check_bootstrap
from probjepa.scores import encode
from probjepa.scores.detectors import knn_neighbour
from probjepa.scores.own import uncertainty
from probjepa.scores.sets import check_size, draw
from probjepa.typed import settings_checked

_SPECTRA = 64  # images of each set whose spectra are drawn
_VECTORS = 6  # test images, and singular vectors of each, that are drawn
_POSTERIOR = {"mean": "mean_variance", "kl_per_dimension": "kl", "anisotropy": "anisotropy"}


@settings_checked
def evaluate(
    method: Method,
    train: Any,
    test: Any,
    ood: Mapping[str, Any] | None = None,
    *,
    openood: Mapping[str, Any] | None = None,
    reencode: str | None = None,
    calibration: Any = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    jepa: bool = False,
    reference_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a trained method: nothing is fitted on any row that is scored.

    Sets are given as the method's ``open`` takes them.
    Test and out-of-distribution images that are also in ``train`` are left out, and counted. Scores are
    fitted without the images of ``train`` that have the embedding of a held-out one; a warning counts them.

    Parameters
    ----------
    method
        any method; a probabilistic one adds its own scores, its uncertainty and the geometry of its means
    train
        reference rows: the bank of kNN, and what detectors are fitted on
    test
        held-out rows of the same distribution; labels on both sides give accuracies and selective prediction,
        classes going by their names (see ``shared_labels``). Unlabelled rows (−1) are left out of both, and
        counted
    ood
        name → set
    openood
        sets of the OpenOOD benchmark, as ``openood_sets`` opens them: evaluated like ``ood``, and averaged
    reencode
        a codec ("jpeg:75", see ``probjepa.data.codec``) that every set goes through first
    calibration
        held-out typical images, none of them in ``test``, that thresholds are read off; None: a half of
        ``test``, of which the other half is then counted. See ``flagged_rates``
    seed
        of the random-initialisation baseline, the detectors, the bootstrap and that half
    n_bootstrap
        resamples of each 95 % interval of an OOD metric or a rank correlation
    jepa
        also JEPA-SCORE, in the paper's form and with the latent term of ``train``'s embeddings: D backward
        passes an image
    reference_size
        fit the scores to so many rows of ``train``, drawn at random, if it has more; accuracies are of all

    Raises
    ------
    ConfigError
        for a name that two sets share, an unknown codec, or a setting of another type
    DataError
        if a set has no row that is not in ``train``, the classes of ``test`` are not those of ``train``,
        test images are in ``calibration``, or every image of ``train`` has the embedding of a held-out one
    """
    for role, named in {"ood": ood, "openood": openood}.items():
        if named is not None and not isinstance(named, Mapping):
            raise ConfigError(f"{role} is a {type(named).__name__}: give a mapping, name → set")
    check_names([*(ood or {}), *(openood or {})])
    check_bootstrap(n_bootstrap, 0.95)
    check_size(reference_size)
    held_out = {} if calibration is None else {CALIBRATION: calibration}
    given = {TRAIN: train, TEST: test, **held_out, **(ood or {}), **(openood or {})}
    sets, dropped = held_out_sets(method, given, reencode)
    train, test = sets[TRAIN], sets[TEST]
    shared = shared_classes(train, test)
    features = {
        name: encode(method, images, progress=progress, scored=name != TRAIN) for name, images in sets.items()
    }
    spaces = spaces_of(method, sets, features, seed)
    rows = draw(len(train), reference_size, seed)
    rows = np.arange(len(train)) if rows is None else rows
    free = unlike_held_out(spaces["h"])
    fitted = fitted_rows(rows, free, train.name)
    read = {name: {**of, "inputs": sets[name]} for name, of in features.items()}
    if len(fitted) < len(train):
        read[TRAIN] = {k: v[fitted] for k, v in features[TRAIN].items()} | {"inputs": train.subset(fitted)}
    reference = read.pop(TRAIN)
    scores = label_free_scores(method, reference, read, seed=seed, gradients=jepa, progress=progress)
    scores |= baseline_scores(spaces, rows, seed)
    measures = {name: uncertainty(method, features[name]) for name in read}
    votes = {} if shared is None else votes_of(features, shared)
    by_row = _rows(method, {name: sets[name] for name in read}, scores, measures, votes, shared)
    decisions = flagged_rates(scores, seed=seed)
    for by_set in scores.values():
        by_set.pop(CALIBRATION, None)
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    outside = _detection(scores, draws)
    accuracy, balanced = ({}, {}) if shared is None else accuracies(spaces, shared, votes[TEST][0], seed)
    result: dict[str, Any] = {
        **provenance(),
        "settings": {
            "method": method.name,
            **method.settings,
            "seed": seed,
            "n_bootstrap": n_bootstrap,
            **method.encoding.record(),
            "reference rows of scores": len(fitted),
            "kNN detector's k": knn_neighbour(len(fitted)),
        },
        **sets_record(sets, dropped, reencode, shared),
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "collapse": metrics.collapse_summary(features[TEST]["h"]),
        "ood": outside,
        "decisions": decisions,
    }
    if openood:
        counts = {name: len(sets[name]) for name in openood}
        result["openood"] = openood_summary(
            {name: outside[name] for name in openood}, counts, method.preprocess.config(), reencode
        )
    if set(_POSTERIOR.values()) <= set(measures[TEST]):
        result["variance"] = {key: float(measures[TEST][name].mean()) for key, name in _POSTERIOR.items()}
        result["variance"]["kl_per_dimension"] /= method.embedding_dim
    arrays = _arrays({name: sets[name] for name in (TEST, *outside)}, features[TEST], scores)
    arrays |= {"rows": by_row, "predictive": None}
    if isinstance(method, PredictsTokens):
        result["predictive"], arrays["predictive"] = evaluate_predictions(method, test, **draws)
    if geometry := _geometry(test, features[TEST], scores, measures[TEST], draws):
        result["geometry"] = geometry
    if shared is not None:
        result["selective"] = _selective(spaces["h"], shared, free, votes[TEST], scores, measures[TEST])
    if jepa:
        arrays |= _jacobian_arrays(method, {name: sets[name] for name in (TEST, *outside)}, seed)
    return Evaluation(result, arrays)


def _arrays(sets: Mapping[str, Images], tested: Mapping[str, Tensor], scores: Scores) -> dict[str, Any]:
    """What a report draws of the test set and of those outside, see ``Evaluation``."""
    test = sets[TEST]
    return {
        "scores": scores,
        "embeddings": tested["h"].numpy(),
        "variance": tested["variance"].numpy() if "variance" in tested else None,
        "labels": None if test.labels is None else test.labels.numpy(),
        "classes": test.classes,
        "images": test,
        "ood_images": {name: images for name, images in sets.items() if name != TEST},
    }


def _detection(scores: Scores, draws: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return set → score → metric → figure of telling each set from the test set."""
    names = [name for name in next(iter(scores.values())) if name != TEST]
    return {
        name: {
            score: {k: asdict(x) for k, x in metrics.ood_metrics(of[TEST], of[name], **draws).items()}
            for score, of in scores.items()
        }
        for name in names
    }


def _geometry(
    test: Images,
    tested: Mapping[str, Tensor],
    scores: Scores,
    measures: Mapping[str, Any],
    draws: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return how uncertainty lies among the classes; None without a measure, two classes, or three labels."""
    if not measures or test.labels is None:
        return None
    labelled = labelled_rows(test)
    if labelled.sum() < 3 or len(np.unique(test.labels[labelled])) < 2:
        return None
    density = {"nll": -scores["likelihood"][TEST]} if "likelihood" in scores else {}
    found: dict[str, Any] = metrics.uncertainty_geometry(
        tested.get("mu", tested["h"]), test.labels, {**density, **measures}, **draws
    )
    return found


def _selective(
    h: Mapping[str, Tensor],
    shared: SharedLabels,
    free: npt.NDArray[np.bool_],
    vote: Vote,
    scores: Scores,
    measures: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return ``selective_prediction`` of the labelled test rows; distances are to ``free`` reference rows."""
    bank, asked = (shared.known != UNLABELLED) & torch.from_numpy(free), shared.asked != UNLABELLED
    if not bank.any():
        return {}
    rows = asked.numpy()
    predicted, share = (of[rows] for of in vote)
    return selective_prediction(
        h[TRAIN][bank],
        shared.known[bank],
        h[TEST][asked],
        shared.asked[asked],
        vote=(predicted, share),
        scores={name: of[TEST][rows] for name, of in scores.items()},
        measures={name: of[rows] for name, of in measures.items()},
    )


def _jacobian_arrays(method: Method, sets: Mapping[str, Images], seed: int) -> dict[str, Any]:
    """Spectra of a few images of each set, and the top singular vectors of a few test images."""
    from probjepa.jacobian import jacobian_spectrum, singular_vectors

    # at random: a folder's images lie class by class
    few = {name: images.get(sample_rows(len(images), _SPECTRA, seed)) for name, images in sets.items()}
    chosen = few[TEST][:: max(1, len(few[TEST]) // _VECTORS)][:_VECTORS]
    _, vectors = singular_vectors(method, chosen, count=min(_VECTORS, method.embedding_dim))
    prepared = method.preprocess(chosen)
    low, high = (prepared.amin((1, 2, 3), keepdim=True), prepared.amax((1, 2, 3), keepdim=True))
    pictures = (255 * (prepared - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return {
        "spectra": {name: jacobian_spectrum(method, images).numpy() for name, images in few.items()},
        "singular": {"images": pictures.cpu().numpy(), "vectors": vectors.numpy()},
    }


def _rows(
    method: Method,
    sets: Mapping[str, Images],
    scores: Mapping[str, Mapping[str, Any]],
    measures: Mapping[str, Mapping[str, Any]],
    votes: Mapping[str, Vote],
    shared: SharedLabels | None,
) -> pa.Table:
    """A row an image of every set: id, set, label, kNN's prediction, uncertainty, and all scores."""
    main = getattr(method, "main_uncertainty", "")
    tables = []
    for name, images in sets.items():
        columns = identity(images, slice(None))
        label = as_column(columns.pop("label", [None] * len(images))).cast(pa.string())
        columns |= {"set": [name] * len(images), "label": label}
        if shared is not None:
            columns["prediction"] = [shared.names[code] for code in votes[name][0].tolist()]
        if main in measures[name]:
            columns["uncertainty"] = measures[name][main]
        columns |= {score: of[name] for score, of in scores.items()}
        tables.append(pa.table({key: as_column(values) for key, values in columns.items()}))
    return pa.concat_tables(tables)
