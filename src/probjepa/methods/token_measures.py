"""What a head says of images' hidden tokens: measures and moments, the same for an image in any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probjepa.draws import reseed
from probjepa.heads.base import Head

_BLOCK = 1_000_000  # numbers in the draws of the images that a head is given at once
# The spread is a mean over all hidden tokens: more draws of each add nothing that can be seen. An energy
# score compares draws with one target each, and needs them.
_SPREAD_DRAWS = 2

Measured = dict[str, Tensor]


def by_image(
    head: nn.Module,
    vectors: Tensor,
    tokens: Tensor,
    read: Callable[[Any, Tensor], Measured],
    *,
    draws: int,
    seed: int,
) -> Measured:
    """Return ``read(prediction, tokens)`` of all images, joined: each value (N, …).

    Noise is the same for every image, so that what is read of one does not depend on its neighbours: this
    library's heads are told so, others are called image by image from one seed. Torch's global generator is
    left at another state.

    Parameters
    ----------
    head
        called with the vectors of some images
    vectors, tokens
        context vectors (N, …, C) of the hidden tokens (N, …, D)
    draws
        that ``read`` takes of a token, at most: it sets how many images go together
    seed
        of the noise
    """
    ours = isinstance(head, Head)
    together = max(1, _BLOCK // (draws * tokens.shape[1:].numel())) if ours else 1
    parts = []
    pairs = zip(torch.split(vectors, together), torch.split(tokens, together), strict=True)
    for context, target in pairs:
        prediction = head(context)
        if ours:
            prediction = prediction.for_scores(alike=1)
        reseed(seed, vectors.device)
        parts.append(read(prediction, target))
    return joined(parts)


def joined(parts: Sequence[Mapping[str, Tensor]]) -> Measured:
    """Return the parts of a set, joined along their first dimension."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def likeness(prediction: Any, target: Tensor, draws: int) -> Measured:
    """Return the score of an image's tokens (N, …, D) under a prediction, by its name: (N,) float64."""
    density = if_there(lambda: prediction.log_prob(target))
    if density is not None:
        return {"log_density": _mean(density) / target.shape[-1]}
    return {"negative_energy_score": -_mean(energy(prediction.sample((draws,)).double(), target))}


def measures(prediction: Any, target: Tensor, draws: int) -> Measured:
    """Return means over an image's tokens (N, …, D) of what a prediction says of them: each (N,) float64."""
    density = if_there(lambda: prediction.log_prob(target))
    variance = if_there(lambda: prediction.variance)
    entropy = if_there(lambda: prediction.entropy())
    dim = target.shape[-1]
    out: Measured = {}
    if density is not None:
        out["log_density"] = _mean(density) / dim
    if density is None or variance is None:
        samples = prediction.sample((draws if density is None else _SPREAD_DRAWS,)).double()
        if density is None:
            out["negative_energy_score"] = -_mean(energy(samples, target))
        if variance is None:
            variance = _variance(samples)
    out["spread"] = _mean(variance).sqrt()
    if entropy is not None:
        out["entropy"] = _mean(entropy) / dim
    return out


def moments(prediction: Any, _: Tensor, draws: int) -> Measured:
    """Return "mean" and "variance" (N, D) of the equal mixture of a prediction over an image's tokens."""
    variance = if_there(lambda: prediction.variance)
    if variance is None:
        variance = _variance(prediction.sample((draws,)).double())
    means = prediction.mean.double().flatten(1, -2)
    mean = means.mean(1)
    # torch's own ``var`` warns where there are no images
    apart = (means - mean.unsqueeze(1)).square().mean(1)
    return {"mean": mean.float(), "variance": (variance.double().flatten(1, -2).mean(1) + apart).float()}


def energy(samples: Tensor, target: Tensor) -> Tensor:
    """Energy score (…) of draws (S, …, D), unbiased: E‖X − y‖ − ½E‖X − X′‖."""
    norm = torch.linalg.vector_norm
    count = len(samples)
    score: Tensor = norm(samples - target, dim=-1).mean(0)
    for k in range(1, count):  # a draw and those before it
        score = score - norm(samples[:k] - samples[k], dim=-1).sum(0) / (count * (count - 1))
    return score


def _variance(samples: Tensor) -> Tensor:
    # torch's own along the first dimension takes as long as the draws
    return (samples - samples.mean(0)).square().sum(0) / (len(samples) - 1)


def _mean(x: Tensor) -> Tensor:
    return x.double().flatten(1).mean(1)


def if_there(read: Callable[[], Tensor]) -> Tensor | None:
    """Return what a prediction says of itself; None where it does not."""
    try:
        return read()
    except (NotImplementedError, AttributeError):  # a distribution's, or a head's of the user's own
        return None
