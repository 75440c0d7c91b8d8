"""Readers of files: folders of images, .npz and .npy arrays, and scikit-learn's digits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probjepa.data.decode import is_image
from probjepa.data.records import ArrayRecords, FileRecords, Records
from probjepa.data.tables import chosen_ids, id_column
from probjepa.errors import DataError, counted, unknown_name
from probjepa.files import array_reason, regular
from probjepa.registry import imported

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".avif", ".jp2", ".j2k",
)  # fmt: skip
SHARD_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc", ".tar", ".tar.gz", ".tgz", ".bin")
NPZ_SPLIT = re.compile(r"(.+\.npz):(\w+)", re.IGNORECASE)
_IMAGE_KEYS = ("images", "image", "x", "X", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "Y", "targets", "target", "arr_1")
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


def read_sklearn(name: str) -> Records:
    """Read ``digits``: 1,797 handwritten digits, 8×8, whose values 0..16 become 0..255."""
    if name != "digits":
        raise unknown_name("scikit-learn image set", name, ["digits"])
    digits = imported("sklearn.datasets").load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    records = ArrayRecords("sklearn:digits", pixels, digits.target)
    records.classes = [str(digit) for digit in range(10)]
    return records


def read_folder(path: Path, labels: str | None = None, ids: str | None = None) -> Records:
    """Read the images below a folder; those in a sub-folder have its name as their label.

    The label is the first folder below ``path``; "none" leaves labels out. Links are followed, hidden files
    and folders are passed over, and other files that are no images are listed in ``skipped``.
    """
    files, others = list[Path](), list[Path]()
    for file in sorted(found.relative_to(path) for found in walk(path)):
        (files if names_image(path / file) else others).append(file)
    if not files:
        found = f", of {counted(len(others), 'file')}, such as '{others[0]}'" if others else ""
        raise DataError(
            f"'{path}' holds no images{found}: put {', '.join(IMAGE_SUFFIXES)} files or shards, such as "
            ".parquet, into it, or pass another folder"
        )
    if labels not in (None, "none") or ids is not None:
        raise DataError(
            f"'{path}' is a folder of images, which has no columns: choose labels=none or nothing"
        )
    classes = None if labels else _class_folders(path, files)
    numbers = None
    if classes is not None:
        number = {name: index for index, name in enumerate(classes)}
        numbers = torch.tensor([number[file.parts[0]] for file in files], dtype=torch.int64)
    records = FileRecords(str(path), path, [file.as_posix() for file in files], numbers, classes)
    records.skipped = [f"{path / file} {_no_image(file.name)}" for file in others]
    return records


def _no_image(name: str) -> str:
    if suffix_of(name) in (None, ".bin"):
        return "is no image of a known format"
    return "is no image: shards are read where no images lie beside them"


def suffix_of(name: str) -> str | None:
    """Return which of the suffixes of shards a name has."""
    return next((suffix for suffix in SHARD_SUFFIXES if name.lower().endswith(suffix)), None)


def names_image(file: Path) -> bool:
    """Whether a file is an image by its suffix, or else by its content."""
    return file.suffix.lower() in IMAGE_SUFFIXES or is_image(file)


def walk(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, through links, but not through one that leads back up."""
    try:
        status = folder.stat()
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"the folder '{folder}' cannot be read ({error.strerror}): check its rights"
        ) from error
    mark = (status.st_dev, status.st_ino)
    for entry in entries if mark not in above else ():
        if _is_folder(entry):
            yield from walk(Path(entry.path), (*above, mark))
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where nobody may look: the reader says so
        return False


def _class_folders(path: Path, files: list[Path]) -> list[str] | None:
    """Return the folders that name the images' labels, or None where all images lie beside each other."""
    classes = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if not classes:
        return None
    beside = next((file for file in files if len(file.parts) == 1), None)
    if beside is not None:
        raise DataError(
            f"'{path}' has images in sub-folders and beside them ({beside}): sub-folders are labels, so move "
            "all images into them or none, or leave labels out with labels=none (--labels none)"
        )
    splits = [name for name in classes if name.lower() in _SPLITS]
    if len(splits) > 1 or splits == classes:
        raise DataError(
            f"'{path}' holds splits ({', '.join(splits)}), which are no classes: pass one, "
            f"'{path / splits[0]}', or all without labels with labels=none (--labels none)"
        )
    return classes


def read_image(path: Path) -> Records:
    """Read one image file as a set of one."""
    return FileRecords(str(path), path.parent, [path.name], None, None)


def read_npy(path: Path) -> Records:
    """Read the images of a .npy file, memory-mapped."""
    array = _load(path, mmap_mode="r")
    return ArrayRecords(str(path), array, file=path)


def read_npz(path: Path, labels: str | None = None, ids: str | None = None) -> Records:
    """Read the images, and labels where there are any, of ``x.npz`` or of one split, ``x.npz:test``."""
    split = None
    if not path.exists() and (match := NPZ_SPLIT.fullmatch(str(path))):
        path, split = Path(match[1]), match[2]
    content = _load(path)
    name = str(path) if split is None else f"{path}:{split}"
    images, of_labels = choose_arrays(f"'{path}'", content, split, labels)
    records = ArrayRecords(name, content[images], None if of_labels is None else content[of_labels])
    if (of_ids := id_column(list(content), ids, name)) is not None:
        values = content[of_ids].tolist()
        if ids is not None and len(values) != len(records):
            raise DataError(f"{name}: {len(records)} images but '{ids}' has {len(values)} values")
        if len(values) == len(records):
            records.ids = chosen_ids(values, of_ids, ids, name) or records.ids
    return records


def choose_arrays(
    where: str, content: Mapping[str, Any], split: str | None, labels: str | None
) -> tuple[str, str | None]:
    """Return the names of the images and of their labels among named arrays, of one split if there are some.

    Raises
    ------
    DataError
        if none is of images, or several splits are there and none was chosen
    """
    found = {
        name: keys for name in ("", *_SPLITS) if (keys := _named(content, _IMAGE_KEYS, name)) is not None
    }
    splits = [name for name in found if name]
    if split is None and "" not in found and len(splits) == 1:
        split = splits[0]
    if (split or "") not in found:
        if splits:
            again = (
                f"choose one, such as {where.strip(chr(39))}:{splits[-1]}"
                if split is None
                else f"it has no '{split}'"
            )
            raise DataError(f"{where} holds several splits ({', '.join(splits)}): {again}")
        if any(name in content for name in _SPLITS):
            raise DataError(
                f"a {where} of several sets ({', '.join(map(str, content))}): pass one of them, such as "
                f"data['{next(iter(content))}']"
            )
        raise DataError(
            f"{where} has no array of images (arrays: {', '.join(map(str, content))}): "
            "name it 'images', and its labels 'labels'"
        )
    if labels in (None, "none"):
        return found[split or ""], None if labels else _named(content, _LABEL_KEYS, split or "")
    if labels not in content:
        raise DataError(f"{where} has no array '{labels}' (arrays: {', '.join(map(str, content))})")
    return found[split or ""], labels


def _named(content: Mapping[str, Any], keys: Sequence[str], split: str) -> str | None:
    """The first of some names that is there, as it stands or with the name of a split."""
    names = (name for key in keys for name in ((f"{key}_{split}", f"{split}_{key}") if split else (key,)))
    return next((name for name in names if name in content), None)


def _load(path: Path, **options: Any) -> Any:
    try:
        content = np.load(regular(path), allow_pickle=False, **options)
        return content if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # numpy parses a header as Python, and raises many types on a broken one
        raise DataError(
            f"'{path}' cannot be read as {path.suffix} ({array_reason(error)}): "
            "save it again with numpy, as arrays of numbers, not objects"
        ) from error
