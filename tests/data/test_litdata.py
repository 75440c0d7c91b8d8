"""Chunks of litdata as shards: the rows of parquet, from any place on; what will not do is one line."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from probjepa.data import open_images
from probjepa.data.shard_files import Shard, ShardError, find_shards, holds_shards
from probjepa.data.shards import ShardRecords, read_layout
from probjepa.data.streams import open_training
from probjepa.errors import DataError, MissingExtraError
from probjepa.shards import Job, run_shards
from shard_cases import (
    needs_litdata,
    opened,
    png,
    read_all,
    rows,
    small_model,
    write_litdata,
)

LABELS = ["cat", "dog"]


def jpeg(seed):
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(seed))).save(stream, "jpeg", quality=95)
    return stream.getvalue()


def array(seed):
    return np.asarray(Image.open(io.BytesIO(png(seed))))


def a_jpeg(seed):
    from litdata import Jpeg

    return Jpeg(bytes=jpeg(seed))


def opened_image(content):
    return Image.open(io.BytesIO(content))


# what is written as row number n
ITEMS = {
    "png": lambda n: {"image": png(n), "label": n % 2, "id": f"r{n}"},
    "names": lambda n: {"image": png(n), "label": LABELS[n % 2], "id": f"r{n}"},
    "jpeg": lambda n: {"image": a_jpeg(n), "label": n % 2, "id": f"r{n}"},
    "pillow": lambda n: (opened_image(png(n)), n % 2),
    "list": lambda n: [opened_image(png(n)), LABELS[n % 2], 0.5],
    "numpy": lambda n: (array(n), n % 2),
    "turned": lambda n: (n % 2, png(n), "more"),
    "floats": lambda n: (torch.from_numpy(array(n).transpose(2, 0, 1) / np.float32(255)), n % 2),
    "tensor": lambda n: {"image": torch.from_numpy(array(n).copy()), "label": n % 2, "meta": {"a": [n]}},
    "image alone": png,
    "hub": lambda n: {"image": {"bytes": png(n), "path": f"{n}.png"}, "label": n % 2, "id": f"r{n}"},
    "more": lambda n: {"image": png(n), "label": n % 2, "boxes": [{"a": n, "b": "x"}], "id": f"r{n}"},
}


def expected(folder, what, count=7):
    """The same rows as parquet."""
    item = ITEMS[what](0)
    images = [(jpeg if what == "jpeg" else png)(n) for n in range(count)]
    columns = {"image": pa.array(images, pa.binary())}
    if what != "image alone":
        named = what in ("names", "list")
        columns["label"] = [LABELS[n % 2] if named else n % 2 for n in range(count)]
    if isinstance(item, dict) and "id" in item:
        columns["id"] = [f"r{n}" for n in range(count)]
    pq.write_table(pa.table(columns), folder / "chunk-0-0.bin.parquet")
    pixels, found, counts = read_all(folder / "chunk-0-0.bin.parquet")
    return (
        pixels,
        {name: [str(x).replace(".bin.parquet", ".bin") for x in found[name]] for name in found},
        counts,
    )


def chunks_of(folder, what="png", counts=(7,), **options):
    starts = np.cumsum([0, *counts])
    return write_litdata(
        folder,
        [
            [ITEMS[what](n) for n in range(first, first + count)]
            for first, count in zip(starts, counts, strict=False)
        ],
        **options,
    )


@needs_litdata
@pytest.mark.parametrize(
    ("what", "compression"),
    [
        *((what, None) for what in ITEMS),
        *((what, level) for what in ("png", "pillow", "floats") for level in ("chunk", "batch", "sample")),
    ],
)
def test_each_form_of_item_gives_the_rows_of_parquet(tmp_path, what, compression):
    options = {"compression": "zstd", "compression_level": compression} if compression else {}
    [shard] = find_shards(str(chunks_of(tmp_path / "in", what, **options)))
    held = open_images(tmp_path / "in", size=8)
    pixels, columns, counts = read_all(shard.path)
    wanted, known, numbers = expected(tmp_path, what)
    name = Path(shard.path).name
    assert torch.equal(pixels, wanted) and counts == numbers
    assert {key: [str(x).replace(name, "chunk-0-0.bin") for x in columns[key]] for key in columns} == known
    assert shard.name == f"{name[:-4]}.parquet"
    assert torch.equal(held.images, pixels) and held.skipped == []


@needs_litdata
def test_scores_and_rows_are_those_of_parquet(tmp_path):
    model = str(small_model(tmp_path / "model"))
    chunks_of(tmp_path / "in", counts=(6, 5, 7))
    (tmp_path / "parquet").mkdir()
    for number, (first, count) in enumerate(((0, 6), (6, 5), (11, 7))):
        table = [ITEMS["png"](n) for n in range(first, first + count)]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "parquet" / f"chunk-0-{number}.parquet")
    for name in ("in", "parquet"):
        job = Job(model, "score", device="cpu")
        assert run_shards(job, str(tmp_path / name), str(tmp_path / f"{name}-out"))["written"] == 3
    found = rows(tmp_path / "in-out")
    assert found.equals(rows(tmp_path / "parquet-out")) and found.num_rows == 18
    written = sorted(path.name for path in (tmp_path / "in-out").glob("*.parquet"))
    assert written == [f"chunk-0-{number}.parquet" for number in range(3)]


@needs_litdata
@pytest.mark.parametrize("compression", [None, "chunk"])
def test_a_store_gives_the_rows_of_the_folder(tmp_path, compression):
    options = {"compression": "zstd", "compression_level": compression} if compression else {}
    folder = chunks_of(tmp_path / "in", "pillow", counts=(4, 3), **options)
    fsspec.filesystem("memory").put(str(folder), f"/litdata-{compression}", recursive=True)
    found = find_shards(f"memory://litdata-{compression}")
    local = find_shards(str(folder))
    assert [shard.name for shard in found] == [shard.name for shard in local]
    for one, other in zip(found, local, strict=True):
        pixels, columns, _ = read_all(one.path)
        wanted, known, _ = read_all(other.path)
        assert torch.equal(pixels, wanted) and columns == known


@needs_litdata
def test_rows_are_counted_by_the_index_and_those_before_the_start_are_not_read(tmp_path, monkeypatch):
    from litdata.streaming.item_loader import PyTreeLoader

    [shard] = find_shards(str(chunks_of(tmp_path / "in")))
    seen, load = [], PyTreeLoader.load_item_from_chunk
    monkeypatch.setattr(
        PyTreeLoader, "load_item_from_chunk",
        lambda self, index, *rest: seen.append(index) or load(self, index, *rest),
    )  # fmt: skip
    layout = read_layout(shard)
    images = list(ShardRecords(shard, layout, None, None, start=5).images(64))
    assert seen == [5, 6] and images == [png(5), png(6)]
    Path(shard.path).write_bytes(b"")
    assert ShardRecords(shard, layout, None, None).count() == (7, ())
    assert seen == [5, 6]


LEAF = {"type": None, "context": None, "children_spec": []}


def indexed(folder, chunk=b"\0" * 40, kind="builtins.dict", **config):
    """A chunk with an index written by hand: no package is needed for that."""
    folder.mkdir(exist_ok=True)
    (folder / "chunk-0-0.bin").write_bytes(chunk)
    spec = {"type": kind, "context": '["image", "label"]', "children_spec": [LEAF, LEAF]}
    known = {
        "compression": None, "data_format": ["bytes", "int"], "data_spec": json.dumps([1, spec]),
        "encryption": None, "item_loader": "PyTreeLoader",
    }  # fmt: skip
    (folder / "index.json").write_text(
        json.dumps(
            {
                "chunks": [
                    {"chunk_bytes": len(chunk), "chunk_size": 4, "dim": None, "filename": "chunk-0-0.bin"}
                ],
                "config": known | config,
            }
        )
    )
    return folder


class Armed:
    """What unpickling it would do."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def a_default_dict(folder):
    """Whose index names a function that litdata's own reader would look up."""
    context = json.dumps({"default_factory_module": "this", "default_factory_name": "s", "dict_context": []})
    inner = {"type": "collections.defaultdict", "context": context, "children_spec": [LEAF]}
    spec = {"type": "builtins.tuple", "context": "null", "children_spec": [inner, LEAF]}
    return indexed(folder, data_spec=json.dumps([1, spec]))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: indexed(folder, data_format=["bytes", "pickle"]), "'label' is pickled"),
        (
            lambda folder: indexed(folder, encryption={"algorithm": "fernet"}),
            "has encryption .*, which is not read",
        ),
        (lambda folder: indexed(folder, item_loader="TokensLoader"), "has item_loader TokensLoader"),
        (a_default_dict, "collections.defaultdict"),
        (lambda folder: indexed(folder, data_spec=3), "cannot be read as .bin"),
    ],
)
def test_what_is_not_read_is_one_line(tmp_path, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    [shard] = find_shards(str(write(tmp_path / "in")))
    with pytest.raises(ShardError, match=message) as caught:
        read_layout(shard)
    assert "\n" not in str(caught.value) and "chunk-0-0.bin" in str(caught.value)
    assert "this" not in sys.modules


@needs_litdata
def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chunks_of_pickles = [[{"image": png(n), "label": Armed()} for n in range(3)]]
    [shard] = find_shards(str(write_litdata(tmp_path / "in", chunks_of_pickles)))
    with pytest.raises(ShardError, match="'label' is pickled"):
        read_layout(shard)
    content = pickle.dumps(Armed())  # in the place of an image, under a format that is read
    write_litdata(tmp_path / "two", [[(content, 1)]])
    index = json.loads((tmp_path / "two" / "index.json").read_text())
    for kind in ("graph:pickle", "bytes:pickle", "mesh:pickle", "no_header_numpy:14"):
        index["config"]["data_format"] = [kind, "int"]
        (tmp_path / "two" / "index.json").write_text(json.dumps(index))
        with pytest.raises(DataError):
            read_all(tmp_path / "two" / "chunk-0-0.bin")
    assert not Path("unpickled").exists()


@needs_litdata
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-5], r"chunk-0-0.bin' has \d+ of \d+ bytes: copy it again"),
        (lambda content: b"", r"chunk-0-0.bin' has 0 of \d+ bytes"),
        (lambda content: b"\xff" * len(content), "chunk-0-0.bin' cannot be read as .bin"),
    ],
)
def test_a_chunk_that_is_cut_short_or_broken_is_one_line(tmp_path, spoil, message):
    [shard] = find_shards(str(chunks_of(tmp_path / "in")))
    Path(shard.path).write_bytes(spoil(Path(shard.path).read_bytes()))
    with pytest.raises(ShardError, match=message) as caught:
        read_all(shard.path)
    assert "\n" not in str(caught.value)


@needs_litdata
def test_one_image_that_cannot_be_read_is_one_row(tmp_path):
    items = [{"image": b"no image" if n == 2 else png(n), "label": n} for n in range(5)]
    write_litdata(tmp_path / "in", [items])
    with pytest.raises(DataError, match=r"chunk-0-0.bin, row 2 is not an image that Pillow can read"):
        read_all(tmp_path / "in" / "chunk-0-0.bin")
    stream = opened(tmp_path / "in", on_error="skip", channels=3)
    assert len(stream.sample) == 4


def test_a_chunk_without_its_index_is_one_line(tmp_path):
    indexed(tmp_path / "in")
    (tmp_path / "in" / "index.json").unlink()
    chunk = tmp_path / "in" / "chunk-0-0.bin"
    with pytest.raises(ShardError, match=r"chunk-0-0.bin' .*index.json") as caught:
        read_layout(Shard(str(chunk), "x.parquet"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"holds no shards: .*\.bin beside litdata's index.json"):
        find_shards(str(tmp_path / "in"))
    with pytest.raises(DataError, match=r"index.json"):
        open_training(str(chunk))


def test_an_index_that_names_a_chunk_that_is_not_there_is_one_line(tmp_path):
    folder = indexed(tmp_path / "in")
    shutil.copy(folder / "chunk-0-0.bin", folder / "chunk-0-1.bin")
    (folder / "chunk-0-0.bin").unlink()
    with pytest.raises(DataError, match=r"index.json' names chunk-0-0.bin, which is not there"):
        find_shards(str(folder))


@pytest.mark.parametrize(
    "index", [None, "{}", "[1]", "no json", '{"chunks": [3], "config": {}}', '{"chunks": []}']
)
def test_other_files_of_that_ending_are_passed_over(tmp_path, index):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    if index is not None:
        (folder / "index.json").write_text(index)
    assert not holds_shards(str(folder))
    pq.write_table(pa.table({"image": [png(0)]}), folder / "a.parquet")
    assert [shard.name for shard in find_shards(str(folder))] == ["a.parquet"]
    beside = indexed(folder / "sub")
    (beside / "other.bin").write_bytes(b"weights")
    assert [shard.name for shard in find_shards(str(folder))] == ["a.parquet", "sub/chunk-0-0.parquet"]
    assert holds_shards(str(beside))


@pytest.mark.parametrize("skip", ["raise", "skip"])
def test_without_the_package_one_line_names_the_extra(tmp_path, monkeypatch, skip):
    folder = indexed(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "litdata", None)
    for name in [name for name in sys.modules if name.startswith("litdata.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"litdata is not installed.*probjepa\[litdata\]"):
        opened(folder, on_error=skip)
    with pytest.raises(MissingExtraError, match="litdata is not installed"):
        run_shards(Job("model", device="cpu", on_error=skip), str(folder), str(tmp_path / "out"))


@needs_litdata
def test_compressed_chunks_without_zstd_are_one_line(tmp_path, monkeypatch):
    import litdata.streaming.compression as module

    folder = chunks_of(tmp_path / "in", "pillow", compression="zstd", compression_level="chunk")
    monkeypatch.setattr(module, "_COMPRESSORS", {})
    with pytest.raises(MissingExtraError, match=r"zstd is not installed.*probjepa\[litdata\]"):
        read_layout(find_shards(str(folder))[0])
