"""Shards on a Ray cluster: actors, each with one model and at one shard at a time.

Plain actors, not Ray Data: that tries a shard which kills its worker again for ever, waits for ever for what
a cluster does not have, and hands on an error as text.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from probjepa.data.shard_files import Shard, ShardError
from probjepa.errors import ConfigError, MissingExtraError, short
from probjepa.provenance import usable_cpus
from probjepa.shards.runs import Outcome, Outcomes, Task

RETRIES = 3  # of a shard whose worker dies
PATIENCE = 300.0  # seconds without any worker
ANSWER = 10.0  # seconds for an address
_STORE = 100 << 20  # bytes that a cluster of this machine shares: only outcomes travel
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # of HTTP/2, no settings
# how threads wait and malloc keeps memory, as the command line has it
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0",
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62),
}  # fmt: skip


@dataclass(frozen=True)
class RayEngine:
    """Does shards on a Ray cluster, as ``run_shards(engine=...)`` has it.

    A shard whose worker dies is done again by another, three times at most. A cluster that was started for it
    is shut down after it; one that the caller is connected to stays as it was.

    Attributes
    ----------
    address
        of a cluster, "HOST:PORT", "auto" or "ray://HOST:PORT"; None: the one that the caller is connected to,
        or $RAY_ADDRESS, or one of this machine's own
    workers
        how many; None: as many as the cluster has room for
    cpus, gpus
        of each worker; ``cpus`` are its threads, too

    Raises
    ------
    ConfigError
        for numbers that make no sense; from the run, if no cluster answers or it has no room for the workers
    MissingExtraError
        without Ray
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        """Check the numbers, and that Ray is there."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}: give a number from 1 on")
        for name, value, least in (("cpus", self.cpus, "above 0"), ("gpus", self.gpus, "from 0 on")):
            if not (0 < value < math.inf or (value == 0 and name == "gpus")):
                raise ConfigError(f"{name} of a worker is {value:g}: give a number {least}")
            if value > 1 and value != int(value):
                raise ConfigError(f"{name} of a worker is {value:g}: above 1, Ray gives whole ones")
        if find_spec("ray") is None:
            raise MissingExtraError("ray", "ray")

    def __call__(self, task: Task, shards: Sequence[Shard]) -> Outcomes:
        """Yield each shard with what became of it, as they end."""
        if not shards:
            return
        with _connected(self.address) as ray:
            room = self._room(ray.nodes())
            if room < (self.workers or 1):
                raise ConfigError(
                    f"the Ray cluster has room for {room} workers of {self.cpus:g} CPUs and {self.gpus:g} "
                    f"GPUs, and {self.workers or 1} are wanted: ask for fewer or smaller ones, or add nodes"
                )
            threads = max(1, int(self.cpus))
            start = ray.remote(_Actor).options(
                num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=-1, max_task_retries=0,
                runtime_env={"env_vars": {**_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}},
            )  # fmt: skip
            actors = [
                start.remote(task, task.worker.marks, threads, os.getcwd())
                for _ in range(min(self.workers or room, len(shards)))
            ]
            try:
                yield from _outcomes(ray, actors, shards)
            finally:
                for actor in actors:
                    ray.kill(actor)

    def _room(self, nodes: Sequence[dict[str, Any]]) -> int:
        """How many workers there is room for: each needs a node."""
        wanted = {name: of for name, of in (("CPU", self.cpus), ("GPU", self.gpus)) if of}
        has = [node["Resources"] for node in nodes if node["Alive"]]
        return sum(min(int(of.get(name, 0) / most + 1e-9) for name, most in wanted.items()) for of in has)


class _Actor:
    """A worker's process, and its model."""

    def __init__(self, task: Task, marks: dict[str, str], threads: int, home: str) -> None:
        torch.set_num_threads(threads)
        with suppress(OSError):  # relative paths mean the same, where the folder is there
            os.chdir(home)
        self.task, self.marks = task, marks

    def ready(self) -> None:
        """Say that it is there."""

    def do(self, shard: Shard) -> Outcome:
        if self.task.worker.marks != self.marks:
            raise ConfigError(
                f"a worker on {socket.gethostname()} has another model, reference or version of probjepa: "
                "install the same on all nodes, and give paths that all see"
            )
        return self.task(shard)


def _outcomes(ray: Any, actors: Sequence[Any], shards: Sequence[Shard]) -> Outcomes:
    from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

    queue, idle, deaths = deque(shards), list[Any](), Counter[Shard]()
    busy: dict[Any, tuple[Any, Shard | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    seen, came = time.monotonic(), False  # when a worker was there, and whether one ever was
    while queue or any(shard for _, shard in busy.values()):
        while queue and idle:
            actor, following = idle.pop(), queue.popleft()
            busy[actor.do.remote(following)] = actor, following
        ended, _ = ray.wait(list(busy), timeout=1.0)  # signals are heeded between two
        if idle or any(shard for _, shard in busy.values()):
            seen = time.monotonic()
        elif not ended and time.monotonic() - seen > PATIENCE:
            raise ConfigError(
                f"no worker came up in {PATIENCE:g} seconds, with other work on the cluster perhaps: run the "
                "command again later"
            )
        if not ended:
            continue
        actor, shard = busy.pop(ended[0])
        try:
            outcome = ray.get(ended[0])
        except RayTaskError as error:
            raise error.cause from error  # as in this process
        except (RayActorError, OutOfMemoryError, NodeDiedError) as error:  # Ray starts the worker again
            if shard is None and isinstance(error, ActorDiedError):  # its start fails
                if not busy and not idle:
                    if came:
                        raise ConfigError(
                            f"the Ray cluster has lost its workers ({_last(error)}): see that it is up; the "
                            "same command goes on"
                        ) from None
                    raise ConfigError(f"no worker can start on the Ray cluster: {_last(error)}") from None
                continue
            busy[actor.ready.remote()] = actor, None
            if shard is None:
                continue
            deaths[shard] += 1
            if deaths[shard] <= RETRIES:
                queue.appendleft(shard)
                continue
            outcome = ShardError(
                f"'{shard.path}' ended its worker {deaths[shard]} times, for want of memory perhaps: give "
                "workers more, or leave the shard out with --on-error skip"
            )
        else:
            idle.append(actor)
            came = True
        if shard is not None:
            yield shard, outcome


def _last(error: Exception) -> str:
    return short(str(error).strip().rpartition("\n")[2], 200)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yield Ray, connected to a cluster."""
    import ray

    if ray.is_initialized():
        if address is not None:
            raise ConfigError(f"Ray is connected already: leave the address '{address}' out")
        yield ray
        return
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": usable_cpus(), "include_dashboard": False, "object_store_memory": _STORE}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _answers(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # of many types
            raise ConfigError(
                f"no Ray cluster answers at '{address}' ({_last(error)}): check the address, and `ray status`"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():  # Ray has one of its own
                signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise OSError or ValueError unless gRPC answers at an address; Ray itself would ask for minutes."""
    if address in ("local", "auto") or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as there:
        there.sendall(_GREETING)
        if there.recv(9)[3:4] != b"\x04":  # SETTINGS
            raise ValueError("what answers is not Ray")
