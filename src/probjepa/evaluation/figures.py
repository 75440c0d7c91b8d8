"""What the evaluations of images and of tables share: their result, and figures as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

import probjepa
from probjepa import metrics
from probjepa.provenance import hardware

_Limits: TypeAlias = tuple[float | None, float | None]
# what figures cannot leave, and those below them
_LIMITS: Mapping[str, _Limits] = {
    **dict.fromkeys(("accuracy", "accuracy_at", "aurc", "excess_aurc"), (0, 1)),
    "spearman": (-1, 1),
    **dict.fromkeys(("gained", "lost", "collapse"), (0, None)),
}


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` and ``evaluate_table`` return.

    Attributes
    ----------
    metrics
        JSON-able: settings, sets, accuracy, collapse, selective prediction and, of images, OOD figures,
        variance, geometry and predictions, of tables calibration
    arrays
        what a report draws, and "rows", the Arrow table of scores.parquet: a row an input, see there. Of
        images: ``scores`` by score and set, ``embeddings``, ``variance``, ``labels``,
        and the sets themselves, so that a gallery reads the few images that it shows. Of tables, of the last
        seed: ``frame`` (the test rows' features), ``labels``, and where the model has them ``uncertainty``
        (N,), ``score`` (N,) and ``surprise``, a DataFrame of cells
    """

    metrics: dict[str, Any]
    arrays: dict[str, Any]


def provenance() -> dict[str, str]:
    """Return the version and the hardware that figures come from."""
    return {"version": probjepa.__version__, "hardware": hardware()}


def figure(value: float, low: float = math.nan, high: float = math.nan) -> dict[str, float | None]:
    """Return a figure as JSON has it; what is not finite is None."""
    known = {"value": value, "low": low, "high": high}
    return {key: float(x) if math.isfinite(x) else None for key, x in known.items()}


def balanced_accuracy(truth: Any, answers: Any) -> float:
    """Return the mean over the classes of ``truth`` (N,) of the share of a class that is answered right."""
    from sklearn.metrics import recall_score

    classes = np.unique(truth)
    return float(recall_score(truth, answers, labels=classes, average="macro", zero_division=0))


def over_seeds(each: Sequence[Any], limits: _Limits = (None, None)) -> Any:
    """Bring nested figures of several seeds together: ``metrics.seed_interval``s, and means of lists.

    Intervals stay within a figure's ``limits``. They are over seeds alone: all have the same test rows, and
    what other rows would change is left out. Seeds that agree give none. Of several tests' "p" there is no
    mean, which would be no p. A figure that some seeds lack is of the others.
    """
    each = [one for one in each if one is not None] or [None]
    first = each[0]
    if isinstance(first, list):
        return np.mean(np.asarray(each, dtype=np.float64), 0).tolist()
    if not isinstance(first, Mapping):
        return first
    if "value" not in first:
        return {
            key: _ps([one[key]["value"] for one in each])
            if key == "p" and len(each) > 1
            else over_seeds([one.get(key) for one in each], _LIMITS.get(key, limits))
            for key in dict.fromkeys(key for one in each for key in one)
        }
    own = (first["low"], first["high"]) if len(each) == 1 else None
    return metrics.seed_interval([one["value"] for one in each], own, limits)


def _ps(values: Sequence[float | None]) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "seeds": list(values)}
