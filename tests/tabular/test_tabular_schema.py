"""The schema: types, codes, missing cells, transforms against scikit-learn, errors that name the difference."""

import dataclasses
import datetime
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from tabular_cases import TINY, mixed_table

from probjepa.errors import ConfigError, DataError, MissingExtraError
from probjepa.tabular import TableSchema, VarTJEPA, dates
from probjepa.tabular.features import Feature


def types(table, **options):
    return {f.name: f.type for f in TableSchema.infer(table, **options).features}


def test_types_are_inferred():
    assert types(mixed_table()) == {
        "size": "numeric", "count": "numeric", "colour": "categorical", "flag": "boolean", "when.days": "datetime",
        "when.month": "datetime", "when.weekday": "datetime", "when.hour": "datetime",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 3], "numeric"),
        (pd.array([1, None], dtype="Int64"), "numeric"),
        ([True, None, False], "boolean"),
        (pd.array([True, None], dtype="boolean"), "boolean"),
        (["a", None], "categorical"),
        (pd.Categorical([1, 2]), "categorical"),
        ([None, None], "categorical"),
        ([np.nan, np.nan], "numeric"),
        ([datetime.date(2020, 1, 2), None], "datetime"),
        (pd.to_datetime(["2020-01-01 12:00+02:00"]), "datetime"),
        (pd.to_timedelta([1, 2], unit="s"), "numeric"),
        (["a", 1], "categorical"),
    ],
)
def test_type_of_a_column(values, expected):
    table = pd.DataFrame({"c": pd.Series(values)})
    (found,) = set(types(table).values())
    assert found == expected
    encoded = TableSchema.infer(table).encode(table)
    missing = encoded.missing[:, 0] if encoded.missing.size else encoded.codes[:, 0] == 0
    assert missing.tolist() == table["c"].isna().tolist()
    assert np.isfinite(encoded.numeric).all()


def test_codes():
    schema = TableSchema.infer(pd.DataFrame({"c": ["b", "a", None, "b"], "f": [True, True, None, True]}))
    table = pd.DataFrame({"c": ["a", "b", None, "new"], "f": [False, True, None, False]})
    assert schema.encode(table).codes.tolist() == [[2, 2], [3, 3], [0, 0], [1, 2]]


def test_rare_categories_are_unknown():
    table = pd.DataFrame({"c": list("aaabbc")})
    assert TableSchema.infer(table, max_categories=2).encode(table).codes[:, 0].tolist() == [2, 2, 2, 3, 3, 1]


def test_equal_numbers_are_one_category_whatever_their_type():
    schema = TableSchema.infer(pd.DataFrame({"c": [1, 2, 10]}), column_types={"c": "categorical"})
    assert schema.features[0].categories == (1, 2, 10)
    assert schema.encode(pd.DataFrame({"c": [1.0, np.nan, 10.0, 2.5]})).codes[:, 0].tolist() == [2, 0, 4, 1]


def test_overrides():
    table = pd.DataFrame({"c": ["1", "2.5"], "d": ["2020-01-01", "2020-02-01"], "b": [0, 1]})
    found = types(table, column_types={"c": "numeric", "d": "datetime", "b": "boolean"})
    assert list(found.values()) == ["numeric"] + ["datetime"] * 4 + ["boolean"]


@pytest.mark.parametrize("transform", ["standard", "quantile"])
def test_numbers_are_transformed_as_scikit_learn_does(transform):
    rng = np.random.default_rng(0)
    values = np.where(rng.random(400) < 0.5, 0.0, rng.exponential(100, 400))  # half of it ties
    values[5] = np.nan
    table = pd.DataFrame({"v": values})
    if transform == "standard":
        expected = StandardScaler().fit_transform(table)[:, 0]
    else:  # its ranks run from 0 to 1 and are cut off at 1e-7; ours are Hazen's
        ranks = QuantileTransformer(n_quantiles=399).fit_transform(table)[:, 0]
        expected = stats.norm.ppf(0.5 / 399 + (1 - 1 / 399) * ranks)
    schema = TableSchema.infer(table, numeric_transform=transform)
    found = schema.encode(table)
    kept = ~np.isnan(values)
    positive = kept & (values > 0)
    np.testing.assert_allclose(found.numeric[positive, 0], expected[positive], atol=1e-5)
    tied = found.numeric[values == 0, 0]
    if transform == "standard":
        np.testing.assert_allclose(tied, expected[values == 0], atol=1e-5)
    else:  # scikit-learn pins ties at the minimum to -5.2; ours are the middle of their ranks, as inside the range
        np.testing.assert_allclose(tied, stats.norm.ppf(np.mean(values[kept] == 0) / 2), atol=0.01)
    assert found.numeric[5, 0] == 0 and found.missing[5, 0]
    back = schema.features[0].backward(found.numeric[positive, 0].astype(float))
    np.testing.assert_allclose(back, values[positive], rtol=1e-3, atol=0.05)


def test_datetime_parts():
    when = pd.Timestamp("2024-03-09 18:30")  # a Saturday
    parts = dates.datetime_parts("t", pd.Series([when, pd.NaT]))
    assert {name: values[0] for name, values in parts.items()} == {
        "days": when.value / 86400e9, "month": 3, "weekday": 5, "hour": 18.5
    }  # fmt: skip
    assert all(np.isnan(values[1]) for values in parts.values())
    zoned = pd.Series([when.tz_localize("Asia/Tokyo")])
    assert dates.datetime_parts("t", zoned)["hour"][0] == 9.5


@pytest.mark.parametrize("transform", ["standard", "quantile"])
@pytest.mark.parametrize("value", [0.0, 7.3, 1e300, -1e-300, np.nan])
def test_constant_and_all_missing_columns(transform, value):
    schema = TableSchema.infer(pd.DataFrame({"v": [value] * 4}), numeric_transform=transform)
    found = schema.encode(pd.DataFrame({"v": [value, 3.0, np.nan]}))
    assert found.numeric[0, 0] == 0
    assert np.isfinite(found.numeric).all()
    assert found.missing[:, 0].tolist() == [np.isnan(value), False, True]


@pytest.mark.parametrize("transform", ["standard", "quantile"])
@pytest.mark.parametrize("value", [0.0, 7.3, 0.1, 2e6, 20210315.0, 1615800000.0, -1e300, 1e308])
def test_another_number_in_a_constant_column_is_one_step_off(transform, value):
    schema = TableSchema.infer(pd.DataFrame({"v": [value] * 4}), numeric_transform=transform)

    def steps(*values):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return schema.encode(pd.DataFrame({"v": np.array(values)})).numeric[:, 0].tolist()

    near = abs(value) * 1e-5 + 1
    assert steps(value, value + near, value - near, -1e308, 1.7e308) == [0, 1, -1, -1, 1]
    assert steps(np.nextafter(value, 0)) == [0]
    if abs(value) < 1e38:
        assert schema.encode(pd.DataFrame({"v": np.array([value], dtype="float32")})).numeric[0, 0] == 0


@pytest.mark.parametrize("size", [1.0, 1e17, 1e300])
def test_numbers_that_differ_by_rounding_are_one_constant(size):
    values = [0.3 * size] * 19 + [(0.1 + 0.2) * size]
    schema = TableSchema.infer(pd.DataFrame({"v": values}), numeric_transform="quantile")
    assert not schema.encode(pd.DataFrame({"v": values})).numeric.any()
    others = pd.DataFrame({"v": [0.4 * size, 0.2 * size]})
    assert schema.encode(others).numeric[:, 0].tolist() == [1, -1]


def test_sums_of_shares_are_one_constant():
    shares = np.random.default_rng(0).random((200, 20_000))
    values = np.cumsum(shares / shares.sum(1, keepdims=True), 1)[:, -1]
    schema = TableSchema.infer(pd.DataFrame({"v": values}), numeric_transform="quantile")
    assert len(set(values)) > 1 and not schema.encode(pd.DataFrame({"v": values})).numeric.any()


@pytest.mark.parametrize("transform", ["standard", "quantile"])
@pytest.mark.parametrize("first", [10**15, 4 * 10**15, 2**53 - 500, -(10**15)])
def test_large_whole_numbers_keep_their_differences(transform, first):
    shared, alone = (
        TableSchema.infer(pd.DataFrame({"v": values}), numeric_transform=transform)
        .encode(pd.DataFrame({"v": values}))
        .numeric[:, 0]
        for values in (first + np.arange(500), np.arange(500))
    )
    np.testing.assert_allclose(shared, alone, atol=0.02 if abs(first) > 2**52 else 0.01)
    constant = TableSchema.infer(pd.DataFrame({"v": [first] * 4}), numeric_transform=transform)
    assert constant.encode(pd.DataFrame({"v": [first, first + 1]})).numeric[:, 0].tolist() == [0, 1]


def test_beyond_the_range_of_the_fit_a_quantile_transform_goes_on_in_standard_deviations():
    values = np.random.default_rng(0).normal(size=500)
    schema = TableSchema.infer(pd.DataFrame({"v": values}), numeric_transform="quantile")
    (feature,) = schema.features
    out = np.array([values.min() - 3, values.min(), values.max(), values.max() + 1, values.max() + 50])
    found = feature.forward(out)
    np.testing.assert_allclose(found[1:3], stats.norm.ppf([0.5 / 500, 1 - 0.5 / 500]), atol=1e-6)
    np.testing.assert_allclose(found[0], found[1] - 3 / values.std())
    np.testing.assert_allclose(found[3:], found[2] + np.array([1, 50]) / values.std())
    np.testing.assert_allclose(feature.backward(found), out, atol=1e-4)


@pytest.mark.parametrize("transform", ["standard", "quantile"])
def test_extreme_numbers_stay_finite(transform):
    schema = TableSchema.infer(pd.DataFrame({"v": [1e300, -1e300, 1e-300]}), numeric_transform=transform)
    assert np.isfinite(schema.encode(pd.DataFrame({"v": [1.7e308, -1.7e308, 0.0]})).numeric).all()
    small = TableSchema.infer(pd.DataFrame({"v": [0.0, 1e-320]}), numeric_transform=transform)
    assert np.isfinite(small.encode(pd.DataFrame({"v": [1e308]})).numeric).all()


def test_columns_are_picked_by_name():
    table = mixed_table()
    schema = TableSchema.infer(table)
    for a, b in zip(schema.encode(table), schema.encode(table[table.columns[::-1]]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_error_names_the_columns_that_differ():
    schema = TableSchema.infer(mixed_table())
    table = mixed_table().rename(columns={"size": "Size"}).drop(columns="flag")
    with pytest.raises(DataError, match="missing: 'size', 'flag'; unexpected: 'Size'") as error:
        schema.encode(table)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="X has 2 features, but TableSchema is expecting 5 features"):
        schema.encode(np.zeros((3, 2)))


def test_arrow_tables_and_arrays():
    table = mixed_table().drop(columns="when")
    for a, b in zip(
        TableSchema.infer(table).encode(table),
        TableSchema.infer(pa.Table.from_pandas(table)).encode(table),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert TableSchema.infer(np.zeros((2, 3))).columns == ("x0", "x1", "x2")
    assert types(np.array([[1, "a"], [2.5, "b"]], dtype=object)) == {"x0": "numeric", "x1": "categorical"}


def test_json_round_trip():
    table = mixed_table()
    for transform in ("standard", "quantile"):
        schema = TableSchema.infer(table, numeric_transform=transform)
        again = TableSchema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)))
        assert again.features == schema.features
        for a, b in zip(schema.encode(table), again.encode(table), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Feature)])
def test_a_schema_that_lacks_a_field_is_not_read(name):
    features = TableSchema.infer(mixed_table()).to_json()
    del features[0][name]
    with pytest.raises(KeyError, match=name):
        TableSchema.from_json(features)


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        (pd.DataFrame({"a": [1.0, np.inf]}), {}, DataError, "column 'a' holds 1 infinity"),
        (pd.DataFrame({"a": [1j]}), {}, DataError, "Complex data not supported"),
        (pd.DataFrame({"a": [[1], [2]]}), {}, DataError, "'a' holds nested values"),
        (pd.DataFrame({"a": ["x", "1"]}), {"column_types": {"a": "numeric"}}, DataError, "is numeric and holds 'x' in row 0"),
        (pd.DataFrame({"a": ["x"]}), {"column_types": {"a": "datetime"}}, DataError, "is datetime and holds 'x'"),
        (pd.DataFrame({"a": [5.0]}), {"column_types": {"a": "datetime"}}, DataError, "is datetime and holds '5.0'"),
        (pd.DataFrame({"a": [None, "yes"]}), {"column_types": {"a": "boolean"}}, DataError, "holds 'yes' in row 1"),
        (pd.DataFrame({"a": [1]}), {"column_types": {"b": "numeric"}}, ConfigError, "not in the table: 'b'"),
        (pd.DataFrame({"a": [1]}), {"column_types": {"a": "text"}}, ConfigError, "use one of numeric"),
        (pd.DataFrame({"a": [1]}), {"numeric_transform": "log"}, ConfigError, "use 'standard' or 'quantile'"),
        (pd.DataFrame({"a": [1]}), {"max_categories": 0}, ConfigError, "use at least 1"),
        (pd.DataFrame({"a": []}), {}, DataError, r"0 sample\(s\)"),
        (pd.DataFrame(index=[0, 1]), {}, DataError, r"0 feature\(s\)"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, DataError, "several columns of one name: 'a'"),
        (np.zeros(3), {}, DataError, "Reshape your data"),
    ],
)  # fmt: skip
def test_what_is_refused(table, options, error, message):
    with pytest.raises(error, match=message) as caught:
        TableSchema.infer(table, **options)
    assert "\n" not in str(caught.value)


def test_a_cell_of_another_type_at_transform():
    schema = TableSchema.infer(mixed_table())
    table = mixed_table().astype({"count": object})
    table.loc[4, "count"] = "many"
    with pytest.raises(DataError, match="column 'count' is numeric and holds 'many' in row 4"):
        schema.encode(table)


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pandas is not installed"):
        TableSchema.infer(np.zeros((2, 2)))


def test_a_column_called_like_a_part_of_a_date_is_refused():
    when = pd.date_range("2020-01-01", periods=3)
    table = pd.DataFrame({"when.days": [1.0, 2.0, 3.0], "when": when})
    with pytest.raises(DataError, match=r"^column 'when.days' is called like a part of the date 'when': ren"):
        TableSchema.infer(table)
    schema = TableSchema.infer(table.rename(columns={"when.days": "when.d"}))
    assert len({feature.name for feature in schema.features}) == 5
    saved = schema.to_json()
    saved[0]["name"] = saved[0]["column"] = "when.days"  # as of a model saved before
    with pytest.raises(DataError, match="rename it"):
        TableSchema.from_json(saved)


def test_types_go_by_the_names_that_columns_have():
    frame = pd.DataFrame({0: [1, 2, 3], 1: [0.5, 1.5, 2.5]})
    schemas = [TableSchema.infer(frame, column_types={name: "categorical"}) for name in (0, "0")]
    assert schemas[0].features == schemas[1].features and schemas[0].features[0].type == "categorical"
    with pytest.raises(ConfigError, match="column_types names a column twice: '0', '0'"):
        TableSchema.infer(frame, column_types={0: "numeric", "0": "categorical"})


def test_a_model_with_types_of_columns_that_are_numbers_is_saved(tmp_path):
    frame = pd.DataFrame({3: [1, 2, 3] * 8, 5: [0.5, 1.5, 2.5] * 8})
    model = VarTJEPA(**TINY, column_types={frame.columns[0]: "categorical"}).fit(frame)
    model.save(tmp_path / "m")
    loaded = VarTJEPA.load(tmp_path / "m")
    assert loaded.column_types == {"3": "categorical"}
    np.testing.assert_array_equal(loaded.transform(frame), model.transform(frame))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
@pytest.mark.parametrize("unit", [1.0, 1e300, 1e-300])
def test_a_row_left_out_is_read_as_by_a_schema_of_the_others(numeric_transform, unit):
    rng = np.random.default_rng(0)
    n = 120
    table = pd.DataFrame(
        {
            "tailed": np.exp(2 * rng.normal(size=n)) * unit,
            "few": rng.integers(0, 3, n) * unit,
            "gaps": np.where(rng.random(n) < 0.5, rng.normal(size=n), np.nan),
            "word": [f"w{k}" for k in np.minimum(rng.zipf(1.4, n), 10**6)],
            "flag": np.arange(n) == 7,
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**4, n), unit="h"),
        }
    )
    schema = TableSchema.infer(table, numeric_transform=numeric_transform)
    index = rng.permutation(n)[:100]
    encoded = schema.encode(table)
    found = schema.left_out(encoded, index)
    np.testing.assert_array_equal(found.missing, encoded.missing[index])
    at_edge = 0
    for k, i in enumerate(index):
        others = TableSchema.infer(table.drop(index=i), numeric_transform=numeric_transform)
        expected = others.encode(table.iloc[[i]])
        for j, at in enumerate(schema.layout.categorical):
            known = others.features[at].categories
            code = expected.codes[0, j]
            label = known[code - 2] if code > 1 else None
            read = found.codes[k, j]
            assert (schema.features[at].categories[read - 2] if read > 1 else None) == label
        beyond = np.abs(expected.numeric[0] - encoded.numeric[i]) > 0.5
        at_edge += beyond.sum()
        # what is not at the edge moves a little where one of so few quantiles goes
        np.testing.assert_allclose(found.numeric[k][beyond], expected.numeric[0][beyond], rtol=0.02)
        np.testing.assert_allclose(found.numeric[k], expected.numeric[0], atol=0.4, rtol=0.05)
    assert at_edge > 0
    assert ((found.codes == 1) & (encoded.codes[index] > 1)).any()


def test_of_a_number_that_two_rows_have_none_is_beyond_the_range():
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0, 9.0, 9.0], "c": [*"aabbz"]})
    schema = TableSchema.infer(table, numeric_transform="quantile")
    rows = schema.encode(table)
    found = schema.left_out(rows, np.array([4, 3, 1]))
    np.testing.assert_array_equal(found.numeric, rows.numeric[[4, 3, 1]])
    assert found.codes[:, 0].tolist() == [1, *rows.codes[[3, 1], 0]]
