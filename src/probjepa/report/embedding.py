"""Single images and the space they are embedded in: typical ones, maps, variances, the classes' geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probjepa import plots
from probjepa.evaluation.decisions import TEST
from probjepa.plots.style import INK, MUTED, finite_rows, number
from probjepa.report.figures import left_out, picture
from probjepa.report.page import Gallery, Section, Table, Value
from probjepa.report.sections import named

_TILES, _POINTS = 20, 4000  # images in a gallery, points on the map: more of either is not looked at
# sign of the correlation with the margin that arXiv 2602.05639 reports
_EXPECTED = {"mean_variance": -1, "nll": -1, "kl": 1, "anisotropy": 1}
_TRENDS = {-1: "falls", 1: "rises", 0: "unclear"}


def typical_section(
    arrays: Mapping[str, Any], scores: Mapping[str, Any], score: str, test: str
) -> Section | None:
    """Return the images of every set by their ``scores`` (set → (N,)), or None where there are none."""
    items = []

    def add(title: str, images: Any, key: str, count: int, *, best: bool) -> None:
        values = np.ravel(scores.get(key, ()))
        if images is None or not len(images) or len(values) != len(images):
            return
        order = np.argsort(values, kind="stable")
        order = order[np.isfinite(values[order])]
        shown = (order[::-1] if best else order)[:count]
        captions = [number(values[i], "#.4g").removesuffix(".") for i in shown]
        items.append(Gallery(pixels(images, shown), captions, title))

    add(f"Most typical of {test}", arrays.get("images"), TEST, _TILES, best=True)
    add(f"Least typical of {test}", arrays.get("images"), TEST, _TILES, best=False)
    for name, images in (arrays.get("ood_images") or {}).items():
        add(f"Most typical of {name}: the hardest to tell apart", images, name, _TILES // 2, best=True)
    text = (
        f"Images sorted by the {score} score, which stands under each. If the score means something, the "
        f"least typical images look unusual, and the images of other sets that score highest resemble {test}."
    )
    return Section("Typical and unusual", text, items) if items else None


def pixels(images: Any, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return some images, uint8 (n, C, H, W), of an array or of an ``Images``, which reads these alone."""
    if hasattr(images, "get"):
        return np.asarray(images.get(rows.copy()).cpu())
    return np.asarray(images)[rows]


def has_rows(x: Any) -> bool:
    """Return whether ``x`` is a matrix with something in it."""
    return x is not None and np.ndim(x) == 2 and np.size(x) > 0


def map_section(arrays: Mapping[str, Any], score: Any) -> Section | None:
    """Return the embeddings in two dimensions, by label and by ``score`` (N,), or None without either."""
    if not has_rows(arrays.get("embeddings")):
        return None
    embeddings = np.asarray(arrays["embeddings"], np.float64)
    keep = np.flatnonzero(finite_rows(embeddings)[1])
    if len(keep) < 3:  # two points have one direction, and one has none
        return None
    if len(keep) > _POINTS:
        keep = np.sort(np.random.default_rng(0).choice(keep, _POINTS, replace=False))
    plane = plots.Plane(embeddings[keep])
    coords = plane(embeddings[keep])[:, :2]
    labels, classes = arrays.get("labels"), arrays.get("classes")
    items = []
    if labels is not None and len(labels) == len(embeddings):
        items.append(
            picture(
                "Class",
                lambda axis: plots.class_map(axis, coords, np.asarray(labels)[keep], classes),
                "Each point is a held-out image, coloured by its class; where there are up to twenty, each "
                "is named at its median.",
                width="half",
                height=430,
            )
        )
    if score is not None and len(score) == len(embeddings):
        items.append(
            picture(
                "Score",
                lambda axis: plots.score_map(axis, coords, np.asarray(score)[keep]),
                "Each point is a held-out image, coloured by its score; the least typical are drawn on top.",
                width="half",
                height=430,
            )
        )
    text = (
        f"The two main directions of the embedding (PCA), which hold {100 * plane.share:.0f} % of its "
        "variance. Classes that form separate clouds here are separate in the whole space; clouds that "
        "overlap here may still be apart in other directions."
    )
    return Section("Map", text, items) if items else None


def variance_section(arrays: Mapping[str, Any]) -> Section | None:
    """Return the posterior variance σ² (N, D) by feature and by input, or None where there is none."""
    if not has_rows(arrays.get("variance")):
        return None
    variance = np.asarray(arrays["variance"], np.float64)
    kept, _ = finite_rows(variance)
    spectrum = picture(
        "σ² by feature",
        lambda axis: plots.variance_spectrum(axis, variance),
        "Mean over the inputs, sorted; the band holds the middle 80 % of them. A feature on the dashed line, "
        "the prior's variance, says nothing about the input; one far below it is well determined."
        + left_out(variance),
        width="half",
        xlabel="feature, from the most to the least uncertain",
    )
    by_input = picture(
        "σ² by input",
        lambda axis: plots.histogram(axis, kept.mean(1)),
        "Share of the inputs by their mean posterior variance. Dashed: the median. The wider, the more the "
        "uncertainty differs between inputs; the outermost bins hold what lies beyond.",
        width="half",
        xlabel="mean σ² over the features",
    )
    text = "How much the model leaves open about each image, beside the variance of 1 that the prior has."
    return Section("Posterior variance", text, [spectrum, by_input])


def geometry_section(result: Mapping[str, Any]) -> Section | None:
    """Return how each measure goes with margin and radius, or None where nothing was correlated.

    ``result`` is what ``metrics.uncertainty_geometry`` returns. The measures that arXiv 2602.05639 correlates
    are known as ``mean_variance``, ``nll``, ``kl`` and ``anisotropy``; others are shown without expectation.
    """
    spearman = result.get("spearman") or {}
    if not spearman:
        return None
    margin, radius = (
        {named(name): Value.of(of.get(what)) for name, of in spearman.items()}
        for what in ("margin", "radius")
    )
    expected = {named(name): sign for name, sign in _EXPECTED.items()}
    tertiles = {named(name): means for name, means in (result.get("tertiles") or {}).items()}
    negative = Value.of((result.get("margin") or {}).get("negative"), percent=True)
    rows = [
        [
            name,
            _TRENDS[expected[name]] if name in expected else None,
            _TRENDS[1 if rho.low > 0 else -1 if rho.high < 0 else 0],
            rho,
            radius[name],
            *(tertiles.get(name) or (None, None, None)),
        ]
        for name, rho in margin.items()
    ]
    table = Table(
        (
            "measure",
            "expected",
            "found",
            "ρ with margin",
            "ρ with radius",
            "low margin",
            "middle",
            "high margin",
        ),
        rows,
        "What each measure does as the margin grows: in the paper, and here by the sign of ρ where its "
        "interval leaves out 0. ρ is Spearman's, with its 95 % interval; the last columns are the measure's "
        "means over the thirds of the inputs with the lowest, the middle and the highest margin. The margin "
        f"is negative for {negative.text} % of the inputs.",
    )
    dots = picture(
        "Correlation with the margin",
        lambda axes: _correlations(axes, margin, radius, expected),
        "Dots: rank correlation over the images; pale bars: 95 % intervals. Grey: the side on which the "
        "paper finds the measure.",
        height=76 + 30 * len(margin),
        panels=2,
        xlabel="Spearman's ρ",
    )
    text = (
        f"An image's margin is its distance to the nearest other of {result['classes']} class centroids less "
        "that to its own; its radius is the distance to its own."
    )
    return Section("Uncertainty and the classes", text, [dots, table])


def _correlations(
    axes: Any, margin: Mapping[str, Value], radius: Mapping[str, Value], expected: Mapping[str, int]
) -> str:
    known = [abs(x) for v in (*margin.values(), *radius.values()) for x in (v.value, v.low, v.high)]
    reach = max(0.1, 1.08 * max((x for x in known if math.isfinite(x)), default=0.0))
    for at, name in enumerate(margin):
        side = [0, expected.get(name, 0) * reach]
        axes[0].fill_between(side, at - 0.4, at + 0.4, color=MUTED, alpha=0.14, lw=0)
    for axis, title, by in zip(axes, ("margin", "radius"), (margin, radius), strict=True):
        rows = {name: (v.value, v.low, v.high) for name, v in by.items()}
        plots.dots(axis, rows, name_limit=28)
        axis.axvline(0, color=INK, lw=1)
        axis.set(xlim=(-reach, reach), title=f"Correlation with the {title}")
    return ", ".join(f"{name} {rho.text}" for name, rho in margin.items())
