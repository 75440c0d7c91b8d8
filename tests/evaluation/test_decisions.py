"""Rates of false alarms, against counting and by what is promised of them."""

import math

import numpy as np
import pytest
from scipy.special import betaln, gammaln

from probjepa.evaluation.decisions import flagged_rates


def band_by_counting(n, m, alpha):
    """Mean and 2.5 % and 97.5 % quantiles of the flagged share of m rows: a sum over their counts."""
    k = math.floor(alpha * (n + 1) + 1e-9)
    x = np.arange(m + 1)
    choose = gammaln(m + 1) - gammaln(x + 1) - gammaln(m - x + 1)
    law = np.exp(choose + betaln(x + k, m - x + n + 1 - k) - betaln(k, n + 1 - k))
    low, high = (int(np.searchsorted(np.cumsum(law), q)) for q in (0.025, 0.975))
    return (law @ x) / m, low / m, high / m


def test_against_counting():
    rng = np.random.default_rng(0)
    scores = {
        name: {of: rng.standard_normal(size) for of, size in (("test", 70), ("far", 9), ("calibration", 120))}
        for name in ("a", "b")
    }
    found = flagged_rates(scores)
    assert found["rows"] == {"calibration": 120, "test": 70, "split": False}
    assert list(found["band"]) == ["0.01", "0.05", "0.1"]
    for key, band in found["band"].items():
        assert list(band.values()) == pytest.approx(band_by_counting(120, 70, float(key)))
        for name, of in scores.items():
            known = sorted(of["calibration"])
            least = known[math.floor(float(key) * 121 + 1e-9) - 1]
            for which in ("test", "far"):
                flagged = sum(s < least for s in of[which]) / len(of[which])
                assert found["flagged"][name][key][which]["value"] == pytest.approx(flagged)
            assert set(found["flagged"][name][key]) == {"test", "far"}


def test_half_of_the_test_rows_stands_in_for_a_calibration_set():
    """Over 200 random halves the realised rate lies in the exact band as often as that promises."""
    scores = {"a": {"test": np.random.default_rng(1).standard_t(2, 500)}}
    found = [flagged_rates(scores, seed=seed) for seed in range(200)]
    assert found[0]["rows"] == {"calibration": 250, "test": 250, "split": True}
    assert found[0] == flagged_rates(scores, seed=0) and found[0] != found[1]
    for key in ("0.01", "0.05", "0.1"):
        band = found[0]["band"][key]
        rates = np.array([of["flagged"]["a"][key]["test"]["value"] for of in found])
        within = np.mean((band["low"] <= rates) & (rates <= band["high"]))
        assert within > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 200)
        assert band["expected"] <= float(key)


@pytest.mark.parametrize(("rows", "alphas"), [(1, []), (9, []), (18, ["0.1"]), (40, ["0.05", "0.1"])])
def test_a_rate_that_the_rows_are_too_few_for_is_left_out(rows, alphas):
    found = flagged_rates({"a": {"test": np.arange(float(rows))}})
    assert list(found["band"]) == alphas and list(found["flagged"]["a"]) == alphas
