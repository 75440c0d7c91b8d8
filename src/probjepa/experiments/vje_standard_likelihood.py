"""VJE's polar likelihood against a Student-t on the difference."""

from __future__ import annotations

from probjepa.experiments.declare import LEARNED, Experiment, Finding, Row

_PAPER = {  # data set → row → kNN on h, mean σ², KL
    "cifar10": {"polar": (0.873, 0.647, 141), "standard": (0.868, 0.245, 286)},
    "cifar100": {"polar": (0.563, 0.654, 128), "standard": (0.557, 0.268, 248)},
    "stl10": {"polar": (0.809, 0.657, 142), "standard": (0.812, 0.414, 191)},
}

EXPERIMENT = Experiment(
    name="vje-standard-likelihood",
    title="VJE: polar or standard likelihood",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639",
    question="What does splitting direction from radius buy?",
    rows=(Row("polar"), Row("standard", settings={"likelihood": "standard"})),
    columns=LEARNED,
    findings=(
        Finding(
            "the standard likelihood has a narrower posterior: mean σ² is below the polar one's",
            lambda r: r("standard", "mean σ²") < r("polar", "mean σ²"),
        ),
        Finding(
            "and a larger KL",
            lambda r: r("standard", "KL, nats") > r("polar", "KL, nats"),
        ),
        Finding(
            "on small images both embeddings are worth the same: kNN on h within two points",
            lambda r: abs(r("standard", "kNN on h, %") - r("polar", "kNN on h, %")) < 0.02,
        ),
    ),
    published={
        (data, row, column): value
        for data, of in _PAPER.items()
        for row, values in of.items()
        for column, value in zip(("kNN on h, %", "mean σ²", "KL, nats"), values, strict=True)
    },
    published_budget="ResNet-18, 200 epochs of 256; on ImageNet-100 the standard one collapses (not run)",
)
