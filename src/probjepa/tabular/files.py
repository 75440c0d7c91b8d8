"""Tables from files, their fingerprints, and the rows that stand in two of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError
from probjepa.files import first_line
from probjepa.tabular.frames import named, pandas

SUFFIXES = (".csv", ".parquet")


def read_table(source: str | Path) -> Any:
    """Return a ``.csv`` or ``.parquet`` file as a DataFrame with string names.

    Raises
    ------
    DataError
        if there is no such file, it is of another kind, cannot be read, has no rows or columns, or holds
        images
    """
    pd = pandas()
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path}' is no table: give a file that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"no such table: '{path}': check the path")
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise DataError(
            f"'{path}' is empty: give a table with a line of names and at least one row"
        ) from None
    except Exception as error:  # the readers raise many types on a broken file
        kind = path.suffix[1:].lower()
        raise DataError(f"'{path}' cannot be read as {kind} ({first_line(error)}): write it again") from error
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"'{path}' has {len(frame)} rows and {len(frame.columns)} columns: give a table with some of both"
        )
    nested = [name for name in frame.columns if isinstance(frame[name].iloc[0], dict | bytes)]
    if nested:
        raise DataError(
            f"'{path}' holds images (column {named(nested)}), and this model is of tables: give a table of "
            "numbers, categories and dates"
        )
    return frame


def row_hashes(frame: Any) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash (N,) of each row's cells; 1 and 1.0 are the same cell, missing ones are equal."""
    pd = pandas()
    plain = {}
    for name in sorted(frame.columns):
        series = frame[name]
        if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_complex_dtype(series.dtype):
            plain[name] = series.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
        else:
            plain[name] = series.astype(object).where(series.notna(), "\0").astype(str).to_numpy(dtype=object)
    hashes: npt.NDArray[np.uint64] = pd.util.hash_pandas_object(pd.DataFrame(plain), index=False).to_numpy()
    return hashes


def table_sha256(frame: Any) -> str:
    """Return the hash of a table's names and cells, in the order of its rows."""
    digest = hashlib.sha256("\0".join(sorted(frame.columns)).encode())
    digest.update(row_hashes(frame).tobytes())
    return digest.hexdigest()
