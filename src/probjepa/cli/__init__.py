"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from types import FrameType

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_INTERRUPTED = "interrupted: run the same command again (train, where it had begun: with --resume)"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has ended a command that does not save itself."""


def main() -> None:
    """Run ``probjepa``: 0 when done, 2 after bad input (one line on stderr), 130 after Ctrl-C.

    SIGTERM and SIGHUP end a command that does not save itself with 128 + their number.
    """
    for signum in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(signum) is signal.SIG_DFL:  # nohup ignores SIGHUP, and that stays
            signal.signal(signum, _terminate)
    _open_streams()
    own_process()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second Ctrl-C
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """End by an exception, so that nothing half-written stays behind."""
    raise Terminated(128 + signum)


def _open_streams() -> None:
    """Give a closed standard stream's number to nothing, or the next file that is opened would have it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def own_process() -> None:
    """Set up a process that is the command's own: how its threads wait, how many they are, what malloc keeps.

    Threads that wait by spinning hold the processors that others, or each other, want; they are no more than
    a container may use. Memory that is freed is kept: giving a step's activations back to the system and
    faulting them in again takes a tenth to a third of the step. What the user has set stays. To be called
    before torch is imported.
    """
    from probjepa.provenance import OWN_THREADS, usable_cpus

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    cpus = usable_cpus()
    if cpus < (os.cpu_count() or 1) and "OMP_NUM_THREADS" not in os.environ:  # OpenMP does not heed a quota
        os.environ |= {"OMP_NUM_THREADS": str(cpus), OWN_THREADS: "1"}
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with suppress(OSError, AttributeError, TypeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; what a user can cause ends in one line, no traceback."""
    from probjepa.terminal import Steady

    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # click writes to the stream itself
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with redirect_stdout(Steady(sys.stdout)), redirect_stderr(Steady(sys.stderr)):
        code = _run(arguments)
        sys.stdout.flush()
        return code


def _expanded(argument: str) -> str:
    """Return an argument with the home folder for the ~ of --option=~/…, which a shell leaves as it is."""
    name, found, rest = argument.partition("=~/")
    known = found and name.startswith("--") and name[2:].replace("-", "").isalpha()
    return f"{name}={os.path.expanduser('~')}/{rest}" if known else argument


def _run(arguments: list[str]) -> int:
    import typer

    from probjepa.cli.app import app
    from probjepa.errors import ProbjepaError, ProbjepaWarning
    from probjepa.terminal import say
    from probjepa.training.interrupt import Interrupted

    # typer either depends on click or carries it: its base error is reached through typer's own
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    show, hook = warnings.showwarning, sys.excepthook
    said = set[str]()  # of one table the same is found again and again

    def show_warning(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, ProbjepaWarning):
            if str(message) not in said:
                say(f"warning: {message}", error=True)
            said.add(str(message))
        else:
            show(message, category, *rest)  # type: ignore[arg-type]

    try:
        os.getcwd()
    except OSError:
        return _fail("the working directory is gone: cd to another")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            code = app([*map(_expanded, arguments)], prog_name="probjepa", standalone_mode=False)
            if code == EXIT_INTERRUPTED:  # what newer typer makes of Ctrl-C
                raise KeyboardInterrupt
            return int(code or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail(_INTERRUPTED, EXIT_INTERRUPTED)
    except Terminated as error:
        return _fail(_INTERRUPTED, int(error.code or 0))
    except Interrupted as error:
        return _fail(str(error), EXIT_INTERRUPTED)
    except ProbjepaError as error:
        return _fail(str(error))
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
            print(error, file=sys.stderr)
            return EXIT_BAD_INPUT
        command = getattr(getattr(error, "ctx", None), "command_path", "probjepa")
        return _fail(f"{getattr(error, 'format_message', error.__str__)()} (see {command} --help)")
    except (MemoryError, RuntimeError) as error:
        from probjepa.errors import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: use a smaller batch, fewer images or a smaller backbone")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{where}: {error.strerror or error}")
    finally:
        sys.excepthook = hook  # typer sets its own


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> int:
    from probjepa.terminal import say

    say(f"probjepa: {' '.join(message.split())}", error=True)
    return code
