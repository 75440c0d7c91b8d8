"""Tables from files."""

import io
import os

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from probjepa.errors import DataError
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


@pytest.fixture
def months(tmp_path):
    """Two months, the second without rows in a part of it, and a file beside them."""
    home = tmp_path / "months"
    (home / "b").mkdir(parents=True)
    pd.DataFrame({"n": [1, 2], "code": ["01", "02"], "none": [None, None]}).to_csv(
        home / "a.csv", index=False
    )
    second = pd.DataFrame({"n": [2.5], "code": ["2A"], "none": [7.0]})
    second.to_parquet(home / "b" / "1.parquet", index=False)
    second[:0].to_parquet(home / "b" / "2.parquet", index=False)
    (home / "notes.txt").write_text("nothing")
    return home


def test_a_folder_is_the_rows_of_its_tables(months):
    found = read_table(months)
    assert found["n"].tolist() == [1, 2, 2.5] and found["code"].tolist() == ["01", "02", "2A"]
    assert found.index.tolist() == [0, 1, 2] and found["none"].isna().tolist() == [True, True, False]
    (months / "a.csv").write_text((months / "a.csv").read_text().replace(",", ";"))
    assert read_table(months, sep=";").equals(found)


@pytest.mark.parametrize(
    ("name", "of", "says"),
    [
        ("c.csv", "n,code\n1,2\n", r"c.csv' has other columns than '.*a.csv' \(missing: 'none'\)"),
        ("a.tsv", "n\tcode\tnone\n1\t2\t3\n", "a.csv' and '.*a.tsv' look like one table"),
        ("c.parquet", "no parquet", "c.parquet' cannot be read as parquet"),
    ],
)
def test_a_folder_of_tables_that_do_not_go_together_is_one_line(months, name, of, says):
    (months / name).write_text(of)
    with pytest.raises(DataError, match=says):
        read_table(months)


def test_ids_and_classes_of_a_folder_are_alike(tmp_path):
    (tmp_path / "a.csv").write_text("id,n,y\n1152921504606846977,1,1\n2,2,02\n")
    part = pd.DataFrame({"id": [7.0, None], "n": [3, 4], "y": [1.0, None]})
    part.to_parquet(tmp_path / "b.parquet", index=False)
    found = read_table(tmp_path, "y")
    assert named_rows(found, ["n"], "y")[1]["id"] == ["1152921504606846977", "2", "7", ""]
    assert found["y"].tolist()[:3] == ["1", "02", "1"] and found["y"].isna()[3]
    (tmp_path / "a.csv").write_text("id,n,y\nx,1,1\ny,2,2\n")
    part.assign(y=["1", "z"]).to_parquet(tmp_path / "b.parquet", index=False)
    assert read_table(tmp_path, "y")["y"].tolist() == ["1", "2", "1", "z"]


def test_names_of_a_file_of_arrow_are_texts_and_stand_once(tmp_path):
    wide = pd.DataFrame({("a", "b"): [1.0, 2.0], ("a", "c"): [3.0, 4.0]})
    wide.to_parquet(tmp_path / "wide.parquet")
    assert [*read_table(tmp_path / "wide.parquet")] == ["('a', 'b')", "('a', 'c')"]
    pd.DataFrame({"a": [1, 2]}, pd.Index([3, 4], name="a")).to_parquet(tmp_path / "twice.parquet")
    same = pa.table([[1], [2]], ["a", "a"])
    with pa.ipc.new_file(tmp_path / "same.arrow", same.schema) as file:
        file.write_table(same)
    for name in ("twice.parquet", "same.arrow"):
        with pytest.raises(DataError, match="several columns of one name: 'a': rename them"):
            read_table(tmp_path / name)


def png():
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (png(), "holds images"),
        ({"bytes": png(), "path": "a"}, "holds images"),
        ({"bytes": None, "path": "a.png"}, "holds images"),
        ({"bytes": 10, "packets": 1}, r"column 'odd' holds nested values or bytes"),
        (b"x", r"column 'odd' holds nested values or bytes: give one value a cell, or drop it"),
        ({"x": 1, "y": "a"}, r"column 'odd' holds nested values or bytes"),
    ],
)
def test_images_and_nested_cells_are_seen_behind_missing_ones(cell, says, tmp_path):
    pd.DataFrame({"n": [1, 2], "odd": [None, cell]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=says):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("place", ["https://example.org/x.csv", "s3://bucket/x.parquet"])
def test_an_address_is_no_file_of_a_table(place):
    with pytest.raises(DataError, match=f"'{place}' is an address, and tables are read from files"):
        read_table(place)


def test_columns_that_pandas_took_for_its_index_are_columns(tmp_path):
    frame = pd.DataFrame({"k": ["a", "b"], "x": [1, 2]})
    frame.set_index("k").to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").equals(frame)


def test_parts_that_differ_in_type_are_one_line(months, tmp_path):
    pd.DataFrame({"n": ["1"], "code": ["x"], "none": [None]}).to_parquet(months / "c.parquet", index=False)
    with pytest.raises(DataError, match=r"'n' holds texts in '.*c.parquet' and not in '.*1.parquet'"):
        read_table(months)
    pd.DataFrame({"k": [1, 2], "x": [1, 2]}).to_parquet(tmp_path / "hive", partition_cols=["k"])
    with pytest.raises(DataError, match=r"parted by folders \('k=1'\): write that column into the files"):
        read_table(tmp_path / "hive")


def test_a_folder_without_tables_or_text_is_one_line(months, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' holds no tables: they are files that end in .csv"):
        read_table(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no table of '.*b' is text: leave --sep out"):
        read_table(months / "b", sep=";")
    (months / "b" / "1.parquet").unlink()
    with pytest.raises(DataError, match="b' has 0 rows and 3 columns"):
        read_table(months / "b")


@pytest.mark.parametrize("suffix", ["feather", "stream.arrow"])
def test_an_arrow_table_is_not_mapped_and_its_name_may_be_no_text(tmp_path, suffix, monkeypatch):
    # of a file that is mapped, what is cut off meanwhile ends the process
    monkeypatch.setattr(pa, "memory_map", None)
    held = pa.table({"x": [float(row) for row in range(9)]})
    write_table(tmp_path / f"x.{suffix}", held)
    path = tmp_path / f"caf\udce9.{suffix}"
    (tmp_path / f"x.{suffix}").rename(path)
    assert read_table(path)["x"].tolist() == held["x"].to_pylist()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="cannot be read as") as error:
        read_table(path)
    assert "\n" not in str(error.value)
