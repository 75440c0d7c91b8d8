"""The page and the terminal's tables of a study, from its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as TerminalTable

from probjepa import plots
from probjepa.report.figures import picture
from probjepa.report.page import Card, Figure, Section, Table, Value, render
from probjepa.report.provenance import settings_tables
from probjepa.terminal import console, printable
from probjepa_experiments.figures import missing_seeds, seeds_run, verdict, with_spread
from probjepa_experiments.study import Result, Study

_FILE_WIDTH = 160
_MOST_COLUMNS = 12
Metrics = Mapping[str, Any]


def page(metrics: Metrics, study: Study, results: Sequence[Result]) -> str:
    """Return the study's page: its tables, findings and own pictures, and what all was run with."""
    sections = []
    for table in metrics["tables"].values():
        sections.append(_table_section(table, metrics, study.about))
        if table["findings"]:
            sections.append(_findings_section(table))
    sections += [*study.measurement.sections(results), _settings_section(metrics)]
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
        count = f"{len(held)} of {len(judged)}"
        tone: Any = "good" if len(held) == len(judged) else "warn"
        cards.insert(0, Card("Findings that hold", count, "in every seed", tone))
    return cards


def shown(table: Mapping[str, Any], what: str = "value") -> list[Mapping[str, Any]]:
    """Return the columns of a table of metrics.json in which any row has a value."""
    return [
        column
        for column in table["columns"]
        if any(row["values"][column["label"]].get(what) is not None for row in table["rows"])
    ]


def is_turned(table: Mapping[str, Any], columns: Sequence[Any]) -> bool:
    """Whether a table is too wide, and not as long, so that its columns are laid out as lines."""
    return len(columns) > max(_MOST_COLUMNS, len(table["rows"]))


def _table_section(table: Mapping[str, Any], metrics: Metrics, about: str) -> Section:
    columns = shown(table)
    published = [column["label"] for column in shown(table, "published")]
    heads = ["row"]
    for column in columns:
        heads.append(column["label"])
        if column["label"] in published:
            heads.append(f"published: {column['label']}")
    rows, run = [], len(seeds_run(metrics["cells"]))
    for row in table["rows"]:
        cells: list[Any] = [row["label"] + missing_seeds(row, run)]
        for column in columns:
            of = row["values"][column["label"]]
            cells.append(None if of["value"] is None else _value(of, column))
            if column["label"] in published:
                cells.append(_published(of["published"], column["percent"]) if "published" in of else None)
        rows.append(cells)
    text = "Ours"
    if published:
        text += f" beside the paper's figures, which are of another budget ({metrics['published_budget']})"
    text += f". Bars and brackets: {metrics['intervals']}."
    reasons = [
        f"{row['label']}: {reason}" for row in table["rows"] for reason in dict.fromkeys(row["failed"])
    ]
    if reasons:
        text += " Failed: " + "; ".join(reasons) + "."
    caption = f"{table['title']}, {metrics['budget']['title']}. {about}".rstrip()
    best = {column["label"]: column["better"] for column in columns if column["better"]}
    pictures = [dots(column, table["rows"]) for column in columns if column["plot"]]
    results = Table(heads, rows, caption, best=best, turned=is_turned(table, columns))
    return Section(f"Results: {table['title']}", text, [results, *pictures])


def _value(of: Mapping[str, Any], column: Mapping[str, Any]) -> Value | str:
    percent = column["percent"]
    if column["p_value"] or (not percent and abs(of["value"]) >= 10):
        return text_of(of, column)
    low, high = (math.nan if of[key] is None else of[key] for key in ("low", "high"))
    return Value(of["value"], low, high, percent=percent)


def number(value: float, percent: bool) -> str:
    """Return a value as tables show it."""
    return f"{100 * value:.1f}" if percent else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def text_of(of: Mapping[str, Any], column: Mapping[str, Any], to: str = "–") -> str:
    """Return a figure of metrics.json as text: its value, and its interval where there is one.

    Of two seeds, which have none, both stand there; of a p-value each seed's: their mean is none.
    """
    if of["value"] is None:
        return "–"
    percent = column["percent"]
    if column["p_value"]:
        return ", ".join(f"{x:.2g}" for x in of["seeds"] if x is not None)
    bounds = [of["low"], of["high"]]
    known = [x for x in of["seeds"] if x is not None]
    text = number(of["value"], percent)
    if None not in bounds:
        return f"{text} ({to.join(number(x, percent) for x in bounds)})"
    return text + f" ({', '.join(number(x, percent) for x in known)})" * (len(known) == 2)


def mean_of(evidence: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """Return a figure that a finding was judged on as text: the mean ± standard deviation of its seeds."""
    if column["p_value"]:
        return text_of(evidence, column)
    percent = column["percent"]
    digits = 1 if percent or abs(evidence["value"]) >= 10 else 3
    return with_spread(evidence, digits, 100 if percent else 1)


def _published(value: float, percent: bool) -> str:
    return number(value, percent) if percent else f"{value:.5g}"


def dots(column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a dot a row with its interval and single seeds, and a diamond where a figure is published."""
    scale = 100 if column["percent"] else 1

    def scaled(*values: float | None) -> tuple[float, ...]:
        return tuple(math.nan if x is None else scale * x for x in values)

    of = {row["label"]: row["values"][column["label"]] for row in rows}
    of = {name: figure for name, figure in of.items() if figure["value"] is not None}
    dot: Any = {name: scaled(*(figure[k] for k in ("value", "low", "high"))) for name, figure in of.items()}
    seeds = {name: scaled(*figure["seeds"]) for name, figure in of.items()}
    known = {name: scale * figure["published"] for name, figure in of.items() if "published" in figure}
    wide = len(of) > 9
    return picture(
        column["label"],
        lambda axis: plots.dots(axis, dot, ticks=seeds, diamonds=known, name_limit=34 if wide else 24),
        f"Dot: mean; ticks: seeds; bar: interval.{' Diamond: published.' if known else ''}",
        width="full" if wide else "half",
        height=74 + 23 * len(of),
    )


def _findings_section(table: Mapping[str, Any]) -> Section:
    rows = [
        [
            finding["claim"],
            verdict(finding),
            _evidence(finding, table),
            "yes" if finding["asserted"] else "no",
        ]
        for finding in table["findings"]
    ]
    return Section(
        f"Findings: {table['title']}",
        "What was asked, and whether it holds here, seed by seed. A nightly test fails where one marked "
        "as tested does not hold in every seed on digits.",
        [
            Table(
                ["finding", "verdict", "mean ± deviation of the seeds judged", "tested"],
                rows,
                "Findings.",
            )
        ],
    )


def _evidence(finding: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    columns = {column["label"]: column for column in table["columns"]}
    return "; ".join(
        f"{of['row']}, {of['column']}: {mean_of(of, columns[of['column']])}" for of in finding["evidence"]
    )


def _settings_section(metrics: Metrics) -> Section:
    encoder = metrics["backbone"]
    common = {
        **({"backbone": encoder["name"]} if encoder["name"] else {}),
        **{f"backbone.{key}": value for key, value in encoder["options"].items()},
        **{f"fit.{key}": value for key, value in metrics["budget"]["fit"].items()},
        "seeds": metrics["seeds"],
    }
    tables = settings_tables(common, "What all rows have in common.")
    cells: dict[str, Mapping[str, Any]] = {}
    for cell in metrics["cells"]:
        cells.setdefault(cell["row"], cell["cell"])
    rows = [[name, of["method"], _of_its_own(of, common)] for name, of in cells.items()]
    tables.append(Table(["row", "method", "settings"], rows, "The settings of each row.", folded="Every row"))
    notes = sorted({note for cell in metrics["cells"] for note in cell["notes"]})
    lines = ["What is equal for all rows, and what is of each row alone", *metrics["not_run"], *notes]
    return Section("Settings", " ".join(f"{line}." for line in lines), tables)


def _of_its_own(cell: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    shared = {"backbone", "backbone_options", "channels", "image_size", "view_recipe", "reference"}
    given = {k: v for k, v in {**cell["settings"], **cell["fit"]}.items() if f"fit.{k}" not in common}
    return ", ".join(f"{key} {_text(value)}" for key, value in given.items() if key not in shared)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_summary(metrics: Metrics) -> None:
    """Print the table of each data set, its findings, and what was not run; intervals where they fit."""
    terminal = console(error=False)
    if not terminal.is_terminal:
        terminal.width = _FILE_WIDTH
    run = len(seeds_run(metrics["cells"]))
    for table in metrics["tables"].values():
        columns = [column for column in shown(table) if column["brief"]]
        if not columns:
            continue
        fits = terminal.width >= 30 + 22 * len(columns)
        title = f"{metrics['title']}: {table['title']}" + (f" ({metrics['intervals']})" if fits else "")
        printed = TerminalTable(title=title, title_justify="left")
        printed.add_column("", no_wrap=True)
        for column in columns:
            printed.add_column(column["label"])
        for row in table["rows"]:
            texts = []
            for column in columns:
                of, published = row["values"][column["label"]], ""
                if "published" in of:
                    published = f" [published {_published(of['published'], column['percent'])}]"
                texts.append(text_of(of if fits else {**of, "low": None, "seeds": []}, column) + published)
            printed.add_row(*map(printable, (row["label"] + missing_seeds(row, run), *texts)))
        terminal.print(printed)
        for finding in table["findings"]:
            terminal.print(f"{verdict(finding)}: {finding['claim']} ({_evidence(finding, table)})")
    for line in metrics["not_run"]:
        terminal.print(line)
