"""Matplotlib figures from plain arrays, each returned as a `Figure` with its caption and text alternative.

Scores are higher for more typical inputs, as everywhere. Values that are not finite are left out, and the
caption says so. A mapping of names to arrays keeps its order, and its first set is the in-distribution one
unless ``colours`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from probjepa.report.page import Figure
from probjepa.report.style import (
    HALF,
    INK,
    MUTED,
    THIRD,
    canvas,
    empty,
    finish,
    label,
    palette,
    styled,
)

Array = NDArray[np.float64]
(_BLUE,) = palette(["in"]).values()
_HIGH = 250  # page units; histograms and the ROC curves beside them


@styled
def score_histograms(
    scores: Mapping[str, ArrayLike], *, name: str = "score", colours: Mapping[str, str] | None = None
) -> Figure:
    """Return one row a set, on shared bins; the first (in-distribution) set is filled and behind every row.

    Parameters
    ----------
    scores
        set name → scores (N,), higher = more typical; the in-distribution set first
    name
        what the score is called
    """
    kept = {key: finite(x) for key, x in scores.items()}
    dropped = sum(np.size(scores[key]) - x.size for key, x in kept.items())
    kept = {key: x for key, x in kept.items() if x.size}
    if not kept:
        return empty(f"Distribution of the {label(name)}", "no finite scores")
    colours = colours or palette(scores)
    low, high = score_limits(list(kept.values()))
    edges = np.linspace(low, high, 51)
    reference, *_ = kept
    # a share rather than a density: sets of different sizes compare, and the height has a plain meaning
    shares = {key: np.histogram(np.clip(x, low, high), edges)[0] / x.size for key, x in kept.items()}
    beyond = {key: float(np.mean((x < low) | (x > high))) for key, x in kept.items()}
    # at least as tall as the ROC beside it
    figure = canvas(HALF, max(_HIGH, 44 + 42 * len(kept)), row_gap=0)
    axes = figure.subplots(len(kept), 1, sharex=True, squeeze=False)[:, 0]
    # one height for all rows; a spike much taller than the reference is cut, not allowed to flatten the rest
    height = 1.08 * min(max(share.max() for share in shares.values()), 2.5 * shares[reference].max())
    for axis, (key, share) in zip(axes, shares.items(), strict=True):
        axis.stairs(shares[reference], edges, fill=True, color=colours[reference], alpha=0.22, lw=0)
        axis.stairs(share, edges, color=colours[key], lw=1.6)
        median = float(np.clip(np.median(kept[key]), low, high))
        axis.plot([median], [0], marker="^", ms=6.5, color=colours[key], clip_on=False, zorder=5)
        axis.set(ylim=(0, height), yticks=[])
        axis.spines["left"].set_visible(False)
        axis.grid(False)
        axis.set_ylabel(
            _two_lines(key), rotation=0, ha="right", va="center", color=colours[key], fontweight="bold"
        )
        if beyond[key] > 0.02:
            text = f"{100 * beyond[key]:.0f} % beyond the axis"
            axis.text(0.4, 0.5, text, transform=axis.transAxes, ha="center", color=MUTED, fontsize=10)
    for axis in axes[:-1]:
        axis.tick_params(length=0)
    axes[-1].set(xlim=(low, high), xlabel=f"{label(name)}  (right: more typical)")
    axes[-1].locator_params(axis="x", nbins=5)  # long numbers run into each other
    caption = f"Share of each set by {name}. Filled, behind every row: {reference}. Triangles: medians."
    if height < max(share.max() for share in shares.values()):
        caption += " Peaks taller than a row are cut."
    if any(beyond.values()):
        caption += " Scores beyond the axis are gathered in its outermost bins."
    caption += _left_out(dropped)
    return finish(figure, caption, f"Histograms of the {name}: {_medians(kept)}", "half")


@styled
def roc_curves(
    scores_in: ArrayLike,
    scores_out: Mapping[str, ArrayLike],
    *,
    name: str = "score",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Return ROC curves and their areas, with out-of-distribution as the positive class, told by −score.

    ``scores_in`` is (N,), ``scores_out`` maps a set's name to its scores (M,).
    """
    from sklearn.metrics import auc, roc_curve

    inside = finite(scores_in)
    outside = {key: finite(x) for key, x in scores_out.items()}
    dropped = (
        np.size(scores_in) - inside.size + sum(np.size(scores_out[k]) - x.size for k, x in outside.items())
    )
    outside = {key: x for key, x in outside.items() if x.size}
    if not inside.size or not outside:
        return empty(f"ROC of the {label(name)}", "no finite scores on both sides")
    colours = colours or palette(["in", *scores_out])
    curves = {}
    for key, x in outside.items():
        positive = np.r_[np.zeros(inside.size), np.ones(x.size)]
        fpr, tpr, _ = roc_curve(positive, -np.r_[inside, x])
        curves[key] = (fpr, tpr, float(auc(fpr, tpr)))
    figure = canvas(HALF, _HIGH)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=MUTED, lw=1, dashes=(4, 3))
    order = sorted(curves, key=lambda key: curves[key][2])
    for row, key in enumerate(order):
        fpr, tpr, area = curves[key]
        keep = np.unique(
            np.linspace(0, fpr.size - 1, 400).astype(int)
        )  # more points than pixels only add bytes
        axis.plot(fpr[keep], tpr[keep], color=colours[key])
        axis.annotate(
            f"{area:.3f}  {label(key, 17)}", (1, 0), xycoords="axes fraction", xytext=(14, 2 + 17 * row),
            textcoords="offset points", color=colours[key], fontsize=10.5, fontweight="bold",
        )  # fmt: skip
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=label(name),
             xlabel="in-distribution flagged", ylabel="out-of-distribution caught")  # fmt: skip
    axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    areas = ", ".join(f"{key} {curves[key][2]:.3f}" for key in reversed(order))
    return finish(
        figure,
        f"{name}: the area under each curve stands beside its set; the dashed diagonal is chance."
        + _left_out(dropped),
        f"ROC curves of the {name}; AUROC: {areas}",
        "half",
    )


@styled
def detector_dots(
    name: str, auroc: Mapping[str, tuple[float, float, float]], *, colour: str, least: float = 0.5
) -> Figure:
    """Return a dot plot of AUROC on one set: a row a detector, bars for its interval, a line at chance.

    Parameters
    ----------
    name
        the out-of-distribution set
    auroc
        detector → (value, low, high), drawn from top to bottom; NaN bounds draw no bar
    least
        where the axis begins at the latest: give the lowest AUROC of all sets to make them comparable
    """
    rows = {detector: v for detector, v in auroc.items() if np.isfinite(v[0])}
    if not rows:
        return empty(label(name), "no AUROC to compare")
    figure = canvas(THIRD, 62 + 20 * len(rows))
    axis = figure.subplots()
    best = max(v[0] for v in rows.values())
    for at, (value, low, high) in enumerate(rows.values()):
        if np.isfinite(low) and np.isfinite(high):
            axis.plot([low, high], [at, at], color=colour, lw=5, alpha=0.35, clip_on=False)
        axis.plot([value], [at], "o", ms=6.5, color=colour, clip_on=False)
        weight, ink = ("bold", INK) if value == best else ("normal", MUTED)
        axis.annotate(
            f"{value:.3f}", (1, at), xycoords=("axes fraction", "data"), xytext=(11, 0),
            textcoords="offset points", va="center", fontsize=10.5, fontweight=weight, color=ink,
            annotation_clip=False,
        )  # fmt: skip
    axis.axvline(0.5, color=MUTED, lw=1, dashes=(4, 3))
    axis.set_yticks(range(len(rows)), [label(detector, 19) for detector in rows])
    least = min(least, 0.5, *(v[0] for v in rows.values()))
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(max(-0.03, least - 0.05), 1), xlabel="AUROC")
    axis.set_title(label(name), color=colour)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=3)
    values = ", ".join(f"{detector} {v[0]:.3f}" for detector, v in rows.items())
    return finish(figure, "", f"AUROC against {name}: {values}", "third")


@styled
def variance_spectrum(variance: ArrayLike) -> Figure:
    """Return the mean posterior variance of every feature, sorted, with a 10–90 % band over inputs (N, D)."""
    kept, dropped = _finite_rows(variance)
    if not kept.size:
        return empty("Posterior variance by feature", "no finite values")
    order = np.argsort(-kept.mean(0))
    mean, (low, high) = kept.mean(0)[order], np.quantile(kept, [0.1, 0.9], axis=0)[:, order]
    figure = canvas(HALF, 290)
    axis = figure.subplots()
    x = np.arange(1, len(mean) + 1)
    axis.fill_between(x, low, high, color=_BLUE, alpha=0.2, lw=0)
    axis.plot(x, mean, color=_BLUE, marker="o" if len(mean) < 3 else None)
    axis.axhline(1, color=INK, lw=1, dashes=(4, 3))
    axis.text(1, 1, "prior", ha="right", va="bottom", transform=axis.get_yaxis_transform(), fontsize=10.5)
    if low.min() > 0 and high.max() > 100 * low.min():
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, max(1.15, 1.08 * float(high.max())))
    axis.set(title="σ² by feature", xlabel="feature, from the most to the least uncertain")
    return finish(
        figure,
        "Mean over the inputs, sorted; the band holds the middle 80 % of them. A feature on the dashed line, "
        "the prior's variance, says nothing about the input; one far below it is well determined."
        + _left_out(dropped),
        f"Mean posterior variance of {len(mean)} features, from {mean[-1]:.3g} to {mean[0]:.3g}",
        "half",
    )


@styled
def variance_histogram(variance: ArrayLike) -> Figure:
    """Return the histogram of the mean posterior variance of every input (N, D): who is more uncertain."""
    kept, dropped = _finite_rows(variance)
    if not kept.size:
        return empty("Posterior variance by input", "no finite values")
    per_input = kept.mean(1)
    low, high = np.quantile(per_input, [0.005, 0.995])
    if high - low < 1e-9 * max(1.0, high):
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(per_input, low, high), 40, range=(low, high))
    figure = canvas(HALF, 290)
    axis = figure.subplots()
    axis.stairs(counts / len(per_input), edges, fill=True, color=_BLUE, alpha=0.25)
    axis.stairs(counts / len(per_input), edges, color=_BLUE)
    axis.set(title="σ² by input", xlabel="mean σ² over the features", ylim=(0, None))
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return finish(
        figure,
        "Share of the inputs by their mean posterior variance: a wide shape means that the model is much "
        "surer of some inputs than of others; the outermost bins hold what lies beyond." + _left_out(dropped),
        f"Histogram of mean posterior variance per input: median {np.median(per_input):.3g}",
        "half",
    )


def score_limits(sets: Sequence[Array]) -> tuple[float, float]:
    """Return axis limits for scores with heavy tails; the first set is the in-distribution one.

    They cover the middle 98 % of every set, but reach no further than two in-distribution ranges (1 % to 99
    %) from the in-distribution range, so that one wild set does not squeeze the rest into a line.
    """
    ranges = np.array([np.quantile(x, [0.01, 0.99]) for x in sets])
    (inner_low, inner_high), width = ranges[0], ranges[0, 1] - ranges[0, 0]
    if width > 0:
        low = max(ranges[:, 0].min(), inner_low - 2 * width)
        high = min(ranges[:, 1].max(), inner_high + 2 * width)
    else:
        low, high = ranges[:, 0].min(), ranges[:, 1].max()
    margin = 0.04 * (high - low)
    if margin < 1e-9 * max(1.0, abs(low)):
        margin = 0.5 * max(1.0, abs(low))
    return float(low - margin), float(high + margin)


def finite(x: ArrayLike) -> Array:
    """Return the finite values of ``x`` as a flat float64 array."""
    flat = np.asarray(x, np.float64).ravel()
    return flat[np.isfinite(flat)]


def _two_lines(name: str) -> str:
    return "\n".join(wrap(label(name), 15)[:2])


def _left_out(count: int) -> str:
    return f" Left out: {count:,} value{'s' if count > 1 else ''} not finite." if count else ""


def _medians(sets: Mapping[str, Array]) -> str:
    return ", ".join(f"{key} median {np.median(x):.4g}" for key, x in sets.items())


def _finite_rows(values: ArrayLike) -> tuple[Array, int]:
    """The rows (N, D) that are finite, and how many numbers the others held."""
    rows = np.atleast_2d(np.asarray(values, np.float64))
    kept = rows[np.isfinite(rows).all(1)]
    return kept, rows.size - kept.size
