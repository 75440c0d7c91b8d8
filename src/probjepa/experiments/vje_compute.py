"""What a training step of each method costs, beside SimSiam's."""

from __future__ import annotations

from probjepa.experiments.datasets import RANDOM_PIXELS
from probjepa.experiments.declare import Column, Experiment, Finding, Row

_METHODS = {
    "SimSiam": "simsiam",
    "BYOL": "byol",
    "VICReg": "vicreg",
    "Barlow Twins": "barlow-twins",
    "LeJEPA": "lejepa",
    "VI-SimSiam": "vi-simsiam",
}

EXPERIMENT = Experiment(
    name="vje-compute",
    title="VJE: the cost of a step",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639",
    question="What does a likelihood cost, beside a predictor and a projector?",
    rows=(
        Row("VJE", task="cost"),
        Row("VJE-EMA", task="cost", settings={"target": "ema"}),
        *(Row(label, method, task="cost") for label, method in _METHODS.items()),
    ),
    columns=(
        Column("parameters, M", "parameters", better="min", limits=(0, None)),
        Column("GFLOP a step", "flops", better="min", limits=(0, None)),
        Column("step, s", "step seconds", limits=(0, None)),
        Column("step / SimSiam's", "step ratio", better="min", plot=True, limits=(0, None)),
        Column("memory, GiB", "memory", better="min", limits=(0, None)),
    ),
    data=dict.fromkeys(("quick", "small", "full"), (RANDOM_PIXELS,)),
    findings=(
        Finding(
            "VJE costs about what SimSiam costs: a step takes at most 1.1 times as long (paper: 1.02)",
            lambda r: r("VJE", "step / SimSiam's") < 1.1,
        ),
        Finding(
            "an averaged encoder costs: VJE-EMA's step takes longer than VJE's",
            lambda r: r("VJE-EMA", "step / SimSiam's") > r("VJE", "step / SimSiam's"),
        ),
    ),
    published={
        (RANDOM_PIXELS, "VJE", "step / SimSiam's"): 1 / 0.98,
        (RANDOM_PIXELS, "VJE-EMA", "step / SimSiam's"): 1 / 0.74,
        (RANDOM_PIXELS, "BYOL", "step / SimSiam's"): 1 / 0.75,
        (RANDOM_PIXELS, "SimSiam", "step / SimSiam's"): 1.0,
    },
    intervals="the quartiles of the rounds",
    published_budget="ResNet-50 at 224 px, throughput of the whole training turned into time a step",
)
