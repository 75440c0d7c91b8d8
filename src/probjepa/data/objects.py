"""Readers of rows: DataFrames, Hugging Face and torch data sets, lists, and .csv files of paths."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from probjepa.data.decode import Payload, Unreadable, as_payload
from probjepa.data.records import Records, encode_labels, is_scalar
from probjepa.data.tables import IMAGE_NAMES, chosen_ids, id_column, image_column, label_column
from probjepa.errors import DataError, short
from probjepa.files import first_line, regular
from probjepa.registry import required

_PATH_NAMES = ("path", "file_name", "filename", "image_path", *IMAGE_NAMES, "file")  # of a .csv
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # a text that a whole number of 64 bits is written as
_PEEK = 8  # rows looked at to tell which column holds images; more, where none of these holds one


class RowRecords(Records):
    """Rows of anything that can be indexed; ``roots`` are the folders that their paths must stay below.

    With ``base`` paths are relative to it, see ``as_payload``.
    """

    def __init__(
        self,
        name: str,
        count: int,
        row: Callable[[int], Any],
        roots: Sequence[Path] = (),
        base: Path | None = None,
    ) -> None:
        self.name, self.ids, self._row = name, [str(i) for i in range(count)], row
        self.roots, self.base = roots, base

    def read(self, row: int) -> Payload:
        """Return what one row holds."""
        payload = as_payload(self._row(row), self.base)
        if self.roots and isinstance(payload, Path):
            path = payload.resolve()
            if not any(path.is_relative_to(root) for root in self.roots):
                return Unreadable(f"names the file '{payload}', which is not of this set")
        return payload


class _Cell:
    """Indexes rows, then a column: a class, since a lambda cannot be pickled."""

    def __init__(self, rows: Any, column: str | None = None) -> None:
        self.rows, self.column = rows, column

    def __call__(self, row: int) -> Any:
        value = self.rows[row]
        return value if self.column is None else value[self.column]


class DatasetRecords(Records):
    """A torch ``Dataset`` of images, (image, label, …) tuples or {"image": …, "label": …} rows.

    Labels, and ids where a row names one, are collected while it is read.
    """

    def __init__(self, dataset: Any, labels: str | None = None, ids: str | None = None) -> None:
        self.name, self.dataset, self._count = type(dataset).__name__, dataset, len(dataset)
        self._wanted, self._wanted_ids = labels, ids
        self._seen: dict[int, Any] = {}
        self._named: dict[int, Any] = {}
        self._id_column: str | None = None
        self._given: Tensor | None = None  # labels that stand beside the data set
        names = getattr(dataset, "classes", None)
        self._names = [str(name) for name in names] if isinstance(names, list | tuple) else None

    def __len__(self) -> int:
        return self._count

    def read(self, row: int) -> Payload:
        """Return one image, and keep its label and its id."""
        try:
            item = self.dataset[row]
        except Exception as error:  # the user's own code: its row is what helps
            return Unreadable(f"fails to load ({type(error).__name__}: {short(first_line(error), 200)})")
        label: Any = None
        if isinstance(item, Mapping) and not {"bytes", "path"} & item.keys():
            where, item = self.where(row), {str(name): value for name, value in item.items()}
            columns = list(item)
            image = image_column(_may_hold([item], columns), columns, where)
            by = label_column([name for name in columns if name != image], self._wanted, where)
            name = id_column(columns, self._wanted_ids, where)
            self._id_column = name or self._id_column
            self._named[row] = None if name is None else _plain(item[name])
            item, label = item[image], None if by is None else item[by]
        elif self._wanted not in (None, "none") or self._wanted_ids is not None:
            raise DataError(f"{self.name}: its rows have no named columns to choose labels or ids from")
        elif isinstance(item, tuple | list) and item and not isinstance(item[0], list | int | float):
            if len(item) == 2 or (len(item) > 2 and is_scalar(item[1])):
                label = item[1]
            item = item[0]
        if self._wanted != "none":
            if not is_scalar(label) or isinstance(label, Mapping):
                raise DataError(
                    f"{self.where(row)} has a {type(label).__name__} for a label, not one number or text: "
                    "leave labels out with labels='none' (--labels none)"
                )
            self._seen[row] = _plain(label)
        return as_payload(item)

    @property
    def ids(self) -> list[str]:  # type: ignore[override]  # nobody sets them
        """The ids that the rows read so far name, if these are distinct, or else their numbers."""
        numbers = [str(row) for row in range(len(self))]
        if self._id_column is None:
            return numbers
        rows = sorted(self._named)
        values = [self._named[row] for row in rows]
        ids = chosen_ids(values, self._id_column, self._wanted_ids, self.name, rows) or ()
        for row, name in zip(rows, ids, strict=False):
            numbers[row] = name
        return numbers

    @property
    def labels(self) -> Tensor | None:
        """The labels of the rows read so far, or None where there were none."""
        if self._given is not None or not self._seen:
            return self._given
        values = [self._seen.get(row) for row in range(len(self))]
        labels, self.classes = encode_labels(values, self.name, len(self), self._names)
        return labels

    @labels.setter
    def labels(self, values: Tensor | None) -> None:
        self._given = values


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") and is_scalar(value) else value


def _may_hold(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the columns that may hold images, by the first rows; by later ones where these hold none."""
    found: set[str] = set()
    for number, row in enumerate(rows):
        if found and number >= _PEEK:
            break
        found |= {name for name in columns if _may_be_image(row[name])}
    return [name for name in columns if name in found]


def _may_be_image(value: Any) -> bool:
    if isinstance(value, dict):
        return "bytes" in value
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], list)
    if isinstance(value, np.ndarray):
        return value.ndim >= 2 or (value.dtype == object and value.size > 0 and np.ndim(value[0]) > 0)
    return (
        isinstance(value, bytes)
        or (hasattr(value, "mode") and hasattr(value, "getexif"))
        or (hasattr(value, "detach") and value.ndim >= 2)
    )


def read_object(source: Any, labels: str | None = None, ids: str | None = None) -> Records:
    """Read a pandas DataFrame, a Hugging Face data set, or a torch ``Dataset`` or list of rows."""
    from torch.utils.data import IterableDataset

    kind = type(source).__name__
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _read_frame(source, labels, ids)
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if isinstance(source, IterableDataset) or (hasattr(source, "__iter__") and not indexed):
        raise DataError(
            f"a {kind} gives its rows in one order only, and images are read by number: pass a Dataset with "
            "__len__ and __getitem__, or a list of its rows"
        )
    if not indexed:
        raise DataError(
            f"a {kind} is no data source: pass a path, an array, a tensor, (images, labels), a DataFrame, a "
            "Dataset with __len__ and __getitem__, or a list: of one image, [image]"
        )
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return _read_hf(source, "datasets.Dataset", labels, ids)
    if hasattr(source, "to_pandas") and (hasattr(source, "columns") or hasattr(source, "column_names")):
        # of polars or Arrow: by number they give columns
        raise DataError(f"a {kind} is no data source here: pass its pandas DataFrame, {kind}.to_pandas()")
    return DatasetRecords(source, labels, ids)


def _read_frame(frame: Any, labels: str | None, ids: str | None) -> Records:
    columns, where = [str(name) for name in frame.columns], "DataFrame"
    rows = (dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False, name=None))

    def values(name: str) -> list[Any]:
        column: list[Any] = frame.iloc[:, columns.index(name)].tolist()
        return column

    image = image_column(_may_hold(rows, columns), columns, where)
    records = RowRecords(where, len(frame), _Cell(values(image)))
    label = label_column([name for name in columns if name != image], labels, where)
    if label is not None:
        records.labels, records.classes = encode_labels(values(label), where, len(frame))
    name = id_column(columns, ids, where)
    if name is not None:
        records.ids = chosen_ids(values(name), name, ids, where) or records.ids
    return records


def read_csv(path: Path, labels: str | None = None, ids: str | None = None) -> Records:
    """Read the images that a .csv file names: a column of paths, and of labels and ids where there are any.

    Paths are relative to the file's folder and do not leave it. They are the ids, if no column is.
    """
    try:
        with open(regular(path), encoding="utf-8-sig", newline="") as file:
            head, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read as csv ({first_line(error)}): write it again") from error
    where = f"'{path}'"
    column = next((name for name in _PATH_NAMES if name in head), None)
    if column is None:
        raise DataError(
            f"{where} has no column of paths to images (columns: {short(', '.join(head))}): name it 'path'; "
            "a table without images is for var-t-jepa and t-jepa"
        )
    for line, row in enumerate(rows):
        if len(row) != len(head):
            raise DataError(f"{where}, row {line} has {len(row)} cells for {len(head)} columns: fix it")

    def values(name: str) -> list[str | None]:
        return [row[head.index(name)] or None for row in rows]

    paths = values(column)
    records = RowRecords(str(path), len(rows), _Cell(paths), base=path.parent)
    label = label_column([name for name in head if name != column], labels, where)
    if label is not None:
        found: list[Any] = values(label)
        if all(value is None or _WHOLE.fullmatch(value) for value in found):  # "007" is a name
            found = [None if value is None else int(value) for value in found]
        records.labels, records.classes = encode_labels(found, where, len(rows))
    records.ids = chosen_ids(paths, column, None, where) or records.ids
    name = id_column(head, ids, where)
    if name is not None:
        records.ids = chosen_ids(values(name), name, ids, where) or records.ids
    return records


def read_hub(name: str, labels: str | None = None, ids: str | None = None) -> Records:
    """Read ``NAME[:SPLIT]``, a set of the hub or a local folder, with ``datasets``; SPLIT is train.

    No code of the set is run, and its rows name no file outside of it.
    """
    datasets = required("datasets", "hf")
    path, _, split = name.partition(":")
    try:
        # unset, older versions ask on standard input whether to run the set's code
        dataset = datasets.load_dataset(path, split=split or "train", trust_remote_code=False)
    except Exception as error:  # many types: no such set, no such split, no network, a broken cache
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"hf:{name} cannot be loaded ({reason}): check the name, the split and the network"
        ) from error
    config = getattr(datasets, "config", None)
    caches = [getattr(config, key, None) for key in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE")]
    roots = [Path(root).expanduser().resolve() for root in (path, *caches) if root]
    return _read_hf(dataset, f"hf:{name}", labels, ids, roots)


def _read_hf(
    dataset: Any, name: str, labels: str | None, ids: str | None, roots: Sequence[Path] = ()
) -> Records:
    columns = list(dataset.column_names)
    encoded = [name for name in columns if type(dataset.features[name]).__name__ == "Image"]
    for column in encoded:  # bytes, which are decoded here, on all cores
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    rows = (dataset[row] for row in range(len(dataset)))
    column = image_column(encoded or _may_hold(rows, columns), columns, name)
    records = RowRecords(name, len(dataset), _Cell(dataset, column), roots)
    label = label_column([other for other in columns if other != column], labels, name)
    if label is not None:
        names = getattr(dataset.features[label], "names", None)
        records.labels, records.classes = encode_labels(list(dataset[label]), name, len(dataset), names)
    by = id_column(columns, ids, name)
    if by is not None:
        records.ids = chosen_ids(list(dataset[by]), by, ids, name) or records.ids
    return records
