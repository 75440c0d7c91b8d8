"""What impute gives back: the types, labels and range of the table that it was given."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tabular_cases import TINY

from probjepa.errors import DataError
from probjepa.tabular import VarTJEPA

_N = 40
_WHEN = pd.Series(pd.date_range("2020-01-01", periods=_N, freq="7h"))
_WORDS = pd.Series(np.resize(["x", "y", "z"], _N))
_COLUMNS = {
    "category": _WORDS.astype(pd.CategoricalDtype(["z", "x", "y"], ordered=True)),
    "categories of bytes": pd.Series(pd.Categorical(np.resize(np.array([1, 2, 3], "int8"), _N))),
    "categories of float32": pd.Series(pd.Categorical(np.resize(np.array([0.1, 0.2], "float32"), _N))),
    "categories of numbers": pd.Series(pd.Categorical(np.resize([1, 2], _N))),
    "text": _WORDS,
    "objects": _WORDS.astype(object),
    "boolean": pd.Series(np.resize([True, False], _N)).astype("boolean"),
    "bool": pd.Series(np.resize([True, False], _N)),
    "Int64": pd.Series(np.arange(_N)).astype("Int64"),
    "int16": pd.Series(np.arange(_N), dtype="int16"),
    "uint8": pd.Series(np.arange(_N), dtype="uint8"),
    "large": pd.Series(2**53 + np.arange(_N)),
    "Float64": pd.Series(np.arange(_N) / 7).astype("Float64"),
    "float32": pd.Series(np.arange(_N) / 7, dtype="float32"),
    "decimal": pd.Series([Decimal(i) / 4 for i in range(_N)]),
    "thirds": pd.Series([Decimal(i) / 3 for i in range(_N)]),
    "large decimals": pd.Series([Decimal(i) * Decimal(10) ** 30 + Decimal("0.125") for i in range(_N)]),
    "decimal128(38, 18)": pd.Series(
        [(i + 1) * Decimal("12345678901.123") for i in range(_N)],
        dtype=pd.ArrowDtype(pa.decimal128(38, 18)),
    ),
    "sparse": pd.Series(pd.arrays.SparseArray(np.arange(_N) % 3 / 2)),
    "int64[pyarrow]": pd.Series(np.arange(_N), dtype=pd.ArrowDtype(pa.int64())),
    "timedelta": pd.Series(pd.to_timedelta(np.arange(_N), unit="h")),
    "timedelta[s]": pd.Series(pd.to_timedelta(np.arange(_N), unit="h")).astype("timedelta64[s]"),
    "timedelta objects": pd.Series([datetime.timedelta(hours=i) for i in range(_N)], dtype=object),
    "dates": _WHEN,
    "dates[s]": _WHEN.astype("datetime64[s]"),
    "tz": _WHEN.dt.tz_localize("Asia/Tokyo"),
    "far": pd.Series(np.array(["0200-01-01", "9999-12-31"], "datetime64[us]").repeat(_N // 2)),
    "date objects": _WHEN.dt.date,
    "datetime objects": pd.Series(_WHEN.dt.to_pydatetime(), dtype=object),
    "timestamp[pyarrow]": _WHEN.astype(pd.ArrowDtype(pa.timestamp("us"))),
}


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(_COLUMNS)


@pytest.fixture(scope="module")
def fitted(table):
    return VarTJEPA(**TINY | {"max_epochs": 1}).fit(table)


def test_impute_gives_back_the_types_it_was_given_in_the_observed_range(fitted, table):
    mask = np.zeros(table.shape, dtype=bool)
    mask[5:20] = True
    filled, _ = fitted.impute(table, mask)
    assert filled.dtypes.to_dict() == table.dtypes.to_dict()
    assert not filled.isna().any().any()
    pd.testing.assert_frame_equal(filled.drop(index=range(5, 20)), table.drop(index=range(5, 20)))
    for name in table:
        seen, new = table[name], filled[name][5:20]
        assert set(map(type, new)) == set(map(type, seen)), name
        if fitted.schema_.frame(table)[name].dtype.name in ("category", "str", "bool", "boolean"):
            assert set(new) <= set(seen)
        elif name != "objects":
            assert new.min() >= seen.min() and new.max() <= seen.max(), name


def test_whole_numbers_stay_whole_beside_missing_cells_and_text_stays_text():
    table = pd.DataFrame(
        {
            "n": [1.0, 2.0, None, 7.0] * 10,
            "t": ["1", "2", None, "9"] * 10,
            "d": ["2020-01-01", "2021-02-03", None, "2020-05-05"] * 10,
            "e": ["1.2.2020", "25.02.2020", None, "03.02.2020"] * 10,
        }
    )
    model = VarTJEPA(**TINY, column_types={"t": "numeric", "d": "datetime", "e": "datetime"}).fit(table)
    filled = model.impute(table).table
    assert filled.dtypes.to_dict() == table.dtypes.to_dict()
    assert (filled["n"] == filled["n"].round()).all()
    assert filled["t"].isin([str(i) for i in range(1, 10)]).all()
    assert pd.to_datetime(filled["d"], format="%Y-%m-%d").between("2020-01-01", "2021-02-03").all()
    assert pd.to_datetime(filled["e"], format="%d.%m.%Y").between("2020-02-01", "2020-02-25").all()


@pytest.mark.parametrize(
    "columns",
    [
        pd.Index([3, 1, 2]),
        pd.MultiIndex.from_tuples([("a", "x"), ("a", "y"), ("b", "x")]),
        pd.Index(["c", 1, None]),
    ],
    ids=["integers", "MultiIndex", "mixed"],
)
def test_impute_gives_back_the_labels_it_was_given(columns):
    table = pd.DataFrame(
        np.random.default_rng(0).normal(size=(30, 3)), columns=columns, index=range(100, 130)
    )
    table.iloc[4, 1] = np.nan
    for given in (table, table.iloc[:, ::-1]):
        filled = VarTJEPA(**TINY).fit(table).impute(given).table
        assert filled.columns.equals(given.columns) and filled.index.equals(table.index)
        assert not filled.isna().any().any()


@pytest.mark.parametrize("dtype", ["boolean", "Int64", "Float64", "string"])
def test_a_column_that_was_empty_in_the_fit_keeps_its_type(dtype):
    table = pd.DataFrame({"a": np.arange(30.0), "e": pd.array([None] * 30, dtype=dtype)})
    model = VarTJEPA(**TINY).fit(table)
    one = table.assign(e=pd.array(([True, False] if dtype == "boolean" else ["1", "2"]) * 15, dtype=dtype))
    for rows, mask in ((table, None), (table, np.ones((30, 2), bool)), (one, np.ones((30, 2), bool))):
        filled, cells = model.impute(rows, mask)
        assert filled["e"].isna().all() and filled["e"].dtype == table["e"].dtype
        assert "e" not in cells["feature"].unique()
    assert np.isfinite(model.score_samples(one)).all()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_categories_that_only_the_fit_had_are_of_the_tables_type(dtype):
    values = np.resize([1, 2, 2, 3], _N) / (1 if dtype == "int8" else 10)
    table = pd.DataFrame({"a": np.arange(float(_N)), "c": pd.Categorical(values)})
    few = pd.Categorical(values[:8].astype(dtype)).set_categories([values[0].astype(dtype)])
    filled = VarTJEPA(**TINY).fit(table).impute(table[:8].assign(c=few)).table["c"]
    assert filled.cat.categories.dtype == dtype and filled.notna().all()
    assert filled.tolist() == pytest.approx(
        [values[0] if one == values[0] else values[1] for one in values[:8]]
    )


@pytest.mark.parametrize("empty", [np.nan, None, pd.NaT], ids=["number", "category", "date"])
def test_a_column_that_was_empty_in_the_fit_stays_missing(empty):
    table = pd.DataFrame({"a": np.arange(30.0), "e": [empty] * 30})
    model = VarTJEPA(**TINY, column_types={"e": "datetime"} if empty is pd.NaT else None).fit(table)
    filled, cells = model.impute(table)
    assert filled["e"].isna().all() and cells.empty
    assert model.impute(table, np.ones((30, 2), bool)).table["a"].notna().all()


def test_a_labelled_mask_is_matched_by_label(fitted, table):
    table = table[["text", "Int64", "float32", *table.columns.difference(["text", "Int64", "float32"])]]
    mask = pd.DataFrame(False, table.index, table.columns)
    mask.loc[7, "Int64"] = mask.loc[3, "text"] = True
    expected = fitted.impute(table, mask.to_numpy())
    backwards = mask[mask.columns[::-1]]
    for given in (mask, mask[::-1], backwards, mask[["text", "Int64"]], pa.Table.from_pandas(backwards)):
        found = fitted.impute(table, given)
        pd.testing.assert_frame_equal(found.table, expected.table)
        pd.testing.assert_frame_equal(found.cells, expected.cells)
    for wrong, said in (
        (mask.rename(columns={"text": "Text"}), "the mask has columns that the table does not have: 'Text'"),
        (mask.set_axis(range(1, _N + 1)), "the rows of the mask have other labels"),
        (mask[:5], "the rows of the mask have other labels"),
        (mask.to_numpy()[:5], "the mask has shape"),
        ("all", "the mask holds other values than True and False"),
        (3, "the mask has shape"),
        (mask.astype(object).where(~mask), "the mask holds other values than True and False"),
        (np.full(mask.shape, "no"), "the mask holds other values than True and False"),
        ([[True], [True, False]], "the mask holds other values than True and False"),
        (pd.concat([mask, mask], axis=1), "several columns of one name"),
    ):
        with pytest.raises(DataError, match=said):
            fitted.impute(table, wrong)


@pytest.mark.parametrize(
    ("learned", "given"), [(["0", "1"], [0, 1]), (["0", "1"], [False, True]), ([0, 1], ["0", "1"])]
)
def test_a_category_is_filled_as_the_given_column_writes_it(learned, given):
    model = VarTJEPA(**TINY, column_types={"c": "categorical"}).fit(
        pd.DataFrame({"c": learned * 15, "a": np.arange(30.0)})
    )
    table = pd.DataFrame({"c": given * 15, "a": np.arange(30.0)})
    filled = model.impute(table, np.arange(60).reshape(30, 2) % 4 == 0).table
    assert filled["c"].dtype == table["c"].dtype and set(filled["c"]) <= set(given)


def test_decimals_have_the_columns_digits():
    values = [Decimal("0.125"), Decimal("0.25"), None, Decimal("1.5")] * 10
    arrow = pd.Series(values, dtype=pd.ArrowDtype(pa.decimal128(10, 3)))
    table = pd.DataFrame({"arrow": arrow, "objects": pd.Series(values, dtype=object), "a": np.arange(40.0)})
    model = VarTJEPA(**TINY).fit(table)
    filled = model.impute(table).table
    assert filled.dtypes.to_dict() == table.dtypes.to_dict()
    for name in ("arrow", "objects"):
        assert all(isinstance(of, Decimal) and of == round(of, 3) for of in filled[name])
    empty = table[:4].assign(arrow=pd.Series([None] * 4, dtype=arrow.dtype))
    assert model.impute(empty).table["arrow"].dtype == arrow.dtype


def test_a_column_of_two_numbers_that_nothing_says_is_filled_with_its_mean():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"coin": (rng.random(400) < 0.56) * 1, "x": rng.normal(size=400)})
    model = VarTJEPA(**TINY).fit(table)
    new = pd.DataFrame({"coin": pd.array([pd.NA] * 50, dtype="Int64"), "x": rng.normal(size=50)})
    imputed = model.impute(new)
    values = imputed.cells["value"].astype(float)
    assert values.mean() == pytest.approx(table["coin"].mean(), abs=0.03)
    std = imputed.cells["std"].to_numpy()
    np.testing.assert_allclose(std, np.sqrt(values * (1 - values)), atol=0.02)
    assert (imputed.table["coin"] == 1).mean() > 0.9


def test_what_is_hidden_in_one_row_changes_no_other():
    codes = 2**60 + 1 + 3 * (np.arange(_N) % 4)  # beyond what float64 tells apart
    table = pd.DataFrame({"code": codes, "x": np.arange(_N) % 4 * 5.0, "small": np.arange(_N, dtype="uint8")})
    model = VarTJEPA(**TINY, column_types={"code": "categorical"}).fit(table)
    mask = np.zeros(table.shape, dtype=bool)
    mask[:9, 1] = True
    alone = model.impute(table, mask).cells
    mask[-1, [0, 2]] = True
    both = model.impute(table, mask)
    pd.testing.assert_frame_equal(both.cells[both.cells["row"] < 9].reset_index(drop=True), alone)
    assert both.table.dtypes.tolist() == table.dtypes.tolist()
    assert both.table["code"].tolist()[:-1] == table["code"].tolist()[:-1]


@pytest.mark.parametrize(
    ("values", "fill"),
    [
        (np.arange(_N) % 2 / 1.0, np.nan),
        (np.arange(_N) % 3 / 2, 0.0),
        (np.arange(_N) % 3, 0),
        (np.arange(_N) % 2 == 0, False),
    ],
)
def test_a_sparse_column_of_the_caller_stays_as_it_is(values, fill):
    sparse = pd.arrays.SparseArray(values, fill_value=fill)
    table = pd.DataFrame({"a": np.arange(_N) / 7, "b": sparse})
    before = np.array(values)
    model = VarTJEPA(**TINY | {"max_epochs": 1}).fit(table)
    mask = np.zeros(table.shape, dtype=bool)
    mask[:7, 1] = True
    filled, cells = model.impute(table, mask)
    assert np.array_equal(np.asarray(table["b"]), before)
    assert filled["b"].dtype == table["b"].dtype and len(cells) == 7
    assert np.array_equal(np.asarray(filled["b"])[7:], before[7:])
