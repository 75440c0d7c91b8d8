"""A linear classifier on frozen embeddings."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch.nn import functional as F

from probjepa._arrays import (
    ArrayInput,
    as_feature_sets,
    as_features,
    as_labels,
    check_classes,
    power_of_two,
)
from probjepa.distributions.base import full_precision
from probjepa.errors import ConfigError, DataError, warn
from probjepa.registry import importing
from probjepa.typed import settings_checked

_STEPS = 2_000  # of L-BFGS


class ProbeSettings(TypedDict, total=False):
    """The keywords of ``linear_predict``."""

    method: Literal["lbfgs", "sgd"]
    weight_decay: float | None
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


@settings_checked
def linear_predict(
    train: ArrayInput,
    train_labels: ArrayInput,
    test: ArrayInput,
    *,
    method: Literal["lbfgs", "sgd"] = "lbfgs",
    weight_decay: float | None = None,
    epochs: int = 100,
    learning_rate: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Fit softmax regression to the training embeddings, and return the labels (M,) it finds for the test's.

    The objective is mean cross-entropy + ½·weight_decay·‖W‖². Both sets are standardised with the training
    mean and deviation of each feature, so that one learning rate and one weight decay suit every encoder.

    Parameters
    ----------
    train, test
        embeddings (N, D) and (M, D); "sgd" computes on the device of ``train``
    train_labels
        (N,); rows labelled −1, None or NaN are left out
    method
        "lbfgs": scikit-learn's LogisticRegression to convergence, for small sets (a ProbjepaWarning says
        where it did not come to it, in 2,000 steps);
        "sgd": momentum 0.9 and a cosine schedule to 0, from zero weights
    weight_decay
        None: for "lbfgs" scikit-learn's C = 1, which is 1/N (2/N for two classes), 0 for "sgd"
    epochs, learning_rate, batch_size, seed
        of "sgd" only; ``seed`` fixes the order of the rows

    Raises
    ------
    DataError
        for NaN or Inf (counted), another width, lengths that do not match, or fewer than two training classes
    ConfigError
        for a setting out of its range
    """
    x, x_test = as_feature_sets(train, test)
    labels, labelled = as_labels(train_labels, "the training labels", rows=len(x))
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"the training labels are all {classes[0]} (−1 is no label): a linear probe needs at least two "
            "classes"
        )
    if method not in ("lbfgs", "sgd"):
        raise ConfigError(f"linear probe: method is '{method}': use 'lbfgs' or 'sgd'")
    if weight_decay is not None and weight_decay < 0:
        raise ConfigError(f"linear probe: weight_decay is {weight_decay}: use 0 or more, or None")
    if min(epochs, batch_size) < 1 or not learning_rate > 0:
        raise ConfigError("linear probe: epochs, batch_size and learning_rate must be positive")

    if len(labelled) < len(x):
        x = x[torch.from_numpy(labelled).to(x.device)]
    x, x_test = _standardised(x, x_test.to(x))
    if method == "lbfgs":
        predicted = _lbfgs(x, codes, x_test, weight_decay)
    else:
        y = torch.from_numpy(codes).to(x.device)
        with full_precision(x):
            predicted = _sgd(x, y, x_test, weight_decay or 0.0, epochs, learning_rate, batch_size, seed)
    return np.asarray(classes[predicted])


@settings_checked
def linear_probe(
    train: ArrayInput,
    train_labels: ArrayInput,
    test: ArrayInput,
    test_labels: ArrayInput,
    **settings: Unpack[ProbeSettings],
) -> float:
    """Return the share of labelled test rows whose label ``linear_predict`` finds; its parameters and errors.

    A ProbjepaWarning names test classes that no training row has; if none has any, it is a DataError.
    """
    queries = as_features(test, "the test embeddings")
    targets, asked = as_labels(test_labels, "the test labels", rows=len(queries))
    known = as_labels(train_labels, "the training labels")[0]
    check_classes(np.unique(targets).tolist(), np.unique(known).tolist())
    predicted = linear_predict(train, train_labels, queries, **settings)
    return float(np.mean(predicted[asked] == targets))


def _standardised(x: torch.Tensor, x_test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both by the mean and deviation of each feature of the first, which are taken in float64."""
    unit = power_of_two(x.abs().amax(0).double())
    wide = x / unit
    mean, scale = wide.mean(0), wide.std(0, correction=0)
    limits = torch.finfo(x.dtype)
    # a constant feature has the deviation of its rounding noise: leave it at zero instead of blowing it up
    scale = torch.where(scale > 100 * limits.eps * mean.abs(), scale, 1.0)
    far = limits.max**0.5  # that a test row may be out, so that sums of products stay finite
    tested = ((x_test / unit - mean) / scale).clamp(-far, far)
    return ((wide - mean) / scale).to(x.dtype), tested.to(x.dtype)


def _lbfgs(
    x: torch.Tensor, codes: np.ndarray, x_test: torch.Tensor, weight_decay: float | None
) -> np.ndarray:
    with importing():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

    decay = 1 / len(x) if weight_decay is None else weight_decay
    inverse = 1 / (decay * len(x)) if decay > 0 else math.inf
    if weight_decay is not None and codes.max() == 1:
        inverse *= 2  # one vector for two classes is the difference of softmax's: w, −w of half the norm²
    model = LogisticRegression(C=inverse, max_iter=_STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x.cpu().numpy(), codes)
    for each in caught:
        if issubclass(each.category, ConvergenceWarning):
            warn(
                f"linear probe: L-BFGS ended after {model.n_iter_.max()} steps, before it had converged, and "
                "its accuracy may be a little low: give it more weight_decay, or use method='sgd'"
            )
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return np.asarray(model.predict(x_test.cpu().numpy()))


@torch.inference_mode(False)  # gradients on, whatever the caller's mode
def _sgd(
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    weight_decay: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    x, y = (of.clone() if of.is_inference() else of for of in (x, y))
    n_classes = int(y.max()) + 1
    weight = x.new_zeros(n_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(n_classes, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": weight_decay}, {"params": [bias]}]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in torch.split(order, batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(F.linear(x[rows], weight, bias), y[rows]))
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return F.linear(x_test, weight, bias).argmax(1).cpu().numpy()
