"""What the benchmark of redrawn cells does to a table."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import table_anomalies

TABLE = pd.DataFrame({"a": np.arange(40.0), "k": ["x", "y", None, "z"] * 10, "one": [7] * 40})


def test_so_many_cells_of_each_row_are_others():
    pool = TABLE[:20].assign(a=np.arange(100.0, 120))
    out, which = table_anomalies.redrawn(TABLE, pool, 2, 0)
    assert out.dtypes.equals(TABLE.dtypes) and which.shape == (40, 2)
    for i, column in enumerate(TABLE):
        drawn = (which == i).any(1)
        same = (out[column] == TABLE[column]) | (out[column].isna() & TABLE[column].isna())
        assert same[~drawn].all() and same[drawn].all() == (column == "one")  # which has no other value
        assert column == "one" or not same[drawn].any()
        assert set(out[column][drawn].dropna()) <= set(pool[column].dropna())


def test_shuffled_columns_keep_their_cells():
    out = table_anomalies.shuffled(TABLE, 0)
    assert out.dtypes.equals(TABLE.dtypes) and not out.equals(TABLE)
    for column in TABLE:
        assert sorted(map(str, out[column])) == sorted(map(str, TABLE[column]))


def test_trees_find_the_cell_that_its_row_does_not_allow():
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    table = pd.DataFrame({"a": a, "b": 2 * a, "k": np.where(a > 0, "up", "down")})
    broken = table.assign(k=np.where(a > 0, "down", "up"))[:50]
    cells = table_anomalies.trees(table, {"whole": table[:50], "broken": broken}, 0)
    assert cells["broken"].shape == (50, 3) and np.isfinite(cells["broken"]).all()
    assert (cells["broken"].argmax(1) == 2).mean() > 0.9
    assert cells["whole"].mean() < cells["broken"].mean()
