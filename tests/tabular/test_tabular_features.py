"""Numbers that are undone: means, deviations and ranges in the table's units."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from probjepa.tabular import TableSchema


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
def test_the_deviation_of_a_number_is_finite_and_in_its_unit(numeric_transform, size):
    table = pd.DataFrame({"x": np.random.default_rng(0).normal(size=50) * size})
    (feature,) = TableSchema.infer(table, numeric_transform=numeric_transform).features
    mean, median, std, low, high = feature.spread(np.zeros(3), np.full(3, 0.5), 2.0)
    assert (0.1 * size < std).all() and (std < size).all()
    assert (low < median).all() and (median < high).all() and np.isfinite(mean).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-305, 1e-200, 1e160, 1.7e308])
@pytest.mark.parametrize("share", [0.5, 0.02])
@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
def test_a_column_that_spans_all_numbers(numeric_transform, share, scale):
    """It is read as the same column in a unit of its own."""
    values = np.where(np.arange(100) < 100 * share, 1.0, -1.0) * np.linspace(0.9, 1, 100)
    expected, feature = (
        TableSchema.infer(pd.DataFrame({"x": x}), numeric_transform=numeric_transform).features[0]
        for x in (values, values * scale)
    )
    read = feature.forward(values * scale)
    np.testing.assert_allclose(read, expected.forward(values), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(feature.backward(read) / scale, values, rtol=1e-6)
    spread = [of.spread(np.linspace(-3, 3, 7), np.full(7, 0.5), 2.0) for of in (feature, expected)]
    np.testing.assert_allclose(np.array(spread[0]) / scale, spread[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
@pytest.mark.parametrize("name", ["0 and 1", "counts", "with zeros", "heavy", "few", "normal"])
def test_a_predicted_number_is_undone_as_a_fine_grid_does_it(name, numeric_transform):
    rng = np.random.default_rng(0)
    x = {
        "0 and 1": np.r_[np.zeros(600), np.ones(400)],
        "counts": rng.poisson(0.8, 400).astype(float),
        "with zeros": np.where(rng.random(2000) < 0.5, 0, rng.exponential(3, 2000)),
        "heavy": rng.lognormal(0, 2, 3000),
        "few": np.array([1.0, 2.0, 7.0] * 5),
        "normal": rng.normal(5, 2, 777),
    }[name]
    (feature,) = TableSchema.infer(pd.DataFrame({"x": x}), numeric_transform=numeric_transform).features
    mean, std = rng.normal(0, 1.2, 40), 10 ** rng.uniform(-4, 0.7, 40)
    z = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    grid = np.clip(feature.backward(mean[:, None] + std[:, None] * z), feature.low, feature.high)
    found = feature.spread(mean, std, 1.96)
    span = np.ptp(x)
    np.testing.assert_allclose(found[0] / span, grid.mean(1) / span, atol=1e-3)
    np.testing.assert_allclose(found[2] / span, grid.std(1) / span, atol=1e-3)
