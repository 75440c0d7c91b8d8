"""Training curves, a small figure a quantity, from the columns of a run's metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from probjepa.report.page import Figure
from probjepa.report.style import THIRD, canvas, finish, label, palette, styled

(_BLUE,) = palette(["in"]).values()
Metrics = Mapping[str, Sequence[float]]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]

# column, with or without a prefix such as "monitor/" → (title, what to look for)
_DIAGNOSTICS = {
    "effective_rank": ("Effective rank", "Directions in use; near 1, collapsed."),
    "std_mean": ("Mean feature std", "Of normalised embeddings; 0, collapsed."),
    "std_min": ("Least feature std", "Near 0, a feature is dead."),
    "mean_variance": ("Mean σ²", "At 1, the posterior is the prior; at 0, a point."),
    "kl_per_dim": ("KL per dimension", "At 0, the posterior is the prior."),
    "knn": ("kNN accuracy", "On held-out images."),
}


def series(metrics: Metrics, column: str) -> Points:
    """Return (epochs, values) of a column, averaged within an epoch, without what is missing or not finite.

    Where there is no column ``epoch``, rows are counted instead.
    """
    y = np.asarray(metrics[column], np.float64)
    x = np.asarray(metrics.get("epoch", np.arange(len(y))), np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    epochs, where, counts = np.unique(x[keep], return_inverse=True, return_counts=True)
    return epochs, np.bincount(where, weights=y[keep], minlength=len(epochs)) / counts


def diagnostic_columns(metrics: Metrics) -> dict[str, str]:
    """Return diagnostic → column for every collapse diagnostic in ``metrics``, in the order of reading."""
    found = {}
    for name in _DIAGNOSTICS:
        matches = [c for c in metrics if c.rsplit("/", 1)[-1] == name and len(series(metrics, c)[0])]
        if matches:
            found[name] = matches[0]
    return found


def training_curves(metrics: Metrics) -> list[Figure]:
    """Return the loss, each of its terms, the validation loss and the learning rate, a figure each."""
    columns = [c for c in metrics if c.startswith(("train/", "val/"))]
    columns.sort(key=lambda c: (not c.startswith("train/"), not c.endswith("/loss")))
    columns += [c for c in metrics if c == "learning_rate"]
    return [
        _curve(_name(c), "", points) for c in dict.fromkeys(columns) if len((points := series(metrics, c))[0])
    ]


def collapse_curves(metrics: Metrics) -> list[Figure]:
    """Return effective rank, feature spread, mean σ², KL per dimension and kNN accuracy, where logged."""
    columns = diagnostic_columns(metrics)
    return [_curve(*_DIAGNOSTICS[key], series(metrics, column)) for key, column in columns.items()]


def _name(column: str) -> str:
    kind, _, rest = column.partition("/")
    name = "KL" if rest == "kl" else (rest or kind).replace("_", " ")
    return f"{name} (validation)" if kind == "val" else name


def _end(y: NDArray[np.float64]) -> str:
    """The last value; next to nothing on the curve's own scale is nothing."""
    small = 0 < abs(y[-1]) < 1e-4 * float(np.abs(y).max())
    return "≈ 0" if small else f"{y[-1]:.3g}".replace("-", "−")


@styled
def _curve(name: str, hint: str, points: Points) -> Figure:
    x, y = points
    figure = canvas(THIRD, 176)
    axis = figure.subplots()
    axis.plot(x, y, color=_BLUE)
    axis.plot(x[-1:], y[-1:], "o", color=_BLUE, ms=5.5, clip_on=False)
    axis.annotate(
        _end(y), (x[-1], y[-1]), xytext=(9, 0), textcoords="offset points", va="center",
        color=_BLUE, fontsize=11, fontweight="bold", annotation_clip=False,
    )  # fmt: skip
    axis.set_title(label(name))
    axis.margins(x=0.02, y=0.1)
    if np.ptp(y) <= 1e-9 * abs(y[0]):  # rounding is not a trend
        half = max(1.0, abs(y[0])) / 2
        axis.set_ylim(y[0] - half, y[0] + half)
    elif y.min() >= 0:
        axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))
    axis.locator_params(axis="y", nbins=4)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axis.set_xlabel("epoch")
    return finish(figure, hint, f"{name} over training, from {y[0]:.4g} to {y[-1]:.4g}", "third")
