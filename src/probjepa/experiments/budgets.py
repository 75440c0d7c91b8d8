"""How much is spent on a cell: the backbone, the data and the length of training, one place a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probjepa.errors import unknown_name


@dataclass(frozen=True)
class Budget:
    """What every cell of a budget has in common.

    Attributes
    ----------
    title
        what the reports call it
    backbone, backbone_options
        the encoder of all methods
    methods
        method → settings that this backbone asks for
    fit
        settings of ``fit`` of all methods: equal epochs and batches
    seeds
        how many, counted from ``--seed``
    images
        training images, stratified; None: all
    n_bootstrap
        resamples of each interval
    threads
        of torch; None: as they are
    cost
        of the step that ``vje-compute`` times: size, channels, batch, rounds, and whatever else differs
    """

    name: str
    title: str
    backbone: str
    backbone_options: Mapping[str, Any]
    fit: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: int = 3
    images: int | None = None
    n_bootstrap: int = 1000
    threads: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)


QUICK = Budget(
    "quick",
    "digits at 16 px, a ConvNet of 23,000 weights, 60 epochs of 64",
    "convnet",
    {"widths": (16, 32, 64)},
    {"epochs": 60, "batch_size": 64, "device": "cpu", "precision": "32-true", "channels_last": False},
    methods={
        # an embedding of 64 would give the inference network 16 units (D/4): too few for μ to follow h
        "vje": {"hidden_dim": 32},
        # projectors as wide as the published ones would take ten times what the encoder takes
        "simsiam": {"projector_dim": 256, "predictor_dim": 64},
        "vi-simsiam": {"projector_dim": 256, "predictor_dim": 64},
        "byol": {"projector_dim": 64, "hidden_dim": 256},
        "vicreg": {"projector_dim": 256},
        "barlow-twins": {"projector_dim": 256},
        "lejepa": {"projector_dim": 64, "hidden_dim": 256},
    },
    n_bootstrap=100,
    # so small a network gains nothing from more threads, and loses much where others want the cores
    threads=1,
    cost={"image_size": 16, "channels": 1, "batch_size": 128, "rounds": 15},
)
SMALL = Budget(
    "small",
    "10,000 images at 32 px, a ConvNet of 379,000 weights, 15 epochs of 64, on a CPU",
    "convnet",
    {"widths": (16, 64, 128, 256)},
    {"epochs": 15, "batch_size": 64, "device": "cpu", "precision": "bf16-mixed", "channels_last": True},
    methods={
        "simsiam": {"projector_dim": 512, "predictor_dim": 128},
        "vi-simsiam": {"projector_dim": 512, "predictor_dim": 128},
        "byol": {"projector_dim": 128, "hidden_dim": 512},
        "vicreg": {"projector_dim": 512},
        "barlow-twins": {"projector_dim": 512},
        "lejepa": {"projector_dim": 128, "hidden_dim": 512},
    },
    seeds=1,
    images=10_000,
    n_bootstrap=200,
    cost={"image_size": 32, "channels": 3, "batch_size": 128, "rounds": 7},
)
FULL = Budget(
    "full",
    "all images, ResNet-18, 200 epochs of 256, on a GPU",
    "resnet18",
    {},
    {"epochs": 200, "batch_size": 256, "device": "auto", "precision": "auto", "channels_last": "auto"},
    cost={"backbone": "resnet50", "image_size": 224, "channels": 3, "batch_size": 128, "rounds": 30},
)
BUDGETS = {budget.name: budget for budget in (QUICK, SMALL, FULL)}


def budget_of(name: str) -> Budget:
    """Return a budget by name, or raise ConfigError."""
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    return BUDGETS[name]
