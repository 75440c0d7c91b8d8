"""Shards on a Ray cluster of two workers: the rows of one process, whatever dies on the way."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from probjepa.cli import run
from probjepa.data.rows import TableWriter
from probjepa.errors import ArtifactError, ConfigError, MissingExtraError
from probjepa.shards import Job, RayEngine, ShardWorker, ray_engine, run_shards
from shard_cases import rows, small_model, table, write_shards

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:  # workers know what the tests define
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        ray.init(
            address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", object_store_memory=100 << 20,
        )  # fmt: skip
    signal.signal(signal.SIGTERM, handler)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(small_model(tmp_path_factory.mktemp("ray") / "model"))


def writer_of(out, name) -> int | None:
    """The process that writes a shard now: its temporary file says so."""
    for path in out.glob(f".{name}.*.tmp"):
        return int(re.search(r"-(\d+)-[0-9a-f]+-[0-9a-f]+\.tmp$", path.name)[1])
    return None


def at_writing(out, name, act) -> threading.Thread:
    """Act on a process as soon as it writes a shard."""

    def wait():
        end = time.monotonic() + 60
        while (found := writer_of(out, name)) is None and time.monotonic() < end:
            time.sleep(0.0005)
        act(found)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def kill(pid) -> None:
    os.kill(pid, signal.SIGKILL)


def test_rows_are_those_of_this_process_though_a_writer_is_killed(cluster, model, tmp_path):
    data, out = write_shards(tmp_path / "in", (5, 300, 6, 0)), tmp_path / "ray"
    arguments = ["score", model, "--data", str(data), "-q"]
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    thread = at_writing(out, "part-1.parquet", kill)
    assert run([*arguments, "--out", str(out), "--engine", "ray"]) == 0
    thread.join()
    assert ray.is_initialized()  # as the caller had it
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run([*arguments, "--out", str(tmp_path / "own")]) == 0
    assert rows(out).equals(rows(tmp_path / "own")) and len(rows(out)) == 311
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    # each engine passes over what the other has finished
    again = run_shards(Job(model, what="score"), str(data), str(out))
    assert (again["written"], again["finished"]) == (0, 4)


def one_worker(kind):
    """An engine of one worker of this kind."""
    return lambda task, shards: RayEngine(workers=1)(replace(task, worker=kind(task.worker.job)), shards)


class Dying(ShardWorker):
    """A worker that the system kills while it writes one shard."""

    def __call__(self, shard, place):
        if shard.name == "part-3.parquet":
            TableWriter.write = lambda *_: kill(os.getpid())
        return super().__call__(shard, place)


def test_shards_that_cannot_be_done_are_counted(cluster, model, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "RETRIES", 0)
    data, out = write_shards(tmp_path / "in", (5, 5, 5, 5)), tmp_path / "out"
    (data / "part-1.parquet").write_bytes(b"PAR1")
    pq.write_table(table(0, 3).drop_columns("label"), data / "part-2.parquet")
    job = Job(model, device="cpu", on_error="skip")
    found = run_shards(job, str(data), str(out), engine=one_worker(Dying))
    assert found["shards"] == {"total": 4, "done": 1, "skipped": 3, "left": 0}
    assert all(f"{name}' " in reason for name, reason in found["skipped"].items())
    assert "part-3.parquet' ended its worker" in found["skipped"]["part-3.parquet"]


class Full(ShardWorker):
    """A worker whose disk is full at one shard."""

    def __call__(self, shard, place):
        if shard.name == "part-1.parquet":
            TableWriter.write = self._fail
        return super().__call__(shard, place)

    @staticmethod
    def _fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_one_worker_is_the_error_that_it_is_here(cluster, model, tmp_path):
    data, out = write_shards(tmp_path / "in"), tmp_path / "out"

    with pytest.raises(ArtifactError, match=r"cannot write .*No space left on device") as error:
        run_shards(Job(model, device="cpu"), str(data), str(out), engine=one_worker(Full))
    assert "\n" not in str(error.value) and [p.name for p in out.glob("*.parquet")] == ["part-0.parquet"]


@pytest.mark.nightly  # its kills of other kinds are in tests/nightly
def test_a_driver_that_is_stopped_or_killed_leaves_a_run_that_goes_on(cluster, model, tmp_path, capsys):
    data, out = write_shards(tmp_path / "in", (5, 300, 300)), tmp_path / "out"
    words = ["embed", model, "--data", str(data), "--out", str(out), "-q", "--engine", "ray"]
    one = [*words, "--workers", "1"]
    thread = at_writing(out, "part-1.parquet", lambda pid: os.kill(os.getpid(), signal.SIGINT))
    assert run(one) == 130
    thread.join()
    assert "stopped with 1 of" in capsys.readouterr().err
    script = "import probjepa.cli; probjepa.cli.main()"
    driver = subprocess.Popen([sys.executable, "-c", script, *one, "--address", cluster])
    at_writing(out, "part-2.parquet", lambda pid: driver.kill()).join()
    assert driver.wait() == -signal.SIGKILL
    assert sorted(path.name for path in out.glob("*.parquet")) == ["part-0.parquet", "part-1.parquet"]
    assert run([*words, "--shard", "1/1"]) == 0
    ids = rows(out)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 605
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"workers": 3}, "room for 2 workers of 1 CPUs and 0 GPUs, and 3 are wanted"),
        ({"cpus": 3}, "room for 0 workers of 3 CPUs"),
        ({"gpus": 1}, "room for 0 workers of 1 CPUs and 1 GPUs"),
        ({"address": "127.0.0.1:1"}, "leave the address '127.0.0.1:1' out"),
        ({"workers": 0}, "workers is 0"),
        ({"cpus": 0}, "cpus of a worker is 0"),
        ({"cpus": 1.5}, "cpus of a worker is 1.5"),
        ({"cpus": float("nan")}, "cpus of a worker is nan"),
        ({"gpus": -1}, "gpus of a worker is -1"),
        ({"gpus": float("inf")}, "gpus of a worker is inf"),
    ],
)
def test_what_a_cluster_cannot_have_is_one_line_at_once(cluster, model, tmp_path, settings, says):
    data = write_shards(tmp_path / "in", (2, 2, 2))
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        run_shards(Job(model), str(data), str(tmp_path / "out"), engine=RayEngine(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["closed", "silent", "another", "nowhere.invalid:6379", "127.0.0.1", "", "ray://127.0.0.1:1"]
)
def test_an_address_where_no_ray_answers_is_one_line(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_engine, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        if address == "closed":
            server.close()
        elif address == "another":
            threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad\r\n")).start()
        address = here if address in ("closed", "silent", "another") else address
        with (
            pytest.raises(ConfigError, match=re.escape(f"no Ray cluster answers at '{address}'")),
            ray_engine._connected(address),
        ):
            pass


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"probjepa\[ray\]"):
        RayEngine()
