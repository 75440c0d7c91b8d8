"""Errors a user can act on: each message is one line that says what, where and what to do."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence

# what other libraries call it
_ELSEWHERE = {"lr": "learning_rate", "wd": "weight_decay", "gpu": "cuda", "max_epochs": "epochs"}
# packages whose lines a warning does not point to: scikit-learn's wrappers and Lightning's hooks among them
_CALLERS = ("probjepa", "sklearn", "lightning", "torch", "contextlib", "threading")


class ProbjepaError(Exception):
    """Base class. The command line prints its message as one line and exits with code 2."""


class DataError(ProbjepaError, ValueError):
    """A data source is missing, unreadable, empty, or of the wrong shape, type or channel count."""


class ConfigError(ProbjepaError, ValueError):
    """An unknown name, or a setting out of its range."""


class ArtifactError(ProbjepaError, ValueError):
    """A saved model, checkpoint or output file that cannot be read, written or used."""


class MissingExtraError(ProbjepaError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        self._made_of = package, extra
        super().__init__(
            f"{package} is not installed, and this needs it: install it with pip install 'probjepa[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Travel between processes."""
        return type(self), self._made_of


class ProbjepaWarning(UserWarning):
    """A result that may mislead (a collapse, a fit with too few rows): the text says what to do."""


def warn(message: str, category: type[Warning] = ProbjepaWarning) -> None:
    """Warn, and point to the caller's line: the nearest that is neither ours nor of what calls us."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _CALLERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def short(value: object, width: int = 60) -> str:
    """Return a value as one line of at most ``width`` characters, for messages.

    Examples
    --------
    >>> short("a b  c"), short("0123456789", 5)
    ('a b c', '0123…')
    """
    try:
        text = " ".join(str(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= width else text[: width - 1] + "…"


def few(names: Sequence[str], most: int = 5) -> str:
    """Return the first ``most`` names and how many more there are, for messages."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(count: int, noun: str) -> str:
    """Return how many there are of something, for messages.

    Examples
    --------
    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown ``name``, with the nearest known one suggested.

    Examples
    --------
    >>> str(unknown_name("method", "vjee", ["vje", "simsiam"]))
    "unknown method 'vjee', did you mean 'vje'? (known: simsiam, vje)"
    """
    options = sorted(known)
    return ConfigError(f"unknown {kind} '{name}'{_meant(str(name), options)} (known: {', '.join(options)})")


def unknown_argument(function: str, name: str, known: Iterable[str]) -> TypeError:
    """Return Python's error for an unknown keyword argument, with the nearest known one suggested.

    Examples
    --------
    >>> str(unknown_argument("VJE", "dff", ["df", "draws"]))
    "VJE() got an unexpected keyword argument 'dff', did you mean 'df'?"
    """
    options = sorted(known)
    hint = _meant(name, options) or f" (known: {', '.join(options)})"
    return TypeError(f"{function}() got an unexpected keyword argument '{name}'{hint}")


def _meant(name: str, known: Iterable[str]) -> str:
    """Ask whether the nearest known name was meant; "" where none is near."""
    near = nearest(name, known)
    return f", did you mean '{near}'?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is another's word for, or is spelt most like, in any case."""
    by_small = {option.lower(): option for option in known}
    elsewhere = _ELSEWHERE.get(name.lower(), "")
    near = difflib.get_close_matches(name.lower(), by_small, n=1)
    return by_small.get(elsewhere) or (by_small[near[0]] if near else None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full; on a CPU torch raises a plain RuntimeError."""
    said = ("OutOfMemory", "out of memory", "allocate memory", "not enough memory", "DefaultCPUAllocator")
    of_torch = isinstance(error, RuntimeError) and any(words in repr(error) for words in said)
    return of_torch or isinstance(error, MemoryError)
