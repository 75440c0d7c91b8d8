"""Ctrl-C: the first asks a run to save and stop, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, MappingProxyType
from typing import Any

from probjepa.errors import ProbjepaError
from probjepa.terminal import say_at_once


class Interrupted(ProbjepaError):
    """A run was stopped by a signal; the message says how to go on. The command line exits with code 130."""

    def otherwise(self, advice: str) -> Interrupted:
        """Return it with another way to go on."""
        return Interrupted(f"{str(self).partition(':')[0]}{advice}")


class StopRequest:
    """Whether a signal has asked for a stop: ``count`` is how often; ``before`` has their handlers so far."""

    def __init__(self, before: Mapping[signal.Signals, Any] = MappingProxyType({})) -> None:
        self.count = 0
        self._before = before

    def __bool__(self) -> bool:
        return self.count > 0

    def listen(self) -> None:
        """Handle the signals, again where a library has put a handler of its own in the place since.

        What was ignored before (nohup) is ignored again.
        """
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is signal.SIG_IGN else self._handle)

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
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    handlers = {signum: signal.getsignal(signum) for signum in signals}
    before = {signum: handler for signum, handler in handlers.items() if handler is not None}
    request = StopRequest(before)
    try:
        request.listen()
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
