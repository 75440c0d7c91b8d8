"""The tables of "Joint Embedding Variational Bayes": VJE's embeddings, and what its loss is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from probjepa_experiments import cost
from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.image_budgets import ABLATIONS, BUDGETS
from probjepa_experiments.images import image_base, run
from probjepa_experiments.study import (
    PIXELS,
    RANDOM,
    Column,
    Finding,
    Look,
    Measurement,
    NotMeasuredError,
    Published,
    Row,
    Study,
    measured,
)

PAPER = "Joint Embedding Variational Bayes, arXiv 2602.05639"
H, MU, VARIANCE, KL = "kNN on h, %", "kNN on μ, %", "mean σ²", "KL, nats"
LEARNED = (
    Column(H, "knn20/h", percent=True, better="max", plot=True),
    Column(MU, "knn20/mu", percent=True, better="max", plot=True),
    Column(VARIANCE, "mean variance", plot=True, limits=(0, None)),
    Column(KL, "kl", limits=(0, None)),
    Column("effective rank", "effective rank", limits=(0, None)),
)
KNN_EMA = Column("kNN on EMA h, %", "knn20/ema-h", percent=True, better="max")
PROBES = tuple(
    Column(f"linear probe on {space}, %", f"linear/{figure}", percent=True, better="max", brief=False)
    for space, figure in (("h", "h"), ("μ", "mu"), ("EMA h", "ema-h"))
)
DATA = {
    "quick": ("digits",),
    "small": ("cifar10",),
    "medium": ("cifar10",),
    "full": ("cifar10", "cifar100", "stl10"),
}
DF = (1, 3, 7, 20, 50, math.inf)
DRAWS = (0, 1, 2, 4, 16, 64)
OTHERS = {
    "SimSiam": "simsiam",
    "BYOL": "byol",
    "VICReg": "vicreg",
    "Barlow Twins": "barlow-twins",
    "LeJEPA": "lejepa",
    "VI-SimSiam": "vi-simsiam",
}
_FEWER = ("small", "medium", "full")  # budgets of the rows that quick leaves out
# VJE as it is, with ResNet-18 and 200 epochs of 256, on each data set
_VJE: dict[str, tuple[float, ...]] = {
    H: (0.873, 0.563, 0.809),
    MU: (0.870, 0.552, 0.803),
    VARIANCE: (0.647, 0.654, 0.657),
    KL: (141, 128, 142),
}

_NONE: Mapping[tuple[str, str, str], float] = {}
IMAGES = Measurement(run, image_base, SOURCES)
image_study = partial(Study, paper=PAPER, measurement=IMAGES, budgets=BUDGETS, data=DATA)
ablation_study = partial(image_study, budgets={**BUDGETS, "medium": ABLATIONS})
FLOORS = (Row(RANDOM, task="random-init"), Row(PIXELS, task="raw-pixels"))


def _published(row: str, budget: str, others: Mapping[tuple[str, str, str], float] = _NONE) -> Published:
    """The paper's figures of VJE as it is, which a row is, and others."""
    figures = {
        (data, row, column): value
        for column, values in _VJE.items()
        for data, value in zip(DATA["full"], values, strict=True)
    }
    return Published(budget, {**figures, **others})


def best(look: Look, rows: Iterable[str]) -> float:
    """Return the best kNN on h of those of the rows that were run; NotMeasuredError where none was."""
    found = measured(look, rows, H)
    if not found:
        raise NotMeasuredError
    return max(found)


def knn_of_rows(tables: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return kNN on h of each row of a study's only table that was run: its "value" and "seeds"."""
    (table,) = tables.values()
    found = {row["label"]: row["values"][H] for row in table["rows"]}
    return {label: of for label, of in found.items() if of["value"] is not None}


def df_label(df: float) -> str:
    """Return what a row of so many degrees of freedom is called."""
    return "ν = ∞" if math.isinf(df) else f"ν = {df:g}"


TABLE2 = image_study(
    name="vje-table2",
    title="VJE beside other joint-embedding methods",
    paper=f"{PAPER}, table 2",
    question="Are VJE's embeddings worth as much as those of methods without a likelihood?",
    rows=(
        Row("VJE"),
        Row("VJE-EMA", settings={"target": "ema"}),
        *(Row(name, method) for name, method in OTHERS.items()),
        *FLOORS,
    ),
    columns=(*LEARNED, KNN_EMA, *PROBES),
    data={**DATA, "full": (*DATA["full"], "tiny-imagenet")},
    findings=(
        Finding("training pays: kNN on VJE's h is above a random initialisation's",
                lambda r: r("VJE", H) > r(RANDOM, H)),
        Finding("VJE's h is above raw pixels", lambda r: r("VJE", H) > r(PIXELS, H)),
        Finding("VJE keeps up: kNN on h is within three points of SimSiam's, or above it",
                lambda r: r("VJE", H) > r("SimSiam", H) - 0.03),
        Finding("the better of VJE and VJE-EMA is 15 points above raw pixels",
                lambda r: best(r, ("VJE", "VJE-EMA")) >= r(PIXELS, H) + 0.15),
        Finding("the better of VJE and VJE-EMA is within three points of the best of the others",
                lambda r: best(r, ("VJE", "VJE-EMA")) >= best(r, OTHERS) - 0.03),
    ),
    published=_published(
        "VJE",
        "ResNet-18, 200 epochs; VJE: batch 256, from the paper's ablations (its table 2 has 800 epochs); the "
        "others: a public benchmark, batch 128, k = 200, the best epoch on the test set",
        {
            ("cifar10", "SimSiam", H): 0.819,
            ("cifar10", "BYOL", H): 0.869,
            ("cifar10", "Barlow Twins", H): 0.842,
        },
    ),
)  # fmt: skip
DF_SWEEP = ablation_study(
    name="vje-df-sweep",
    title="VJE: degrees of freedom of the likelihood",
    question="How heavy must the tails of VJE's likelihood be?",
    rows=(*(Row(df_label(df), settings={"df": df}) for df in DF), *FLOORS),
    columns=LEARNED,
    findings=(
        Finding(
            "with a Gaussian likelihood (ν = ∞) the posterior means know less: kNN on μ is 20 points "
            "below ν = 1",
            lambda r: r("ν = ∞", MU) < r("ν = 1", MU) - 0.2,
            asserted=True,
        ),
        Finding("with a Gaussian likelihood the embeddings are worse: kNN on h is 5 points below ν = 1",
                lambda r: r("ν = ∞", H) < r("ν = 1", H) - 0.05, asserted=True),
        Finding("with a Gaussian likelihood the posterior shrinks: mean σ² is below half of that at ν = 1",
                lambda r: r("ν = ∞", VARIANCE) < 0.5 * r("ν = 1", VARIANCE), asserted=True),
        Finding("a Gaussian likelihood collapses: kNN on h is below half of that at ν = 1",
                lambda r: r("ν = ∞", H) < 0.5 * r("ν = 1", H)),
        Finding("and so does ν = 50: kNN on h is below half of that at ν = 1",
                lambda r: r("ν = 50", H) < 0.5 * r("ν = 1", H)),
        Finding(
            "ν = 1 and 3 are the best: none of the others has a better kNN on h by more than a point",
            lambda r: (
                max(r(df_label(df), H) for df in DF[2:]) <= 0.01 + max(r(df_label(df), H) for df in DF[:2])
            ),
        ),
    ),
    published=_published(
        "ν = 1",
        "ResNet-18, 200 epochs of 256, all images; of the other ν the text gives words alone",
    ),
)  # fmt: skip
LOSS_ABLATION = ablation_study(
    name="vje-loss-ablation",
    title="VJE: the terms of the loss",
    question="What does each term of VJE's loss do?",
    rows=(
        Row("full"),
        Row("no KL", settings={"kl_weight": 0.0}),
        Row("no radial", settings={"radial": False}),
        Row("no directional", settings={"directional": False}),
        Row("EMA target", settings={"target": "ema"}),
        *FLOORS,
    ),
    columns=(*LEARNED, KNN_EMA),
    findings=(
        Finding("without the KL the posterior shrinks: mean σ² is below half of the full loss's",
                lambda r: r("no KL", VARIANCE) < 0.5 * r("full", VARIANCE)),
        Finding("without the KL the posterior leaves the prior: the KL is above ten times the full loss's",
                lambda r: r("no KL", KL) > 10 * r("full", KL), asserted=True),
        Finding("without the KL the embeddings are worse: kNN on h is 10 points below the full loss's",
                lambda r: r("no KL", H) < r("full", H) - 0.1, asserted=True),
        Finding("without the directional term the posterior becomes the prior: mean σ² is within 5 % of 1",
                lambda r: abs(r("no directional", VARIANCE) - 1) < 0.05),
        Finding("without the directional term the posterior widens: mean σ² is above 0.9",
                lambda r: r("no directional", VARIANCE) > 0.9, asserted=True),
        Finding(
            "without the directional term the embeddings are near chance: kNN on h is below half of the full "
            "loss's",
            lambda r: r("no directional", H) < 0.5 * r("full", H),
        ),
        Finding("the radial term matters little: kNN on h changes by less than a point (0.3 in the paper)",
                lambda r: abs(r("no radial", H) - r("full", H)) < 0.01),
    ),
    published=_published(
        "full",
        "ResNet-18, 200 epochs of 256, all images; of the ablations the text gives words alone",
    ),
)  # fmt: skip
DRAWS_SWEEP = ablation_study(
    name="vje-draws",
    title="VJE: draws from the posterior",
    question="How many draws from the posterior does a step need?",
    rows=(
        *(
            Row(f"L = {n}", settings={"draws": n}, budgets=_FEWER if n in (2, 64) else tuple(BUDGETS))
            for n in DRAWS
        ),
        *FLOORS,
    ),
    columns=LEARNED,
    findings=(
        Finding("without a draw (L = 0) the posterior widens: mean σ² is above that of one draw",
                lambda r: r("L = 0", VARIANCE) > r("L = 1", VARIANCE), asserted=True),
        Finding("without a draw the embeddings are worse: kNN on h is 10 points below one draw",
                lambda r: r("L = 0", H) < r("L = 1", H) - 0.1),
        Finding("one draw is enough: L = 4 and 16 change kNN on h by less than two points",
                lambda r: max(abs(r(f"L = {n}", H) - r("L = 1", H)) for n in (4, 16)) < 0.02),
    ),
    published=_published(
        "L = 1",
        "ResNet-18, 200 epochs of 256, all images; L ≥ 1 all alike",
        {
            ("cifar10", "L = 0", H): 0.343,
            ("cifar10", "L = 0", VARIANCE): 0.876,
            ("cifar100", "L = 0", VARIANCE): 0.865,
            ("stl10", "L = 0", VARIANCE): 0.925,
        },
    ),
)  # fmt: skip
ISOTROPIC = ablation_study(
    name="vje-isotropic",
    title="VJE: isotropic posterior variance",
    question="Does VJE need a variance for each feature?",
    rows=(
        Row("diagonal, ν = 1"),
        *(
            Row(
                f"isotropic, {df_label(df)}",
                settings={"variance": "isotropic", "df": df},
                budgets=_FEWER if df in (3, 20, 50) else tuple(BUDGETS),
            )
            for df in DF
        ),
        *FLOORS,
    ),
    columns=LEARNED,
    findings=(
        Finding("one variance an input leaves μ at chance: at ν = 1 kNN on μ is below half of the diagonal's",
                lambda r: r("isotropic, ν = 1", MU) < 0.5 * r("diagonal, ν = 1", MU)),
        Finding("and h is far worse: at ν = 1 kNN on h is 10 points below the diagonal's",
                lambda r: r("isotropic, ν = 1", H) < r("diagonal, ν = 1", H) - 0.1),
    ),
    published=_published(
        "diagonal, ν = 1",
        "ResNet-18, 200 epochs of 256; isotropic: μ at chance at every ν, kNN on h 20.5 to 26.8",
    ),
)  # fmt: skip
STANDARD_LIKELIHOOD = ablation_study(
    name="vje-standard-likelihood",
    title="VJE: polar or standard likelihood",
    question="What does splitting direction from radius buy?",
    rows=(Row("polar"), Row("standard", settings={"likelihood": "standard"}), *FLOORS),
    columns=LEARNED,
    findings=(
        Finding("the standard likelihood has a narrower posterior: mean σ² is below the polar one's",
                lambda r: r("standard", VARIANCE) < r("polar", VARIANCE)),
        Finding("and a larger KL", lambda r: r("standard", KL) > r("polar", KL)),
        Finding("on small images both embeddings are worth the same: kNN on h within two points",
                lambda r: abs(r("standard", H) - r("polar", H)) < 0.02),
    ),
    published=_published(
        "polar",
        "ResNet-18, 200 epochs of 256; on ImageNet-100 the standard one collapses (not run)",
        {
            (data, "standard", column): value
            for data, values in (
                ("cifar10", (0.868, 0.245, 286)),
                ("cifar100", (0.557, 0.268, 248)),
                ("stl10", (0.812, 0.414, 191)),
            )
            for column, value in zip((H, VARIANCE, KL), values, strict=True)
        },
    ),
)  # fmt: skip
COMPUTE = Study(
    name="vje-compute",
    title="VJE: the cost of a step",
    paper=PAPER,
    question="What does a likelihood cost, beside a predictor and a projector?",
    measurement=cost.STEP,
    budgets=BUDGETS,
    rows=(
        Row("VJE", task="cost"),
        Row("VJE-EMA", task="cost", settings={"target": "ema"}),
        *(Row(name, method, task="cost") for name, method in OTHERS.items()),
    ),
    columns=(
        Column("parameters, M", "parameters", better="min", limits=(0, None)),
        Column("GFLOP a step", "flops", better="min", limits=(0, None)),
        Column("step, s", "step seconds", limits=(0, None)),
        Column("step / SimSiam's", "step ratio", better="min", plot=True, limits=(0, None)),
        Column("memory, GiB", "memory", better="min", limits=(0, None)),
    ),
    findings=(
        Finding("VJE costs about what SimSiam costs: a step takes at most 1.1 times as long (paper: 1.02)",
                lambda r: r("VJE", "step / SimSiam's") < 1.1),
        Finding("an averaged encoder costs: VJE-EMA's step takes longer than VJE's",
                lambda r: r("VJE-EMA", "step / SimSiam's") > r("VJE", "step / SimSiam's")),
    ),
    published=Published(
        "ResNet-50 at 224 px, throughput of the whole training turned into time a step",
        {
            (cost.RANDOM_PIXELS, row, "step / SimSiam's"): 1 / throughput
            for row, throughput in (("VJE", 0.98), ("VJE-EMA", 0.74), ("BYOL", 0.75), ("SimSiam", 1.0))
        },
    ),
)  # fmt: skip
