"""Pictures: functions that draw on a matplotlib Axes, and return in words what they show.

No pages, no captions, no global state.
"""

from __future__ import annotations

from probjepa.plots.curves import (
    calibration,
    lines,
    risk_coverage,
    singular_values,
    spectrum,
    training_curve,
    variance_spectrum,
)
from probjepa.plots.maps import Plane, class_map, cloud, hexbins, points, score_map
from probjepa.plots.scores import dots, histogram, roc, score_histograms
from probjepa.plots.style import label, palette

__all__ = [
    "Plane",
    "calibration",
    "class_map",
    "cloud",
    "dots",
    "hexbins",
    "histogram",
    "label",
    "lines",
    "palette",
    "points",
    "risk_coverage",
    "roc",
    "score_histograms",
    "score_map",
    "singular_values",
    "spectrum",
    "training_curve",
    "variance_spectrum",
]
