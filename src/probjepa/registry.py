"""Names to objects, imported only when asked for: `probjepa list` reads the tables without loading torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from probjepa.errors import unknown_name


class Registry(Mapping[str, Any]):
    """A read-only mapping from a name to a lazily imported object.

    Parameters
    ----------
    kind
        what the entries are, for messages ("method", "backbone")
    entries
        name → ``"module:attribute"``; one line an entry
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        """Import and return the object; an unknown name raises ConfigError with the nearest one."""
        try:
            module, attribute = self._entries[name].split(":")
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
