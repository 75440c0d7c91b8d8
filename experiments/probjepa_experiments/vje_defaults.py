"""What VJE should be set to where images and minutes are few: each setting by itself, on three sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from probjepa_experiments.image_budgets import MEDIUM
from probjepa_experiments.images import run_embeddings
from probjepa_experiments.study import PIXELS, RANDOM, Finding, Published, Row
from probjepa_experiments.vje import FLOORS, IMAGES, LEARNED, H, image_study
from probjepa_experiments.vje_rates import USUAL, inside

EPOCHS = 20
RATES = (0.002, 0.0056, 0.017)
BEST = 0.0056
RECIPE = f"the recipe's rate {USUAL['vje']:g}, batches of 256"
WIDER = "inference width D/2"
SMALL = replace(
    MEDIUM,
    name="small",
    title="up to 5,000 images at 32 or 28 px, ResNet-18 at a quarter of its width, 20 epochs of 64",
    fit={**MEDIUM.fit, "epochs": EPOCHS, "batch_size": 64},
    seeds=3,
    rows=5_000,
)


def rate_label(rate: float) -> str:
    """Return what the row of a rate is called."""
    return f"rate {rate:g}"


def _row(label: str, settings: dict[str, Any] | None = None, rate: float = BEST, **fit: Any) -> Row:
    return Row(label, settings=settings or {}, fit={"learning_rate": rate, **fit})


def above(label: str, other: str, margin: float = 0.0) -> Finding:
    """Return the finding that a row is above another by kNN on h."""
    by = f" by {100 * margin:g} points" if margin else ""
    return Finding(f"{label} is above {other}{by}", lambda look: look(label, H) > look(other, H) + margin)


STUDY = image_study(
    name="vje-defaults",
    title="VJE's settings for few images and little time",
    question="Which rate, batch, KL weight, width, target and number of views learn best in minutes?",
    rows=(
        _row(RECIPE, rate=USUAL["vje"], batch_size=256),
        *(_row(rate_label(rate), rate=rate) for rate in RATES),
        _row("batches of 256", batch_size=256),
        _row("no warm-up", warmup_epochs=0.0),
        *(_row(f"KL weight {weight:g}", {"kl_weight": weight}) for weight in (0.1, 4.0, 16.0)),
        _row(WIDER, {"hidden_dim": 64}),
        _row("averaged target", {"target": "ema"}),
        _row("four views, 10 epochs", views=4, epochs=EPOCHS // 2),
        _row("100 epochs", epochs=100),
        _row("the recipe's, 100 epochs", rate=USUAL["vje"], batch_size=256, epochs=100),
        *FLOORS,
    ),
    columns=LEARNED,
    measurement=replace(IMAGES, run=run_embeddings),
    budgets={"small": SMALL},
    data={"small": ("cifar10-validation", "tiny-imagenet-validation", "digits-validation")},
    findings=(
        inside("the best rate", [rate_label(rate) for rate in RATES]),
        above(rate_label(BEST), RECIPE),
        above(WIDER, rate_label(BEST)),
        above(WIDER, RANDOM),
        above(WIDER, PIXELS, 0.1),
    ),
    published=Published("nothing is published of it"),
    about=f"Where nothing is said: rate {BEST}, batches of 64, {EPOCHS} epochs, a tenth of them to warm up. "
    "The accuracies are of training images that were held out, never of test images.",
)
