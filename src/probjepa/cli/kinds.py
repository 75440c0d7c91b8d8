"""The one place where the commands fork on the kind of data."""

from __future__ import annotations

from pathlib import Path

from probjepa.cli.kind import Kind
from probjepa.cli.options import Shared
from probjepa.errors import unknown_name


def kind_of_method(name: str) -> type[Kind]:
    """Return the kind of data of a method; ConfigError for an unknown one."""
    from probjepa.methods import METHODS
    from probjepa.tabular import TABLE_METHODS

    if name not in METHODS and name not in TABLE_METHODS:
        raise unknown_name("method", name, [*METHODS, *TABLE_METHODS])
    return _kind(tables=name in TABLE_METHODS)


def open_model(source: str, shared: Shared, out: Path, *, goes_on: bool = False) -> Kind:
    """Return a trained model with its kind of data, for a command that writes ``out``.

    The kind is told by the config.json of the model's folder. Raises ArtifactError if ``out`` is in the way,
    or a JEPA-SCORE of it was stopped that the command does not go on with (``goes_on``).
    """
    from probjepa.files import refuse_existing, refuse_stopped

    refuse_existing(out, shared.overwrite)  # before what takes seconds to import
    if not goes_on:
        refuse_stopped(out, shared.overwrite)
    from probjepa.loading import is_of_tables

    return _kind(is_of_tables(source))(source, shared)


def _kind(tables: bool) -> type[Kind]:
    if tables:
        from probjepa.cli.tables import TableModel

        return TableModel
    from probjepa.cli.images import ImageModel

    return ImageModel
