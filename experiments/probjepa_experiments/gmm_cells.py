"""An encoder trained to Gaussian embeddings of a mixture, and its JEPA-SCORE beside the true density.

"Gaussian Embeddings: How JEPAs Secretly Learn Your Data Density", arXiv 2510.05949. An MLP is trained to
Gaussian embeddings (SIGReg) that agree between two noisy views, and its score is compared with the true log p
of held-out samples: the paper's form Σ log σ, and the change of variables with log p_Z.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from probjepa.jacobian import jepa_score, jepa_score_details
from probjepa.jacobian.latent import fit_normal, latent_term
from probjepa.methods.ema import EMA
from probjepa.methods.sigreg import sigreg
from probjepa.training.schedules import step_seed, warmup_cosine
from probjepa_experiments.gaussian_mixture import GaussianMixture, energy_distance, langevin
from probjepa_experiments.study import Budget, Cell, Data, Measured

LANGEVIN = {"chains": 1000, "proposals": 300, "step": 0.02, "bound": 4.0}
_HELD_OUT_SEED = 1_000_003
_SCATTER_POINTS = 400


class ResidualMLP(nn.Module):
    """f(x) = Wx + g(x), (N, P) → (N, K): W orthogonal at the start, g a SiLU network that starts small.

    A square one starts as an invertible map, and training bends it. Smooth, as its Jacobian is the score.
    """

    def __init__(self, dim: int, embedding_dim: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else dim, width), nn.SiLU()]
        last = nn.Linear(width, embedding_dim)
        self.bend = nn.Sequential(*layers, last)
        self.linear = nn.Linear(dim, embedding_dim, bias=False)
        nn.init.orthogonal_(self.linear.weight)
        with torch.no_grad():
            last.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed points."""
        return cast(Tensor, self.linear(x) + self.bend(x))


def train(settings: Mapping[str, Any], data: Tensor, seed: int) -> tuple[nn.Module, float]:
    """Train an encoder on points (N, P); return its average over the last steps, and the last SIGReg.

    loss = (1 − λ)·½ E‖f(x + noise) − f(x + noise′)‖² + λ·mean over the views of SIGReg(f), with Adam and a
    cosine schedule. λ is ``sigreg_weight``; ``resolution`` is SIGReg's s (1: as published); ``noise`` the
    views' standard deviation, where the data have about 1 a coordinate. Without steps the encoder is as it
    was drawn, and SIGReg NaN.
    """
    steps, rate = settings["steps"], settings["learning_rate"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 0))
        model = ResidualMLP(*(settings[key] for key in ("dim", "embedding_dim", "width", "depth")))
    teacher = EMA(model, 0.99)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(step_seed(seed, 1))
    last: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * warmup_cosine(step, steps, min(100, steps // 10))
        rows = torch.randint(len(data), (settings["batch_size"],), generator=generator)
        points = data[rows].repeat(2, 1)
        noisy = points + settings["noise"] * torch.randn(points.shape, generator=generator)
        first, second = model(noisy).chunk(2)
        gaussian = 0.5 * sum(
            (
                sigreg(view, settings["directions"], generator, resolution=settings["resolution"])
                for view in (first, second)
            ),
            torch.zeros(()),
        )
        invariance = 0.5 * (first - second).square().sum(1).mean()
        loss = (1 - settings["sigreg_weight"]) * invariance + settings["sigreg_weight"] * gaussian
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        teacher.update(model, 0, steps)  # a constant momentum: the schedule anneals the rate already
        last = [*last[-99:], gaussian.item()]
    return teacher.module, float(np.mean(last)) if last else math.nan


def run(cell: Cell, data: Data, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train and score one encoder: correlations with the truth, what limits them, and Langevin samples.

    Its pictures are the points of its scatter, and where the Langevin chains ended.
    """
    from scipy.stats import spearmanr

    settings, dim = cell.settings, cell.settings["dim"]
    mixture = GaussianMixture(dim)
    generator = torch.Generator().manual_seed(step_seed(cell.seed, 2))
    points = mixture.sample(settings["samples"], generator).float()
    # the held-out samples are the same in all cells of a dimension
    held_out = mixture.sample(settings["held_out"], torch.Generator().manual_seed(_HELD_OUT_SEED)).float()
    model, gaussianity = train(settings, points, cell.seed)
    parts = jepa_score_details(model, held_out, latent="normal")
    with torch.no_grad():
        reference = model(points[:10_000])
    truth = mixture.log_prob(held_out)
    found = {
        "paper": parts.log_volume,
        "normal": parts.score,
        "fitted": jepa_score(model, held_out, latent=reference),
        "latent alone": parts.latent,
    }
    s = settings["resolution"]
    null = s * math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(1 + 2 * s**2))  # of an exact N(0, I)
    figures = {
        **{f"pearson/{name}": pearson(value, truth) for name, value in found.items()},
        **{f"spearman/{name}": float(spearmanr(value, truth)[0]) for name, value in found.items()},
        # a normal fitted to the inputs, with no encoder: what is trivial
        "pearson/normal fit of the inputs": pearson(latent_term(fit_normal(points), held_out), truth),
        # what an encoder that maps the views' law exactly onto N(0, I) would score
        "pearson/noisy views": pearson(GaussianMixture(dim, settings["noise"]).log_prob(held_out), truth),
        "sigreg": gaussianity,
        "sigreg above its null": gaussianity - null,
    }
    pictures: dict[str, Any] = {
        "scatter": {
            "log_p": _rounded(truth[:_SCATTER_POINTS]),
            **{name: _rounded(found[name][:_SCATTER_POINTS]) for name in ("paper", "normal")},
        }
    }
    if dim == settings["embedding_dim"]:
        adapted = parts.log_volume + mixture_log_density(reference, parts.embeddings)
        # log p_Z(f) + log|det J| is itself a density if f is one-to-one: its offset is an error, too
        error = parts.score - truth
        figures |= {
            "pearson/fitted mixture": pearson(adapted, truth),
            "flipped": flipped_share(model, held_out),
            "mean error": float(error.mean()),
            "rms error": float(error.square().mean().sqrt()),
        }
    if dim == settings["embedding_dim"] == 2:
        drawn, distances = sample_by_langevin(model, mixture, points, cell.seed)
        figures |= {f"energy distance/{name}": value for name, value in distances.items()}
        pictures["langevin"] = [_rounded(row) for row in drawn]
    return Measured(figures, pictures=pictures)


def pearson(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation of two (N,) tensors."""
    return float(np.corrcoef(x.double().numpy(), y.double().numpy())[0, 1])


def mixture_log_density(reference: Tensor, embeddings: Tensor) -> Tensor:
    """Log-density (N,) of embeddings (N, K) under a mixture of 16 normals fitted to a reference (M, K)."""
    from sklearn.mixture import GaussianMixture as Fit

    fit = Fit(min(16, len(reference) // 20), reg_covar=1e-4, random_state=0)
    fit.fit(reference.double().numpy())
    return torch.from_numpy(fit.score_samples(embeddings.double().numpy()))


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobians (N, K, P) of a map at points (N, P) that require a gradient, with their graph."""
    out = model(x)
    rows = [torch.autograd.grad(out[:, k].sum(), x, create_graph=True)[0] for k in range(out.shape[1])]
    return torch.stack(rows, 1)


def flipped_share(model: nn.Module, x: Tensor) -> float:
    """Share of points (N, P) where a square map's orientation is the rarer one: 0 where it is not folded."""
    signs = torch.linalg.slogdet(jacobian(model, x.detach().requires_grad_()))[0]
    positive = float((signs > 0).double().mean())
    return min(positive, 1 - positive)


def differentiable_score(model: nn.Module, x: Tensor) -> Tensor:
    """JEPA-SCORE with the latent N(0, I) of points (N, P) for a map with K = P, with its graph: (N,).

    The log-volume is slogdet of the Jacobian, whose second derivative autograd gives; no clipping.
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    volume = torch.linalg.slogdet(jacobian(model, x))[1]
    return cast(Tensor, volume - 0.5 * (model(x).square() + math.log(2 * math.pi)).sum(1))


def sample_by_langevin(
    model: nn.Module, mixture: GaussianMixture, data: Tensor, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """Sample the score's density by Langevin chains; return their ends, and energy distances to the truth.

    The chains start at N(0, I), not at data: what they find is the score's doing. Beside them: fresh samples
    of the truth (the floor), a normal fitted to the data, and the start.
    """
    chains = int(LANGEVIN["chains"])
    generator = torch.Generator().manual_seed(step_seed(seed, 3))
    start = torch.randn(chains, 2, generator=generator)
    drawn = langevin(
        lambda x: differentiable_score(model, x),
        start,
        step=LANGEVIN["step"],
        steps=int(LANGEVIN["proposals"]),
        generator=generator,
        bound=LANGEVIN["bound"],
    )
    truth = mixture.sample(4000, generator)
    root = torch.linalg.cholesky(torch.cov(data.double().T))
    normal = torch.randn(chains, 2, generator=generator, dtype=torch.float64) @ root.T
    others = {
        "langevin": drawn,
        "fresh true samples": mixture.sample(chains, generator),
        "normal fit": normal + data.double().mean(0),
        "start": start,
    }
    return drawn, {name: energy_distance(points, truth) for name, points in others.items()}


def _rounded(values: Iterable[Tensor]) -> list[float]:
    return [round(float(x), 4) for x in values]
