"""What is measured of I-JEPA with a head: accuracies, its predictions, and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probjepa import metrics
from probjepa.backbones.frozen import evaluating
from probjepa.data import ImageSet, split
from probjepa.evaluation.predictive import evaluate_predictions, target_std
from probjepa.methods.ijepa import IJEPA
from probjepa_experiments import curves
from probjepa_experiments.cost import in_turns, quartiles, stepper, timed
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.images import build, trained
from probjepa_experiments.measure import Figure, embedded, knn_accuracy, linear_accuracy
from probjepa_experiments.study import Budget, Cell, Measured

TEST_IMAGES = {"small": 2_000}  # stratified; other budgets: all
_POINTS = 2048  # of each picture
_WIDEST_PROBE = 2048
_LARGEST_LBFGS = 20_000  # rows; beyond, the probe is trained by SGD
_TIMED_TOKENS = 256
_ROUNDS = 5
_CURVE = 10  # kNN accuracies over a training
_CURVES = {"epoch": "epoch", "train/loss": "loss", "train/target_std": "target_std", "knn": "knn"}


def run(cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train and measure a cell, or go on with what ``folder`` holds of it.

    Its pictures are curves, and samples and targets in the targets' three main directions.
    """
    test = _capped(data.test, TEST_IMAGES.get(cell.budget))
    data = replace(data, test=test)
    watched: dict[str, Any] = {}
    if cell.task == "train":
        watched = {"val": test, "knn_every": max(1, cell.fit["epochs"] // _CURVE)}
    method = trained(cell, data, folder, monitor_every=0, progress=progress, **watched)
    pixels = cell.task == "raw-pixels"
    bank, queries = (embedded(method, images, pixels=pixels) for images in (data.train, test))
    figures: dict[str, Figure | float] = {"knn20/h": knn_accuracy(data, bank, queries)}
    if bank.shape[1] <= _WIDEST_PROBE:
        how: Any = "lbfgs" if len(bank) <= _LARGEST_LBFGS else "sgd"
        figures["linear/h"] = linear_accuracy(data, bank, queries, method=how, seed=cell.seed)
    if not isinstance(method, IJEPA):
        return Measured(figures)
    figures["effective rank"] = metrics.effective_rank(queries)
    figures["target std"] = target_std(method, test.get(slice(0, 256)))
    if cell.task != "train":
        return Measured(figures)
    said, arrays = evaluate_predictions(method, test, seed=cell.seed, n_bootstrap=budget.n_bootstrap)
    figures |= {**_predictive(said), **_times(method, cell, budget)}
    return Measured(figures, pictures={"curves": curves.read(folder, _CURVES), **_points(arrays)})


def _capped(images: ImageSet, most: int | None) -> ImageSet:
    return images if most is None or len(images) <= most else split(images, most / len(images), 0)[1]


def _predictive(said: Mapping[str, Any]) -> dict[str, Figure | float]:
    names = {
        "nll_per_dimension": "nll", "nll_marginal": "nll marginal", "energy_score": "energy",
        "energy_score_marginal": "energy marginal", "cosine": "cosine", "spread": "spread",
    }  # fmt: skip
    found = {new: said[old] for old, new in names.items() if said[old] is not None}
    found["energy skill"] = said["energy_skill"]
    if "mixture" in said:
        for key in ("entropy", "effective_components", "effective_components_overall"):
            found[f"mixture {key.replace('_', ' ')}"] = said["mixture"][key]
    return found


def _times(method: IJEPA, cell: Cell, budget: Budget) -> dict[str, Figure]:
    """A step (loss and gradient) over that of the smooth-L1 head, in turns; and milliseconds of a sample.

    On a CPU it is the process's own time, which leaves out what else the machine does. Bounds: quartiles.
    """
    device = method.device
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    reference = build(cell.method, {**cell.settings, **budget.cost["reference"]}, cell.seed).to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(cell.seed)
        step, other = (stepper(of, cell, update=False) for of in (method, reference))
        mine, theirs = in_turns(step, other, device, _ROUNDS, clock)
        method.zero_grad(set_to_none=True)
        with evaluating(method):
            context = torch.randn(_TIMED_TOKENS, int(cell.settings["predictor_width"]), device=device)
            prediction = method.head(context)

            def sampling(draw: Callable[[], Tensor]) -> Figure:
                seconds = [timed(draw, device, clock) for _ in range(1 + _ROUNDS)][1:]
                return quartiles([1e6 * each / _TIMED_TOKENS for each in seconds])

            found = {
                "step ratio": quartiles([a / b for a, b in zip(mine, theirs, strict=True)]),
                "sampling": sampling(lambda: prediction.sample((1,))),
            }
            if cell.settings["head"] == "diffusion":
                found["sampling, 25 steps"] = sampling(lambda: prediction.sample((1,), steps=25))
    method.eval()
    return found


def _points(arrays: Mapping[str, Any]) -> dict[str, Any]:
    from probjepa.plots import Plane

    plane = Plane(arrays["targets"])
    every = math.ceil(len(arrays["targets"]) / _POINTS)
    return {name: plane(arrays[name])[::every].round(2).tolist() for name in ("targets", "samples")}
