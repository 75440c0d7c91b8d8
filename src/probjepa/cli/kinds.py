"""Images and tables behind one protocol: the one place where the commands fork on the kind of data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from probjepa.cli.options import Evaluating, Scoring, Shared, Training
from probjepa.errors import unknown_name

Columns = dict[str, Any]  # name → a value an input


class Kind(Protocol):
    """What the commands ask of one kind of data: to train a model, and then of a trained one."""

    unit: str  # what its inputs are called

    def __init__(self, source: str, shared: Shared) -> None: ...

    @staticmethod
    def train(method: str, data: str, options: Training) -> str:
        """Train a method, write the run folder, and say what it was trained on."""

    def embed(self, data: str) -> tuple[int, Iterator[Columns]]:
        """Return how many inputs there are, and the rows of ``embed``'s table, some at a time."""

    def score(self, data: str, out: Path, options: Scoring) -> tuple[int, int]:
        """Write the table of ``score``; return how many inputs there are, and of how many it was known."""

    def evaluate(self, train: str, test: str, out: Path, options: Evaluating) -> None:
        """Write metrics.json and report.html into ``out``, and print a summary."""


def kind_of_method(name: str) -> type[Kind]:
    """Return the kind of data of a method; ConfigError for an unknown one."""
    from probjepa.methods import METHODS
    from probjepa.tabular import TABLE_METHODS

    if name not in METHODS and name not in TABLE_METHODS:
        raise unknown_name("method", name, [*METHODS, *TABLE_METHODS])
    return _kind(tables=name in TABLE_METHODS)


def open_model(source: str, shared: Shared) -> Kind:
    """Return a trained model with its kind of data, by the config.json of its folder."""
    tables = False
    for folder in (Path(source) / "model", Path(source)):
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        tables = tables or (isinstance(config, dict) and "estimator" in config)
    return _kind(tables)(source, shared)


def _kind(tables: bool) -> type[Kind]:
    if tables:
        from probjepa.cli.tables import TableModel

        return TableModel
    from probjepa.cli.images import ImageModel

    return ImageModel
