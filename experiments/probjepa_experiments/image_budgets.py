"""The budgets of the studies of images. A cell spells out what it takes of one: no code that runs it."""

from __future__ import annotations

from dataclasses import replace

from probjepa_experiments.study import Budget


def _projectors(wide: int, narrow: int) -> dict[str, dict[str, int]]:
    """Projectors as wide as the published ones would take ten times what a small encoder takes."""
    return {
        "simsiam": {"projector_dim": wide, "predictor_dim": narrow},
        "vi-simsiam": {"projector_dim": wide, "predictor_dim": narrow},
        "byol": {"projector_dim": narrow, "hidden_dim": wide},
        "vicreg": {"projector_dim": wide},
        "barlow-twins": {"projector_dim": wide},
        "lejepa": {"projector_dim": narrow, "hidden_dim": wide},
    }


QUICK = Budget(
    "quick",
    "digits at 16 px, a ConvNet of 23,000 weights, 60 epochs of 64",
    {"backbone": "convnet", "backbone_options": {"widths": (16, 32, 64)}},
    {"epochs": 60, "batch_size": 64, "device": "cpu", "precision": "32-true", "channels_last": False},
    methods={
        # an embedding of 64 would give the inference network 16 units (D/4): too few for μ to follow h
        "vje": {"hidden_dim": 32},
        **_projectors(256, 64),
    },
    n_bootstrap=100,
    # so small a network gains nothing from more threads, and loses much where others want the cores
    threads=1,
    cost={"image_size": 16, "channels": 1, "batch_size": 128, "rounds": 15},
)
SMALL = Budget(
    "small",
    "10,000 images at 32 px, a ConvNet of 379,000 weights, 15 epochs of 64, on a CPU",
    {"backbone": "convnet", "backbone_options": {"widths": (16, 64, 128, 256)}},
    {"epochs": 15, "batch_size": 64, "device": "cpu", "precision": "auto", "channels_last": "auto"},
    methods=_projectors(512, 128),
    seeds=1,
    rows=10_000,
    n_bootstrap=200,
    cost={"image_size": 32, "channels": 3, "batch_size": 128, "rounds": 7},
)
# of the tables that change one thing at a time: many rows, which need VJE well above raw pixels and no more
ABLATIONS = replace(
    SMALL,
    name="medium",
    title="10,000 images at 32 px, a ConvNet of 379,000 weights, 60 epochs of 64",
    fit={**SMALL.fit, "epochs": 60},
    seeds=3,
)
MEDIUM = Budget(
    "medium",
    "50,000 images at 32 px, ResNet-18 at a quarter of its width, 30 epochs of 128, rates searched for",
    {"backbone": "resnet18", "backbone_options": {"width": 0.25}},
    {
        "epochs": 30,
        "batch_size": 128,
        "device": "auto",
        "precision": "auto",
        "channels_last": "auto",
        "compile": "auto",
    },
    methods=_projectors(512, 128),
    # the best of `reproduce vje-rates`, of one seed and a fifteenth of this training
    rates={
        "vje": 0.0056,
        "VJE-EMA": 0.017,
        "simsiam": 0.18,
        "byol": 0.09,
        "vicreg": 0.03,
        "barlow-twins": 0.013,
        "lejepa": 0.002,
        "vi-simsiam": 0.018,
    },
    n_bootstrap=200,
    cost={"image_size": 32, "channels": 3, "batch_size": 256, "rounds": 15},
)
FULL = Budget(
    "full",
    "all images, ResNet-18, 200 epochs of 256, on a GPU",
    {"backbone": "resnet18", "backbone_options": {}},
    {"epochs": 200, "batch_size": 256, "device": "auto", "precision": "auto", "channels_last": "auto"},
    cost={"backbone": "resnet50", "image_size": 224, "channels": 3, "batch_size": 128, "rounds": 30},
)
BUDGETS = {budget.name: budget for budget in (QUICK, SMALL, MEDIUM, FULL)}
