"""Waiting for what another process does."""

import time


def wait_for_file(path, process):
    """Return once ``path`` is there; fail if the process ends before, or after two minutes."""
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
