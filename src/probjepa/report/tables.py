"""Sections that only evaluations of tables have: calibration by tenths, and the most surprising rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probjepa import plots
from probjepa._arrays import is_missing
from probjepa.errors import few
from probjepa.evaluation.selective import PROBABILITY, UNCERTAINTY
from probjepa.plots.style import number
from probjepa.report.figures import picture
from probjepa.report.page import Section, Table, Value, grid
from probjepa.tabular.skill import LITTLE, SURE

_SHOWN_ROWS = 10
_SHOWN_COLUMNS = 14
_MARKED = 3  # cells of a row
_SMALL = 0.05  # a smaller p is called a difference
_SURPRISING = 3.0  # nats: a twentieth of the density, or probability, of an expected cell


def main_source(by_source: Mapping[str, Any]) -> str:
    """Return the source of uncertainty that is shown first: the model's own, if it has one."""
    return UNCERTAINTY if UNCERTAINTY in by_source else PROBABILITY


def calibration_section(calibration: Mapping[str, Any]) -> Section | None:
    """Return whether uncertainty goes with error, classifier → source → figures; None where none varied.

    The figures are {"spearman": ρ of uncertainty with being wrong, "accuracy": of each tenth of the rows}.
    """
    sources = list(dict.fromkeys(s for of in calibration.values() for s in of))
    if not sources:
        return None
    source = main_source(dict.fromkeys(sources))
    curves = {name: of[source]["accuracy"] for name, of in calibration.items() if source in of}
    figure = picture(
        "Accuracy by uncertainty",
        lambda axis: plots.calibration(axis, curves),
        f"Accuracy from the least uncertain tenth (1) to the most, by {source}.",
        width="half",
        xlabel=f"tenth of the rows, by {plots.label(source)}",
    )
    rho = {s: {name: (of.get(s) or {}).get("spearman") for name, of in calibration.items()} for s in sources}
    table = grid(
        "uncertainty",
        rho,
        {name: name for name in calibration},
        "Spearman's ρ of uncertainty with being wrong, by classifier: above 0, the uncertain are wrong more "
        "often. None where no answer, or every one, is wrong.",
        width="half",
    )
    text = "Whether uncertainty goes with error: the curves should fall from left to right."
    return Section("Calibration", text, [figure, table])


def mcnemar_section(tests: Mapping[str, Any]) -> Section | None:
    """Return what features gain beside raw ones, features → classifier → {"gained", "lost", "p"}, or None."""
    rows = {
        f"{space}, {name}": {**{key: _count(x) for key, x in of.items()}, "p": _p(of["p"])}
        for space, row in tests.items()
        for name, of in row.items()
    }
    if not rows:
        return None
    table = grid(
        "features, classifier",
        rows,
        {"gained": "rows gained", "lost": "rows lost", "p": "p"},
        "Test rows that the classifier answers right on these features and wrong on raw ones, and the "
        "reverse (over several seeds, the means); p of McNemar's exact test, of each seed.",
        width="half",
    )
    text = (
        f"Whether the embedding changes what a classifier gets right: below p = {_SMALL:g} it does, but for "
        "one test in twenty where it does not. The p of several seeds have no mean: they are listed."
    )
    return Section("Beside raw features", text, [table])


def _count(of: Mapping[str, Any]) -> Any:
    """Rows of one seed as a whole number; a mean of several, to a tenth, with its interval, if it has one."""
    mean = replace(Value.of(of), form=",.1f")
    return int(mean.value) if mean.value.is_integer() and not mean.interval else mean


def _p(of: Mapping[str, Any]) -> Any:
    """The p of one test, or how many of the seeds' are small, and which they are."""
    known = [p for p in of.get("seeds", ()) if p is not None]
    if len(known) < 2:
        return None if of.get("value") is None else f"{of['value']:.2g}"
    below = sum(p < _SMALL for p in known)
    return f"{below} of {len(known)} below {_SMALL:g}: {few([f'{p:.2g}' for p in known])}"


def surprising_section(arrays: Mapping[str, Any]) -> Section | None:
    """Return the rows with the lowest score and their most surprising cells, or None without either.

    ``arrays`` has ``frame`` (the rows), ``score`` (N,), ``surprise`` (a DataFrame of −log p, a column a
    feature) and perhaps ``labels`` (N,).
    """
    frame, surprise, score = (arrays.get(key) for key in ("frame", "surprise", "score"))
    if frame is None or surprise is None or score is None:
        return None
    labels = arrays.get("labels")
    order = np.argsort(score, kind="stable")[:_SHOWN_ROWS]
    cells = np.nan_to_num(_by_column(surprise, list(frame.columns)), nan=-np.inf)
    # the columns that surprise most come first: a wide table is cut off by the window
    columns = np.argsort(-cells[order].max(0), kind="stable")[:_SHOWN_COLUMNS]
    rows, notes = [], []
    for row in order:
        said = [None if labels is None else labels[row], *(_shown(frame.iloc[row, c]) for c in columns)]
        rows.append([str(frame.index[row]), number(score[row], ".2f"), *said])
        values = cells[row, columns]
        most = np.argsort(-values, kind="stable")[:_MARKED]
        notes.append({3 + int(i): f"{values[i]:.1f} nats" for i in most if values[i] > _SURPRISING})
    left = len(frame.columns) - len(columns)
    table = Table(
        ["test row", "score", "label", *(frame.columns[c] for c in columns)],
        rows,
        f"The {len(order)} test rows with the lowest score (mean log p of a cell given the row's others). "
        f"Marked: the up to {_MARKED} most surprising cells of a row, −log p above {_SURPRISING:g} nats."
        + (f" {left} columns that surprise less are not shown." if left else ""),
        notes=notes,
    )
    text = (
        "What the model finds least likely, and which cells make it so: look here for errors of entry, rare "
        "combinations and outliers. Numbers are densities of transformed columns."
    )
    return Section("Most surprising rows", text, [table])


def skill_section(skill: Sequence[Mapping[str, Any]]) -> Section | None:
    """Return what the fit learned of each column (``VarTJEPA.skill_``), the least first, or None."""
    known = sorted((of for of in skill if of["nats"] is not None), key=lambda of: of["nats"])
    if not known:
        return None
    table = Table(
        ["column", "held-out cells", "nats gained", "standard error", "explained"],
        [[of[key] for key in ("feature", "cells", "nats", "error", "explained")] for of in known],
        "Nats a held-out cell gained over the column's own distribution, and the share of variance (numbers) "
        "or of the most frequent category's errors (categories) that is explained.",
    )
    text = (
        f"Nothing was learned of a column that gained no more than {SURE:g} standard errors and of which "
        f"less than {LITTLE:.0%} is explained: it is imputed by its marginal, and its surprises say little."
    )
    return Section("What was learned of each column", text, [table])


def _by_column(surprise: Any, columns: list[str]) -> NDArray[np.float64]:
    """Surprise (N, D) by column of the table: of a date's parts, the largest."""
    found = np.full((len(surprise), len(columns)), np.nan)
    for name in surprise.columns:
        at = columns.index(name if name in columns else name.rpartition(".")[0])
        found[:, at] = np.fmax(found[:, at], surprise[name].to_numpy())
    return found


def _shown(value: Any) -> str:
    if is_missing(value):
        return "missing"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:22]}…"
