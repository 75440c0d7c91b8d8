"""The pictures of I-JEPA's heads: samples beside targets, a row a head, and the curves of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probjepa import plots
from probjepa.experiments.ijepa_heads import HEADS
from probjepa.report.page import Figure, Section
from probjepa.report.style import FULL, canvas, finish, label, palette, styled
from probjepa.report.training import training_curves

Pictures = Mapping[str, Any]


def sections(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Return the pictures of the first seed of each head, of results as ``run_cell`` returns them."""
    of: dict[str, Pictures] = {}
    for result in results:
        if result["row"] in HEADS and result.get("pictures"):
            of.setdefault(result["row"], result["pictures"])
    if not of:
        return []
    grid = [head_row(name, pictures) for name, pictures in of.items()]
    losses = [
        training_curves({"epoch": p["curves"]["epoch"], f"train/{name}": _known(p["curves"]["loss"])})
        for name, p in of.items()
    ]
    curves = [knn_curves({name: p["curves"] for name, p in of.items()})]
    return [
        Section(
            "Samples beside targets",
            "Hidden tokens of held-out images, and a sample of each prediction, along the three main "
            "directions (PCA) of the head's own targets. Each head has a teacher of its own, so the "
            "targets differ. A point prediction has one sample, its mean: it cannot cover what is left open.",
            grid,
        ),
        Section(
            "Training",
            "Accuracy on held-out images during training, and each head's loss. Losses have a scale of their "
            "own: they compare a head with itself only.",
            [*curves, *(figure for each in losses for figure in each)],
        ),
    ]


def _known(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


@styled
def head_row(name: str, pictures: Pictures) -> Figure:
    """Return a head's targets and samples: two densities in the plane, and both clouds in space."""
    targets, samples = (np.asarray(pictures[key], np.float64) for key in ("targets", "samples"))
    figure = canvas(FULL, 268)
    panels = [figure.add_subplot(1, 3, index) for index in (1, 2)]
    plots.hexbins(panels, {f"{name}: targets": targets, f"{name}: samples": samples})
    plots.cloud(figure.add_subplot(1, 3, 3, projection="3d"), targets, samples)
    return finish(
        figure, "Right: targets blue, samples orange.", f"{name}: {len(targets)} targets and as many samples"
    )


@styled
def knn_curves(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """Return the kNN accuracy of every head over the epochs."""
    figure = canvas(FULL, 330)
    axis = figure.subplots()
    colours = palette(curves)
    ends = []
    for name, of in curves.items():
        known = [
            (e, v) for e, v in zip(of["epoch"], of["knn"], strict=True) if e is not None and v is not None
        ]
        if not known:
            continue
        x, y = np.array(known, np.float64).T
        axis.plot(x, 100 * y, marker="o", ms=3.5, color=colours[name], label=label(name))
        ends.append(f"{name} {100 * y[-1]:.1f}")
    axis.set(xlabel="epoch", ylabel="kNN accuracy, %", title="kNN accuracy during training")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if ends:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10.5)
    return finish(
        figure,
        "On at most 2,048 held-out images, with a bank of at most 5,000 training images; the table has all.",
        f"kNN accuracy in % at the end: {', '.join(ends)}",
    )
