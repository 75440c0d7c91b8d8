"""A cell: one training on one data set with one seed, and everything that is measured on it."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probjepa.errors import ArtifactError, ConfigError, ProbjepaError
from probjepa.experiments.budgets import Budget
from probjepa.experiments.declare import Row, Task
from probjepa.methods import METHODS
from probjepa.training.interrupt import Interrupted

if TYPE_CHECKING:
    from probjepa.experiments.datasets import DataSet
    from probjepa.methods.base import Method

COST_REFERENCE = "simsiam"
_NOT_SETTINGS = ("self", "mean", "std")  # the channel statistics are the data's


@dataclass(frozen=True)
class Cell:
    """What determines a cell's figures, with every default spelt out; ``label`` and ``slug`` are for the eye.

    Attributes
    ----------
    settings, fit
        keywords of the method's constructor and of ``fit``
    dataset, fingerprint
        name of the data set, and the hash of its pixels and labels
    """

    label: str
    task: Task
    method: str
    settings: Mapping[str, Any]
    fit: Mapping[str, Any]
    dataset: str
    fingerprint: str
    budget: str
    seed: int
    slug: str

    @property
    def identity(self) -> dict[str, Any]:
        """What its key is the hash of, as JSON has it."""
        names = ("task", "method", "settings", "fit", "dataset", "fingerprint", "budget", "seed")
        found = {name: getattr(self, name) for name in names}
        return {key: _plain(value) for key, value in found.items()}

    @property
    def key(self) -> str:
        """The name of its file and of its run folder."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{self.slug}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_cell(row: Row, budget: Budget, dataset: str, shape: tuple[int, int], seed: int, mark: str) -> Cell:
    """Return the cell of a row.

    The method's defaults, the budget's, then the row's; of training: the recipe, the budget's, the row's.

    Parameters
    ----------
    shape
        channels and size of the images
    mark
        the data set's fingerprint

    Raises
    ------
    ConfigError
        for an unknown method, or a setting that its constructor does not have
    """
    defaults = _defaults(row.method)
    settings = {**defaults, **_model(row.method, budget, shape), **row.settings}
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ConfigError(
            f"row '{row.label}': {row.method} has no setting {', '.join(unknown)} "
            f"(known: {', '.join(defaults)})"
        )
    fit: dict[str, Any] = {}
    if row.task == "train":
        fit = {**METHODS[row.method].recipe, **budget.fit, **row.fit}
    elif row.task == "cost":
        backbone = {key: budget.cost[key] for key in ("backbone", "backbone_options") if key in budget.cost}
        settings |= backbone
        reference = {**_defaults(COST_REFERENCE), **_model(COST_REFERENCE, budget, shape), **backbone}
        keys = ("batch_size", "rounds")
        fit = {
            **{key: budget.cost[key] for key in keys},
            **{key: budget.fit[key] for key in ("device", "precision", "channels_last")},
            "reference": reference,
        }
    elif row.task == "raw-pixels":
        # only its preprocessing is used
        settings = {"backbone": "convnet", **{key: settings[key] for key in ("channels", "image_size")}}
    method = row.method if row.task in ("train", "cost") else row.task
    changes = _changes(row.settings, defaults)
    prefix = ["cost", method] if row.task == "cost" else [method]
    slug = _slug([*prefix, *changes, dataset, budget.name, f"s{seed}"])
    return Cell(row.label, row.task, row.method, settings, fit, dataset, mark, budget.name, seed, slug)


def _defaults(method: str) -> dict[str, Any]:
    parameters = inspect.signature(METHODS[method]).parameters
    return {name: p.default for name, p in parameters.items() if name not in _NOT_SETTINGS}


def _model(method: str, budget: Budget, shape: tuple[int, int]) -> dict[str, Any]:
    return {
        "backbone": budget.backbone,
        "backbone_options": budget.backbone_options,
        "channels": shape[0],
        "image_size": shape[1],
        **budget.methods.get(method, {}),
    }


def _changes(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterable[str]:
    for name, value in sorted(settings.items()):
        if _plain(value) != _plain(defaults.get(name)):
            yield f"{name}={value}"


def _slug(parts: Iterable[str]) -> str:
    return "-".join(re.sub(r"[^a-z0-9=.]+", "_", part.lower()).strip("_") for part in parts)[:120]


def _plain(value: Any) -> Any:
    """JSON of settings in one spelling: 1 and 1.0 are the same number, a tuple and a list the same list."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return float(value) if math.isfinite(value) else str(value)


def build(cell: Cell) -> Method:
    """Return the cell's method with the weights that its seed gives; ConfigError for a bad setting."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        method: Method = METHODS[cell.method](**cell.settings)
    return method


def run_cell(
    cell: Cell, data: DataSet | None, run: Path, *, n_bootstrap: int, progress: bool
) -> dict[str, Any]:
    """Train and measure a cell, or go on with what ``run`` holds of it; return its JSON.

    A training that fails (a loss that is not finite) gives a result with the reason under "failed" and no
    figures. What the user must act on (an interruption, a full disk, a wrong setting) is raised.
    """
    started = time.monotonic()
    figures: dict[str, Any] = {}
    notes: list[str] = []
    failed = None
    if cell.task == "cost":
        from probjepa.experiments.cost import measure_cost

        figures, notes = measure_cost(cell)
    else:
        from probjepa.experiments.measure import measure

        assert data is not None
        method, failed = trained(cell, data, run, monitor_every=0, knn_every=0, progress=progress)
        if failed is None:
            pixels = cell.task == "raw-pixels"
            figures, notes = measure(method, data, seed=cell.seed, n_bootstrap=n_bootstrap, pixels=pixels)
    return record(cell, figures, failed, notes, started)


def trained(cell: Cell, data: DataSet, run: Path, **options: Any) -> tuple[Method, str | None]:
    """Return a cell's method, trained where its task is that, and the reason where the training failed.

    It goes on with what ``run`` holds. ``options`` go to ``fit``: what is watched, not what is trained.
    """
    from probjepa.training import fit

    method = build(cell)
    if cell.task != "train":
        method.calibrate(data.train.images)
        return method.eval(), None
    if not (run / "config.yaml").is_file():
        shutil.rmtree(run, ignore_errors=True)  # killed before there was anything to go on with
    try:
        resume = (run / "config.yaml").is_file()
        fit(method, data.train, out=run, resume=resume, seed=cell.seed, **options, **cell.fit)
    except Interrupted as stop:
        reason = str(stop).partition(":")[0]
        raise Interrupted(f"{reason} of {cell.label}: run the same command again to go on") from None
    except (ArtifactError, ConfigError):
        raise
    except ProbjepaError as error:
        return method, str(error)
    return method, None


def record(
    cell: Cell, figures: Mapping[str, Any], failed: str | None, notes: Iterable[str], started: float
) -> dict[str, Any]:
    """Return a cell's JSON, with what it ran on; ``started`` is of the monotonic clock."""
    return {
        "cell": cell.identity,
        "figures": {name: {key: _rounded(x) for key, x in of.items()} for name, of in figures.items()},
        "failed": failed,
        "notes": list(notes),
        "seconds": round(time.monotonic() - started, 1),
        **_provenance(cell),
    }


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _provenance(cell: Cell) -> dict[str, Any]:
    import platform

    import probjepa
    from probjepa.provenance import hardware

    return {
        "hardware": hardware(),
        "versions": {
            "probjepa": probjepa.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
