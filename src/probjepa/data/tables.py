"""Which columns of a table hold images, labels and ids, and which files are of one split."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from probjepa._arrays import is_missing
from probjepa.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "imgs", "pixel_values", "picture", "photo", "x")
_LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "class", "target", "y")
_SPLIT_NAME = re.compile(r"^(train|test|val|valid|validation|dev)(?![a-z])", re.IGNORECASE)


def image_column(found: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Return the one of ``columns`` that holds images, of those that may, by its name."""
    named = [name for name in IMAGE_NAMES if name in found]
    if named:
        return named[0]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where}: several columns hold images ({', '.join(found)}): name one of them 'image'"
        )
    raise DataError(
        f"{where}: no column holds images (columns: {', '.join(columns)}): a column of image bytes, "
        "of structs {bytes, path} or of nested lists of numbers is needed"
    )


def label_column(columns: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Return the column of labels: the one wanted, none for "none", or by default one of a usual name."""
    if wanted is None:
        return next((name for name in _LABEL_NAMES if name in columns), None)
    return None if wanted == "none" else _present(wanted, columns, where)


def id_column(columns: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Return the column of ids: the one wanted, or by default one called id."""
    if wanted is None:
        return next((name for name in columns if name.lower() == "id"), None)
    return _present(wanted, columns, where)


def _present(wanted: str, columns: Sequence[str], where: str) -> str:
    if wanted not in columns:
        raise DataError(f"{where} has no column '{wanted}' (columns: {', '.join(columns)})")
    return wanted


def chosen_ids(
    values: Sequence[Any], column: str, wanted: str | None, where: str, rows: Sequence[int] | None = None
) -> list[str] | None:
    """Return a column's values as ids; None where they name no single row, which is an error if wanted.

    They are those of ``rows``, or of all rows.
    """
    first: dict[str, int] = {}
    for row, value in zip(range(len(values)) if rows is None else rows, values, strict=True):
        name = None if is_missing(value) else str(value)
        if name is None or name in first:
            if wanted is None:
                return None
            kind = "no id" if name is None else f"the id of row {first[name]} again"
            raise DataError(f"{where}: row {row} has {kind} in '{column}': choose a column of distinct ids")
        first[name] = row
    return list(first)


def holds_images(kind: Any) -> bool:
    """Whether cells of an Arrow type may be images: structs with bytes, bytes, nested lists."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    if isinstance(kind, pa.StructType):
        return bool(kind.get_field_index("bytes") >= 0)
    if isinstance(kind, lists):
        return isinstance(kind.value_type, lists)
    of = pa.types
    return bool(of.is_binary(kind) or of.is_large_binary(kind) or of.is_binary_view(kind))


def one_split(place: str, files: Sequence[str]) -> None:
    """Raise DataError if the files below a folder, by their names, are of several splits."""
    splits: dict[str, str] = {}  # name → a pattern of its files
    for file in files:
        parts = PurePosixPath(file).parts
        for depth, part in enumerate(parts):
            if match := _SPLIT_NAME.match(part):
                last = f"{match[1]}*{PurePosixPath(part).suffix}" if depth == len(parts) - 1 else part
                splits.setdefault(match[1], "/".join([place.rstrip("/"), *parts[:depth], last]))
    if len(splits) > 1:
        names = ", ".join(sorted(splits))
        raise DataError(f"'{place}' holds several splits ({names}): choose one, '{splits[max(splits)]}'")


def class_names(schema: Any, label: str | None) -> list[str] | None:
    """Class names from the Hugging Face metadata of an Arrow schema."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in info["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
