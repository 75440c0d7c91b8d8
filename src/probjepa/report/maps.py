"""Maps of embeddings in two dimensions, as `Figure`: by class and by score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba_array
from numpy.typing import ArrayLike, NDArray

from probjepa.report.page import Figure
from probjepa.report.style import (
    CLASS_COLOURS,
    HALF,
    MUTED,
    PAPER,
    RULE,
    canvas,
    empty,
    finish,
    label,
    styled,
)

Array = NDArray[np.float64]


def pca_map(embeddings: ArrayLike) -> Array:
    """Return the first two principal coordinates (N, 2) of embeddings (N, D), with signs fixed.

    The sign of each direction is chosen so that its loading of largest magnitude is positive; with one
    feature or one row the missing coordinate is zero.
    """
    x = np.asarray(embeddings, np.float64)
    x = x - x.mean(0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    directions = directions[:2]
    strongest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), strongest])[:, None]
    coords = x @ directions.T
    return np.pad(coords, ((0, 0), (0, 2 - coords.shape[1])))


@styled
def class_map(coords: ArrayLike, labels: ArrayLike, classes: Sequence[str] | None = None) -> Figure:
    """Return a scatter of points (N, 2) coloured by class, with each class named at its median.

    ``labels`` (N,) index ``classes`` where that is given. More than twenty classes are not named.
    """
    xy, kept = _finite_points(coords)
    if not len(xy):
        return empty("Map by class", "no finite points")
    present, which = np.unique(np.asarray(labels)[kept], return_inverse=True)
    figure, axis = _map_axis(f"{len(present)} class{'es' if len(present) > 1 else ''}")
    shades = to_rgba_array(CLASS_COLOURS)[which % len(CLASS_COLOURS)]
    axis.scatter(*xy.T, s=_size(xy), c=shades, alpha=0.75, lw=0, rasterized=True)
    caption = "Each point is a held-out image, coloured by its class."
    if len(present) <= 2 * len(CLASS_COLOURS):  # more names than that hide the points
        caption = "Each point is a held-out image, coloured by its class, whose name stands at its median."
        for i, value in enumerate(present):
            known = classes is not None and 0 <= int(value) < len(classes)
            name = classes[int(value)] if known and classes is not None else value
            axis.text(
                *np.median(xy[which == i], axis=0), label(name, 16), ha="center", va="center", fontsize=10.5,
                fontweight="bold", bbox={"facecolor": PAPER, "edgecolor": RULE, "lw": 0.6, "alpha": 0.82,
                                         "boxstyle": "round,pad=0.22"},
            )  # fmt: skip
    return finish(figure, caption, f"Map of {len(xy)} embeddings by class", "half")


@styled
def score_map(coords: ArrayLike, score: ArrayLike) -> Figure:
    """Return a scatter of points (N, 2) coloured by ``score`` (N,), the least typical on top.

    A point without a finite score is grey; the colours span the middle 96 % of the scores.
    """
    xy, kept = _finite_points(coords)
    if not len(xy):
        return empty("Map by score", "no finite points")
    values = np.asarray(score, np.float64)[kept]
    good = np.isfinite(values)
    figure, axis = _map_axis("Score")
    axis.scatter(*xy[~good].T, s=_size(xy), c="#8b949e", lw=0, rasterized=True)
    if good.any():
        low, high = np.quantile(values[good], [0.02, 0.98])
        # the ends of the colour map are too close to white and to black to be seen on both pages
        shades = ListedColormap(colormaps["plasma"](np.linspace(0.83, 0.14, 256)))
        order = np.argsort(-values[good], kind="stable")
        drawn = axis.scatter(
            *xy[good][order].T, s=_size(xy), c=values[good][order], cmap=shades, alpha=0.85, lw=0,
            vmin=low, vmax=high if high > low else low + 1, rasterized=True,
        )  # fmt: skip
        bar = figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.7, aspect=34, pad=0.02)
        bar.outline.set_visible(False)
        bar.solids.set(alpha=1, rasterized=True)
        bar.set_label("less typical  →  more typical", color=MUTED, fontsize=10.5)
    return finish(
        figure,
        "Each point is a held-out image, coloured by its score; the least typical are drawn on top.",
        f"Map of {len(xy)} embeddings by score",
        "half",
    )


def _finite_points(coords: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """The points (N, 2) that are finite, and the mask that picked them."""
    xy = np.asarray(coords, np.float64).reshape(-1, 2)
    kept = np.asarray(np.isfinite(xy).all(axis=1))
    return xy[kept], kept


def _size(xy: Array) -> float:
    return float(np.clip(7000 / len(xy), 3, 28))


def _map_axis(title: str) -> tuple[Any, Any]:
    figure = canvas(HALF, 430)
    axis = figure.subplots()
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure, axis
