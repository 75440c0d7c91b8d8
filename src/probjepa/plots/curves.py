"""Curves: over training, over coverage, over uncertainty, and spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from probjepa.plots.style import (
    BLUE,
    DASHES,
    INK,
    LIGHT,
    MUTED,
    Axis,
    finite_rows,
    label,
    listed,
    nothing,
    number,
    palette,
)

LEAST_COVERAGE = 0.05  # with fewer answers the risk is that of a handful
_MOST_POINTS = 400  # more than there are pixels only adds bytes
_STROKES: Sequence[Any] = ("-", (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # of names that share a colour


def training_curve(axis: Axis, epochs: ArrayLike, values: ArrayLike) -> str:
    """Draw one quantity (N,) over the epochs (N,), with its last value written at the curve's end."""
    x, y = np.asarray(epochs, np.float64), np.asarray(values, np.float64)
    axis.plot(x, y, color=BLUE)
    axis.plot(x[-1:], y[-1:], "o", color=BLUE, ms=5.5, clip_on=False)
    # next to nothing on the curve's own scale is nothing
    tiny = 0 < abs(y[-1]) < 1e-4 * float(np.abs(y).max())
    axis.annotate(
        "≈ 0" if tiny else number(y[-1], ".3g"), (x[-1], y[-1]), xytext=(9, 0),
        textcoords="offset points", va="center", color=BLUE, fontsize=11, fontweight="bold",
        annotation_clip=False,
    )  # fmt: skip
    axis.margins(x=0.02, y=0.1)
    if np.ptp(y) <= 1e-9 * abs(y[0]):  # rounding is not a trend
        half = max(1.0, abs(y[0])) / 2
        axis.set_ylim(y[0] - half, y[0] + half)
    elif y.min() >= 0:
        axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))
    axis.locator_params(axis="y", nbins=4)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axis.set_xlabel("epoch")
    return f"from {y[0]:.4g} to {y[-1]:.4g}"


def lines(
    axis: Axis,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    colours: Mapping[str, str] | None = None,
    **style: Any,
) -> str:
    """Draw a line a name, name → (x (N,), y (N,)), labelled for a legend; ``style`` goes to ``plot``.

    Names beyond the number of colours are dotted, then dash-dotted, by their place in ``colours``.
    """
    colours = colours or palette(curves)
    order = list(colours)
    for name, (x, y) in curves.items():
        stroke = _STROKES[order.index(name) // len(LIGHT) % len(_STROKES)]
        axis.plot(x, y, color=colours[name], label=label(name), ls=stroke, **style)
    return "at the end: " + listed({name: float(np.asarray(y)[-1]) for name, (_, y) in curves.items()})


def risk_coverage(
    axis: Axis,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    colours: Mapping[str, str] | None = None,
    legend: bool = True,
) -> str:
    """Draw the error of the answers given, in %, over the share of the samples answered, from 5 % on.

    Parameters
    ----------
    curves
        source of uncertainty → (coverage (N,), risk (N,)), as ``metrics.risk_coverage`` returns them. Where
        all end at one risk, the answers are the same in other orders, and a dashed line shows that risk: what
        withholding at random leaves
    colours
        source → colour
    legend
        whether to name the curves, at the right of the axes
    """
    shown = {}
    for name, curve in curves.items():
        coverage, risk = (np.asarray(part, np.float64) for part in curve)
        kept = np.flatnonzero(coverage >= min(LEAST_COVERAGE, coverage.max()))
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MOST_POINTS).astype(int))]
        shown[name] = (100 * coverage[kept], 100 * risk[kept])
    words = lines(
        axis, shown, colours=colours, marker="o" if all(len(x) == 1 for x, _ in shown.values()) else None
    )
    ends = {round(float(risk[-1]), 7) for _, risk in shown.values()}
    if len(ends) == 1:
        axis.axhline(ends.pop(), color=MUTED, lw=1, ls=DASHES, label="at random")
    axis.set(xlabel="coverage, %", ylabel="wrong, %", xlim=(0, 100), ylim=(0, None))
    if legend:
        axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    return f"% wrong {words}"


def calibration(axis: Axis, curves: Mapping[str, Sequence[float]]) -> str:
    """Draw the accuracy, in %, of each equal part of the rows, from the least to the most uncertain.

    ``curves`` maps a classifier to its accuracies (T,).
    """
    parts = {name: (np.arange(1, len(y) + 1), 100 * np.asarray(y)) for name, y in curves.items()}
    lines(axis, parts, marker="o", ms=4.5)
    axis.set_ylabel("right, %")
    axis.legend()
    return ", ".join(f"{name} from {100 * y[0]:.0f} to {100 * y[-1]:.0f} %" for name, y in curves.items())


def spectrum(
    axis: Axis,
    rows: ArrayLike,
    *,
    name: str = "",
    colour: str = BLUE,
    centre: Callable[..., Any] = np.median,
) -> str:
    """Draw the centre of each column of ``rows`` (N, K), with a band over the middle 80 % of the rows."""
    values = np.asarray(rows, np.float64)
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    x = np.arange(1, values.shape[1] + 1)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    y = centre(values, axis=0)
    axis.plot(x, y, color=colour, label=label(name), marker="o" if len(x) < 3 else None)
    return f"{name} from {y[0]:.3g} to {y[-1]:.3g}".strip()


def variance_spectrum(axis: Axis, variance: ArrayLike) -> str:
    """Draw the mean posterior variance (N, D) of every feature, sorted, beside the prior's variance of 1."""
    kept, _ = finite_rows(variance)
    if not kept.size:
        return nothing(axis, "no finite values")
    ordered = kept[:, np.argsort(-kept.mean(0))]
    words = spectrum(axis, ordered, centre=np.mean)
    axis.axhline(1, color=INK, lw=1, ls=DASHES)
    axis.text(1, 1, "prior", ha="right", va="bottom", transform=axis.get_yaxis_transform(), fontsize=10.5)
    low, high = np.quantile(ordered, [0.1, 0.9], axis=0)
    if low.min() > 0 and high.max() > 100 * low.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(plain_number)
    else:
        axis.set_ylim(0, max(1.15, 1.08 * float(high.max())))
    return words


def singular_values(axis: Axis, spectra: Mapping[str, ArrayLike], *, colours: Mapping[str, str]) -> str:
    """Draw the median singular values of the Jacobian of each set (n, K), on a logarithmic scale."""
    words = [
        spectrum(axis, np.maximum(np.asarray(values, float), 1e-6), name=name, colour=colours[name])
        for name, values in spectra.items()
    ]
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(plain_number)
    axis.set(xlabel="rank", ylabel="σ")
    axis.legend()
    return ", ".join(words)


def plain_number(value: float, _: int) -> str:
    """Return a tick's text; the default on a logarithmic axis is mathtext, which text in SVG is not."""
    return f"{value:g}"
