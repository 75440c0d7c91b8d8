"""The evaluation protocol: accuracy and out-of-distribution detection, always beside what they must beat.

Every score is computed on one encoding of each set, with the same reference rows, and stands beside raw
pixels and a random-initialisation encoder.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import probjepa
from probjepa import metrics
from probjepa.data import Images
from probjepa.errors import ConfigError, DataError
from probjepa.methods import Method
from probjepa.methods.vje import VJE
from probjepa.overlap import overlap
from probjepa.scores import DETECTORS, encode, knn_neighbour
from probjepa.scores.sets import make_detector

Scores = dict[str, npt.NDArray[np.float64]]
TEST = "test"
# A linear probe on raw pixels wider than this takes minutes, and kNN says as much.
_WIDEST_PROBE = 2048
_SPECTRA = 64  # images of each set whose spectra are drawn
_VECTORS = 6  # test images, and singular vectors of each, that are drawn


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` returns.

    Attributes
    ----------
    metrics
        JSON-able: settings, accuracy, collapse, variance and OOD figures, each with its interval
    arrays
        what the report draws: scores by detector and set, embeddings, variances, labels, images
    """

    metrics: dict[str, Any]
    arrays: dict[str, Any]


def evaluate(
    method: Method,
    train: Images,
    test: Images,
    ood: Mapping[str, Images] | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = 1000,
    jepa: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a trained method: nothing is fitted on any row that is scored.

    Test and out-of-distribution images that are also in ``train`` are left out, and counted.

    Parameters
    ----------
    method
        any method; the likelihood and predictive scores are VJE's
    train
        reference rows: the bank of kNN, and what detectors are fitted on
    test
        held-out rows of the same distribution; labels on both sides give accuracies
    ood
        name → set
    seed
        of the random-initialisation baseline, the detectors and the bootstrap
    n_bootstrap
        resamples of each 95 % interval of an OOD metric
    jepa
        also JEPA-SCORE, in the paper's form and with the latent term of ``train``'s embeddings: D backward
        passes an image

    Raises
    ------
    DataError
        if a set has no row that is not in ``train``
    """
    sets: dict[str, Images] = {TEST: test, **(ood or {})}
    if len(sets) != 1 + len(ood or {}):
        raise ConfigError(f"'{TEST}' is the name of the in-distribution set: name the OOD set differently")
    dropped = {}
    for name, images in sets.items():
        seen = overlap(images, train)
        dropped[name] = int(seen.sum())
        if seen.all():
            raise DataError(f"every image of {images.name} is also in {train.name}: give a held-out set")
        if dropped[name]:
            sets[name] = images.subset(~seen)
    test = sets[TEST]

    known = encode(method, train, progress=progress)
    features = {name: encode(method, images, progress=progress) for name, images in sets.items()}
    spaces = {"h": (known["h"], {name: f["h"] for name, f in features.items()})}
    if "mu" in known:
        spaces["mu"] = (known["mu"], {name: f["mu"] for name, f in features.items()})
    try:
        fresh = method.reinitialised(seed)
    except ConfigError:
        pass  # a backbone of the user's own cannot be made anew
    else:
        spaces["random-init"] = (
            encode(fresh, train)["h"],
            {name: encode(fresh, images)["h"] for name, images in sets.items()},
        )
    spaces["raw pixels"] = (_pixels(method, train), {n: _pixels(method, s) for n, s in sets.items()})

    scores = _scores(method, known, features, spaces, seed)
    if jepa:
        scores |= _jepa_scores(method, sets, known["h"], progress)
    result: dict[str, Any] = {
        "version": probjepa.__version__,
        "hardware": hardware(),
        "settings": {
            "method": method.name,
            **method.settings,
            "seed": seed,
            "n_bootstrap": n_bootstrap,
            "kNN detector's k": knn_neighbour(len(train)),
        },
        "train": train.name,
        "test": test.name,
        "sets": {"train": describe(train)} | {name: describe(images) for name, images in sets.items()},
        "left_out_as_in_train": dropped,
        "skipped": {images.name: images.skipped for images in (train, *sets.values()) if images.skipped},
        "accuracy": _accuracies(spaces, train, test, seed),
        "collapse": metrics.collapse_summary(features[TEST]["h"]),
        "ood": {
            name: {
                detector: {
                    key: asdict(value)
                    for key, value in metrics.ood_metrics(
                        of[TEST], of[name], n_bootstrap=n_bootstrap, seed=seed
                    ).items()
                }
                for detector, of in scores.items()
            }
            for name in sets
            if name != TEST
        },
    }
    if isinstance(method, VJE):
        uncertainty = method.uncertainty_of_features(features[TEST])
        result["variance"] = {
            "mean": uncertainty["mean_variance"].mean().item(),
            "kl_per_dimension": uncertainty["kl"].mean().item() / method.embedding_dim,
            "anisotropy": uncertainty["anisotropy"].mean().item(),
        }
    arrays = {
        "scores": scores,
        "embeddings": features[TEST]["h"].numpy(),
        "variance": features[TEST]["variance"].numpy() if "variance" in features[TEST] else None,
        "labels": None if test.labels is None else test.labels.numpy(),
        "classes": test.classes,
        "images": test.get(slice(None)).numpy(),
        "ood_images": {name: s.get(slice(None)).numpy() for name, s in sets.items() if name != TEST},
    }
    if jepa:
        arrays |= _jacobian_arrays(method, sets)
    return Evaluation(result, arrays)


def _scores(
    method: Method,
    known: Mapping[str, Tensor],
    features: Mapping[str, Mapping[str, Tensor]],
    spaces: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]],
    seed: int,
) -> dict[str, Scores]:
    """Scores by detector and set, each (N,): the model's own, then the detectors on h, then the baselines."""
    scorers: dict[str, Callable[[str], npt.NDArray[np.float64]]] = {}
    if isinstance(method, VJE):
        vje = method
        scorers["likelihood"] = lambda name: vje.score_features(features[name]).detach().cpu().numpy()
        try:
            density = vje.predictive(known)
        except ConfigError:
            pass  # an ablation without a polar Student-t has no such density
        else:
            scorers["predictive"] = lambda name: density.log_prob(features[name]["h"]).cpu().numpy()
    for detector in DETECTORS:
        scorers[detector] = _fitted(detector, *spaces["h"], seed)
    for space in ("random-init", "raw pixels"):
        if space in spaces:
            scorers[f"knn, {space}"] = _fitted("knn", *spaces[space], seed)
    return {label: {name: score(name) for name in features} for label, score in scorers.items()}


def _jepa_scores(
    method: Method, sets: Mapping[str, Images], reference: Tensor, progress: bool
) -> dict[str, Scores]:
    """JEPA-SCORE of each set, from one pass: the paper's form, and with the latent term."""
    from probjepa.jacobian import jepa_score_details

    table: dict[str, Scores] = {"jepa": {}, "jepa + latent": {}}
    for name, images in sets.items():
        found = jepa_score_details(method, images, latent=reference, progress=progress)
        table["jepa"][name] = found.log_volume.numpy()
        table["jepa + latent"][name] = found.score.numpy()
    return table


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


def _fitted(
    detector: str, bank: Tensor, queries: Mapping[str, Tensor], seed: int
) -> Callable[[str], npt.NDArray[np.float64]]:
    fitted: Any = make_detector(detector, len(bank), seed).fit(bank)
    return lambda name: fitted.score_samples(queries[name])


def _pixels(method: Method, images: Images) -> Tensor:
    with torch.no_grad():
        parts = [method.preprocess(batch).flatten(1) for batch, _ in images.batches(4096)]
    return torch.cat(parts)


def _accuracies(
    spaces: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]], train: Images, test: Images, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by space and probe with a 95 % Wilson interval; empty where a side has no labels."""
    if train.labels is None or test.labels is None:
        return {}
    known, truth = train.labels, test.labels
    table: dict[str, dict[str, dict[str, float]]] = {}
    for space, (bank, queries) in spaces.items():
        rows: dict[str, dict[str, float]] = {}
        for probe, k, temperature in (("knn20", 20, None), ("knn200", 200, 0.1)):
            predicted = metrics.knn_predict(
                bank, known, queries[TEST], k=min(k, len(bank)), temperature=temperature
            )
            correct = torch.as_tensor(predicted).cpu() == truth
            rows[probe] = asdict(metrics.accuracy_interval(correct.numpy()))
        if bank.shape[1] <= _WIDEST_PROBE:
            linear = metrics.linear_probe(bank, known, queries[TEST], truth, seed=seed)
            hits = np.arange(len(truth)) < round(linear * len(truth))
            rows["linear"] = asdict(metrics.accuracy_interval(hits))
        table[space] = rows
    return table


def describe(images: Images) -> dict[str, Any]:
    """Name, size and pixel hash of a set: a result says exactly what it was computed on."""
    digest = hashlib.sha256()
    for batch, _ in images.batches(4096):
        digest.update(batch.contiguous().numpy().tobytes())
    return {
        "name": images.name,
        "images": len(images),
        "shape": list(images.shape),
        "sha256": digest.hexdigest()[:16],
    }


def hardware() -> str:
    """Name the processor (and GPU) that figures were measured on."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"
