"""One evaluation of images: accuracy, detection, geometry and selection, beside what they must beat.

Every score is computed on one encoding of each set, with the same reference rows, and stands beside raw
pixels and a random-initialisation encoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa import metrics
from probjepa.data import Images, StreamedImages
from probjepa.data.bank import map_rows
from probjepa.data.codec import reencode as through_codec
from probjepa.data.fingerprint import fingerprint
from probjepa.data.labels import SharedLabels, labelled_rows, shared_labels
from probjepa.data.overlap import overlap, refuse_overlap, unlike
from probjepa.data.records import UNLABELLED
from probjepa.data.rows import as_column, identity
from probjepa.errors import ConfigError, DataError, ProbjepaWarning, short
from probjepa.evaluation.decisions import CALIBRATION, TEST, flagged_rates
from probjepa.evaluation.figures import Evaluation, balanced_accuracy, figure, provenance
from probjepa.evaluation.label_free import columns, label_free_scores
from probjepa.evaluation.openood import openood_summary
from probjepa.evaluation.predictive import PredictsTokens, evaluate_predictions
from probjepa.evaluation.selective import selective_prediction
from probjepa.methods import Method
from probjepa.scores import encode
from probjepa.scores.detectors import KNNScore, knn_neighbour
from probjepa.scores.own import uncertainty
from probjepa.scores.sets import draw

TRAIN = "train"
# A linear probe on raw pixels wider than this takes minutes, and kNN says as much.
_WIDEST_PROBE = 2048
_BATCH = 1024  # images whose pixels are prepared together
_LARGEST_PIXELS = 64  # of a side, that raw pixels are compared at
_NEIGHBOURS = 20  # of the kNN whose answers stand beside every image
_SPECTRA = 64  # images of each set whose spectra are drawn
_VECTORS = 6  # test images, and singular vectors of each, that are drawn
_POSTERIOR = {"mean": "mean_variance", "kl_per_dimension": "kl", "anisotropy": "anisotropy"}

_Figures = dict[str, dict[str, dict[str, float | None]]]  # space → probe → figure
Rows = npt.NDArray[np.intp]
Scores = dict[str, dict[str, npt.NDArray[np.float64]]]  # score → set → (N,)
Vote = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]  # of N rows: their labels, and the vote's share
Spaces = dict[str, dict[str, Any]]  # space → set, the reference among them → (N, D), or mapped pixels


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
        fit the scores to so many rows of ``train``, drawn at random; accuracies are of all

    Raises
    ------
    ConfigError
        for a name that two sets share, or an unknown codec
    DataError
        if a set has no row that is not in ``train``, the classes of ``test`` are not those of ``train``,
        test images are in ``calibration``, or every image of ``train`` has the embedding of a held-out one
    """
    _check_names([*(ood or {}), *(openood or {})])
    held_out = {} if calibration is None else {CALIBRATION: calibration}
    given = {TRAIN: train, TEST: test, **held_out, **(ood or {}), **(openood or {})}
    sets, dropped = _held_out_sets(method, given, reencode)
    train, test = sets[TRAIN], sets[TEST]
    shared = _shared_classes(train, test)
    features = {
        name: encode(method, images, progress=progress, scored=name != TRAIN) for name, images in sets.items()
    }
    spaces = _spaces(method, sets, features, seed)
    rows = draw(len(train), reference_size, seed)
    rows = np.arange(len(train)) if rows is None else rows
    free = _unlike_held_out(spaces["h"])
    fitted = _fitted_rows(rows, free, train.name)
    read = {name: {**of, "inputs": sets[name]} for name, of in features.items()}
    if len(fitted) < len(train):
        read[TRAIN] = {k: v[fitted] for k, v in features[TRAIN].items()} | {"inputs": train.subset(fitted)}
    reference = read.pop(TRAIN)
    scores = label_free_scores(method, reference, read, seed=seed, gradients=jepa, progress=progress)
    scores |= _baseline_scores(spaces, rows, seed)
    measures = {name: uncertainty(method, features[name]) for name in dropped}
    votes = {} if shared is None else _votes(features, shared)
    by_row = _rows(method, {name: sets[name] for name in dropped}, scores, measures, votes, shared)
    decisions = flagged_rates(scores, seed=seed)
    for by_set in scores.values():
        by_set.pop(CALIBRATION, None)
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    outside = _detection(scores, draws)
    tested = features[TEST]
    accuracy, balanced = ({}, {}) if shared is None else _accuracies(spaces, shared, votes[TEST][0], seed)
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
        "train": train.name,
        "test": test.name,
        "sets": {name: describe(images) for name, images in sets.items()},
        "reencode": reencode,
        "left_out_as_in_train": dropped,
        "skipped": {images.name: images.skipped for images in sets.values() if images.skipped},
        "labels": _labels_said(train, test, shared),
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "collapse": metrics.collapse_summary(tested["h"]),
        "ood": outside,
        "decisions": decisions,
    }
    if openood:
        counts = {name: len(sets[name]) + dropped[name] for name in openood}
        result["openood"] = openood_summary(
            {name: outside[name] for name in openood}, counts, method.preprocess.config(), reencode
        )
    if set(_POSTERIOR.values()) <= set(measures[TEST]):
        result["variance"] = {key: float(measures[TEST][name].mean()) for key, name in _POSTERIOR.items()}
        result["variance"]["kl_per_dimension"] /= method.embedding_dim
    predicted: dict[str, Any] | None = None
    if isinstance(method, PredictsTokens):
        result["predictive"], predicted = evaluate_predictions(method, test, **draws)
    if geometry := _geometry(test, tested, scores, measures[TEST], draws):
        result["geometry"] = geometry
    if shared is not None:
        result["selective"] = _selective(spaces["h"], shared, free, votes[TEST], scores, measures[TEST])
    arrays = {
        "scores": scores,
        "embeddings": tested["h"].numpy(),
        "variance": tested["variance"].numpy() if "variance" in tested else None,
        "labels": None if test.labels is None else test.labels.numpy(),
        "classes": test.classes,
        "images": test,
        "ood_images": {name: sets[name] for name in outside},
        "predictive": predicted,
        "rows": by_row,
    }
    if jepa:
        arrays |= _jacobian_arrays(method, {name: sets[name] for name in (TEST, *outside)})
    return Evaluation(result, arrays)


def _held_out_sets(
    method: Method, given: Mapping[str, Any], reencode: str | None
) -> tuple[dict[str, Images], dict[str, int]]:
    """Open all sets; the others without the images of the reference, and how many each of them had."""
    sets = {name: method.open(of) for name, of in given.items()}
    if reencode is not None:
        sets = {name: through_codec(images, reencode) for name, images in sets.items()}
    sets, dropped = _without_train(sets)
    if CALIBRATION in sets:
        refuse_overlap(sets[TEST], sets[CALIBRATION], CALIBRATION, of="test images")
    return sets, dropped


def _shared_classes(train: Images, test: Images) -> SharedLabels | None:
    """Read the labels of both sets, see ``shared_labels``; DataError for one class alone."""
    shared = shared_labels(train, test)
    if shared is not None and len(shared.names) == 1:
        only = next(iter(shared.names.values()))
        raise DataError(
            f"{train.name} has one class alone, '{short(only)}', and accuracy needs two: give labels of "
            "more, or none (--labels none)"
        )
    return shared


def _check_names(outside: Sequence[str]) -> None:
    """Raise ConfigError for an OOD set that is called like another set."""
    reserved = {
        TRAIN: "the reference set",
        TEST: "the in-distribution set",
        CALIBRATION: "the calibration set",
    }
    given = [*reserved, *outside]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        taken = reserved.get(twice, "an OpenOOD set")
        raise ConfigError(f"'{twice}' is the name of {taken}: name the OOD set differently")


def _without_train(sets: Mapping[str, Images]) -> tuple[dict[str, Images], dict[str, int]]:
    """Return the sets without the images of the reference, and how many each of the others had."""
    kept, dropped, train = dict(sets), {}, sets[TRAIN]
    for name, images in sets.items():
        if name == TRAIN:
            continue
        seen = overlap(images, train)
        dropped[name] = int(seen.sum())
        if seen.all():
            raise DataError(f"every image of {images.name} is also in {train.name}: give a held-out set")
        if dropped[name]:
            kept[name] = images.subset(~seen)
    return kept, dropped


def _unlike_held_out(of: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of the reference's rows whose features no row of another set equals."""
    return unlike(of[TRAIN], (rows for name, rows in of.items() if name != TRAIN))


def _fitted_rows(rows: Rows, free: npt.NDArray[np.bool_], name: str) -> Rows:
    """Return those rows of the reference that are ``free``: warn of the others; DataError for none."""
    fitted = rows[free[rows]]
    if not len(fitted):
        raise DataError(f"every embedding of {name} is that of a held-out image too: the encoder collapsed")
    if alike := len(rows) - len(fitted):
        warnings.warn(
            f"images of {name} that have the embedding of a held-out one: {alike}. Scores are fitted "
            "without them",
            ProbjepaWarning,
            stacklevel=3,
        )
    return fitted


def _baseline_scores(spaces: Spaces, rows: Rows, seed: int) -> Scores:
    """The kNN detector on a random initialisation and on raw pixels, where these are among the spaces."""
    found: Scores = {}
    for space in ("random-init", "raw pixels"):
        if space not in spaces:
            continue
        sets = {name: {"h": of} for name, of in spaces[space].items()}
        bank, fitted = sets.pop(TRAIN)["h"], rows[_unlike_held_out(spaces[space])[rows]]
        if len(fitted):
            bank = bank if len(fitted) == len(bank) else bank[fitted]
            found[f"knn, {space}"] = columns(KNNScore(seed=seed), {"h": bank}, sets)["knn"]
    return found


def _votes(features: Mapping[str, Mapping[str, Tensor]], shared: SharedLabels) -> dict[str, Vote]:
    """Return what kNN (k = 20, majority) says of every set but the reference, and its share of the vote."""
    k = min(_NEIGHBOURS, int((shared.known != UNLABELLED).sum()))
    bank = features[TRAIN]["h"]
    return {
        name: metrics.knn_vote(bank, shared.known, of["h"], k=k)
        for name, of in features.items()
        if name != TRAIN
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


def _spaces(
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


def _jacobian_arrays(method: Method, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Spectra of a few images of each set, and the top singular vectors of a few test images."""
    from probjepa.jacobian import jacobian_spectrum, singular_vectors

    few = {name: images.get(slice(0, _SPECTRA)) for name, images in sets.items()}
    chosen = few[TEST][:_VECTORS]
    _, vectors = singular_vectors(method, chosen, count=min(_VECTORS, method.embedding_dim))
    prepared = method.preprocess(chosen)
    low, high = (prepared.amin((1, 2, 3), keepdim=True), prepared.amax((1, 2, 3), keepdim=True))
    pictures = (255 * (prepared - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return {
        "spectra": {name: jacobian_spectrum(method, images).numpy() for name, images in few.items()},
        "singular": {"images": pictures.cpu().numpy(), "vectors": vectors.numpy()},
    }


def _labels_said(train: Images, test: Images, shared: SharedLabels | None) -> dict[str, Any]:
    """How many rows have no label, of the sets that have labels, and the test classes that train lacks."""
    sets = {TRAIN: train, TEST: test}
    return {
        "unlabelled": {
            name: int((~labelled_rows(of)).sum()) for name, of in sets.items() if of.labels is not None
        },
        "classes_not_in_train": [] if shared is None else shared.absent,
    }


def _accuracies(
    spaces: Spaces, shared: SharedLabels, answers: npt.NDArray[Any], seed: int
) -> tuple[_Figures, _Figures]:
    """Accuracy by space and probe over the labelled rows, with a Wilson interval, and class-balanced.

    ``answers`` are those of ``_votes`` on the test set.
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


def describe(images: Images) -> dict[str, Any]:
    """Name, size, and the hash of ids and pixels of a set: a result says exactly what it was computed on."""
    return {
        "name": images.name,
        "images": len(images),
        "shape": list(images.shape),
        "sha256": fingerprint(images),
    }
