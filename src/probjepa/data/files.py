"""Readers of files: folders of images, .npz and .npy arrays, and scikit-learn's digits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probjepa.data.records import ArrayRecords, FileRecords, Records
from probjepa.data.sources import IMAGE_SUFFIXES
from probjepa.errors import DataError, unknown_name
from probjepa.files import first_line, regular

_IMAGE_KEYS = ("images", "image", "x", "X", "data", "arr_0", "x_train", "train_images")
_LABEL_KEYS = ("labels", "label", "y", "Y", "targets", "target", "arr_1", "y_train", "train_labels")


def read_sklearn(name: str) -> Records:
    """Read ``digits``: 1,797 handwritten digits, 8×8, whose values 0..16 become 0..255."""
    if name != "digits":
        raise unknown_name("scikit-learn image set", name, ["digits"])
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    records = ArrayRecords("sklearn:digits", pixels, digits.target)
    records.classes = [str(digit) for digit in range(10)]
    return records


def read_folder(path: Path) -> Records:
    """Read the images below a folder; those in a sub-folder have its name as their label.

    The label is the first folder below ``path``. Hidden files and folders are ignored. A folder without
    images but with .parquet files is read as shards.
    """
    found = [
        file.relative_to(path)
        for file in path.rglob("*")
        if file.suffix.lower() in (*IMAGE_SUFFIXES, ".parquet") and file.is_file()
    ]
    visible = sorted(file for file in found if not any(part.startswith(".") for part in file.parts))
    files = [file for file in visible if file.suffix.lower() != ".parquet"]
    if not files and visible:
        from probjepa.data.tables import read_parquet

        return read_parquet(path, [path / file for file in visible])
    if not files:
        raise DataError(
            f"'{path}' holds no images: put {', '.join(IMAGE_SUFFIXES)} or .parquet files into it, "
            "or pass another folder"
        )
    nested = [len(file.parts) > 1 for file in files]
    if any(nested) and not all(nested):
        raise DataError(
            f"'{path}' has images in sub-folders and beside them ({files[nested.index(False)]}): "
            "sub-folders are labels, so move all images into them or none"
        )
    labels = classes = None
    if nested[0]:
        classes = sorted({file.parts[0] for file in files})
        number = {name: index for index, name in enumerate(classes)}
        labels = torch.tensor([number[file.parts[0]] for file in files], dtype=torch.int64)
    return FileRecords(str(path), path, [file.as_posix() for file in files], labels, classes)


def read_image(path: Path) -> Records:
    """Read one image file as a set of one."""
    return FileRecords(str(path), path.parent, [path.name], None, None)


def read_npy(path: Path) -> Records:
    """Read the images of a .npy file, memory-mapped."""
    array = _load(path, mmap_mode="r")
    return ArrayRecords(str(path), array, file=path)


def read_npz(path: Path) -> Records:
    """Read the images, and labels where there are any, of a .npz file."""
    content = _load(path)
    images = next((key for key in _IMAGE_KEYS if key in content), None)
    if images is None:
        raise DataError(
            f"'{path}' has no array of images (arrays: {', '.join(content)}): "
            "name it 'images', and its labels 'labels'"
        )
    labels = next((key for key in _LABEL_KEYS if key in content), None)
    return ArrayRecords(str(path), content[images], None if labels is None else content[labels])


def _load(path: Path, **options: Any) -> Any:
    try:
        content = np.load(regular(path), allow_pickle=False, **options)
        return content if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"'{path}' cannot be read as {path.suffix} ({first_line(error)}): "
            "save it again with numpy, as arrays of numbers, not objects"
        ) from error
