"""Shards in, shards out: the rows of one set, each once, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probjepa import provenance
from probjepa.data.rows import TableWriter
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.shards import Job, ShardWorker, parse_share, run_shards
from probjepa.shards import runs as runs_room
from probjepa.training.interrupt import Interrupted
from shard_cases import png, rows, small_model, table, write_shards


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(small_model(tmp_path_factory.mktemp("shards") / "model"))


def embed(model: str, data: Path, out: Path, **options):
    run = {name: options.pop(name) for name in ("share", "overwrite") if name in options}
    return run_shards(Job(model, device="cpu", **options), str(data), str(out), **run)


def state(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}


def left_overs(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if path.name.endswith((".tmp", ".lock"))]


def test_a_second_run_does_nothing_and_the_manifest_counts(model, tmp_path):
    data = write_shards(tmp_path / "in")
    first = embed(model, data, tmp_path / "out")
    before = state(tmp_path / "out")
    second = embed(model, data, tmp_path / "out")
    assert (first["written"], first["finished"], second["written"], second["finished"]) == (3, 0, 0, 3)
    assert state(tmp_path / "out") == before
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rows"] == 18 and manifest["failed_rows"] == 0
    assert manifest["shards"] == {"total": 3, "done": 3, "skipped": 0, "left": 0}
    assert manifest["seconds"] > 0 and manifest["images_per_second"] > 0
    assert {name: each["rows"] for name, each in manifest["each"].items()} == {
        "part-0.parquet": 7, "part-1.parquet": 5, "part-2.parquet": 6,
    }  # fmt: skip
    assert not left_overs(tmp_path / "out")


@pytest.mark.parametrize("what", ["input", "model", "settings"])
def test_what_differs_is_done_again_and_only_that(model, tmp_path, what):
    data, out, options = write_shards(tmp_path / "in"), tmp_path / "out", {}
    embed(model, data, out)
    before = state(out)
    if what == "input":
        pq.write_table(table(50, 5), data / "part-1.parquet")
    elif what == "model":
        model = str(small_model(tmp_path / "other", seed=1))
    else:
        options["convert"] = True
    embed(model, data, out, **options)
    changed = {name for name, time in state(out).items() if time != before[name]}
    assert changed == ({"part-1.parquet"} if what == "input" else set(before))
    fresh = tmp_path / "fresh"
    embed(model, data, fresh, **options)
    assert rows(out).equals(rows(fresh))


def test_calibration_rows_count_by_what_they_hold_and_decide_each_row_alone(model, tmp_path):
    data, out, held = write_shards(tmp_path / "in"), tmp_path / "out", tmp_path / "held"
    write_shards(held, (30,), first=300)
    options = {"what": "score", "calibration": str(held), "alpha": 0.1}
    embed(model, data, out, **options)
    found = rows(out)
    p, flagged = found["p_value"].to_numpy(), found["flagged"].to_numpy()
    assert found.column_names[:5] == ["id", "label", "score", "p_value", "flagged"]
    assert "q_value" not in found.column_names
    np.testing.assert_array_equal(flagged, p <= 0.1)
    np.testing.assert_allclose(p * 31, np.round(p * 31))
    # the same images elsewhere are the same; others, and another rate, are not
    held.rename(tmp_path / "moved")
    assert embed(model, data, out, **options | {"calibration": str(tmp_path / "moved")})["finished"] == 3
    assert (
        embed(model, data, out, **options | {"calibration": str(tmp_path / "moved"), "alpha": 0.2})["written"]
        == 3
    )
    write_shards(held, (40,), first=300)
    assert embed(model, data, out, **options)["written"] == 3
    with pytest.raises(ConfigError, match="alpha goes with calibration"):
        Job(model, alpha=0.1)


def test_an_empty_shard_has_the_columns_of_decisions_too(model, tmp_path):
    data = write_shards(tmp_path / "in", (4, 0))
    held = write_shards(tmp_path / "held", (30,), first=300)
    embed(model, data, tmp_path / "out", what="score", calibration=str(held))
    full, empty = (pq.read_table(tmp_path / "out" / f"part-{n}.parquet") for n in (0, 1))
    assert len(empty) == 0 and full.schema.equals(empty.schema)


def test_a_precision_is_of_the_output_and_is_not_mixed(model, tmp_path, monkeypatch, capsys):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    embed(model, data, out)
    record = runs_room.read_record(str(out / "part-0.parquet"))
    assert record["precision"] == "float32" and "bf16_error" not in record
    plain = rows(out)
    with pytest.raises(ConfigError, match="name float32 or bf16"):
        embed(model, data, out, precision="auto")
    with pytest.raises(ConfigError, match="no units for bf16"):
        embed(model, data, out, precision="bf16")
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["amx_bf16"])
    assert embed(model, data, out, precision="bf16")["written"] == 3
    assert capsys.readouterr().err.startswith("bf16: error ")
    record = runs_room.read_record(str(out / "part-2.parquet"))
    assert record["precision"] == "bf16" and 0 < record["bf16_error"] < 1
    assert json.loads((out / "manifest.json").read_text())["precision"] == "bf16"
    assert not rows(out).equals(plain)
    assert embed(model, data, out, precision="bf16")["finished"] == 3
    assert embed(model, data, out)["written"] == 3
    assert rows(out).equals(plain)


def test_shares_together_give_what_one_process_gives(model, tmp_path):
    data = write_shards(tmp_path / "in", (3, 4, 2, 5))
    embed(model, data, tmp_path / "one")
    half = embed(model, data, tmp_path / "two", share=(1, 2))
    assert half["shards"] == {"total": 4, "done": 2, "skipped": 0, "left": 2}
    assert sorted(state(tmp_path / "two")) == ["part-0.parquet", "part-2.parquet"]
    embed(model, data, tmp_path / "two", share=(2, 2))
    assert rows(tmp_path / "one").equals(rows(tmp_path / "two"))
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two"))
    assert [one[key] for key in ("rows", "shards", "model", "settings")] == [
        two[key] for key in ("rows", "shards", "model", "settings")
    ]


def test_a_share_without_shards_writes_a_manifest_alone(model, tmp_path):
    found = embed(model, write_shards(tmp_path / "in", (2,)), tmp_path / "out", share=(2, 2))
    assert found["shards"]["left"] == 1 and not state(tmp_path / "out")


def test_a_manifest_that_another_process_made_stale_is_written_again(model, tmp_path, monkeypatch):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    placed = runs_room.placed

    @contextmanager
    def slow(place):  # another process ends meanwhile
        monkeypatch.setattr(runs_room, "placed", placed)
        embed(model, data, out, share=(2, 2))
        with placed(place) as stage:
            yield stage

    monkeypatch.setattr(runs_room, "placed", slow)
    embed(model, data, out, share=(1, 2))
    assert json.loads((out / "manifest.json").read_text())["shards"]["done"] == 3


def test_a_process_that_ends_does_not_wait_for_the_shards_of_others(model, tmp_path, monkeypatch):
    data, out = write_shards(tmp_path / "in", (2,) * 6), tmp_path / "out"
    placed, plan, times = (
        runs_room.placed,
        runs_room.Plan.of(Job(model, device="cpu"), str(data), str(out)),
        [],
    )

    @contextmanager
    def slow(place):  # another process ends a shard meanwhile
        times.append(place)
        plan.task(plan.shards[len(times)])
        with placed(place) as stage:
            yield stage

    monkeypatch.setattr(runs_room, "placed", slow)
    assert embed(model, data, out, share=(1, 6))["shards"]["left"] == 4 and len(times) == 2


def test_the_lock_of_a_process_that_was_killed_after_the_rename_goes(model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    embed(model, data, out)
    before = state(out)
    (out / ".part-1.parquet.lock").touch()
    found = embed(model, data, out)
    assert (found["written"], found["finished"]) == (0, 3)
    assert not list(out.glob(".*")) and state(out) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_kill_between_the_temporary_file_and_the_rename(model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    child = os.fork()
    if not child:
        replace, done = Path.replace, []

        def killed(stage, target):
            if Path(target).suffix == ".parquet":
                done.append(target)
                if len(done) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            return replace(stage, target)

        Path.replace = killed
        embed(model, data, out)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(state(out)) == ["part-0.parquet"] and left_overs(out)
    before = state(out)
    assert embed(model, data, out)["written"] == 2
    assert state(out)["part-0.parquet"] == before["part-0.parquet"] and not left_overs(out)
    ids = rows(out)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 18


@pytest.mark.parametrize("end", ["Ctrl-C", "disk full", "changed", "SIGTERM"])
def test_what_stops_a_shard_leaves_the_finished_ones_and_nothing_half(model, tmp_path, monkeypatch, end):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    write = TableWriter.write
    calls = []

    def failing(writer, columns):
        calls.append(columns)
        write(writer, columns)
        if len(calls) == 2:
            if end == "changed":
                pq.write_table(table(90, 5), data / "part-1.parquet")
                return
            raise {
                "Ctrl-C": KeyboardInterrupt(),
                "disk full": OSError(errno.ENOSPC, "No space left on device"),
                "SIGTERM": SystemExit(143),
            }[end]

    monkeypatch.setattr(TableWriter, "write", failing)
    match = {"Ctrl-C": "goes on", "disk full": "No space left", "changed": "part-1.parquet' changed while"}
    kind = {"Ctrl-C": Interrupted, "disk full": ArtifactError, "changed": DataError}.get(end, SystemExit)
    with pytest.raises(kind, match=match.get(end)) as error:
        embed(model, data, out)
    assert "\n" not in str(error.value)
    assert list(state(out)) == ["part-0.parquet"] and not left_overs(out)
    monkeypatch.undo()
    assert embed(model, data, out)["written"] == 2
    assert len(set(rows(out)["id"].to_pylist())) == 18


def test_an_unreadable_shard_ends_the_run_or_is_counted(model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    whole = (data / "part-1.parquet").read_bytes()
    (data / "part-1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"part-1\.parquet' cannot be read as .parquet .*--on-error skip"
    ) as error:
        embed(model, data, out)
    assert "\n" not in str(error.value) and list(state(out)) == ["part-0.parquet"]
    found = embed(model, data, out, on_error="skip")
    assert found["shards"] == {"total": 3, "done": 2, "skipped": 1, "left": 0} and found["rows"] == 13
    assert found["finished"] == 1  # by the run that an error ended
    assert "part-1.parquet" in found["skipped"]["part-1.parquet"]
    # another share keeps the reason, and a shard that is whole again is done
    assert embed(model, data, out, on_error="skip", share=(1, 2))["shards"]["skipped"] == 1
    (data / "part-1.parquet").write_bytes(whole)
    found = embed(model, data, out, on_error="skip")
    assert found["shards"] == {"total": 3, "done": 3, "skipped": 0, "left": 0} and found["skipped"] == {}


def test_an_unreadable_first_shard_is_skipped_too_but_not_all(model, tmp_path):
    data = write_shards(tmp_path / "in", (2, 3))
    (data / "part-0.parquet").write_bytes(b"PAR1")
    assert embed(model, data, tmp_path / "out", on_error="skip")["rows"] == 3
    (data / "part-1.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-1\.parquet"):
        embed(model, data, tmp_path / "none", on_error="skip")


def test_rows_that_cannot_be_read_are_named_or_counted_with_reasons(model, tmp_path):
    data = write_shards(tmp_path / "in", (3,))
    bad = table(3, 4).to_pylist()
    bad[1]["image"]["bytes"], bad[3]["image"]["bytes"] = b"no image", png(1)[:60]
    pq.write_table(pa.Table.from_pylist(bad, table(0, 1).schema), data / "part-1.parquet")
    with pytest.raises(DataError, match=r"part-1\.parquet, row 1 .*--on-error skip"):
        embed(model, data, tmp_path / "out")
    found = embed(model, data, tmp_path / "out", on_error="skip")
    assert found["rows"] == 5 and found["failed_rows"] == 2
    assert ["row 1 is not an image" in line or "row 3 " in line for line in found["failed"]["part-1.parquet"]]
    assert rows(tmp_path / "out")["id"].to_pylist()[3:] == ["part-1.parquet:0", "part-1.parquet:2"]
    with pytest.raises(DataError, match="row 1"):  # what was left out is an error again
        embed(model, data, tmp_path / "out")


@pytest.mark.parametrize("job", [{}, {"what": "score"}, {"what": "rank"}, {"what": "score", "score": "jepa"}])
def test_an_empty_shard_has_an_empty_output_with_the_same_columns(model, tmp_path, job):
    data = write_shards(tmp_path / "in", (3, 0))
    embed(model, data, tmp_path / "out", **job)
    full, empty = (pq.read_table(tmp_path / "out" / f"part-{i}.parquet") for i in range(2))
    assert len(full) == 3 and len(empty) == 0
    assert full.schema.remove_metadata() == empty.schema.remove_metadata()


@pytest.mark.parametrize(
    "change",
    [
        lambda of: of.drop_columns("label"),
        lambda of: of.drop_columns("image"),
        lambda of: of.set_column(1, "label", pa.array(range(len(of)))),
        lambda of: of.rename_columns(["picture", "label"]),
    ],
)
def test_shards_of_different_columns_are_refused_in_one_line(model, tmp_path, change):
    data = write_shards(tmp_path / "in")
    pq.write_table(change(table(0, 3)), data / "part-1.parquet")
    with pytest.raises(DataError, match=r"part-1\.parquet'") as error:
        embed(model, data, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert embed(model, data, tmp_path / "out", on_error="skip")["shards"]["skipped"] == 1


def test_labels_that_are_unknown_in_a_batch_are_null(model, tmp_path):
    data = write_shards(tmp_path / "in", (2,))
    known = table(2, 3)
    pq.write_table(known.set_column(1, "label", pa.array([None] * 3, pa.string())), data / "part-1.parquet")
    embed(model, data, tmp_path / "out")
    assert rows(tmp_path / "out")["label"].to_pylist() == ["cat", "dog", None, None, None]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_first_shard_without_labels_says_nothing_of_the_others(model, tmp_path, on_error):
    data = write_shards(tmp_path / "in", (3, 2))
    unknown = table(0, 3).set_column(1, "label", pa.nulls(3))
    pq.write_table(unknown, data / "part-0.parquet")
    done = embed(model, data, tmp_path / "out", on_error=on_error)
    assert done["shards"]["skipped"] == 0
    found = rows(tmp_path / "out")
    assert found["label"].to_pylist() == [None, None, None, "dog", "cat"]
    pq.write_table(unknown, data / "part-1.parquet")
    embed(model, data, tmp_path / "none")
    assert rows(tmp_path / "none")["label"].null_count == 6


@pytest.mark.parametrize("share", ["5/4", "0/4", "1/0", "3", "a/b", "-1/3", "1/2/3", "²/3", ""])
def test_a_wrong_share_is_one_line(share):
    with pytest.raises(ConfigError, match="give I/N"):
        parse_share(share)


def test_outputs_do_not_lie_among_inputs_nor_replace_what_is_not_theirs(model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    for inside in (data, data / "out"):
        with pytest.raises(DataError, match="lies in --data"):
            embed(model, data, inside)
    with pytest.raises(DataError, match="lies in --data"):
        embed(model, data / "part-0.parquet", data)
    out.write_text("notes")
    with pytest.raises(ArtifactError, match="out"):
        embed(model, data, out)
    out.unlink()
    out.mkdir()
    for found in (table(0, 1), None):
        if found is None:
            (out / "part-1.parquet").write_text("notes")
        else:
            pq.write_table(found, out / "part-1.parquet")
        before = (out / "part-1.parquet").read_bytes()
        with pytest.raises(ArtifactError, match=r"part-1.*--overwrite"):
            embed(model, data, out)
        assert (out / "part-1.parquet").read_bytes() == before and len(state(out)) == 1
    embed(model, data, out, overwrite=True)
    with pytest.raises(ArtifactError, match="is of 'embed', and this is 'score'"):
        embed(model, data, out, what="score")
    before = state(out)
    embed(model, data, out, overwrite=True)
    assert all(time != before[name] for name, time in state(out).items())


@pytest.mark.parametrize("below", ["", "folder"])
def test_an_output_that_is_a_file_is_one_line(model, tmp_path, below):
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="file is a file: give the name of a folder"):
            embed(model, write_shards(tmp_path / "in"), tmp_path / "file" / below, overwrite=overwrite)
        (tmp_path / "in").rename(tmp_path / f"in-{overwrite}")


def test_a_shard_that_another_process_writes_is_left_to_it(model, tmp_path, monkeypatch):
    claimed = runs_room.claimed

    def busy(path):
        if path.name == "part-1.parquet":
            raise runs_room.ClaimedError("another process writes it")
        return claimed(path)

    monkeypatch.setattr(runs_room, "claimed", busy)
    found = embed(model, write_shards(tmp_path / "in"), tmp_path / "out")
    assert found["written"] == 2 and found["shards"]["left"] == 1


@pytest.mark.parametrize("what", ["score", None])
def test_what_came_after_the_run_began_is_not_written_over(model, tmp_path, monkeypatch, what):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    worked = ShardWorker.__call__

    def then_others(worker, shard, place):
        done = worked(worker, shard, place)
        if worker.job.what == "embed" and shard.name == "part-0.parquet":
            with monkeypatch.context() as patch:
                patch.setattr(ShardWorker, "__call__", worked)
                if what is None:
                    (out / "part-1.parquet").write_text("notes")
                else:
                    worked(
                        ShardWorker(Job(model, device="cpu", what=what)), others, str(out / "part-1.parquet")
                    )
        return done

    others = next(
        shard
        for shard in runs_room.Plan.of(Job(model, device="cpu"), str(data), str(out)).shards
        if shard.name == "part-1.parquet"
    )
    monkeypatch.setattr(ShardWorker, "__call__", then_others)
    with pytest.raises(ArtifactError, match=r"part-1.*--overwrite"):
        embed(model, data, out)
    if what is None:
        assert (out / "part-1.parquet").read_text() == "notes"
    else:
        assert "score" in pq.read_schema(out / "part-1.parquet").names
    assert not (out / "part-2.parquet").exists() and not left_overs(out)
    monkeypatch.undo()
    assert embed(model, data, out, overwrite=True)["shards"]["left"] == 0


def test_a_worker_travels_without_its_model(model, tmp_path):
    from probjepa.data.shard_files import find_shards

    (shard,) = find_shards(str(write_shards(tmp_path / "in", (4,))))
    worker = ShardWorker(Job(model, device="cpu"))
    first = worker(shard, str(tmp_path / "a.parquet"))
    pickled = pickle.dumps(worker)
    assert len(pickled) < 2000
    second = pickle.loads(pickled)(shard, str(tmp_path / "b.parquet"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0} and first["rows"] == 4
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


def test_batches_of_a_shard_do_not_end_at_its_row_groups(model, tmp_path, monkeypatch):
    from probjepa.shards import images

    data = write_shards(tmp_path / "in", (11,))
    monkeypatch.setattr(images._Opened, "rows", 5)
    embed(model, data, tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out" / "part-0.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5, 5, 1]
    monkeypatch.undo()
    embed(model, data, tmp_path / "whole")
    one, whole = (np.array(rows(tmp_path / n)["embedding"].to_pylist()) for n in ("out", "whole"))
    np.testing.assert_allclose(one, whole, rtol=1e-5, atol=1e-6)


def test_no_output_stays_of_a_shard_that_is_skipped_or_gone(model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"
    assert embed(model, data, out)["without_input"] == []
    pq.write_table(pa.table({"a": [1]}), out / "other.parquet")  # of nobody here
    (data / "part-1.parquet").write_bytes(b"PAR1")
    (data / "part-2.parquet").unlink()
    with pytest.raises(DataError, match=r"part-1\.parquet"):
        embed(model, data, out)
    assert (out / "part-1.parquet").exists()
    found = embed(model, data, out, on_error="skip")
    assert list(found["skipped"]) == ["part-1.parquet"] and not (out / "part-1.parquet").exists()
    assert found["without_input"] == ["part-2.parquet"] and (out / "part-2.parquet").exists()
    assert json.loads((out / "manifest.json").read_text())["without_input"] == ["part-2.parquet"]


@pytest.mark.parametrize("share", [(0, 2), (3, 2), (1, 0), (1,), "1/2"])
def test_a_share_that_is_none_is_one_line(model, tmp_path, share):
    data = write_shards(tmp_path / "in", (2,))
    with pytest.raises(ConfigError, match="share"):
        embed(model, data, tmp_path / "out", share=share)


@pytest.mark.parametrize("setting", [{"what": "x"}, {"alpha": "0.1", "calibration": "x"}, {"seed": 1.5}])
def test_settings_of_a_job_are_of_their_type(setting):
    with pytest.raises(ConfigError, match=f"the setting {next(iter(setting))} takes"):
        Job("model", **setting)
    assert Job("a\udc80", reference="b\udc80").model == "a\udc80"  # a file's name that is no text
