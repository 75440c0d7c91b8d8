"""I-JEPA's heads at equal budgets: does predicting a distribution help, and which one?"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probjepa import metrics
from probjepa.data import Images, ImageSet, split
from probjepa.data.views import views
from probjepa.errors import unknown_name
from probjepa.evaluation.predictive import evaluate_predictions, target_std
from probjepa.experiments.budgets import Budget
from probjepa.experiments.cells import Cell, record, trained
from probjepa.experiments.datasets import DataSet
from probjepa.experiments.declare import Column, Experiment, Finding, Look, Row
from probjepa.methods import METHODS, Method
from probjepa.methods.base import evaluating
from probjepa.methods.ijepa import IJEPA, PRESETS

_FIT = {"device": "cpu", "precision": "32-true", "channels_last": False}
_SPEC = PRESETS["tiny-imagenet"]["method"]
# One learning rate for all heads, as one tuned for each would need equal tuning: "small" and "quick" take
# more than the recipe's, for their narrow encoders; "small" also has the point and the Gaussian at twice that
# rate, to see whether it holds the point back. Their teachers are faster, too: as at full length, they
# average over a tenth to a twentieth of the training.
BUDGETS = {
    "quick": Budget(
        "quick",
        "digits at 16 px, a ViT of 26,000 weights, 20 epochs of 128",
        "vit",
        {"patch_size": 4, "width": 32, "depth": 2, "heads": 4},
        {"epochs": 20, "batch_size": 128, "learning_rate": 1e-3, **_FIT},
        methods={
            "i-jepa": {"predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2, "momentum": 0.9}
        },
        seeds=1,
        n_bootstrap=100,
        threads=1,
    ),
    "small": Budget(
        "small",
        "10,000 images at 64 px, a ViT of 466,000 weights, 8 epochs of 32, on a CPU",
        "vit",
        {"patch_size": 8, "width": 96, "depth": 4, "heads": 4},
        {"epochs": 8, "batch_size": 32, "learning_rate": 2e-3, **_FIT},
        methods={
            "i-jepa": {"predictor_width": 48, "predictor_depth": 2, "predictor_heads": 4, "momentum": 0.996}
        },
        seeds=1,
        images=10_000,
        n_bootstrap=200,
    ),
    "full": Budget(
        "full",
        "all images at 64 px, the ViT of 18 million weights, 50 epochs of 256, on a GPU",
        "vit",
        _SPEC["backbone_options"],
        {"epochs": 50, "batch_size": 256, "device": "auto", "precision": "auto", "channels_last": False},
        methods={"i-jepa": {key: value for key, value in _SPEC.items() if key.startswith("predictor")}},
    ),
}
TEST_IMAGES = {"small": 2_000}  # stratified; other budgets: all
SMOOTH_L1, VIC = "deterministic, smooth L1", "deterministic, vic"
# row → head and its own options; widths by budget are in _WIDTHS
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    SMOOTH_L1: ("deterministic", {"loss": "smooth-l1"}),
    VIC: ("deterministic", {"loss": "vic"}),
    "gaussian": ("gaussian", {}),
    "mdn": ("mdn", {}),
    "autoregressive": ("autoregressive", {}),
    "realnvp": ("realnvp", {}),
    "flow_matching": ("flow_matching", {}),
    "diffusion": ("diffusion", {}),
}
_WIDTHS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        **{head: {"hidden": [48]} for head in ("deterministic", "gaussian", "mdn")},
        "autoregressive": {"hidden": [64, 48]},
        "realnvp": {"hidden": [32]},
        **{head: {"width": 48, "blocks": 1, "code_width": 24} for head in ("flow_matching", "diffusion")},
    },
    "small": {
        **{head: {"hidden": [128]} for head in ("deterministic", "gaussian", "mdn")},
        "autoregressive": {"hidden": [256, 192, 128]},
        "realnvp": {"hidden": [96, 96]},
        **{head: {"width": 128, "blocks": 2, "code_width": 64} for head in ("flow_matching", "diffusion")},
    },
    "full": {},
}
RANDOM, PIXELS = "random initialisation", "raw pixels"
KNN, PROBE, RANK, SPREAD = "kNN, k = 20, %", "linear probe, %", "effective rank", "target std"
_POINTS = 2048  # of each picture
_K = 20
_WIDEST_PROBE = 2048
_LARGEST_LBFGS = 20_000  # rows; beyond, the probe is trained by SGD
_TIMED_TOKENS = 256
_WARMUP, _ROUNDS = 2, 5
_CURVE = 10  # kNN accuracies over a training


def _rows() -> tuple[Row, ...]:
    rows = [
        Row(
            label,
            "i-jepa",
            settings={"head": head, "head_options": {**_WIDTHS[budget].get(head, {}), **options}},
            budgets=(budget,),
        )
        for label, (head, options) in HEADS.items()
        for budget in BUDGETS
    ]
    twice = {"learning_rate": 2 * BUDGETS["small"].fit["learning_rate"]}
    rows += [
        replace(row, label=f"{row.label}, twice the rate", fit=twice)
        for row in rows
        if row.label in (SMOOTH_L1, "gaussian") and row.budgets == ("small",)
    ]
    return (*rows, Row(RANDOM, "i-jepa", task="random-init"), Row(PIXELS, task="raw-pixels"))


def _better_than_a_point(look: Look) -> bool:
    best = max(look(SMOOTH_L1, KNN), look(VIC, KNN))
    return all(look(label, KNN) > best for label in HEADS if not label.startswith("deterministic"))


class HeadsExperiment(Experiment):
    """An experiment with budgets, cells and pictures of its own."""

    def __call__(
        self,
        out: Path,
        *,
        data_root: Path | None,
        budget: str,
        cells: Path | None,
        seed: int,
        overwrite: bool,
        progress: bool,
    ) -> None:
        """Run it; see ``probjepa.experiments.grid.reproduce``."""
        from probjepa.experiments.grid import reproduce
        from probjepa.experiments.ijepa_heads_page import sections

        reproduce(
            self, out, data_root=data_root, budget=budget, cells=cells, seed=seed, overwrite=overwrite,
            progress=progress, budgets=budget_of, run=run_cell, sections=sections,
        )  # fmt: skip


def budget_of(name: str) -> Budget:
    """Return a budget by name, or raise ConfigError."""
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    return BUDGETS[name]


EXPERIMENT = HeadsExperiment(
    name="ijepa-heads",
    title="I-JEPA's predictive heads at equal budgets",
    paper="Variational JEPA: Adding Uncertainty to Visual Representations",
    question="Does predicting a distribution help, and which one? Encoder, masks, epochs, batch and learning "
    "rate are the same for all heads; only the head differs.",
    rows=_rows(),
    columns=(
        Column(KNN, "knn20/h", percent=True, better="max", plot=True),
        Column(PROBE, "linear/h", percent=True, better="max", plot=True),
        Column("NLL, nats a dimension", "nll", better="min"),
        Column("energy score", "energy", better="min", limits=(0, None)),
        Column("energy skill", "energy skill", better="max", plot=True),
        Column("cosine", "cosine", better="max", limits=(-1, 1)),
        Column("step time / smooth L1", "step ratio", limits=(0, None)),
        Column("sampling, ms per 1,000 tokens", "sampling", limits=(0, None)),
        Column("in 25 steps", "sampling, 25 steps", limits=(0, None)),
        Column(RANK, "effective rank", limits=(0, None)),
        Column(SPREAD, "target std", plot=True, limits=(0, None)),
    ),
    data={"quick": ("digits",), "small": ("tiny-imagenet",), "full": ("tiny-imagenet",)},
    findings=(
        Finding("every distribution beats both point predictions (kNN)", _better_than_a_point),
        Finding(
            "diffusion is the best head (kNN)",
            lambda r: r("diffusion", KNN) >= max(r(label, KNN) for label in HEADS),
        ),
        Finding(
            "the source's order holds: diffusion, flow matching, mdn, autoregressive, deterministic (kNN)",
            lambda r: (
                r("diffusion", KNN) > r("flow_matching", KNN) > r("mdn", KNN) > r("autoregressive", KNN)
                > r(VIC, KNN)
            ),
        ),
        Finding(
            "training pays: every head is above the random initialisation (kNN)",
            lambda r: all(r(label, KNN) > r(RANDOM, KNN) for label in HEADS),
        ),
        Finding(
            "no head has collapsed: effective rank above 2, target std above half of random initialisation's",
            lambda r: all(
                r(label, RANK) > 2 and r(label, SPREAD) > 0.5 * r(RANDOM, SPREAD) for label in HEADS
            ),
        ),
    ),
    published={
        ("tiny-imagenet", label, KNN): value
        for label, value in (
            ("diffusion", 0.2236), ("flow_matching", 0.1848), ("mdn", 0.1396), ("autoregressive", 0.1192),
            (VIC, 0.0984),
        )
    },
    published_budget="epochs, widths and batches differ between the source's rows; its public logs suggest "
    "that its deterministic baseline reached about 24 under another unit",
)  # fmt: skip


def run_cell(
    cell: Cell, data: DataSet | None, run: Path, *, n_bootstrap: int, progress: bool
) -> dict[str, Any]:
    """Train and measure a cell, as ``cells.run_cell`` does, with what this table shows.

    Its JSON also has "pictures": curves, and samples and targets in the targets' three main directions.
    """
    started = time.monotonic()
    assert data is not None
    test = _capped(data.test, TEST_IMAGES.get(cell.budget))
    data = replace(data, test=test)
    watched: dict[str, Any] = {}
    if cell.task == "train":
        watched = {"val": test, "knn_every": max(1, cell.fit["epochs"] // _CURVE)}
    method, failed = trained(cell, data, run, monitor_every=0, progress=progress, **watched)
    figures: dict[str, dict[str, float | None]] = {}
    pictures: dict[str, Any] = {}
    if failed is None:
        figures |= accuracies(method, data, cell.seed, pixels=cell.task == "raw-pixels")
    if failed is None and isinstance(method, IJEPA):
        with torch.no_grad():
            h = torch.cat([method.embed(batch).cpu() for batch, _ in test.batches(512)])
        figures["effective rank"] = _exactly(metrics.effective_rank(h))
        figures["target std"] = _exactly(target_std(method, test.get(slice(0, 256))))
    if failed is None and cell.task == "train":
        assert isinstance(method, IJEPA)
        said, arrays = evaluate_predictions(method, test, seed=cell.seed, n_bootstrap=n_bootstrap)
        figures |= _predictive(said) | _times(method, cell)
        pictures = {"curves": _curves(run), **_points(arrays)}
    return {**record(cell, figures, failed, [], started), "pictures": pictures}


def _capped(images: ImageSet, most: int | None) -> ImageSet:
    return images if most is None or len(images) <= most else split(images, most / len(images), 0)[1]


def accuracies(
    method: Method, data: DataSet, seed: int, *, pixels: bool
) -> dict[str, dict[str, float | None]]:
    """Return kNN and linear-probe accuracies (Wilson) of embeddings, or of normalised pixels."""
    assert data.train.labels is not None
    assert data.test.labels is not None

    def of(images: Images) -> Tensor:
        with torch.no_grad():
            read = (lambda x: method.preprocess(x).flatten(1)) if pixels else method.embed
            return torch.cat([read(batch).cpu() for batch, _ in images.batches(512)])

    bank, queries = of(data.train), of(data.test)
    known, truth = data.train.labels, data.test.labels
    correct = metrics.knn_predict(bank, known, queries, k=min(_K, len(bank))) == truth.numpy()
    figures = {"knn20/h": asdict(metrics.accuracy_interval(correct))}
    if bank.shape[1] <= _WIDEST_PROBE:
        how: Any = "lbfgs" if len(bank) <= _LARGEST_LBFGS else "sgd"
        share = metrics.linear_probe(bank, known, queries, truth, method=how, seed=seed)
        hits = torch.arange(len(truth)) < round(share * len(truth))
        figures["linear/h"] = asdict(metrics.accuracy_interval(hits.numpy()))
    return figures


def _predictive(said: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    names = {
        "nll_per_dimension": "nll", "nll_marginal": "nll marginal", "energy_score": "energy",
        "energy_score_marginal": "energy marginal", "cosine": "cosine", "spread": "spread",
    }  # fmt: skip
    found = {new: dict(said[old]) for old, new in names.items() if said[old] is not None}
    found["energy skill"] = _exactly(said["energy_skill"])
    if "mixture" in said:
        for key in ("entropy", "effective_components", "effective_components_overall"):
            found[f"mixture {key.replace('_', ' ')}"] = _exactly(said["mixture"][key])
    return found


def _times(method: IJEPA, cell: Cell) -> dict[str, dict[str, float | None]]:
    """A step (loss and gradient) over that of the smooth-L1 head, in turns; and milliseconds of a sample.

    On a CPU it is the process's own time, which leaves out what else the machine does. Bounds: quartiles.
    """
    point = next(
        row for row in EXPERIMENT.rows if row.label == SMOOTH_L1 and row.budgets == (cell.budget,)
    ).settings
    with torch.random.fork_rng([method.device] if method.device.type == "cuda" else []):
        torch.manual_seed(cell.seed)
        reference: Method = METHODS["i-jepa"](**{**cell.settings, **point}).to(method.device)
        steps = [_step(of, cell) for of in (method, reference)]
        seconds = [[_seconds(step, method.device) for step in steps] for _ in range(_WARMUP + _ROUNDS)]
        ratio = _quartiles([mine / theirs for mine, theirs in seconds[_WARMUP:]])
        method.zero_grad(set_to_none=True)
        with evaluating(method):
            width = int(cell.settings["predictor_width"])
            context = torch.randn(_TIMED_TOKENS, width, device=method.device)
            prediction = method.head(context)
            found = {"step ratio": ratio, "sampling": _sampling(lambda: prediction.sample((1,)), method)}
            if cell.settings["head"] == "diffusion":
                found["sampling, 25 steps"] = _sampling(lambda: prediction.sample((1,), steps=25), method)
    method.eval()
    return found


def _step(method: Method, cell: Cell) -> Callable[[], None]:
    size, channels = method.preprocess.size, method.preprocess.channels
    config = method.preprocess.config()
    make = views(method.view_recipe, size=size, channels=channels, mean=config["mean"], std=config["std"])
    generator = torch.Generator().manual_seed(cell.seed)
    shape = (int(cell.fit["batch_size"]), channels, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(method.device)
    with torch.no_grad():
        batch = make.to(method.device)(pixels, cell.seed)
    method.train()
    half = method.device.type == "cuda" and cell.fit["precision"] in ("auto", "bf16-mixed")

    def step() -> None:
        method.zero_grad(set_to_none=True)
        with torch.autocast(method.device.type, torch.bfloat16, enabled=half):
            loss = method.loss(batch)["loss"]
        torch.autograd.backward(loss)

    return step


def _sampling(draw: Callable[[], Tensor], method: Method) -> dict[str, float | None]:
    """Milliseconds per 1,000 tokens."""
    seconds = [_seconds(draw, method.device) for _ in range(1 + _ROUNDS)][1:]
    return _quartiles([1e6 * each / _TIMED_TOKENS for each in seconds])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize(device)
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return max(clock() - start, 1e-9)


def _quartiles(values: list[float]) -> dict[str, float | None]:
    low, median, high = statistics.quantiles(values, method="inclusive")
    return {"value": median, "low": low, "high": high}


def _exactly(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def _curves(run: Path) -> dict[str, list[float | None]]:
    """Loss, target_std and kNN accuracy by epoch, from the run's metrics.csv."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"epoch": "epoch", "train/loss": "loss", "train/target_std": "target_std", "knn": "knn"}
    return {new: [float(row[old]) if row.get(old) else None for row in rows] for old, new in names.items()}


def _points(arrays: Mapping[str, Any]) -> dict[str, Any]:
    from probjepa.plots import Plane

    plane = Plane(arrays["targets"])
    every = math.ceil(len(arrays["targets"]) / _POINTS)
    return {name: plane(arrays[name])[::every].round(2).tolist() for name in ("targets", "samples")}
