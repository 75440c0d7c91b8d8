"""The page of a table encoder's evaluation: what it shows, with parts missing, and its marked cells."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probjepa.evaluation.figures import over_seeds
from probjepa.evaluation.selective import selection_figures
from probjepa.report.evaluation import table_report
from probjepa.report.sections import selective_section
from probjepa.report.summary import print_table_summary
from probjepa.report.tables import _shown, calibration_section, surprising_section

HOSTILE = "<script>alert(1)</script>"


def figure(value: float, width: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def example() -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(0)
    n = 60
    own, raw = (
        {"accuracy": figure(x), "macro F1": figure(x - 0.1), "weighted F1": figure(x)} for x in (0.9, 0.7)
    )
    unsure = {name: random.random(n) for name in ("maximum class probability", "model uncertainty")}
    unsure["random"] = np.zeros(n)
    selective, calibration = selection_figures(random.random(n) < 0.8, unsure)
    result = {
        "version": "0.1.0",
        "settings": {"model": "VarTJEPA", "dim": 8},
        "train": "a.parquet",
        "test": HOSTILE,
        "target": "y",
        "classes": {"no": 3, HOSTILE: 4},
        "sets": {"test": {"name": "b", "rows": n, "columns": 3, "sha256": "0123456789abcdef01"}},
        "left_out_as_in_train": 2,
        "test_rows_also_in": {"calibration": 1},
        "accuracy": {
            "raw": {"MLP": raw, "XGBoost": {"not run": "install probjepa[xgboost]"}},
            "embedding": {"MLP": own, "XGBoost": {"not run": "install probjepa[xgboost]"}},
        },
        "mcnemar": {
            "embedding": {"MLP": {"gained": figure(9, 0), "lost": figure(2, 0), "p": figure(0.065, 0)}}
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


def test_the_page_shows_what_was_found() -> None:
    html = table_report(RESULT, ARRAYS)
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())
    assert "Accuracy, embedding 90.0 % best of the classifiers: MLP; 95 % interval 88.0–92.0" in text
    assert "Accuracy, raw features 70.0 % best of the classifiers: MLP; 95 % interval 68.0–72.0" in text
    half = RESULT["selective"]["embedding"]["MLP"]["model uncertainty"]["accuracy_at"]["0.5"]["value"]
    assert f"Accuracy at 50 % coverage, by model uncertainty {100 * half:.1f} % MLP" in text
    assert "embedding, MLP 90.0 88.0–92.0 80.0 78.0–82.0 90.0 88.0–92.0" in text
    assert "test b 60 3 columns 0123456789abcdef 2 0" in text
    assert "embedding, MLP 9.0 9.0–9.0" in text
    assert "not run: install probjepa[xgboost]" in html
    assert "The embeddings have collapsed (effective rank 1.1, mean spread 1.0e-01)" in html
    assert not {"doubt", "doubtful", "surest"} & set(text.lower().split())
    assert HOSTILE not in html
    assert "prefers-color-scheme: dark" in html
    assert 'src="http' not in html


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def seeded(values: list[float | None]) -> dict[str, Any]:
    return over_seeds([{"value": x, "low": None, "high": None} for x in values])  # type: ignore[no-any-return]


def test_rows_gained_and_lost_are_counts() -> None:
    of = {"gained": seeded([19.0]), "lost": seeded([0.0]), "p": seeded([0.25])}
    html = text_of(table_report({"mcnemar": {"embedding": {"MLP": of}}}))
    assert "embedding, MLP 19 0 0.25" in html
    of = {"gained": seeded([12345.0]), "lost": seeded([10049.0, 9950.0, 10100.0]), "p": seeded([1e-40])}
    html = text_of(table_report({"mcnemar": {"embedding": {"MLP": of}}}))
    assert "embedding, MLP 12,345 10,033.0 9,843.5–10,222.5 1e-40" in html


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_a_missing_cell_is_called_so_whatever_it_is(missing: Any) -> None:
    assert _shown(missing) == "missing"


@pytest.mark.parametrize("seeds", [2, 3])
def test_several_seeds_are_shown_as_such(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    ps = over_seeds([{"p": {"value": p}} for p in (0.01, 0.2, 0.5)[:seeds]])
    own = {"accuracy": seeded([0.9, 0.92, 0.94][:seeds]), "macro F1": seeded([0.8, 0.8, 0.8][:seeds])}
    selected = {
        "aurc": seeded([0.1] * seeds),
        "accuracy_at": {"0.5": seeded([None] * seeds)},
        "risk": [0.1] * 96,
    }
    result = RESULT | {
        "settings": {"seeds": list(range(seeds)), "predictors": ["MLP"]},
        "accuracy": {"raw": {"MLP": own}, "embedding": {"MLP": own}},
        "mcnemar": {"embedding": {"MLP": {"gained": seeded([9] * seeds), "lost": seeded([2] * seeds), **ps}}},
        "selective": {"embedding": {"MLP": {"model uncertainty": selected}}},
        "labels": {},
    }
    text = text_of(table_report(result, ARRAYS))
    assert f"1 of {seeds} below 0.05: 0.01, 0.2" in text
    assert "95 % intervals over seeds, which leave out what other test rows would change" in text
    assert "95 % intervals over seeds" not in text_of(table_report(RESULT, ARRAYS))
    print_table_summary(result)
    said = " ".join(capsys.readouterr().out.split())
    assert "interval over seeds" in said and ("91.0" if seeds == 2 else "92.0 (87.0–97.0)") in said
    assert "None" not in said and "0.1000" in said and "–" in said


def test_the_surprising_cells_are_marked_and_no_others() -> None:
    marks = Marks()
    marks.feed(table_report({}, ARRAYS))
    assert [text[-8:] for text in marks.cells] == [f"{x:.1f} nats" for x in (9.25, 4.5)]
    assert marks.cells[0].startswith(f"{ARRAYS['frame']['age'][7]:.4g}")


def test_many_columns_are_shown_by_how_much_they_surprise() -> None:
    frame = pd.DataFrame({f"c{i}": np.arange(12.0) for i in range(20)})
    surprise = pd.DataFrame({f"c{i}": np.full(12, float(i)) for i in range(20)})
    section = surprising_section({"frame": frame, "surprise": surprise, "score": np.arange(12.0)})
    assert section is not None
    (table,) = section.items
    assert list(table.columns[3:]) == [f"c{i}" for i in range(19, 5, -1)]
    assert "6 columns that surprise less are not shown" in table.caption
    assert [row[0] for row in table.rows] == [str(i) for i in range(10)]
    assert table.notes == [{3: "19.0 nats", 4: "18.0 nats", 5: "17.0 nats"}] * 10


def selections(*accuracies: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Selection and calibration of a classifier each, right so often."""
    random = np.random.default_rng(1)
    unsure = {"model uncertainty": random.random(200), "random": np.zeros(200)}
    pairs = [selection_figures(random.random(200) < accuracy, unsure) for accuracy in accuracies]
    first, second = ({f"{a:g}": pair[i] for a, pair in zip(accuracies, pairs, strict=True)} for i in (0, 1))
    return first, second


def test_a_classifier_without_errors_has_nothing_to_withhold() -> None:
    selective, calibration = selections(1.0, 0.5)
    result = RESULT | {"selective": {"embedding": selective}, "calibration": {"embedding": calibration}}
    html = table_report(result)
    assert "Accuracy at 50 % coverage, by model uncertainty" in html and "100.0 %" in html
    section = calibration_section(calibration)
    assert section is not None
    figure, table = section.items
    row = dict(zip(table.columns, (cell["text"] for cell in table.cells[0]), strict=True))
    rho = calibration["0.5"]["model uncertainty"]["spearman"]["value"]
    assert row == {"uncertainty": "model uncertainty", "1": "–", "0.5": f"{rho:.3f}".replace("-", "−")}
    assert figure.alt.startswith("Accuracy by uncertainty: 1 from 100 to 100 %")
    assert "None" not in html.replace("None where", "")


@pytest.mark.parametrize("accuracies", [(1.0, 0.5), (0.5, 1.0)])
def test_the_curves_of_every_classifier_are_within_the_picture(
    monkeypatch: pytest.MonkeyPatch, accuracies: tuple[float, float]
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("probjepa.report.figures._svg", lambda figure: drawn.append(figure) or "")
    selective_section(selections(*accuracies)[0])
    for axis in drawn[0].axes:
        highest = max(line.get_ydata().max() for line in axis.lines if len(line.get_ydata()) > 2)
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


def test_what_was_learned_of_each_column_is_shown():
    from probjepa.report.tables import skill_section
    from probjepa.tabular.skill import Skill

    skill = [Skill("copy", 120, 1.5, 0.1, 0.9), Skill("few", 20), Skill("noise", 120, 0.0, 0.1, 0.0)]
    section = skill_section([of._asdict() for of in skill])
    assert [row[0] for row in section.items[0].rows] == ["noise", "copy"]
    assert "no more than 2 standard errors and of which less than 5% is explained" in section.text
    assert skill_section([]) is None
