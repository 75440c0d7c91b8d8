"""Text for the terminal: nothing in a name acts there, and a stream that is lost changes nothing."""

from __future__ import annotations

import os
import select
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from probjepa.registry import importing

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
_DIRECTIONS = {
    *map(chr, (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
}  # turn a text around


def printable(text: object) -> str:
    """Return a text in one line; control characters, those of direction too, and no text become escapes.

    Examples
    --------
    >>> print(printable("a\\x1b[2Jb\\nc"))
    a\\x1b[2Jb\\nc
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS
        else c
        for c in str(text)
    )


def say(text: str, *, error: bool = False) -> None:
    """Print one line to stdout or, with ``error``, to stderr; one that cannot be printed is lost."""
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def say_at_once(text: str) -> None:
    """Print one line to stderr, from a signal's handler: one that would have to wait is lost."""
    try:
        waits = not select.select([], [sys.stderr], [], 0)[1]
    except (OSError, ValueError, TypeError):  # no file: a notebook's
        waits = False
    with suppress(RuntimeError):  # the signal came while stderr was written
        if not waits:
            say(text, error=True)


class Steady:
    """A text stream that takes any text and never fails: what cannot be written is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        if self._stream is not None:  # as a closed one is
            if isinstance(text, str):  # click tries what else the stream takes
                encoding = getattr(self._stream, "encoding", None) or "utf-8"
                text = text.encode(encoding, "backslashreplace").decode(encoding)
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        """Send what is buffered nowhere: Python ends with code 120 if it cannot flush it at its exit."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tracked(items: Iterable[T], what: str, total: int, *, shown: bool) -> Iterable[T]:
    """Return items under a bar on stderr that goes when they end; without ``shown``, as they are."""
    if not shown:
        return items
    with importing():
        from rich.markup import escape
        from rich.progress import track
    return track(items, escape(printable(what)), total, **passing(shown))


def passing(shown: bool) -> dict[str, Any]:
    """Return how rich shows a bar that goes when it ends: on stderr, and not where that is a file."""
    where = console()
    where.quiet = not (shown and where.is_interactive)  # rich before 15 ends a bar in a file by an empty line
    return {"console": where, "transient": True, "disable": where.quiet}


def console(*, error: bool = True) -> Console:
    """Return a console of rich on stderr or stdout that takes text as it is: no markup, no emoji."""
    with importing():
        from rich.console import Console
    stream: Any = Steady(sys.stderr if error else sys.stdout)
    return Console(file=stream, markup=False, emoji=False, highlight=False)
