"""``open_images``: from a string or a Python object to a set of uint8 images."""

from __future__ import annotations

import dataclasses
import glob
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from probjepa.data.decode import Decoder, Unreadable, array_layout, is_image
from probjepa.data.files import IMAGE_SUFFIXES, NPZ_SPLIT, SHARD_SUFFIXES, choose_arrays, suffix_of
from probjepa.data.fitting import SMALLEST_SIDE, Fit, side_and_fit
from probjepa.data.images import Images, ImageSet, StreamedImages
from probjepa.data.records import (
    ArrayRecords,
    Check,
    Records,
    attempt,
    default_workers,
    each,
    encode_labels,
    is_scalar,
)
from probjepa.data.shard_files import holds_shards, is_remote
from probjepa.errors import DataError
from probjepa.provenance import free_memory
from probjepa.registry import Registry
from probjepa.typed import settings_checked

_PEEK = 8  # rows looked at to estimate the decoded size

# Each takes what follows the scheme, or the path, and if it can "labels" and "ids"; it returns Records.
READERS = Registry(
    "data source",
    {
        "sklearn:": "probjepa.data.files:read_sklearn",
        "hf:": "probjepa.data.objects:read_hub",
        **dict.fromkeys(SHARD_SUFFIXES, "probjepa.data.shard_sets:read_shards"),
        ".csv": "probjepa.data.objects:read_csv",
        ".npz": "probjepa.data.files:read_npz",
        ".npy": "probjepa.data.files:read_npy",
        "folder": "probjepa.data.files:read_folder",
        "image": "probjepa.data.files:read_image",
        "shards": "probjepa.data.shard_sets:read_shards",
    },
    group="probjepa.sources",
)
_FORMS = (
    "an image file or folder, shards (.parquet, .arrow, .tar, …), .csv of paths, .npz, .npy, "
    "sklearn:digits or hf:NAME[:SPLIT]"
)


@settings_checked
def open_images(
    source: Any,
    *,
    size: int | Fit | None = None,
    channels: int | None = None,
    convert: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    labels: str | None = None,
    ids: str | None = None,
    progress: bool = False,
    workers: int | None = None,
    memory_limit: float | None = None,
) -> ImageSet | StreamedImages:
    """Open a set of images, decoded to uint8 (N, C, H, W).

    The set has 3 channels if any image is colour (grey ones are then repeated), else 1.

    Parameters
    ----------
    source
        ``sklearn:digits`` · a folder of images (sub-folders are labels) · shards: a file, a folder, a glob or
        an address (``s3://…``, by fsspec) of .parquet, .arrow, .feather and .ipc (Hugging Face layout), .tar,
        .tar.gz and .tgz (of image files and links to them; labels are in ``KEY.cls`` next to ``KEY.png``, or
        the first folder) and litdata's chunks in a folder · ``x.csv`` with a column of paths to images,
        relative to its folder, and perhaps of labels, which are names unless all are written as whole numbers
        · ``.npz[:SPLIT]`` / ``.npy`` · ``hf:NAME[:SPLIT]`` · one image file; or a numpy array, a torch
        tensor, a pair of one of these and its labels, a dict of "images" and "labels", a pandas DataFrame, a
        torch ``Dataset``, an opened set
    size
        resize the shorter side to this (bilinear, antialiased) and keep the centre square; or the way of an
        encoder trained elsewhere (its ``preprocess.opened``); None keeps the images, which must then share
        one size
    channels
        what the model takes, 1 or 3; another count in the set is an error, or converted with ``convert``
    convert
        allow grey ↔ RGB and drop alpha channels
    on_error
        "raise" at the first image that cannot be read, or "skip" it and list it in ``skipped``, as files of
        a folder that are no images always are, and links of a tar file that lead to no file in it
    labels
        the column (of .npz: the array) of labels, or "none" to leave labels out; None: one of a usual name
    ids
        the column of ids; None: one called id if its values are distinct, or else the rows' numbers
    progress
        show a bar on standard error
    workers
        decoding threads; None takes all cores where that is faster
    memory_limit
        bytes that the decoded set may take; a larger one is streamed. None: half of the free memory

    Raises
    ------
    DataError
        for a source that is missing, empty, unreadable, or not of the size and channels asked for
    ConfigError
        for a setting out of its range, or of another type
    MissingExtraError
        for ``hf:`` without the ``datasets`` package

    Examples
    --------
    >>> digits = open_images("sklearn:digits", size=16)
    >>> digits.images.shape, digits.labels.shape
    (torch.Size([1797, 1, 16, 16]), torch.Size([1797]))
    """
    side, fit = side_and_fit(size)
    decoder = Decoder(side, channels, convert, fit)
    chosen = {name: value for name, value in (("labels", labels), ("ids", ids)) if value is not None}
    if isinstance(source, ImageSet | StreamedImages):
        if chosen.keys() - {"labels"} or labels not in (None, "none"):
            raise DataError(f"{source.name} is opened: choose labels and ids where it is opened")
        source = dataclasses.replace(source, labels=None, classes=None) if chosen else source
    if isinstance(source, ImageSet | StreamedImages) and source.shape == _wanted(source, side, channels):
        return source
    if isinstance(source, StreamedImages):
        raise DataError(
            f"{source.name} is streamed as {source.shape}, {_wanted(source, side, channels)} is wanted: "
            "open the original source with this size and these channels"
        )
    if isinstance(source, str) and not source:  # as a path it would be the current folder
        raise DataError("the source of images is empty: give a path or an address")
    records = _records(source, chosen)
    if len(records) == 0:
        raise DataError(f"{records.name} holds no images: check the source")
    if isinstance(records, ArrayRecords) and (ready := _ready(records, decoder)) is not None:
        return ready
    shape = peek(records, decoder)
    limit = free_memory() // 2 if memory_limit is None else memory_limit
    workers = default_workers(shape[1] * shape[2]) if workers is None else workers
    opener = _stream if len(records) * int(np.prod(shape)) > limit else _load
    return opener(records, decoder, skip=on_error == "skip", progress=progress, workers=workers)


def as_images(source: Any, size: int | Fit | None = None) -> Images:
    """Return what ``open_images`` takes as a set of uint8 images for a model to prepare.

    An opened set, an array and a tensor keep the size that they have, and a uint8 tensor (N, 1 or 3, H, W)
    its device; of all else the shorter side is brought to ``size``, and the centre square kept.

    Raises
    ------
    DataError
        as ``open_images``; so for floats outside [0, 1], such as images that are normalised already
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, np.ndarray):
        return open_images(source)
    if not isinstance(source, torch.Tensor):
        return open_images(source, size=size)
    if source.dtype == torch.uint8 and source.ndim == 4 and source.shape[1] in (1, 3):
        return ImageSet(source.detach(), None, [str(row) for row in range(len(source))], name="tensor")
    return open_images(source)


def _records(source: Any, chosen: Mapping[str, str]) -> Records:
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        for scheme in (name for name in READERS if name.endswith(":")):
            if text.startswith(scheme) and not text.startswith("hf://"):
                return _read(READERS[scheme], text.removeprefix(scheme), chosen)
        return _path_records(text, chosen)
    if isinstance(source, ImageSet):
        records = ArrayRecords(source.name, source.images.numpy(), source.labels)
        records.ids, records.classes, records.skipped = source.ids, source.classes, source.skipped
        return records
    if isinstance(source, np.ndarray):
        return _read(lambda array: ArrayRecords("array", array), source, chosen)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
        return _read(lambda array: ArrayRecords("tensor", array), source, chosen)
    if isinstance(source, Mapping):
        images, values = choose_arrays(type(source).__name__, source, None, chosen.get("labels"))
        return _labelled(source[images], None if values is None else source[values], chosen)
    if isinstance(source, tuple) and len(source) == 2 and _are_labels(source[1]):
        return _labelled(*source, chosen)
    from probjepa.data.objects import read_object

    return _read(read_object, source, chosen)


def _read(reader: Callable[..., Any], source: Any, chosen: Mapping[str, str]) -> Records:
    """Call a reader with those of the chosen columns that it can take."""
    taken = {name: value for name, value in chosen.items() if name in inspect.signature(reader).parameters}
    records: Records = reader(source, **taken)
    for name in chosen.keys() - taken:
        if chosen[name] != "none":
            raise DataError(f"{records.name} has no columns: leave {name}={chosen[name]} out")
        records.labels = records.classes = None
    return records


def _labelled(images: Any, labels: Any, chosen: Mapping[str, str]) -> Records:
    """Records of images with their labels beside them."""
    if "ids" in chosen:
        raise DataError(f"images and labels have no columns: leave ids={chosen['ids']} out")
    records = _records(images, {})
    if labels is not None and chosen.get("labels") != "none":
        records.labels, records.classes = encode_labels(labels, records.name, len(records))
    return records


def _are_labels(value: Any) -> bool:
    """Whether the second of a pair has a label a row, and is no image."""
    if isinstance(value, str) or not hasattr(value, "__len__") or not len(value):
        return False
    return is_scalar(next(iter(value)))


def _path_records(text: str, chosen: Mapping[str, str]) -> Records:
    if is_remote(text):
        return _read(READERS["shards"], text, chosen)
    path = Path(text)
    suffix = suffix_of(text) or path.suffix.lower()
    if not path.exists():
        split = NPZ_SPLIT.fullmatch(text)
        if glob.has_magic(text) and suffix_of(text):
            kind = "shards"
        elif split and Path(split[1]).exists():
            kind = ".npz"
        else:
            raise DataError(f"no such file or folder: '{text}' (a data source is {_FORMS})")
    elif path.is_dir():
        kind = "shards" if holds_shards(text) else "folder"
    elif suffix in IMAGE_SUFFIXES or ((suffix not in READERS or suffix == ".bin") and is_image(path)):
        kind = "image"
    elif suffix in READERS:
        kind = suffix
    else:
        what = f"the suffix '{suffix}' is not supported" if suffix else "is no image of a known format"
        raise DataError(f"'{text}': {what}, a data source is {_FORMS}")
    return _read(READERS[kind], path, chosen)


def _ready(records: ArrayRecords, decoder: Decoder) -> ImageSet | None:
    """Take a uint8 array over as it is where nothing has to be decoded."""
    array = records.array
    layout = array_layout(array.shape[1:])
    if records.file is not None or array.dtype != np.uint8 or layout is None:
        return None
    if array.ndim == 4 and layout == "HW":
        return None
    array = {"HW": array[:, None], "CHW": array}.get(layout, np.moveaxis(array, -1, 1))
    shape = array.shape[1:]
    if shape[0] not in (1, 3) or min(shape[1:]) < SMALLEST_SIDE:
        return None
    if decoder.size not in (None, shape[1]) or (decoder.size is not None and shape[1] != shape[2]):
        return None
    if decoder.channels not in (None, shape[0]):
        return None
    images = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    return ImageSet(images, records.labels, records.ids, records.classes, records.name)


def _wanted(source: Images, size: int | None, channels: int | None) -> tuple[int, int, int]:
    return channels or source.channels, size or source.shape[1], size or source.shape[2]


def peek(records: Records, decoder: Decoder) -> tuple[int, int, int]:
    """Return the largest shape among the first readable rows: good enough to estimate the memory needed."""
    head = [
        attempt(records, decoder.header, row, payload)
        for row, payload in enumerate(next(iter(records.chunks(_PEEK)), ()))
    ]
    shapes = [shape for shape in head if not isinstance(shape, Unreadable)]
    return max(shapes, default=(3, 224, 224), key=lambda shape: shape[0] * shape[1] * shape[2])


def _load(records: Records, decoder: Decoder, *, skip: bool, progress: bool, workers: int) -> ImageSet:
    check = Check(records, decoder, skip)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    for row, image in each(records, decoder, workers=workers, progress=progress, text="decoding"):
        if isinstance(image, Unreadable):
            check.broken(row, image)
            continue
        check.add(row, image.shape)
        if pixels is None:
            pixels = np.empty((len(records), *image.shape), dtype=np.uint8)
        if image.shape[0] > pixels.shape[1]:  # the first colour image after grey ones
            wider = np.empty((len(records), *image.shape), dtype=np.uint8)
            wider[: len(check.rows)] = pixels[: len(check.rows)]
            pixels = wider
        pixels[len(check.rows) - 1] = image
    check.finish()
    assert pixels is not None
    keep = check.rows
    return ImageSet(torch.from_numpy(pixels[: len(keep)]), **_facts(records, check))


def _stream(
    records: Records, decoder: Decoder, *, skip: bool, progress: bool, workers: int
) -> StreamedImages:
    """Check every row once, its header only, or in full where broken ones are to be skipped."""
    records = records.seekable()
    check = Check(records, decoder, skip)
    look = (lambda payload: decoder(payload).shape) if skip else decoder.header
    for row, shape in each(records, look, workers=workers, progress=progress, text="checking"):
        if isinstance(shape, Unreadable):
            check.broken(row, shape)
        else:
            check.add(row, shape)
    check.finish()
    assert check.side is not None
    return StreamedImages(
        records,
        torch.tensor(check.rows),
        decoder,
        (check.channels, *check.side),
        workers=workers,
        **_facts(records, check),
    )


def _facts(records: Records, check: Check) -> dict[str, Any]:
    labels, ids = records.labels, records.ids
    return {
        "labels": None if labels is None else labels[check.rows],
        "ids": [ids[row] for row in check.rows],
        "classes": records.classes,
        "name": records.name,
        "skipped": check.skipped,
    }
