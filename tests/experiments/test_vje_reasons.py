"""VJE's settings changed one by one: what the cells differ in, what they keep of a training, what is said."""

import math
from dataclasses import replace

import pytest
from experiment_tables import TINY, trainings

from probjepa_experiments import curves, watched_cells
from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.images import trained
from probjepa_experiments.study import Data, NotMeasuredError
from probjepa_experiments.vje import VARIANCE, H
from probjepa_experiments.vje_reasons import CHANGED, FIRST, LONG, SMALL, STUDY, found_best, sections


def _cells():
    rows = trainings(STUDY)
    return {row.label: STUDY.cell_of(row, SMALL, "cifar10-validation", Data("mark"), 0) for row in rows}


def test_every_row_changes_something_and_only_what_its_kind_says():
    cells = _cells()
    assert len({cell.key for cell in cells.values()}) == len(cells) == 22
    plain = cells["VJE"]
    for row in CHANGED["schedule or optimiser"]:
        assert cells[row.label].settings == plain.settings and cells[row.label].fit != plain.fit
    for row in (*CHANGED["likelihood or posterior"], *CHANGED["augmentation"]):
        assert cells[row.label].fit == plain.fit
        different = {key for key, value in plain.settings.items() if cells[row.label].settings[key] != value}
        assert different == set(row.settings) and len(different) == 1
    for row in CHANGED["averaged target"]:
        assert {**cells[row.label].fit, "learning_rate": 0} == {**plain.fit, "learning_rate": 0}
    other = cells["VICReg, solarised"]
    assert other.settings == cells["VICReg"].settings | {"view_recipe": "byol-32-solarised"}
    assert other.fit == cells["VICReg"].fit
    for name, row in LONG.items():
        assert cells[row.label].fit == {**cells[name].fit, "epochs": 30}
        assert cells[row.label].settings == cells[name].settings


def test_a_watched_cell_is_the_training_of_one_that_is_not(tmp_path):
    data = SOURCES["digits"].open(None, 96)
    (row,) = (row for row in STUDY.rows if row.label == "VJE")
    cell = STUDY.cell_of(row, replace(TINY, fit={**TINY.fit, "epochs": 2}), "digits", data, 0)
    found = watched_cells.run(cell, data, tmp_path / "watched", TINY, False)
    plain = trained(cell, data, tmp_path / "plain", monitor_every=0, knn_every=0, progress=False)
    losses = [curves.read(tmp_path / name, {"train/loss": "loss"})["loss"] for name in ("watched", "plain")]
    assert losses[0] == losses[1]
    variance = plain.uncertainty_of_features(plain.features_of(plain.embed(data.test)))["mean_variance"]
    assert found.figures["mean variance"]["value"] == pytest.approx(variance.mean().item(), rel=1e-5)
    seen = found.pictures["curves"]
    assert seen["epoch"] == [1, 2] and all(0 <= knn <= 1 for knn in seen["knn"])
    assert found.figures["mean variance, epoch 1"] == seen["mean variance"][0] > 0
    (section,) = sections([{"row": name, "pictures": found.pictures} for name in ("VJE", "no radial")])
    alts = [figure.alt for figure in section.items]
    assert [alt.split(", ")[0].split(": ")[0] for alt in alts] == ["kNN accuracy", "mean σ²"]
    assert all("likelihood or posterior: " in alt and "no radial" in alt for alt in alts)
    assert sections([{"row": "VJE"}]) == []


def test_a_method_without_a_posterior_has_no_variance(tmp_path):
    data = SOURCES["digits"].open(None, 96)
    (row,) = (row for row in STUDY.rows if row.label == "VICReg")
    cell = STUDY.cell_of(row, replace(TINY, methods={"vicreg": {"projector_dim": 8}}), "digits", data, 0)
    found = watched_cells.run(cell, data, tmp_path, TINY, False)
    assert "mean variance, epoch 1" not in found.figures
    assert found.pictures["curves"]["mean variance"] == [None]


def _figures():
    figures = {(row.label, H): 0.3 for row in STUDY.rows}
    figures |= {("VICReg", H): 0.4, ("VJE", FIRST): 0.6, ("VJE", VARIANCE): 0.65, ("KL weight 4", H): 0.36}
    figures |= {(LONG["VICReg"].label, H): 0.45, (LONG["VJE"].label, H): 0.4}
    return figures


def test_findings_ask_every_row_of_a_kind():
    figures = _figures()

    def look(row, column):
        if (row, column) not in figures:
            raise NotMeasuredError
        return figures[row, column]

    assert [finding.holds(look) for finding in STUDY.findings] == [True] * 7
    figures["KL weight 16", H] = 0.38
    figures["VJE", FIRST] = 0.9
    figures[LONG["VJE"].label, H] = 0.34
    assert [finding.holds(look) for finding in STUDY.findings] == [
        True,
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    del figures["ν = 3", H]
    with pytest.raises(NotMeasuredError):
        STUDY.findings[3].holds(look)


def test_the_answer_names_the_best_change_of_each_kind():
    of = {label: value for (label, column), value in _figures().items() if column == H}
    of["AdamW, 0.001"] = 0.31
    of |= dict.fromkeys((row.label for row in CHANGED["averaged target"]), None)
    rows = [
        {"label": label, "values": {H: {"value": value, "seeds": [value]}}} for label, value in of.items()
    ]
    rows[0]["values"][H]["seeds"] = [0.29, 0.31]
    said = found_best({"cifar10-validation": {"rows": rows}})
    assert "VJE 30.0 ± 1.4, VICReg 40.0," in said and "averaged target" not in said
    assert "the best other schedule or optimiser (AdamW, 0.001) 31.0" in said
    assert "the best other likelihood or posterior (KL weight 4) 36.0" in said
    empty = [{"label": label, "values": {H: {"value": None}}} for label in of]
    assert found_best({"one": {"rows": empty}}) == ""
    assert math.isclose(SMALL.fit["epochs"], 10)
