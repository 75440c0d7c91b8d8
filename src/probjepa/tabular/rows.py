"""The rows of a table as commands write them: what names each, and what a fitted estimator makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def id_column(frame: Any, columns: Sequence[str]) -> str | None:
    """Return the column of a DataFrame called id, if it is not one of the features' ``columns``."""
    return next((name for name in frame.columns if name.lower() == "id" and name not in columns), None)


def named_rows(
    frame: Any, columns: Sequence[str], target: str | None = None, before: str = ""
) -> tuple[Any, dict[str, Any]]:
    """Return a table's features, and what names its N rows: "id", and "label" if the target is there.

    Parameters
    ----------
    frame, columns
        a DataFrame (N, …), and the names of the features, of which the target is none
    target
        the column of labels
    before
        stands before the number that is the id of a row where no column is called id
    """
    names = id_column(frame, columns)
    if names is None:
        ids = [f"{before}{row}" for row in range(len(frame))]
    else:
        ids = [
            "" if none else str(cell) for cell, none in zip(frame[names], frame[names].isna(), strict=True)
        ]
    rows: dict[str, Any] = {"id": ids}
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
