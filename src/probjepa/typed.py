"""Settings that users write, checked against the types that arguments are annotated with."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from probjepa.errors import ConfigError, short, unknown_argument, unknown_name

P = ParamSpec("P")
R = TypeVar("R")
_LARGEST = 2**63 - 1  # of torch's whole numbers, seeds among them
DEEPEST = 1000  # layers of anything: a damaged number would be built for ever
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
_LISTS = (list, tuple, set, frozenset, Sequence)
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # YAML reads a number only with a dot


def types_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of each argument of a class or function, by name, those of ``**keywords`` apart.

    An argument without an annotation has the type of its default, where that is a plain value, else Any.
    """
    found: dict[str, Any] = {}
    for kind in reversed(inspect.getmro(function) if inspect.isclass(function) else ()):
        if "__init__" in vars(kind):
            found |= _hints(vars(kind)["__init__"])
    found |= {} if inspect.isclass(function) else _hints(function)
    types = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        of_default = type(parameter.default) if type(parameter.default) in _WORDS else Any
        annotated = parameter.annotation
        written = annotated is not parameter.empty and not isinstance(annotated, str)
        types[name] = annotated if written else found.get(name, of_default)
    return types


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # it names what only a type checker imports
        return {}


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return a value if it is of a type; a list as the tuple or the like that the type asks for.

    A text such as "1e-3" is a number where one belongs. NaN and infinity are none, unless the type says
    ``Literal["inf"]``, which infinity then becomes.

    Raises
    ------
    ConfigError
        that names the setting, what it takes and, shortened, what it got
    """
    from pydantic import ValidationError

    adapter = _adapter(kind)
    if adapter is None or kind is Any:
        return value
    for given in (_finite(value), _finite(_numbers(value))):
        try:
            read = adapter.validate_json(json.dumps(given), strict=True)
        except (ValidationError, TypeError, ValueError):
            continue
        return given if read == given else read  # a whole number stays one where a number is asked for
    takes = describe(kind) or f"a {getattr(kind, '__name__', kind)}"
    if isinstance(value, float) and not math.isfinite(value):
        takes = takes.replace("a number", "a finite number")
    raise ConfigError(f"the setting {name} takes {takes}, got '{short('null' if value is None else value)}'")


def check_settings(settings: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, each as its type has it.

    Raises
    ------
    ConfigError
        for one that is not among the types, with the nearest name, or that is of another type
    """
    for key in settings:
        if key not in types:
            meant = sorted(name for name in types if name.endswith(f"_{key}"))
            if len(meant) > 1:
                raise ConfigError(f"the setting {key} may be {' or '.join(meant)}: write which")
            raise unknown_name("setting", short(key), types)
    return {key: checked(key, value, types[key]) for key, value in settings.items()}


def settings_checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: its numbers, names, truth values and lists of them are checked by type at a call.

    Arguments of other types, such as arrays, are left to the function. ``seed`` is a whole number from 0 on.

    Raises
    ------
    ConfigError
        from the call, as ``checked``
    TypeError
        for an unknown argument, with the nearest name
    """
    signature = inspect.signature(function)
    known = signature.parameters
    closed = not any(of.kind is of.VAR_KEYWORD for of in known.values())
    called = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if closed and (other := next((name for name in kwargs if name not in known), None)):
            raise unknown_argument(called, other, [name for name in known if name != "self"])
        given = signature.bind(*args, **kwargs)
        given.arguments |= check_arguments(given.arguments, _plain_types(function))
        return function(*given.args, **given.kwargs)

    return call


def check_plain(name: str, value: Any, kind: Any) -> Any:
    """Return what ``is_plain`` as ``checked`` does; numpy's and torch's numbers and lists are such, too."""
    if getattr(value, "ndim", 2) < 2 and hasattr(value, "tolist"):
        value = value.tolist()
    read = checked(name, value, kind)
    if isinstance(read, int) and not (0 if name == "seed" else -_LARGEST) <= read <= _LARGEST:
        least = "from 0 " if name == "seed" else ""
        raise ConfigError(
            f"the setting {name} takes a whole number {least}up to 2⁶³ − 1, got '{short(value)}'"
        )
    return value if isinstance(value, float) else read  # infinity stays one


def check_arguments(given: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with those of plain types checked, see ``check_plain``; a mapping has to be one."""
    read = dict(given)
    for name, kind in types.items():
        if name in read and is_plain(kind):
            read[name] = check_plain(name, read[name], kind)
        elif read.get(name) is not None and (takes := describe(kind)) in ("a mapping", "a mapping or null"):
            if not isinstance(read[name], Mapping):
                raise ConfigError(f"the setting {name} takes {takes}, got '{short(read[name])}'")
            for key in read[name]:
                checked(f"{name}'s name", key, str)
    return read


@lru_cache
def _plain_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of those arguments that ``is_plain`` holds for."""
    found = {}
    for name, annotation in inspect.get_annotations(function).items():
        with suppress(NameError, TypeError):  # of what only a type checker imports
            alone = SimpleNamespace(__annotations__={name: annotation})
            found[name] = get_type_hints(alone, function.__globals__)[name]
    return {name: kind for name, kind in found.items() if is_plain(kind)}


def is_plain(kind: Any) -> bool:
    """Return whether a type is a number, a name, a truth value, one of several such, or a list of such."""
    origin, parts = get_origin(kind), [part for part in get_args(kind) if part not in (NoneType, ...)]
    if origin in (Union, UnionType) or origin in _LISTS:
        return bool(parts) and all(is_plain(part) for part in parts)
    return kind in _WORDS or origin is Literal


@lru_cache
def _adapter(kind: Any) -> Any:
    """What checks a type; None: the type is one that only Python's own objects have."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        if is_dataclass(kind):  # it has its own config
            return TypeAdapter(kind)
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        return None


def _finite(value: Any) -> Any:
    """A value with its NaN and infinities as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return _inside(_finite, value)


def _numbers(value: Any) -> Any:
    """A value with its texts that are numbers with an exponent as numbers."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value.strip()):
        return float(value)
    return _inside(_numbers, value)


def _inside(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    return [change(item) for item in value] if isinstance(value, list | tuple) else value


def describe(kind: Any, plural: bool = False) -> str:
    """Say in words what a type takes ("a number or null"); "" for a type that no text stands for."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        words = [describe(part, plural) for part in parts if part is not NoneType]
        words += ["null"] if NoneType in parts else []
        return " or ".join(word for word in words if word)
    if origin is Literal:
        return " or ".join(f"'{part}'" for part in parts)
    if kind in _WORDS:
        word = _WORDS[kind]
        return word.removeprefix("a ") + "s" if plural and word.startswith("a ") else word
    if origin in _LISTS or kind in _LISTS:
        fixed = f" of {len(parts)}" if origin is tuple and ... not in parts else ""
        items = describe(parts[0], plural=True) if parts else ""
        return f"a list{fixed or (' of' if items else '')}{f' {items}' if items else ''}"
    return "a mapping" if origin is not None and issubclass(origin, Mapping) else ""
