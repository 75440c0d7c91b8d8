"""The study of table encoders: its cells, its figures, and what it leaves when data are missing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from experiment_tables import measured_by, run, with_budget

from probjepa.errors import ArtifactError, ConfigError
from probjepa.tabular import PRESETS, TJEPA, VarTJEPA
from probjepa.tabular.fitting import FitLoop
from probjepa_experiments import table_cells
from probjepa_experiments.adbench import STUDY as ADBENCH
from probjepa_experiments.study import RANDOM, Row
from probjepa_experiments.table_cells import flat_figures
from probjepa_experiments.table_sets import SOURCES
from probjepa_experiments.var_t_jepa import BUDGETS, COLUMNS, FINDINGS, PUBLISHED, STUDY

TINY = replace(
    BUDGETS["quick"], rows=40,
    settings={"max_epochs": 1, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "device": "cpu"},
)  # fmt: skip


@pytest.fixture
def adult(tmp_path):
    """Rows that look like Adult's: numbers, text, "?" for missing."""
    random = np.random.default_rng(0)
    n = 60
    frame = pd.DataFrame({"age": random.integers(20, 60, n), "work": random.choice(["a", "b", "?"], n)})
    frame["income"] = np.where(frame["age"] + random.normal(0, 5, n) > 40, ">50K", "<=50K")
    (tmp_path / "data" / "tabular").mkdir(parents=True)
    frame.to_parquet(tmp_path / "data" / "tabular" / "adult.parquet")
    return tmp_path / "data"


def test_a_table_is_split_and_its_missing_cells_are_missing(adult):
    data = SOURCES["adult"].open(adult)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [42, 6, 12]
    joined = pd.concat([data.train, data.validation, data.test])
    assert joined["work"].isna().any()
    assert set(joined["work"].dropna()) == {"a", "b"}
    assert SOURCES["adult"].open(adult, seed=1).fingerprint != data.fingerprint
    cut = SOURCES["adult"].open(adult, rows=21)
    assert [len(part) for part in (cut.train, cut.validation, cut.test)] == [21, 3, 12]
    pd.testing.assert_frame_equal(cut.test, data.test)


@pytest.mark.parametrize("name", ["sim", "digits", "wine", "breast-cancer"])
def test_tables_that_need_no_files(name):
    data = SOURCES[name].open(rows=100)
    assert len(data.train) == 100
    assert list(data.train.columns) == list(data.test.columns)
    assert data.train["label"].nunique() >= 2
    assert (data.ambiguity is None) == (name in ("wine", "breast-cancer"))
    assert data.ambiguity is None or len(data.ambiguity) == len(data.test)


def test_credit_has_categories_that_are_numbers():
    types = SOURCES["credit"].column_types
    assert sorted(types, key=lambda c: int(c[1:])) == ["X2", "X3", "X4", "X6", "X7", "X8", "X9", "X10", "X11"]


def test_covertype_and_uci_s_bank_are_read_as_they_are(tmp_path):
    (tmp_path / "tabular").mkdir()
    random = np.random.default_rng(0)
    n = 70
    cover = pd.DataFrame({"Elevation": random.normal(size=n), "Soil_Type": random.choice(["2", "28"], n)})
    cover.assign(Cover_Type=np.arange(n) % 7 + 1).to_parquet(tmp_path / "tabular" / "covertype.parquet")
    bank = pd.DataFrame({"age": random.integers(20, 60, n), "job": random.choice(["admin.", "unknown"], n)})
    bank.assign(y=random.choice(["no", "yes"], n)).to_csv(tmp_path / "tabular/bank-full.csv", sep=";")
    for name, preset, columns in (
        ("covertype", "covertype", ["Elevation", "Soil_Type", "Cover_Type"]),
        ("bank", "bank", ["Unnamed: 0", "age", "job", "y"]),
    ):
        data = SOURCES[name].open(tmp_path)
        assert list(data.train.columns) == columns and SOURCES[name].preset == preset
        assert [len(part) for part in (data.train, data.validation, data.test)] == [49, 7, 14]
        cell = STUDY.cell_of(Row("a row", "var-t-jepa"), BUDGETS["full"], name, data, 0)
        published = {**PRESETS[preset], **BUDGETS["full"].settings}
        assert cell.settings == {key: of for key, of in published.items() if key in cell.settings}
        VarTJEPA(**{**cell.settings, **TINY.settings}).fit(data.train.drop(columns=data.target))


def test_mnist_s_pixels_are_blended_as_the_digits_are(tmp_path):
    random = np.random.default_rng(0)
    digits = pd.DataFrame(random.random((100, 6)), columns=[f"pixel{i}" for i in range(6)])
    (tmp_path / "tabular").mkdir()
    digits.assign(label=np.arange(100) % 10).to_parquet(tmp_path / "tabular" / "mnist.parquet")
    data = SOURCES["mnist"].open(tmp_path)
    assert data.train.shape == (70, 7) and len(data.ambiguity) == len(data.test) == 20
    assert SOURCES["mnist"].missing(None) == "no --data-root, which holds tabular/mnist.parquet"
    assert "stand-in for MNIST" in STUDY.about


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", ["t-jepa", "var-t-jepa"])
def test_every_declared_cell_can_be_made(budget, method):
    data = SOURCES["wine"].open()
    row, spent = Row("a row", method), BUDGETS[budget]
    for table in STUDY.sources_of(budget):
        cell = STUDY.cell_of(row, spent, table, data, 0)
        model = {"t-jepa": TJEPA, "var-t-jepa": VarTJEPA}[method](**cell.settings)
        assert model.get_params()["max_epochs"] == cell.settings["max_epochs"]
        assert cell.key != STUDY.cell_of(row, spent, table, data, 1).key
    assert STUDY.cell_of(row, BUDGETS["full"], "adult", data, 0).settings["n_layers"] == 8


def test_published_figures_have_a_place():
    labels = {column.label for column in COLUMNS}
    rows = {row.label for row in STUDY.rows}
    assert all(table in SOURCES and row in rows and c in labels for table, row, c in PUBLISHED)


GOOD = {
    ("raw features", "MLP, %"): 0.85, ("raw features", "XGB, %"): 0.87, ("raw + Var-T-JEPA", "XGB, %"): 0.869,
    ("T-JEPA", "best of 3, %"): 0.85, ("T-JEPA", "LR, %"): 0.84, ("T-JEPA", "MLP, %"): 0.84,
    ("T-JEPA", "XGB, %"): 0.85, ("T-JEPA", "effective rank"): 30,
    ("Var-T-JEPA", "best of 3, %"): 0.87, ("Var-T-JEPA", "LR, %"): 0.84, ("Var-T-JEPA", "MLP, %"): 0.86,
    ("Var-T-JEPA", "XGB, %"): 0.87, ("Var-T-JEPA", "MLP, half coverage by σ, %"): 0.91,
    ("Var-T-JEPA", "AURC by σ, MLP"): 0.03, ("Var-T-JEPA", "AURC by p, MLP"): 0.04,
    ("Var-T-JEPA", "ρ of σ with u"): 0.4, ("Var-T-JEPA", "ρ of predictive entropy with u"): 0.7,
    ("raw + Var-T-JEPA", "XGB beside raw, McNemar's p"): 0.2,
    (RANDOM, "best of 3, %"): 0.84, (RANDOM, "AURC by σ, MLP"): 0.06,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({}, []),
        ({("Var-T-JEPA", "best of 3, %"): 0.849}, ["by the best classifier"]),
        ({("Var-T-JEPA", "LR, %"): 0.839}, ["by logistic regression"]),
        ({("T-JEPA", "MLP, %"): 0.861}, ["T-JEPA, by the MLP"]),
        ({(RANDOM, "best of 3, %"): 0.87}, ["above its random initialisation"]),
        ({(RANDOM, "AURC by σ, MLP"): 0.03}, ["that of a random initialisation"]),
        ({("T-JEPA", "XGB, %"): 0.871}, ["by XGBoost"]),
        ({("raw features", "MLP, %"): 0.871}, ["within one point"]),
        ({("raw + Var-T-JEPA", "XGB beside raw, McNemar's p"): 0.04}, ["XGBoost is not below raw"]),
        ({("raw features", "XGB, %"): 0.86, ("raw + Var-T-JEPA", "XGB beside raw, McNemar's p"): 0.04}, []),
        ({("Var-T-JEPA", "MLP, half coverage by σ, %"): 0.89}, ["by four points"]),
        ({("Var-T-JEPA", "MLP, half coverage by σ, %"): 0.85}, ["raises the MLP", "by four points"]),
        ({("Var-T-JEPA", "AURC by σ, MLP"): 0.05}, ["orders errors"]),
        ({("Var-T-JEPA", "ρ of σ with u"): 0.2}, ["σ rises with ambiguity"]),
        ({("Var-T-JEPA", "ρ of predictive entropy with u"): 0.3}, ["entropy rises with ambiguity"]),
        ({("T-JEPA", "effective rank"): 1.5}, ["not collapsed"]),
    ],
)
def test_findings_say_what_the_figures_say(changed, broken):
    figures = GOOD | changed
    assert {column for _, column in figures} <= {column.label for column in COLUMNS}
    failed = [finding.claim for finding in FINDINGS if not finding.holds(lambda *place: figures[place])]
    assert len(failed) == len(broken)
    assert all(part in claim for part, claim in zip(broken, failed, strict=True))


def test_the_page_says_where_the_methods_are_not_run_alike():
    small, known = PRESETS["small"], TJEPA().get_params()
    own = ("n_bins", "min_steps", "max_steps", "max_grad_norm", "validation_fraction")
    assert not {*own} & {*known}
    steps = f"{small['min_steps']} to {small['max_steps']:,} steps"
    for said in (f"{small['n_bins']} bins", steps, f"norm {small['max_grad_norm']:g} ", "norm 1 ",
                 f"{small['max_epochs']} epochs", "a held-out tenth of the rows"):  # fmt: skip
        assert said in STUDY.about
    assert small["validation_fraction"] == 0.1
    (p,) = (column for column in COLUMNS if column.p_value)
    assert p.label == "XGB beside raw, McNemar's p"


def test_a_study_can_be_cut_short_and_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(table_cells, "PREDICTORS", ("logistic regression", "MLP"))
    ran = []

    def counted(cell, *rest):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.label)
        return table_cells.run(cell, *rest)

    study = replace(with_budget(STUDY, TINY), data={"quick": ("sim", "adult")})
    study = measured_by(study, counted, roots=("probjepa_experiments.table_cells",))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(study, out)
    assert len(list((out / "cells").iterdir())) == 2
    study = measured_by(study, lambda cell, *rest: ran.append(cell.label) or table_cells.run(cell, *rest))
    metrics = run(study, out)
    assert ran == ["raw features", RANDOM, "T-JEPA", "Var-T-JEPA"]
    assert metrics["not_run"] == ["Adult: not run: no --data-root, which holds tabular/adult.parquet"]
    rows = {row["label"]: row["values"] for row in metrics["tables"]["sim"]["rows"]}
    assert rows["Var-T-JEPA"]["ρ of σ with u"]["value"] is not None
    assert rows["T-JEPA"]["ρ of σ with u"]["value"] is None
    assert rows["T-JEPA"]["effective rank"]["value"] > 1
    assert rows["raw features"]["best of 3, %"]["published"] == 0.962
    assert rows[RANDOM]["best of 3, %"]["value"] is not None
    best = max(rows["raw features"][f"{name}, %"]["value"] for name in ("LR", "MLP"))
    assert rows["raw features"]["best of 3, %"]["value"] >= best
    for name in ("LR", "MLP"):
        assert 0 < rows["Var-T-JEPA"][f"{name} macro F1, %"]["value"] <= 1
        assert 0 < rows["Var-T-JEPA"][f"{name} weighted F1, %"]["value"] <= 1
    assert "Var-T-JEPA" in (out / "report.html").read_text()
    with pytest.raises(ArtifactError, match="exists already"):
        run(study, out)
    with pytest.raises(ConfigError, match="unknown budget"):
        run(study, tmp_path / "new", budget="huge")


@pytest.mark.parametrize("study", [STUDY, ADBENCH], ids=lambda study: study.name)
def test_random_initialisation_is_a_network_that_no_step_has_changed(study, monkeypatch):
    data = SOURCES["digits"].open(rows=100)
    (row,) = (row for row in study.rows if row.task == "random-init")
    drawn = {}

    def remembered(loop, *rest):
        drawn.update({name: of.detach().clone() for name, of in loop.network.named_parameters()})
        return run_loop(loop, *rest)

    run_loop = FitLoop.run
    monkeypatch.setattr(FitLoop, "run", remembered)
    for name in ("quick", "small"):
        cell = study.cell_of(row, study.budgets[name], "digits" if study is STUDY else "wine", data, 0)
        settings = {**cell.settings, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8}
        model = VarTJEPA(random_state=0, **settings).fit(data.train.drop(columns=data.target).iloc[:60, :8])
        assert len(model.history_) == 1 and drawn
        for weight, of in model.network_.named_parameters():
            assert torch.allclose(of, drawn[weight], rtol=0, atol=1e-10), weight


def test_a_predictor_that_was_not_run_has_no_figures():
    figure = {"value": 0.5, "low": None, "high": None}
    scores = {"accuracy": figure, "macro F1": figure, "weighted F1": figure}
    figures = {
        "accuracy": {"raw": {"MLP": scores, "XGBoost": {"not run": "why"}}},
        "selective": {"raw": {"MLP": {}}},
        "calibration": {"raw": {"MLP": {}}},
        "mcnemar": {"embedding": {"MLP": {"gained": figure, "p": figure}}},
    }
    flat = flat_figures(figures)
    assert flat["raw|best"] == flat["embedding|mcnemar p/MLP"] == figure
    assert not [name for name in flat if "XGBoost" in name]


def test_a_cell_that_was_run_without_xgboost_is_another(monkeypatch):
    data = SOURCES["digits"].open(rows=100)
    keys = set()
    for there in (None, object()):
        monkeypatch.setattr(table_cells, "find_spec", lambda name, there=there: there)
        cells = [STUDY.cell_of(row, BUDGETS["small"], "digits", data, 0) for row in STUDY.rows]
        keys.add(tuple(cell.key for cell in cells))
    without, beside = keys
    assert not {*without} & {*beside}
