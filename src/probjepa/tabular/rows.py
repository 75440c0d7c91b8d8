"""The rows of a table as commands write them: what names each, and what a fitted estimator makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from probjepa.errors import DataError
from probjepa.tabular.frames import named


def id_column(frame: Any, columns: Sequence[str], ids: Sequence[str] = ()) -> str | None:
    """Return the column of a DataFrame that names its rows, if it has one.

    It is the first of ``ids`` that is there, or else one called id; none of the features' ``columns``.
    """
    free = [name for name in frame.columns if name not in columns]
    return next((name for name in ids if name in free), None) or next(
        (name for name in free if name.lower() == "id"), None
    )


class KnownColumns(NamedTuple):
    """What is known of a table's columns, as ``read_table`` has them."""

    target: str | None
    features: Sequence[str]
    texts: Sequence[str]
    ids: Sequence[str]
    codes: Sequence[str]

    def names_rows(self, frame: Any) -> str | None:
        """Return the column of ids, see ``id_column``."""
        return id_column(frame, [*self.features, str(self.target)], self.ids)


def indexed(frame: Any, columns: Sequence[str], ids: Sequence[str] = ()) -> Any:
    """Return a DataFrame with the column that names its rows as its index, see ``id_column``."""
    names = id_column(frame, columns, ids)
    return frame if names is None else frame.set_index(names)


def id_texts(series: Any) -> list[str]:
    """Return a column of ids as texts, "" where one is missing; of whole numbers among floats, too."""

    def text(cell: Any) -> str:
        whole = isinstance(cell, float) and cell.is_integer()
        return str(int(cell)) if whole else str(cell)

    return ["" if none else text(cell) for cell, none in zip(series, series.isna(), strict=True)]


def check_ids(frame: Any, columns: Sequence[str], wanted: str | None, where: str) -> None:
    """Raise DataError if the column of ids that is ``wanted`` is not there, or a feature."""
    if wanted is None:
        return
    if wanted in columns:
        raise DataError(f"--ids {wanted}: that column is a feature or the target: name another")
    if wanted not in frame.columns:
        raise DataError(f"'{where}' has no column '{wanted}' of ids (columns: {named(list(frame.columns))})")


def named_rows(
    frame: Any,
    columns: Sequence[str],
    target: str | None = None,
    before: str = "",
    ids: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """Return a table's features, and what names its N rows: "id", and "label" if the target is there.

    Parameters
    ----------
    frame, columns
        a DataFrame (N, …), and the names of the features, of which the target is none
    target
        the column of labels
    before
        stands before the number that is the id of a row where no column names them
    ids
        columns that may, before one called id
    """
    names = id_column(frame, columns, ids)
    texts = [f"{before}{row}" for row in range(len(frame))] if names is None else id_texts(frame[names])
    rows: dict[str, Any] = {"id": texts}
    spare = [name for name in (names, target) if name in frame.columns and name not in columns]
    if target in spare:
        cells = frame[target]
        words = cells.to_numpy().dtype.kind == "O"
        rows["label"] = (
            cells.astype(object).where(cells.notna(), None).to_numpy() if words else cells.to_numpy()
        )
    return frame.drop(columns=spare), rows


def embedded_rows(model: Any, features: Any) -> dict[str, Any]:
    """Return the columns "embedding", and "uncertainty" where a fitted estimator has one, of N rows."""
    found = {"embedding": model.transform(features)}
    if hasattr(model, "uncertainty"):
        found["uncertainty"] = model.uncertainty(features)
    return found
