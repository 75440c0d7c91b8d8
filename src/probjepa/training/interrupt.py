"""Ctrl-C: the first asks a run to save and stop, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from probjepa.errors import ProbjepaError
from probjepa.terminal import say_at_once


class Interrupted(ProbjepaError):
    """A run was stopped by a signal; the message says how to go on. The command line exits with code 130."""


class StopRequest:
    """Whether a signal has asked for a stop: ``count`` is how often."""

    def __init__(self) -> None:
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        say_at_once("stopping after this step; press Ctrl-C again to stop at once")


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a :class:`StopRequest` for the length of the block.

    Outside the main thread Python delivers no signals: the request then never comes. A handler that was not
    set by Python is left alone, since it could not be put back; so is a signal that is ignored (nohup).
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    handlers = {signum: signal.getsignal(signum) for signum in signals}
    left_alone = (None, signal.SIG_IGN)
    before = {signum: handler for signum, handler in handlers.items() if handler not in left_alone}
    for signum in before:
        signal.signal(signum, request._handle)
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
