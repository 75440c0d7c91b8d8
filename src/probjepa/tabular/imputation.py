"""Predicted cells put into a table: in the types that it has, by the labels that it has."""

from __future__ import annotations

import contextlib
import datetime
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from probjepa.errors import DataError
from probjepa.tabular.dates import format_of
from probjepa.tabular.features import Feature
from probjepa.tabular.frames import as_frame, as_text, has_names, named, narrow_type, pandas, widened
from probjepa.tabular.schema import TableSchema
from probjepa.tabular.tokens import CellDistribution

_READ = 50  # texts that a format must read
_MOST_DIGITS = 309  # before the point, of a float64


class Imputation(NamedTuple):
    """What ``impute`` returns.

    Attributes
    ----------
    table
        a DataFrame: the table with the asked-for cells filled by their mean or most probable category, in
        the types and under the labels of the table that was given; whole numbers where the fit saw only such
    cells
        a DataFrame with a row for each filled feature: ``row`` (position), ``feature``, ``value``; of a
        number (else NaN) ``median``, ``std`` and the interval of 95 % from ``low`` to ``high``, of what is
        predicted, held in the range that the fit saw (at an end of it they narrow, to nothing if all of the
        prediction is beyond);
        ``probabilities`` (of a category: a dict, else None), ``marginal`` (whether
        the fit found nothing that predicts the feature, so that this is its marginal; see ``skill_``)
    """

    table: Any
    cells: Any


def hidden_cells(mask: Any, given: Any) -> npt.NDArray[np.bool_]:
    """Return a mask as bool (N, C) in the order of a frame; a DataFrame is matched by its labels.

    Columns that it leaves out are not hidden.

    Raises
    ------
    DataError
        for another shape, other values, or labels that the frame does not have
    """
    if has_names(mask):
        by_name = as_frame(mask)
        if absent := [name for name in by_name.columns if name not in given.columns]:
            raise DataError(f"the mask has columns that the table does not have: {named(absent)}")
        if not by_name.index.equals(given.index):
            same = by_name.index.is_unique and len(by_name) == len(given)
            if not same or not given.index.isin(by_name.index).all():
                raise DataError("the rows of the mask have other labels than the table's: give it its index")
            by_name = by_name.loc[given.index]
        mask = by_name.reindex(columns=given.columns, fill_value=False)
    try:
        cells = np.asarray(mask).astype(float)
    except (TypeError, ValueError):  # ragged, or words
        cells = np.full(given.shape, np.nan)
    if cells.shape != given.shape:
        raise DataError(f"the mask has shape {cells.shape} for a table of {given.shape}: give one a cell")
    hide: npt.NDArray[np.bool_] = cells == 1
    if not (hide | (cells == 0)).all():
        raise DataError("the mask holds other values than True and False: give one a cell")
    return hide


def without(table: Any, hide: npt.NDArray[np.bool_]) -> Any:
    """Return a frame (N, C) without the cells to hide (N, C); whole numbers stay the ones that they are."""
    pd = pandas()
    out = table.copy()
    for column, cells in zip(table.columns, hide.T, strict=True):
        series = table[column]
        if cells.any() and isinstance(series.dtype, pd.SparseDtype):  # whose fill may be no missing cell
            series = series.sparse.to_dense()
        whole = isinstance(series.dtype, np.dtype) and series.dtype.kind in "iu"  # which has no missing ones
        if cells.any() and whole:
            series = pd.Series(pd.array(series.to_numpy()), index=series.index)
        out[column] = series.mask(cells)
    return out


def described(schema: TableSchema, cells: CellDistribution, hidden: Tensor, reach: Tensor, start: int) -> Any:
    """Return the hidden cells' distributions as rows of ``Imputation.cells``, without ``marginal``.

    ``hidden`` (B, D) are asked for, of rows that are counted from ``start``; ``reach`` (B, Dn) is half an
    interval in standard deviations.
    """
    asked = hidden.cpu().numpy()
    records: list[Any] = []
    for k, i in enumerate(schema.layout.numeric):
        feature, where = schema.features[i], np.flatnonzero(asked[:, i])
        if feature.low is None:  # nothing is known of an all-missing column
            continue
        mean = cells.mean[where, k].double().cpu().numpy()
        std = cells.variance[where, k].double().sqrt().cpu().numpy()
        undone = feature.spread(mean, std, reach[where, k].double().cpu().numpy())
        names, none = [feature.name] * len(where), [None] * len(where)
        records += zip(where + start, names, *undone, none, strict=True)
    for k, i in enumerate(schema.layout.categorical):
        feature, where = schema.features[i], np.flatnonzero(asked[:, i])
        if not feature.categories:
            continue
        p = cells.logits[k][where, 1:].double().softmax(1).cpu().numpy()
        values = [feature.categories[c] for c in p.argmax(1)]
        of_row = [dict(zip(feature.categories, row.tolist(), strict=True)) for row in p]
        names, no = [feature.name] * len(where), [np.nan] * len(where)
        records += zip(where + start, names, values, no, no, no, no, of_row, strict=True)
    numbers = ["median", "std", "low", "high"]
    out = pandas().DataFrame(records, columns=["row", "feature", "value", *numbers, "probabilities"])
    return out.astype({"value": object, **dict.fromkeys(numbers, float), "row": np.int64})


def filled(series: Any, found: Any, feature: Feature) -> Any:
    """Return a column with predicted cells put in, of its own type where that can hold them.

    Parameters
    ----------
    series
        the column as it was given
    found
        the rows of ``Imputation.cells`` that are of it
    feature
        of it; a datetime's is its part "days"
    """
    pd = pandas()
    values = found["value"].to_numpy()
    if feature.type == "datetime":
        cells = _dates(series, values.astype(float), feature)
    elif feature.numeric:
        cells = _numbers(series, values.astype(float), feature)
    else:
        cells = _categories(series, values)
    sparse = isinstance(series.dtype, pd.SparseDtype)
    out = (series.sparse.to_dense() if sparse else series).copy()  # dense values may be the caller's own
    if isinstance(series.dtype, pd.CategoricalDtype):
        out = _with_categories(out, [x for x in dict.fromkeys(cells) if x not in out.cat.categories])
    new = pd.Series(cells, dtype=object)
    try:
        new = new.astype(out.dtype)
    except (TypeError, ValueError, OverflowError):  # the column's type is too narrow for what the fit saw
        out = out.astype(object)
    out.iloc[found["row"].to_numpy()] = new.array
    return out.astype(series.dtype) if sparse else out


def _with_categories(series: Any, new: list[Any]) -> Any:
    """A column of categories with further ones, of the type that its own have where that holds them."""
    if not new:
        return series
    more, categories = pandas().Index(new), series.cat.categories
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        cast = more.astype(categories.dtype)
        if narrow_type(series) is not None or (cast == more).all():
            more = cast
    return series.cat.set_categories(categories.append(more))


def _first(series: Any) -> Any:
    """The first observed value of a column, or None."""
    observed = series.dropna()
    return observed.iloc[0] if len(observed) else None


def _numbers(series: Any, values: npt.NDArray[np.float64], feature: Feature) -> list[Any]:
    pd = pandas()
    kind, first = getattr(series.dtype, "kind", "O"), _first(series)
    if feature.whole or kind in "iu":
        values = np.round(values)
    if kind == "b":
        return [*(values >= 0.5)]
    if kind == "m" or isinstance(first, datetime.timedelta):
        # in microseconds: nanoseconds would end after 292 years
        lasting = [*pd.Series((values * 1e6).astype("timedelta64[us]"))]
        return lasting if kind == "m" else [of.to_pytimedelta() for of in lasting]
    plain: list[Any] = [int(x) for x in values] if feature.whole or kind in "iu" else values.tolist()
    if (digits := _digits(series)) is not None:
        with localcontext(prec=_MOST_DIGITS + digits):
            return [round(Decimal(str(x)), digits) for x in plain]
    return [*map(str, plain)] if isinstance(first, str) else plain


def _digits(series: Any) -> int | None:
    """How many decimal digits a column of decimals has, or None for another."""
    scale = getattr(getattr(series.dtype, "pyarrow_dtype", None), "scale", None)
    if scale is not None:
        return int(scale)
    if not isinstance(_first(series), Decimal):
        return None
    decimals = (of for of in series.dropna() if isinstance(of, Decimal) and of.is_finite())
    return max((-int(of.as_tuple().exponent) for of in decimals), default=0)


def _dates(series: Any, days: npt.NDArray[np.float64], feature: Feature) -> list[Any]:
    pd = pandas()
    seconds = np.round((np.round(days) if feature.whole else days) * 86_400).astype(np.int64)
    dates = pd.Series(seconds.astype("datetime64[s]")).dt.tz_localize("UTC")
    kind, first = getattr(series.dtype, "kind", "O"), _first(series)
    if isinstance(first, str):
        texts = [*dict.fromkeys(cell.strip() for cell in series.dropna() if isinstance(cell, str))]
        return [*dates.dt.strftime(format_of(feature.column, texts[:_READ], feature.day_first))]
    if not isinstance(first, datetime.datetime) and isinstance(first, datetime.date):
        return [when.date() for when in dates]
    dates = dates.dt.tz_convert(getattr(first, "tzinfo", None))  # of none: UTC, without a zone
    if kind == "M" or isinstance(first, pd.Timestamp):
        return [*dates]
    return [when.to_pydatetime() for when in dates]


def _categories(series: Any, labels: npt.NDArray[np.object_]) -> list[Any]:
    """Labels as the column writes them, found by their text; the fit's where it does not have them."""
    own = series.cat.categories if hasattr(series, "cat") else series.dropna().astype(object).unique()
    narrow = narrow_type(series)
    by_text = {as_text(value if narrow is None else widened(value, narrow)): value for value in own}
    cells = [by_text.get(as_text(label), label) for label in labels]
    if narrow is not None:
        cells = [narrow(cell) for cell in cells]
    if pandas().api.types.is_bool_dtype(series.dtype):
        cells = [as_text(cell) == "1" if as_text(cell) in "01" else cell for cell in cells]
    return cells
