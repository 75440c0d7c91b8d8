"""A small model and small shards, which the tests of shards share."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

import probjepa as pj
from probjepa.data.streams import Stream, open_training


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


def write_shards(folder: Path, counts=(7, 5, 6), **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
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


def write_shard(path: Path, rows: range) -> Path:
    """A file of some of the rows of ``table``, of the kind that its suffix says; a stream: x.stream.arrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = table(rows.start, len(rows))
    if path.suffix == ".parquet":
        pq.write_table(held, path, row_group_size=4)
    elif path.suffix in (".tar", ".gz", ".tgz"):
        members = {}
        for row, label in zip(rows, held["label"].to_pylist(), strict=True):
            place = f"{row:03d}" if path.suffix == ".tar" else f"{label}/{row:03d}"
            members |= {f"{place}.png": png(row), f"{place}.json": b"{}"}
            if path.suffix == ".tar":  # the labels of compressed ones are folders
                members[f"{place}.cls"] = label.encode()
        write_tar(path, members, "w" if path.suffix == ".tar" else "w:gz")
    else:
        kind = pa.ipc.new_stream if ".stream" in path.name else pa.ipc.new_file
        with kind(str(path), held.schema) as writer:
            writer.write_table(held, max_chunksize=4)
    return path


def rows(folder: Path) -> pa.Table:
    """All output shards, one after the other."""
    tables = [pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))]
    return pa.concat_tables([one.replace_schema_metadata(None) for one in tables])


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
    start = 0
    for shard, count in enumerate(counts):
        rows = [b"no image" if row in spoil else numbered_png(row) for row in range(start, start + count)]
        place = folder / f"part-{shard:02d}.{form}"
        table = pa.table({"image": pa.array(rows, pa.binary()), "label": pa.array(range(count), pa.int64())})
        if form == "parquet":
            pq.write_table(table, place, row_group_size=7)
        elif form == "arrow":
            with pa.ipc.new_file(str(place), table.schema) as writer:
                writer.write_table(table, max_chunksize=5)
        else:
            names = {f"{start + row:04d}.{end}": row for row in range(count) for end in ("cls", "png")}
            write_tar(
                place,
                {name: b"3" if name.endswith("cls") else rows[row] for name, row in names.items()},
                "w:gz" if form.endswith("gz") else "w",
            )
        start += count
    return folder


def opened(folder: Path, **options) -> Stream:
    found = open_training(str(folder), **{"stream": True, "size": 8, "channels": 1} | options)
    assert isinstance(found, Stream)
    return found
