"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import sys
import warnings

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run ``probjepa``: 0 when done, 2 after bad input (one line on stderr), 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; what a user can cause ends in one line, no traceback."""
    import typer

    from probjepa.cli.app import app
    from probjepa.errors import ProbjepaError, ProbjepaWarning
    from probjepa.training.interrupt import Interrupted

    # typer either depends on click or carries it: its base error is reached through typer's own
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    show, hook = warnings.showwarning, sys.excepthook

    def show_warning(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, ProbjepaWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            show(message, category, *rest)  # type: ignore[arg-type]

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            code = app(arguments, prog_name="probjepa", standalone_mode=False)
            return int(code or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Interrupted as error:
        return _fail(str(error), EXIT_INTERRUPTED)
    except ProbjepaError as error:
        return _fail(str(error))
    except usage_error as error:
        return _fail(f"{getattr(error, 'format_message', error.__str__)()} (see probjepa --help)")
    except BrokenPipeError:
        return 0
    except (MemoryError, RuntimeError) as error:
        # torch says it by a RuntimeError, on the CPU of no type of its own
        full = ("out of memory", "allocate memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in full):
            raise
        return _fail("out of memory: use a smaller batch, fewer images or a smaller backbone")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{where}: {error.strerror or error}")
    finally:
        sys.excepthook = hook  # typer sets its own


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> int:
    print(f"probjepa: {' '.join(message.split())}", file=sys.stderr)
    return code
