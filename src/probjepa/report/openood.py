"""The OpenOOD section of an evaluation: averages by group, and where it departs from the protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from probjepa.report.page import Section, Table, Value

_METRICS = {"auroc": "AUROC", "fpr_at_95_tpr_in": "FPR95"}


def openood_section(result: Mapping[str, Any], named: Callable[[str], str] = str) -> Section | None:
    """Return near, far and overall averages of every score, or None where there are none.

    Parameters
    ----------
    result
        what ``evaluation.openood_summary`` returns
    named
        from a score's key to its name in words
    """
    averages = result.get("averages") or {}
    if not averages:
        return None
    groups = ("near", "far", "overall")
    columns = {
        (metric, group): f"{_METRICS[metric]} {group} {'↑' if metric == 'auroc' else '↓'}"
        for metric in _METRICS
        for group in groups
    }
    rows = [
        [
            named(score),
            *(_percent(by[metric][group]) for metric, group in columns),
        ]
        for score, by in averages.items()
    ]
    table = Table(
        ["score", *columns.values()],
        rows,
        "In %. FPR95: share of the outside images accepted where 95 % of the test images are. A group is the "
        "mean of its sets; overall is the mean of near and far. The best of each column is marked.",
        {name: "max" if metric == "auroc" else "min" for (metric, _), name in columns.items()},
    )
    counts = Table(
        ["set", "group", "images", "in the protocol"],
        [
            [name, about["group"], about["images"], about["expected"]]
            for name, about in result["sets"].items()
        ],
        "Images evaluated, and in the protocol's lists.",
    )
    departs = Table(
        ["where this evaluation differs from the protocol"],
        [[line] for line in result["differences"]],
        "",
    )
    text = f"{result['protocol']}. Figures compare with published ones as far as the last table lets them."
    return Section("OpenOOD", text, [table, counts, departs])


def _percent(x: float | None) -> Value:
    return Value(math.nan if x is None else x, percent=True)
