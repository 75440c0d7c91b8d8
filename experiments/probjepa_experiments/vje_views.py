"""More views an image: what they teach at equal encoder passes, each number of views with its own rate."""

from __future__ import annotations

from dataclasses import replace

from probjepa_experiments.image_budgets import MEDIUM
from probjepa_experiments.study import Column, Finding, Look, Published, Row
from probjepa_experiments.views_cells import run
from probjepa_experiments.vje import FLOORS, IMAGES, LEARNED, H, image_study
from probjepa_experiments.vje_rates import inside

VIEWS = (2, 4, 8)
EPOCHS = 12  # of two views: what a cell costs
RATES = (0.0056, 0.017, 0.05)  # a ninth and a third of the recipe's, and the recipe's
MARGIN = 0.01
SMALL = replace(
    MEDIUM,
    name="small",
    title="10,000 of CIFAR-10's training images, ResNet-18 at a quarter of its width, the passes of 12 "
    "epochs of two views, batches of 256",
    fit={**MEDIUM.fit, "batch_size": 256},
    seeds=1,
    rows=10_000,
)


def label(views: int, rate: float) -> str:
    """Return what a row is called."""
    return f"{views} views, {rate:g}"


def best(look: Look, views: int) -> float:
    """Return kNN on h at the best of the rates."""
    return max(look(label(views, rate), H) for rate in RATES)


def within(views: int) -> Finding:
    """Return the finding that the best rate is no end of the range that was tried."""
    return inside(f"the best rate of {views} views", [label(views, rate) for rate in RATES])


def better(views: int) -> Finding:
    """Return the finding that more views than two pay, each at its best rate."""
    return Finding(
        f"{views} views are a point of kNN above two at equal passes, each at its best rate",
        lambda look: best(look, views) > best(look, 2) + MARGIN,
    )


STUDY = image_study(
    name="vje-views",
    title="VJE: more views an image",
    question="Do more views of an image teach more, at equal encoder passes?",
    rows=(
        *(
            Row(
                label(views, rate), fit={"views": views, "epochs": EPOCHS * 2 // views, "learning_rate": rate}
            )
            for views in VIEWS
            for rate in RATES
        ),
        *FLOORS,
    ),
    columns=(
        *LEARNED,
        Column("encoder passes", "encoder passes"),
        Column("seconds of training", "training seconds", limits=(0, None)),
    ),
    measurement=replace(IMAGES, run=run),
    budgets={"small": SMALL},
    data={"small": ("cifar10-validation",)},
    findings=(*(within(views) for views in VIEWS), *(better(views) for views in VIEWS[1:])),
    published=Published("nothing is published of it"),
    about="Encoder passes are images × views × epochs: a row with twice the views sees each image half as "
    "often. Accuracies are of 10,000 training images that were held out, never of test images. Seconds are "
    "of one core, beside other work.",
)
