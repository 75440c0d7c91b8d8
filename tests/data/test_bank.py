"""Shards of embeddings as one mapped array: the rows in order, a file of its own, one line for what is wrong."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probjepa.data.bank import open_bank
from probjepa.data.rows import as_column
from probjepa.errors import ArtifactError, DataError

ROWS = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)


def write(path, rows, column="embedding", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rows if isinstance(rows, pa.Array) else as_column(np.asarray(rows))
    pq.write_table(pa.table({"id": [str(i) for i in range(len(values))], column: values}), path, **options)


@pytest.fixture
def shards(tmp_path):
    for number, part in enumerate(np.split(ROWS, [100, 100, 500])):
        write(tmp_path / "shards" / f"{number}.parquet", part, row_group_size=70)
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    return tmp_path / "shards"


def test_a_bank_is_the_rows_of_all_shards_in_order(shards, tmp_path, monkeypatch):
    home = tmp_path / "tmp"
    home.mkdir()
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr("tempfile.tempdir", None)
    bank = open_bank(shards)
    assert isinstance(bank, np.memmap) and bank.dtype == np.float32 and not bank.flags.writeable
    np.testing.assert_array_equal(bank, ROWS)
    assert list(home.iterdir()) == []  # the space goes with the array
    kept = tmp_path / "bank.npy"
    np.testing.assert_array_equal(open_bank(shards, file=kept), ROWS)
    np.testing.assert_array_equal(np.load(kept, mmap_mode="r"), ROWS)
    with pytest.raises(ArtifactError, match="exists already: choose another file"):
        open_bank(shards, file=kept)


def test_lists_of_any_length_type_are_read(tmp_path):
    write(tmp_path / "a.parquet", pa.array(ROWS[:9].astype(np.float64).tolist()), column="h")
    np.testing.assert_array_equal(open_bank(tmp_path / "a.parquet", column="h"), ROWS[:9])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ROWS[:, :5], "has rows of 5 numbers, and those before it 6: embed all shards with one encoder"),
        (pa.array([[1.0], [1.0, 2.0]]), "lists of different lengths"),
        (pa.array([[1.0] * 6, None]), "lists of different lengths, or none"),
        (pa.array(["a", "b"]), "holds string values: choose a column of lists"),
        (pa.array([["a"], ["b"]]), "choose a column of lists of numbers"),
        (
            pa.array([[1.0] * 6, [None] + [1.0] * 5]),
            "null, NaN, Inf or a number beyond float32 in 1 of 2 rows",
        ),
        (
            pa.array([[1e300] * 6, [-1e39] * 6, [1.0] * 6]),
            "beyond float32 in 2 of 3 rows: embed the shard again",
        ),
        (np.full((2, 6), np.nan, np.float32), "in 2 of 2 rows"),
    ],
    ids=["width", "ragged", "missing", "texts", "lists of texts", "null", "large", "NaN"],
)
@pytest.mark.filterwarnings("error")
def test_a_shard_that_is_no_bank_is_one_line(shards, values, message):
    write(shards / "z.parquet", values)
    with pytest.raises(DataError, match=message) as error:
        open_bank(shards)
    assert "\n" not in str(error.value) and "z.parquet" in str(error.value)


def test_other_sources_are_one_line(shards, tmp_path):
    with pytest.raises(DataError, match=r"lacks the column 'h' \(it has id, embedding\)"):
        open_bank(shards, column="h")
    write(tmp_path / "empty" / "a.parquet", ROWS[:0])
    with pytest.raises(DataError, match="have no rows"):
        open_bank(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        open_bank(tmp_path / "nothing")
    (shards / "y.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as"):
        open_bank(shards)


def test_memory_does_not_grow_with_the_bank(tmp_path):
    rows = np.zeros((60_000, 32), dtype=np.float32)
    write(tmp_path / "a.parquet", rows)
    tracemalloc.start()
    open_bank(tmp_path / "a.parquet")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 3
