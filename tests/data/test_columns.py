"""Which column holds images, labels and ids; splits of .npz files; pairs, dicts and other Python objects."""

import io
import json
import shutil
import sys
import tarfile
import time
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
from probjepa.data.labels import shared_labels
from probjepa.errors import DataError, ProbjepaWarning

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


@pytest.mark.parametrize("kind", KINDS)
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
    lambda i: {0: PIXELS[i], "label": COARSE[i], 1: NAMES[i]},
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


class Single(torch.utils.data.Dataset):
    """Images in one file that is read by one handle, and which must not be read by two threads at once."""

    def __init__(self, kind, folder):
        self.kind, self.inside, self.pixels = kind, 0, large_pixels()
        (folder / "raw").write_bytes(self.pixels.tobytes())
        with tarfile.open(folder / "x.tar", "w") as tar:
            for row, image in enumerate(self.pixels):
                info, content = tarfile.TarInfo(f"{row}.png"), encoded(image)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        self.raw, self.tar = open(folder / "raw", "rb"), tarfile.open(folder / "x.tar")  # noqa: SIM115
        self.members = self.tar.getmembers()

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, row):
        if self.kind == "lazy":  # Pillow reads the file when the image is decoded
            return Image.open(self.tar.extractfile(self.members[row]))
        self.inside += 1
        self.raw.seek(row * self.pixels[0].nbytes)
        time.sleep(1e-4)
        image = np.frombuffer(self.raw.read(self.pixels[0].nbytes), np.uint8).reshape(self.pixels[0].shape)
        assert self.inside == 1
        self.inside -= 1
        return image

    def close(self):
        self.raw.close()
        self.tar.close()


def large_pixels():
    return np.random.default_rng(1).integers(0, 256, (300, 96, 96), dtype=np.uint8)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("kind", ["raw", "lazy"])
def test_a_data_set_is_read_in_one_thread(tmp_path, kind, limit):
    data = Single(kind, tmp_path)
    for _ in range(3):
        opened = open_images(data, workers=8, memory_limit=limit)
        assert torch.equal(opened.get(range(300))[:, 0], torch.from_numpy(data.pixels))
    data.close()


def test_one_opened_image_may_be_asked_for_many_times(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 500, 500), dtype=np.uint8)
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{row}.jpg")
    pixels = open_images(tmp_path).images
    for _ in range(20):  # Pillow decodes the very object that is in the list, which no two threads may
        images = [Image.open(tmp_path / f"{row}.jpg") for row in range(2)]
        found = open_images(images, workers=8, memory_limit=1).get([0] * 16 + [1] + [0] * 16)
        assert torch.equal(found, pixels[[0] * 16 + [1] + [0] * 16])


def test_an_image_whose_file_is_broken_is_one_row():
    def lazy(row):
        content = encoded(PIXELS[row])
        return Image.open(io.BufferedReader(io.BytesIO(content[:-60] if row == 3 else content)))

    for limit in (None, 1):
        opened = open_images(Rows(lazy), on_error="skip", memory_limit=limit)
        assert len(opened) == COUNT - 1 and "row 3 cannot be decoded" in opened.skipped[0]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize(("ids", "message"), [
    (["a"] * COUNT, "row 1 has the id of row 0 again in 'id'"), ([None, *NAMES[1:]], "row 0 has no id in 'id'"),
    ([*NAMES[:-1], float("nan")], "row 11 has no id"), ([1, "1", *NAMES[2:]], "row 1 has the id of row 0 again"),
])  # fmt: skip
def test_ids_of_a_data_set_name_single_rows(ids, message, limit):
    rows = Rows(lambda i: {"image": PIXELS[i], "id": ids[i]})
    assert open_images(rows, memory_limit=limit).ids == [str(row) for row in range(COUNT)]
    with pytest.raises(DataError, match=message) as error:
        open_images(rows, ids="id", memory_limit=limit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("limit", [None, 1])
def test_ids_of_a_data_set_are_those_of_the_rows_that_can_be_read(limit):
    broken = {2: None, 5: np.zeros((2, 2), np.uint8)}
    ids = [*NAMES[:2], "n0", *NAMES[3:]]  # of a row that is left out

    def row(i):
        if i == 7:
            raise ValueError("boom\nand more")
        return {"image": broken.get(i, PIXELS[i]), "id": torch.tensor(100 + i) if i == 4 else ids[i]}

    kept = [i for i in range(COUNT) if i not in (5, 7)]
    with pytest.raises(DataError, match="no column holds images"):
        open_images(Rows(row), on_error="skip", memory_limit=limit)
    broken[2] = PIXELS[2]
    ids[2] = NAMES[2]
    opened = open_images(Rows(row), on_error="skip", memory_limit=limit)
    assert opened.ids == ["104" if i == 4 else NAMES[i] for i in kept]
    assert "row 7 fails to load (ValueError: boom)" in opened.skipped[1]


def test_ids_of_a_frame_may_be_missing():
    frame = pd.DataFrame({"image": COLUMNS["image"], "id": pd.array([None, *range(1, COUNT)], dtype="Int64")})
    assert open_images(frame).ids == [str(row) for row in range(COUNT)]
    with pytest.raises(DataError, match="row 0 has no id"):
        open_images(frame, ids="id")
    frame["id"] = [np.array([row, row]) for row in range(COUNT)]
    assert open_images(frame).ids[3] == "[3 3]"


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("label", [
    torch.arange(40), np.arange(40), [0, 1, 1], [[1], [2, 3]], {"boxes": [1]}, PIXELS[0], Image.fromarray(PIXELS[0]),
], ids=lambda label: type(label).__name__)  # fmt: skip
def test_a_label_of_many_values_is_one_line(label, limit):
    kind = type(label).__name__
    for make in (lambda i: (PIXELS[i], label), lambda i: {"image": PIXELS[i], "label": label}):
        rows = Rows(lambda i, make=make: make(i) if i > 2 else (PIXELS[i], 1))
        if isinstance(label, np.ndarray | Image.Image) and isinstance(make(0), dict) and np.ndim(label) > 1:
            continue  # another image
        with pytest.raises(DataError, match=f"Rows, row 3 has a {kind} for a label.*labels='none'") as error:
            open_images(rows, memory_limit=limit)
        assert "\n" not in str(error.value)
        assert open_images(rows, labels="none", memory_limit=limit).labels is None


@pytest.mark.parametrize("labels", [
    [[1, 2]] * COUNT, [[1], [2, 3]] * (COUNT // 2), [np.zeros((2, 3)), np.zeros((2, 4))] * (COUNT // 2), [10**30] * COUNT,
    [float("inf")] * COUNT, [np.inf, 1.0] * (COUNT // 2),
], ids=["vectors", "ragged", "arrays", "large", "inf", "some inf"])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_column_of_other_labels_is_one_line(labels):
    frame = pd.DataFrame({"image": COLUMNS["image"], "label": pd.Series(labels, dtype=object)})
    hub = FakeHub({"image": COLUMNS["image"], "label": labels})
    for source in (frame, hub, {"images": PIXELS, "labels": labels}):
        with pytest.raises(DataError, match=r"label.*--labels none") as error:
            open_images(source)
        assert "\n" not in str(error.value)
        assert open_images(source, labels="none").labels is None


@pytest.mark.parametrize(("texts", "classes"), [
    (["007", "7", "1_0"], ["007", "1_0", "7"]), (["00", "01", "02"], ["00", "01", "02"]), (["1", "+2", "3"], ["+2", "1", "3"]),
    ([" 1", "2", "3"], [" 1", "2", "3"]), (["٣", "1", "2"], ["1", "2", "٣"]), (["-0", "1", "2"], ["-0", "1", "2"]),
    (["1" * 5000, "1", "2"], ["1", "1" * 5000, "2"]), (["9" * 19, "1", "2"], ["1", "2", "9" * 19]),
    (["10", "2", "-3"], None), (["0", "", "9" * 18], None),
])  # fmt: skip
def test_labels_of_a_csv_are_numbers_only_where_all_are_written_as_such(tmp_path, texts, classes):
    for row in range(3):
        (tmp_path / f"{row}.png").write_bytes(COLUMNS["image"][row])
    lines = [f"{row}.png,{text}" for row, text in enumerate(texts)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    opened = open_images(tmp_path / "x.csv")
    assert opened.classes == classes
    expected = [classes.index(x) if classes else int(x or -1) for x in texts]
    assert opened.labels.tolist() == expected


def test_classes_of_a_csv_are_those_of_the_folders_of_their_names(tmp_path):
    for row in range(4):
        (tmp_path / f"{row:02d}").mkdir()
        (tmp_path / f"{row:02d}" / "a.png").write_bytes(COLUMNS["image"][row])
    (tmp_path / "x.csv").write_text(
        "\n".join(["path,label", *(f"{row:02d}/a.png,{row:02d}" for row in range(3))])
    )
    table = open_images(tmp_path / "x.csv")
    shutil.rmtree(tmp_path / "00")
    (tmp_path / "x.csv").unlink()
    folder = open_images(tmp_path)
    with pytest.warns(ProbjepaWarning, match="lack 00"):
        shared = shared_labels(folder, table)
    assert shared.asked.tolist() == [3, 0, 1] and shared.absent == ["00"]
