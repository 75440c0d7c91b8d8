"""Signals: which are heeded, and that a message that cannot be said changes nothing."""

import os
import signal

import pytest

from probjepa.training.interrupt import stop_on_signal

HEEDED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Lost:
    """A stream whose reader is gone."""

    def __init__(self, handle):
        self.fileno = lambda: handle

    def write(self, text):
        raise BrokenPipeError

    flush = write


def waiting():
    """A pipe that is full, which nobody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(write, True)
    return os.fdopen(write, "w", buffering=1), read


@pytest.mark.parametrize("signum", HEEDED)
@pytest.mark.parametrize("stream", ["broken", "full", "none"])
def test_a_signal_is_heeded_whatever_becomes_of_its_message(signum, stream, monkeypatch):
    if stream == "full":
        lost, _ = waiting()
    else:
        lost = Lost(os.open(os.devnull, os.O_WRONLY)) if stream == "broken" else None
    monkeypatch.setattr("sys.stderr", lost)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signum)
        assert stop.count == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", HEEDED)
def test_a_handler_that_a_library_has_set_since_is_replaced(signum):
    before = signal.getsignal(signum)
    with stop_on_signal() as stop:
        signal.signal(signum, lambda *_: pytest.fail("the library's handler was called"))
        stop.listen()
        os.kill(os.getpid(), signum)
        assert stop.count == 1
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("again", [False, True], ids=["", "and again"])
@pytest.mark.parametrize("signum", HEEDED)
def test_a_signal_that_is_ignored_stays_ignored(signum, again):
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            if again:
                signal.signal(signum, lambda *_: pytest.fail("the library's handler was called"))
                stop.listen()
            os.kill(os.getpid(), signum)
            assert not stop
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)
