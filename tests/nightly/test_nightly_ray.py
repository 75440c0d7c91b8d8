"""Shards on Ray: 40 seeded kills each of workers, of a writer in mid-write, and of the command."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from probjepa.shards import Job, RayEngine, run_shards
from shard_cases import rows, small_model, write_shards

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.nightly

KILLS, SHARDS, ROWS = 40, 90, 60


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("ray")
    write_shards(root / "in", [ROWS] * SHARDS)
    job = Job(str(small_model(root / "model")), what="score", score="jepa", device="cpu")
    run_shards(job, str(root / "in"), str(root / "own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", object_store_memory=100 << 20,
        )  # fmt: skip
    yield root, job, ray.get_runtime_context().gcs_address
    ray.shutdown()


def writers(out: Path) -> dict[str, int]:
    """The shards that are written now, and by which processes."""
    found = (re.fullmatch(r"\.(.+)\.[^.]*-(\d+)-\w+-\w+\.tmp", path.name) for path in out.glob(".*.tmp"))
    return {match[1]: int(match[2]) for match in found if match}


def workers() -> list[int]:
    """The processes of this cluster's actors, at work or not."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title, parent = (path / "cmdline").read_bytes(), (path / "stat").read_text().split()[3]
            grandparent = Path(f"/proc/{parent}/stat").read_text().split()[3]
        except (OSError, IndexError):
            continue
        if title.startswith(b"ray::_Actor") and int(grandparent) == os.getpid():
            found.append(int(path.name))
    return found


def lost_and_doubled(root: Path, out: Path) -> tuple[int, int]:
    expected, got = rows(root / "own"), rows(out)
    ids = got["id"].to_pylist()
    counts = len(set(expected["id"].to_pylist()) - set(ids)), len(ids) - len(set(ids))
    print(f"\nlost {counts[0]}, doubled {counts[1]} of {len(expected)}")
    assert got.equals(expected)
    return counts


@pytest.mark.parametrize("whom", ["worker", "writer"])
def test_killed_workers_lose_and_double_nothing(places, tmp_path, whom, monkeypatch):
    monkeypatch.setattr("probjepa.shards.ray_engine.RETRIES", KILLS)  # chance meets a shard again and again
    root, job, _ = places
    out, chosen, ended = tmp_path / "out", random.Random(whom), threading.Event()
    killed: list[int] = []
    victims = set(chosen.sample([f"part-{i}.parquet" for i in range(SHARDS)], KILLS))

    def killing():
        while len(killed) < KILLS and not ended.is_set():
            if whom == "worker":
                time.sleep(chosen.uniform(0.2, 2.0))
                found = workers() if writers(out) else []  # a start takes seconds: one of them is at work
                pid = chosen.choice(found) if found else None
            else:
                name, pid = next(((n, p) for n, p in writers(out).items() if n in victims), ("", None))
                victims.discard(name)
                time.sleep(chosen.uniform(0.0, 0.02) if pid else 0.001)
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)

    thread = threading.Thread(target=killing)
    thread.start()
    try:
        run_shards(job, str(root / "in"), str(out), engine=RayEngine(workers=2))
    finally:
        ended.set()
        thread.join()
    print(f"\n{whom}: {len(killed)} kills")
    assert len(killed) > KILLS // 2
    assert lost_and_doubled(root, out) == (0, 0)


def test_killed_commands_lose_and_double_nothing(places, tmp_path):
    root, job, address = places
    out, chosen = tmp_path / "out", random.Random(0)
    words = ["score", job.model, "--score", "jepa", "--data", str(root / "in"), "--out", str(out), "-q"]
    script = "import probjepa.cli; probjepa.cli.main()"
    for _ in range(KILLS):
        before = len(list(out.glob("*.parquet")))
        driver = subprocess.Popen(
            [sys.executable, "-c", script, *words, "--engine", "ray", "--address", address]
        )
        wanted = before + chosen.randrange(3)
        while driver.poll() is None and (len(list(out.glob("*.parquet"))) < wanted or not writers(out)):
            time.sleep(0.001)
        time.sleep(chosen.uniform(0.0, 0.1))
        driver.kill()
        driver.wait()
    run_shards(job, str(root / "in"), str(out), engine=RayEngine(workers=2))
    assert lost_and_doubled(root, out) == (0, 0)
