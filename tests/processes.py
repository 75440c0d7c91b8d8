"""What tests of several processes share."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from probjepa import provenance
from probjepa.cli import run


def free_port():
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# processes that do not wait for imports: forks of one that has done nothing but import torch and Lightning
READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(["lightning.pytorch", "probjepa.training"])


def forked(said, env, target, *words):
    """Start ``target(*words)`` in a process of its own, and return it, a ``multiprocessing.Process``.

    ``env`` joins its environment, and the file ``said`` takes what it writes to stderr.
    """
    process = READY.Process(target=_told, args=(said, env, target, words))
    process.start()
    return process


def _told(said, env, target, words):
    with open(said, "wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(env)
    provenance.CPUINFO = Path(os.devnull)  # in float32, as here: see conftest.py
    target(*words)


def joined(processes, *, seconds=300, together=True):
    """Wait until all have ended, and return their exit codes.

    What still runs after so many ``seconds`` is killed: as a child of this process it would hold its end up.
    So are the others, if they work ``together``, once one has failed.
    """
    deadline = time.monotonic() + seconds
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.01)
            if together and any(process.exitcode for process in processes):
                break
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def command_line(*words):
    """Be the command line, with these words."""
    sys.exit(run(words))


def wait_for_file(path, process):
    """Return once ``path`` is there; fail if the process ends before, or after two minutes."""
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


_HOLDER = """
import sys
from pathlib import Path
from probjepa.claims import claimed
with claimed(Path(sys.argv[1]), folder=bool(int(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def claiming(place, *, folder):
    """Return the command of a process that claims ``place`` until its input ends, and says so."""
    return [sys.executable, "-c", _HOLDER, str(place), str(int(folder))]


@contextmanager
def held(place, *, folder):
    """Have another process claim ``place`` for the length of the block, or until it is killed."""
    command = claiming(place, folder=folder)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            yield holder
            holder.communicate()
        finally:
            holder.kill()
