"""How good predictions of hidden tokens are: densities, proper scores, and what to draw of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probjepa import metrics
from probjepa.backbones.frozen import evaluating
from probjepa.data import Images
from probjepa.draws import forked
from probjepa.errors import DataError
from probjepa.heads.base import gaussian_log_density
from probjepa.heads.gaussian import GaussianPrediction
from probjepa.heads.mixture import MixturePrediction
from probjepa.heads.realnvp import FlowPrediction
from probjepa.methods.token_measures import if_there

_BATCH = 64  # images
_MASKED = 6  # images drawn with their masks
_COMPONENTS = 256  # tokens whose component means are drawn
_SCALES = 20_000  # standard deviations in the histogram


@runtime_checkable
class PredictsTokens(Protocol):
    """What is read of a method that predicts the tokens of hidden patches, as ``IJEPA`` does."""

    masks: Any
    head: Any
    targets: Any
    contexts: Any


def evaluate_predictions(
    method: Any,
    images: Images,
    *,
    n_images: int = 256,
    n_tokens: int = 4096,
    n_scored: int = 512,
    draws: int = 16,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate the head on hidden tokens of held-out images: one mask an image, some of its tokens.

    Images, masks, tokens and draws follow from ``seed`` alone, so heads are compared on the same tokens (of
    teachers that differ). An interval is a bootstrap over images, as the tokens of one depend on each other.

    Parameters
    ----------
    images
        at least two; ``n_images`` of them at most are read
    n_tokens
        hidden tokens, over all images: the points of the pictures
    n_scored, draws
        how many of these are scored, and samples of each (≥ 2)

    Returns
    -------
    tuple
        JSON-able figures, each with its 95 % interval {value, low, high}: "nll_per_dimension" (nats, None
        where the head has no density; a Hutchinson estimate for flow matching), "energy_score" (lower is
        better), "cosine" of the predicted mean to the target, "spread" (√ of the draws' mean variance);
        "energy_score_marginal" and "nll_marginal", of predictions that ignore the context: draws of other
        images' targets, and a diagonal Gaussian of the targets; "energy_skill" = 1 − energy score / marginal;
        "target_std", the targets' mean standard deviation over images (0: the teacher has collapsed); for a
        mixture "mixture": entropy of the weights, effective components, mean "weights"; quantiles of "sigma"
        and of "log_det" a dimension where there are any. And arrays for ``report.predictive``: "targets" and
        "samples" (T, D), "means" of the scored ones with their "scored_targets", "components" (P, K, D) with
        "component_weights" (P, K), "entropy" (T,), "weights" (T, K), "sigma", "log_det", and "masks"

    Raises
    ------
    DataError
        for fewer than two images
    """
    if len(images) < 2:
        raise DataError(f"{images.name} has {len(images)} images: predictions are evaluated on two or more")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=generator)[:n_images].sort().values
    context, hidden = method.masks(len(rows), generator)
    asked = hidden.flatten(1).shape[1]
    each = min(asked, max(1, n_tokens // len(rows)))
    scored = min(each, max(1, n_scored // len(rows)))
    chosen = torch.rand(len(rows), asked, generator=generator).argsort(1)[:, :each]
    pixels = images.get(rows.numpy())
    with evaluating(method), forked(method.device, seed):
        vectors, targets, deviation = _tokens(method, pixels, context, hidden, chosen)
        arrays = _pictured(method, vectors.flatten(0, 1), targets.flatten(0, 1))
        known = targets[:, :scored].flatten(0, 1)
        mean, scores = _scores(method, vectors[:, :scored].flatten(0, 1), known, draws)
        scores |= _marginal(targets[:, :scored], arrays["targets"], draws, generator)
    arrays |= {"means": mean, "scored_targets": known}
    figures: dict[str, Any] = {
        "head": method.settings["head"],
        "images": len(rows),
        "tokens": len(arrays["targets"]),
        "scored_tokens": len(known),
        "draws": draws,
        "target_std": deviation,
    }
    for name, of in scores.items():
        figures[name] = None
        if of is not None:
            by_image = of.double().reshape(len(rows), scored).mean(1).cpu().numpy()
            figures[name] = asdict(metrics.bootstrap_interval(by_image, n_bootstrap=n_bootstrap, seed=seed))
    ours, ignorant = (figures[name]["value"] for name in ("energy_score", "energy_score_marginal"))
    figures["energy_skill"] = 1 - ours / ignorant if ignorant > 0 else 0.0
    figures |= _internals(arrays)
    drawn: dict[str, Any] = {name: x.float().cpu().numpy() for name, x in arrays.items()}
    shown = slice(0, _MASKED)
    drawn["masks"] = {
        "images": pixels[shown].cpu().numpy(),
        "context": context[shown].numpy(),
        "targets": hidden[shown].numpy(),
        "patch": method.preprocess.size // method.masks.grid,
    }
    return figures, drawn


def target_std(method: Any, images: Tensor) -> float:
    """Return the standard deviation over images (N, C, H, W) of the teacher's tokens, a mean over the rest.

    With layer-normed tokens it is at most 1; 0 is a teacher that says the same of every image.
    """
    with evaluating(method):
        tokens = torch.cat(
            [method.targets(method.preprocess(x.to(method.device))) for x in torch.split(images, _BATCH)]
        )
    return float(tokens.std(0, correction=0).mean())


def _tokens(
    method: Any, pixels: Tensor, context: Tensor, hidden: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Context vectors (N, P, C) and targets (N, P, D) of the chosen hidden tokens (N, P); the target_std."""
    vectors, targets, everything = [], [], []
    for part in torch.split(torch.arange(len(pixels)), _BATCH):
        images = method.preprocess(pixels[part].to(method.device))
        masks = context[part].to(method.device), hidden[part].to(method.device)
        tokens = method.targets(images)
        everything.append(tokens)
        picked = chosen[part].to(method.device).unsqueeze(-1)
        code = method.contexts(images, *masks).flatten(1, 2)
        vectors.append(code.gather(1, picked.expand(-1, -1, code.shape[-1])))
        patch = masks[1].flatten(1).unsqueeze(-1).gather(1, picked)
        targets.append(tokens.gather(1, patch.expand(-1, -1, tokens.shape[-1])))
    spread = float(torch.cat(everything).std(0, correction=0).mean())
    return torch.cat(vectors), torch.cat(targets), spread


def _pictured(method: Any, vectors: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """A draw for every token, and what the head's own parameters say."""
    prediction = method.head(vectors)
    arrays = {"targets": targets, "samples": prediction.sample((1,))[0]}
    if isinstance(prediction, MixturePrediction):
        weights, means, scales = prediction.mixture
        arrays |= {
            "weights": weights,
            "entropy": prediction.entropy_of_weights,
            "components": means[:_COMPONENTS],
            "component_weights": weights[:_COMPONENTS],
            "sigma": _thinned(scales),
        }
    if isinstance(prediction, GaussianPrediction):
        arrays["sigma"] = _thinned(prediction.stddev)
    if isinstance(prediction, FlowPrediction):
        arrays["log_det"] = prediction.log_abs_det(targets) / targets.shape[-1]
    return arrays


def _thinned(scales: Tensor) -> Tensor:
    values = scales.flatten()
    return values[:: max(1, len(values) // _SCALES)]


def _scores(
    method: Any, vectors: Tensor, targets: Tensor, draws: int
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Means (P, D) of the predictions of targets (P, D), and their scores (P,)."""
    prediction = method.head(vectors)
    samples = prediction.sample((draws,))
    density = if_there(lambda: prediction.log_prob(targets))
    mean = prediction.mean
    return mean, {
        "nll_per_dimension": None if density is None else -density / targets.shape[-1],
        "energy_score": metrics.energy_score(samples, targets),
        "cosine": F.cosine_similarity(mean.double(), targets.double(), dim=-1),
        "spread": samples.double().var(0).mean(-1).sqrt(),
    }


def _marginal(
    targets: Tensor, everything: Tensor, draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The scores (P,) of predictions that ignore the context.

    Draws are other images' targets (N, P, D); the diagonal Gaussian has the moments of all targets.
    """
    count, each, dim = targets.shape
    # a shift by 1…N − 1 images never lands on the own
    shifts = torch.randint(1, count, (draws, count, each), generator=generator)
    image = (torch.arange(count).unsqueeze(1) + shifts) % count
    token = torch.randint(each, (draws, count, each), generator=generator)
    others = targets[image.to(targets.device), token.to(targets.device)].reshape(draws, -1, dim)
    flat = targets.reshape(-1, dim).double()
    mean, scale = everything.double().mean(0), everything.double().std(0, correction=0).clamp_min(1e-6)
    return {
        "energy_score_marginal": metrics.energy_score(others, flat),
        "nll_marginal": -gaussian_log_density(flat, mean, scale).mean(-1),
    }


def _internals(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    """Figures of the head's own parameters."""
    found: dict[str, Any] = {}
    if "weights" in arrays:
        weights = arrays["weights"].double()
        found["mixture"] = {
            "components": weights.shape[1],
            "entropy": float(arrays["entropy"].double().mean()),
            "effective_components": float(arrays["entropy"].double().exp().mean()),
            # how many are in use over all tokens, whoever uses them
            "effective_components_overall": float(torch.special.entr(weights.mean(0)).sum().exp()),
            "weights": weights.mean(0).tolist(),
            "largest_weight": float(weights.amax(1).mean()),
        }
    for name in ("sigma", "log_det"):
        if name in arrays:
            values = arrays[name].double().cpu().numpy()
            shares = (0.05, 0.25, 0.5, 0.75, 0.95)
            found[name] = {
                "mean": float(values.mean()),
                "quantiles": {f"{share:g}": float(np.quantile(values, share)) for share in shares},
            }
    return found
