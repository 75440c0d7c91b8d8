"""A small model and small shards, which the tests of shards share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import probjepa as pj


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


def rows(folder: Path) -> pa.Table:
    """All output shards, one after the other."""
    tables = [pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))]
    return pa.concat_tables([one.replace_schema_metadata(None) for one in tables])


def column(found: pa.Table, name: str) -> np.ndarray:
    return np.array(found[name].to_pylist(), dtype=np.float64)
