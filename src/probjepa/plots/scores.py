"""Scores and their figures: histograms, ROC curves, and dots with intervals.

Scores are higher for more typical inputs, as everywhere. Values that are not finite are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from numpy.typing import ArrayLike

from probjepa.plots.style import (
    BLUE,
    DASHES,
    INK,
    MUTED,
    ORANGE,
    RULE,
    Array,
    Axis,
    finite,
    label,
    listed,
    nothing,
    palette,
)
from probjepa.registry import importing

Dot = tuple[float, float, float]  # value, low, high
_LARGEST = float(np.finfo(np.float64).max) / 64  # what is drawn: spans and margins are finite, too
_ROW = 0.88  # of the distance between two rows: as high as a histogram gets


def histogram(
    axis: Axis,
    values: ArrayLike,
    *,
    limits: tuple[float, float] | None = None,
    bins: int = 40,
    colour: str = BLUE,
) -> str:
    """Draw the share of the values (N,) in each bin, in %, and a dashed line at their median.

    The bins span ``limits``, or the middle 99 % of the values; the outermost hold what lies beyond.
    """
    x = finite(values)
    if not x.size:
        return nothing(axis, "no finite values")
    median = _median(x)
    x = np.clip(x, -_LARGEST, _LARGEST)
    low, high = limits or (float(q) for q in np.quantile(x, [0.005, 0.995]))
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.5 * max(1.0, abs(high))
        low, high = low - half, high + half
    counts, edges = np.histogram(np.clip(x, low, high), bins, range=(low, high))
    axis.stairs(100 * counts / x.size, edges, fill=True, color=colour, alpha=0.25)
    axis.stairs(100 * counts / x.size, edges, color=colour)
    axis.axvline(float(np.clip(median, low, high)), color=MUTED, lw=1.2, ls=DASHES)
    axis.set(xlim=(low, high), ylim=(0, None), ylabel="%")
    return f"median {median:.3g}"


def score_histograms(
    axis: Axis, scores: Mapping[str, ArrayLike], *, colours: Mapping[str, str] | None = None
) -> str:
    """Draw a histogram a set above the other, on shared bins, with a triangle at each median.

    Parameters
    ----------
    scores
        set name → scores (N,); the first, the in-distribution one, is filled behind every row. A peak much
        taller than its highest is cut, and scores beyond the axis (see :func:`score_limits`) are gathered in
        the outermost bins; their share is written where it is above 2 %
    colours
        set name → colour
    """
    whole = {key: x for key, values in scores.items() if (x := finite(values)).size}
    kept = {key: np.clip(x, -_LARGEST, _LARGEST) for key, x in whole.items()}
    if not kept:
        return nothing(axis, "no finite scores")
    colours = colours or palette(scores)
    low, high = score_limits(list(kept.values()))
    edges = np.linspace(low, high, 51)
    # a share rather than a density: sets of different sizes compare, and the height has a plain meaning
    shares = {key: np.histogram(np.clip(x, low, high), edges)[0] / x.size for key, x in kept.items()}
    reference, *_ = kept
    height = 1.08 * min(max(share.max() for share in shares.values()), 2.5 * shares[reference].max())
    shares = {key: _ROW * np.minimum(share / height, 1) for key, share in shares.items()}
    for row, (key, share) in enumerate(shares.items()):
        base = len(kept) - 1 - row
        axis.axhline(base, color=RULE, lw=1)
        axis.stairs(
            base + shares[reference],
            edges,
            baseline=base,
            fill=True,
            color=colours[reference],
            alpha=0.22,
            lw=0,
        )
        axis.stairs(base + share, edges, baseline=base, color=colours[key], lw=1.6)
        median = float(np.clip(np.median(kept[key]), low, high))
        axis.plot([median], [base], marker="^", ms=6.5, color=colours[key], clip_on=False, zorder=5)
        beyond = float(np.mean((kept[key] < low) | (kept[key] > high)))
        if beyond > 0.02:
            text = f"{100 * beyond:.0f} % beyond the axis"
            axis.text(0.4, base + 0.5, text, transform=axis.get_yaxis_transform(), ha="center", color=MUTED,
                      fontsize=10)  # fmt: skip
    rows = reversed(range(len(kept)))
    names = axis.set_yticks(
        [base + 0.45 for base in rows], ["\n".join(wrap(label(key), 15)[:2]) for key in kept]
    )
    for name, key in zip(names, kept, strict=True):
        name.label1.set(color=colours[key], fontweight="bold")
    axis.set(xlim=(low, high), ylim=(0, len(kept)))
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)  # long numbers run into each other
    return "medians: " + listed({key: _median(x) for key, x in whole.items()}, ".4g")


def _median(x: Array) -> float:
    """The median of finite values; the sum of two in the middle may be beyond the largest number."""
    return 2 * float(np.median(x / 2))


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


def roc(
    axis: Axis,
    inside: ArrayLike,
    outside: Mapping[str, ArrayLike],
    *,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Draw ROC curves with their areas beside them, out-of-distribution positive, told by −score.

    ``inside`` is (N,), ``outside`` maps a set's name to its scores (M,). The dashed diagonal is chance.
    """
    with importing():
        from sklearn.metrics import auc, roc_curve

    typical = finite(inside)
    kept = {key: x for key, values in outside.items() if (x := finite(values)).size}
    if not typical.size or not kept:
        return nothing(axis, "no finite scores on both sides")
    colours = colours or palette(["in", *outside])
    curves = {}
    for key, x in kept.items():
        positive = np.r_[np.zeros(typical.size), np.ones(x.size)]
        fpr, tpr, _ = roc_curve(positive, -np.r_[typical, x])
        curves[key] = (fpr, tpr, float(auc(fpr, tpr)))
    axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=DASHES)
    for row, key in enumerate(sorted(curves, key=lambda key: curves[key][2])):
        fpr, tpr, area = curves[key]
        # more points than pixels only add bytes
        shown = np.unique(np.linspace(0, fpr.size - 1, 400).astype(int))
        axis.plot(fpr[shown], tpr[shown], color=colours[key])
        axis.annotate(
            f"{area:.3f}  {label(key, 17)}", (1, 0), xycoords="axes fraction", xytext=(14, 2 + 17 * row),
            textcoords="offset points", color=colours[key], fontsize=10.5, fontweight="bold",
        )  # fmt: skip
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal",
             xlabel="in-distribution flagged", ylabel="out-of-distribution caught")  # fmt: skip
    axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    return "AUROC: " + listed({key: area for key, (*_, area) in curves.items()}, ".3f")


def dots(
    axis: Axis,
    rows: Mapping[str, Dot],
    *,
    colour: str = BLUE,
    chance: float | None = None,
    written: bool = False,
    ticks: Mapping[str, Sequence[float]] | None = None,
    diamonds: Mapping[str, float] | None = None,
    name_limit: int = 24,
) -> str:
    """Draw a row a name, from top to bottom: a dot at its value, and a pale bar over its interval.

    Parameters
    ----------
    rows
        name → (value, low, high); where a bound is NaN there is no bar, and where the value is, an empty row
    colour
        of dots, bars and ticks
    chance
        where a dashed line stands
    written
        write the values at the right, the highest in bold
    ticks
        name → further values, a stroke each: single seeds
    diamonds
        name → a value to compare with: a published one
    name_limit
        characters of a name that are drawn
    """
    best = max((value for value, *_ in rows.values() if np.isfinite(value)), default=np.nan)
    if chance is not None:
        axis.axvline(chance, color=MUTED, lw=1, ls=DASHES)
    for at, (name, (value, low, high)) in enumerate(rows.items()):
        if np.isfinite(low) and np.isfinite(high):
            axis.plot([low, high], [at, at], color=colour, lw=5, alpha=0.35, clip_on=False)
        strokes = np.asarray((ticks or {}).get(name, ()), np.float64)
        axis.plot(strokes, np.full(len(strokes), at), "|", ms=9, mew=1.4, color=colour)
        if np.isfinite(value):
            axis.plot([value], [at], "o", ms=6.5, color=colour, clip_on=False)
        if name in (diamonds or {}):
            axis.plot([diamonds[name]], [at], "D", ms=6.5, mfc="none", mew=1.6, color=ORANGE)  # type: ignore[index]
        if written and np.isfinite(value):
            axis.annotate(
                f"{value:.3f}", (1, at), xycoords=("axes fraction", "data"), xytext=(11, 0),
                textcoords="offset points", va="center", fontsize=10.5, annotation_clip=False,
                fontweight="bold" if value == best else "normal", color=INK if value == best else MUTED,
            )  # fmt: skip
    axis.set_yticks(range(len(rows)), [label(name, name_limit) for name in rows])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set(ylim=(len(rows) - 0.4, -0.6))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    return listed({name: value for name, (value, *_) in rows.items() if np.isfinite(value)}, ".3f")
