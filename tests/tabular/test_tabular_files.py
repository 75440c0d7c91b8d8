"""Tables from files."""

import pyarrow as pa
import pytest

from probjepa.tabular.files import read_table
from probjepa.tabular.rows import named_rows
from shard_cases import write_table


@pytest.mark.parametrize("suffix", ["parquet", "feather", "stream.arrow"])
def test_whole_numbers_of_ids_are_kept_beside_blanks(tmp_path, suffix):
    held = pa.table({"ID": pa.array([2**53 + 1, None, 3], pa.int64()), "x": [1.0, 2.0, 3.0]})
    write_table(tmp_path / f"x.{suffix}", held)
    frame = read_table(tmp_path / f"x.{suffix}", None, ["x"])
    assert named_rows(frame, ["x"])[1]["id"] == ["9007199254740993", "", "3"]
    assert frame["x"].tolist() == [1.0, 2.0, 3.0]
