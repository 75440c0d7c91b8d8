"""Maps: points of an embedding in two or three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from probjepa._arrays import as_array, is_labelled
from probjepa.plots.style import CLASS_COLOURS, MUTED, PAPER, RULE, Array, Axis, finite_rows, label, nothing

#: colours of targets and of samples, drawn as pixels: they do not follow the page, and read on light and dark
TARGET, SAMPLE = CLASS_COLOURS[0], CLASS_COLOURS[6]
_PLASMA = colormaps["plasma"]
_DENSITY = ListedColormap(_PLASMA(np.linspace(0.12, 0.85, 256)))
# the ends of the colour map are too close to white and to black to be seen on both pages
_TYPICALITY = ListedColormap(_PLASMA(np.linspace(0.83, 0.14, 256)))
_NUMBERS = (int, float, np.number, np.bool_)
_HEXAGONS = 34  # across
Extent = tuple[float, float, float, float]  # left, right, bottom, top


class Plane:
    """The main directions of points (N, D), by PCA: ``Plane(points)(x)`` is (N, 3).

    The sign of each direction is chosen so that its loading of largest magnitude is positive. With fewer than
    three features or points the last coordinates are zero. ``share`` is the part of the variance that the
    first two directions hold.
    """

    def __init__(self, points: ArrayLike) -> None:
        x = np.asarray(points, np.float64)
        self.centre = x.mean(0)
        _, spread, directions = np.linalg.svd(x - self.centre, full_matrices=False)
        directions = directions[:3]
        strongest = np.abs(directions).argmax(1)
        signs = np.sign(directions[np.arange(len(directions)), strongest])
        self.directions = directions * signs[:, None]
        self.share = float((spread[:2] ** 2).sum() / max(float((spread**2).sum()), 1e-300))

    def __call__(self, x: ArrayLike) -> Array:
        """Project x (…, D) to (…, 3)."""
        coords: Array = (np.asarray(x, np.float64) - self.centre) @ self.directions.T
        return np.pad(coords, [(0, 0)] * (coords.ndim - 1) + [(0, 3 - coords.shape[-1])])


def class_map(axis: Axis, coords: ArrayLike, labels: ArrayLike, classes: Sequence[str] | None = None) -> str:
    """Draw points (N, 2) coloured by class, with each class named at its median.

    ``labels`` (N,) index ``classes`` where that is given; −1, None and NaN say that a row has none. More than
    twenty classes are not named.
    """
    xy, kept = finite_rows(coords)
    if not len(xy):
        return nothing(axis, "no finite points")
    given = as_array(labels)[kept]
    values = [x if known else None for x, known in zip(given, is_labelled(given), strict=True)]
    present = sorted({*values} - {None}, key=_place) + [None] * (None in values)
    number = {value: i for i, value in enumerate(present)}
    which = np.array([number[value] for value in values])
    shades = to_rgba_array(CLASS_COLOURS)[which % len(CLASS_COLOURS)]
    axis.scatter(*xy.T, s=_size(xy), c=shades, alpha=0.75, lw=0, rasterized=True)
    _bare(axis)
    named = len(present) <= 2 * len(CLASS_COLOURS)  # more names than that hide the points
    for i, value in enumerate(present if named else ()):
        axis.text(
            *np.median(xy[which == i], axis=0), label(_class_name(value, classes), 16), ha="center",
            va="center", fontsize=10.5, fontweight="bold",
            bbox={"facecolor": PAPER, "edgecolor": RULE, "lw": 0.6, "alpha": 0.82,
                  "boxstyle": "round,pad=0.22"},
        )  # fmt: skip
    return f"{len(xy)} points of {len(present)} class{'es' if len(present) > 1 else ''}"


def _place(value: Any) -> tuple[bool, Any]:
    """Numbers go by their size, then all others by their words."""
    return (False, value) if isinstance(value, _NUMBERS) else (True, str(value))


def _class_name(value: Any, classes: Sequence[str] | None) -> str:
    if value is None:
        return "unlabelled"
    if classes is not None and isinstance(value, _NUMBERS) and 0 <= value < len(classes):
        return classes[int(value)]
    return str(value)


def score_map(axis: Axis, coords: ArrayLike, score: ArrayLike) -> str:
    """Draw points (N, 2) coloured by ``score`` (N,), the least typical on top, with a colour bar.

    A point without a finite score is grey; the colours span the middle 96 % of the scores.
    """
    xy, kept = finite_rows(coords)
    if not len(xy):
        return nothing(axis, "no finite points")
    values = np.asarray(score, np.float64)[kept]
    good = np.isfinite(values)
    axis.scatter(*xy[~good].T, s=_size(xy), c="#8b949e", lw=0, rasterized=True)
    if good.any():
        low, high = np.quantile(values[good], [0.02, 0.98])
        order = np.argsort(-values[good], kind="stable")
        drawn = axis.scatter(
            *xy[good][order].T, s=_size(xy), c=values[good][order], cmap=_TYPICALITY, alpha=0.85, lw=0,
            vmin=low, vmax=high if high > low else low + 1, rasterized=True,
        )  # fmt: skip
        bar = axis.figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.7, aspect=34, pad=0.02)
        bar.outline.set_visible(False)
        bar.solids.set(alpha=1, rasterized=True)
        bar.set_label("less typical  →  more typical", color=MUTED, fontsize=10.5)
    _bare(axis)
    return f"{len(xy)} points"


def points(
    axis: Axis,
    clouds: Mapping[str, Array],
    *,
    colours: Mapping[str, str],
    extent: Extent,
    sizes: Mapping[str, ArrayLike] | None = None,
) -> str:
    """Draw clouds of points, name → (N, ≥ 2), over each other within ``extent``, named below the axes.

    ``sizes`` maps a name to the areas (N,) of its points, in square points.
    """
    for name, coords in clouds.items():
        area = (sizes or {}).get(name, 6)
        axis.scatter(*coords[:, :2].T, s=area, c=colours[name], alpha=0.5, lw=0, rasterized=True)
    axis.set(xlim=extent[:2], ylim=extent[2:])
    _bare(axis)
    marks = [Line2D([], [], marker="o", ls="", ms=6, color=colours[name]) for name in clouds]
    axis.figure.legend(
        marks, [label(name) for name in clouds], loc="outside lower center", ncols=min(len(marks), 4),
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return ", ".join(clouds)


def extent_of(*clouds: Array) -> Extent:
    """Return limits that hold 99.5 % of the points (N, ≥ 2) of every cloud, with a margin."""
    low = np.min([np.quantile(cloud[:, :2], 0.0025, axis=0) for cloud in clouds], axis=0)
    high = np.max([np.quantile(cloud[:, :2], 0.9975, axis=0) for cloud in clouds], axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    left, right = low[0] - margin[0], high[0] + margin[0]
    return float(left), float(right), float(low[1] - margin[1]), float(high[1] + margin[1])


def hexbins(axes: Sequence[Axis], clouds: Mapping[str, Array]) -> str:
    """Draw how many points (N, ≥ 2) of each cloud lie where, an axis a cloud, on one logarithmic scale."""
    extent, most = extent_of(*clouds.values()), peak(*clouds.values())
    left, right, bottom, top = extent
    for axis, (name, coords) in zip(axes, clouds.items(), strict=True):
        x, y = coords[:, 0], coords[:, 1]
        inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
        axis.hexbin(
            x[inside], y[inside], gridsize=_HEXAGONS, extent=extent, mincnt=1, bins="log", cmap=_DENSITY,
            lw=0.1, vmin=1, vmax=max(most, 2), rasterized=True,
        )  # fmt: skip
        axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], title=label(name, 40))
        axis.grid(False)
        axis.spines[:].set_visible(True)
    return ", ".join(clouds)


def peak(*clouds: Array) -> float:
    """Return about how many points the fullest hexagon holds, by a square grid as fine."""
    box = np.reshape(extent_of(*clouds), (2, 2))
    return max(float(np.histogram2d(c[:, 0], c[:, 1], bins=_HEXAGONS, range=box)[0].max()) for c in clouds)


def cloud(axis: Axis, targets: Array, samples: Array) -> str:
    """Draw two clouds of points (N, 3) on axes with ``projection="3d"``, the samples over the targets."""
    for coords, colour in ((targets, TARGET), (samples, SAMPLE)):
        axis.scatter(*coords.T, s=3, c=colour, alpha=0.35, lw=0, depthshade=False, rasterized=True)
    low, high = np.quantile(np.concatenate([targets, samples]), [0.0025, 0.9975], axis=0)
    for name, a, b in zip("xyz", low, high, strict=True):
        getattr(axis, f"set_{name}lim")(a, max(b, a + 1e-6))
        side = getattr(axis, f"{name}axis")
        side.set_pane_color((0, 0, 0, 0))
        side.line.set_color(MUTED)
        side.set_ticklabels([])
        side._axinfo["grid"].update(color=RULE, linewidth=0.6)
        side._axinfo["tick"].update(inward_factor=0, outward_factor=0)
    axis.set_box_aspect((1, 1, 0.85), zoom=1.15)
    axis.view_init(elev=22, azim=-58)
    return f"{len(targets)} targets and {len(samples)} samples"


def _size(xy: Array) -> float:
    return float(np.clip(7000 / len(xy), 3, 28))


def _bare(axis: Axis) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
