"""Tables as people have them: other libraries' frames, categories of another type, dates of any range."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from tabular_cases import TINY, mixed_table

from probjepa.errors import DataError
from probjepa.tabular import TableSchema, VarTJEPA
from probjepa.tabular.frames import as_frame


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
