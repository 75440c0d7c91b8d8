"""Shards of tables: what a job makes of each."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from probjepa.backbones.encoding import Encoding
from probjepa.data.rows import as_column
from probjepa.data.shard_files import Shard, ShardError, as_shards, files_below, filesystem, is_remote
from probjepa.errors import ConfigError, DataError
from probjepa.files import first_line
from probjepa.model_files import WEIGHTS, model_folder, read_config
from probjepa.shards.job import Columns, Job, Opened, Written, decided, hashed
from probjepa.tabular.files import no_tables, read_table, table_suffix
from probjepa.tabular.overlap import refuse_fitted, shared_by_chance, table_sha256
from probjepa.tabular.rows import check_ids, embedded_rows, named_rows
from probjepa.tabular.text_files import names_alone, text_for

_FORMATS = {".parquet": "parquet", ".feather": "ipc", ".arrow": "ipc"}


class TableShards:
    """Shards of tables, as ``ShardKind`` has them."""

    @staticmethod
    def open(job: Job) -> Opened:
        """Open the model, fit a score to its reference and score the calibration rows."""
        return _Table(job)

    @staticmethod
    def find(source: str) -> list[Shard]:
        """Return the tables below a folder or an address, or the one that it is, sorted by name.

        Other files are passed over. The output of ``a/b.csv`` is called ``a/b.parquet``.

        Raises
        ------
        DataError
            if there is none, or two would have one output
        """
        found = {name: path for name, path in sorted(files_below(source).items()) if table_suffix(name)}
        if not found:
            raise no_tables(source)
        return as_shards(found, table_suffix)

    @staticmethod
    def settled(job: Job, shards: Sequence[Shard]) -> Job:
        """Return the job: the model says which columns all shards have.

        Raises
        ------
        DataError
            if a shard is also of the calibration set, whose rows may be few and equal by chance
        """
        known = {_place(path) for path in _held(job.calibration)}
        if twice := [shard.path for shard in shards if _place(shard.path) in known]:
            raise DataError(f"'{twice[0]}' is to be scored and is in the calibration set: give other rows")
        return job


class _Table:
    """A fitted estimator, and a score that is fitted to its reference once."""

    def __init__(self, job: Job) -> None:
        from probjepa.loading import load, row_names_of, target_of, text_of
        from probjepa.training.device import resolve_device

        self.job, self.encoding = job, Encoding()
        self.model = load(job.model)
        self.model.network_.to(resolve_device(job.device))
        self.columns: Sequence[str] = self.model.schema_.columns
        self.target = target_of(job.model)
        folder = model_folder(job.model, {})
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        self.mark = hashed({"config": read_config(folder), "weights": weights})
        self._text = text_of(job.model)
        self._ids = row_names_of(job.model) if job.ids is None else (job.ids,)
        text = job.text or self._text  # one of the job's takes the place of all that the run recorded
        self.reference: dict[str, Any] = {"target": self.target, "text": text, "ids": self._ids}
        self._scorer: Any = None
        self._known: Any = None  # the scores of the calibration rows
        if job.what != "embed":
            self._fit()

    def _fit(self) -> None:
        from probjepa.loading import fitted_to
        from probjepa.scores import SetScorer

        job = self.job
        if job.score == "jepa":
            raise ConfigError("--score jepa is of images: choose another")
        known = self._held("reference", job.reference)
        self._scorer = SetScorer(
            self.model, job.score, reference=known, reference_size=job.reference_size, seed=job.seed
        )
        if (held_out := self._held("calibration", job.calibration)) is not None:
            job.rule.check(len(held_out))
            refuse_fitted(held_out, fitted_to(job.model), str(job.calibration))
            self._known = self._scorer(held_out, calibration=True)[0]
            self._held_out = self.model.schema_.dated(held_out)

    def _held(self, name: str, source: str | None) -> Any:
        """The features of a table that is read once, whose fingerprint an output has."""
        if source is None:
            return None
        features, _ = self._rows(source)
        self.reference[name] = table_sha256(features)
        return features

    def read(self, shard: Shard, failed: list[str]) -> Iterator[Written]:
        """Yield the rows of a shard's output, all together: a shard of a table fits into memory."""
        with _local(shard.path) as place, _told(shard.path):
            if self._without_rows(place) is not None:
                return
            features, columns = self._rows(place, f"{shard.file}:")
            frame = self.model.schema_.dated(features)
            columns |= self._made(features)
        if self._known is not None:
            shared_by_chance(frame, self._held_out, "calibration", f"rows of '{shard.path}'")
        yield Written(columns, len(features))

    def _rows(self, source: str, before: str = "") -> tuple[Any, Columns]:
        text = text_for(source, self.job.text or {}, self._text)
        frame = read_table(source, self.target, self.columns, self.model.schema_.texts, self._ids, **text)
        if before:  # of a shard, whose rows are written
            check_ids(frame, [*self.columns, str(self.target)], self.job.ids, source)
        return named_rows(frame, self.columns, self.target, before, self._ids)

    def _without_rows(self, place: str) -> pa.Table | None:
        """A file without rows, as engines write them for parts without any; None for another."""
        kind = _FORMATS.get(str(table_suffix(place)))
        if kind is None:
            frame = names_alone(place, text_for(place, self.job.text or {}, self._text))
            return None if frame is None else pa.Table.from_pandas(frame.astype("string"))
        held = ds.dataset(place, format=kind)
        return None if held.count_rows() else held.to_table()

    def _made(self, features: Any) -> Columns:
        if self._scorer is None:
            return embedded_rows(self.model, features)
        values, parts = self._scorer(features, part=True)
        if self.job.what == "score":
            decisions = {} if self._known is None else decided(self.job.rule, values, self._known)
            return {"score": values, **decisions, **parts}
        return {"typicality": values, **{k: v for k, v in parts.items() if k == "uncertainty"}}

    def empty(self, shard: Shard) -> Columns:
        """Return columns without rows."""
        with _local(shard.path) as place, _told(shard.path):
            if (held := self._without_rows(place)) is None:
                raise ShardError(f"'{shard.path}' changed while it was read: run the command again")
            missing = held.to_pandas().reindex([0, 1])
            features, columns = named_rows(missing, self.columns, self.target, ids=self._ids)
            columns |= self._made(features)
        if "label" in columns:
            columns["label"] = held.column(self.target)
        return {name: as_column(values).slice(0, 0) for name, values in columns.items()}


def _held(source: str | None) -> list[str]:
    return [] if source is None else [*files_below(source).values()]


def _place(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


@contextmanager
def _local(path: str) -> Iterator[str]:
    """Yield a file of this machine: one in a store is copied."""
    if not is_remote(path):
        yield path
        return
    system, name = filesystem(path)
    with tempfile.TemporaryDirectory(prefix="probjepa-") as home:
        place = os.path.join(home, PurePosixPath(name).name)
        with _told(path):
            system.get_file(name, place)
        yield place


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn whatever is wrong with a shard into one line that names it."""
    try:
        yield
    except (ShardError, ConfigError):
        raise
    except DataError as error:
        raise ShardError(f"'{path}': {error}") from error
    except Exception as error:  # the readers raise many types on a broken file
        raise ShardError(f"'{path}' cannot be read ({first_line(error)}): write it again") from error
