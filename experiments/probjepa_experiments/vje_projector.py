"""Whether it is the loss or the projector before it that lets other methods learn faster than VJE."""

from __future__ import annotations

from dataclasses import replace

from probjepa_experiments import projector_cells
from probjepa_experiments.image_budgets import MEDIUM
from probjepa_experiments.study import Column, Finding, Look, Published, Row
from probjepa_experiments.vje import FLOORS, IMAGES, H, image_study
from probjepa_experiments.vje_rates import SEARCH

MARGIN = 0.03
BEHIND, BARE = "VJE behind a projector", "{} without its projector"
_LABELS = {"vje": "VJE", "vicreg": "VICReg", "simsiam": "SimSiam"}
#: method → multiples of its own best rate that are tried where the projector is another
_OTHERWISE = {"vje": (1.0, 3.0), "vicreg": (1.0, 1 / 3), "simsiam": (1.0, 1 / 3)}
SMALL = replace(SEARCH, name="small", seeds=3, rates={})


def rates(method: str) -> list[float]:
    """Return the rates of a method whose projector is not as it is: its own best one, and another."""
    return [float(f"{MEDIUM.rates[method] * factor:.2g}") for factor in _OTHERWISE[method]]


def changed(method: str) -> str:
    """Return what the rows of a method with another projector are called, before their rate."""
    return BEHIND if method == "vje" else BARE.format(_LABELS[method])


def best(look: Look, method: str) -> float:
    """Return kNN on h with another projector, at the better rate."""
    return max(look(f"{changed(method)}, {rate:g}", H) for rate in rates(method))


STUDY = image_study(
    name="vje-projector",
    title="VJE and its rivals, with and without a projector",
    question="In a short run VICReg is ahead of VJE: is that its loss, or the projector before it?",
    rows=(
        *(
            row
            for method, label in _LABELS.items()
            for row in (
                Row(label, method, fit={"learning_rate": MEDIUM.rates[method]}),
                *(
                    Row(
                        f"{changed(method)}, {rate:g}",
                        method,
                        {"projector": "own" if method == "vje" else "none"},
                        {"learning_rate": rate},
                    )
                    for rate in rates(method)
                ),
            )
        ),
        *FLOORS,
    ),
    columns=(
        Column(H, "knn20/h", percent=True, better="max", plot=True),
        Column("effective rank", "effective rank", limits=(0, None)),
    ),
    measurement=replace(IMAGES, run=projector_cells.run, base=projector_cells.base),
    budgets={"small": SMALL},
    data={"small": ("cifar10-validation",)},
    findings=(
        Finding("as they are, VICReg is three points of kNN above VJE",
                lambda look: look("VICReg", H) > look("VJE", H) + MARGIN),
        Finding("without its projector VICReg is not above VJE",
                lambda look: best(look, "vicreg") <= look("VJE", H)),
        Finding("without its projector SimSiam is not above VJE",
                lambda look: best(look, "simsiam") <= look("VJE", H)),
        Finding("behind a projector VJE's encoder is three points above VJE",
                lambda look: best(look, "vje") > look("VJE", H) + MARGIN),
    ),
    published=Published("nothing is published of it"),
    about="h is the encoder's own embedding in every row, and kNN is of training images that were held out. "
    "VJE's likelihood is of h itself; behind a projector (three layers of 512, as VICReg's) it is of the "
    "projector's output, so that h has no posterior and the inference network is four times as wide. Rates "
    "are those that `vje-rates` found best, and one beside it where the projector is another.",
)  # fmt: skip
