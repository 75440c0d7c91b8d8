"""The page and the terminal's tables of an experiment, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as TerminalTable

from probjepa.experiments.grid import verdict
from probjepa.report.page import Card, Figure, Section, Table, Value, render
from probjepa.report.provenance import settings_tables
from probjepa.report.style import FULL, HALF, INK, MUTED, canvas, finish, label, palette, styled

_BLUE, _ORANGE = palette("ab").values()
_FILE_WIDTH = 160
MOST_COLUMNS = 12  # a table with more has its columns as lines
Metrics = Mapping[str, Any]


def page(metrics: Metrics, further: Sequence[Section] = ()) -> str:
    """Return the experiment's page, with ``further`` sections before the settings."""
    sections = []
    for table in metrics["tables"].values():
        sections.append(_table_section(table, metrics))
        if table["findings"]:
            sections.append(_findings_section(table))
    sections += [*further, _settings_section(metrics)]
    versions = metrics["versions"]
    return render(
        metrics["title"],
        _cards(metrics),
        sections,
        subtitle=f"{metrics['question']} Paper: {metrics['paper']}.",
        footer={
            "experiment": metrics["experiment"],
            "budget": f"{metrics['budget']['name']}: {metrics['budget']['title']}",
            "seeds": ", ".join(map(str, metrics["seeds"])),
            **{key: ", ".join(sorted({str(of[key]) for of in versions})) for key in ("probjepa", "torch")},
            "hardware": "; ".join(metrics["hardware"]),
            "time of all cells": f"{metrics['seconds']:,.0f} s",
        },
    )


def _cards(metrics: Metrics) -> list[Card]:
    findings = [finding for table in metrics["tables"].values() for finding in table["findings"]]
    judged = [finding for finding in findings if finding["judged"]]
    held = [finding for finding in judged if finding["holds"] == finding["judged"]]
    keys = {cell["key"]: cell for cell in metrics["cells"]}
    failed = sum(bool(cell["failed"]) for cell in keys.values())
    cards = [
        Card("Budget", metrics["budget"]["name"], metrics["budget"]["title"]),
        Card("Cells", str(len(keys)), f"{failed} failed" if failed else "none failed",
             "warn" if failed else "plain"),
    ]  # fmt: skip
    if judged:
        tone = "good" if len(held) == len(judged) else "warn"
        cards.insert(
            0,
            Card("Findings that hold", f"{len(held)} of {len(judged)}", "in every seed", tone),  # type: ignore[arg-type]
        )
    return cards


def _table_section(table: Mapping[str, Any], metrics: Metrics) -> Section:
    columns = table["columns"]
    shown = [column for column in columns if _known(table, column, "value")]
    heads, best = ["row"], {}
    for column in shown:
        heads.append(column["label"])
        if column["better"]:
            best[column["label"]] = column["better"]
        if _known(table, column, "published"):
            heads.append(f"published: {column['label']}")
    rows = []
    for row in table["rows"]:
        cells: list[Any] = [row["label"] + (f" ({len(row['failed'])} failed)" if row["failed"] else "")]
        for column in shown:
            of = row["values"][column["label"]]
            cells.append(None if of["value"] is None else _value(of, column["percent"]))
            if _known(table, column, "published"):
                cells.append(_published(of.get("published"), column["percent"]))
        rows.append(cells)
    text = "Ours"
    if any(_known(table, column, "published") for column in shown):
        text += f" beside the paper's figures, which are of another budget ({metrics['published_budget']})"
    text += f". Bars and brackets: {metrics['intervals']}."
    reasons = [
        f"{row['label']}: {reason}" for row in table["rows"] for reason in dict.fromkeys(row["failed"])
    ]
    if reasons:
        text += " Failed: " + "; ".join(reasons) + "."
    caption = f"{table['title']}, {metrics['budget']['title']}."
    pictures = [dots(column["label"], table["rows"], column["percent"]) for column in shown if column["plot"]]
    turned = len(shown) > MOST_COLUMNS
    results = Table(heads, rows, caption, best=best, turned=turned)
    return Section(f"Results: {table['title']}", text, [results, *pictures])


def _known(table: Mapping[str, Any], column: Mapping[str, Any], what: str) -> bool:
    return any(row["values"][column["label"]].get(what) is not None for row in table["rows"])


def _value(of: Mapping[str, Any], percent: bool) -> Value | str:
    low, high = (math.nan if of[key] is None else of[key] for key in ("low", "high"))
    if not percent and abs(of["value"]) >= 10:
        interval = f" ({low:.1f}–{high:.1f})" if math.isfinite(low) else ""
        return f"{of['value']:.1f}{interval}"
    return Value(of["value"], low, high, percent=percent)


def _published(value: float | None, percent: bool) -> str | None:
    return None if value is None else f"{100 * value:.1f}" if percent else f"{value:.4g}"


@styled
def dots(name: str, rows: Sequence[Mapping[str, Any]], percent: bool) -> Figure:
    """Return a dot a row with its interval and single seeds, and a diamond where a figure is published."""
    scale = 100 if percent else 1
    kept = [row for row in rows if row["values"][name]["value"] is not None]
    wide = len(kept) > 9
    figure = canvas(FULL if wide else HALF, 74 + 23 * len(kept))
    axis = figure.subplots()
    texts = []
    for at, row in enumerate(kept):
        of = row["values"][name]
        if of["low"] is not None and of["high"] is not None:
            axis.plot([scale * of["low"], scale * of["high"]], [at, at], color=_BLUE, lw=5, alpha=0.3)
        seeds = np.array([x for x in of["seeds"] if x is not None])
        axis.plot(scale * seeds, np.full(len(seeds), at), "|", ms=9, mew=1.4, color=_BLUE)
        axis.plot([scale * of["value"]], [at], "o", ms=6.5, color=_BLUE)
        if of.get("published") is not None:
            axis.plot([scale * of["published"]], [at], "D", ms=6.5, mfc="none", mew=1.6, color=_ORANGE)
        texts.append(f"{row['label']} {scale * of['value']:.4g}")
    axis.set_yticks(range(len(kept)), [label(row["label"], 34 if wide else 24) for row in kept])
    axis.set(ylim=(len(kept) - 0.4, -0.6), title=label(name, 40))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", labelcolor=INK)
    axis.spines["left"].set_color(MUTED)
    published = " Diamond: published." if any("published" in row["values"][name] for row in kept) else ""
    return finish(
        figure,
        f"Dot: mean; ticks: seeds; bar: interval.{published}",
        f"{name}: {', '.join(texts)}",
        "full" if wide else "half",
    )


def _findings_section(table: Mapping[str, Any]) -> Section:
    rows = [
        [finding["claim"], verdict(finding), evidence(finding), "yes" if finding["asserted"] else "no"]
        for finding in table["findings"]
    ]
    return Section(
        f"Findings: {table['title']}",
        "What was asked, and whether it holds here, seed by seed. A nightly test fails where one marked "
        "as tested does not hold in every seed on digits.",
        [Table(["finding", "verdict", "means over the seeds", "tested"], rows, "Findings.")],
    )


def evidence(finding: Mapping[str, Any]) -> str:
    """Return the figures that a finding was judged on."""
    known = [item for item in finding["evidence"] if item["value"] is not None]
    return "; ".join(f"{item['row']}, {item['column']}: {_short(item)}" for item in known)


def _short(item: Mapping[str, Any]) -> str:
    return f"{100 * item['value']:.1f}" if item["column"].endswith("%") else f"{item['value']:.3g}"


def _settings_section(metrics: Metrics) -> Section:
    lines = {
        "backbone": metrics["backbone"]["name"],
        **{f"backbone.{key}": value for key, value in metrics["backbone"]["options"].items()},
        **{f"fit.{key}": value for key, value in metrics["budget"]["fit"].items()},
        "seeds": metrics["seeds"],
    }
    text = "All methods have the backbone, the epochs and the batch in common; each its own recipe otherwise."
    tables = settings_tables(lines, "What all rows have in common.")
    recipes: dict[str, Mapping[str, Any]] = {}
    for cell in metrics["cells"]:
        recipes.setdefault(cell["row"], cell["cell"])
    rows = [[name, of["method"], _of_its_own(of, lines)] for name, of in recipes.items()]
    tables.append(Table(["row", "method", "settings"], rows, "The settings of each row.", folded="Every row"))
    notes = sorted({note for cell in metrics["cells"] for note in cell["notes"]})
    if metrics["not_run"] or notes:
        text += " " + " ".join(f"{line}." for line in [*metrics["not_run"], *notes])
    return Section("Settings", text, tables)


def _of_its_own(cell: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    shared = {"backbone", "backbone_options", "channels", "image_size", "view_recipe", "reference"}
    given = {**cell["settings"], **{k: v for k, v in cell["fit"].items() if f"fit.{k}" not in common}}
    return ", ".join(f"{key} {_text(value)}" for key, value in given.items() if key not in shared)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_summary(metrics: Metrics) -> None:
    """Print the table of each data set, its findings, and what was not run; intervals where they fit."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for table in metrics["tables"].values():
        shown = [column for column in table["columns"] if _known(table, column, "value")]
        fits = console.width >= 30 + 22 * len(shown)
        title = f"{metrics['title']}: {table['title']}" + (f" ({metrics['intervals']})" if fits else "")
        printed = TerminalTable(title=title, title_justify="left")
        printed.add_column("", no_wrap=True)
        for column in shown:
            printed.add_column(column["label"])
        for row in table["rows"]:
            failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
            texts = (_terminal(row["values"][column["label"]], column["percent"], fits) for column in shown)
            printed.add_row(row["label"] + failed, *texts)
        console.print(printed)
        for finding in table["findings"]:
            console.print(f"{verdict(finding)}: {finding['claim']} ({evidence(finding)})", markup=False)
    for line in metrics["not_run"]:
        console.print(line, markup=False)


def _terminal(of: Mapping[str, Any], percent: bool, interval: bool) -> str:
    if of["value"] is None:
        return "–"
    value = _value(of if interval else {**of, "low": None, "high": None}, percent)
    text = value if isinstance(value, str) else f"{value.text}{value.interval and f' ({value.interval})'}"
    if of.get("published") is not None:
        text += f" \\[published {_published(of['published'], percent)}]"  # a bracket is rich's markup
    return text
