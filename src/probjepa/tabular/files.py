"""Tables from files, their fingerprints, and the rows that stand in two of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.errors import DataError, short
from probjepa.files import first_line
from probjepa.tabular.frames import named, pandas

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".feather", ".arrow")
_SEPARATORS = (";", "\t", "|")


def read_table(source: str | Path, **text: Any) -> Any:
    """Return a file as a DataFrame with string names; its suffix, one of ``SUFFIXES``, says of which kind.

    Parameters
    ----------
    source
        the path
    text
        of a text file: ``sep``, ``decimal``, ``thousands`` and ``na_values``, as pandas has them

    Raises
    ------
    DataError
        if there is no such file, it is of another kind, cannot be read, has no rows or columns, has one
        column whose name holds a separator, or holds images
    """
    pd = pandas()
    path = Path(source)
    kind = next((of for of in SUFFIXES if path.name.lower().endswith(of)), None)
    if kind is None:
        raise DataError(f"'{path}' is no table: give a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"no such table: '{path}': check the path")
    written = kind.startswith((".csv", ".tsv"))
    if text and not written:
        raise DataError(f"'{path}' is no text: leave {', '.join(text)} out")
    try:
        if written:
            frame = pd.read_csv(path, **{"sep": "\t" if kind.startswith(".tsv") else ",", **text})
        else:
            frame = pd.read_parquet(path) if kind == ".parquet" else _read_arrow(path)
    except pd.errors.EmptyDataError:
        raise DataError(
            f"'{path}' is empty: give a table with a line of names and at least one row"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is text in another encoding than UTF-8: save it as UTF-8") from error
    except Exception as error:  # the readers raise many types on a broken file
        raise DataError(
            f"'{path}' cannot be read as {kind[1:]} ({first_line(error)}): write it again"
        ) from error
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"'{path}' has {len(frame)} rows and {len(frame.columns)} columns: give a table with some of both"
        )
    found = next((sep for sep in _SEPARATORS if all(sep in name for name in frame.columns)), None)
    if written and found and "sep" not in text:
        sep = "\\t" if found == "\t" else found
        held = (
            "one column" if len(frame.columns) == 1 else f"{len(frame.columns)} columns with '{sep}' in each"
        )
        raise DataError(f"'{path}' has {held}, '{short(frame.columns[0])}': pass --sep '{sep}'")
    nested = [name for name in frame.columns if isinstance(frame[name].iloc[0], dict | bytes)]
    if nested:
        raise DataError(
            f"'{path}' holds images (column {named(nested)}), and this model is of tables: give a table of "
            "numbers, categories and dates"
        )
    return frame


def _read_arrow(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all().to_pandas()
        except pa.ArrowInvalid:  # a stream, as the Hugging Face Hub's libraries write it
            source.seek(0)
            return pa.ipc.open_stream(source).read_all().to_pandas()


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
