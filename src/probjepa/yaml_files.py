"""YAML that users and runs write, as plain values; nothing in it runs code or grows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from probjepa.errors import ConfigError, short
from probjepa.files import regular

_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000
_DEEPEST = 50
_LONGEST_NUMBER = 400  # characters
_MOST_BITS = 64  # of a whole number


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of a user or a run holds, by :func:`parse_yaml`.

    Raises
    ------
    ConfigError
        if it cannot be read, is larger than a megabyte, or is no such YAML
    """
    try:
        with open(regular(path), "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"cannot read {path}: it is larger than a megabyte, which no file of settings is")
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: it is no text") from None
    except ConfigError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None


def read_mapping(path: Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file of a user or a run holds.

    Raises
    ------
    ConfigError
        as :func:`read_yaml`, or if it holds no mapping
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: write one 'key: value' a line")
    return content


def recorded(settings: Path, name: str) -> Any:
    """Return what a run's config.yaml has under a name; None where it is no run's, or says nothing."""
    try:
        return read_mapping(settings).get(name)
    except ConfigError:
        return None


def parse_yaml(text: str) -> Any:
    """Read YAML as plain values: null, true, false, numbers, text, lists and mappings; a date stays text.

    Raises
    ------
    ConfigError
        for what is not YAML, or more than settings need: an alias (a few lines of them can stand for
        gigabytes), a tag, a key that stands twice, a number of hundreds of digits, or too deep a nesting
    """
    import yaml

    depth = 0
    try:
        for count, event in enumerate(yaml.parse(text, Loader=_plain_loader())):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"the alias *{short(event.anchor)} is not taken: write out what it stands for"
                )
            if (tag := getattr(event, "tag", None)) is not None:
                raise ConfigError(f"the tag {short(tag)} is not taken: write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or count > _MOST_VALUES:
                raise ConfigError("it holds more than settings need: write one 'key: value' a line")
        return yaml.load(text, Loader=_plain_loader())
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{short(error.problem or error.context, 100)}{where}") from None
    except yaml.YAMLError as error:
        raise ConfigError(short(error, 100)) from None


@cache
def _plain_loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    def error(problem: str, node: Any) -> Exception:
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    class PlainLoader(base):  # type: ignore[misc]  # PyYAML has no types for its loader in C
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise error(f"the key '{short(key.value)}' stands twice", key)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_number(self, node: Any) -> Any:
            kind = "int" if node.tag.endswith(":int") else "float"
            try:
                if len(node.value) > _LONGEST_NUMBER:
                    raise ValueError
                number = getattr(self, f"construct_yaml_{kind}")(node)
                if isinstance(number, int) and number.bit_length() > _MOST_BITS:
                    raise ValueError
                return number
            except (ValueError, OverflowError):
                raise error(f"a number of too many digits, {short(node.value)}", node) from None

    for kind in ("int", "float"):
        PlainLoader.add_constructor(f"tag:yaml.org,2002:{kind}", PlainLoader.construct_number)
    return PlainLoader
