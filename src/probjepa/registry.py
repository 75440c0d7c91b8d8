"""Names to objects, imported only when asked for: `probjepa list` reads the tables without loading torch.

Every table is open: ``register`` adds to it, and so does an installed package, by an entry point of the
table's group. Where a name is taken, an object is taken too (:meth:`Registry.resolve`).
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from probjepa.errors import ConfigError, MissingExtraError, unknown_name


@contextmanager
def importing() -> Iterator[None]:
    """Leave ``random`` and the filters of warnings as they were after the imports of the block.

    Lightning, scikit-learn, SciPy and rich draw from the one or add to the other at their first import.
    """
    state = random.getstate()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(state)


def imported(name: str) -> ModuleType:
    """Return a module, imported without a trace if it was not yet."""
    if name in sys.modules:
        return import_module(name)
    with importing():
        return import_module(name)


def required(package: str, extra: str) -> Any:
    """Return an optional package, or raise MissingExtraError, which names the extra that brings it."""
    try:
        return import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra) from None


def lazy(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names are imported on first use.

    ``names`` has the module, inside ``package``, that each name lives in.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(imported(f"{package}.{names[name]}"), name)

    return find


class Registry(Mapping[str, Any]):
    """A mapping from a name to an object, imported on first use.

    Parameters
    ----------
    kind
        what the entries are, for messages ("method", "backbone")
    entries
        name → ``"module:attribute"``; one line an entry
    group
        of the entry points by which installed packages add entries ("probjepa.methods"); None: none

    Raises
    ------
    ConfigError
        from a look-up, for an unknown name (with the nearest one) or an entry that cannot be imported
    """

    def __init__(self, kind: str, entries: Mapping[str, str], *, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(entries)
        self._added: dict[str, Any] = {}
        self._installed: dict[str, str] | None = None

    def register(self, name: str, entry: Any = None) -> Any:
        """Add an object, or its ``"module:attribute"``; without ``entry``, decorate a class with it.

        Raises
        ------
        ConfigError
            if the name is taken by another object
        """
        if entry is None:

            def decorate(made: Any) -> Any:
                return self.register(name, made)

            return decorate
        known = self._entries()
        if name in known and known[name] is not entry and known[name] != entry:
            raise ConfigError(f"the {self.kind} '{name}' is registered already: choose another name")
        self._added[name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Take out what ``register`` added."""
        self._added.pop(name, None)

    def resolve(self, name_or_object: Any) -> Any:
        """Return the object of a name, or what was given if it is no text and can be called.

        Raises
        ------
        ConfigError
            for an unknown name, or something that is neither
        """
        if isinstance(name_or_object, str):
            return self[name_or_object]
        if not callable(name_or_object):
            raise ConfigError(
                f"{name_or_object!r} is no {self.kind}: give an object, or one of {', '.join(sorted(self))}"
            )
        return name_or_object

    def path(self, name: str) -> str:
        """Return the ``"module:attribute"`` of an entry, without importing it."""
        entry = self._entry(name)
        return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"

    def _entries(self) -> dict[str, Any]:
        if self._installed is None:
            # slow to import, and most look-ups are of our own entries
            from importlib.metadata import entry_points

            found = entry_points(group=self.group) if self.group else ()
            self._installed = {point.name: point.value for point in found}
        return {**self._installed, **self._own, **self._added}

    def _entry(self, name: str) -> Any:
        if name in self._own:  # the usual case reads no metadata of installed packages
            return self._own[name]
        if name in self._added:
            return self._added[name]
        entries = self._entries()
        if name not in entries:
            raise unknown_name(self.kind, name, entries)
        return entries[name]

    def __getitem__(self, name: str) -> Any:
        entry = self._entry(name)
        if not isinstance(entry, str):
            return entry
        module, _, attribute = entry.partition(":")
        try:
            return getattr(imported(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._own:
                raise  # a missing extra says so itself
            raise ConfigError(
                f"the {self.kind} '{name}' cannot be imported from '{entry}' ({error}): "
                "fix the package that registers it"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        # the order of the table, then what was added
        return iter([*self._own, *(name for name in self._entries() if name not in self._own)])

    def __len__(self) -> int:
        return len(self._entries())


# how a lower room has a name made a model: the loader stands on the roof, and is imported when it is called
LOADERS = Registry(
    "loader",
    {
        "saved model": "probjepa.loading:load",
        "encoder": "probjepa.loading:open_encoder",
        "text of a run": "probjepa.loading:text_of",
        "row names of a run": "probjepa.loading:row_names_of",
    },
)
# (out, *, data_root, budget, cells, seed, overwrite, progress) -> None; ours stand beside the library
EXPERIMENTS = Registry("experiment", {}, group="probjepa.experiments")
