"""Tables as people have them: other libraries' frames, categories of another type, dates of any range."""

import datetime
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from tabular_cases import TINY, mixed_table

from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.scores import score_set
from probjepa.tabular import TableSchema, VarTJEPA
from probjepa.tabular.dates import datetime_parts
from probjepa.tabular.frames import as_frame, category_codes, category_labels, numbers


class OnlyStream:
    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class OnlyInterchange:
    def __init__(self, table):
        self.table = table

    def __dataframe__(self, *args, **options):
        return self.table.__dataframe__(*args, **options)


KINDS = {
    "polars": pl.from_pandas,
    "pyarrow": pa.Table.from_pandas,
    "record batch": pa.RecordBatch.from_pandas,
    "arrow stream": lambda t: OnlyStream(pl.from_pandas(t)),
    "interchange": lambda t: OnlyInterchange(pa.Table.from_pandas(t)),
}
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def fitted():
    return VarTJEPA(**TINY).fit(mixed_table())


@KIND
def test_a_frame_of_another_library_is_read_by_name(fitted, kind):
    table = mixed_table()
    for order in (list(table.columns), ["when", "colour", "size", "flag", "count"]):
        other = KINDS[kind](table[order])
        np.testing.assert_array_equal(fitted.score_samples(other), fitted.score_samples(table))
        np.testing.assert_array_equal(fitted.transform(other), fitted.transform(table))
    model = VarTJEPA(**TINY).fit(KINDS[kind](table))
    assert model.feature_names_in_.tolist() == list(table.columns)
    assert model.schema_.features == fitted.schema_.features
    with pytest.raises(DataError, match="missing: 'size'; unexpected: 'Size'"):
        fitted.transform(KINDS[kind](table.rename(columns={"size": "Size"})))


def test_types_of_polars_are_kept():
    words = ["x", "y", None]
    table = pl.DataFrame({
        "whole": [1, None, 2**60], "small": pl.Series([1, 2, 3], dtype=pl.UInt8), "text": words,
        "yes": [True, None, False], "category": pl.Series(words, dtype=pl.Categorical),
        "enum": pl.Series(words, dtype=pl.Enum(["x", "y"])), "date": [datetime.date(2020, 1, 1), None, None],
        "zoned": pl.Series([datetime.datetime(2020, 1, 1)] * 3).dt.replace_time_zone("Asia/Tokyo"),
        "lasts": [datetime.timedelta(1), None, None], "decimal": pl.Series(["1.5", "2", None]).cast(pl.Decimal(10, 2)),
        "nothing": [None] * 3,
    })  # fmt: skip
    frame = as_frame(table)
    assert {f.column: f.type for f in TableSchema.infer(table).features} == {
        "whole": "numeric", "small": "numeric", "text": "categorical", "yes": "boolean", "category": "categorical",
        "enum": "categorical", "date": "datetime", "zoned": "datetime", "lasts": "numeric", "decimal": "numeric",
        "nothing": "categorical",
    }  # fmt: skip
    assert frame["whole"].tolist() == [1, pd.NA, 2**60]
    assert frame.isna().to_numpy().sum() == 13


def test_a_query_that_has_not_run():
    with pytest.raises(DataError, match=r"pass what its collect\(\) returns"):
        as_frame(pl.DataFrame({"a": [1]}).lazy())
    for column in (pl.Series([1, 2]), pd.Series([1, 2]), pa.chunked_array([[1, 2]])):
        with pytest.raises(DataError, match="Expected 2D array, got 1D"):
            as_frame(column)


# --- categories ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learned", "given", "codes"),
    [
        (["0", "1"], [0, 1, 2], [2, 3, 1]),
        (["0", "1"], [0.0, 1.0, None], [2, 3, 0]),
        (["0", "1"], [False, True], [2, 3]),
        (["0", "1"], ["False", "True"], [2, 3]),
        (["False", "True"], [False, True, None], [2, 3, 0]),
        (["no", "True"], [True, "no"], [2, 3]),
        ([False, True], ["False", "true"], [2, 3]),
        ([False, True], ["0", 1], [2, 3]),
        (pd.Categorical([1, 2]), ["1", "2", "3"], [2, 3, 1]),
        (pd.Categorical(["1", "2"]), pd.array([2, None], dtype="Int64"), [3, 0]),
        (["1", 1], ["1", 1], [2, 2]),
        (["True", "1"], [True], [1]),  # it could be either
        (pd.Categorical([1, 2]), ["1.0", "2.5"], [2, 1]),  # as a column with gaps is written
        (["1.0", "2"], [1, 2.0], [2, 3]),
        (["1.0", "1"], [1, "1.0", "1"], [1, 3, 2]),
    ],
)
def test_a_category_of_another_type_is_found_by_its_text(learned, given, codes):
    schema = TableSchema.infer(pd.DataFrame({"c": pd.Series(learned)}))
    assert schema.encode(pd.DataFrame({"c": pd.Series(given)})).codes[:, 0].tolist() == codes


def test_a_column_that_is_unknown_warns_with_its_share(fitted):
    test = mixed_table(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.transform(test)
        fitted.transform(test.assign(colour=["violet"] + ["red"] * 39))
        fitted.transform(test[:1].assign(colour="violet"))
    for use in (fitted.transform, fitted.score_samples, fitted.impute):
        with pytest.warns(
            ProbjepaWarning,
            match=r"most values of 'colour' \(100%\), 'flag' \(75%\) are none of the categories",
        ):
            use(test.assign(colour="RED", flag=["ja"] * 30 + [True] * 10))
    encoded = fitted.schema_.encode(test.assign(colour=["violet", None] + ["red", "blue"] * 19))
    assert fitted.schema_.unknown_shares(encoded) == {"colour": 1 / 39, "flag": 0}


@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
def test_a_column_that_is_beyond_the_fit_warns_with_its_share(numeric_transform):
    table = mixed_table()
    model = VarTJEPA(**TINY, numeric_transform=numeric_transform).fit(table.assign(same=1))
    later = table.assign(when=table["when"] + pd.DateOffset(years=3), count=table["count"] - 4, same=2)
    with pytest.warns(
        ProbjepaWarning, match=r"values of 'when' \(98%\), 'same' \(100%\) are beyond the range"
    ):
        model.score_samples(later)
    found = model.schema_.beyond_shares(model.schema_.encode(later))
    below = float((later["count"] < table["count"].min()).mean())
    assert below * len(later) >= 10
    assert found == {"size": 0, "count": pytest.approx(below), "when": 39 / 40, "same": 1} and 0 < below < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.score_samples(table.assign(same=1))  # the ends of the range are in it
        model.score_samples(later[:9])
        model.score_samples(later.assign(when=[*later["when"][:9], *table["when"][9:]], same=1))
        ties = pd.DataFrame({"x": [0.1] * 30 + [0.01 * k for k in range(10)]})
        schema = TableSchema.infer(ties, numeric_transform=numeric_transform)
        assert schema.beyond_shares(schema.encode(ties.astype("float32"))) == {"x": 0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("numeric_transform", ["quantile", "standard"])
@pytest.mark.parametrize(
    ("location", "scale", "seed"), [(50, 70, 21), (1, 3, 1), (0, 1e300, 0), (0, 1e-310, 0), (1e8, 1, 0)]
)
def test_the_ends_of_a_fit_are_in_its_range(location, scale, seed, numeric_transform):
    values = location + scale * np.random.default_rng(seed).normal(size=60)
    table = pd.DataFrame({"x": np.clip(values, *np.quantile(values, [0.3, 0.7]))})
    schema = TableSchema.infer(table, numeric_transform=numeric_transform)
    low, high = schema.features[0].ends
    assert -np.inf < low < high < np.inf
    assert schema.beyond_shares(schema.encode(table)) == {"x": 0}


@pytest.mark.parametrize("dtype", [np.int64, np.float32, object])
def test_masked_cells_of_an_array_are_missing(dtype):
    values = np.arange(40).reshape(20, 2).astype(dtype)
    masked = np.ma.masked_array(values, mask=values % 3 == 0)
    schema = TableSchema.infer(masked)
    encoded = schema.encode(masked)
    assert [of.type for of in schema.features] == ["numeric"] * 2
    np.testing.assert_array_equal(encoded.missing, values % 3 == 0)
    np.testing.assert_array_equal(
        schema.encode(values).numeric[~encoded.missing], encoded.numeric[~encoded.missing]
    )
    np.testing.assert_array_equal(schema.encode(list(masked)).missing, encoded.missing)
    days = np.ma.masked_array(np.arange(40).reshape(20, 2).astype("M8[D]").astype("M8[ns]"), values % 3 == 0)
    assert {of.type for of in TableSchema.infer(days).features} == {"datetime"}
    plain = schema.encode(np.ma.masked_array(values))
    assert not plain.missing.any()


def test_numbers_and_texts_in_a_list_of_rows_keep_their_types():
    rows = [[float(i), "ab"[i % 2], None if i % 5 == 0 else i] for i in range(40)]
    frame = pd.DataFrame(rows, columns=["x0", "x1", "x2"])
    schema = TableSchema.infer(rows)
    assert [of.type for of in schema.features] == ["numeric", "categorical", "numeric"]
    assert schema.to_json() == TableSchema.infer(frame).to_json()


# --- dates -----------------------------------------------------------------------------------------------

_FAR = ["0200-03-01 12:00", "1970-01-01", "2024-03-09 18:30", "9999-12-31 23:00"]


@pytest.mark.parametrize(
    "series",
    [
        pd.Series(np.array(_FAR, "datetime64[s]")),
        pd.Series(np.array(_FAR, "datetime64[ms]")),
        pd.Series(np.array(_FAR, "datetime64[us]")).dt.tz_localize("UTC"),
        pd.Series(np.array(_FAR, "datetime64[us]").astype(object)),
        pd.Series(_FAR),
        pd.Series(np.array(_FAR, "datetime64[us]"), dtype=pd.ArrowDtype(pa.timestamp("us"))),
    ],
    ids=["s", "ms", "us, UTC", "objects", "text", "arrow"],
)
def test_dates_of_any_unit_and_range(series):
    parts = datetime_parts("t", pd.concat([series, series[:1].map(lambda _: None)]).astype(series.dtype))
    days = [datetime.datetime.fromisoformat(text).toordinal() - 719163 for text in _FAR]
    np.testing.assert_array_equal(
        parts["days"], [days[0] + 0.5, 0, days[2] + 18.5 / 24, days[3] + 23 / 24, np.nan]
    )
    np.testing.assert_array_equal(parts["month"], [3, 1, 3, 12, np.nan])
    np.testing.assert_array_equal(parts["weekday"], [5, 3, 5, 4, np.nan])
    np.testing.assert_array_equal(parts["hour"], [12, 0, 18.5, 23, np.nan])
    table = pd.DataFrame({"t": series})
    schema = TableSchema.infer(table, column_types={"t": "datetime"})
    assert np.isfinite(schema.encode(table).numeric).all()


@pytest.mark.parametrize("cell", ["2020-13-01", "31/31/2020", 5, "soon"])
def test_what_is_no_date_is_named_with_its_row(cell):
    table = pd.DataFrame({"t": pd.Series(["2020-01-01", None, cell], dtype=object)})
    with pytest.raises(DataError, match=r"column 't' is datetime and holds '.*' in row 2") as error:
        TableSchema.infer(table, column_types={"t": "datetime"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", ["timedelta64[s]", "timedelta64[ns]", object, pd.ArrowDtype(pa.duration("us"))], ids=str
)
def test_durations_are_seconds(dtype):
    series = pd.Series([datetime.timedelta(days=20_000), datetime.timedelta(seconds=1), None]).astype(dtype)
    table = pd.DataFrame({"c": series})
    assert [feature.type for feature in TableSchema.infer(table).features] == ["numeric"]
    np.testing.assert_array_equal(numbers("c", series), [20_000 * 86400, 1, np.nan])


def test_categories_that_are_no_text_are_known_to_a_saved_model(tmp_path):
    table = pd.DataFrame({"s": pd.Series(["a\ud800", "b"] * 20, dtype=object), "x": np.arange(40.0)})
    model = VarTJEPA(**TINY).fit(table)
    assert model.schema_.features[0].categories == ("a?", "b")
    model.save(tmp_path / "m")
    loaded = VarTJEPA.load(tmp_path / "m")
    assert (loaded.schema_.encode(table).codes[:2] == [[2], [3]]).all()
    np.testing.assert_array_equal(loaded.transform(table), model.transform(table))
    assert model.impute(table, table.isna() | [True, False]).table["s"].isin(table["s"]).all()


@pytest.mark.parametrize("narrow", [np.float32, np.float16, "Float32"])
def test_a_category_of_few_digits_is_the_same_category(narrow):
    values = pd.Series([0.1, 0.2, 0.3, np.nan])
    wide = category_labels("c", values, boolean=False, most=10)
    assert wide == category_labels("c", values.astype(narrow), boolean=False, most=10) == (0.1, 0.2, 0.3)
    assert category_codes("c", values.astype(narrow), wide).tolist() == [2, 3, 4, 0]
    if narrow is np.float16:  # of which pandas has no categories
        return
    categories = values.astype(narrow).astype("category")
    assert wide == category_labels("c", categories, boolean=False, most=10)
    assert category_codes("c", categories, wide).tolist() == [2, 3, 4, 0]


def test_a_score_takes_every_kind_of_table():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    known, asked = table[:40].reset_index(drop=True), table[40:].reset_index(drop=True)
    model = VarTJEPA(**TINY).fit(known)
    for score, more in (("knn", {"reference_size": 20}), ("knn", {}), ("fisher", {}), ("likelihood", None)):
        found = []
        for kind in (lambda of: of, pl.from_pandas, pa.Table.from_pandas, lambda of: of.to_numpy()):
            options = {} if more is None else {"reference": kind(known), **more}
            found.append(score_set(model, kind(asked), score, **options)[0])
        assert all(np.array_equal(found[0], other) for other in found[1:]), score


def test_columns_that_are_not_there_are_one_line_whatever_their_names_are():
    with pytest.raises(ConfigError, match="columns that are not in the table: '1', 'z'"):
        TableSchema.infer(pd.DataFrame({"a": [1.0]}), column_types={1: "numeric", "z": "numeric"})


@pytest.mark.parametrize(
    ("cells", "known", "codes"),
    [
        ([1, 2, "1", "2", "x"], (1, 2, "x"), [2, 3, 2, 3, 4]),  # as read_csv reads a long file piece by piece
        ([True, "True", False, "false"], (False, True), [3, 3, 2, 2]),
        ([1.5, "1.5", "01", 1], (1, 1.5, "01"), [3, 3, 4, 2]),
        (["True", "true", "TRUE"], ("TRUE", "True", "true"), [3, 4, 2]),
        (["1", "1.0"], ("1", "1.0"), [2, 3]),
        ([1.0, "1.0", 2.5, "2.5", "x"], (1, 2.5, "x"), [2, 2, 3, 3, 4]),
    ],
)
def test_a_value_and_its_text_in_one_column_are_one_category(cells, known, codes):
    series = pd.Series(cells, dtype=object)
    found = category_labels("c", series, boolean=False, most=10)
    assert found == known and list(map(type, found)) == list(map(type, known))
    assert category_codes("c", series, found).tolist() == codes


def test_the_rarest_category_is_counted_with_its_text():
    cells = pd.Series(["a", "a", 1, "1", "1", "b"], dtype=object)
    assert category_labels("c", cells, boolean=False, most=1) == (1,)


def test_a_frame_that_arrow_does_not_read_keeps_no_silence_on_its_names():
    frame = pl.DataFrame({"big": pl.Series(range(3), dtype=pl.Int128), "x": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match=r"the table, a DataFrame, cannot be read through Arrow .*: cast its"):
        as_frame(frame)
    assert as_frame(frame.cast({"big": pl.Int64})).columns.tolist() == ["big", "x"]


def test_structured_arrays_have_names():
    rows = [(20.0, 3, "ab"), (31.5, 4, "b")]
    array = np.array(rows, dtype=[("age", "f4"), ("n", "i8"), ("word", "U3")])
    for table in (array, array.view(np.recarray), array.astype(array.dtype.newbyteorder())):
        frame = as_frame(table)
        assert frame.columns.tolist() == ["age", "n", "word"]
        assert frame.to_numpy().tolist() == [list(row) for row in rows]
    nested = np.array([([1, 2], 3)], dtype=[("pair", "i4", 2), ("n", "i4")])
    assert as_frame(nested).columns.tolist() == ["pair", "n"]
    for other in (array[None], np.ma.masked_array(array, mask=[(True, False, False), (False,) * 3])):
        with pytest.raises(
            DataError, match="a structured array of several dimensions, or with a mask: pass a Da"
        ):
            as_frame(other)
    model = VarTJEPA(**TINY).fit(np.repeat(array, 20))
    assert model.feature_names_in_.tolist() == ["age", "n", "word"]
    np.testing.assert_array_equal(model.transform(array), model.transform(array[["word", "age", "n"]]))


def test_numbers_that_float64_cannot_hold():
    with pytest.raises(DataError, match=r"column 'n' is numeric and holds '1000.*in row 1 \(1 such cells\)"):
        numbers("n", pd.Series([1, 10**400, None], dtype=object))
    with pytest.raises(DataError, match="column 'n' is numeric and holds 'a number of thousands of digits'"):
        numbers("n", pd.Series([1, 10**5000], dtype=object))


@pytest.mark.parametrize("dtype", ["int64", "Int64", "uint64", "object"])
def test_whole_numbers_that_float64_does_not_tell_apart_are_warned_of(dtype):
    frame = pd.DataFrame({"n": pd.Series(range(2**60, 2**60 + 2560, 128), dtype=dtype)})
    with pytest.warns(
        ProbjepaWarning,
        match=r"column 'n' holds whole numbers beyond 2\^53, of which float64 tells apart 11 of 20",
    ):
        TableSchema.infer(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableSchema.infer(frame, column_types={"n": "categorical"})
        TableSchema.infer(frame // 256 * 256)
        TableSchema.infer(frame - 2**60)
