"""The commands on data and models, the same for images and tables."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated

import typer

from probjepa.cli.kind import Kind
from probjepa.cli.kinds import kind_of_method, open_model
from probjepa.cli.options import (
    Curating,
    Data,
    Evaluating,
    Model,
    OutFolder,
    OutTable,
    Overwrite,
    Scoring,
    Sharding,
    Shared,
    Training,
)
from probjepa.errors import ArtifactError, ConfigError, DataError, counted
from probjepa.terminal import say

_NO_PARQUET = (
    ".csv",
    ".tsv",
    ".txt",
    ".gz",
    ".json",
    ".jsonl",
    ".feather",
    ".arrow",
    ".npy",
    ".npz",
    ".xlsx",
)


def _claimed(out: Path, *, folder: bool = False) -> AbstractContextManager[None]:
    from probjepa.claims import claimed

    return claimed(out, folder=folder)


def _table(out: str) -> Path:
    """Return the place of a table; ConfigError for a name that promises another kind of file."""
    place = Path(out)
    if place.suffix.lower() in _NO_PARQUET:
        raise ConfigError(f"--out '{out}' is written as parquet: give a name that ends in .parquet")
    return place


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="a name of `probjepa list`")],
    data: Data,
    options: Training,
) -> None:
    """Train a method; Ctrl-C leaves a run that --resume goes on with."""
    from probjepa.launch import is_first_process

    kind, out = kind_of_method(method), options.out
    # one process of a run claims its folder, and talks
    with _claimed(out, folder=True) if is_first_process() else redirect_stdout(None):
        trained_on = kind.train(method, data, options)
        say(f"trained {method} on {trained_on}: {out}/model, {out}/metrics.csv, {out}/report.html")


def embed(model: Model, data: Data, out: OutTable, shared: Shared, sharding: Sharding) -> None:
    """Write a table: id, label, embedding, and the posterior's variance where the model has one."""
    from probjepa.cli import shards
    from probjepa.data.rows import open_table

    if shards.is_sharded(model, data, out, sharding):
        return shards.run(shards.of_model(model, shared, what="embed"), data, out, sharding, shared)
    place = _table(out)
    with _claimed(place):
        opened = open_model(model, shared, place)
        _check_beside(opened, place, data)
        count, rows = opened.embed(data)
        with open_table(place, shared.overwrite) as table:
            for columns in rows:
                table.write(columns)
            opened.note(table)
    say(f"embedded {counted(count, opened.unit)}: {out}")


def _check_beside(opened: Kind, out: Path, data: str, **others: str | None) -> None:
    """Raise DataError where a table would take the place of what it is made of, or stand among it.

    ArtifactError where it would take that of a file of another kind.
    """
    if out.is_file():
        for name, uri in {"data": data, **others}.items():
            if uri is not None and os.path.isfile(uri) and out.samefile(uri):
                raise DataError(f"--out '{out}' is --{name} '{uri}': give a file of its own")
        if not _is_ours(out):
            raise ArtifactError(f"{out} is there, and is no table in parquet: choose another --out")
    home = Path(data).resolve()
    if opened.unit == "row" and home.is_dir() and out.resolve().is_relative_to(home):
        raise DataError(f"--out '{out}' lies in --data '{data}': give a file beside it")


def _is_ours(file: Path) -> bool:
    """Whether a file is one of parquet, by its name or its content, or empty."""
    if file.suffix.lower() == ".parquet":
        return True
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(4) in (b"", b"PAR1")
    return False


def score(
    model: Model,
    data: Data,
    out: OutTable,
    options: Scoring,
    shared: Shared,
    sharding: Sharding,
) -> None:
    """Write a table: id, label, score (higher = more typical), and the score's parts."""
    from probjepa.cli import shards

    if shards.is_sharded(model, data, out, sharding):
        return shards.run(shards.of_score(model, shared, options), data, out, sharding, shared)
    place = _table(out)
    with _claimed(place):
        opened = open_model(model, shared, place, goes_on=options.score == "jepa")
        _check_beside(opened, place, data, reference=options.reference, calibration=options.calibration)
        scored = opened.score(data, place, options)
    earlier = f", {scored.known:,} of them by an earlier run" if scored.known else ""
    flagged = "" if scored.flagged is None else f", {scored.flagged:,} flagged at {options.rule}"
    what = f"{counted(scored.inputs, opened.unit)} by {options.score} (higher = more typical)"
    say(f"scored {what}{earlier}{flagged}: {out}")


def evaluate(
    model: Model,
    train: Annotated[str, typer.Option("--train", metavar="URI", help="reference images, or a table")],
    test: Annotated[str, typer.Option("--test", metavar="URI", help="held-out images, or a table")],
    out: OutFolder,
    options: Evaluating,
    shared: Shared,
) -> None:
    """Write metrics.json, scores.parquet, report.html: accuracy and OOD detection beside their baselines."""
    from probjepa.files import refuse_foreign

    with _claimed(out, folder=True):
        if shared.overwrite:
            refuse_foreign(out)
        open_model(model, shared, out).evaluate(train, test, out, options)
    say(f"wrote {out}/metrics.json, {out}/scores.parquet and {out}/report.html")


def curate(
    model: Model,
    data: Data,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="folder to write")],
    options: Curating,
    shared: Shared,
    sharding: Sharding,
) -> None:
    """Rank images: keep, review and drop lists with thumbnails; --rank-only: shards, of tables too."""
    from probjepa.cli import shards
    from probjepa.cli.images import ImageModel
    from probjepa.files import refuse_existing, refuse_foreign

    if options.rank_only:
        return shards.run(shards.of_rank(model, shared, options), data, out, sharding, shared)
    if sharding.given:
        raise ConfigError(
            f"{', '.join(sharding.given)}: with --rank-only; lists and duplicates are of all images together"
        )
    place = Path(out)
    with _claimed(place, folder=True):
        refuse_existing(place, shared.overwrite)
        refuse_foreign(place)
        counts = ImageModel(model, shared).curate(data, place, options)
    say(", ".join(f"{name} {count:,}" for name, count in counts.items()) + f": {out}/report.html")


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="model.onnx|model.pt2", help="file to write")],
    what: Annotated[
        str, typer.Option("--what", metavar="embed|posterior|likelihood", help="what the graph returns")
    ] = "embed",
    overwrite: Overwrite = False,
) -> None:
    """Write a graph that other runtimes load, checked against PyTorch: uint8 images in, any batch size."""
    from probjepa.exporting import export

    with _claimed(out):
        export(model, out, what=what, overwrite=overwrite)
    say(f"exported {what} of {model}: {out}")
