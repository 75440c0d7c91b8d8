"""From any table to checked columns of a pandas DataFrame: numbers and categories."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from probjepa._arrays import as_array
from probjepa.errors import DataError, few, short
from probjepa.files import first_line
from probjepa.registry import importing, required

_WHOLE = re.compile(r"(-?\d+)\.0")
ColumnType = Literal["numeric", "categorical", "boolean", "datetime"]
Scalar = str | int | float | bool
# the types of pandas that hold a missing cell beside whole numbers and booleans
_NULLABLE = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "boolean")


def pandas() -> Any:
    """Return the pandas module, or raise MissingExtraError."""
    return required("pandas", "tables")


def named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    return few([repr(name) for name in names])


def other_columns(found: Sequence[str], wanted: Sequence[str]) -> str:
    """Say which columns are missing and which were not expected; "" where they are those wanted."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    said = [f"missing: {named(missing)}"] if missing else []
    said += [f"unexpected: {named(unexpected)}"] if unexpected else []
    return "; ".join(said)


def as_frame(table: Any, names: Sequence[str] | None = None) -> Any:
    """Return a pandas DataFrame (N, D) with string names, N, D ≥ 1, of a table or an array.

    A table is a DataFrame of pandas or polars, a pyarrow Table, or whatever else hands out its columns by
    Arrow's C stream or the dataframe interchange protocol. Whole numbers and booleans keep their type beside
    missing cells.

    Parameters
    ----------
    table
        the table
    names
        for an array without its own; None: x0, x1, …

    Raises
    ------
    DataError
        for another kind or shape, repeated names, or no rows or columns
    """
    pd = pandas()
    if hasattr(table, "collect") and not hasattr(table, "__array__"):
        raise DataError("the table is a query that has not run: pass what its collect() returns")
    columns = table if isinstance(table, pd.DataFrame) else _from_arrow(pd, table)
    if columns is not None:
        frame = columns.set_axis([str(name) for name in columns.columns], axis=1)
        refuse_repeated(frame.columns, "the table")
    else:
        frame = _from_array(pd, table, names)
    rows, columns = frame.shape
    if not columns:
        raise DataError(f"the table has 0 feature(s) (shape=({rows}, 0)) while a minimum of 1 is required.")
    if not rows:
        raise DataError(f"the table has 0 sample(s) (shape=(0, {columns})) while a minimum of 1 is required.")
    return frame


def refuse_repeated(names: Iterable[str], where: str) -> None:
    """Raise DataError if a name of columns stands twice; the message calls the table ``where``."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{where} has several columns of one name: {named(repeated)}: rename them")


def has_names(table: Any) -> bool:
    """Return whether a table brings the names of its columns along, as a plain array does not."""
    named = ("columns", "__arrow_c_stream__", "__dataframe__")
    return any(hasattr(table, name) for name in named) or _is_structured(table)


def _is_structured(table: Any) -> bool:
    plain = isinstance(table, np.ndarray) and not isinstance(table, np.ma.MaskedArray)
    return plain and table.dtype.names is not None and table.ndim == 1


def _field(values: npt.NDArray[Any]) -> Any:
    """A field of a structured array as pandas takes it: in this machine's order of bytes, or nested."""
    return values.astype(values.dtype.newbyteorder("=")) if values.ndim == 1 else list(values)


def _from_arrow(pd: Any, table: Any) -> Any:
    """A DataFrame of what is no pandas but has columns of its own; None for an array or a single column."""
    if not has_names(table):
        return None
    if _is_structured(table):
        return pd.DataFrame({name: _field(table[name]) for name in table.dtype.names})
    with importing():
        import pyarrow as pa
        from pyarrow.interchange import from_dataframe
    try:
        arrow = pa.table(table) if hasattr(table, "__arrow_c_stream__") else from_dataframe(table)
        nullable = {
            pa.from_numpy_dtype(of.numpy_dtype): of for of in map(pd.api.types.pandas_dtype, _NULLABLE)
        }
        return arrow.to_pandas(types_mapper=nullable.get)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if hasattr(table, "columns"):  # as an array it would lose their names
            raise DataError(
                f"the table, a {type(table).__name__}, cannot be read through Arrow ({first_line(error)}): "
                "cast its columns to types that Arrow has, or pass a DataFrame of pandas"
            ) from error
        return None


def _from_array(pd: Any, table: Any, names: Sequence[str] | None) -> Any:
    if hasattr(table, "tocsr"):
        raise DataError("the table is a sparse matrix: pass a dense one, X.toarray()")
    if isinstance(table, str | Path):
        raise DataError(f"'{short(table)}' is a name: pass the table itself, such as pd.read_parquet(…)")
    if isinstance(table, torch.Tensor) and table.layout != torch.strided:
        raise DataError("the table is a sparse tensor: give a dense one, to_dense()")
    array = as_array(table)
    if array.dtype.names is not None:
        raise DataError(
            "the table is a structured array of several dimensions, or with a mask: pass a DataFrame of it"
        )
    if array.ndim != 2:
        raise DataError(
            f"Expected 2D array, got {array.ndim}D array instead, shape {array.shape}. Reshape your data: "
            "X.reshape(-1, 1) if it is one feature, X.reshape(1, -1) if it is one row"
        )
    if names is not None and array.shape[1] != len(names):
        raise DataError(
            f"X has {array.shape[1]} features, but TableSchema is expecting {len(names)} features as input"
        )
    frame = pd.DataFrame(array, columns=names or [f"x{i}" for i in range(array.shape[1])])
    return frame.infer_objects()


def _lasts(series: Any) -> bool:
    """Whether a column holds durations."""
    types = pandas().api.types
    of_objects = types.is_object_dtype(series.dtype) and types.infer_dtype(series, skipna=True)
    return getattr(series.dtype, "kind", "") == "m" or of_objects in ("timedelta", "timedelta64")


def guess_type(column: str, series: Any) -> ColumnType:
    """Return a column's type by its dtype, or by its values where the dtype is object."""
    types = pandas().api.types
    dtype = series.dtype
    if types.is_complex_dtype(dtype):
        raise DataError(f"Complex data not supported: column {column!r} is {dtype}: split it in two")
    if types.is_bool_dtype(dtype):
        return "boolean"
    if types.is_datetime64_any_dtype(dtype):
        return "datetime"
    if types.is_numeric_dtype(dtype) or _lasts(series):
        return "numeric"
    if types.is_object_dtype(dtype):
        found = types.infer_dtype(series, skipna=True)
        if found == "boolean":
            return "boolean"
        if found in ("integer", "floating", "mixed-integer-float", "decimal"):
            return "numeric"
        if found in ("datetime", "datetime64", "date"):
            return "datetime"
    return "categorical"


def not_of_type(column: str, series: Any, bad: Any, type_: str) -> DataError:
    """Return the error of a column with cells (N,) bool that are not of its type."""
    row = int(np.flatnonzero(np.asarray(bad))[0])
    return DataError(
        f"column {column!r} is {type_} and holds {short(series.iloc[row])!r} in row {row} "
        f"({int(np.sum(bad))} such cells): fix them, or set its type with column_types before the fit"
    )


def numbers(column: str, series: Any) -> npt.NDArray[np.float64]:
    """Return a numeric column (N,) in float64, NaN where missing (timedeltas in seconds), or raise."""
    pd = pandas()
    missing = series.isna().to_numpy()
    if _lasts(series):
        series = pd.to_timedelta(series.astype(object)).dt.total_seconds()
    parsed = series
    if isinstance(series.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(series.dtype):
        try:
            parsed = pd.to_numeric(series.astype(object), errors="coerce")
        except OverflowError as error:
            too_large = [isinstance(value, int) and abs(value) > sys.float_info.max for value in series]
            raise not_of_type(column, series, too_large, "numeric") from error
    if pd.api.types.is_complex_dtype(parsed.dtype):
        raise DataError(f"Complex data not supported: column {column!r} is {parsed.dtype}: split it in two")
    values: npt.NDArray[np.float64] = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
    if (bad := np.isnan(values) & ~missing).any():
        raise not_of_type(column, series, bad, "numeric")
    if n := int(np.isinf(values).sum()):
        raise DataError(f"column {column!r} holds {n} infinity (Inf) values: make them missing, or finite")
    return values


def _label(value: Any) -> Scalar:
    """One category as JSON can hold it; equal numbers are one label, whatever their type was."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() else value
    if isinstance(value, int):
        return value
    return str(value).encode("utf-8", "replace").decode()  # a lone surrogate is no text that JSON can hold


def as_text(value: Any) -> str:
    """Return the text by which values of different types are one category: "1" of True, too, and of "1.0"."""
    text = str(_label(value))
    if whole := _WHOLE.fullmatch(text):
        return whole[1]
    return {"true": "1", "false": "0"}.get(text.lower(), text)


def narrow_type(series: Any) -> Any:
    """Return NumPy's type of floats of less digits than float64's, of a column or its categories, or None."""
    pd, dtype = pandas(), series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    dtype = dtype.subtype if isinstance(dtype, pd.SparseDtype) else getattr(dtype, "numpy_dtype", dtype)
    return dtype.type if getattr(dtype, "kind", "O") == "f" and dtype.itemsize < 8 else None


def widened(value: Any, narrow: Any) -> float:
    """Return the number that is written as a number of a ``narrow_type`` is."""
    return float(str(narrow(value)))


def labels_of(column: str, series: Any) -> tuple[npt.NDArray[np.int64], list[Scalar]]:
    """Return codes (N,), −1 where missing, and the label of each code; nested values raise DataError."""
    pd = pandas()
    try:
        codes, found = pd.factorize(series.astype(object))
    except TypeError as error:
        raise DataError(
            f"column {column!r} holds nested values (argument must be a string or a number): "
            "give one value a cell, or drop it"
        ) from error
    if (narrow := narrow_type(series)) is not None:  # 0.1 is 0.1 in any of them
        found = [widened(value, narrow) for value in found]
    return codes, [_label(value) for value in found]


def category_labels(column: str, series: Any, *, boolean: bool, most: int) -> tuple[Scalar, ...]:
    """Return the known categories of a column, in an order that does not depend on the rows'.

    The ``most`` frequent are kept (ties: by name). A boolean column has (False, True) unless it is empty, and
    raises DataError for any other value.
    """
    codes, labels = labels_of(column, series)
    if boolean:
        bad = np.array([label not in (False, True) for label in labels] + [False])
        if bad.any():
            raise not_of_type(column, series, bad[codes], "boolean")
        return (False, True) if labels else ()
    counts: dict[Scalar, int] = {}
    texts, others = ([of for of in labels if isinstance(of, str) is kind] for kind in (True, False))
    twins = {as_text(label): label for label in others} if texts else {}
    for label, count in zip(labels, np.bincount(codes[codes >= 0], minlength=len(labels)), strict=True):
        one = twins.get(as_text(label), label) if twins and isinstance(label, str) else label  # "1" beside 1
        counts[one] = counts.get(one, 0) + int(count)
    by_name = sorted(counts, key=lambda label: (isinstance(label, str), label))
    kept = set(sorted(by_name, key=lambda label: -counts[label])[:most])
    return tuple(label for label in by_name if label in kept)


def category_codes(column: str, series: Any, categories: Sequence[Scalar]) -> npt.NDArray[np.int64]:
    """Return a column's codes (N,): 0 missing, 1 unknown, k + 2 for ``categories[k]``.

    A value of another type than the fit's is found by its text: "1" is 1, and True is "True" or 1.
    """
    codes, labels = labels_of(column, series)
    known = {label: k + 2 for k, label in enumerate(categories)}
    by_text: dict[str, int] = {}
    for label, code in known.items():  # of two that have one text, none
        by_text[as_text(label)] = 1 if as_text(label) in by_text else code
    found = [known.get(label) or by_text.get(as_text(label), 1) for label in labels]
    of_label = np.array([*found, 0], dtype=np.int64)
    return of_label[codes]  # −1, missing, takes the last
