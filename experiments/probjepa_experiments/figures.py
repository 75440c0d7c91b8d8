"""The cells of a study brought together: rows with intervals over seeds, and findings."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import stdev
from types import MappingProxyType
from typing import Any

import numpy as np

from probjepa.metrics import seed_interval
from probjepa_experiments.code import mark
from probjepa_experiments.study import Budget, Column, Finding, NotMeasuredError, Result, Row, Study


def summarise(
    study: Study,
    budget: Budget,
    ood: Mapping[str, Sequence[str]],
    found: Sequence[Result],
    not_run: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return metrics.json: every cell, the table of each data set, the findings, and what it was run with.

    ``ood`` has the out-of-distribution sets of each data set that was run.
    """
    seeds, tables = range(seed, seed + budget.seeds), {}
    run = len(seeds_run(found))
    for name in ood:
        columns = expand(study.columns, ood[name])
        rows = _rows(study, budget, columns, name, [r for r in found if r["cell"]["dataset"] == name], seeds)
        tables[name] = {
            "title": study.measurement.sources[name].title,
            "columns": [asdict(column) for column in columns],
            "rows": rows,
            "findings": [
                judge(finding, rows, run, failures(found, name, seeds)) for finding in study.findings
            ],
        }
    if study.ranked:
        tables = {"": _over_tables(study.rows_of(budget.name), tables)} | tables
    versions = {json.dumps(result["versions"], sort_keys=True) for result in found}
    encoder = {"name": budget.settings.get("backbone", ""), "options": {}}
    encoder["options"] = dict(budget.settings.get("backbone_options", {}))
    common = {key: value for key, value in budget.settings.items() if not key.startswith("backbone")}
    return {
        "experiment": study.name,
        "title": study.title,
        "paper": study.paper,
        "question": study.question,
        "budget": {"name": budget.name, "title": budget.title, "fit": {**budget.fit, **common}},
        "backbone": encoder,
        "seeds": list(seeds),
        "published_budget": study.published.budget,
        "intervals": study.measurement.intervals or _intervals(run),
        "hardware": sorted({result["hardware"] for result in found}),
        "versions": [json.loads(text) for text in sorted(versions)],
        "seconds": round(sum({result["key"]: result["seconds"] for result in found}.values()), 1),
        "not_run": list(not_run),
        "tables": tables,
        "code": {mark(result["code"]): result["code"] for result in found},
        "cells": [_kept(result) for result in found],
    }


def _kept(result: Result) -> dict[str, Any]:
    """A cell as metrics.json has it: without pictures, and with the mark of its code."""
    kept = {key: value for key, value in result.items() if key != "pictures"}
    return {**kept, "code": mark(result["code"])}


def _intervals(seeds: int) -> str:
    if seeds >= 3:
        return (
            "95 % intervals of the mean over seeds (Student's t); of a row of one seed, or without seeds, "
            "Wilson or bootstrap; of two seeds, both figures"
        )
    if seeds == 2:
        return "of two seeds none, but both figures"
    return "95 % intervals of one seed (Wilson or bootstrap), without what seeds differ by"


def seeds_run(cells: Sequence[Result]) -> list[int]:
    """Return the seeds that anything was run with."""
    return sorted({int(of["cell"]["seed"]) for of in cells})


def failures(cells: Sequence[Result], dataset: str, seeds: Sequence[int]) -> dict[str, set[int]]:
    """Return row → places among ``seeds`` of those that failed on a data set."""
    found: dict[str, set[int]] = defaultdict(set)
    for of in cells:
        if of.get("failed") and of["cell"]["dataset"] == dataset:
            found[of["row"]].add(seeds.index(int(of["cell"]["seed"])))
    return dict(found)


def expand(columns: Sequence[Column], ood: Sequence[str]) -> list[Column]:
    """Return the columns with each ``{ood}`` one spelt out for every out-of-distribution set."""
    spelt = []
    for column in columns:
        for name in ood if "{ood}" in column.figure else [""]:
            figure, label = (text.replace("{ood}", name) for text in (column.figure, column.label))
            spelt.append(replace(column, label=label, figure=figure))
    return spelt


def _rows(
    study: Study,
    budget: Budget,
    columns: Sequence[Column],
    name: str,
    found: Sequence[Result],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    rows = []
    for row in study.rows_of(budget.name):
        of = [result for result in found if result["row"] == row.label]
        by_seed = {result["cell"]["seed"]: result["figures"] for result in of}
        values = {}
        for column in columns:
            figure = column.figure.replace("{score}", row.score)
            # a seed that is not there yet has no figure, so that the others keep their places
            each = [by_seed.get(seed, {}).get(figure) for seed in row.seeds(seeds)]
            values[column.label] = aggregate(each, column.limits)
            if column.p_value and len(each) > 1:
                values[column.label] |= {"low": None, "high": None}
            published = study.published.figures.get((name, row.label, column.label))
            if published is not None:
                values[column.label]["published"] = published
        failed = [result["failed"] for result in of if result["failed"]]
        rows.append({"label": row.label, "values": values, "cells": len(of), "failed": failed})
    return rows


def _over_tables(rows: Sequence[Row], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table of each column's mean rank and mean over the data sets, seed by seed.

    A row is ranked (1 is best) among the first rows of the other methods, since rows of one method read one
    training. A data set counts for a seed where all rows that were measured anywhere have its figure: means
    over different sets cannot be compared.
    """
    columns: list[dict[str, Any]] = []
    fewest = len(tables)
    values: list[dict[str, Any]] = [{} for _ in rows]
    first = {row.method: i for i, row in reversed([*enumerate(rows)])}
    for column in next(iter(tables.values()))["columns"]:
        label, better = column["label"], column["better"]
        found = [[row["values"][label]["seeds"] for row in table["rows"]] for table in tables.values()]
        figures = np.array(found, dtype=float)  # (data sets, rows, seeds), NaN where not measured
        lacking = np.isnan(figures)
        run = ~lacking.all(0)
        whole = ~(lacking & run).any(1)  # (data sets, seeds)
        figures = np.where(whole[:, None], figures, np.nan)
        if run.any():
            fewest = min(fewest, int(whole[:, run.any(0)].sum(0).min()))
        worth = figures if better == "max" else -figures
        ranks = np.full_like(figures, np.nan)
        for i, row in enumerate(rows):
            own = worth[:, i : i + 1]
            others = worth[:, [k for method, k in first.items() if method != row.method]]
            ranks[:, i] = 1 + (others > own).sum(1) + 0.5 * (others == own).sum(1)
        ranks[np.isnan(figures)] = np.nan
        of_rank = {**column, "better": "min", "percent": False, "limits": (1, None)}
        for name, of, shown in (("mean rank by", ranks, of_rank), ("mean", figures, column)):
            columns.append({**shown, "label": f"{name} {label}", "brief": True})
            for row_values, seeds in zip(values, of.swapaxes(0, 1).swapaxes(1, 2), strict=True):
                known = [seed[~np.isnan(seed)] for seed in seeds]
                means = [float(seed.mean()) if len(seed) else None for seed in known]
                row_values[f"{name} {label}"] = seed_interval(means, limits=columns[-1]["limits"])
    labelled = zip(rows, values, strict=True)
    return {
        "title": f"all {len(tables)}" if fewest == len(tables) else f"{fewest} that every row has",
        "columns": columns,
        "rows": [{"label": row.label, "values": of, "cells": 0, "failed": []} for row, of in labelled],
        "findings": [],
    }


def aggregate(
    figures: Sequence[Mapping[str, float | None] | None],
    limits: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Return a figure over seeds as ``seed_interval`` does, of the cells' figures (None: not measured)."""
    known = [figure for figure in figures if figure and figure["value"] is not None]
    own = (known[0]["low"], known[0]["high"]) if known else None
    return seed_interval([figure["value"] if figure else None for figure in figures], own, limits)


def judge(
    finding: Finding,
    rows: Sequence[Mapping[str, Any]],
    run: int = 0,
    failed: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return in how many seeds a finding holds, of how many it could be judged in, and on what figures.

    A seed in which any figure that it reads is missing is not judged, and the figures are of the others.

    Parameters
    ----------
    run
        how many seeds anything was run with
    failed
        row → places of the seeds that failed
    """
    by_label = {row["label"]: row["values"] for row in rows}
    read: dict[tuple[str, str], Sequence[float | None]] = {}

    def look(seed: int) -> Callable[[str, str], float]:
        def value(row: str, column: str) -> float:
            figure = by_label.get(row, {}).get(column)
            if figure is None or not figure["seeds"]:
                raise NotMeasuredError
            read[row, column] = figure["seeds"]
            # a row without seeds, such as raw pixels, is compared with every seed of the others
            found = figure["seeds"][seed if len(figure["seeds"]) > 1 else 0]
            if found is None:
                raise NotMeasuredError
            return float(found)

        return value

    holds, judged = 0, set()
    for seed in range(max((len(v["seeds"]) for of in by_label.values() for v in of.values()), default=0)):
        try:
            holds += bool(finding.holds(look(seed)))
        except NotMeasuredError:
            continue
        judged.add(seed)
    lost = {seed for row, _ in read for seed in failed.get(row, ())} - judged
    evidence = []
    for (row, column), seeds in read.items():
        known = [of for i, of in enumerate(seeds) if of is not None and (i in judged or len(seeds) == 1)]
        if judged and known:
            of_judged = {"value": float(np.mean(known)), "seeds": known}
            evidence.append({"row": row, "column": column, **of_judged})
    return {
        "claim": finding.claim,
        "asserted": finding.asserted,
        "holds": holds,
        "judged": len(judged),
        "run": run,
        "failed": len(lost),
        "evidence": evidence,
    }


def with_spread(of: Mapping[str, Any], digits: int, factor: float = 1.0) -> str:
    """Return a figure's "value" as text, ± the standard deviation of its "seeds" where there are several."""
    known = [x for x in of["seeds"] if x is not None]
    spread = f" ± {factor * stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{factor * of['value']:.{digits}f}{spread}"


def verdict(finding: Mapping[str, Any]) -> str:
    """Return "holds", "holds in 2 of 3 seeds", "does not hold" or "not judged" of a judged finding.

    Where more seeds were run than judged it says so: "holds, 2 of 3 seeds judged, 1 failed".
    """
    holds, judged, run, failed = (finding[key] for key in ("holds", "judged", "run", "failed"))
    if not judged:
        return "not judged"
    few = f", {judged} of {run} seeds judged" * bool(judged < run) + f", {failed} failed" * bool(failed)
    if 0 < holds < judged:
        return f"holds in {holds} of {judged} seeds{few}"
    seeds = {1: "", 2: ", both seeds"}.get(judged, f", all {judged} seeds")
    return f"{'holds' if holds else 'does not hold'}{few or seeds}"


def missing_seeds(row: Mapping[str, Any], run: int) -> str:
    """Return " (1 of 3 seeds, 2 failed)" of a row with fewer seeds than anything was ``run`` with, or "".

    One without seeds, such as raw pixels, and one that was not run have none to miss.
    """
    each = [of["seeds"] for of in row["values"].values()]
    known = sorted({n for seeds in each if len(seeds) > 1 and (n := sum(of is not None for of in seeds))})
    said = []
    if known and known[0] < run:
        said.append(f"{' to '.join(map(str, dict.fromkeys((known[0], known[-1]))))} of {run} seeds")
    said += [f"{len(row['failed'])} failed"] * bool(row["failed"])
    return f" ({', '.join(said)})" * bool(said)
