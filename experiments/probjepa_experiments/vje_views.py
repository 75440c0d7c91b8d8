"""More views an image: what they teach at equal encoder passes, each number of views with its own rate."""

from __future__ import annotations

from dataclasses import replace

from probjepa_experiments.images import MEDIUM
from probjepa_experiments.study import Column, Finding, Look, Published, Row
from probjepa_experiments.views_cells import run
from probjepa_experiments.vje import IMAGES, LEARNED, H, image_study

VIEWS = (2, 4, 8)
EPOCHS = (4, 12)  # of two views: what a cell costs
RATES = (0.0056, 0.017, 0.05)  # a ninth and a third of the recipe's, and the recipe's
#: the best of RATES for each number of views in the search (the budget "small")
FOUND = {2: 0.017, 4: 0.017, 8: 0.017}
MARGIN = 0.01
SEARCH = replace(
    MEDIUM,
    name="small",
    title="10,000 of CIFAR-10's training images, ResNet-18 at a quarter of its width, the passes of 12 "
    "epochs of two views, batches of 256",
    seeds=1,
    rows=10_000,
)
CURVE = replace(
    MEDIUM, title="50,000 images at 32 px, ResNet-18 at a quarter of its width, batches of 256", seeds=3
)


def searched(views: int, rate: float) -> Row:
    """Return a row of the search."""
    fit = {"views": views, "epochs": EPOCHS[-1] * 2 // views, "learning_rate": rate}
    return Row(f"{views} views, {rate:g}", fit=fit, budgets=("small",))


def spent(views: int, epochs: int) -> Row:
    """Return a row of the curve: so many views, at the passes of so many epochs of two."""
    fit = {"views": views, "epochs": epochs * 2 // views, "learning_rate": FOUND[views]}
    return Row(f"{views} views, the passes of {epochs} epochs", fit=fit, budgets=("medium",))


def within(views: int) -> Finding:
    """Return the finding that the best rate is no end of the range that was tried."""

    def holds(look: Look) -> bool:
        low, *middle, high = (look(f"{views} views, {rate:g}", H) for rate in RATES)
        return max(middle) > max(low, high)

    return Finding(
        f"the best rate of {views} views is neither the lowest nor the highest of those tried", holds
    )


def better(views: int, epochs: int) -> Finding:
    """Return the finding that more views than two pay at equal passes."""
    names = [f"{count} views, the passes of {epochs} epochs" for count in (2, views)]
    return Finding(
        f"{views} views are a point of kNN above two at the passes of {epochs} epochs",
        lambda look: look(names[1], H) > look(names[0], H) + MARGIN,
    )


STUDY = image_study(
    name="vje-views",
    title="VJE: more views an image",
    question="Do more views of an image teach more, at equal encoder passes?",
    rows=(
        *(searched(views, rate) for views in VIEWS for rate in RATES),
        *(spent(views, epochs) for epochs in EPOCHS for views in VIEWS),
    ),
    columns=(
        *LEARNED,
        Column("encoder passes", "encoder passes"),
        Column("seconds of training", "training seconds", limits=(0, None)),
    ),
    measurement=replace(IMAGES, run=run),
    budgets={"small": SEARCH, "medium": CURVE},
    data={"small": ("cifar10-validation",), "medium": ("cifar10",)},
    findings=(
        *(within(views) for views in VIEWS),
        *(better(views, epochs) for epochs in EPOCHS for views in VIEWS[1:]),
    ),
    published=Published("nothing is published of it"),
    about="Encoder passes are images × views × epochs: a row with twice the views sees each image half as "
    "often. The small budget is a search for each number of views' rate, on training images that were held "
    "out; the medium budget has the best of each. Seconds are of one core, beside other work.",
)
