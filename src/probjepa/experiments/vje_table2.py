"""The main table: VJE beside joint-embedding methods, with one backbone, batch and number of epochs."""

from __future__ import annotations

from probjepa.experiments.declare import KNN_EMA, LEARNED, Experiment, Finding, Row

EXPERIMENT = Experiment(
    name="vje-table2",
    title="VJE beside other joint-embedding methods",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639, table 2",
    question="Are VJE's embeddings worth as much as those of methods without a likelihood?",
    rows=(
        Row("VJE"),
        Row("VJE-EMA", settings={"target": "ema"}),
        Row("SimSiam", "simsiam"),
        Row("BYOL", "byol"),
        Row("VICReg", "vicreg"),
        Row("Barlow Twins", "barlow-twins"),
        Row("LeJEPA", "lejepa"),
        Row("VI-SimSiam", "vi-simsiam"),
        Row("random initialisation", task="random-init"),
        Row("raw pixels", task="raw-pixels"),
    ),
    columns=(*LEARNED, KNN_EMA),
    data={
        "quick": ("digits",),
        "small": ("cifar10",),
        "full": ("cifar10", "cifar100", "stl10", "tiny-imagenet"),
    },
    findings=(
        Finding(
            "training pays: kNN on VJE's h is above a random initialisation's",
            lambda r: r("VJE", "kNN on h, %") > r("random initialisation", "kNN on h, %"),
        ),
        Finding(
            "VJE's h is above raw pixels",
            lambda r: r("VJE", "kNN on h, %") > r("raw pixels", "kNN on h, %"),
        ),
        Finding(
            "VJE keeps up: kNN on h is within three points of SimSiam's, or above it",
            lambda r: r("VJE", "kNN on h, %") > r("SimSiam", "kNN on h, %") - 0.03,
        ),
    ),
    published={
        ("cifar10", "VJE", "kNN on h, %"): 0.873,
        ("cifar100", "VJE", "kNN on h, %"): 0.563,
        ("stl10", "VJE", "kNN on h, %"): 0.809,
        ("cifar10", "VJE", "kNN on μ, %"): 0.870,
        ("cifar100", "VJE", "kNN on μ, %"): 0.552,
        ("stl10", "VJE", "kNN on μ, %"): 0.803,
        ("cifar10", "VJE", "mean σ²"): 0.647,
        ("cifar10", "SimSiam", "kNN on h, %"): 0.819,
        ("cifar10", "BYOL", "kNN on h, %"): 0.869,
        ("cifar10", "Barlow Twins", "kNN on h, %"): 0.842,
    },
    published_budget="ResNet-18, 200 epochs; VJE: batch 256, from the paper's ablations (its table 2 has 800 "
    "epochs); the others: a public benchmark, batch 128, k = 200, the best epoch on the test set",
)
