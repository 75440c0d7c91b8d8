"""The report of a table encoder's evaluation: accuracy, selection, calibration, the most surprising rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probjepa.report.page import Card, Figure, Section, Table, Value, render
from probjepa.report.provenance import settings_tables
from probjepa.report.style import FULL, HALF, MUTED, canvas, finish, label, palette, styled
from probjepa.report.verdicts import collapse_verdict
from probjepa.tabular.selection import GRID, PROBABILITY, UNCERTAINTY

_OWN = "embedding"
_RANDOM = "random"
_SCORES = ("accuracy", "macro F1", "weighted F1")
_SHOWN_ROWS = 10
_SHOWN_COLUMNS = 14
_MARKED = 3  # cells of a row
_SURPRISING = 3.0  # nats: a twentieth of the density, or probability, of an expected cell

Result = Mapping[str, Any]


@dataclass(frozen=True)
class MarkedTable(Table):
    """A table with some cells marked: ``notes`` has a line below each marked cell, and None elsewhere."""

    notes: Sequence[Sequence[str | None]] = ()

    @property
    def cells(self) -> list[list[dict[str, Any]]]:
        """The rows as the template wants them, marked cells highlighted."""
        plain = super().cells
        for row, notes in zip(plain, self.notes, strict=True):
            for cell, note in zip(row, notes, strict=True):
                if note is not None:
                    cell |= {"best": True, "interval": note}
        return plain


def table_report(result: Result, arrays: Mapping[str, Any] | None = None) -> str:
    """Return the page of what ``tabular.downstream.evaluate_table`` found.

    Parameters
    ----------
    result, arrays
        ``metrics`` and ``arrays`` of its ``TableEvaluation``; parts that are not there are not shown
    """
    arrays = arrays or {}
    accuracy, selective, calibration = (
        result.get(key) or {} for key in ("accuracy", "selective", "calibration")
    )
    space = _OWN if _OWN in selective else "raw"
    selective, calibration = selective.get(space) or {}, calibration.get(space) or {}
    collapse = {key: of["value"] for key, of in (result.get("collapse") or {}).items()}
    tone, verdict = collapse_verdict({k: v for k, v in collapse.items() if v is not None})
    parts = [
        _accuracy_section(accuracy, result),
        _selective_section(selective, space),
        _calibration_section(calibration, selective, space),
        _surprising_section(arrays),
        _collapse_section(collapse, verdict.replace("between images", "between rows")),
        _settings_section(result),
    ]
    settings = result.get("settings") or {}
    return render(
        f"{settings.get('model', 'Raw features')} on {result.get('test', 'a table')}",
        _cards(accuracy, selective, calibration, collapse, tone),
        [part for part in parts if part is not None],
        subtitle=f"Predicting the column {result['target']}, labels from {result['train']}."
        if {"target", "train"} <= result.keys()
        else "",
        footer={k: str(result[k]) for k in ("version", "hardware") if result.get(k)},
    )


def _cards(
    accuracy: Result, selective: Result, calibration: Result, collapse: Result, tone: Any
) -> list[Card]:
    cards = []
    for space, title in ((_OWN, "embedding"), ("raw", "raw features")):
        predictor, value = _best(accuracy.get(space) or {})
        if value is not None:
            note = f"best of the classifiers: {predictor}"
            interval = f"; 95 % interval {value.interval}" if value.interval else ""
            cards.append(Card(f"Accuracy, {title}", f"{value.text} %", note + interval))
    if selective:
        predictor = _lead(selective)
        source = UNCERTAINTY if UNCERTAINTY in selective[predictor] else PROBABILITY
        half = selective[predictor][source]["accuracy_at"]["0.5"]["value"]
        cards.append(Card(f"Accuracy, surest half by {source}", f"{100 * half:.1f} %", predictor))
        rho = (calibration.get(predictor, {}).get(source) or {}).get("spearman", {}).get("value")
        if rho is not None:
            cards.append(Card(f"ρ of {source} with error", _signed(rho), "Spearman; 0: no relation"))
    rank = collapse.get("effective_rank")
    if rank is not None:
        cards.append(Card("Effective rank", f"{rank:.3g}", "directions in use", tone))
    return cards


def _best(row: Result) -> tuple[str, Value | None]:
    """The classifier with the highest accuracy, and that."""
    known = {name: _value(of["accuracy"], percent=True) for name, of in row.items() if "accuracy" in of}
    if not known:
        return "", None
    name = max(known, key=lambda key: known[key].value)
    return name, known[name]


def _lead(selective: Result) -> str:
    """The classifier whose selection is shown first: the one with the least error of all answers."""
    return min(selective, key=lambda name: _error(selective[name]))


def _error(by_source: Result) -> float:
    """The share of wrong answers, of all."""
    return float(next(iter(by_source.values()))["risk"][-1])


def _accuracy_section(accuracy: Result, result: Result) -> Section | None:
    if not accuracy:
        return None
    predictors = list(dict.fromkeys(name for row in accuracy.values() for name in row))
    rows = [
        [space, *(_cell(row.get(name), "accuracy") for name in predictors)] for space, row in accuracy.items()
    ]
    table = Table(
        ["features", *predictors],
        rows,
        f"Accuracy in % on {result.get('test', 'the test table')}, with 95 % intervals; the best of "
        "each column is "
        "marked. All classifiers are fitted on the same training rows.",
        {name: "max" for name in predictors},
    )
    others = Table(
        ["features, classifier", *_SCORES],
        [
            [f"{space}, {name}", *(_cell(of, score) for score in _SCORES)]
            for space, row in accuracy.items()
            for name, of in row.items()
            if not (space == "majority class" and name != predictors[0])
        ],
        "In %. Macro F1 is the mean of the classes' F1, weighted F1 weights it by their sizes: "
        "published figures "
        "named macro F1 are weighted F1.",
        {score: "max" for score in _SCORES},
        folded="Macro F1 and weighted F1",
    )
    return Section("Accuracy", _accuracy_text(accuracy, result), [table, others])


def _accuracy_text(accuracy: Result, result: Result) -> str:
    (ours, own), (theirs, raw) = (_best(accuracy.get(space) or {}) for space in (_OWN, "raw"))
    text = ""
    if own is not None and raw is not None:
        text = f"On the embedding, {ours} is right for {own.text} % of the rows; "
        text += f"on raw features, {theirs} for {raw.text} %. "
        low, high = (_least(own), _most(raw)) if own.value > raw.value else (_least(raw), _most(own))
        apart = "do not overlap" if low > high else "overlap: the difference is not established"
        if math.isfinite(own.low) and math.isfinite(raw.low):
            text += f"Their intervals {apart}. "
    if result.get("left_out_as_in_train"):
        text += (
            f"{result['left_out_as_in_train']:,} test rows that stand in the training table were left out."
        )
    return text.strip() or "How well simple classifiers read the class."


def _least(x: Value) -> float:
    return x.low if math.isfinite(x.low) else x.value


def _most(x: Value) -> float:
    return x.high if math.isfinite(x.high) else x.value


def _cell(of: Result | None, score: str) -> Value | str | None:
    if of is None:
        return None
    return f"not run: {of['not run']}" if "not run" in of else _value(of[score], percent=True)


def _value(of: Result, percent: bool = False) -> Value:
    value, low, high = (math.nan if of.get(k) is None else float(of[k]) for k in ("value", "low", "high"))
    return Value(value, low, high, percent)


def _selective_section(selective: Result, space: str) -> Section | None:
    if not selective:
        return None
    tables = []
    lead = _lead(selective)
    for name in sorted(selective, key=lambda name: name != lead):
        shares = list(next(iter(selective[name].values()))["accuracy_at"])
        columns = {share: f"accuracy, {100 * float(share):g} % answered" for share in shares}
        rows = [
            [
                source,
                _value(of["aurc"]),
                _value(of["excess_aurc"]),
                *(_value(of["accuracy_at"][share], percent=True) for share in shares),
            ]
            for source, of in selective[name].items()
        ]
        tables.append(
            Table(
                ["doubt", "AURC ↓", "excess AURC ↓", *columns.values()],
                rows,
                f"{name} on the {space}: AURC is the mean error over all coverages, excess AURC what it has "
                "above the perfect order; accuracies are in %.",
                {
                    "AURC ↓": "min",
                    "excess AURC ↓": "min",
                    **{columns[s]: "max" for s in shares if s != "1.0"},
                },
                folded="" if name == lead else f"{name}: all sources",
            )
        )
    found = selective[lead]
    error = float(found[_RANDOM]["aurc"]["value"]) if _RANDOM in found else math.inf
    best = min(found, key=lambda source: float(found[source]["aurc"]["value"]))
    text = "The error that is left when the most doubtful answers are withheld. "
    worse = [s for s, of in found.items() if s != _RANDOM and float(of["aurc"]["value"]) >= error - 1e-9]
    if not _error(found):
        text += f"For {lead} nothing is: all of its answers are right."
    else:
        text += f"For {lead}, the best doubt is {best}"
        text += f"; no better than withholding at random: {', '.join(worse)}." if worse else "."
    return Section("Selective prediction", text, [_curves(selective), *tables])


@styled
def _curves(selective: Result) -> Figure:
    figure = canvas(FULL, 250)
    panels = figure.subplots(1, len(selective), sharey=True, squeeze=False)[0]
    sources = list(dict.fromkeys(s for of in selective.values() for s in of if s != _RANDOM))
    colours = palette(sources)
    grid = 100 * np.array(GRID)
    for axis, (name, found) in zip(panels, selective.items(), strict=True):
        for source in sources:
            if source in found:
                risk = 100 * np.asarray(found[source]["risk"], float)
                axis.plot(grid, risk, color=colours[source], label=label(source), lw=1.5)
        if _RANDOM in found:
            axis.plot(grid, 100 * np.asarray(found[_RANDOM]["risk"], float), color=MUTED, lw=1, dashes=(4, 3),
                      label="at random")  # fmt: skip
        axis.set(title=label(name), xlim=(0, 100), xlabel="answered, %")
    panels[0].set(ylabel="wrong, %", ylim=(0, None))  # of all panels, and so after the last of them is drawn
    panels[-1].legend(
        loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False, fontsize=9.5
    )
    ends = ", ".join(f"{name} {100 * _error(of):.1f} %" for name, of in selective.items())
    return finish(
        figure,
        "Error of the answers given, the surest first, by classifier and source of doubt. Lower is better.",
        f"Risk–coverage curves; error of all answers: {ends}",
    )


def _calibration_section(calibration: Result, selective: Result, space: str) -> Section | None:
    if not any(calibration.values()):
        return None
    source = UNCERTAINTY if any(UNCERTAINTY in of for of in calibration.values()) else PROBABILITY
    sources = list(dict.fromkeys(s for of in calibration.values() for s in of))
    table = Table(
        ["doubt", *calibration],
        [[s, *(_rho(of.get(s)) for of in calibration.values())] for s in sources],
        "Spearman's ρ of doubt with being wrong, by classifier: above 0 the doubtful are wrong more often.",
        width="half",
    )
    lead = _lead(selective)
    rho = _rho(calibration[lead].get(source))
    text = "Whether doubt goes with error: the curves should fall from left to right. "
    text += (
        f"On the {space}, {source} has ρ = {rho} with the errors of {lead}."
        if rho is not None
        else f"{lead} makes no errors here, or {source} is the same for all rows."
    )
    curves = {name: of[source]["accuracy"] for name, of in calibration.items() if source in of}
    return Section("Calibration", text, [_tenths(curves, source), table])


def _rho(of: Result | None) -> str | None:
    return None if of is None or of["spearman"]["value"] is None else _signed(of["spearman"]["value"])


def _signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "−")


@styled
def _tenths(curves: Mapping[str, Sequence[float]], source: str) -> Figure:
    figure = canvas(HALF, 260)
    axis = figure.subplots()
    colours = palette(curves)
    for name, accuracy in curves.items():
        x = np.arange(1, len(accuracy) + 1)
        axis.plot(x, 100 * np.asarray(accuracy), "o-", ms=4.5, color=colours[name], label=label(name))
    axis.set(xlabel=f"tenth of the rows, by {label(source)}", ylabel="right, %")
    axis.legend(frameon=False, fontsize=9.5)
    ends = ", ".join(f"{name} {100 * of[0]:.0f} to {100 * of[-1]:.0f} %" for name, of in curves.items())
    return finish(
        figure, f"Accuracy from the least doubtful tenth (1) to the most, by {source}.",
        f"Accuracy by tenth of {source}: {ends}", "half",
    )  # fmt: skip


def _surprising_section(arrays: Mapping[str, Any]) -> Section | None:
    frame, surprise, score = (arrays.get(key) for key in ("frame", "surprise", "score"))
    if frame is None or surprise is None or score is None:
        return None
    order = np.argsort(score, kind="stable")[:_SHOWN_ROWS]
    cells = _by_column(surprise, list(frame.columns))
    # the columns that surprise most come first: a wide table is cut off by the window
    by_column = np.nan_to_num(cells[order], nan=-np.inf).max(0)
    columns = np.argsort(-by_column, kind="stable")[:_SHOWN_COLUMNS]
    rows, notes = [], []
    for row in order:
        values = cells[row, columns]
        most = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:_MARKED]
        marked = [i for i in most if values[i] > _SURPRISING]
        label_ = arrays["labels"][row] if arrays.get("labels") is not None else None
        rows.append([str(row), f"{score[row]:.2f}".replace("-", "−"), label_,
                     *(_shown(frame.iloc[row, c]) for c in columns)])  # fmt: skip
        said = (f"{x:.1f} nats" if i in marked else None for i, x in enumerate(values))
        notes.append([None, None, None, *said])
    left = len(frame.columns) - len(columns)
    table = MarkedTable(
        ["test row", "score", "label", *(frame.columns[c] for c in columns)],
        rows,
        f"The {len(order)} test rows with the lowest score (mean log p of a cell given the row's "
        "others). Marked: "
        f"the up to {_MARKED} most surprising cells of a row, −log p above {_SURPRISING:g} nats."
        + (f" {left} columns that surprise less are not shown." if left else ""),
        notes=notes,
    )
    return Section(
        "Most surprising rows",
        "What the model finds least likely, and which cells make it so: look here for errors of entry, rare "
        "combinations and outliers. Numbers are densities of standardised columns.",
        [table],
    )


def _by_column(surprise: Any, columns: Sequence[str]) -> Any:
    """Surprise (N, D) by column of the table: of a date's parts, the largest."""
    found = np.full((len(surprise), len(columns)), np.nan)
    for name in surprise.columns:
        column = name if name in columns else name.rpartition(".")[0]
        at = list(columns).index(column)
        found[:, at] = np.fmax(found[:, at], surprise[name].to_numpy())
    return found


def _shown(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "missing"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:22]}…"


def _collapse_section(collapse: Result, verdict: str) -> Section | None:
    if not collapse:
        return None
    rows = [[name.replace("_", " "), value] for name, value in collapse.items()]
    return Section(
        "Collapse", verdict, [Table(["diagnostic", "value"], rows, "Embeddings of the test rows.")]
    )


def _settings_section(result: Result) -> Section | None:
    items: list[Table] = []
    if result.get("sets"):
        rows = [
            [role, of["name"], of["rows"], of["columns"], str(of["sha256"])[:16]]
            for role, of in result["sets"].items()
        ]
        items.append(Table(["set", "source", "rows", "features", "SHA-256"], rows,
                           "Rows used, and the start of the hash of their names and cells."))  # fmt: skip
    if result.get("classes"):
        rows = [[name, count] for name, count in result["classes"].items()]
        items.append(Table(["class", "training rows"], rows[:50], "Classes of the target.", folded="Classes"))
    if result.get("settings"):
        items += settings_tables(result["settings"], "Settings of the model and of this evaluation")
    if not items:
        return None
    text = (
        "Nothing was fitted on a test row by this evaluation; a run's own training table is the "
        "user's to keep apart. "
        "An eighth of the training rows is held out to stop the network early."
    )
    return Section("Provenance", text, items)
