"""The worker that opens a job's model and turns one input shard into one output shard."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from probjepa import __version__
from probjepa.data.rows import written
from probjepa.data.shard_files import Shard, ShardError, file_mark, filesystem, is_remote
from probjepa.errors import ArtifactError
from probjepa.files import first_line, staged_file
from probjepa.shards.job import Job, Opened, ShardKind, hashed

KEY = b"probjepa.shard"  # of an output's metadata


def kind_of(job: Job) -> type[ShardKind]:
    """Return the kind of data that a job's model is of."""
    from probjepa.loading import is_of_tables

    if is_of_tables(job.model):
        from probjepa.shards.tables import TableShards

        return TableShards
    from probjepa.shards.images import ImageShards

    return ImageShards


class ShardWorker:
    """Turns one input shard into one output shard: ``worker(shard, place)``.

    The model is opened, and a score fitted to its reference, at first use. A pickle holds the job alone.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._opened: Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job, "_opened": None}

    def open(self) -> Opened:
        """Return the model and what goes with it, opened by the first call, with its complaints."""
        if self._opened is None:
            self._opened = kind_of(self.job).open(self.job)
        return self._opened

    @cached_property
    def marks(self) -> dict[str, str]:
        """The fingerprints of the model and of the settings that an output depends on."""
        # a reference and calibration rows count by what they hold
        free = {"model", "device", "on_error", "reference", "calibration", "precision"}
        settings = {name: value for name, value in asdict(self.job).items() if name not in free}
        model = self.open()
        settings |= {"version": __version__, **model.reference}
        return {
            "model": model.mark, "settings": hashed(settings), "what": self.job.what,
            "precision": model.encoding.precision,
        }  # fmt: skip

    def __call__(self, shard: Shard, place: str) -> dict[str, Any]:
        """Write the output of a shard under a temporary name, rename it, and return its record.

        The record, which the output's metadata hold, has the fingerprints ("input", "model", "settings"),
        "precision" (and of bf16 "bf16_error"), "rows", "failed" (a line for each row that was left out) and
        "seconds".

        Raises
        ------
        ShardError
            for a shard that cannot be read, or that changes meanwhile
        DataError, ConfigError
            as ``open_images`` and ``SetScorer``
        ArtifactError
            if the output cannot be written
        """
        model, marks = self.open(), self.marks  # no time of the shard's
        start, before = time.perf_counter(), file_mark(shard.path)
        failed: list[str] = []
        rows = 0
        with placed(place) as stage, written(stage) as table:
            for part in model.read(shard, failed):
                table.write(part.columns)
                rows += part.rows
            if not rows:
                table.write(model.empty(shard))
            if file_mark(shard.path) != before:
                raise ShardError(f"'{shard.path}' changed while it was read: run the command again")
            record = {
                **marks, **model.encoding.record(), "input": before, "rows": rows, "failed": failed,
                "seconds": round(time.perf_counter() - start, 3),
            }  # fmt: skip
            table.note(KEY, json.dumps(record))
        return record


@contextmanager
def placed(place: str) -> Iterator[Path]:
    """Yield a temporary file that becomes ``place`` when the block ends well, or else goes."""
    if not is_remote(place):
        with staged_file(Path(place)) as stage:
            yield stage
        return
    system, name = filesystem(place)
    with tempfile.TemporaryDirectory(prefix="probjepa-") as home:
        stage = Path(home) / "shard"
        stage.touch()
        yield stage
        try:  # an object store shows a file when all of it is there
            system.makedirs(system._parent(name), exist_ok=True)
            system.put_file(str(stage), name)
        except Exception as error:  # each package for a store has errors of its own
            raise ArtifactError(f"cannot write {place}: {first_line(error)}") from error
