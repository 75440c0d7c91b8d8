"""The page of a table encoder's evaluation: what it says, with parts missing, and its marked cells."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probjepa.report import tabular
from probjepa.report.tabular import table_report
from probjepa.tabular.selection import selection_figures

HOSTILE = "<script>alert(1)</script>"


def figure(value: float, width: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def example() -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(0)
    n = 60
    own, raw = (
        {"accuracy": figure(x), "macro F1": figure(x - 0.1), "weighted F1": figure(x)} for x in (0.9, 0.7)
    )
    doubt = {name: random.random(n) for name in ("maximum class probability", "model uncertainty")}
    doubt["random"] = np.zeros(n)
    selective, calibration = selection_figures(random.random(n) < 0.8, doubt)
    result = {
        "version": "0.1.0",
        "settings": {"model": "VarTJEPA", "dim": 8},
        "train": "a.parquet",
        "test": HOSTILE,
        "target": "y",
        "classes": {"no": 3, HOSTILE: 4},
        "sets": {"test": {"name": "b", "rows": n, "columns": 3, "sha256": "0123456789abcdef01"}},
        "left_out_as_in_train": 2,
        "accuracy": {
            "raw": {"MLP": raw, "XGBoost": {"not run": "install probjepa[xgboost]"}},
            "embedding": {"MLP": own, "XGBoost": {"not run": "install probjepa[xgboost]"}},
        },
        "selective": {"embedding": {"MLP": selective}},
        "calibration": {"embedding": {"MLP": calibration}},
        "collapse": {"effective_rank": figure(1.1), "std_mean": figure(0.1)},
    }
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="D")
    frame = pd.DataFrame({"age": random.normal(size=n), HOSTILE: ["x"] * n, "when": when})
    surprise = pd.DataFrame(
        {"age": np.zeros(n), HOSTILE: np.full(n, np.nan), "when.days": 0.5, "when.hour": 0.1}
    )
    surprise.loc[7, "age"] = 9.25
    surprise.loc[7, "when.hour"] = 4.5
    score = np.zeros(n)
    score[7] = -5
    arrays = {"frame": frame, "labels": np.array(["no"] * n), "surprise": surprise, "score": score}
    return result, arrays


RESULT, ARRAYS = example()


class Marks(HTMLParser):
    """Collects the text of the highlighted cells of a page's last table that has any."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.cells = False, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.inside = "best" in (dict(attrs).get("class") or "")
            if self.inside:
                self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.inside = False


def test_the_page_says_what_was_found() -> None:
    html = table_report(RESULT, ARRAYS)
    assert "Their intervals do not overlap." in html
    assert "2 test rows that stand in the training table were left out." in html
    assert "not run: install probjepa[xgboost]" in html
    assert "Collapsed" in html
    assert HOSTILE not in html
    assert "prefers-color-scheme: dark" in html
    assert 'src="http' not in html


def test_the_surprising_cells_are_marked_and_no_others() -> None:
    marks = Marks()
    marks.feed(table_report({}, ARRAYS))
    assert [text[-8:] for text in marks.cells] == [f"{x:.1f} nats" for x in (9.25, 4.5)]
    assert marks.cells[0].startswith(f"{ARRAYS['frame']['age'][7]:.4g}")


def test_overlapping_intervals_establish_nothing() -> None:
    result = copy.deepcopy(RESULT)
    result["accuracy"]["raw"]["MLP"]["accuracy"] = figure(0.89)
    assert "overlap: the difference is not established" in table_report(result)


def selections(*accuracies: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Selection and calibration of a classifier each, right so often."""
    random = np.random.default_rng(1)
    doubt = {"model uncertainty": random.random(200), "random": np.zeros(200)}
    pairs = [selection_figures(random.random(200) < accuracy, doubt) for accuracy in accuracies]
    first, second = ({f"{a:g}": pair[i] for a, pair in zip(accuracies, pairs, strict=True)} for i in (0, 1))
    return first, second


def test_a_classifier_without_errors_has_nothing_to_withhold() -> None:
    selective, calibration = selections(1.0, 0.5)
    result = RESULT | {"selective": {"embedding": selective}, "calibration": {"embedding": calibration}}
    html = table_report(result)
    assert "For 1 nothing is: all of its answers are right." in html
    assert "1 makes no errors here" in html
    assert "None" not in html


@pytest.mark.parametrize("accuracies", [(1.0, 0.5), (0.5, 1.0)])
def test_the_curves_of_every_classifier_are_within_the_picture(monkeypatch, accuracies) -> None:  # type: ignore[no-untyped-def]
    drawn = []
    monkeypatch.setattr(tabular, "finish", lambda figure, *texts: drawn.append(figure))
    tabular._curves(selections(*accuracies)[0])
    for axis in drawn[0].axes:
        highest = max(line.get_ydata().max() for line in axis.lines)
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] >= highest


@pytest.mark.parametrize("part", RESULT)
def test_a_missing_part_is_left_out(part: str) -> None:
    assert "</html>" in table_report({key: value for key, value in RESULT.items() if key != part}, ARRAYS)


@pytest.mark.parametrize("part", ARRAYS)
def test_a_missing_array_is_left_out(part: str) -> None:
    html = table_report(RESULT, {key: value for key, value in ARRAYS.items() if key != part})
    assert ("Most surprising rows" in html) == (part == "labels")


def test_nothing_at_all_is_still_a_page() -> None:
    assert "</html>" in table_report({})
