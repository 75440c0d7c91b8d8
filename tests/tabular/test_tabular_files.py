"""Rows that stand in two tables, whatever the types that these were read in."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from probjepa.errors import DataError
from probjepa.evaluation import evaluate_table
from probjepa.tabular.files import read_table, stands_in
from probjepa.tabular.rows import named_rows
from shard_cases import write_table

DAYS = ["2020-01-01", "2020-02-01", "2020-03-01"]


@pytest.mark.parametrize(
    ("cells", "known"),
    [
        ([True, False, None], [True, False, False]),
        (pd.array([True, False, None], dtype="boolean"), ["True", "false", "no"]),
        ([True, False, 7], [1.0, 0.0, 2.0]),
        (DAYS, pd.to_datetime([*DAYS[:2], "2021-01-01"])),
        (pd.to_datetime(DAYS), pd.to_datetime([*DAYS[:2], "2021-01-01"]).tz_localize("UTC").as_unit("s")),
        (pd.to_datetime(DAYS).date, [*DAYS[:2], None]),
        (["1", "2", "?"], [1, 2, 3]),
        (["1.50", "2", "?"], [1.5, 2, 3]),
        (np.array([0.1, 0.2, 0.3], np.float32), [0.1, 0.2, 0.4]),
        (["0.1", "0.2", "?"], np.array([0.1, 0.2, 0.4], np.float32)),
        (pd.Categorical([1, 2, 3]), [1.0, 2.0, 4.0]),
        (pd.array([1, 2, None], dtype="Int64"), [1.0, 2.0, -0.5]),
        ([0.0, 1.0, 2.0], [-0.0, 1.0, 3.0]),
        (["x", None, "y"], ["x", np.nan, "z"]),
    ],
)
def test_a_row_is_known_in_any_type(cells, known):
    more = {"of the row": ["a", "b", "c"]}
    rows, others = (pd.DataFrame({"cell": of, **more}) for of in (cells, known))
    assert stands_in(rows, others).tolist() == [True, True, False]
    assert stands_in(others, rows).tolist() == [True, True, False]
    assert stands_in(rows, rows[list(rows)[::-1]][:1]).tolist() == [True, False, False]


def test_texts_and_large_numbers_that_differ_are_two():
    for cells, known in (
        (["01", "1"], ["1", "x"]),
        ([1e9, 1e9 + 1], [1e9 + 1, 7.0]),
        ([None, "a"], ["a", "b"]),
    ):
        assert stands_in(pd.DataFrame({"c": cells}), pd.DataFrame({"c": known})).tolist() == [False, True]


@pytest.mark.parametrize("suffix", ["parquet", "feather", "stream.arrow"])
def test_whole_numbers_of_ids_are_kept_beside_blanks(tmp_path, suffix):
    held = pa.table({"ID": pa.array([2**53 + 1, None, 3], pa.int64()), "x": [1.0, 2.0, 3.0]})
    write_table(tmp_path / f"x.{suffix}", held)
    frame = read_table(tmp_path / f"x.{suffix}", None, ["x"])
    assert named_rows(frame, ["x"])[1]["id"] == ["9007199254740993", "", "3"]
    assert frame["x"].tolist() == [1.0, 2.0, 3.0]


def test_nested_cells_are_one_line():
    with pytest.raises(DataError, match="column 'c' holds nested values"):
        stands_in(pd.DataFrame({"c": [[1]]}), pd.DataFrame({"c": [[1]]}))


def test_training_rows_are_left_out_of_a_test_file_that_is_read_in_other_types():
    random = np.random.default_rng(0)
    train = pd.DataFrame({"owns": random.random(60) < 0.5, "n": range(60), "y": random.integers(0, 2, 60)})
    test = pd.concat(
        [train.astype({"owns": object}), pd.DataFrame({"owns": [None], "n": [99], "y": [0]})],
        ignore_index=True,
    )
    test = pd.read_csv(io.StringIO(test.to_csv(index=False)))
    assert test["owns"].dtype == object
    found = evaluate_table(None, train, test, "y", predictors=["logistic regression"])
    assert found.metrics["left_out_as_in_train"] == 60 and found.metrics["sets"]["test"]["rows"] == 1
