"""Var-JEPA's simulation study: which terms of the bound keep the representation informative and Gaussian?

"Var-JEPA", arXiv 2603.20111. Pairs (x, y) are drawn from the model's own graph, with a mixture of two normals
for s_x. What is measured on held-out draws of q(s_x|x): whether a linear probe finds the component, and how
far the aggregate posterior is from N(0, I).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probjepa.backbones.frozen import evaluating
from probjepa.methods.var_jepa import VarJEPA
from probjepa.metrics import linear_probe
from probjepa.training.schedules import step_seed
from probjepa_experiments.study import (
    RANDOM,
    Budget,
    Cell,
    Column,
    Data,
    Finding,
    Measured,
    Measurement,
    Published,
    Row,
    Source,
    Study,
)

OBSERVED, LATENT, AUXILIARY, WIDTH = 32, 16, 8, 64
PREDICTION_VARIANCE = 0.25
NO_DIVERGENCE = {"alpha_sx": 0.0, "alpha_z": 0.0, "alpha_sy": 0.0}
# the source's letters; what A, E, G, I and J stand for is known, the other five are ours
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    "A": ("A: full bound", {}),
    "B": ("B: no reconstruction", {"alpha_rec": 0.0}),
    "C": ("C: no generation", {"alpha_gen": 0.0}),
    "D": ("D: no KL on s_y", {"alpha_sy": 0.0}),
    "E": ("E: no KL on s_x", {"alpha_sx": 0.0}),
    "F": ("F: no KL on z", {"alpha_z": 0.0}),
    "G": ("G: no reconstruction or generation", {"alpha_rec": 0.0, "alpha_gen": 0.0}),
    "H": ("H: no KL but that of s_x", {"alpha_z": 0.0, "alpha_sy": 0.0}),
    "I": ("I: no KL", NO_DIVERGENCE),
    "J": ("J: no KL, SIGReg", {**NO_DIVERGENCE, "sigreg_weight": 10.0}),
}
OURS = "BCDFH"
RAW = "raw x"  # no encoder: what the probe finds in the pairs themselves
COLUMNS = (
    Column("probe, %", "probe", percent=True, better="max", plot=True),
    Column("aggregate KL", "aggregate KL", plot=True, limits=(0, None)),
    Column("‖Cov − I‖", "covariance", plot=True, limits=(0, None)),
    Column("‖mean‖", "mean", plot=True, limits=(0, None)),
    Column("probe of draws, %", "probe of draws", percent=True),
    Column("posterior σ²", "posterior variance", limits=(0, None)),
    Column("bound, nats", "bound"),
)
PUBLISHED = {  # of the first four columns
    "A": (0.996, 0.113, 0.649, 0.082),
    "E": (0.996, 8.374, 7.197, 2.550),
    "G": (0.571, 0.015, 0.229, 0.055),
    "I": (0.995, 10.465, 8.807, 3.100),
    "J": (0.996, 2.115, 2.594, 0.205),
}
# The samples are ours. The source does not say how many pairs; the held-out ones follow from its variant G,
# whose draws are N(0, I) but for sampling: ‖Cov − I‖ = √(16·17/n) and ‖mean‖ = √(16/n) give n ≈ 5,200 from
# .229 and .055.
SETTINGS = {
    "samples": 10_000,
    "held_out": 5_000,
    "epochs": 40,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "noise": 0.3,
}
BUDGETS = {
    "quick": Budget(
        "quick", "4,000 pairs, 40 epochs of 512, two seeds", {**SETTINGS, "samples": 4_000}, seeds=2
    ),
    "full": Budget("full", "10,000 pairs, 40 epochs of 512, five seeds", SETTINGS, seeds=5),
}
_A, _E, _G, _I, _J = (VARIANTS[letter][0] for letter in "AEGIJ")
FINDINGS = (
    Finding("the full bound keeps the component: A's probe is at least 99 %",
            lambda r: r(_A, "probe, %") >= 0.99),
    Finding("the full bound leaves s_x near its prior: A's aggregate KL is at most 0.2 nats",
            lambda r: r(_A, "aggregate KL") <= 0.2),
    Finding("without the KL on s_x (E) the aggregate KL is at least 10 times A's",
            lambda r: r(_E, "aggregate KL") >= 10 * r(_A, "aggregate KL")),
    Finding("without any KL (I) the aggregate KL is at least 10 times A's",
            lambda r: r(_I, "aggregate KL") >= 10 * r(_A, "aggregate KL")),
    Finding("without reconstruction and generation (G) s_x collapses: the probe is below 65 %",
            lambda r: r(_G, "probe, %") < 0.65),
    Finding("SIGReg in the place of the KLs (J) mends a part: its aggregate KL lies between A's and I's",
            lambda r: r(_A, "aggregate KL") < r(_J, "aggregate KL") < r(_I, "aggregate KL")),
)  # fmt: skip


class Pairs(NamedTuple):
    """Drawn pairs: x, y (N, 32), the component (N,), and the latents behind them."""

    x: Tensor
    y: Tensor
    component: Tensor
    s_x: Tensor
    z: Tensor
    s_y: Tensor


class Simulator:
    """The study's generative process, with maps that ``seed`` draws once.

    s_x ~ ½N(0, I) + ½N(2·1, I), z ~ N(0, I), s_y ~ N(s_x + Az, ¼I) with A_jk ~ N(0, 1/8); x and y are
    W₂tanh(W₁s) of s_x and s_y, each with its own W, plus N(0, noise²). Weights are Xavier-uniform without
    biases, which is ours: the source gives the layers alone. With it a classifier on x finds the component
    in 99.7 to 99.9 % of the draws, as the published 99.6 % asks; with PyTorch's default in 97 to 99 %.
    """

    def __init__(self, seed: int, noise: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(step_seed(seed, 0))
        self.noise = noise
        self.mixing = torch.randn(LATENT, AUXILIARY, generator=generator) / AUXILIARY**0.5
        shapes = ((WIDTH, LATENT), (OBSERVED, WIDTH)) * 2
        weights = [nn.init.xavier_uniform_(torch.empty(s), generator=generator) for s in shapes]
        self.maps = (weights[:2], weights[2:])

    def observe(self, side: int, latent: Tensor) -> Tensor:
        """The noiseless x (side 0) or y (side 1) of latents: (N, 16) → (N, 32)."""
        first, second = self.maps[side]
        return torch.tanh(latent @ first.T) @ second.T

    def sample(self, n: int, generator: torch.Generator) -> Pairs:
        """Draw n pairs."""

        def normal(dim: int) -> Tensor:
            return torch.randn(n, dim, generator=generator)

        component = torch.randint(2, (n,), generator=generator)
        s_x = 2.0 * component[:, None] + normal(LATENT)
        z = normal(AUXILIARY)
        s_y = s_x + z @ self.mixing.T + PREDICTION_VARIANCE**0.5 * normal(LATENT)
        x = self.observe(0, s_x) + self.noise * normal(OBSERVED)
        y = self.observe(1, s_y) + self.noise * normal(OBSERVED)
        return Pairs(x, y, component, s_x, z, s_y)


def aggregate_gaussianity(draws: Tensor) -> dict[str, float]:
    """How far draws (N, K) of an aggregate posterior are from N(0, I), by their first two moments.

    "aggregate KL": KL(N(m, C) ‖ N(0, I)) = ½(tr C − K − log|C| + ‖m‖²) with their mean m and covariance C;
    "covariance": ‖C − I‖_F; "mean": ‖m‖. The source's figures are of this definition, and of draws. Near I,
    KL ≈ ¼‖C − I‖² + ½‖m‖²: for its variant A that is .109 with its .649 and .082, and it prints .113; for G
    .015, as printed. The posterior means of a collapsed G would have C = 0 and an infinite KL.
    """
    draws = draws.double()
    mean, covariance = draws.mean(0), torch.cov(draws.T)
    identity = torch.eye(len(mean), dtype=torch.float64)
    kl = 0.5 * (covariance.trace() - len(mean) - torch.logdet(covariance) + mean @ mean)
    return {
        "aggregate KL": kl.item(),
        "covariance": (covariance - identity).norm().item(),
        "mean": mean.norm().item(),
    }


def train(
    x: Tensor, y: Tensor, seed: int, weights: Mapping[str, Any], settings: Mapping[str, Any]
) -> VarJEPA:
    """Train a variant on pairs (N, 32) with Adam; all randomness is the seed's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 1))
        model = VarJEPA(x_dim=OBSERVED, y_dim=OBSERVED, latent_dim=LATENT, z_dim=AUXILIARY, **weights)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
        for _ in range(settings["epochs"]):
            for rows in torch.randperm(len(x)).split(settings["batch_size"]):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                model.loss((x[rows], y[rows]))["loss"].backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model.eval()


def run(cell: Cell, data: Data, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Draw pairs, train a variant on them, and measure its posterior on others."""
    settings = {name: cell.settings[name] for name in SETTINGS}
    weights = {name: value for name, value in cell.settings.items() if name not in (*SETTINGS, RAW)}
    simulator = Simulator(cell.seed, settings["noise"])
    generator = torch.Generator().manual_seed(step_seed(cell.seed, 2))
    known, new = (simulator.sample(settings[name], generator) for name in ("samples", "held_out"))
    labels = (known.component, new.component)
    if RAW in cell.settings:
        return Measured({"probe": linear_probe(known.x, labels[0], new.x, labels[1])})
    model = train(known.x, known.y, cell.seed, weights, settings)
    means, draws, variance = [], [], torch.zeros(())
    for pairs in (known, new):
        posterior = model.posterior(pairs.x)
        noise = torch.randn(posterior.mean.shape, generator=generator)
        means.append(posterior.mean)
        draws.append(posterior.mean + posterior.stddev * noise)
        variance = posterior.variance.mean()
    with evaluating(model):
        bound = model.score_samples(new.x, new.y, draws=256, seed=cell.seed).mean()
    return Measured(
        {
            "probe": linear_probe(means[0], labels[0], means[1], labels[1]),
            "probe of draws": linear_probe(draws[0], labels[0], draws[1], labels[1]),
            **aggregate_gaussianity(draws[1]),
            "posterior variance": variance.item(),
            "bound": bound.item(),
        }
    )


STUDY = Study(
    name="var-jepa-simulation",
    title="Var-JEPA: the terms of the bound",
    paper="Var-JEPA, arXiv 2603.20111",
    question="Which terms keep the representation informative and near its prior?",
    measurement=Measurement(
        run, sources={"simulation": Source("pairs drawn from the model's graph")}, seeded_data=True
    ),
    rows=(
        *(
            Row(label, settings=weights, budgets=("quick", "full") if letter in PUBLISHED else ("full",))
            for letter, (label, weights) in VARIANTS.items()
        ),
        Row(RANDOM, settings={"epochs": 0}),
        Row(RAW, settings={RAW: True}),
    ),
    columns=COLUMNS,
    budgets=BUDGETS,
    about="The probe is a logistic regression on the standardised posterior means of s_x, which finds the "
    "mixture's component. That is plain in x itself, so that an untrained encoder's means have it, too; the "
    "probe of draws tells what a posterior keeps. Aggregate KL, covariance and mean are of held-out draws of "
    "q(s_x|x): the KL to N(0, I) of the normal with their mean and covariance, and how far these two are "
    "from 0 and I. Posterior σ² is 1 where it has collapsed onto the prior; the bound is the evidence lower "
    "bound of log p(x, y), "
    f"whatever the weights. What the letters {', '.join(OURS)} stand for is ours: the published figures that "
    "we have are of the other five. Also ours: the number of pairs, Xavier-uniform weights of the data's "
    "frozen maps, a learned standard deviation for each decoder, GELU, and SIGReg as a plain mean over "
    "directions and frequencies. The weights, the decoders' scale and SIGReg's form were settled on trial "
    "runs of one or two other draws, by what came nearest to the published figures; then the seeds were run "
    "once.",
    findings=FINDINGS,
    published=Published(
        "40 epochs of 512, five runs, an unknown number of pairs",
        {
            ("simulation", VARIANTS[letter][0], column.label): value
            for letter, values in PUBLISHED.items()
            for column, value in zip(COLUMNS, values, strict=False)
        },
    ),
)
