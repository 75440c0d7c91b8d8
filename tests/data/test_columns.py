"""Which column holds images, labels and ids; splits of .npz files; pairs, dicts and other Python objects."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from probjepa import VJE, fit
from probjepa.data import open_images
from probjepa.errors import DataError

COUNT = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16), dtype=np.uint8)
COARSE, FINE = [row % 2 for row in range(COUNT)], [f"f{row % 3}" for row in range(COUNT)]
NAMES = [f"n{row}" for row in range(COUNT)]


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


COLUMNS = {"image": [encoded(x) for x in PIXELS], "label": COARSE, "fine": FINE, "file": NAMES}


class Rows(torch.utils.data.Dataset):
    """Rows as a user's own data set gives them."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return COUNT

    def __getitem__(self, row):
        return self.row(row)


class FakeHub:
    """Stands for a datasets.Dataset."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)
        self.features = {name: SimpleNamespace() for name in columns}

    def __len__(self):
        return COUNT

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {k: v[key] for k, v in self.columns.items()}


def tables(folder, columns):
    """The same columns in every form that has names."""
    pq.write_table(pa.table(columns), folder / "x.parquet")
    for row, content in enumerate(columns["image"]):
        if content is not None:
            (folder / f"{row}.png").write_bytes(content)
    paths = [None if content is None else f"{row}.png" for row, content in enumerate(columns["image"])]
    pd.DataFrame({**columns, "image": paths}).to_csv(folder / "x.csv", index=False)
    return {
        "csv": folder / "x.csv",
        "parquet": folder / "x.parquet",
        "frame": pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()}),
        "hub": FakeHub(columns),
        "rows": Rows(lambda row: {name: values[row] for name, values in columns.items()}),
    }


KINDS = ["parquet", "frame", "hub", "rows", "csv"]


def row_names(kind):
    """The ids where no column has them: the paths of a .csv, else the rows' numbers."""
    return [f"{row}.png" if kind == "csv" else str(row) for row in range(COUNT)]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_label_and_id_columns_can_be_chosen(tmp_path, kind, limit):
    source = tables(tmp_path, COLUMNS)[kind]
    opened = open_images(source, memory_limit=limit)
    assert opened.labels.tolist() == COARSE and opened.ids == row_names(kind)
    opened = open_images(source, labels="fine", ids="file", memory_limit=limit)
    assert [opened.classes[label] for label in opened.labels] == FINE and opened.ids == NAMES
    assert torch.equal(opened.get([3])[0, 0], torch.from_numpy(PIXELS[3]))
    opened = open_images(source, labels="none", memory_limit=limit)
    assert opened.labels is None and opened.classes is None
    for wanted in ({"labels": "kind"}, {"ids": "kind"}):
        with pytest.raises(DataError, match=r"no column 'kind' \(columns: .*file"):
            open_images(source, memory_limit=limit, **wanted)


@pytest.mark.parametrize("kind", ["parquet", "frame", "hub", "csv"])
def test_a_column_called_id_names_the_rows_if_it_can(tmp_path, kind):
    source = tables(tmp_path, {**COLUMNS, "Id": NAMES})[kind]
    assert open_images(source).ids == NAMES
    for bad, message in ((["a"] * COUNT, "the id of row 0 again"), ([None, *NAMES[1:]], "row 0 has no id")):
        source = tables(tmp_path, {**COLUMNS, "Id": bad})[kind]
        assert open_images(source).ids == row_names(kind)
        with pytest.raises(DataError, match=message):
            open_images(source, ids="Id")


@pytest.mark.parametrize("kind", ["parquet", "frame", "hub", "csv"])
def test_images_are_found_behind_empty_rows(tmp_path, kind):
    images = [None] * 10 + COLUMNS["image"][10:]
    source = tables(tmp_path, {"note": ["x"] * COUNT, "image": images})[kind]
    opened = open_images(source, on_error="skip")
    assert opened.ids == ["10", "11"] and len(opened.skipped) == 10
    with pytest.raises(DataError, match="row 0 holds no image"):
        open_images(source)


def test_arrays_have_no_columns():
    for source in (PIXELS, torch.from_numpy(PIXELS), "sklearn:digits", open_images(PIXELS)):
        for wanted in ({"labels": "fine"}, {"ids": "file"}):
            with pytest.raises(DataError, match=r"no columns|is opened"):
                open_images(source, **wanted)
        assert open_images(source, labels="none").labels is None


@pytest.mark.parametrize("row", [
    lambda i: (PIXELS[i], COARSE[i], NAMES[i]),
    lambda i: [PIXELS[i], torch.tensor(COARSE[i]), NAMES[i], {"more": 1}],
    lambda i: {"image": PIXELS[i], "label": COARSE[i], "name": NAMES[i]},
])  # fmt: skip
def test_rows_of_more_than_two_keep_their_labels(row):
    for source in (Rows(row), [row(i) for i in range(COUNT)]):
        opened = open_images(source)
        assert opened.labels.tolist() == COARSE
        assert torch.equal(opened.images[:, 0], torch.from_numpy(PIXELS))
        assert open_images(source, labels="none").labels is None


def test_views_are_no_labels():
    assert open_images(Rows(lambda i: (PIXELS[i], PIXELS[i], NAMES[i]))).labels is None


PAIRS = {
    "arrays": (PIXELS, np.array(COARSE)),
    "column": (PIXELS, np.array(COARSE)[:, None]),
    "tensors": (torch.from_numpy(PIXELS), torch.tensor(COARSE)),
    "lists": ([Image.fromarray(x) for x in PIXELS], COARSE),
    "series": (PIXELS, pd.Series(COARSE, index=range(5, 5 + COUNT))),
    "dict": {"images": PIXELS, "labels": COARSE},
    "other dict": {"x": torch.from_numpy(PIXELS), "y": torch.tensor(COARSE), "more": 1},
}


@pytest.mark.parametrize("name", PAIRS)
def test_images_with_their_labels(name):
    opened = open_images(PAIRS[name])
    assert opened.labels.tolist() == COARSE
    assert torch.equal(opened.images[:, 0], torch.from_numpy(PIXELS))
    assert open_images(PAIRS[name], labels="none").labels is None
    method = VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (4, 8)})
    fit(method, PAIRS[name], epochs=1, batch_size=6, progress=False, val=PAIRS[name])


def test_pairs_must_fit():
    with pytest.raises(DataError, match="12 images but labels of shape"):
        open_images((PIXELS, COARSE[:5]))
    two = open_images((PIXELS[0], PIXELS[1]))
    assert len(two) == 2 and two.labels is None
    assert open_images((PIXELS, np.array(FINE))).classes == ["f0", "f1", "f2"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(PIXELS)

    def __len__(self):
        return COUNT


class DatasetDict(dict):
    """Stands for that of datasets."""


@pytest.mark.parametrize("source", [
    Stream(), iter([1]), (x for x in PIXELS), 3, object(),
    DatasetDict(train=FakeHub(COLUMNS), test=FakeHub(COLUMNS)), DatasetDict(train=FakeHub(COLUMNS)), {}, {"a": 1},
])  # fmt: skip
def test_what_is_no_set_is_refused_in_one_line(source):
    method = VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (4, 8)})
    for take in (open_images, lambda data: fit(method, data, epochs=1, progress=False)):
        with pytest.raises(DataError) as error:
            take(source)
        assert "\n" not in str(error.value) and type(source).__name__ in str(error.value)
        if isinstance(source, DatasetDict):
            assert "data['train']" in str(error.value)


@pytest.mark.parametrize("style", ["{key}_{split}", "{split}_{key}"])
def test_npz_with_splits_asks_which(tmp_path, style):
    keys = ("x", "y") if style.startswith("{key}") else ("images", "labels")
    named = {(key, split): style.format(key=key, split=split) for key in keys for split in ("train", "test")}
    train, test = slice(0, 8), slice(8, COUNT)
    content = {}
    for split, rows in (("train", train), ("test", test)):
        content |= {named[keys[0], split]: PIXELS[rows], named[keys[1], split]: COARSE[rows]}
    path = tmp_path / "x.npz"
    np.savez(path, **content)
    with pytest.raises(DataError, match=r"several splits \(train, test\): choose one, such as .*x\.npz:test"):
        open_images(path)
    for split, rows in (("train", train), ("test", test)):
        opened = open_images(f"{path}:{split}")
        assert torch.equal(opened.images[:, 0], torch.from_numpy(PIXELS[rows]))
        assert opened.labels.tolist() == COARSE[rows] and opened.name == f"{path}:{split}"
    with pytest.raises(DataError, match="it has no 'val'"):
        open_images(f"{path}:val")
    with pytest.raises(DataError, match="no such file"):
        open_images(f"{tmp_path}/y.npz:val")
    np.savez(path, **{name: values for name, values in content.items() if "test" in name})
    assert len(open_images(path)) == COUNT - 8


def test_npz_arrays_can_be_chosen(tmp_path):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=COARSE, fine=FINE, name=NAMES)
    opened = open_images(tmp_path / "x.npz", labels="fine", ids="name")
    assert [opened.classes[label] for label in opened.labels] == FINE and opened.ids == NAMES
    assert open_images(tmp_path / "x.npz", labels="none").labels is None
    with pytest.raises(DataError, match="no array 'kind'"):
        open_images(tmp_path / "x.npz", labels="kind")


def test_hub_rows_name_no_file_outside(tmp_path, monkeypatch):
    folder, secret = tmp_path / "set", tmp_path / "secret.png"
    folder.mkdir()
    for path in (folder / "a.png", secret):
        path.write_bytes(COLUMNS["image"][0])
    paths = [str(folder / "a.png"), str(secret), str(folder / ".." / "secret.png")] + [None] * (COUNT - 3)
    data = FakeHub({"image": [{"bytes": None, "path": path} for path in paths]})
    hub = SimpleNamespace(load_dataset=lambda *_, **__: data)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    opened = open_images(f"hf:{folder}", on_error="skip")
    assert opened.ids == ["0"]
    assert "not of this set" in opened.skipped[0] and "not of this set" in opened.skipped[1]


def test_class_names_of_the_chosen_column(tmp_path):
    features = {"info": {"features": {"fine": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": COLUMNS["image"], "label": COARSE, "fine": COARSE})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "x.parquet"
    )
    assert open_images(tmp_path / "x.parquet", labels="fine").classes == ["a", "b"]
