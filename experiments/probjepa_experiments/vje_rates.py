"""The search for each method's learning rate at the medium budget: the rates, and nothing else, are tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from probjepa_experiments.figures import with_spread
from probjepa_experiments.image_budgets import MEDIUM
from probjepa_experiments.images import run_embeddings
from probjepa_experiments.study import Finding, Look, Published, Row
from probjepa_experiments.vje import FLOORS, IMAGES, LEARNED, OTHERS, H, image_study, knn_of_rows

FACTORS = (1 / 27, 1 / 9, 1 / 3, 1, 3)
#: of methods whose best rate was the highest of those
FURTHER = {"simsiam": (9,), "byol": (9,), "vi-simsiam": (9,)}
#: of each method's own recipe
USUAL = {
    "vje": 0.05, "simsiam": 0.06, "byol": 0.03, "vicreg": 0.03, "barlow-twins": 0.12, "lejepa": 2e-3,
    "vi-simsiam": 0.006,
}  # fmt: skip
#: label, method and settings
TRIED: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("VJE", "vje", {}),
    ("VJE-EMA", "vje", {"target": "ema"}),
    *((name, method, {}) for name, method in OTHERS.items()),
)
SEARCH = replace(
    MEDIUM,
    title="10,000 of CIFAR-10's training images, ResNet-18 at a quarter of its width, 10 epochs of 128",
    fit={**MEDIUM.fit, "epochs": 10},
    seeds=1,
    rows=10_000,
)


def rates(method: str) -> list[float]:
    """Return the rates that are tried, two digits each."""
    return [float(f"{factor * USUAL[method]:.2g}") for factor in (*FACTORS, *FURTHER.get(method, ()))]


def inside(what: str, names: Sequence[str]) -> Finding:
    """Return the finding that ``what``, the best of the rows of these names, is no end of their range."""

    def holds(look: Look) -> bool:
        low, *middle, high = (look(name, H) for name in names)
        return max(middle) > max(low, high)

    return Finding(f"{what} is neither the lowest nor the highest of those tried", holds)


def within(label: str, method: str) -> Finding:
    """Return the finding that a method's best rate is no end of the range that was tried."""
    return inside(f"{label}'s best rate", [f"{label}, {rate:g}" for rate in rates(method)])


def found_best(tables: Mapping[str, Any]) -> str:
    """Return each method's best rate and its accuracy, of the methods whose rates were all run."""
    of = knn_of_rows(tables)
    said = []
    for label, method, _ in TRIED:
        rows = {rate: f"{label}, {rate:g}" for rate in rates(method)}
        if of.keys() >= set(rows.values()):
            tried = {rate: of[row] for rate, row in rows.items()}
            best = max(tried, key=lambda rate: float(tried[rate]["value"]))
            said.append(f"{label} {best:g} ({with_spread(tried[best], 1, 100)})")
    return f"by kNN on h, in %, {', '.join(said)}"


STUDY = image_study(
    name="vje-rates",
    title="Learning rates at the medium budget",
    question="With which learning rate does each method learn best in a short run?",
    rows=(
        *(
            Row(f"{label}, {rate:g}", method, settings, {"learning_rate": rate})
            for label, method, settings in TRIED
            for rate in rates(method)
        ),
        *FLOORS,
    ),
    columns=LEARNED,
    measurement=replace(IMAGES, run=run_embeddings),
    budgets={"medium": SEARCH},
    data={"medium": ("cifar10-validation",)},
    findings=tuple(within(label, method) for label, method, _ in TRIED),
    published=Published("nothing is published of it"),
    answer=found_best,
    about="The accuracies are of 10,000 training images that were held out, never of test images. The rates "
    "are a twenty-seventh, a ninth, a third, once and three times the rate of each method's own recipe, and "
    "nine times it of SimSiam, BYOL and VI-SimSiam, whose best of those was the highest.",
)
