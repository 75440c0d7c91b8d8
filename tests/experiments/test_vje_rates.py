"""The search for learning rates: around each method's own, judged by images that no table reports on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_tables import trainings

from probjepa.errors import DataError
from probjepa.methods import METHODS
from probjepa_experiments.image_budgets import MEDIUM
from probjepa_experiments.images import image_base
from probjepa_experiments.study import Data, Row
from probjepa_experiments.vje import H
from probjepa_experiments.vje_rates import FACTORS, FURTHER, STUDY, TRIED, USUAL, rates


@pytest.mark.parametrize("method", USUAL)
def test_rates_around_the_methods_own(method):
    assert METHODS[method].recipe["learning_rate"] == USUAL[method]
    assert rates(method)[3] == USUAL[method]
    factors = [*FACTORS, *FURTHER.get(method, ())]
    assert sorted(set(rates(method))) == rates(method)
    np.testing.assert_allclose(np.divide(rates(method), USUAL[method]), factors, rtol=0.03)
    rows = [row for row in trainings(STUDY) if row.method == method and not row.settings]
    tried = [row.fit["learning_rate"] for row in rows]
    assert tried == rates(method)


def test_a_budgets_rates_are_by_label_then_by_method():
    spent = replace(MEDIUM, rates={"vje": 0.2, "VJE-EMA": 0.3})
    found = [
        image_base(Row(label, method), spent, "x", Data()).fit["learning_rate"]
        for label, method in (("VJE, knn", "vje"), ("VJE-EMA", "vje"), ("SimSiam", "simsiam"))
    ]
    assert found == [0.2, 0.3, USUAL["simsiam"]]


def test_the_mediums_rates_are_those_that_the_search_found_best():
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce"
    (table,) = json.loads((results / "vje-rates-medium.json").read_text())["tables"].values()
    found = {row["label"]: row["values"][H]["value"] for row in table["rows"]}
    for label, method, _ in TRIED:
        tried = {rate: found[f"{label}, {rate:g}"] for rate in rates(method)}
        spent = MEDIUM.rates.get(label, MEDIUM.rates.get(method))
        if None in tried.values():
            assert spent is None
        else:
            assert tried[spent] == max(tried.values())


def test_without_data_no_other_budget_is_named(tmp_path):
    with pytest.raises(DataError, match=r"vje-rates has no data .*: pass --data-root$"):
        STUDY(
            tmp_path / "out", data_root=None, budget="medium", cells=None, seed=0, overwrite=False,
            progress=False,
        )  # fmt: skip
