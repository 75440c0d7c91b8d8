"""The energy score of predictive samples."""

from __future__ import annotations

import torch

from probjepa._arrays import ArrayInput, as_features, as_float_tensor, power_of_two
from probjepa.errors import ConfigError, DataError
from probjepa.typed import settings_checked


@settings_checked
def energy_score(samples: ArrayInput, target: ArrayInput, *, chunk_size: int = 1024) -> torch.Tensor:
    """Return the energy score of each prediction, from samples of it: *lower* is better.

    ES = E‖X − y‖ − ½·E‖X − X′‖ with X, X′ independent draws; the second mean leaves out the pairs of a sample
    with itself, so the estimate is unbiased and the score is strictly proper whatever the number of samples.
    Reference: Gneiting & Raftery, "Strictly Proper Scoring Rules", JASA 2007, eq. 22.

    Parameters
    ----------
    samples
        (S, N, D), S ≥ 2 draws of each of N predictions
    target
        (N, D), what came
    chunk_size
        predictions at a time: chunk_size × S² distances are held

    Returns
    -------
    Tensor
        (N,) float64, on the device of ``samples``

    Raises
    ------
    DataError
        for other shapes, fewer than two samples, or NaN or Inf (counted)
    ConfigError
        for a chunk_size below 1

    Examples
    --------
    >>> energy_score([[[0.0]], [[2.0]]], [[1.0]])
    tensor([0.], dtype=torch.float64)
    """
    draws = as_float_tensor(samples, "the samples")
    if draws.ndim != 3 or len(draws) < 2:
        raise DataError(f"the samples have shape {tuple(draws.shape)}: give at least two, as (S, N, D)")
    if chunk_size < 1:
        raise ConfigError(f"energy score: chunk_size is {chunk_size}: use at least 1")
    truth = as_features(target, "the target")
    if draws.shape[1:] != truth.shape:
        raise DataError(
            f"the samples have shape {tuple(draws.shape)} for a target {tuple(truth.shape)}: "
            "give samples (S, N, D) of a target (N, D)"
        )
    draws = as_features(draws.flatten(0, 1), "the samples").double().reshape(draws.shape)
    truth = truth.to(draws)
    unit = power_of_two(torch.maximum(draws.abs().amax((0, 2)), truth.abs().amax(1)))
    draws, truth = draws / unit[:, None], truth / unit[:, None]
    pairs = len(draws) * (len(draws) - 1)
    scores = []
    for x, y in zip(torch.split(draws, chunk_size, dim=1), torch.split(truth, chunk_size), strict=True):
        to_target = torch.linalg.vector_norm(x - y, dim=2).mean(0)
        # the matrix-product form of cdist loses small distances to cancellation
        each = x.transpose(0, 1)
        apart = torch.cdist(each, each, compute_mode="donot_use_mm_for_euclid_dist")
        scores.append(to_target - 0.5 * apart.sum((1, 2)) / pairs)
    return torch.cat(scores) * unit
