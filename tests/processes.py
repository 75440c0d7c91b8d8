"""What tests of several processes share."""

import socket
import time


def free_port():
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_file(path, process):
    """Return once ``path`` is there; fail if the process ends before, or after two minutes."""
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
