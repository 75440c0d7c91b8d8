"""The study of anomalies in tables: splits, detectors, ranks over tables, and a run of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from probjepa.errors import DataError, MissingExtraError
from probjepa_experiments import anomaly_detectors, anomaly_sets
from probjepa_experiments.adbench import BUDGETS, STUDY
from probjepa_experiments.anomaly_detectors import DETECTORS, detect
from probjepa_experiments.anomaly_sets import DRAWN, SOURCES, AnomalyTable
from probjepa_experiments.figures import _over_tables
from probjepa_experiments.study import Budget, Row


def table(normal=100, odd=20, rows=None):
    numbers = np.arange(normal + odd, dtype=float)[:, None]
    return AnomalyTable(numbers=numbers, anomalies=numbers[:, 0] >= normal, rows=rows)


@pytest.mark.parametrize(
    ("setting", "fitted", "odd_fitted", "tested", "odd_tested"),
    [("normal", 50, 0, 70, 20), ("contaminated", 84, 14, 36, 6)],
)
def test_the_two_settings(setting, fitted, odd_fitted, tested, odd_tested):
    train, test, odd = table().split(setting, 0)
    assert (len(train), (train >= 100).sum(), len(test), odd.sum()) == (
        fitted,
        odd_fitted,
        tested,
        odd_tested,
    )
    assert set(train[:, 0]) | set(test[:, 0]) == set(range(120)) and not set(train[:, 0]) & set(test[:, 0])
    np.testing.assert_array_equal(odd, test[:, 0] >= 100)
    assert (train[:, 0] >= 100).sum() == odd_fitted
    for seed, same in ((0, True), (1, False)):
        again = table().split(setting, seed)[0]
        assert np.array_equal(np.sort(again, 0), np.sort(train, 0)) is same


@pytest.mark.parametrize(
    ("most", "normal", "odd"), [(1000, 50, 20), (60, 40, 20), (30, 15, 15), (69, 49, 20)]
)
def test_rows_beyond_the_caps(monkeypatch, most, normal, odd):
    monkeypatch.setattr(anomaly_sets, "TEST_ROWS", most)
    train, _, found = table(rows=30).split("normal", 0)
    assert len(train) == 30 and (~found).sum() == normal and found.sum() == odd
    assert len(table(rows=30).split("contaminated", 0)[0]) == 30


def test_a_table_of_the_folder_is_read(tmp_path):
    (tmp_path / "adbench").mkdir()
    path = tmp_path / "adbench" / "14_glass.npz"
    numbers, labels = np.arange(12, dtype=np.int16).reshape(6, 2), np.array([0, 0, 0, 0, 1, 1])
    np.savez(path, X=numbers, y=labels)
    data = SOURCES["glass"].open(tmp_path, 3)
    np.testing.assert_array_equal(data.numbers, numbers)
    assert (
        data.anomalies.tolist() == [False] * 4 + [True] * 2 and data.rows == 3 and len(data.fingerprint) == 16
    )
    for broken in ({"X": numbers}, {"X": numbers[:, 0], "y": labels}, {"X": numbers, "y": labels + 1}):
        np.savez(path, **broken)
        with pytest.raises(DataError, match="14_glass"):
            SOURCES["glass"].open(tmp_path)
    path.write_bytes(b"PK\x03\x04no")
    with pytest.raises(DataError, match="cannot be read"):
        SOURCES["glass"].open(tmp_path)
    assert SOURCES["cover"].missing(tmp_path).startswith("no ")
    assert len([source for source in SOURCES.values() if source.files]) == 22


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_what_is_far_out(name):
    if name in ("ECOD", "COPOD"):
        pytest.importorskip("pyod")
    rows = np.random.default_rng(0).normal(size=(60, 3)) * [1, 100, 0]  # a column may be constant
    far = np.concatenate([rows[:10], [[9.0, 900.0, 0.0]]])
    assert detect(name, rows, far, 0).argmax() == 10


@pytest.mark.parametrize("name", ["ECOD", "COPOD"])
def test_without_pyod_the_extra_is_named(name, monkeypatch):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr(anomaly_detectors, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'probjepa\[pyod\]'"):
        detect(name, np.zeros((3, 2)), np.zeros((3, 2)), 0)


def _table(**figures):
    rows = [{"values": {"AUROC": {"seeds": seeds}}} for seeds in figures.values()]
    column = {"label": "AUROC", "better": "max", "brief": False, "percent": True, "limits": (0, 1)}
    return {"columns": [column], "rows": rows}


def test_ranks_are_among_other_methods_seed_by_seed():
    rows = [Row("a", "a"), Row("b", "b"), Row("ours", "c"), Row("ours, too", "c")]
    tables = {
        "one": _table(a=[0.9, 0.5], b=[0.8, 0.5], ours=[0.7, 0.6], too=[0.95, 0.4]),
        "two": _table(a=[0.1, None], b=[0.2, None], ours=[0.3, None], too=[0.15, None]),
    }
    found = _over_tables(rows, tables)
    values = {row["label"]: row["values"] for row in found["rows"]}
    # by the first row of each method: ours, too is not a rival of a and b
    assert values["a"]["mean rank by AUROC"]["seeds"] == [2, 2.5]  # (1 + 3)/2; ties share their place
    assert values["b"]["mean rank by AUROC"]["seeds"] == [2, 2.5]
    assert values["ours"]["mean rank by AUROC"]["seeds"] == [2, 1]
    assert values["ours, too"]["mean rank by AUROC"]["seeds"] == [1.5, 3]
    assert values["ours"]["mean AUROC"]["seeds"] == pytest.approx([0.5, 0.6])
    assert values["a"]["mean AUROC"]["value"] == pytest.approx(0.5)
    assert [column["better"] for column in found["columns"]] == ["min", "max"]
    assert [column["percent"] for column in found["columns"]] == [False, True]


def test_means_are_over_the_data_sets_that_every_row_has():
    rows = [Row(name, name) for name in ("a", "b", "failed on hard", "never run")]
    easy, hard = [0.97, 0.99, 1.0], [0.6, 0.61, 0.62]
    tables = {
        "easy": _table(a=easy, b=[of - 0.02 for of in easy], failed=[0.95] * 3, never=[None] * 3),
        "hard": _table(a=hard, b=[of - 0.02 for of in hard], failed=[None] * 3, never=[None] * 3),
    }
    found = _over_tables(rows, tables)
    values = {row["label"]: row["values"] for row in found["rows"]}
    assert values["failed on hard"]["mean AUROC"]["value"] == pytest.approx(0.95)
    assert values["a"]["mean AUROC"]["value"] == pytest.approx(np.mean(easy))
    assert values["failed on hard"]["mean rank by AUROC"]["value"] == pytest.approx((2.5 + 3 + 3) / 3)
    assert values["never run"]["mean AUROC"]["value"] is None
    assert values["a"]["mean AUROC"]["high"] == 1  # an interval leaves no limits
    assert found["title"] == "1 that every row has"


@pytest.fixture(scope="module")
def tiny():
    rows = tuple(row for row in STUDY.rows if row.method in ("kNN", "var-t-jepa"))
    settings = {
        "max_epochs": 1,
        "dim": 8,
        "n_layers": 1,
        "n_heads": 2,
        "ff_dim": 8,
        "batch_size": 32,
        "device": "cpu",
    }
    return replace(STUDY, rows=rows, budgets={"quick": Budget("quick", "tiny", settings, seeds=1, rows=40)})


def test_a_run_has_a_table_over_all_tables_and_one_of_each(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(anomaly_sets, "TEST_ROWS", 60)

    def run(out):
        tiny(
            out,
            data_root=None,
            budget="quick",
            cells=tmp_path / "cells",
            seed=0,
            overwrite=False,
            progress=False,
        )
        return json.loads((out / "metrics.json").read_text())

    metrics = run(tmp_path / "a")
    assert list(metrics["tables"]) == ["", *DRAWN]
    labels = [row["label"] for row in metrics["tables"][""]["rows"]]
    assert labels == [row.label for row in tiny.rows]
    for found in metrics["tables"].values():
        for row in found["rows"]:
            assert row["failed"] == [] and all(of["value"] is not None for of in row["values"].values())
    assert len(list((tmp_path / "cells").iterdir())) == 3 * 2  # a fit is read by all rows of it
    printed = capfd.readouterr().out
    assert "all 2" in printed and "VarTJEPA, kNN of embeddings" in printed
    assert "a cell far out" not in printed  # the single tables stand on the page
    page = (tmp_path / "a" / "report.html").read_text()
    assert "a cell far out" in page and page.index("Results: all 2") < page.index("Results: drawn")
    again = run(tmp_path / "b")
    assert again["tables"] == metrics["tables"]


def test_a_folder_without_the_tables_is_one_short_line(tmp_path):
    with pytest.raises(DataError, match=r"annthyroid: no .*; and 19 more") as caught:
        STUDY(
            tmp_path / "out",
            data_root=tmp_path,
            budget="small",
            cells=None,
            seed=0,
            overwrite=False,
            progress=False,
        )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_what_is_declared():
    assert [row.label for row in STUDY.rows_of("small")][:6] == list(DETECTORS)
    assert len(STUDY.sources_of("small")) == len(STUDY.sources_of("full")) == 22
    row = next(row for row in STUDY.rows if row.method == "var-t-jepa")
    for name, budget in BUDGETS.items():
        cell = STUDY.cell_of(row, budget, next(iter(STUDY.sources_of(name))), table(), 0)
        assert cell.settings["n_layers"] == (1 if name == "quick" else 2)
        assert cell.settings["numeric_transform"] == "standard"
