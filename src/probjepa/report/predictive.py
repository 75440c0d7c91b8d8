"""The section on a predictive head: its figures, samples beside targets, masks, mixtures and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from numpy.typing import ArrayLike, NDArray

from probjepa.report.page import Figure, Gallery, Section, Table, Value
from probjepa.report.style import (
    CLASS_COLOURS,
    FULL,
    HALF,
    MUTED,
    RULE,
    canvas,
    finish,
    label,
    palette,
    styled,
)

Array = NDArray[np.float64]

# drawn as pixels, so they do not follow the page: both read on white and on near-black
TARGET, SAMPLE = CLASS_COLOURS[0], CLASS_COLOURS[6]
_CONTEXT, _HIDDEN, _SHARE = (0, 158, 82), (214, 39, 40), 0.45
_DENSITY = ListedColormap(colormaps["plasma"](np.linspace(0.12, 0.85, 256)))
_BINS = 34  # hexagons across
(_BLUE,) = palette("a").values()
_SCORES = {
    "nll_per_dimension": "negative log-likelihood, nats a dimension ↓",
    "nll_marginal": "… of a diagonal Gaussian of all targets",
    "energy_score": "energy score ↓",
    "energy_score_marginal": "… of draws of other images' targets",
    "cosine": "cosine of the mean to the target ↑",
    "spread": "spread of the draws (√ of the mean variance)",
}


class Plane:
    """The main directions of the targets (N, D), by PCA: ``Plane(targets)(x)`` is (N, 3).

    Signs are fixed as in ``maps.pca_map``; with fewer than three features the last coordinates are zero.
    """

    def __init__(self, targets: ArrayLike) -> None:
        x = np.asarray(targets, np.float64)
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
        plane = Plane(arrays["targets"])
        targets, samples = plane(arrays["targets"]), plane(arrays["samples"])
        items += [hexbins(targets, samples), cloud(targets, samples), parts_map(plane, arrays)]
        masks = arrays["masks"]
        drawn = mask_overlay(masks["images"], masks["context"], masks["targets"], masks["patch"])
        items.append(Gallery(drawn, [""] * len(drawn), "Masks: context green, targets red"))
        items += _histograms(figures, arrays)
    items.append(_table(figures))
    return Section("Predictions of hidden tokens", _text(figures), items)


def _text(figures: Mapping[str, Any]) -> str:
    skill = figures["energy_skill"]
    gain = f"{100 * skill:.0f} %" if skill > 0 else "no"
    text = (
        f"From the context, the {figures['head'] or 'own'} head predicts the teacher's tokens of hidden "
        f"patches. By the energy score, a proper one, that is {gain} better than drawing other images' tokens"
    )
    mixture = figures.get("mixture")
    if mixture:
        text += (
            f"; a token's mixture uses {mixture['effective_components']:.1f} of its {mixture['components']} "
            "components"
        )
    std = figures["target_std"]
    text += f". The targets' standard deviation over images is {std:.2f}"
    if std < 0.05:
        return text + ": the teacher has collapsed, and its tokens are easy to predict for that reason."
    return text + " (at 0 the teacher would have collapsed)."


def _table(figures: Mapping[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for key, name in _SCORES.items():
        of = figures.get(key)
        rows.append([name, None if of is None else Value(of["value"], of["low"], of["high"])])
    rows.append(["skill: 1 − energy score / that of other images' targets ↑", figures["energy_skill"]])
    rows.append(["targets' standard deviation over images", figures["target_std"]])
    mixture = figures.get("mixture")
    if mixture:
        rows.append(["entropy of the mixture's weights, nats", mixture["entropy"]])
        rows.append(["effective components, of a token", mixture["effective_components"]])
        rows.append(["effective components, over all tokens", mixture["effective_components_overall"]])
    for key, name in (("sigma", "σ"), ("log_det", "log-determinant a dimension")):
        if key in figures:
            q = figures[key]["quantiles"]
            rows.append(
                [f"{name}, median (5 % to 95 %)", f"{q['0.5']:.3g} ({q['0.05']:.3g} to {q['0.95']:.3g})"]
            )
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
    x = np.repeat(x, 3, 1) if x.shape[1] == 1 else x[:, :3].copy()
    across = x.shape[-1] // patch
    for picture, seen, hidden in zip(x, np.asarray(context), np.asarray(targets), strict=True):
        for patches, colour in ((seen, _CONTEXT), (np.unique(hidden), _HIDDEN)):
            for index in patches:
                top, left = (patch * int(i) for i in divmod(int(index), across))
                area = picture[:, top : top + patch, left : left + patch]
                area *= 1 - _SHARE
                area += _SHARE * np.array(colour, np.float64)[:, None, None]
    return np.round(x).astype(np.uint8)


def extent_of(*clouds: Array) -> tuple[float, float, float, float]:
    """Limits that hold 99.5 % of the points of every cloud, with a margin."""
    low = np.min([np.quantile(cloud[:, :2], 0.0025, axis=0) for cloud in clouds], axis=0)
    high = np.max([np.quantile(cloud[:, :2], 0.9975, axis=0) for cloud in clouds], axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    left, right = low[0] - margin[0], high[0] + margin[0]
    return float(left), float(right), float(low[1] - margin[1]), float(high[1] + margin[1])


def draw_hexbin(axis: Any, coords: Array, extent: tuple[float, float, float, float], most: float) -> None:
    """Draw how many points (N, ≥ 2) lie where, up to ``most`` a hexagon, on a logarithmic scale."""
    inside = (coords[:, 0] >= extent[0]) & (coords[:, 0] <= extent[1])
    inside &= (coords[:, 1] >= extent[2]) & (coords[:, 1] <= extent[3])
    axis.hexbin(
        *coords[inside, :2].T, gridsize=_BINS, extent=extent, mincnt=1, bins="log", cmap=_DENSITY, lw=0.1,
        vmin=1, vmax=max(most, 2), rasterized=True,
    )  # fmt: skip
    axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(True)


def draw_cloud(axis: Any, targets: Array, samples: Array) -> None:
    """Draw two clouds of points (N, 3) on 3-D axes, the samples over the targets."""
    for coords, colour in ((targets, TARGET), (samples, SAMPLE)):
        axis.scatter(*coords.T, s=3, c=colour, alpha=0.35, lw=0, depthshade=False, rasterized=True)
    both = np.concatenate([targets, samples])
    low, high = np.quantile(both, [0.0025, 0.9975], axis=0)
    for name, a, b in zip("xyz", low, high, strict=True):
        b = max(b, a + 1e-6)
        getattr(axis, f"set_{name}lim")(a, b)
        side = getattr(axis, f"{name}axis")
        side.set_pane_color((0, 0, 0, 0))
        side.line.set_color(MUTED)
        side.set_ticklabels([])
        side._axinfo["grid"].update(color=RULE, linewidth=0.6)
        side._axinfo["tick"].update(inward_factor=0, outward_factor=0)
    axis.set_box_aspect((1, 1, 0.85), zoom=1.15)
    axis.view_init(elev=22, azim=-58)


def peak(*clouds: Array) -> float:
    """About how many points the fullest hexagon holds, by a square grid as fine."""
    extent = extent_of(*clouds)
    box = np.reshape(extent, (2, 2))
    return max(float(np.histogram2d(c[:, 0], c[:, 1], bins=_BINS, range=box)[0].max()) for c in clouds)


@styled
def hexbins(targets: Array, samples: Array) -> Figure:
    """Return where targets and samples (N, ≥ 2) lie in the plane, side by side on one scale."""
    figure = canvas(FULL, 390)
    extent, most = extent_of(targets, samples), peak(targets, samples)
    for axis, title, coords in zip(
        figure.subplots(1, 2), ("Targets", "Samples"), (targets, samples), strict=True
    ):
        draw_hexbin(axis, coords, extent, most)
        axis.set_title(f"{title} ({len(coords):,})")
    return finish(
        figure,
        "Hidden tokens in the plane of the targets' two main directions (PCA), and one sample of each "
        "prediction. Brighter: more of them, on a logarithmic scale.",
        f"Density of {len(targets)} targets and of as many samples in the plane of the targets",
    )


@styled
def cloud(targets: Array, samples: Array) -> Figure:
    """Return targets and samples (N, 3) in the space of the targets' three main directions."""
    figure = canvas(HALF, 390)
    draw_cloud(figure.add_subplot(projection="3d"), targets, samples)
    _legend(figure, {"targets": TARGET, "samples": SAMPLE})
    return finish(
        figure,
        "The same points along three main directions.",
        f"{len(targets)} targets and as many samples in three dimensions",
        "half",
    )


@styled
def parts_map(plane: Plane, arrays: Mapping[str, Any]) -> Figure:
    """Return targets, samples, and the means of the predictions or of a mixture's components."""
    figure = canvas(HALF, 390)
    axis = figure.subplots()
    targets, samples = plane(arrays["targets"]), plane(arrays["samples"])
    names = {"targets": TARGET, "samples": SAMPLE}
    for coords, colour in ((targets, TARGET), (samples, SAMPLE)):
        axis.scatter(*coords[:1024, :2].T, s=5, c=colour, alpha=0.4, lw=0, rasterized=True)
    if "components" in arrays:
        means = plane(arrays["components"])
        # a component that carries no weight says nothing of the prediction
        sizes = 40 * np.asarray(arrays["component_weights"], np.float64)
        what = "component means, sized by their weights"
        for k in range(means.shape[1]):
            colour = CLASS_COLOURS[(2, 4, 1, 9, 7, 5)[k % 6]]
            axis.scatter(*means[:, k, :2].T, s=sizes[:, k], c=colour, alpha=0.8, lw=0, rasterized=True)
            names[f"component {k + 1}"] = colour
    else:
        what = "means of the predictions"
        axis.scatter(
            *plane(arrays["means"])[:, :2].T, s=7, c=CLASS_COLOURS[2], alpha=0.8, lw=0, rasterized=True
        )
        names["means"] = CLASS_COLOURS[2]
    extent = extent_of(targets, samples)
    axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axis.grid(False)
    _legend(figure, names)
    return finish(
        figure, f"Targets, samples and {what}, in the same plane.", f"Targets, samples and {what}", "half"
    )


def _legend(figure: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="o", ls="", ms=6, color=colour) for colour in colours.values()]
    names = [label(name) for name in colours]
    columns = min(len(marks), 4)
    figure.legend(
        marks, names, loc="outside lower center", ncols=columns, frameon=False, handletextpad=0.2,
        columnspacing=1.2, fontsize=10.5,
    )  # fmt: skip


def _histograms(figures: Mapping[str, Any], arrays: Mapping[str, Any]) -> list[Figure]:
    items = []
    if "entropy" in arrays:
        count = figures["mixture"]["components"]
        items.append(
            histogram(
                "Entropy of the mixture's weights", "nats", arrays["entropy"], (0, float(np.log(count))),
                f"Over hidden tokens, from 0 (one component) to log {count} (all alike).",
            )
        )  # fmt: skip
        items.append(weights_figure(arrays["weights"]))
    if "sigma" in arrays:
        items.append(
            histogram(
                "Predicted σ", "σ", arrays["sigma"], None, "Of single coordinates; the targets' is about 1."
            )
        )
    if "log_det" in arrays:
        items.append(
            histogram(
                "Log-determinant of the flow", "nats a dimension", arrays["log_det"], None,
                "log|det ∂z/∂y|/D at the targets: high where the flow expects them closely.",
            )
        )  # fmt: skip
    return items


@styled
def histogram(
    title: str, unit: str, values: ArrayLike, limits: tuple[float, float] | None, caption: str
) -> Figure:
    """Return a histogram of values over ``limits``, or over the middle 99.8 % of them."""
    x = np.asarray(values, np.float64).ravel()
    low, high = limits or tuple(np.quantile(x, [0.001, 0.999]))
    figure = canvas(HALF, 230)
    axis = figure.subplots()
    reach = (low, high) if high > low else (low - 0.5, low + 0.5)
    axis.hist(x, bins=40, range=reach, weights=np.full(len(x), 100 / len(x)), color=_BLUE)
    axis.axvline(float(np.median(x)), color=MUTED, lw=1.2, ls="--")
    axis.set(title=title, xlabel=unit, ylabel="%", xlim=reach)
    return finish(
        figure, f"{caption} Dashed: the median.", f"{title}: median {np.median(x):.3g} {unit}", "half"
    )


@styled
def weights_figure(weights: ArrayLike) -> Figure:
    """Return the mean weight (T, K) of each component of a mixture, and its spread over tokens."""
    w = np.asarray(weights, np.float64)
    figure = canvas(HALF, 230)
    axis = figure.subplots()
    at = np.arange(w.shape[1])
    low, high = np.quantile(w, [0.1, 0.9], axis=0)
    axis.bar(at, w.mean(0), color=_BLUE, width=0.62)
    axis.vlines(at, low, high, color=MUTED, lw=2)
    axis.set(title="Weights of the components", xlabel="component", xticks=at, ylim=(0, 1.02))
    axis.set_xticklabels([str(k + 1) for k in at])
    means: Sequence[str] = [f"{value:.2f}" for value in w.mean(0)]
    return finish(
        figure,
        "Bars: mean over hidden tokens; lines: the middle 80 %. A component near 0 everywhere is dead.",
        f"Mean weights of the components: {', '.join(means)}",
        "half",
    )
