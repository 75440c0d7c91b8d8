"""One process an output: it is claimed before the work begins."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probjepa.errors import ArtifactError
from probjepa.files import (
    LOCK,
    cannot_write,
    drop_empty,
    drop_spent_parts,
    exists,
    hidden_beside,
    missing_to,
    refuse_irregular,
    sweep,
)

_HELD: dict[Path, int] = {}  # by which thread of this process, whose commands may lie in each other


class ClaimedError(ArtifactError):
    """Another process, or another thread, writes the output."""


@contextmanager
def claimed(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Keep other processes and threads from writing ``path``, a file or a ``folder``, while the block runs.

    What killed processes left there goes. A folder that was made for it and stays empty goes too.

    Raises
    ------
    ClaimedError
        if another process, or another thread, writes it
    ArtifactError
        if it is of another kind, or cannot be written
    """
    place, me = Path(os.path.realpath(path)), threading.get_ident()
    if _HELD.get(place) == me:
        yield
        return
    if not folder:
        refuse_irregular(place)
    elif exists(place) and not place.is_dir():
        raise ArtifactError(f"{path} is a file: give the name of a folder")
    missing = missing_to(place.parent)
    lock = None
    try:
        if _HELD.setdefault(place, me) != me:
            raise ClaimedError(f"another thread writes {path}: wait for it, or give another out")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            for swept in (place.parent, *((place, *place.glob("*/")) if folder else ())):
                sweep(swept)
            lock = _lock(path, place)
            home = place if place.is_dir() else place.parent
            if not os.access(home, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
            drop_spent_parts(place)  # once they are no other process's
        except OSError as error:
            raise cannot_write(path, error) from error
        yield
    finally:
        if _HELD.get(place) == me:  # the lock is the process's: another thread's is not to be touched
            try:
                if lock is None:  # a signal may have come when its file was there, and nothing held it yet
                    with suppress(OSError, ArtifactError):
                        lock = _lock(path, place)
                if lock is not None:
                    _release(*lock)
            finally:
                del _HELD[place]
            drop_empty(missing)


def _release(file: Path, handle: int) -> None:
    try:
        file.unlink(missing_ok=True)
    except BaseException as error:  # a signal that comes just now
        with suppress(OSError):
            file.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
    finally:
        os.close(handle)


def has_lock(path: Path) -> bool:
    """Whether a file of a claim lies beside ``path``: a process writes it, or was killed when it did."""
    return hidden_beside(path, "lock").exists()


def _lock(path: Path, place: Path) -> tuple[Path, int] | None:
    """Lock a file beside the place, or in it; None where the system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    beside = hidden_beside(place, "lock")
    try:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not place.is_dir():
            raise
        beside = place / LOCK
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # of the process, not of the file: a worker that outlives it holds nothing
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(handle).st_ino == beside.stat().st_ino  # not one that its holder has just removed
    except (BlockingIOError, PermissionError, FileNotFoundError):
        mine = False
    except OSError:  # a file system without locks
        mine = True
    if not mine:
        os.close(handle)
        raise ClaimedError(f"another process writes {path}: wait for it, or give another out (--out)")
    return beside, handle
