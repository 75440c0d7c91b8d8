"""Files: written under a temporary name and renamed."""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from probjepa.errors import ArtifactError

CONFIG = "config.json"
LOCK = ".probjepa.lock"
MOVING = ".probjepa.moving"  # stands in a folder while its files are replaced
RECORD = "settings.json"
_WRITTEN = "written"  # beside finished parts: which file the output is, once it has its name
_LONGEST = 200  # bytes of a name that a file system takes with more around it


#: what reading damaged content, or building what it describes, raises
DAMAGES = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def array_reason(error: BaseException) -> str:
    """Return why numpy cannot read an array, without its advice to unpickle it."""
    said = first_line(error)
    return "no array, or one of Python objects, which are never read" if "allow_pickle" in said else said


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that may be opened: a pipe or a device could hang, or never end.

    Raises
    ------
    OSError
        if there is none, or it is no regular file
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return Path(path)


def file_state(file: Path) -> tuple[int, int, int] | None:
    """A file's number, size and time of change; None if it is gone, which a mapping outlives."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_rewritten(file: Path, then: tuple[int, int, int] | None) -> bool:
    """Whether a file was written to in place since its ``file_state`` was this, and not replaced."""
    now = file_state(file) if then else None
    return now is not None and then is not None and now[0] == then[0] and now != then


# --- writing --------------------------------------------------------------------------------------------


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Return the error of a file that cannot be written."""
    reason = error.strerror or first_line(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full and (found := _PARTS.fullmatch(path.parent.name)):
        return ArtifactError(
            f"cannot write a part of {path.parent.parent / found['name']}: {reason}; free some space and run "
            "the same command again: it goes on"
        )
    return ArtifactError(
        f"cannot write {_meant(path)}: {reason}; {'free some space or ' if full else ''}choose another place"
    )


def exists(path: Path) -> bool:
    """Whether something is where an output is to be; ArtifactError where it cannot be looked for."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is in no name
        return False
    except OSError as error:  # such as a name that is too long
        raise cannot_write(path, error) from error
    return True


def _meant(path: Path) -> Path:
    """Where a file that is written under a temporary folder's name will be."""
    meant = Path()
    for part in path.parts:
        found = _TEMPORARY.fullmatch(part)
        name = found["name"] if found else part
        meant = meant if found and name == meant.name else meant / name
    return meant


def _here() -> str:
    """What tells apart where processes have their numbers: machines, their starts, containers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:8]


# a temporary name says whose it is: .NAME.HERE-PID-PROCESS-RANDOM.tmp; PROCESS tells two processes of one
# number apart, as those of a container that was started again
_PROCESS = secrets.token_hex(4)
_HERE = _here()
_PARTS = re.compile(r"\.(?P<name>.*)\.parts")
_FORGOTTEN = 7 * 24 * 3600  # seconds that a file of another machine's process was not written for
_TEMPORARY = re.compile(
    r"\.(?P<name>.*)\.(?P<here>[^.]*)-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-[0-9a-f]{8}\.tmp"
)
_SWEPT: set[Path] = set()
_STAGES: set[Path] = set()  # that are in use


def temporary_name(name: str) -> str:
    """Return a hidden name of this process for what will be called ``name``."""
    mark = f"{_HERE}-{os.getpid()}-{_PROCESS}-{secrets.token_hex(4)}"
    return f".{name[:40]}.{mark}.tmp"


def _is_left_over(item: os.DirEntry[str]) -> bool:
    """Whether it is a temporary one of a process that is no more.

    Of another machine's or container's processes nothing is known: what they write stays for a week.
    """
    found = _TEMPORARY.fullmatch(item.name)
    if found is None:
        return False
    if found["here"] != _HERE:
        return time.time() - item.stat(follow_symlinks=False).st_mtime > _FORGOTTEN
    if int(found["pid"]) == os.getpid():
        return found["process"] != _PROCESS
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left in a folder under temporary names."""
    with suppress(OSError):
        for item in os.scandir(folder):
            if _is_left_over(item):
                discard(Path(item.path))


def discard(stage: Path) -> None:
    """Remove a temporary file or folder, where there is one."""
    if stage.is_dir() and not stage.is_symlink():
        shutil.rmtree(stage, ignore_errors=True)
    else:
        stage.unlink(missing_ok=True)
    _STAGES.discard(stage)


@atexit.register
def _discard_stages() -> None:
    """Remove what a signal that came while it was removed has left."""
    for stage in [stage for stage in _STAGES if f"-{os.getpid()}-" in stage.name]:  # not a parent's
        with suppress(OSError):
            discard(stage)


def missing_to(folder: Path) -> list[Path]:
    """Return the folders that are made where this one is, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def drop_empty(folders: list[Path]) -> None:
    """Remove folders that were made, the innermost first, but for those that something is in."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; where the block fails, what was made goes again, unless something is in it."""
    missing = missing_to(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        drop_empty(missing)
        raise


def _stage_in(folder: Path, name: str) -> Path:
    """Return a free temporary name in a folder, which is swept once a process."""
    if folder not in _SWEPT:
        sweep(folder)
        _SWEPT.add(folder)
    stage = folder / temporary_name(name)
    _STAGES.add(stage)
    return stage


def _begin(make: Callable[[], None], folder: Path) -> None:
    """Make what stands in a folder, and the folder again where another process has just taken it away."""
    try:
        make()
    except FileNotFoundError:  # which had made it, and failed
        folder.mkdir(parents=True, exist_ok=True)
        make()


def refuse_irregular(path: Path) -> None:
    """Raise ArtifactError where a file is to be written and something else is there: a folder, a device."""
    if exists(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ArtifactError(f"{path} is {what}: give the name of a file")


@contextmanager
def staged_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` when the block ends well.

    A link stays one: its target is written. A file that is replaced keeps its mode; a new one has that of the
    umask. With ``sync`` the content is on the disk before it takes its name. Raises ArtifactError, one line,
    when the disk is full, the folder cannot be written, or ``path`` is no regular file.
    """
    path = Path(os.path.realpath(path))
    refuse_irregular(path)
    try:
        with _made(path.parent):
            stage = _stage_in(path.parent, path.name)
            try:
                _begin(lambda: stage.touch(exist_ok=False), path.parent)
                yield stage
                if path.exists():
                    stage.chmod(stat.S_IMODE(path.stat().st_mode))
                if sync:
                    with stage.open("rb+") as file:
                        os.fsync(file.fileno())
                stage.replace(path)
            finally:
                discard(stage)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def replacing(folder: Path, last: str, *others: str) -> Iterator[None]:
    """Mark a folder as cut short while the block replaces its files; ``last``, then ``others`` go before."""
    try:
        write_text(folder / MOVING, last)
        for name in (last, *others):
            (folder / name).unlink(missing_ok=True)
        yield
    except BaseException:
        if exists(folder / last):  # the mark says for as long as it is missing why that is
            (folder / MOVING).unlink(missing_ok=True)
        raise
    (folder / MOVING).unlink(missing_ok=True)


@contextmanager
def staged_directory(path: Path, last: str = CONFIG, *, drop: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well.

    Where ``path`` is there, the files move into it, each by a rename: an old file ``last`` goes first and the
    new one comes last. A folder without it is not taken for a whole one, so that a move cut short
    never leaves one model's weights under another's settings. Old files called as in ``drop`` go with
    ``last``.
    """
    path = Path(os.path.realpath(path))
    fresh = not exists(path)  # one that is there stays the folder that it is: processes may stand in it
    if not (fresh or path.is_dir()):
        raise ArtifactError(f"{path} is a file: give the name of a folder")
    home = path.parent if fresh else path
    try:
        with _made(home):
            stage = _stage_in(home, path.name)
            try:
                _begin(stage.mkdir, home)
                yield stage
                if fresh:
                    with suppress(OSError):  # somebody may have made it meanwhile
                        stage.replace(path)
                        return
                path.mkdir(exist_ok=True)
                with replacing(path, last, *drop) if (stage / last).exists() else nullcontext():
                    for item in sorted(stage.iterdir(), key=lambda item: item.name == last):
                        item.replace(path / item.name)
            finally:
                discard(stage)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; ArtifactError if it cannot be."""
    with staged_file(path) as stage:
        # names of files may hold bytes that are no text
        stage.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` by :func:`staged_file`, on the disk before it is renamed; ArtifactError as there."""
    with staged_file(Path(path), sync=True) as stage, open(stage, "wb") as file:
        file.write(content)


def parts_of(path: Path) -> Path:
    """Return the hidden folder where finished parts of an output wait; ``RECORD`` says whose they are."""
    return hidden_beside(path, "parts")


def refuse_stopped(path: Path, overwrite: bool) -> None:
    """Raise ArtifactError where parts of an output wait to be gone on with and ``overwrite`` is not set."""
    if not overwrite and (parts_of(path) / RECORD).exists():
        raise ArtifactError(
            f"a JEPA-SCORE of {path} was stopped and can go on ({parts_of(path)}): choose another --out, or "
            "pass --overwrite"
        )


def drop_parts(path: Path) -> None:
    """Remove the parts of an output that something else has replaced."""
    parts = parts_of(path)
    if parts.is_dir():
        (parts / RECORD).unlink(missing_ok=True)  # first, as ``drop_spent_parts`` has it
        discard(parts)


def hidden_beside(path: Path, ending: str) -> Path:
    """Return a hidden name that is ``path``'s own, beside where it leads to, however long its name is."""
    place = Path(os.path.realpath(path))
    name = os.fsencode(place.name)
    unique = place.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()
    return place.parent / f".{unique}.{ending}"


def note_written(path: Path, stage: Path) -> None:
    """Say beside the parts of an output, before ``stage`` takes its name, that this is what they make."""
    (parts_of(path) / _WRITTEN).write_text(str(file_state(stage)), encoding="utf-8")


def drop_spent_parts(path: Path) -> None:
    """Remove the parts of an output that is the file they made, or whose record is gone: it goes first."""
    parts = parts_of(path)
    if path.exists() and parts.is_dir():
        noted = parts / _WRITTEN
        written = noted.is_file() and noted.read_bytes() == str(file_state(path)).encode()
        if written or not (parts / RECORD).exists():
            drop_parts(path)


def is_free(path: Path) -> bool:
    """Whether nothing is at ``path``, or an empty folder; what a killed process left does not count."""
    if not exists(path):
        return True
    return path.is_dir() and all(
        item.name == LOCK or _TEMPORARY.fullmatch(item.name) for item in path.iterdir()
    )


def _cut_short(folder: Path) -> bool:
    """Whether a process was killed while it replaced the files of a folder, the last of which is missing."""
    mark = folder / MOVING
    return mark.is_file() and not (folder / mark.read_text(encoding="utf-8")).exists()


def refuse_existing(path: Path, overwrite: bool, instead: str = "choose another --out") -> None:
    """Raise ArtifactError where an output is already there, and whole, and ``overwrite`` is not set."""
    if not overwrite and not is_free(path) and not _cut_short(path):
        raise ArtifactError(f"{path} exists already: {instead}, or pass --overwrite")


def refuse_foreign(folder: Path, own: str = "report.html") -> None:
    """Raise ArtifactError where a folder to be overwritten has files, but not ``own``, which is ours.

    It is gone where a process was killed while it replaced the files.
    """
    ours = (folder / own).exists() or _cut_short(folder)
    if folder.is_dir() and not is_free(folder) and not ours:
        raise ArtifactError(f"{folder} has files of something else, and no {own}: choose another --out")
