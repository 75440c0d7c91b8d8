"""Shards in, shards out: one output file an input file, so that any scheduler may share the work.

An output takes its name when it is whole, and says of what input, model and settings it is. What is finished
is passed over, what differs is done again: a run that was killed, or many at once, leave every row once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from probjepa.claims import ClaimedError, claimed, has_lock
from probjepa.data.shard_files import (
    Shard,
    ShardError,
    content_of,
    file_mark,
    files_below,
    filesystem,
    is_remote,
)
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.shards.job import Job
from probjepa.shards.worker import KEY, ShardWorker, kind_of, placed
from probjepa.terminal import tracked
from probjepa.training.interrupt import Interrupted
from probjepa.typed import check_plain

MANIFEST = "manifest.json"
Outcome = Literal["written", "finished", "busy"] | ShardError
Outcomes = Generator[tuple[Shard, Outcome], None, None]


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)


def read_record(place: str) -> dict[str, Any] | None:
    """Return what the output of a shard says of itself; None where there is none.

    Raises
    ------
    ArtifactError
        if something else is there
    """
    try:
        if is_remote(place):
            system, name = filesystem(place)
            system.invalidate_cache()
            with system.open(name, "rb") as file:
                metadata = pq.read_metadata(file).metadata
        else:
            with open(place, "rb") as file:  # Arrow takes no path with bytes that are no text
                metadata = pq.read_metadata(file).metadata
        record = json.loads((metadata or {})[KEY])
        return record if isinstance(record, dict) else None
    except FileNotFoundError:
        return None
    except Exception as error:  # Arrow raises many types on a broken file
        raise ArtifactError(
            f"{place} is there already and is no output of shards: choose another --out, or pass --overwrite"
        ) from error


def parse_share(text: str) -> tuple[int, int]:
    """Return I and N of a share ``"I/N"``: of N processes the I-th, counted from 1.

    Raises
    ------
    ConfigError
        for another text, or unless 1 ≤ I ≤ N

    Examples
    --------
    >>> parse_share("2/8")
    (2, 8)
    """
    first, _, count = text.partition("/")
    if not (first.isascii() and first.isdigit() and count.isascii() and count.isdigit()) or not (
        1 <= int(first) <= int(count)
    ):
        raise ConfigError(f"--shard is '{text}': give I/N, the I-th of N processes, from 1/N to N/N")
    return int(first), int(count)


@dataclass(frozen=True)
class Task:
    """What is done with each shard, and where to: ``task(shard)``, in this process or another."""

    worker: ShardWorker
    out: str
    overwrite: bool = False

    def __call__(self, shard: Shard) -> Outcome:
        """Write the output of a shard, unless it is "finished", or "busy": another process writes it.

        Raises
        ------
        DataError, ConfigError, ArtifactError
            as ``ShardWorker`` and ``record(strict=True)``; the ShardError of a shard that cannot be read is
            returned
        """
        place = self.place(shard)
        try:
            with nullcontext() if is_remote(place) else claimed(Path(place)):
                # strict: another command may have written it since the run began; what is half there in a
                # store, which has no claims, may be another process's
                if not self.overwrite and self.record(shard, strict=not is_remote(place)) is not None:
                    return "finished"
                try:
                    self.worker(shard, place)
                except ShardError:
                    self._discard(place)
                    raise
        except ClaimedError:
            return "busy"
        except ShardError as error:
            return error
        return "written"

    def _discard(self, place: str) -> None:
        """Remove what an earlier run wrote of a shard that is skipped: it would pass for the shard's."""
        if self.worker.job.on_error != "skip" or not self.wrote(place):
            return
        if is_remote(place):
            system, name = filesystem(place)
            system.rm_file(name)
        else:
            Path(place).unlink()

    def wrote(self, place: str) -> bool:
        """Whether a file is the output of this command for some input."""
        try:
            found = read_record(place)
        except ArtifactError:
            return False
        return found is not None and found.get("what") == self.worker.job.what

    def place(self, shard: Shard) -> str:
        """Return where the output of a shard is."""
        return _join(self.out, shard.name)

    def is_left(self, shard: Shard) -> bool:
        """Whether there is something to do: its output, or what a killed process left beside it.

        Raises
        ------
        ArtifactError
            as ``record(strict=True)``
        """
        if self.overwrite or self.record(shard, strict=True) is None:
            return True
        place = self.place(shard)
        return not is_remote(place) and has_lock(Path(place))

    def record(self, shard: Shard, *, strict: bool = False) -> dict[str, Any] | None:
        """Return the record of a shard's output if it is of this input, model and settings, or else None.

        Raises
        ------
        ArtifactError
            if ``strict``, for another file in its place, or the output of another command
        """
        job, place = self.worker.job, self.place(shard)
        try:
            found = read_record(place)
            if found is not None and found.get("what") != job.what:
                raise ArtifactError(
                    f"{place} is of '{found.get('what')}', and this is '{job.what}': choose another --out, "
                    "or pass --overwrite"
                )
            marks = {**self.worker.marks, "input": file_mark(shard.path)} if found else {}
        except (ArtifactError, ShardError) as error:
            if strict and isinstance(error, ArtifactError):
                raise
            return None
        # what was left out under on_error="skip" is an error now
        whole = found is not None and (job.on_error == "skip" or not found.get("failed"))
        return found if found and whole and all(found.get(x) == mark for x, mark in marks.items()) else None


@dataclass(frozen=True)
class Plan:
    """All shards of a source, and what is done with them."""

    task: Task
    shards: Sequence[Shard]

    @classmethod
    def of(cls, job: Job, data: str, out: str, *, overwrite: bool = False) -> Plan:
        """Find the shards of ``data``, and the columns that those of images have.

        Raises
        ------
        DataError
            for no shards, none that can be read, or outputs that would lie among them
        ArtifactError
            if ``out`` is a file, or lies in one
        """
        kind = kind_of(job)
        shards = kind.find(data)
        there = () if is_remote(out) else (Path(out), *Path(out).parents)
        if file := next((place for place in there if place.is_file()), None):
            raise ArtifactError(f"--out '{out}': {file} is a file: give the name of a folder")
        if not is_remote(data) and not is_remote(out):
            home, place = Path(data).resolve(), Path(out).resolve()
            if place.is_relative_to(home) or (home.parent == place and home.is_file()):
                raise DataError(f"--out '{out}' lies in --data '{data}': give a folder beside it")
        elif f"{out.rstrip('/')}/".startswith(f"{data.rstrip('/')}/"):
            raise DataError(f"--out '{out}' lies in --data '{data}': give a place beside it")
        return cls(Task(ShardWorker(kind.settled(job, shards)), out, overwrite), shards)

    def write_manifest(self, skipped: dict[str, str]) -> dict[str, Any]:
        """Write manifest.json of all outputs that are there, and return it.

        Another process may write it, too: what stands after the last one has written is whole. While shards
        are left, those that do them write it again, and nobody waits for them.
        """
        task = self.task
        place = _join(task.out, MANIFEST)
        try:
            earlier = json.loads(content_of(place))["skipped"]
            skipped = {**earlier, **skipped}
        except Exception:  # none yet, or a damaged one
            pass
        without_input = self._without_input()
        manifest, written, times = dict[str, Any](), None, 0
        while (records := {shard.name: task.record(shard) for shard in self.shards}) != written:
            if times > 1 and manifest["shards"]["left"]:
                break
            times += 1
            manifest, written = _manifest(task.worker, self.shards, records, skipped), records
            manifest["without_input"] = without_input
            text = json.dumps(manifest, indent=2) + "\n"
            with placed(place) as stage:
                stage.write_text(text, encoding="utf-8")
        return manifest

    def _without_input(self) -> list[str]:
        """Return the names of outputs whose shards are gone."""
        known = {shard.name for shard in self.shards}
        try:
            there = files_below(self.task.out)
        except DataError:  # nothing was written
            return []
        return sorted(
            name
            for name, place in there.items()
            if name.endswith(".parquet") and name not in known and self.task.wrote(place)
        )


def _manifest(
    worker: ShardWorker, shards: Sequence[Shard], records: dict[str, Any], skipped: dict[str, str]
) -> dict[str, Any]:
    done = {name: record for name, record in records.items() if record is not None}
    rows, seconds = (sum(record[key] for record in done.values()) for key in ("rows", "seconds"))
    kept = {name: skipped[name] for name in records if name in skipped and name not in done}
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "images_per_second": round(rows / seconds, 1) if seconds else None,
        "shards": {
            "total": len(shards), "done": len(done), "skipped": len(kept),
            "left": len(shards) - len(done) - len(kept),
        },
        "failed_rows": sum(len(record["failed"]) for record in done.values()),
        "failed": {name: record["failed"] for name, record in done.items() if record["failed"]},
        "skipped": kept,
        **worker.marks,
        "each": {name: {key: record[key] for key in ("rows", "seconds")} for name, record in done.items()},
    }  # fmt: skip


Engine = Callable[[Task, Sequence[Shard]], Outcomes]


def in_this_process(task: Task, shards: Sequence[Shard]) -> Outcomes:
    """Do one shard after the other."""
    for shard in shards:
        yield shard, task(shard)


def run_shards(
    job: Job, data: str, out: str, *,
    share: tuple[int, int] = (1, 1), overwrite: bool = False, progress: bool = False,
    engine: Engine = in_this_process,
) -> dict[str, Any]:  # fmt: skip
    """Write the output of every shard of ``data``, or of a share of them, into ``out``, and manifest.json.

    What is finished is passed over, and so is what another process writes at the moment.

    Parameters
    ----------
    job
        what is done
    data, out
        a folder of shards, or one shard, and a folder; or addresses that fsspec opens
    share
        (I, N): every N-th shard from the I-th on, counted from 1
    overwrite
        do finished shards again, and replace what else is in the way
    engine
        who does them: a ``RayEngine``, or what else yields each shard with ``task(shard)``, in any order

    Returns
    -------
    dict
        what manifest.json holds ("without_input": outputs whose shards are gone), "written" and "finished":
        how many shards this run wrote, and found

    Raises
    ------
    DataError, ConfigError, ArtifactError
        as ``ShardWorker``; with ``on_error="skip"``, shards that cannot be read are counted, and what an
        earlier run wrote of them is removed
    """
    first, count = check_plain("share", share, tuple[int, int])
    if not 1 <= first <= count:
        raise ConfigError(f"share is ({first}, {count}): give (I, N), the I-th of N, from (1, N) to (N, N)")
    plan = Plan.of(job, data, out, overwrite=overwrite)
    mine = plan.shards[first - 1 :: count]
    # a complaint about what is there comes before any work
    wanted = [shard for shard in mine if plan.task.is_left(shard)]
    plan.task.worker.open()  # its complaints come before the bar
    skipped: dict[str, str] = {}
    counts = {"written": 0, "finished": len(mine) - len(wanted), "busy": 0}
    try:
        with closing(engine(plan.task, wanted)) as outcomes:
            for shard, outcome in tracked(outcomes, "shards", len(wanted), shown=progress):
                if not isinstance(outcome, ShardError):
                    counts[outcome] += 1
                elif job.on_error == "raise":
                    raise outcome
                else:
                    skipped[shard.name] = str(outcome)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {counts['written']} of {len(wanted)} shards written: the same command goes on"
        ) from error
    del counts["busy"]
    return {**plan.write_manifest(skipped), **counts}
