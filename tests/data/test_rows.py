"""The parquet tables of embeddings and scores, read back with pyarrow."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from probjepa.data.rows import identity, open_table
from probjepa.errors import ArtifactError


def test_rows_are_appended_and_read_back(tmp_path):
    file = tmp_path / "rows.parquet"
    blocks = [np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((1, 2), np.float32)]
    with open_table(file, overwrite=False) as table:
        for number, block in enumerate(blocks):
            table.write({"id": [f"{number}-{i}" for i in range(len(block))], "embedding": block})
        assert not file.exists()
    found = pq.read_table(file)
    assert found.column("id").to_pylist() == ["0-0", "0-1", "0-2", "1-0"]
    assert found.schema.field("embedding").type.list_size == 2
    np.testing.assert_array_equal(np.stack(found.column("embedding").to_pylist()), np.concatenate(blocks))


def test_a_table_that_fails_leaves_nothing_and_one_that_is_there_stays(tmp_path):
    file = tmp_path / "rows.parquet"
    with pytest.raises(TypeError), open_table(file, overwrite=False) as table:
        table.write({"x": np.zeros(3), "y": 1})
    assert list(tmp_path.iterdir()) == []
    for value in (1, 2):
        with open_table(file, overwrite=value > 1) as table:
            table.write({"x": np.full(3, value)})
    with pytest.raises(ArtifactError, match=r"rows\.parquet"), open_table(file, overwrite=False):
        pass
    assert pq.read_table(file).column("x").to_pylist() == [2, 2, 2]


def test_identity_has_the_class_names_where_they_are_known():
    images = SimpleNamespace(ids=["a", "b", "c"], labels=None, classes=None)
    assert identity(images, slice(1, 3)) == {"id": ["b", "c"]}
    images.labels = torch.tensor([1, 0, 1])
    assert identity(images, slice(1, 3))["label"].to_pylist() == [0, 1]
    images.classes = ["cat", "dog"]
    assert identity(images, slice(None))["label"].to_pylist() == ["dog", "cat", "dog"]


@pytest.mark.parametrize(("classes", "kind"), [(None, "int64"), (["cat", "dog"], "string")])
def test_an_unlabelled_row_has_no_label_and_the_column_its_type(classes, kind, tmp_path):
    images = SimpleNamespace(ids=["a", "b", "c"], labels=torch.tensor([-1, -1, 1]), classes=classes)
    with open_table(tmp_path / "x.parquet", overwrite=False) as table:
        table.write(identity(images, slice(0, 2)))  # the first part has none at all
        table.write(identity(images, slice(2, 3)))
    column = pq.read_table(tmp_path / "x.parquet").column("label")
    assert (column.to_pylist(), str(column.type)) == ([None, None, classes[1] if classes else 1], kind)
