"""The code that decides a study's numbers: a hash of each module, so that an old cell is known as one."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "probjepa"
# what draws, prints, stores, names or drives, and decides no number
_IDLE = (
    *(
        f"{_PACKAGE}.{name}"
        for name in ("cli", "errors", "files", "loading", "plots", "provenance", "registry", "report")
    ),
    *(f"probjepa_experiments.{name}" for name in ("code", "page", "results_page", "runner", "study")),
)
# tables of names: one more name changes no number, and a cell says itself which of them it goes through
_TABLES = (_PACKAGE, *(f"{_PACKAGE}.{name}" for name in ("backbones", "heads", "methods", "tabular")))
_ENTRY = re.compile(r"(\w+(?:\.\w+)+):\w+")  # "module:attribute", as registries name what they import late


def fingerprint(roots: Iterable[str]) -> dict[str, str]:
    """Return module → hash of its code: of the roots, and of all that they import from the same packages.

    Imports are read from the source, those within functions too; a package's late names lead to the module
    that its type checker's imports name, and "module:attribute" texts of registries to theirs. Comments,
    docstrings and layout do not count. Left out is what decides no number (messages, pages, files), and the
    tables of methods, heads and backbones with all in them that no root names. Hashes are of one version of
    Python.
    """
    roots = sorted(set(roots))
    packages = {_PACKAGE, *(root.partition(".")[0] for root in roots)}
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        module = None if name in seen or _is_idle(name) else parsed(name)
        seen.add(name)
        if module is not None:
            if name not in _TABLES:
                found[name] = module.digest
            waiting += [new for new in _followed(module) if new.partition(".")[0] in packages]
    return dict(sorted(found.items()))


def changed(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the modules whose code is not what it was, those that came and went among them."""
    return sorted(name for name in {*stored, *now} if stored.get(name) != now.get(name))


def mark(code: Mapping[str, str]) -> str:
    """Return a fingerprint in eight digits."""
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:8]


def source_of(name: str) -> str | None:
    """Return a module's source; None where there is no such module, or none in Python."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if spec.submodule_search_locations is None:  # a file of its own
        files = [] if rest else [Path(spec.origin)]
    else:
        place = Path(spec.origin).parent.joinpath(*rest)
        files = [place / "__init__.py", place.with_name(f"{place.name}.py")]
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), None)


@dataclass(frozen=True)
class _Module:
    digest: str
    modules: tuple[str, ...]
    names: tuple[tuple[str, str], ...]  # (module, what is read of it)
    late: Mapping[str, tuple[str, str]]  # name → module and name there, of a package that imports on demand


@cache
def parsed(name: str) -> _Module | None:
    """Return a module as the fingerprint reads it; None where it has no source."""
    source = source_of(name)
    return None if source is None else _read(source, name in _TABLES)


@cache
def _read(source: str, table: bool) -> _Module:
    tree = ast.parse(source)
    late = {
        alias.asname or alias.name: (line.module, alias.name)
        for block in tree.body
        if _is_for_types(block)
        for line in ast.walk(block)
        if isinstance(line, ast.ImportFrom) and line.module
        for alias in line.names
    }
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            lines = getattr(node, part, None)
            if isinstance(lines, list):
                setattr(node, part, [line for line in lines if not (_is_text(line) or _is_for_types(line))])
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]
    modules, names = _imports(tree)
    if not table:
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        modules += [entry[1] for text in texts if isinstance(text, str) and (entry := _ENTRY.fullmatch(text))]
    return _Module(digest, tuple(modules), tuple(names), late)


def _imports(tree: ast.Module) -> tuple[list[str], list[tuple[str, str]]]:
    modules: list[str] = []
    names: list[tuple[str, str]] = []
    called: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
            called |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(node.module, alias.name) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
            names.append((called[node.value.id], node.attr))
    return modules, names


def _followed(module: _Module) -> Iterator[str]:
    yield from module.modules
    for home, name in module.names:
        yield from _homes(home, name)


def _homes(home: str, name: str) -> Iterator[str]:
    """Yield where a name that is read of a module may be from."""
    yield home
    yield f"{home}.{name}"  # where it is no module, it has no source
    package = parsed(home) if home.partition(".")[0] == _PACKAGE else None
    late = package.late.get(name) if package else None
    if late and late != (home, name):  # a sub-package that is imported late is from the package itself
        yield from _homes(*late)


def _is_idle(name: str) -> bool:
    return any(name == idle or name.startswith(f"{idle}.") for idle in _IDLE)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
