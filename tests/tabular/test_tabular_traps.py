"""Numbers and dates that are texts in a table of Python's, or in a file that is no text."""

import datetime
import re
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from probjepa.errors import DataError, ProbjepaWarning
from probjepa.tabular import TableSchema
from probjepa.tabular.traps import refuse_traps


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["4,590.50", "12", None], "holds numbers as text ('4,590.50' in row 0)"),
        (["4.5", "12"], "holds numbers as text ('4.5' in row 0)"),
        (["1", "2", "?"], "holds numbers as text ('?' in row 2)"),
        ([None, "7 %"], "holds numbers as text ('7 %' in row 1)"),
        (["2021-01-05", "2021-02-01"], "holds dates as text ('2021-01-05' in row 0)"),
        (["5 May 2021"], "holds dates"),
        (["14:30", "02:30 PM", "9:05:01.5"], "holds times as text ('14:30' in row 0)"),
        (["01/2021", "12/2020"], "holds dates"),
        (["Mar-21", "Sept 20", "May-19"], "holds dates in words as text"),
        (["2021-Q1", "Q3 2020", "4Q19"], "holds dates in words as text ('2021-Q1' in row 0)"),
        (["2021-W05", "2021W6", "W07/2021", "2021-W05-3", "2021-1Q"], "holds dates in words as text"),
        (["24. März 2021", "3 May 2021", "1 janv. 2020"], "holds dates in words as text ('24. März 2021' in"),
        (
            ["März 2021", "mars-21", "1er août 2021", "24 марта 2021 г.", "Mai 24, 2021"],
            "holds dates in words",
        ),
        ([1, 2, "n/a"], "holds numbers as text ('n/a' in row 2)"),
        ([1.5, 2.5, None, "1,000"], "holds numbers as text ('1,000' in row 3)"),
        ([1.5, 2.5, "3.5"], "holds numbers as text ('3.5' in row 2)"),
        ([Decimal("1.5"), Decimal("2.5"), "n/a"], "holds numbers as text ('n/a' in row 2)"),
    ],
)
def test_numbers_and_dates_as_texts_are_warned_of(cells, said):
    frame = pd.DataFrame({"a b": cells, "n": range(len(cells))})
    with pytest.warns(ProbjepaWarning) as caught:
        schema = TableSchema.infer(frame)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(caught[0].message).startswith(f"column 'a b' {said}")
    assert schema.features[0].type == "categorical"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TableSchema.infer(frame, column_types={"a b": "categorical"}).features == schema.features


@pytest.mark.parametrize(
    "cells",
    [
        ["01", "02139"],
        ["1", "2"],
        ["1", "2A", "3B", "4C", "5D", "6E", "7F"],
        ["x", "1.5"],
        [None, None],
        ["1.2.3"],
        ["Marble 12", "Junction 45", "Peugeot 2008"],
        ["12 Monkeys 1995", "3 Bedroom 2019", "24 Hours 2021", "17 Rue 2021"],
        ["16:9", "4:3"],
        ["1:10", "1:20", "1:50"],
        ["50:50", "60:40"],
        ["15-1252", "12-3456", "7/1234"],
        ["W1234", "W123", "Q123", "W12 34"],
        ["Q1", "Q2", "Q3", "Q4"],
        ["2.2021", "3.2021a", "x"],
        [1, 2, "3"],
        [True, False, 2, "x"],
        [datetime.datetime(2021, 1, day) for day in range(1, 29)] + ["12.5"],
        [Decimal("1.5"), 2.5, 2],
        [1, "2A", "3B", "4C", "5D", "6E", "7F"],
    ],
)
def test_codes_and_words_are_categories(cells):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = pd.DataFrame({"a": cells})
        TableSchema.infer(frame)
        refuse_traps(frame, "t.parquet")


def test_a_file_that_is_no_text_is_not_told_how_to_read_one():
    for cells in (["1", "2", "?"], ["4,590.50", "12"]):
        with pytest.raises(DataError, match=r"write it as numbers, or pass --set 'column_types=\{a: categ"):
            refuse_traps(pd.DataFrame({"a": cells}), "t.parquet")


@pytest.mark.parametrize("cells", [["1\ud800", "2"], [" ", "", "3"], ["x" * 10_000, "1"], [1, "2.5"]])
def test_odd_texts_pass(cells):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TableSchema.infer(pd.DataFrame({"a": pd.Series(cells, dtype=object)}))


@pytest.mark.parametrize("dtype", ["string", "string[pyarrow]", "str"])
def test_texts_of_every_type_are_seen(dtype):
    with pytest.warns(ProbjepaWarning, match="holds numbers as text"):
        TableSchema.infer(pd.DataFrame({"a": pd.Series(["1.5", "2,000.5", None], dtype=dtype)}))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (pd.period_range("2020-01", periods=40, freq="M"), "holds periods (to_timestamp()"),
        ([datetime.time(k % 24, 30) for k in range(40)], "holds times of day"),
        (
            (pd.to_timedelta(range(40), unit="h") * 7).astype(str),
            "holds durations as text ('0 days 00:00:00'",
        ),
    ],
)
def test_what_becomes_categories_is_told(cells, said):
    table = pd.DataFrame({"c": cells, "x": np.arange(40.0)})
    with pytest.warns(ProbjepaWarning, match=re.escape(f"column 'c' {said}")):
        TableSchema.infer(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableSchema.infer(table, column_types={"c": "categorical"})


def test_durations_in_a_file_are_refused_with_what_to_do(tmp_path):
    table = pd.DataFrame({"took": pd.to_timedelta(range(40), unit="h"), "x": np.arange(40.0)})
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"'took'.* holds durations .*write it as a number, of seconds say"):
        refuse_traps(pd.read_csv(tmp_path / "t.csv"), "t.csv")
