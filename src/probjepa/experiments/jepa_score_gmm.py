"""The paper's synthetic study: does JEPA-SCORE find the density of a Gaussian mixture?

"Gaussian Embeddings: How JEPAs Secretly Learn Your Data Density", arXiv 2510.05949, its second figure. An MLP
is trained to Gaussian embeddings (SIGReg) that agree between two noisy views, and its score is compared with
the true log p of held-out samples: the paper's form Σ log σ, and the change of variables with log p_Z.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import probjepa
from probjepa.errors import ConfigError
from probjepa.experiments.gaussian_mixture import GaussianMixture, energy_distance, langevin
from probjepa.files import refuse_existing, write_text
from probjepa.jacobian import jepa_score, jepa_score_details
from probjepa.jacobian.latent import fit_normal, latent_term
from probjepa.methods.ema import EMA
from probjepa.methods.sigreg import sigreg
from probjepa.training.schedules import step_seed, warmup_cosine

DIMS = (2, 4, 8, 16)
SIZES: dict[int, tuple[int | None, ...]] = {  # samples → embedding dimensions; None: that of the data
    10_000: (None, 16, 64),
    1_000: (None,),
    100_000: (None,),
}
TARGETS = {2: 0.9, 8: 0.8}  # P → Pearson with the latent term at 10,000 samples
STEPS = 1000
LONG = (  # P, resolution, steps: what limits the correlation?
    (2, 1.0, 4000),
    (2, 3.0, 4000),
    (2, 3.0, 10_000),
    (8, 1.0, 4000),
    (8, 3.0, 4000),
)
QUICK_STEPS = 300
LANGEVIN_CHAINS = 1000
LANGEVIN_STEP = 0.02
LANGEVIN_PROPOSALS = 300
LANGEVIN_BOUND = 4.0
_HELD_OUT_SEED = 1_000_003
_SCATTER_POINTS = 400


@dataclass(frozen=True)
class Cell:
    """One trained encoder: the mixture, the sample, and the training budget.

    ``sigreg_weight`` is λ of (1 − λ)·invariance + λ·SIGReg, ``resolution`` its s (1: as published); ``noise``
    the views' standard deviation, where the data have about 1 a coordinate.
    """

    dim: int
    samples: int
    embedding_dim: int
    steps: int
    batch_size: int = 1024
    directions: int = 16
    noise: float = 0.1
    sigreg_weight: float = 0.5
    resolution: float = 1.0
    learning_rate: float = 5e-3
    width: int = 128
    depth: int = 2
    held_out: int = 2000
    seed: int = 0

    @property
    def name(self) -> str:
        """The cell's file name, without its ending."""
        return f"d{self.dim}_n{self.samples}_k{self.embedding_dim}_t{self.steps}_s{self.resolution:g}"


def study_cells(quick: bool, seed: int) -> list[Cell]:
    """Return the cells of the study.

    K = P, 16 and 64 at 10,000 samples; K = P at other sample sizes; and in the dimensions with a target,
    trained for longer, the published SIGReg and one three times as fine: what limits the correlation?
    """
    if quick:
        small = Cell(2, 2000, 2, steps=QUICK_STEPS, width=64, directions=8, held_out=500, seed=seed)
        return [
            small,
            replace(small, embedding_dim=16, directions=16),
            replace(small, dim=8, embedding_dim=8),
        ]
    cells = []
    for dim in DIMS:
        for samples, widths in SIZES.items():
            for width in sorted({width or dim for width in widths}):
                cells.append(Cell(dim, samples, width, steps=STEPS, seed=seed))
    cells += [Cell(dim, 10_000, dim, steps, resolution=s, seed=seed) for dim, s, steps in LONG]
    return cells


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


def train(cell: Cell, data: Tensor, tick: Callable[[], None] = lambda: None) -> tuple[nn.Module, float]:
    """Train an encoder on points (N, P); return its average over the last steps, and the last SIGReg.

    loss = (1 − λ)·½ E‖f(x + noise) − f(x + noise′)‖² + λ·mean over the views of SIGReg(f), with Adam and a
    cosine schedule. ``tick`` is called at every step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(cell.seed, 0))
        model = ResidualMLP(cell.dim, cell.embedding_dim, cell.width, cell.depth)
    teacher = EMA(model, 0.99)
    optimiser = torch.optim.Adam(model.parameters(), lr=cell.learning_rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(step_seed(cell.seed, 1))
    last: list[float] = []
    for step in range(cell.steps):
        for group in optimiser.param_groups:
            group["lr"] = cell.learning_rate * warmup_cosine(step, cell.steps, min(100, cell.steps // 10))
        rows = torch.randint(len(data), (cell.batch_size,), generator=generator)
        points = data[rows].repeat(2, 1)
        noisy = points + cell.noise * torch.randn(points.shape, generator=generator)
        first, second = model(noisy).chunk(2)
        gaussian = 0.5 * sum(
            (
                sigreg(view, cell.directions, generator, resolution=cell.resolution)
                for view in (first, second)
            ),
            torch.zeros(()),
        )
        invariance = 0.5 * (first - second).square().sum(1).mean()
        loss = (1 - cell.sigreg_weight) * invariance + cell.sigreg_weight * gaussian
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        teacher.update(model, 0, cell.steps)  # a constant momentum: the schedule anneals the rate already
        last = [*last[-99:], gaussian.item()]
        tick()
    return teacher.module, float(np.mean(last))


def run_cell(cell: Cell, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train and score one cell; return settings, correlations and the points of its scatter."""
    from scipy.stats import spearmanr

    started, cpu = time.monotonic(), time.process_time()
    mixture = GaussianMixture(cell.dim)
    sample_seed = step_seed(cell.seed, 2)
    data = mixture.sample(cell.samples, torch.Generator().manual_seed(sample_seed)).float()
    # the held-out samples are the same in all cells of a dimension
    held_out = mixture.sample(cell.held_out, torch.Generator().manual_seed(_HELD_OUT_SEED)).float()
    model, gaussianity = train(cell, data, tick)
    parts = jepa_score_details(model, held_out, latent="normal")
    with torch.no_grad():
        reference = model(data[:10_000])
    truth = mixture.log_prob(held_out)
    found = {
        "paper": parts.log_volume,
        "normal": parts.score,
        "fitted": jepa_score(model, held_out, latent=reference),
        "latent alone": parts.latent,
    }
    # what an encoder that maps the views' law exactly onto N(0, I) would score
    ceiling = GaussianMixture(cell.dim, smoothing=cell.noise).log_prob(held_out)
    # and a normal fitted to the inputs, with no encoder: what is trivial
    alone = latent_term(fit_normal(data), held_out)
    result: dict[str, Any] = {
        "settings": asdict(cell),
        "sigreg_last_100_steps": gaussianity,
        "pearson": {k: pearson(v, truth) for k, v in found.items()},
        "spearman": {k: float(spearmanr(v, truth)[0]) for k, v in found.items()},
        "pearson_of_a_normal_fitted_to_the_inputs": pearson(alone, truth),
        "pearson_ceiling_of_noisy_views": pearson(ceiling, truth),
        "scatter": {
            "log_p": _rounded(truth[:_SCATTER_POINTS]),
            **{k: _rounded(v[:_SCATTER_POINTS]) for k, v in found.items() if k in ("paper", "normal")},
        },
    }
    if cell.dim == cell.embedding_dim:
        adapted = parts.log_volume + mixture_log_density(reference, parts.embeddings)
        result["pearson"]["fitted mixture"] = pearson(adapted, truth)
        result["flipped"] = flipped_share(model, held_out)
        # log p_Z(f) + log|det J| is itself a density if f is one-to-one: its offset is an error, too
        result["mean_log_score_minus_log_p"] = float((parts.score - truth).mean())
        result["rms_log_score_minus_log_p"] = float((parts.score - truth).square().mean().sqrt())
    if cell.dim == cell.embedding_dim == 2:
        result["langevin"] = sample_by_langevin(model, mixture, data, cell.seed)
    return {**result, "seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}


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
    positive = float(
        (torch.linalg.slogdet(jacobian(model, x.detach().requires_grad_()))[0] > 0).double().mean()
    )
    return min(positive, 1 - positive)


def differentiable_score(model: nn.Module, x: Tensor) -> Tensor:
    """JEPA-SCORE with the latent N(0, I) of points (N, P) for a map with K = P, with its graph: (N,).

    The log-volume is slogdet of the Jacobian, whose second derivative autograd gives; no clipping.
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    volume = torch.linalg.slogdet(jacobian(model, x))[1]
    return cast(Tensor, volume - 0.5 * (model(x).square() + math.log(2 * math.pi)).sum(1))


def sample_by_langevin(model: nn.Module, mixture: GaussianMixture, data: Tensor, seed: int) -> dict[str, Any]:
    """Sample the score's density by Langevin chains and compare with the truth, in energy distance.

    The chains start at N(0, I), not at data: what they find is the score's doing. Beside them: fresh samples
    of the truth (the floor), a normal fitted to the data, and the start.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, 3))
    start = torch.randn(LANGEVIN_CHAINS, 2, generator=generator)
    drawn = langevin(
        lambda x: differentiable_score(model, x),
        start,
        step=LANGEVIN_STEP,
        steps=LANGEVIN_PROPOSALS,
        generator=generator,
        bound=LANGEVIN_BOUND,
    )
    truth = mixture.sample(4000, generator)
    root = torch.linalg.cholesky(torch.cov(data.double().T))
    normal = torch.randn(LANGEVIN_CHAINS, 2, generator=generator, dtype=torch.float64) @ root.T
    others = {
        "langevin": drawn,
        "fresh true samples": mixture.sample(LANGEVIN_CHAINS, generator),
        "normal fit": normal + data.double().mean(0),
        "start": start,
    }
    return {
        "settings": {
            "chains": LANGEVIN_CHAINS,
            "step": LANGEVIN_STEP,
            "proposals": LANGEVIN_PROPOSALS,
            "bound": LANGEVIN_BOUND,
            "gradient": "autograd through slogdet of the 2×2 Jacobian and log N(f; 0, I)",
        },
        "energy_distance": {name: energy_distance(points, truth) for name, points in others.items()},
        "points": [_rounded(row) for row in drawn],
    }


def reproduce(
    out: Path,
    *,
    data_root: Path | None,
    budget: str,
    cells: Path | None,
    seed: int,
    overwrite: bool,
    progress: bool,
) -> None:
    """Run the study into ``out``: one JSON a cell as they end, then metrics.json and report.html.

    A run that was cut short goes on where it was: cells whose settings are the same are not run again.

    Parameters
    ----------
    data_root
        not used: the data are drawn
    budget
        "full", or "quick": three small cells in place of the study
    cells
        folder of the finished cells; None: ``out``/cells

    Raises
    ------
    ConfigError
        for another budget
    ArtifactError
        if ``out`` holds a finished study or something else, or cannot be written
    """
    from probjepa.experiments.jepa_score_gmm_page import page, summary

    if budget not in ("quick", "full"):
        raise ConfigError(
            f"jepa-score-gmm runs as quick or full, not '{budget}': its data are drawn, any CPU will do"
        )
    quick = budget == "quick"
    study = study_cells(quick, seed)
    half_done = not (out / "metrics.json").exists() and (out / "cells").is_dir()
    refuse_existing(out, overwrite or half_done)
    found = []
    with _bar(sum(cell.steps for cell in study), progress) as (advance, say):
        for cell in study:
            say(f"{cell.dim}-D, {cell.samples:,} samples, K = {cell.embedding_dim}")
            place = (cells or out / "cells") / f"{cell.name}.json"
            result = _finished(place, cell)
            if result is None:
                result = run_cell(cell, lambda: advance(1))
                write_text(place, json.dumps(result) + "\n")
            else:
                advance(cell.steps)
            found.append(result)
    metrics = {
        "experiment": "jepa-score-gmm",
        "paper": "arXiv 2510.05949",
        "quick": quick,
        "seed": seed,
        "probjepa_version": probjepa.__version__,
        "hardware": {
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "cpu_seconds": sum(result["cpu_seconds"] for result in found),
        "cells": found,
    }
    write_text(out / "report.html", page(metrics))
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print(summary(metrics))


def _finished(place: Path, cell: Cell) -> dict[str, Any] | None:
    """The cell's result, if it is there, whole, and of the same settings."""
    try:
        result = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("settings") == asdict(cell) else None


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar over all training steps on stderr: yields how to move on, and how to say what is at work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps: bar.advance(task, steps), lambda text: bar.update(task, description=text)


def _rounded(values: Tensor | Sequence[float]) -> list[float]:
    return [round(float(x), 4) for x in values]
