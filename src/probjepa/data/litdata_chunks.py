"""Chunks of litdata's optimised format, which litdata's own loader takes apart.

Images stay the files that they are, and are decoded as everywhere else. Nothing is unpickled: of litdata's
serializers those of ``_VALUES`` run alone, whatever an index names.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from probjepa.data.decode import as_payload
from probjepa.data.shard_files import INDEX, ShardError, chunk_index, file_mark, filesystem, is_remote
from probjepa.errors import MissingExtraError, short
from probjepa.files import regular

# litdata's names of what its leaves are, with Arrow's of the columns that they become
_FILES = ("bytes", "file", "image", "jpeg", "tiff", "tifffile")
_VALUES = {
    "pil": "binary", "numpy": "binary", "tensor": "binary",
    "str": "string", "text": "string", "int": "int64", "float": "double", "bool": "bool",
}  # fmt: skip
_NAMES = {"binary": "image", "string": "label", "int64": "label", "bool": "label"}  # of a tuple's
_DICTS = ("builtins.dict", "collections.OrderedDict")
_NODES = {None, "builtins.list", "builtins.tuple", *_DICTS}  # others name classes and functions

_index = lru_cache(maxsize=4)(lambda place, mark: chunk_index(place))


def open_chunk(path: str) -> tuple[Any, Callable[[int, list[str], int], Iterator[Any]], int]:
    """Return the Arrow schema of a chunk's items, what reads batches of them from a row on, and their number.

    The keys of an item are columns; a tuple's or a list's are "image", "label", and then its places.

    Raises
    ------
    ShardError
        for a chunk that no index.json beside it names, an encrypted one, and pickled values
    MissingExtraError
        without litdata, or for a compressed chunk without zstd
    """
    import pyarrow as pa

    place = os.path.join(os.path.dirname(path), INDEX)
    try:
        config, chunks = _index(place, file_mark(place))
    except ShardError as error:
        raise ShardError(f"'{path}' is read as a chunk of litdata's, but {error}") from error
    if (chunk := chunks.get(os.path.basename(path))) is None:
        raise ShardError(f"'{path}' is no chunk of litdata's: '{place}' does not name it")
    for what in ("encryption", "item_loader"):
        if config.get(what) not in (None, "PyTreeLoader"):
            raise ShardError(
                f"'{path}' has {what} {short(config[what])}, which is not read: write it without"
            )
    kinds = [name.partition(":")[0] for name in config["data_format"]]
    columns = _columns(path, json.loads(config["data_spec"])[1], kinds)
    try:
        from litdata.streaming import compression, item_loader, serializers
        from litdata.streaming.framed_zstd import is_in_file_compression
        from litdata.utilities._pytree import treespec_loads
    except ImportError:
        raise MissingExtraError("litdata", "litdata") from None
    compressor = compression._COMPRESSORS.get(config.get("compression"))
    if config.get("compression") and compressor is None:
        raise MissingExtraError(config["compression"].partition(":")[0], "litdata")
    if is_in_file_compression(config.get("compression_level")):
        compressor = None  # the loader has its own for parts of a chunk
    known, files, count = serializers._SERIALIZERS, serializers.BytesSerializer(), chunk["chunk_size"]
    safe = {kind: known[kind] if kind in _VALUES else files for kind in kinds}
    schema = pa.schema([(name, pa.type_for_alias(of)) for name, (_, of) in columns.items()])

    def batch(file: str, wanted: list[str], numbers: range) -> Any:
        loader = item_loader.PyTreeLoader(batch_decode=0)  # one that is kept would hold what it has read
        loader.setup({**config, "data_spec": treespec_loads(config["data_spec"])}, [chunk], safe)
        loader.set_mmap_allowed_chunks({0})
        held = list[dict[str, Any]]()
        for number in numbers:
            item = loader.load_item_from_chunk(number, 0, file, 0, 0)
            keys = {name: columns[name][0] for name in wanted}
            held.append({name: _cell(item if key is None else item[key]) for name, key in keys.items()})
        return pa.RecordBatch.from_pylist(held, pa.schema([schema.field(name) for name in wanted]))

    def read(rows: int, wanted: list[str], start: int) -> Iterator[Any]:
        with _mapped(path, compressor) as file:
            if (size := os.stat(file).st_size) < chunk["chunk_bytes"]:
                raise ShardError(f"'{path}' has {size} of {chunk['chunk_bytes']} bytes: copy it again")
            for first in range(start, count, rows):
                yield batch(file, wanted, range(first, min(first + rows, count)))

    return schema, read, count


def _columns(path: str, root: dict[str, Any], kinds: list[str]) -> dict[str, tuple[Any, str]]:
    """Column → its key in an item, None for an item that is one, and Arrow's name of its type."""
    if strange := set(_types(root)) - _NODES:
        raise ShardError(f"'{path}' has items of {', '.join(map(str, strange))}: write dicts or tuples")
    children, keys = root["children_spec"], list[Any](range(len(root["children_spec"])))
    if root["type"] in _DICTS:
        keys = json.loads(root["context"])
    elif root["type"] is None:
        children, keys = [root], [None]
    columns, at = dict[str, tuple[Any, str]](), 0
    for key, child in zip(keys, children, strict=True):
        leaves = kinds[at : (at := at + [*_types(child)].count(None))]
        if "pickle" in leaves:
            raise ShardError(f"'{path}': '{key}' is pickled, and that may run anything: write plain values")
        # the hub's {"bytes": …, "path": …}, or a leaf
        wrapped = child["type"] in _DICTS and "bytes" in json.loads(child["context"])
        kind = "bytes" if wrapped else leaves[0] if child["type"] is None else ""
        of = "binary" if kind in _FILES else _VALUES.get(kind, "null")
        name = _NAMES.get(of) if root["type"] not in _DICTS else None
        columns[str(key) if name is None or name in columns else name] = key, of
    return columns


def _types(node: dict[str, Any]) -> Iterator[Any]:
    yield node["type"]
    for child in node["children_spec"]:
        yield from _types(child)


def _cell(value: Any) -> Any:
    """A leaf as a cell of Arrow's: pixels as TIFF or .npy."""
    value, stream = value.get("bytes") if isinstance(value, dict) else value, io.BytesIO()
    if isinstance(value, Image.Image):
        value.save(stream, "tiff")
    elif isinstance(value, np.ndarray | torch.Tensor):
        np.save(stream, as_payload(value), allow_pickle=False)  # type: ignore[arg-type]
    return stream.getvalue() or (bytes(value) if isinstance(value, memoryview) else value)


@contextmanager
def _mapped(path: str, compressor: Any) -> Iterator[str]:
    """A chunk as a file to map: a copy without a name of one that is in a store, or compressed as a whole."""
    if compressor is None and not is_remote(path):
        yield str(regular(path))
        return
    with tempfile.TemporaryFile() as copy:
        system, name = filesystem(path)
        content = system.cat_file(name)
        copy.write(content if compressor is None else compressor.decompress(content))
        copy.flush()
        del content
        yield f"/dev/fd/{copy.fileno()}"
