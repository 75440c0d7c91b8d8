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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probjepa.errors import ArtifactError

CONFIG = "config.json"
LOCK = ".probjepa.lock"
_MOVING = ".probjepa.moving"  # stands in a folder while its files are replaced
RECORD = "settings.json"
_LONGEST = 200  # bytes of a name that a file system takes with more around it


#: what reading damaged content, or building what it describes, raises
DAMAGES = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


# --- writing --------------------------------------------------------------------------------------------


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Return the error of a file that cannot be written."""
    reason = error.strerror or first_line(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return ArtifactError(
        f"cannot write {_meant(path)}: {reason}; {'free some space or ' if full else ''}choose another place"
    )


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


def _stage_in(folder: Path, name: str) -> Path:
    """Return a free temporary name in a folder, which is made, and swept once a process."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _SWEPT:
        sweep(folder)
        _SWEPT.add(folder)
    stage = folder / temporary_name(name)
    _STAGES.add(stage)
    return stage


def refuse_irregular(path: Path) -> None:
    """Raise ArtifactError where a file is to be written and something else is there: a folder, a device."""
    if path.exists() and not path.is_file():
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
        stage = _stage_in(path.parent, path.name)
        os.close(os.open(stage, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield stage
        if path.exists():
            stage.chmod(stat.S_IMODE(path.stat().st_mode))
        if sync:
            with stage.open("rb+") as file:
                os.fsync(file.fileno())
        stage.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        discard(stage)


@contextmanager
def staged_directory(path: Path, last: str = CONFIG) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well.

    Where ``path`` is there, the files move into it, each by a rename: an old file ``last`` goes first and the
    new one comes last. A folder without it is not taken for a whole one, so that a move cut short
    never leaves one model's weights under another's settings.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"{path} is a file: give the name of a folder")
    try:
        fresh = not path.exists()  # one that is there stays the folder that it is: processes may stand in it
        stage = _stage_in(path.parent if fresh else path, path.name)
        stage.mkdir()
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield stage
        if fresh:
            with suppress(OSError):  # somebody may have made it meanwhile
                stage.replace(path)
                return
        path.mkdir(exist_ok=True)
        if (stage / last).exists():
            (path / _MOVING).write_text(last, encoding="utf-8")
            (path / last).unlink(missing_ok=True)
        for item in sorted(stage.iterdir(), key=lambda item: item.name == last):
            item.replace(path / item.name)
        (path / _MOVING).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        discard(stage)


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


def drop_spent_parts(path: Path) -> None:
    """Remove the parts of an output that is whole: their record is the first of them that goes."""
    parts = parts_of(path)
    if path.exists() and parts.is_dir() and not (parts / RECORD).exists():
        discard(parts)


def is_free(path: Path) -> bool:
    """Whether nothing is at ``path``, or an empty folder; what a killed process left does not count."""
    if not path.is_dir():
        return not path.exists()
    return all(item.name == LOCK or _TEMPORARY.fullmatch(item.name) for item in path.iterdir())


def _cut_short(folder: Path) -> bool:
    """Whether a process was killed while it replaced the files of a folder, the last of which is missing."""
    mark = folder / _MOVING
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
