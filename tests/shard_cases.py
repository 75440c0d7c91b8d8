"""A small model and small shards, which the tests of shards share."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import probjepa as pj
from probjepa.data.decode import Decoder
from probjepa.data.shard_files import Shard
from probjepa.data.shards import read_layout, read_shard
from probjepa.data.streams import Stream, open_training

needs_litdata = pytest.mark.skipif(
    importlib.util.find_spec("litdata") is None, reason="litdata (extra 'litdata') is not installed"
)


def small_model(folder: Path, seed: int = 0) -> Path:
    model = pj.VJE("convnet", channels=3, image_size=8, backbone_options={"widths": (4, 8)}, seed=seed).eval()
    model.save_pretrained(folder)
    return folder


def png(seed: int, side: int = 10) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def table(first: int, count: int, labels=("cat", "dog")) -> pa.Table:
    images = [{"bytes": png(first + row), "path": None} for row in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = [labels[(first + row) % len(labels)] for row in range(count)]
    return pa.table({"image": pa.array(images, kind), "label": names})


def write_shards(folder: Path, counts=(7, 5, 6), first: int = 0, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(counts):
        pq.write_table(table(first, count, **options), folder / f"part-{number}.parquet", row_group_size=4)
        first += count
    return folder


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_table(path: Path, held: pa.Table, rows: int = 4) -> None:
    """Parquet, or by its suffix an Arrow file (x.stream.arrow: a stream), of so many rows a group."""
    if path.suffix == ".parquet":
        pq.write_table(held, path, row_group_size=rows)
        return
    kind = pa.ipc.new_stream if ".stream" in path.name else pa.ipc.new_file
    with kind(str(path), held.schema) as writer:
        writer.write_table(held, max_chunksize=rows)


def write_shard(path: Path, rows: range) -> Path:
    """A file of some of the rows of ``table``, of the kind that its suffix says; a stream: x.stream.arrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = table(rows.start, len(rows))
    if path.suffix in (".tar", ".gz", ".tgz"):
        members = {}
        for row, label in zip(rows, held["label"].to_pylist(), strict=True):
            place = f"{row:03d}" if path.suffix == ".tar" else f"{label}/{row:03d}"
            members |= {f"{place}.png": png(row), f"{place}.json": b"{}"}
            if path.suffix == ".tar":  # the labels of compressed ones are folders
                members[f"{place}.cls"] = label.encode()
        write_tar(path, members, "w" if path.suffix == ".tar" else "w:gz")
    else:
        write_table(path, held)
    return path


def write_litdata(folder: Path, chunks, **options) -> Path:
    """Lists of items as litdata's chunks, each list one chunk."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=10**6, **options)
    number = 0
    for items in filter(None, chunks):
        for item in items:
            writer[number] = item
            number += 1
        writer.write_chunk(on_done=True)
    writer.done()
    writer.merge()
    return folder


def read_all(path, rows=3, labels=None, ids=None):
    """A shard's pixels, its columns, and how many rows came at a time."""
    shard = Shard(str(path), "x.parquet")
    batches = list(
        read_shard(shard, read_layout(shard, labels, ids), Decoder(8, 3), rows, labels=labels, ids=ids)
    )
    columns = {
        name: [value for batch in batches for value in batch.columns[name].to_pylist()]
        for name in batches[0].columns
    }
    return torch.cat([batch.images.images for batch in batches]), columns, [len(b.images) for b in batches]


def rows(folder: Path) -> pa.Table:
    """All output shards, one after the other."""
    tables = [pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))]
    return pa.concat_tables([one.replace_schema_metadata(None) for one in tables])


def assert_alike(mine: pa.Table, theirs: pa.Table) -> None:
    """The same columns; texts are equal, and numbers but for the order in which a batch adds up."""
    assert mine.schema == theirs.schema.remove_metadata()
    for name in mine.column_names:
        values, expected = mine[name].to_pylist(), theirs[name].to_pylist()
        if isinstance(expected[0], str):
            assert values == expected
        else:
            np.testing.assert_allclose(
                np.array(values, float), np.array(expected, float), rtol=1e-4, atol=1e-5
            )


def column(found: pa.Table, name: str) -> np.ndarray:
    return np.array(found[name].to_pylist(), dtype=np.float64)


@cache
def numbered_png(row: int) -> bytes:
    """An image that says which row it is: its number in base 16."""
    pixels = np.full((8, 8), row // 16, dtype=np.uint8)
    pixels[:4] = row % 16
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_numbered(folder: Path, counts, form="parquet", spoil=()) -> Path:
    """Shards whose images say which row they are of; those in ``spoil`` are none."""
    folder.mkdir(exist_ok=True)
    start, chunks = 0, []
    for shard, count in enumerate(counts):
        rows = [b"no image" if row in spoil else numbered_png(row) for row in range(start, start + count)]
        chunks.append([{"image": image, "label": row} for row, image in enumerate(rows)])
        place = folder / f"part-{shard:02d}.{form}"
        table = pa.table({"image": pa.array(rows, pa.binary()), "label": pa.array(range(count), pa.int64())})
        if form in ("parquet", "arrow"):
            write_table(place, table, rows=7 if form == "parquet" else 5)
        elif form.startswith("tar"):
            names = {f"{start + row:04d}.{end}": row for row in range(count) for end in ("cls", "png")}
            write_tar(
                place,
                {name: b"3" if name.endswith("cls") else rows[row] for name, row in names.items()},
                "w:gz" if form.endswith("gz") else "w",
            )
        start += count
    return write_litdata(folder, chunks) if form == "bin" else folder


def opened(folder: Path, **options) -> Stream:
    found = open_training(str(folder), **{"stream": True, "size": 8, "channels": 1} | options)
    assert isinstance(found, Stream)
    return found
