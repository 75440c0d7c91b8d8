"""The measures of uncertainty that are compared, and that what is kept is not made again."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import table_uncertainty
from probjepa.evaluation.selective import PREDICTIVE, PROBABILITY
from probjepa.tabular import VarTJEPA
from probjepa_experiments.table_sets import SOURCES

TINY = {"max_epochs": 1, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "device": "cpu"}


def test_a_fit_that_is_kept_is_read_again(tmp_path, monkeypatch):
    data = SOURCES["sim"].open(rows=70)
    data.__dict__.update(test=data.test[:60], ambiguity=data.ambiguity[:60])
    said = table_uncertainty.one_fit(data, 0, tmp_path / "kept", TINY)
    assert {PREDICTIVE, PROBABILITY, "entropy, 2 groups", "share left", "disagreement"} < set(said)
    assert all(values.shape == (60,) and np.isfinite(values).all() for values in said.values())
    assert said["disagreement"].min() > 0  # the contexts differ, and the information is not negative
    assert (said["entropy, largest"] >= said[PREDICTIVE]).all()
    parts = 28 * said["entropy, numbers"] + 4 * said["entropy, categories"]
    np.testing.assert_allclose(parts / 32, said[PREDICTIVE], rtol=1e-6)
    monkeypatch.setattr(VarTJEPA, "fit", lambda *_, **__: pytest.fail("fitted again"))
    for lost in ("nothing", "said.npz"):
        (tmp_path / "kept" / lost).unlink(missing_ok=True)
        again = table_uncertainty.one_fit(data, 0, tmp_path / "kept", TINY)
        assert all(np.array_equal(again[name], values) for name, values in said.items())
    figures = {name: table_uncertainty._of(name, [said, again], data.ambiguity) for name in said}
    assert figures[PREDICTIVE]["agreement"] == [pytest.approx(1)]
    assert f"| {PREDICTIVE} | " in table_uncertainty.markdown(figures)


def test_what_does_not_vary_has_no_correlation():
    column, constant = np.arange(4.0), np.ones(4)
    right = {table_uncertainty.RIGHT: np.array([1.0, 0.0, 1.0, 1.0])}
    found = table_uncertainty._of("x", [{"x": constant} | right, {"x": column} | right], column)
    assert found["agreement"] == [None] and found["rho with u"] == [None, pytest.approx(1)]
    assert "| x | 1.00 to 1.00 | – |" in table_uncertainty.markdown({"x": found})
