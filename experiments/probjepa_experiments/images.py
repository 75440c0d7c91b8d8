"""Cells that train a method on images: their settings spelt out, and what runs them."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from probjepa.backbones import BACKBONES
from probjepa.errors import ConfigError
from probjepa.heads import HEADS
from probjepa.methods import METHODS
from probjepa.methods.base import Method
from probjepa.registry import Registry
from probjepa.scores import SCORES
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.measure import measure
from probjepa_experiments.study import Base, Budget, Cell, Data, Measured, Row


def image_base(row: Row, budget: Budget, dataset: str, data: Data) -> Base:
    """Return the method's defaults and the budget's settings; of training, the recipe and the budget's.

    Raises
    ------
    ConfigError
        for an unknown method, or a setting that its constructor does not have
    """
    settings = settings_of(row, budget, data.shape)
    modules = modules_of(row.method, {**settings, **row.settings})
    modules += tuple(module_of(SCORES, name) for name in SCORES)
    if row.task == "train":
        rate = budget.rates.get(row.label, budget.rates.get(row.method))
        searched = {} if rate is None else {"learning_rate": rate}
        return Base(settings, {**METHODS[row.method].recipe, **budget.fit, **searched}, modules)
    if row.task == "raw-pixels":  # only its preprocessing is used
        settings = {"backbone": "convnet", **{key: settings[key] for key in ("channels", "image_size")}}
    return Base(settings, {}, modules)


def settings_of(row: Row, budget: Budget, shape: tuple[int, int]) -> dict[str, Any]:
    """Return a method's settings at a budget, for images of so many channels and of that size."""
    parameters = inspect.signature(METHODS[row.method]).parameters
    # the channel statistics are the data's, the seed the cell's
    known = {name: p.default for name, p in parameters.items() if name not in ("mean", "std", "seed")}
    images = {"channels": shape[0], "image_size": shape[1]}
    settings = {**known, **budget.settings, **images, **budget.methods.get(row.method, {})}
    unknown = sorted({*settings, *row.settings} - set(known))
    if unknown:
        raise ConfigError(
            f"row '{row.label}': {row.method} has no setting {', '.join(unknown)} (known: {', '.join(known)})"
        )
    return settings


def modules_of(method: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules of a method and of what its settings name."""
    chosen = ((BACKBONES, settings.get("backbone", "")), (HEADS, settings.get("head", "")))
    return module_of(METHODS, method), *(module_of(table, name) for table, name in chosen if name in table)


def module_of(table: Registry, name: str) -> str:
    """Return the module of an entry of a table."""
    return table.path(name).partition(":")[0]


def build(method: str, settings: Mapping[str, Any], seed: int) -> Method:
    """Return a method with the weights that a seed gives; ConfigError for a bad setting."""
    made: Method = METHODS[method](seed=seed, **settings)
    return made


def run(
    cell: Cell,
    data: DataSet,
    folder: Path,
    budget: Budget,
    progress: bool,
    only: Collection[str] = (),
    **watched: Any,
) -> Measured:
    """Train and measure a cell, or go on with what ``folder`` holds of it; ``only`` as ``measure`` has it.

    ``watched`` says what ``fit`` watches; by default nothing.
    """
    method = trained(cell, data, folder, progress=progress, **{"monitor_every": 0, "knn_every": 0, **watched})
    pixels = cell.task == "raw-pixels"
    return measure(method, data, seed=cell.seed, n_bootstrap=budget.n_bootstrap, pixels=pixels, only=only)


def run_embeddings(
    cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool, **watched: Any
) -> Measured:
    """Train a cell, or go on with what ``folder`` holds of it, and measure its embeddings: no detector."""
    return run(cell, data, folder, budget, progress, only=("kNN", "posterior"), **watched)


def trained(cell: Cell, data: DataSet, folder: Path, method: Method | None = None, **options: Any) -> Method:
    """Return a cell's method, trained where its task is that; it goes on with what ``folder`` holds.

    ``method`` is the cell's as it begins, where its settings alone do not build it; ``options`` go to
    ``fit``: what is watched, not what is trained.
    """
    from probjepa.training import fit

    method = build(cell.method, cell.settings, cell.seed) if method is None else method
    if cell.task != "train":
        method.calibrate(data.train.images)
        return method.eval()
    resume = (folder / "config.yaml").is_file()
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # killed before there was anything to go on with
    fit(method, data.train, out=folder, resume=resume, seed=cell.seed, **options, **cell.fit)
    return method
