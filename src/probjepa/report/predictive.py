"""The section on a predictive head: its figures, samples beside targets, masks, mixtures and scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probjepa import plots
from probjepa.plots.maps import SAMPLE, TARGET, extent_of
from probjepa.plots.style import CLASS_COLOURS, Array
from probjepa.report.figures import picture
from probjepa.report.page import Figure, Gallery, Section, Table, Value

_CONTEXT, _HIDDEN, _SHARE = (0, 158, 82), (214, 39, 40), 0.45  # tints of a mask, and how strong they are
_LEAST_STD = 0.05
_FIGURES = {
    "nll_per_dimension": "negative log-likelihood, nats a dimension ↓",
    "nll_marginal": "… of a diagonal Gaussian of all targets",
    "energy_score": "energy score ↓",
    "energy_score_marginal": "… of draws of other images' targets",
    "cosine": "cosine of the mean to the target ↑",
    "spread": "spread of the draws (√ of the mean variance)",
    "energy_skill": "skill: 1 − energy score / that of other images' targets ↑",
    "target_std": "targets' standard deviation over images",
}
_MIXTURE = {
    "entropy": "entropy of the mixture's weights, nats",
    "effective_components": "effective components, of a token",
    "effective_components_overall": "effective components, over all tokens",
}


def predictive_section(
    figures: Mapping[str, Any] | None, arrays: Mapping[str, Any] | None = None
) -> Section | None:
    """Return what a head predicts of hidden tokens, or None where nothing was measured.

    ``figures`` and ``arrays`` are what ``evaluation.predictive.evaluate_predictions`` returns.
    """
    if not figures:
        return None
    items: list[Figure | Table | Gallery] = []
    if arrays is not None:
        masks = arrays["masks"]
        drawn = mask_overlay(masks["images"], masks["context"], masks["targets"], masks["patch"])
        items += _clouds(arrays)
        items.append(Gallery(drawn, [""] * len(drawn), "Masks: context green, targets red"))
        items += _histograms(arrays)
    items.append(_table(figures))
    text = (
        f"From the context, the {figures['head'] or 'own'} head predicts the teacher's tokens of hidden "
        "patches. The energy score is a proper one; its skill is 0 for draws of other images' tokens, and 1 "
        "at best. The targets' standard deviation over images is 0 where the teacher has become constant."
    )
    if figures["target_std"] < _LEAST_STD:
        text += (
            f" Here it is {figures['target_std']:.2g}: the teacher has collapsed, and its tokens are easy to "
            "predict for that reason."
        )
    return Section("Predictions of hidden tokens", text, items)


def _table(figures: Mapping[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for of, names in ((figures, _FIGURES), (figures.get("mixture") or {}, _MIXTURE)):
        for key, name in names.items():
            entry = of.get(key)
            if of and (entry is not None or key.startswith("nll")):
                rows.append([name, Value.of(entry) if isinstance(entry, Mapping) else entry])
    for key, name in (("sigma", "σ"), ("log_det", "log-determinant a dimension")):
        if key in figures:
            low, middle, high = (figures[key]["quantiles"][q] for q in ("0.05", "0.5", "0.95"))
            rows.append([f"{name}, median (5 % to 95 %)", f"{middle:.3g} ({low:.3g} to {high:.3g})"])
    caption = (
        f"Means over {figures['scored_tokens']:,} hidden tokens of {figures['images']:,} images, with 95 % "
        f"intervals (bootstrap over images); {figures['draws']} draws of each token. A figure of two models "
        "compares them only as far as their teachers are alike."
    )
    return Table(["figure", "value"], rows, caption)


def mask_overlay(images: ArrayLike, context: ArrayLike, targets: ArrayLike, patch: int) -> NDArray[np.uint8]:
    """Return images (N, 3, H, W) with their context tinted green and their targets red.

    Parameters
    ----------
    images
        uint8 (N, C, H, W), grey or colour
    context, targets
        indices of patches, (N, Tc) and (N, M, Tt), row by row; a patch in several targets is tinted once, and
        one in neither is as it was
    patch
        side of a patch in pixels
    """
    x = np.asarray(images, np.float64)
    x = np.repeat(x, 3, 1) if x.shape[1] == 1 else x[:, :3]
    count, _, height, width = x.shape
    across = width // patch
    for patches, colour in ((context, _CONTEXT), (targets, _HIDDEN)):
        chosen = np.zeros((count, height // patch * across), bool)
        np.put_along_axis(chosen, np.asarray(patches).reshape(count, -1), True, axis=1)
        area = chosen.reshape(count, 1, -1, across).repeat(patch, 2).repeat(patch, 3)
        x = np.where(area, (1 - _SHARE) * x + _SHARE * np.reshape(colour, (3, 1, 1)), x)
    return np.round(x).astype(np.uint8)


def _clouds(arrays: Mapping[str, Any]) -> list[Figure]:
    """Targets and samples as densities, in space, and with the means of the predictions or components."""
    plane = plots.Plane(arrays["targets"])
    targets, samples = plane(arrays["targets"]), plane(arrays["samples"])
    clouds: dict[str, Array] = {"targets": targets[:1024], "samples": samples[:1024]}
    colours, sizes = {"targets": TARGET, "samples": SAMPLE}, {}
    what = "means of the predictions"
    if "components" in arrays:
        what = "component means, sized by their weights"
        for k in range(arrays["components"].shape[1]):
            name = f"component {k + 1}"
            clouds[name] = plane(arrays["components"][:, k])
            colours[name] = CLASS_COLOURS[(2, 4, 1, 9, 7, 5)[k % 6]]
            # a component that carries no weight says nothing of the prediction
            sizes[name] = 40 * np.asarray(arrays["component_weights"], np.float64)[:, k]
    else:
        clouds["means"], colours["means"] = plane(arrays["means"]), CLASS_COLOURS[2]
    extent = extent_of(targets, samples)
    both = {f"Targets ({len(targets):,})": targets, f"Samples ({len(samples):,})": samples}
    return [
        picture(
            "Densities",
            lambda axes: plots.hexbins(axes, both),
            "Hidden tokens in the plane of the targets' two main directions (PCA), and one sample of each "
            "prediction. Brighter: more of them, on a logarithmic scale.",
            height=390,
            panels=2,
        ),
        picture(
            "Three main directions",
            lambda axis: plots.cloud(axis, targets, samples),
            "The same points: targets blue, samples orange.",
            width="half",
            height=390,
            projection="3d",
        ),
        picture(
            "Parts of the predictions",
            lambda axis: plots.points(axis, clouds, colours=colours, extent=extent, sizes=sizes),
            f"Targets, samples and {what}, in the plane of the densities.",
            width="half",
            height=390,
        ),
    ]


def _histograms(arrays: Mapping[str, Any]) -> list[Figure]:
    items = []
    if "entropy" in arrays:
        weights = np.asarray(arrays["weights"], np.float64)
        count = weights.shape[1]
        caption = f"Over hidden tokens, from 0 (one component) to log {count} (all alike)."
        limits = (0.0, float(np.log(count)))
        items.append(
            _histogram("Entropy of the mixture's weights", "nats", arrays["entropy"], caption, limits)
        )
        low, high = np.quantile(weights, [0.1, 0.9], axis=0)
        means = zip(weights.mean(0), low, high, strict=True)
        rows = {f"component {k + 1}": dot for k, dot in enumerate(means)}
        items.append(
            picture(
                "Weights of the components",
                lambda axis: plots.dots(axis, rows),
                "Dots: mean over hidden tokens; bars: the middle 80 %. A component near 0 is dead.",
                width="half",
                xlim=(0, 1),
            )
        )
    if "sigma" in arrays:
        caption = "Of single coordinates; the targets' is about 1."
        items.append(_histogram("Predicted σ", "σ", arrays["sigma"], caption))
    if "log_det" in arrays:
        caption = "log|det ∂z/∂y|/D at the targets: high where the flow expects them closely."
        items.append(
            _histogram("Log-determinant of the flow", "nats a dimension", arrays["log_det"], caption)
        )
    return items


def _histogram(
    title: str, unit: str, values: ArrayLike, caption: str, limits: tuple[float, float] | None = None
) -> Figure:
    return picture(
        title,
        lambda axis: plots.histogram(axis, values, limits=limits),
        f"{caption} Dashed: the median.",
        width="half",
        xlabel=unit,
    )
