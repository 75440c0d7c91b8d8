"""How many draws VJE's objective needs."""

from __future__ import annotations

from probjepa.experiments.declare import LEARNED, Experiment, Finding, Row

DRAWS = (0, 1, 2, 4, 16, 64)

EXPERIMENT = Experiment(
    name="vje-draws",
    title="VJE: draws from the posterior",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639",
    question="How many draws from the posterior does a step need?",
    rows=tuple(
        Row(f"L = {draws}", settings={"draws": draws},
            budgets=("quick", "small", "full") if draws in (0, 1, 4, 16) else ("small", "full"))
        for draws in DRAWS
    ),
    columns=LEARNED,
    findings=(
        Finding(
            "without a draw (L = 0) the posterior widens: mean σ² is above that of one draw",
            lambda r: r("L = 0", "mean σ²") > r("L = 1", "mean σ²"),
            asserted=True,
        ),
        Finding(
            "without a draw the embeddings are worse: kNN on h is 10 points below one draw",
            lambda r: r("L = 0", "kNN on h, %") < r("L = 1", "kNN on h, %") - 0.1,
        ),
        Finding(
            "one draw is enough: L = 4 and 16 change kNN on h by less than two points",
            lambda r: (
                max(abs(r(f"L = {n}", "kNN on h, %") - r("L = 1", "kNN on h, %")) for n in (4, 16)) < 0.02
            ),
        ),
    ),
    published={
        ("cifar10", "L = 0", "kNN on h, %"): 0.343,
        ("cifar10", "L = 0", "mean σ²"): 0.876,
        ("cifar100", "L = 0", "mean σ²"): 0.865,
        ("stl10", "L = 0", "mean σ²"): 0.925,
        ("cifar10", "L = 1", "kNN on h, %"): 0.873,
        ("cifar100", "L = 1", "kNN on h, %"): 0.563,
        ("stl10", "L = 1", "kNN on h, %"): 0.809,
        ("cifar10", "L = 1", "mean σ²"): 0.647,
        ("cifar100", "L = 1", "mean σ²"): 0.654,
        ("stl10", "L = 1", "mean σ²"): 0.657,
    },
    published_budget="ResNet-18, 200 epochs of 256, all images; L ≥ 1 all alike",
)  # fmt: skip
