"""Dates as texts: in which order day and month stand is decided by the fit's column, once."""

import warnings

import numpy as np
import pandas as pd
import pytest

from probjepa.errors import DataError
from probjepa.evaluation.tables import evaluate_once
from probjepa.tabular import TableSchema
from probjepa.tabular.dates import format_of, instants
from probjepa.tabular.overlap import equal_rows

WHEN = pd.to_datetime(["2021-04-03", "2021-04-25", "2021-12-31"])
FORMS = {
    "31/12/2021": ("%d/%m/%Y", True), "12/31/2021": ("%m/%d/%Y", False), "31.12.21": ("%d.%m.%y", True),
    "12-31-2021 11:30 PM": ("%m-%d-%Y %I:%M %p", False), "2021-12-31": ("%Y-%m-%d", None),
    "31 December 2021": ("%d %B %Y", None),
}  # fmt: skip


def schema_of(cells):
    return TableSchema.infer(pd.DataFrame({"t": cells}), column_types={"t": "datetime"})


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_read_alike_beside_any_others(form):
    written, order = FORMS[form]
    cells = WHEN.strftime(written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = TableSchema.from_json(schema_of(cells[::-1]).to_json())
        assert {feature.day_first for feature in schema.features} == {order}
        for rows in ([0], [1], [0, 1, 2], [2, 0]):
            found = schema.dated(pd.DataFrame({"t": cells[rows]}))["t"].dt.tz_localize(None)
            assert found.tolist() == WHEN[rows].tolist()
            np.testing.assert_array_equal(
                schema.encode(pd.DataFrame({"t": cells[rows]})).numeric,
                schema.encode(pd.DataFrame({"t": cells})).numeric[rows],
            )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["03/04/2021", "04/04/2021", None], "'03/04/2021', of which the day or the month may stand first: write"),
        (["25/12/2021", "12/25/2021"], "with the day first .'25/12/2021'. and with the month first .'12/25/2021'."),
        (["2021-01-01", "10:30"], "holds '10:30' in row 1"),  # it would be of today
        (["2021-01-01", "03-04/2021"], "holds '03-04/2021' in row 1"),
    ],
)  # fmt: skip
def test_dates_that_may_be_two_are_refused(cells, said):
    with pytest.raises(DataError, match=said):
        schema_of(cells)


def test_a_later_table_is_held_to_the_order_of_the_fit():
    assert schema_of(["04/04/2021"]).features[0].day_first is None
    with pytest.raises(DataError, match="may stand first"):
        schema_of(["2021-04-04"]).encode(pd.DataFrame({"t": ["03/04/2021"]}))
    with pytest.raises(
        DataError, match=r"datetime \(day first, as in the fit\) and holds '12/25/2021' in row 1"
    ):
        instants("t", pd.Series(["03/04/2021", "12/25/2021"]), True)


def test_rows_of_one_date_are_found_however_it_is_written():
    day, month = (
        pd.DataFrame({"t": WHEN.strftime("%d/%m/%Y")}),
        pd.DataFrame({"t": WHEN.strftime("%Y-%m-%d")}),
    )
    schema = schema_of(day["t"])
    assert equal_rows(schema.dated(day[:1]), schema.dated(month))[0].tolist() == [True]
    assert equal_rows(day, pd.DataFrame({"t": WHEN[1:]}))[0].tolist() == [False, True, True]


def test_raw_features_read_dates_as_the_model_does():
    when = pd.Series(pd.date_range("2021-01-01", periods=120)[np.arange(120) % 119])
    table = pd.DataFrame({"t": when.dt.strftime("%d/%m/%Y"), "y": ["a", "b"] * 60})
    early = table[[int(text[:2]) <= 12 for text in table["t"]]]  # of which both orders read each
    model = schema_of(table["t"])

    class Fitted:
        schema_ = model

        def transform(self, X):
            return model.encode(X).numeric

    with pytest.raises(DataError, match="may stand first"):
        evaluate_once(None, *[early] * 3, "y", seed=0, predictors=["MLP"], column_types={"t": "datetime"})
    found = evaluate_once(Fitted(), early, early, early, "y", seed=0, predictors=["MLP"])
    assert set(found.metrics["accuracy"]) == {"majority class", "raw", "embedding", "raw + embedding"}


@pytest.mark.parametrize(
    ("text", "day_first", "expected"),
    [
        ("2021-06-03", None, "%Y-%m-%d"),
        ("2021-06-03 12:00:00", None, "%Y-%m-%d %H:%M:%S"),
        ("2021-06-03T12:00", None, "%Y-%m-%dT%H:%M"),
        ("05.01.2021", True, "%d.%m.%Y"),
        ("05.01.2021", False, "%m.%d.%Y"),
        ("31/12/2021", None, "%d/%m/%Y"),
        ("12/31/2021", None, "%m/%d/%Y"),
        ("31/12/21", True, "%d/%m/%y"),
        ("12-31-70", None, "%m-%d-%y"),
        ("5 Jan 2021", None, "%d %b %Y"),
        ("March 3, 2021", None, "%B %d, %Y"),
        ("2021-03", None, "%Y-%m"),
        ("March 2021", None, "%B %Y"),
        ("Mar-2021", None, "%b-%Y"),
        ("24-Mar-21", None, "%d-%b-%y"),
        ("24 Mar 72", None, "%d %b %y"),
        ("2021-03-05T12:00:00Z", None, "%Y-%m-%dT%H:%M:%SZ"),
        ("2021-03-05T12:00:00+02:00", None, "%Y-%m-%dT%H:%M:%S+00:00"),
        ("Tue, March 2, 2021", None, "%a, %B %d, %Y"),
        ("Tue, March 3, 2021", None, "%Y-%m-%d %H:%M:%S"),  # a Wednesday
    ],
)
def test_the_format_of_a_date_reads_it_again(text, day_first, expected):
    found = format_of("t", [text], day_first)
    assert found == expected
    when = instants("t", pd.Series([text]), day_first)
    written = pd.Series(when.dt.strftime(found))
    assert (instants("t", written, day_first) == when).all()


def test_a_format_reads_all_cells_and_not_the_first_alone():
    """pandas takes 05 of 13:05 for the month, and May for a whole name."""
    texts = ["13:05:15 2021-05-13", "03:05:06 2021-05-25", "22:02:16 2021-07-05"]
    assert format_of("t", texts) == "%H:%M:%S %Y-%m-%d"
    assert format_of("t", ["13 May 2021", "25 Jul 2021"]) == "%d %b %Y"
    assert format_of("t", ["May 2021", "March 2021"]) == "%B %Y"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert format_of("t", ["2021-06-03", "2021-06-15"], True) == "%Y-%m-%d"


@pytest.mark.parametrize(
    ("text", "year"),
    [("1-May-72", 1972), ("03-Apr-69", 1969), ("5 Mar 68", 2068), ("Feb 29, 00", 2000), ("5 Mar 1868", 1868)],
)
def test_the_century_of_a_year_of_two_digits_is_no_matter_of_the_clock(text, year, monkeypatch):
    """As of a date of digits alone; what pandas calls has a window that moves with today."""
    from dateutil.parser import DEFAULTPARSER

    for today in (1990, 2036):
        monkeypatch.setattr(DEFAULTPARSER.info, "_year", today)
        monkeypatch.setattr(DEFAULTPARSER.info, "_century", today // 100 * 100)
        assert instants("t", pd.Series([text]), None).dt.year.tolist() == [year]


@pytest.mark.parametrize("text", ["today", "now", "Jan-21", "2021-05-04/2021-05-06"])
def test_what_is_no_date_is_refused(text):
    with pytest.raises(DataError, match="is datetime"):
        instants("t", pd.Series(["2021-01-01", text]))
